"""Unlearning against what it must be: quadratic problems with known answers, masks that hold, an attack by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ellzero.errors import InputError
from ellzero.network import unlearning
from ellzero.network.cycles import fitter
from ellzero.network.unlearning import (
    FallingL1,
    UnlearningReport,
    attack_threshold,
    pattern_of,
    prune_first,
    unlearn,
    unlearning_report,
)
from ellzero.rng import rng
from ellzero.training import losses

SHORT = {"steps": 6, "lr": 0.05}
SETTINGS = {
    "retrain": SHORT, "fine_tune": SHORT, "l1_sparse": {**SHORT, "gamma": 1e-3}, "gradient_ascent": SHORT,
    "fisher": {"rows": 20}, "influence": {"iterations": 3},
}  # fmt: skip


def net(seed=0):
    draw = rng(seed, "unlearning", "net")
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.5 * draw.standard_normal(tuple(parameter.shape))))
    return model


def rows(n, name="rows"):
    draw = rng(0, "unlearning", name)
    X = torch.from_numpy(draw.standard_normal((n, 5))).float()
    return X, X[:, :3].argmax(1)


def sparse(seed=0):
    model = net(seed)
    masks = {name: torch.from_numpy(rng(seed, "mask", name).random(tuple(p.shape)) < 0.5)
             for name, p in model.named_parameters() if p.ndim == 2}  # fmt: skip
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, masks


@pytest.mark.parametrize("method", SETTINGS)
def test_masks_hold_and_results_repeat_under_every_method(method):
    found = []
    for _ in range(2):
        model, masks = sparse()
        model.train()
        start = {name: value.clone() for name, value in net(1).state_dict().items()}
        before = copy.deepcopy(model.state_dict())
        more = {"start": start} if method == "retrain" else {}
        done = unlearn(model, rows(60), rows(10, "gone"), method, batch_size=16, seed=3, **SETTINGS[method], **more)
        assert all(torch.equal(done.masks[name], masks[name]) for name in masks)
        for name, mask in masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
            assert not torch.equal(model.get_parameter(name)[mask], before[name][mask])
        assert model.training
        assert done.seconds > 0
        found.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_retraining_does_not_depend_on_what_the_network_had_learned():
    start = {name: value.clone() for name, value in net(7).state_dict().items()}
    masks, found = sparse()[1], []
    for seed in (0, 1):
        model = net(seed)
        unlearn(model, rows(60), rows(10, "gone"), "retrain", masks=masks, start=start, **SHORT)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)


def test_the_newton_step_goes_to_the_optimum_without_the_forgotten_rows():
    """On a ridge-free multinomial logistic model near its optimum one step does nearly all of the way."""
    generator = rng(0, "newton")
    X = torch.from_numpy(generator.standard_normal((400, 4)))
    y = torch.from_numpy((X.numpy() @ generator.standard_normal((4, 3)) + generator.gumbel(size=(400, 3))).argmax(1))

    def optimum(part, target):
        model = nn.Linear(4, 3).double()
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10,
                                  tolerance_change=1e-14)  # fmt: skip

        def closure():
            lbfgs.zero_grad()
            value = F.cross_entropy(model(part), target)
            value.backward()
            return value

        lbfgs.step(closure)
        return model

    def logits(model):
        out = model(X)
        return (out - out.mean(1, keepdim=True)).detach()

    whole, wanted = optimum(X, y), optimum(X[20:], y[20:])
    before = (logits(whole) - logits(wanted)).norm()
    unlearn(whole, (X[20:], y[20:]), (X[:20], y[:20]), "influence", damping=1e-8, iterations=100)
    after = (logits(whole) - logits(wanted)).norm()
    assert after < 0.15 * before


def test_the_diagonal_of_the_fisher_information_is_that_of_the_formula():
    """For a linear softmax model it is ``mean x_j^2 p_c (1 - p_c)``; labels are drawn, so within sampling error."""
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(0.3 * torch.from_numpy(rng(0, "fisher").standard_normal((3, 5))))
        model.bias.zero_()
    X, y = rows(4000)
    job = unlearning._Job(model, (X, y), (X[:1], y[:1]), {}, 64, 0, None)
    found = unlearning._fisher_diagonal(job, 4000)
    p = model(X).softmax(1).detach()
    torch.testing.assert_close(found["weight"], (p * (1 - p)).T @ X**2 / 4000, rtol=0.12, atol=0)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0), rtol=0.12, atol=0)


def test_noise_is_large_where_the_retained_rows_feel_little():
    model = nn.Linear(400, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    X = torch.from_numpy(rng(0, "noise").standard_normal((300, 400))).float()
    X[:, 200:] = 0  # inputs that are never lit
    unlearn(model, (X, X[:, :3].argmax(1)), (X[:5], X[:5, :3].argmax(1)), "fisher", noise=0.1, damping=1e-2)
    dark, alive = model.weight[:, 200:].std(), model.weight[:, :200].std()
    assert float(dark) == pytest.approx(0.1 * 1e-2**-0.25, rel=0.15)
    assert float(alive) == pytest.approx(0.1 * 2**-0.25, rel=0.15)  # half of the entries have all of the information


def test_the_penalty_is_that_of_the_paper_and_ends_at_zero():
    weights = {"w": torch.tensor([2.0, -0.5, 0.0])}
    torch.testing.assert_close(FallingL1(0.1)(weights, {}, 0.25)["w"], 0.075 * torch.tensor([1.0, -1.0, 0.0]))
    assert (FallingL1(0.1)(weights, {}, 1.0)["w"] == 0).all()


def test_without_a_penalty_the_sparse_variant_is_fine_tuning():
    found = []
    for method, more in (("fine_tune", {}), ("l1_sparse", {"gamma": 0.0}), ("l1_sparse", {"gamma": 0.05})):
        model = net()
        unlearn(model, rows(60), rows(10, "gone"), method, **SHORT, **more)
        found.append(model[0].weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert found[2].abs().sum() < found[0].abs().sum()


def test_going_up_the_gradient_raises_the_loss_of_the_forgotten_rows():
    model, gone = net(), rows(10, "gone")
    before = float(losses.classification(model, gone))
    unlearn(model, rows(60), gone, "gradient_ascent", steps=10, lr=0.05)
    assert float(losses.classification(model, gone)) > before


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole, broken = net(), net()
    parts = rows(60), rows(10, "gone")
    unlearn(whole, *parts, "l1_sparse", **SHORT)
    calls = 0

    def stops(self, weights, gradients, progress):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(self, weights, gradients, progress)

    original = FallingL1.__call__
    monkeypatch.setattr(unlearning, "fitter", lambda *a, **o: fitter(*a, **o, every=2))
    with monkeypatch.context() as patch:
        patch.setattr(FallingL1, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            unlearn(broken, *parts, "l1_sparse", checkpoint=tmp_path, **SHORT)
    fresh = net()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_().add_(0.1)  # what it was is in the checkpoint
    unlearn(fresh, *parts, "l1_sparse", masks=pattern_of(net()), checkpoint=tmp_path, **SHORT)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])


@pytest.mark.parametrize("by", ["magnitude", "synflow"])
def test_a_network_pruned_first_has_its_density_and_begins_at_its_first_weights(by):
    model, seen = net(), []

    def fit(one, masks, seed):
        seen.append((copy.deepcopy(one.state_dict()), masks))
        for parameter in one.parameters():
            parameter.data.mul_(1.5)

    first = copy.deepcopy(model.state_dict())
    found = prune_first(model, fit, 0.25, by=by, example=rows(1)[0])
    assert sum(int(mask.sum()) for mask in found.masks.values()) == 24
    assert len(seen) == (2 if by == "magnitude" else 1)
    state, masks = seen[-1]
    assert all(torch.equal(state[name], first[name] * masks[name]) for name in masks)
    assert pattern_of(model).keys() == masks.keys()
    assert all(torch.equal(pattern_of(model)[name], masks[name]) for name in masks)


def test_at_density_one_nothing_is_cut():
    found = prune_first(net(), lambda *_: None, 1.0)
    assert found.density == 1.0


# -- the report


def test_the_attack_finds_the_line_between_two_groups_and_knows_chance():
    threshold, right = attack_threshold(np.full(50, 0.99), np.full(5, 0.2))
    assert 0.2 < threshold < 0.99
    assert right == 1.0
    assert attack_threshold(np.full(4, 0.5), np.full(4, 0.5)) == (-np.inf, 0.5)
    assert attack_threshold(np.full(4, 0.4), np.full(4, 0.5)) == (-np.inf, 0.5)
    draw = rng(0, "attack")
    members, others = draw.beta(20, 1, 4000), draw.beta(4, 1, 500)
    threshold, right = attack_threshold(members, others)
    grid = np.linspace(0, 1, 400)
    best = max(0.5 * ((members >= cut).mean() + (others < cut).mean()) for cut in grid)
    assert best - 0.05 < right <= best + 1e-12
    assert attack_threshold(members, others) == attack_threshold(members[::-1], np.tile(others, 3))


def test_the_report_counts_by_hand_and_never_fits_the_attack_to_the_forgotten_rows(monkeypatch):
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    hot, zero = torch.tensor([[9.0, 0.0]]), torch.zeros(1, dtype=torch.int64)
    retain = (hot.repeat(8, 1), zero.repeat(8))
    test = (torch.tensor([[9.0, 0.0], [0.2, 0.0], [0.0, 0.2], [0.1, 0.0]]), zero.repeat(4))
    forget = (torch.tensor([[8.0, 0.0], [0.0, 3.0], [0.0, 4.0], [0.1, 0.0]]), zero.repeat(4))
    seen = []
    monkeypatch.setattr(unlearning, "attack_threshold", lambda a, b: seen.append((a, b)) or attack_threshold(a, b))
    found = unlearning_report(model, retain, forget, test, seconds=2.0)
    assert (found.unlearning, found.remaining, found.test, found.seconds) == (0.5, 1.0, 0.75, 2.0)
    assert found.membership == 0.75
    assert [len(side) for side in seen[0]] == [8, 4]
    other = UnlearningReport(0.4, 0.75, 0.9, 0.85)
    assert found.gap(other) == pytest.approx((0.1 + 0 + 0.1 + 0.1) / 4)


PARTS = (rows(20), rows(5, "gone"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"method": "fisherr"}, "method.*did you mean 'fisher'"), ({"method": "retrain"}, "start"),
        ({"gama": 1.0}, "gama.*did you mean 'gamma'"), ({"gamma": -1.0}, "gamma"), ({"steps": 0}, "steps"),
        ({"method": "fisher", "noise": -1.0}, "noise"), ({"method": "fisher", "damping": 0.0}, "damping"),
        ({"method": "fisher", "rows": 0}, "rows"), ({"method": "influence", "damping": 0.0}, "damping"),
        ({"method": "influence", "iterations": 0}, "iterations"), ({"method": "influence", "scale": 0}, "scale"),
        ({"model": 3}, "model"), ({"retain": rows(4)[0]}, "retain"), ({"forget": (rows(4)[0], rows(3)[1])}, "forget"),
        ({"retain": (rows(4)[0] * np.nan, rows(4)[1])}, "retain: X"), ({"batch_size": 0}, "batch_size"),
        ({"masks": {"0.weight": torch.ones(2, dtype=torch.bool)}}, "masks"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    given = {"model": net(), "retain": PARTS[0], "forget": PARTS[1], **changed}
    with pytest.raises(InputError, match=named):
        unlearn(given.pop("model"), given.pop("retain"), given.pop("forget"), **given)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"by": "size"}, "by"), ({"by": "synflow"}, "example"), ({"density": 0.0}, "density")],
)
def test_a_network_that_cannot_be_pruned_first_is_refused(changed, named):
    with pytest.raises(InputError, match=named):
        prune_first(net(), lambda *_: None, **{"density": 0.5, **changed})


def test_a_network_that_is_wholly_certain_has_no_fisher_noise():
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    with pytest.raises(InputError, match="wholly certain"):
        unlearn(model, *PARTS, "fisher", masks={})
