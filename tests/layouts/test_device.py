"""Sparse products of a GPU: Triton's kernels against dense ones (on the CPU under its interpreter), and the choices.

With ``TRITON_INTERPRET=1`` and Triton installed the kernels run without a GPU.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from ellzero.errors import InputError  # noqa: E402
from ellzero.kernels import triton_sparse  # noqa: E402
from ellzero.layouts import device  # noqa: E402
from ellzero.layouts.base import DenseFallbackWarning  # noqa: E402
from ellzero.layouts.nn import SparseLinear, as_layout  # noqa: E402

WHERE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(bool(triton_sparse.missing()), reason=f"Triton: {triton_sparse.missing()}")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is present")

LAYOUTS = [
    ("csr", {}), ("row-group", {"group": 4}), ("condensed", {}), ("block", {"height": 16, "width": 16}),
    ("nm", {"n": 2, "m": 4}), ("bitmask", {}),
]  # fmt: skip


def weight(rows=64, columns=96, density=0.2, kind="csr"):
    g = np.random.default_rng(0)
    if kind == "block":
        keep = np.kron(g.random((rows // 16, columns // 16)) < 0.5, np.ones((16, 16)))
        keep[:16] = 0
    elif kind == "nm":
        keep = np.tile([True, False, False, True], (rows, columns // 4))
    else:
        keep = g.random((rows, columns)) < density
        keep[3] = 0
    return np.where(keep, g.standard_normal((rows, columns)), 0).astype(np.float32)


def parts(name, options):
    layout = as_layout(weight(kind=name), name, **options)
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in layout.tensors().items()}
    return layout, {"layout": name, **layout.facts()}, tensors


@pytest.mark.parametrize(("name", "options"), LAYOUTS, ids=[name for name, _ in LAYOUTS])
def test_the_dense_weight_on_a_device(name, options):
    layout, facts, tensors = parts(name, options)
    np.testing.assert_array_equal(device.dense_weight(facts, tensors).numpy(), layout.to_dense())


def test_the_dense_fallback_says_so_once_and_has_gradients():
    layout, facts, tensors = parts("csr", {})
    device._NOTED.clear()
    value = tensors["value"].double().requires_grad_()
    x = torch.randn(96, 5, dtype=torch.float64, requires_grad=True)
    with pytest.warns(DenseFallbackWarning, match="gradients on a GPU are those of the dense matrix"):
        out = device.product_on_device(facts, {**tensors, "value": value}, x, torch.ones(64).double())
    torch.testing.assert_close(out.detach(), torch.from_numpy(layout.to_dense()).double() @ x.detach() + 1)
    out.sum().backward()
    assert value.grad.shape == value.shape
    assert x.grad.shape == x.shape


def test_which_way_each_layout_goes(monkeypatch):
    monkeypatch.setattr(triton_sparse, "missing", lambda: "")
    few, many = torch.ones(96, 4), torch.ones(96, 64)
    seen = {}
    for name, options in LAYOUTS:
        _, facts, tensors = parts(name, options)
        seen[name] = [device.way(facts, tensors, x, False)[0] for x in (few, many)]
        assert device.way(facts, tensors, few, True)[0] == "dense"
    assert seen == {
        "csr": ["dense"] * 2, "row-group": ["dense"] * 2, "condensed": ["condensed", "dense"], "block": ["block"] * 2,
        "nm": ["dense"] * 2, "bitmask": ["dense"] * 2,
    }  # fmt: skip
    monkeypatch.setattr(triton_sparse, "missing", lambda: "none here")
    _, facts, tensors = parts("condensed", {})
    assert device.way(facts, tensors, few, False) == ("dense", "none here")


@needs_triton
@pytest.mark.parametrize(("rows", "fan_in", "columns"), [(1, 1, 1), (17, 5, 23), (48, 70, 300), (5, 0, 7)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_condensed(rows, fan_in, columns, batch):
    g = np.random.default_rng(rows)
    index = torch.from_numpy(np.argsort(g.random((rows, columns)), axis=1)[:, :fan_in].copy()).to(WHERE)
    value = torch.from_numpy(g.standard_normal((rows, fan_in)).astype(np.float32)).to(WHERE)
    x = torch.from_numpy(g.standard_normal((batch, columns)).astype(np.float32)).to(WHERE)
    want = (value[None] * x[:, index]).sum(-1)
    torch.testing.assert_close(triton_sparse.condensed_product(value, index, x), want, rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("batch", [0, 1, 16, 70])
@pytest.mark.parametrize("side", [(16, 16), (16, 32)])
def test_blocks(batch, side):
    W = weight(kind="block")
    layout = as_layout(W, "block", height=side[0], width=side[1])
    tensors = {key: torch.from_numpy(np.array(array)).to(WHERE) for key, array in layout.tensors().items()}
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((96, batch)).astype(np.float32)).to(WHERE)
    out = triton_sparse.block_product(tensors["value"], tensors["ptr"], tensors["index"], x)
    torch.testing.assert_close(out.cpu(), torch.from_numpy(W) @ x.cpu(), rtol=1e-4, atol=1e-4)
    if batch:
        assert (out[:16] == 0).all()


@needs_triton
@pytest.mark.parametrize(("name", "options"), LAYOUTS[2:4], ids=["condensed", "block"])
def test_products_by_the_layouts_names(name, options):
    layout, facts, tensors = parts(name, options)
    x, bias = torch.randn(96, 4), torch.randn(64)
    tensors = {key: tensor.to(WHERE) for key, tensor in tensors.items()}
    assert device.way(facts, tensors, x, False) == (name, "")
    out = device.product_on_device(facts, tensors, x.to(WHERE), bias.to(WHERE))
    want = torch.from_numpy(layout.to_dense()) @ x + bias[:, None]
    torch.testing.assert_close(out.cpu(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("name", "options"), LAYOUTS, ids=[name for name, _ in LAYOUTS])
def test_a_module_on_a_gpu(name, options):
    dense = nn.Linear(96, 64)
    dense.weight.data = torch.from_numpy(weight(kind=name))
    sparse = SparseLinear.from_linear(dense, name, **options)
    x = torch.randn(3, 96)
    with torch.no_grad():
        want = sparse(x)
        torch.testing.assert_close(sparse.cuda()(x.cuda()).cpu(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_two_of_four_by_semi_structured_tensors():
    layout, facts, tensors = parts("nm", {"n": 2, "m": 4})
    tensors = {key: (t.half() if key == "value" else t).cuda() for key, t in tensors.items()}
    x = torch.randn(96, 64, device="cuda").half()
    assert device.way(facts, tensors, x, False) == ("2:4", "")
    out = device.product_on_device(facts, tensors, x, None)
    want = torch.from_numpy(layout.to_dense()).cuda().half() @ x
    torch.testing.assert_close(out, want, rtol=1e-2, atol=1e-2)


def test_refusals():
    if triton_sparse.missing():
        with pytest.raises(InputError, match="condensed_product: "):
            triton_sparse.condensed_product(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    else:
        with pytest.raises(InputError, match="want powers of two from 16 on"):
            triton_sparse.block_product(torch.ones(1, 4, 4), torch.tensor([0, 1]), torch.tensor([0]), torch.ones(4, 2))
