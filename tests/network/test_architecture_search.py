"""Learned masks, mixed operations, and what learns in which phase of the search."""

import copy

import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.models.mlp import MLPConfig
from ellzero.network.architecture_search import MixedOp, SparseSearch, masked, masks_in, set_phase
from ellzero.training import losses
from ellzero.training.loop import Batches
from ellzero.training.threads import threads_for


@pytest.fixture(autouse=True)
def _one_thread():
    with threads_for(0):
        yield


def linear(seed=0, size=8):
    return MLPConfig(size, size, ()).build(seed).layers[0]


def supernet():
    ops = {"masked": masked(linear(1), 0.25), "skip": nn.Identity()}
    return nn.Sequential(linear(0), MixedOp(ops), linear(2))


def test_a_masked_layer_keeps_the_largest_scores_and_both_derivatives_are_exact():
    layer = masked(linear(), 0.25)
    (view, weight), scores = masks_in(layer)["weight"], masks_in(layer)["weight"][0].scores
    with torch.no_grad():
        scores.copy_(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    kept = scores.detach().abs() >= scores.detach().abs().flatten().topk(16).values[-1]
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    out = layer(x)
    torch.testing.assert_close(out, x @ (weight * kept).T + layer.bias)
    upstream = torch.arange(40.0).reshape(5, 8).sin()
    (out * upstream).sum().backward()
    by_masked = upstream.T @ x
    torch.testing.assert_close(weight.grad, by_masked * kept)
    torch.testing.assert_close(scores.grad, by_masked * weight.detach() * scores.detach().sign())
    assert int(view.mask().sum()) == 16


def test_scores_start_in_proportion_to_weights():
    layer = masked(linear(), 0.5)
    view, weight = masks_in(layer)["weight"]
    ratio = view.scores.detach() / weight.detach()
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    set_phase(layer, "dense")
    torch.testing.assert_close(layer.weight, weight)
    with torch.no_grad():
        weight.mul_(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
    set_phase(layer, "scores")
    torch.testing.assert_close(view.scores.detach(), weight.detach() / weight.detach().abs().max())


def test_a_mixed_operation_is_the_weighted_sum():
    mixed = MixedOp({"a": nn.Identity(), "b": nn.Tanh(), "c": nn.ReLU()})
    with torch.no_grad():
        mixed.logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x, share = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0, -1.0]).softmax(0)
    torch.testing.assert_close(mixed(x), share[0] * x + share[1] * x.tanh() + share[2] * x.relu())
    assert mixed.choice == "b"


@pytest.mark.parametrize("phase", ["dense", "scores", "weights"])
def test_each_phase_moves_its_own_numbers_alone(phase):
    net = supernet()
    X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    batches = Batches(X, X.argmax(1), batch_size=16)
    steps = tuple(4 * (phase == name) for name in ("dense", "scores", "weights"))
    before = copy.deepcopy(net.state_dict())
    SparseSearch(net, losses.classification, steps=steps).run(batches, Batches(X, X.argmax(1), batch_size=16, seed=1))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    logits, scores = {"1.logits"}, {name for name in before if name.endswith("scores")}
    weights = set(before) - logits - scores
    assert moved == {"dense": weights, "scores": scores | logits, "weights": weights | logits}[phase]


def test_the_search_prefers_the_operation_that_can_be_right():
    stream = torch.Generator().manual_seed(0)
    X = torch.randn(400, 8, generator=stream)
    y = X.abs()[:, :4].argmax(1)  # no linear map tells it
    ops = {"linear": nn.Identity(), "absolute": Absolute(), "nothing": Nothing()}
    net = nn.Sequential(MixedOp(ops), masked(linear(2), 0.5))
    search = SparseSearch(net, losses.classification, steps=(20, 20, 60), logit_lr=0.1)
    found = search.run(Batches(X[:300], y[:300], batch_size=64), Batches(X[300:], y[300:], batch_size=64))
    assert found.choice == {"0": "absolute"}
    assert sum(found.weights["0"].values()) == pytest.approx(1)
    assert int(masks_in(net)["1.weight"][0].mask().sum()) == 32


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


class Nothing(nn.Module):
    def forward(self, x):
        return 0 * x


def test_runs_repeat():
    found = []
    for _ in range(2):
        net = supernet()
        X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        search = SparseSearch(net, losses.classification, steps=(3, 3, 3))
        search.run(Batches(X, X.argmax(1), batch_size=16), Batches(X, X.argmax(1), batch_size=16, seed=1))
        found.append(net.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=0)


def test_bad_input_is_named():
    for call, name in (
        (lambda: masked(linear(), 0.0), "density"), (lambda: masked(masked(linear(), 0.5), 0.5), "module"),
        (lambda: MixedOp({"a": nn.Identity()}), "ops"), (lambda: set_phase(linear(), "all"), "phase"),
        (lambda: SparseSearch(linear(), losses.classification), "model"),
        (lambda: SparseSearch(supernet(), losses.classification, steps=(1, 2)), "steps"),
        (lambda: SparseSearch(supernet(), losses.classification, steps=(1, 2, -1)), "steps"),
        (lambda: SparseSearch(supernet(), losses.classification, lr=0), "lr"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}"):
            call()
