"""The torch op: the reference's answer on every dtype and layout, its derivative, its fake kernel, and compilation."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.kernels import reference
from ellzero.rng import rng

torch = pytest.importorskip("torch")

from ellzero.kernels import torch_ops  # noqa: E402
from ellzero.kernels.torch_ops import top_k  # noqa: E402


def draw(*shape, levels=None):
    x = rng(0, "torch top_k").standard_normal(shape)
    return torch.from_numpy(x if levels is None else np.round(x * levels) / levels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("native", [True, False])
def test_equals_the_reference(dtype, native, monkeypatch):
    if not native:  # the path of other devices, and of a build without compiled kernels
        monkeypatch.setattr(torch_ops.kernels, "live", False)
    x = draw(3, 5, 700, levels=4).to(dtype)
    x[0, 0, ::3], x[1, 1, 5:400], x[2, 2] = -torch.inf, torch.nan, torch.nan
    x[0, 1, 2], x[0, 2] = torch.inf, -torch.inf
    for k in (0, 1, 20, 600, 700):
        found = top_k(x, k)
        values, indices = reference.top_k(x.double().numpy(), k)
        assert found.values.dtype == dtype
        assert found.indices.dtype == torch.int64
        np.testing.assert_array_equal(found.indices.numpy(), indices)
        np.testing.assert_array_equal(found.values.double().numpy(), values)


def test_strided_expanded_and_empty():
    x = draw(6, 40)
    for view in (x.T, x[:, ::2], x[0].expand(3, 40), x[:0], x[:, :0]):
        k = min(3, view.shape[-1])
        values, indices = reference.top_k(view.numpy(), k)
        found = top_k(view, k)
        np.testing.assert_array_equal(found.values.numpy(), values)
        np.testing.assert_array_equal(found.indices.numpy(), indices)


def test_gradcheck():
    x = draw(3, 50).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: top_k(x, 7).values, x)


def test_gradient_goes_to_the_kept_entries_only():
    x = draw(4, 300).requires_grad_()
    found = top_k(x, 9)
    assert not found.indices.requires_grad
    weights = draw(4, 9)
    (found.values * weights).sum().backward()
    wanted = torch.zeros(4, 300, dtype=torch.float64)
    for row in range(4):
        for j in range(9):
            wanted[row, found.indices[row, j]] = weights[row, j]
    assert torch.equal(x.grad, wanted)


@pytest.mark.parametrize(("shape", "k"), [((4, 30), 5), ((30,), 0), ((2, 3, 8), 8), ((0, 8), 2)])
def test_opcheck(shape, k):
    x = draw(*shape).requires_grad_()
    torch.library.opcheck(torch.ops.ellzero.top_k.default, (x, k))


def test_fake_kernel_has_the_shapes():
    with torch._subclasses.FakeTensorMode():
        found = top_k(torch.empty(2, 3, 50, dtype=torch.float16), 4)
    assert found.values.shape == found.indices.shape == (2, 3, 4)
    assert found.values.dtype == torch.float16
    assert found.indices.dtype == torch.int64


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic):
    def code(x):
        values, indices = top_k(torch.relu(x) * 2, 5)
        return torch.zeros_like(x).scatter(-1, indices, values)

    compiled = torch.compile(code, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 6):
        x, y = (draw(rows, 64).requires_grad_() for _ in range(2))
        assert torch.equal(compiled(x), code(y))
        compiled(x).square().sum().backward()
        code(y).square().sum().backward()
        assert torch.equal(x.grad, y.grad)


@pytest.mark.slow
def test_compiles_with_inductor():
    x = draw(8, 256).float()
    compiled = torch.compile(lambda x: top_k(torch.relu(x), 4).values.sum(-1), fullgraph=True)
    torch.testing.assert_close(compiled(x), top_k(torch.relu(x), 4).values.sum(-1))


def test_interleaved_with_matmuls():
    a, b = draw(300, 400).float(), draw(400, 3000).float()
    once, values = a @ b, reference.top_k((a @ b).numpy(), 16)
    for _ in range(20):
        product = a @ b
        found = top_k(product, 16)
        torch.testing.assert_close(product, once)
        np.testing.assert_array_equal(found.values.numpy(), reference.top_k(product.numpy(), 16)[0])
    np.testing.assert_allclose(found.values.numpy(), values[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (torch.tensor(1.0), 1, "x: got a scalar"),
        (torch.zeros(3, dtype=torch.int64), 1, "x: got dtype torch.int64"),
        (torch.zeros(3), 4, "k: got 4, want a number at most 3"),
        (torch.zeros(3), -1, "k: got -1"),
    ],
)
def test_bad_input_is_refused_by_name(x, k, message):
    with pytest.raises(InputError) as caught:
        top_k(x, k)
    assert message in str(caught.value)
