"""Net-Trim: a layer's program against a solver from elsewhere, planted layers, counts, and whole models."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from ellzero.errors import InputError
from ellzero.models.mlp import MLPConfig
from ellzero.network.net_trim import MODES, _flows, net_trim
from ellzero.network.net_trim_layer import LayerProgram, Responses
from ellzero.network.recipes import static
from ellzero.network.sparsifier import Sparsifier
from ellzero.rng import rng
from ellzero.training.loop import seeded


def normal(seed, *shape):
    return torch.from_numpy(rng(seed, "net trim", *map(str, shape)).standard_normal(shape)).float()


def program(seed, rows, inputs, units, *, bias=True, rectified=True, weight=None, **options):
    X = normal(seed, rows, inputs)
    weight = normal(seed + 1, units, inputs) if weight is None else weight
    offset = normal(seed + 2, units) if bias else None
    return LayerProgram(weight, offset, X, F.linear(X, weight, offset), rectified=rectified, **options), X


def elsewhere(X, weight, bias, rectified, epsilon):
    """The program's minimum by sequential quadratic programming, from the weights as they are."""
    X = np.hstack([X.double().numpy(), np.ones((len(X), 1))])
    whole = np.hstack([weight.double().numpy(), bias.double().numpy()[:, None]])
    before = X @ whole.T
    on = before > 0 if rectified else np.ones_like(before, bool)
    target, shape = np.where(on, before, 0), whole.shape
    free = np.ones(shape)
    free[:, -1] = 0

    def responses(z):
        return X @ (z[: whole.size] - z[whole.size :]).reshape(shape).T

    def slack(z):
        return epsilon**2 * np.sum(target**2) - np.sum((responses(z) - target)[on] ** 2)

    limits = [{"type": "ineq", "fun": slack}, {"type": "ineq", "fun": lambda z: -responses(z)[~on]}]
    limits = limits[: 2 if rectified else 1]
    start = np.concatenate([np.maximum(whole, 0).ravel(), np.maximum(-whole, 0).ravel()])
    cost = np.concatenate([free.ravel(), free.ravel()])
    bounds = [(0, None)] * len(start)
    found = minimize(lambda z: cost @ z, start, jac=lambda z: cost, bounds=bounds, constraints=limits, method="SLSQP",
                     options={"maxiter": 1000, "ftol": 1e-10})  # fmt: skip
    assert found.success
    return found.fun


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_a_layer_reaches_the_minimum_and_keeps_to_the_constraint(rectified, epsilon):
    trim, X = program(0, 12, 4, 2, rectified=rectified, tol=1e-6, max_iter=20_000)
    found = trim.solve(epsilon)
    assert found.converged
    z = F.linear(X, found.weight, found.bias)
    gap = torch.where(trim.active, z - trim.target, 0)
    assert float(gap.norm()) <= 1.001 * epsilon * trim.size
    assert float(torch.where(trim.active, 0, z).max()) <= 1e-3
    least = elsewhere(X, trim.weight, trim.bias, rectified, epsilon)
    assert float(found.weight.abs().sum()) == pytest.approx(least, rel=2e-3)
    assert torch.equal(found.mask, found.weight != 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 10.0])
def test_the_projection_is_onto_the_set(epsilon):
    target, v = normal(0, 6, 3), 2 * normal(1, 6, 3)
    active = target > 0
    responses = Responses(target, active, target.new_full((6, 3), 0.1), epsilon)
    near = responses.prox(v, 1.0)
    gap = torch.where(active, near - target, 0)
    assert float(gap.norm()) <= epsilon + 1e-6
    assert float(torch.where(active, -9, near).max()) <= 0.1 + 1e-6
    torch.testing.assert_close(responses.prox(near, 1.0), near)
    for i in range(200):  # the angle to any member is right or wider
        other = responses.prox(v + normal(i, 6, 3), 1.0)
        assert float(((v - near) * (other - near)).sum()) <= 1e-4


def test_a_planted_layer_is_found_exactly():
    weight = torch.zeros(10, 200)
    generator = rng(0, "planted layer")
    for row in weight:
        row[generator.choice(200, 5, replace=False)] = torch.from_numpy(generator.standard_normal(5)).float()
    trim, _ = program(1, 200, 200, 10, bias=False, weight=weight, tol=1e-4, max_iter=1500)
    found = trim.solve(1e-4)
    torch.testing.assert_close(found.weight, weight, atol=2e-3, rtol=0)
    assert torch.equal(found.weight.abs() > 1e-2, weight.abs() > 1e-2)
    assert int(found.mask.sum()) <= 60


@pytest.mark.parametrize("count", [0, 1, 37, 150, 239, 240])
def test_counts_are_exact(count):
    trim, _ = program(3, 300, 20, 12)
    found = trim.keep(count)
    assert int(found.mask.sum()) == count
    assert not found.weight[~found.mask].any()
    if count == 240:
        assert torch.equal(found.weight, trim.weight)
    weight, bias = trim.refit(found.mask)
    assert not weight[~found.mask].any()
    if 1 < count < 239:
        assert trim.error(weight, bias) < trim.error(found.weight, found.bias)


def test_an_input_that_is_always_zero_gets_no_weight():
    X, weight = normal(0, 50, 6), normal(1, 4, 6)
    X[:, 2] = 0
    trim = LayerProgram(weight, None, X, F.linear(X, weight), rectified=True)
    assert not trim.solve(0.1).weight[:, 2].any()
    nothing = LayerProgram(weight, None, 0 * X, 0 * F.linear(X, weight), rectified=True)
    assert not nothing.solve(0.1).weight.any()
    assert int(nothing.keep(5).mask.sum()) == 5


def trained(seed=0):
    """A perceptron with structure in its weights, and rows."""
    model = MLPConfig(12, 4, (20, 16)).build(seed)
    return model, normal(seed, 200, 12)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_keeps_its_responses_to_the_error(mode):
    model, rows = trained()
    before = copy.deepcopy(model)
    trim = net_trim(model, rows, epsilon=0.1, mode=mode, tol=1e-4, max_iter=3000)
    assert [row.name for row in trim.layers] == ["layers.0", "layers.1", "layers.2"]
    for row in trim.layers:
        assert row.converged
        assert row.error <= 1.01 * row.allowed
    weights = dict(model.named_parameters())
    assert set(trim.masks) == {name for name in weights if name.endswith("weight")}
    for name, mask in trim.masks.items():
        assert torch.equal(mask, weights[name] != 0)
    assert trim.density < 0.9
    with torch.no_grad():
        first, old = F.relu(model.layers[0](rows)), F.relu(before.layers[0](rows))
    assert float((first - old).norm() / old.norm()) <= 0.101
    assert model.training == before.training


def test_a_cascade_ends_nearer_than_parallel_trims():
    away = {}
    for mode in MODES:
        model, rows = trained()
        wanted = model(rows).detach()
        net_trim(model, rows, density=0.3, mode=mode, max_iter=200)
        away[mode] = float((model(rows).detach() - wanted).norm() / wanted.norm())
    assert away["cascade"] < away["parallel"]


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_a_density_is_met_and_a_sparsifier_takes_the_masks(allocation):
    model, rows = trained()
    trim = net_trim(model, rows, density=0.25, allocation=allocation, refit=True, exclude="layers.2")
    numel = 12 * 20 + 20 * 16
    assert sum(row.kept for row in trim.layers) == round(0.25 * numel)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sparsifier = Sparsifier(
        model, static(), optimizer=optimizer, steps=3, masks=dict(trim.masks), exclude="layers.2"
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name])
    for _ in range(3):
        optimizer.zero_grad()
        model(rows).square().sum().backward()
        optimizer.step()
        sparsifier.step()
    for name, mask in trim.masks.items():
        assert not dict(model.named_parameters())[name][~mask].any()


def test_whether_a_relu_follows_is_seen():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

        def forward(self, x):
            return F.relu(self.third(torch.tanh(self.second(self.first(x).relu()))))

    with seeded(0, 0, torch.device("cpu")):
        model = Two()
    flows = _flows(model, normal(0, 9, 5), ["first", "second", "third"])
    assert {name: flow.rectified for name, flow in flows.items()} == {"first": True, "second": False, "third": True}


def test_it_repeats_itself():
    found = []
    for _ in range(2):
        model, rows = trained()
        net_trim(model, rows, epsilon=0.2)
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


class Apart(nn.Module):
    """A layer that the rows never meet, and one that is no linear layer."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(12, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (None, {"epsilon": None}, "epsilon: got None beside density None, want one of the two"),
        (None, {"density": 0.5}, "epsilon: got 0.1 beside density 0.5, want one of the two"),
        (None, {"epsilon": 0.0}, "epsilon: got 0.0"),
        (None, {"epsilon": None, "density": 1.5}, "density: got 1.5"),
        (None, {"mode": "series"}, "mode: got 'series', want one of parallel, cascade"),
        (None, {"samples": 0}, "samples: got 0"),
        (None, {"tol": 0.0}, "tol: got 0.0"),
        (None, {"include": "layer.0"}, "include: no parameter or module fits 'layer.0'"),
        (None, {"rows": torch.full((2, 12), torch.nan)}, "rows: 24 entries not finite"),
        (nn.Sequential(nn.Conv1d(1, 1, 1)), {}, "'0.weight' is of Conv1d, want linear layers; name it in exclude"),
        (Apart(), {}, "model: 'idle' is not called with these rows"),
    ],
)
def test_bad_input_leaves_the_model_alone(model, change, message):
    model = trained()[0] if model is None else model
    before = copy.deepcopy(model.state_dict())
    arguments = {"rows": normal(0, 50, 12), "epsilon": 0.1, **change}
    with pytest.raises(InputError, match=message):
        net_trim(model, **arguments)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_shared_and_broken_weights_are_refused():
    model, rows = trained()
    model.layers[1].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"model: layers.1.weight: 1 entry not finite"):
        net_trim(model, rows, epsilon=0.1)
    tied = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="is shared by 2 layers"):
        net_trim(tied, rows, epsilon=0.1)
