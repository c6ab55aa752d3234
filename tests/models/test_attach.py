"""What is attached does what it says, and once removed has never been there."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.models.attach import attach, matching, swap
from ellzero.models.mlp import MLPConfig
from ellzero.models.transformer import TransformerConfig

CONFIG = TransformerConfig(vocabulary=30, width=16, depth=3, heads=2, key_heads=1, hidden=24, context=16)
X = torch.from_numpy(np.random.default_rng(0).integers(30, size=(2, 7)))


def model():
    return CONFIG.build(0).eval()


def test_removing_leaves_no_trace():
    net = model()
    before = net(X)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    handle = attach(net, {"layers.*.feed_forward": lambda x: x * 0, "layers.1": torch.relu})
    assert not torch.equal(net(X), before)
    handle.remove()
    handle.remove()
    assert torch.equal(net(X), before)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())


def test_the_context_removes_also_after_an_error():
    net = model()
    before = net(X)

    def run():
        with attach(net, {"layers.1": torch.relu}):
            assert not torch.equal(net(X), before)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        run()
    assert torch.equal(net(X), before)


def test_outputs_are_replaced_in_full():
    """Zeroing every attention and feed-forward leaves the embedding alone: a forward pass written by hand."""
    net = model()
    with attach(net, {"*.attention": torch.zeros_like, "*.feed_forward": torch.zeros_like}) as handle:
        out = net(X)
    assert handle.names == tuple(f"layers.{i}.attention" for i in range(3)) + tuple(
        f"layers.{i}.feed_forward" for i in range(3)
    )
    torch.testing.assert_close(out, net.norm(net.embedding(X)) @ net.embedding.weight.T)


def test_inputs_are_replaced():
    net = MLPConfig(6, 2, (4,)).build()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with attach(net, {"layers.1": lambda h: h * 2}, where="input"):
        doubled = net(x)
    bias = net.layers[1].bias
    torch.testing.assert_close(doubled - bias, 2 * (net(x) - bias))


def test_keyword_inputs_are_replaced():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(input=x)

    with attach(Outer(), {"inner": lambda x: x + 1}, where="input") as handle:
        pass
    net = Outer()
    with attach(net, {"inner": lambda x: x + 1}, where="input") as handle:
        assert torch.equal(net(torch.zeros(2)), torch.ones(2))
    assert handle.report()[0].calls == 1


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, "kept"),
        lambda x: [x, "kept"],
        lambda x: Pair(x, "kept"),
        lambda x: OrderedDict(first=x, second="kept"),
        lambda x: {"first": x, "second": "kept"},
        lambda x: ("kept", x)[::-1],
    ],
)
def test_containers_keep_their_type_and_the_rest(make):
    class Wrap(nn.Module):
        def forward(self, x):
            return make(x)

    net = nn.Sequential(Wrap())
    plain = net(torch.ones(2))
    with attach(net, {"0": lambda x: x * 3}):
        out = net(torch.ones(2))
    assert type(out) is type(plain)
    values = list(out.values()) if isinstance(out, dict) else list(out)
    assert torch.equal(values[0], torch.full((2,), 3.0))
    assert values[1] == "kept"


def test_the_error_term_keeps_values_and_lets_the_gradient_through():
    net = MLPConfig(5, 1, (4,)).build()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    want = net(x)
    scale = torch.tensor(0.25, requires_grad=True)
    with attach(net, {"layers.0": lambda h: h * scale}, error_term=True):
        out = net(x)
        torch.testing.assert_close(out, want)
        out.sum().backward()
    hidden = net.layers[0](x)
    expected = ((hidden > 0) * hidden * net.layers[1].weight).sum()  # d out / d scale by hand
    torch.testing.assert_close(scale.grad, expected.detach())


def test_none_only_looks():
    net, seen = model(), []
    before = net(X)
    with attach(net, {"layers.2": lambda x: seen.append(x.clone())}):
        assert torch.equal(net(X), before)
    assert torch.equal(net.norm(seen[0]) @ net.embedding.weight.T, before)


def test_patterns_run_in_the_order_given():
    net = nn.Sequential(nn.Identity())
    x = torch.tensor([1.0, -2.0])
    with attach(net, {"0": lambda x: x + 1, "*": lambda x: x * 10}):
        assert torch.equal(net(x), (x + 1) * 10)
    with attach(net, {"*": lambda x: x * 10, "0": lambda x: x + 1}):
        assert torch.equal(net(x), x * 10 + 1)


def test_bind_gives_each_module_its_own_function():
    net = model()
    sizes = {}

    def make(name, module):
        assert net.get_submodule(name) is module
        return lambda x: sizes.__setitem__(name, tuple(x.shape))

    with attach(net, {"layers.*.feed_forward.up": make}, bind=True):
        net(X)
    assert sizes == {f"layers.{i}.feed_forward.up": (2, 7, 24) for i in range(3)}


def test_the_report_counts():
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.tensor([[3.0, 4.0, 0.0, 1.0], [0.0, 2.0, 1.0, 5.0]])

    def largest(x):
        return torch.where(x >= 3, x, 0.0)

    with attach(net, {"0": largest}, measure=True) as handle:
        net(x)
        net(x[:1])
    (row,) = handle.report()
    assert (row.name, row.pattern, row.module, row.calls, row.shape) == ("0", "0", "Identity", 2, (1, 4))
    assert row.density == 5 / 12
    assert row.change == pytest.approx((1 + 4 + 1 + 1) / (26 + 30 + 26))
    with attach(net, {"1": largest}) as handle:
        assert handle.report()[0].calls == 0
        net(x)
    assert handle.report()[0].density is None


def test_a_shared_module_is_chosen_once():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    with attach(net, {"*": lambda x: None}) as handle:
        net(torch.ones(1, 3))
    assert handle.names == ("0", "1")
    assert handle.report()[0].calls == 2
    assert list(matching(net, "2")) == ["2"]


def test_nothing_fits_and_it_says_what_would():
    with pytest.raises(InputError, match=r"did you mean .*'layers.1.attention'.*its modules: embedding"):
        attach(model(), {"layers.1.attentoin": torch.relu})
    net = model()
    with pytest.raises(InputError):
        attach(net, {"layers.0": torch.relu, "nothing": torch.relu})
    assert not net.layers[0]._forward_hooks  # nothing is attached when one pattern fails


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda net: attach(net, {}), "places"),
        (lambda net: attach(net, [("layers.0", torch.relu)]), "places"),
        (lambda net: attach("model", {"a": torch.relu}), "model"),
        (lambda net: attach(net, {"layers.0": 3}), "places"),
        (lambda net: attach(net, {3: torch.relu}), "places"),
        (lambda net: attach(net, {"layers.0": torch.relu}, where="outputs"), "did you mean 'output'"),
        (lambda net: attach(net, {"layers.0": lambda name, module: 3}, bind=True), "places"),
        (lambda net: swap(net, {"": lambda name, module: nn.Identity()}), "itself"),
        (lambda net: swap(net, {"norm": lambda name, module: 3}), "places"),
        (lambda net: swap(net, {"norm": 3}), "places"),
    ],
)
def test_bad_input(call, name):
    with pytest.raises(InputError, match=name):
        call(model())


@pytest.mark.parametrize("wrong", [lambda x: x[:, :3], lambda x: 3])
def test_a_result_of_another_shape_is_refused(wrong):
    net = model()
    with attach(net, {"layers.1": wrong}), pytest.raises(InputError, match=r"layers\.1: the attached function gave"):
        net(X)


@pytest.mark.parametrize("output", [3, None, (), ("a", 1), {"a": 1}])
def test_modules_without_a_tensor_are_refused(output):
    class Silent(nn.Module):
        def forward(self, x):
            return output

    net = nn.Sequential(Silent())
    with attach(net, {"0": torch.relu}), pytest.raises(InputError, match="0: returns"):
        net(torch.ones(1))
    with attach(net, {"0": torch.relu}, where="input"), pytest.raises(InputError, match="0: is called without"):
        net("no tensor")


def test_swapped_modules_come_back():
    net = model()
    before, old = net(X), net.layers[1].feed_forward

    class Nothing(nn.Module):
        def forward(self, x):
            return x * 0

    with swap(net, {"layers.1.*forward": lambda name, module: Nothing(), "layers.1.feed_forward.up": fail}) as handle:
        assert handle.names == ("layers.1.feed_forward",)
        assert isinstance(net.layers[1].feed_forward, Nothing)
        assert not net.layers[1].feed_forward.training
        changed = net(X)
    assert not torch.equal(changed, before)
    assert net.layers[1].feed_forward is old
    assert torch.equal(net(X), before)


def fail(name, module):
    raise AssertionError(f"{name} lies inside a module that is replaced")


def test_swap_reaches_every_name_of_a_shared_module_and_may_pass():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, shared, nn.ReLU())
    with swap(net, {"*": lambda name, module: nn.Identity() if isinstance(module, nn.Linear) else None}):
        assert isinstance(net[0], nn.Identity)
        assert net[1] is net[0]
        assert isinstance(net[2], nn.ReLU)
    assert net[0] is shared
    assert net[1] is shared
