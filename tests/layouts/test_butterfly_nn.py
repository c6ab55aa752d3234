"""The layer that trains on a butterfly: the function of its layout, exact gradients, the budget."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ellzero.errors import InputError  # noqa: E402
from ellzero.layouts.butterfly_nn import ButterflyLinear  # noqa: E402


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (32, 16), (16, 48)])
def test_it_is_the_product_with_its_layout(inputs, outputs):
    layer = ButterflyLinear(inputs, outputs, block=4, max_stride=4, rank=3)
    with torch.no_grad():
        layer.left.normal_(generator=torch.Generator().manual_seed(0))
        layer.bias.normal_(generator=torch.Generator().manual_seed(1))
        layer.logit.fill_(0.7)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, inputs)).astype(np.float32))
    stored = layer.to_layout()
    assert stored.nnz == layer.weights
    want = stored.matmul(x.reshape(-1, inputs).numpy().T).T + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().reshape(-1, outputs), want, rtol=1e-4, atol=1e-5)
    assert "weights=" in repr(layer)


def test_gradcheck():
    layer = ButterflyLinear(8, 8, block=2, max_stride=2, rank=2).double()
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), x), inputs
    )


def test_the_budget_is_kept_and_seeds_repeat():
    layer = ButterflyLinear.of_density(256, 512, 0.3, block=32, seed=3)
    assert 0.29 < layer.weights / (256 * 512) <= 0.3
    again = ButterflyLinear.of_density(256, 512, 0.3, block=32, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters()))


def test_bad_input():
    with pytest.raises(InputError, match="want multiples of 32"):
        ButterflyLinear(40, 64)
    with pytest.raises(InputError, match="max_stride: got 3"):
        ButterflyLinear(128, 128, max_stride=3)
    with pytest.raises(InputError, match="x: got shape"):
        ButterflyLinear(64, 64, max_stride=2)(torch.ones(2, 63))
