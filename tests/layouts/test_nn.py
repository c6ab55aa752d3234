"""Sparse modules: the dense module's outputs and gradients, in training, under compilation, copied and loaded."""

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from ellzero.errors import InputError  # noqa: E402
from ellzero.layouts.nn import SparseConv2d, SparseLinear, as_layout  # noqa: E402

LAYOUTS = [
    ("csr", {}), ("row-group", {"group": 4}), ("row-group", {"group": 8}), ("condensed", {}), ("bitmask", {}),
    ("block", {"height": 4, "width": 4}), ("nm", {"n": 4, "m": 4}),
]  # fmt: skip
ids = [f"{name}{list(options.values()) or ''}" for name, options in LAYOUTS]


def pruned(module, density=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module.weight.mul_(torch.rand(module.weight.shape, generator=g) < density)
        module.weight[1] = 0
    return module


@pytest.mark.parametrize(("layout", "options"), LAYOUTS, ids=ids)
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24)])
def test_a_linear_layer_and_its_gradients(layout, options, shape):
    torch.manual_seed(0)
    dense = pruned(nn.Linear(24, 16)).double()
    sparse = SparseLinear.from_linear(dense, layout, **options)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    want, got = dense(x), sparse(twin)
    torch.testing.assert_close(got, want)
    want.sin().sum().backward()
    got.sin().sum().backward()
    torch.testing.assert_close(twin.grad, x.grad)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)
    torch.testing.assert_close(sparse.to_dense(), dense.weight.detach())
    if hasattr(sparse, "value") and isinstance(sparse.value, nn.Parameter):
        assert sparse.value.grad.shape == sparse.value.shape
        stored = as_layout(dense.weight, layout, **options)
        kept = type(stored).from_parts({**stored.tensors(), "value": sparse.value.grad.numpy()}, stored.facts())
        mask = type(stored).from_parts({**stored.tensors(), "value": np.ones_like(stored.value)}, stored.facts())
        np.testing.assert_allclose(kept.to_dense(), dense.weight.grad.numpy() * mask.to_dense(), atol=1e-12)


@pytest.mark.parametrize("layout", ["csr", "row-group", "condensed"])
def test_gradcheck(layout):
    torch.manual_seed(0)
    sparse = SparseLinear.from_linear(pruned(nn.Linear(7, 8)).double(), layout)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def run(x, value, bias):
        return torch.func.functional_call(sparse, {"value": value, "bias": bias}, x)

    assert torch.autograd.gradcheck(run, (x, sparse.value, sparse.bias))


@pytest.mark.parametrize("layout", ["csr", "row-group", "condensed", "bitmask"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"kernel_size": 1},
     {"kernel_size": 1, "stride": 2}, {"kernel_size": (1, 3), "padding": (0, 1)}],
    ids=str,
)  # fmt: skip
def test_a_convolution_and_its_gradients(layout, settings):
    torch.manual_seed(0)
    dense = pruned(nn.Conv2d(5, 8, **{"kernel_size": 3, **settings})).double()
    sparse = SparseConv2d.from_conv(dense, layout)
    x = torch.randn(2, 5, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x))
        torch.testing.assert_close(sparse(x[:, :, :8]), dense(x[:, :, :8]))  # another size of image
        torch.testing.assert_close(sparse(x[0]), dense(x[0]))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    want, got = dense(a), sparse(b)
    torch.testing.assert_close(got, want)
    want.sin().sum().backward()
    got.sin().sum().backward()
    torch.testing.assert_close(b.grad, a.grad)


def test_training_moves_the_stored_values_as_the_dense_ones():
    torch.manual_seed(0)
    dense = pruned(nn.Linear(12, 8))
    mask = dense.weight.detach() != 0
    sparse = SparseLinear.from_linear(dense, "csr")
    x, y = torch.randn(64, 12), torch.randn(64, 8)
    for model in (dense, sparse):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            if model is dense:
                model.weight.grad.mul_(mask)
            optimizer.step()
    torch.testing.assert_close(sparse.to_dense(), dense.weight.detach() * mask, rtol=1e-4, atol=1e-5)


def test_no_dense_intermediate_of_the_weights_size():
    """One step at 1 % of 4 million weights allocates far less than the 16 MB that the dense gradient would take."""
    torch.manual_seed(0)
    sparse = SparseLinear.from_linear(pruned(nn.Linear(2048, 2048), density=0.01))
    x = torch.randn(4, 2048, requires_grad=True)
    sparse(x).sum().backward()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        sparse(x).sum().backward()
    assert max(event.cpu_memory_usage for event in seen.events()) < 2_000_000
    import tracemalloc

    tracemalloc.start()
    sparse(x).sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_under_torch_compile():
    torch.manual_seed(0)
    sparse = SparseLinear.from_linear(pruned(nn.Linear(24, 16)))
    compiled = torch.compile(nn.Sequential(sparse, nn.ReLU()), backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 24, requires_grad=True)
    out = compiled(x)
    torch.testing.assert_close(out, sparse(x).relu())
    out.sum().backward()
    assert x.grad is not None
    assert sparse.value.grad is not None


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", ["csr", "row-group", "condensed"])
def test_convolutions_under_torch_compile(kernel, layout):
    torch._dynamo.reset()  # the modules of other tests count towards its limit of recompilations
    torch.manual_seed(0)
    dense = pruned(nn.Conv2d(4, 8, kernel, padding=kernel // 2))
    compiled = torch.compile(SparseConv2d.from_conv(dense, layout), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for images in (1, 3):
            x = torch.randn(images, 4, 6, 5)
            torch.testing.assert_close(compiled(x), dense(x))


def test_the_operators_hold_to_their_fakes():
    from ellzero.layouts.torch_ops import Stored

    pattern = as_layout(pruned(nn.Linear(8, 8)).weight, "row-group").pattern
    stored = Stored(pattern)
    value = torch.randn(len(pattern.index), 4, requires_grad=True)
    x, bias = torch.randn(8, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    torch.library.opcheck(torch.ops.ellzero.stored_product.default, (stored.handle, value, x, bias, 8, False))
    rows = torch.randn(3, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.ellzero.stored_product.default, (stored.handle, value, rows, bias, 8, True))
    image, sizes = torch.randn(2, 2, 5, 4), ([2, 2], [1, 1], [1, 0])
    torch.library.opcheck(
        torch.ops.ellzero.stored_slide.default, (stored.handle, value.detach(), image, None, 8, *sizes)
    )


@pytest.mark.parametrize(("layout", "options"), LAYOUTS, ids=ids)
@pytest.mark.parametrize("batch", [0, 1, 3, 17, 200])
def test_inference_gives_what_training_gives_in_c_order(layout, options, batch):
    torch.manual_seed(batch)
    dense = pruned(nn.Linear(24, 16)).double()
    sparse = SparseLinear.from_linear(dense, layout, **options)
    x = torch.randn(batch, 24, dtype=torch.float64)
    with torch.inference_mode():
        for given in (x, x[:, :, None].expand(-1, -1, 2)[:, :, 0], x.t().contiguous().t()):
            out = sparse(given)
            assert out.is_contiguous()
            torch.testing.assert_close(out, dense(given))
    torch.testing.assert_close(sparse(x), dense(x))


def test_inference_sees_values_that_were_changed_or_replaced():
    sparse = SparseLinear.from_linear(pruned(nn.Linear(24, 16)))
    x = torch.randn(3, 24)

    def check():
        with torch.no_grad():
            torch.testing.assert_close(sparse(x), x @ sparse.to_dense().T + sparse.bias)

    check()
    wide = torch.randn(16)
    for data in (wide, torch.randn(32)[:16], torch.stack([wide, -wide], 1)[:, 1]):
        sparse.bias.data = data
        check()
    with torch.no_grad():
        sparse.bias.data = wide.repeat(2)[:16]
        sparse(x)
        sparse.bias.data = sparse.bias.data.as_strided((16,), (2,))  # the same place and shape, other steps
        check()
        sparse.value.mul_(2)
        check()
        sparse.value.data = torch.randn_like(sparse.value)
        check()
        sparse.bias = nn.Parameter(torch.randn(16))
        check()
    sparse.load_state_dict(SparseLinear.from_linear(pruned(nn.Linear(24, 16), seed=3, density=0.6)).state_dict())
    check()


def test_transforms_and_traces_see_what_is_done():
    from torch.fx.experimental.proxy_tensor import make_fx

    dense = pruned(nn.Linear(24, 16))
    sparse = SparseLinear.from_linear(dense).requires_grad_(False)
    x = torch.randn(3, 2, 24)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no rule of its own for batches
        torch.testing.assert_close(torch.func.vmap(sparse)(x), dense(x))
        traced = make_fx(sparse)(x[0])
        torch.testing.assert_close(traced(x[1]), dense(x[1]))


@pytest.mark.parametrize(
    ("layout", "options"),
    [("csr", {"dtype": "bfloat16"}), ("row-group", {"dtype": "int8"}), ("bitmask", {}), ("block", LAYOUTS[5][1])],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_layouts_with_values_of_their_own_take_other_floats(layout, options, dtype, batch):
    sparse = SparseLinear.from_linear(pruned(nn.Linear(24, 16)), layout, **options)
    x = torch.randn(batch, 24).to(dtype)
    out = sparse(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x.float() @ sparse.to_dense().T + sparse.bias)


def test_what_is_moved_away_is_let_go():
    sparse = SparseLinear.from_linear(pruned(nn.Linear(24, 16)))
    with torch.no_grad():
        sparse(torch.randn(3, 24))
        assert sparse._stored._views
        sparse.to("meta")
    assert not sparse._stored._views


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"stride": 2, "padding": (0, 1)}, {"dilation": 2}], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", ["csr", "row-group", "condensed"])
def test_many_small_images_are_taken_together(layout, kernel, settings, monkeypatch):
    from ellzero.layouts import torch_ops

    dense = pruned(nn.Conv2d(5, 8, kernel, **settings)).double()
    sparse = SparseConv2d.from_conv(dense, layout)
    x = torch.randn(7, 5, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x))
        monkeypatch.setattr(torch_ops, "_TOGETHER", 1000)  # two images at a time, and one at the end
        torch.testing.assert_close(sparse(x), dense(x))
        assert sparse(x[:0]).shape == dense(x[:0]).shape


@pytest.mark.parametrize(("layout", "options"), LAYOUTS, ids=ids)
def test_state_dict_copies_and_other_patterns(layout, options):
    torch.manual_seed(0)
    first = SparseLinear.from_linear(pruned(nn.Linear(24, 16)), layout, **options)
    other = SparseLinear.from_linear(pruned(nn.Linear(24, 16), seed=1, density=0.6), "csr")
    other.load_state_dict(first.state_dict())
    x = torch.randn(3, 24)
    torch.testing.assert_close(other(x), first(x))
    twin = copy.deepcopy(first)
    with torch.no_grad():
        twin.bias.add_(1)
    torch.testing.assert_close(twin(x), first(x) + 1)
    small = SparseLinear.from_linear(pruned(nn.Linear(12, 16)))
    with pytest.raises(InputError, match=r"has shape \[16, 24\], want \[16, 12\]"):
        small.load_state_dict(first.state_dict())


def test_bad_input():
    sparse = SparseLinear.from_linear(pruned(nn.Linear(24, 16)))
    with pytest.raises(InputError, match="x: got shape"):
        sparse(torch.ones(3, 23))
    with pytest.raises(InputError, match=r"layout: got 'crs'.*did you mean 'csr'"):
        SparseLinear.from_linear(nn.Linear(4, 4), "crs")
    with pytest.raises(InputError, match="bias: got shape"):
        SparseLinear(sparse.layout, torch.zeros(3))
    with pytest.raises(InputError, match="conv: got groups"):
        SparseConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))
    conv = SparseConv2d.from_conv(nn.Conv2d(4, 4, 3))
    for x in (torch.ones(1, 3, 8, 8), torch.ones(4, 8)):
        with pytest.raises(InputError, match="x: got shape"):
            conv(x)
    with pytest.raises(InputError, match="smaller than the kernel"):
        conv(torch.ones(1, 4, 2, 8))


@pytest.mark.parametrize("layout", ["csr", "condensed"])
def test_an_optimiser_made_before_loading_trains_what_was_loaded(layout):
    weight = torch.zeros(6, 8)
    weight[:, :3] = 1.0
    other = torch.roll(2 * weight, 2, dims=1)  # as many values at other places
    linears = [nn.Linear(8, 6) for _ in range(2)]
    for linear, values in zip(linears, (weight, other)):
        linear.weight.data = values
    sparse, loaded = (SparseLinear.from_linear(linear, layout) for linear in linears)
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse.load_state_dict(loaded.state_dict())
    x = torch.ones(2, 8)
    assert torch.allclose(sparse(x), loaded(x))
    sparse(x).sum().backward()
    optimizer.step()
    assert torch.allclose(sparse(x), loaded(x) - 2 * 0.1 * 3 - 2 * 0.1)  # three inputs of one each, and the bias
