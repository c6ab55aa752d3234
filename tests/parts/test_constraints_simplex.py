"""Sparsemax and entmax: optimality, exact against bisection, partial against full sort, Jacobians."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from ellzero.errors import InputError
from ellzero.parts.constraints import Entmax, Simplex

MAPS = [Simplex(), Simplex(total=2.5), Entmax(1.5), Entmax(1.25), Entmax(2.0), Entmax(3.0), Entmax(1.0)]
rows = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-4, 4))


@pytest.mark.parametrize("total", [1.0, 2.5])
@given(x=hnp.arrays(np.float64, 5, elements=st.floats(-3, 3)))
def test_sparsemax_satisfies_the_conditions_of_the_projection(total, x):
    p = Simplex(total).project(x)
    assert p.min() >= 0
    assert p.sum() == pytest.approx(total, abs=1e-12)
    # x - p is constant where p > 0 and at most that constant elsewhere
    tau = (x - p)[p > 0]
    assert np.ptp(tau) < 1e-12
    assert (x[p == 0] <= tau.max() + 1e-12).all()


@pytest.mark.covers("Entmax")
@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 4.0])
def test_entmax_maximises_its_objective(alpha):
    x = np.random.default_rng(int(10 * alpha)).standard_normal(5)

    def objective(p):
        if alpha == 1:
            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum()
        else:
            entropy = (p - p**alpha).sum() / (alpha * (alpha - 1))
        return -(p @ x + entropy)

    best = minimize(
        objective, np.full(5, 0.2), bounds=[(0, 1)] * 5, method="SLSQP",
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    p = Entmax(alpha).project(x)
    assert p.sum() == pytest.approx(1)
    assert objective(p) <= objective(best.x) + 1e-9
    np.testing.assert_allclose(p, best.x, atol=1e-4)


@settings(max_examples=40)
@given(x=rows, axis=st.integers(-1, 0))
def test_exact_and_bisection_agree(x, axis):
    for alpha in (1.5, 2.0):
        exact, bisected = Entmax(alpha, axis), Entmax(alpha, axis, exact=False)
        np.testing.assert_allclose(exact.project(x), bisected.project(x), atol=1e-9)
    np.testing.assert_allclose(Simplex(axis=axis).project(x), Entmax(2.0, axis).project(x), atol=1e-12)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("make", [Simplex, Entmax])
def test_partial_sort_equals_full_sort(make, scale):
    x = scale * np.random.default_rng(0).standard_normal((40, 300)).astype(np.float32)
    for partial in (1, 7, 64, 1000):
        part = make(partial=partial)
        np.testing.assert_array_equal(part.project(x), make().project(x))
        np.testing.assert_array_equal(part.project(torch.from_numpy(x)).numpy(), make().project(x))


@pytest.mark.parametrize("map_", MAPS, ids=repr)
@settings(max_examples=30)
@given(x=rows, data=st.data())
def test_numpy_torch_and_supports_agree_along_every_axis(map_, x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    map_ = type(map_)(**{**map_.__dict__, "axis": axis})
    for dtype in (np.float64, np.float32):
        own = map_.project(x.astype(dtype))
        assert own.dtype == dtype
        other = map_.project(torch.from_numpy(x.astype(dtype))).numpy()
        np.testing.assert_allclose(own, other, atol=1e-7 if dtype == np.float32 else 1e-12)
        np.testing.assert_array_equal(map_.support(x.astype(dtype)), own > 0)
        np.testing.assert_allclose(own.sum(axis), getattr(map_, "total", 1.0), rtol=1e-5)


@pytest.mark.covers("Simplex")
@pytest.mark.parametrize("map_", MAPS, ids=repr)
@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_the_jacobian_is_the_derivative(map_, axis):
    map_ = type(map_)(**{**map_.__dict__, "axis": axis})
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 2))).requires_grad_()
    assert torch.autograd.gradcheck(map_.project, x)
    assert torch.autograd.gradgradcheck(map_.project, x)


@pytest.mark.parametrize("map_", MAPS, ids=repr)
def test_jacobian_vector_in_numpy_is_a_finite_difference(map_):
    rng = np.random.default_rng(2)
    x, v, step = rng.standard_normal((4, 6)), rng.standard_normal((4, 6)), 1e-6
    p = map_.project(x)
    slope = (map_.project(x + step * v) - map_.project(x - step * v)) / (2 * step)
    np.testing.assert_allclose(map_.jacobian_vector(p, v), slope, atol=1e-5)
    with pytest.raises(InputError, match="v: got shape"):
        map_.jacobian_vector(p, v[:1])


@pytest.mark.parametrize("map_", MAPS, ids=repr)
def test_minus_infinity_gets_zero_and_finite_gradients(map_):
    x = np.array([[0.3, -np.inf, 0.1], [-np.inf] * 3, [-np.inf, 7.0, -np.inf]])
    p = map_.project(x)
    total = getattr(map_, "total", 1.0)
    assert (p[np.isinf(x)] == 0).all()
    np.testing.assert_allclose(p.sum(1), [total, 0, total])
    np.testing.assert_allclose(p[0, [0, 2]], map_.project(x[0, [0, 2]]), atol=1e-12)
    tensor = torch.from_numpy(x).requires_grad_()
    (map_.project(tensor) ** 2).sum().backward()
    assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("map_", MAPS, ids=repr)
def test_empty_one_and_bad_input(map_):
    for shape in ((0,), (0, 3), (3, 0)):
        assert map_.project(np.zeros(shape)).shape == shape
        assert tuple(map_.project(torch.zeros(shape)).shape) == shape
    assert map_.project(np.array([-8.0])) == pytest.approx(getattr(map_, "total", 1.0))
    for wrong, said in (
        ([np.nan, 1.0], "NaN"), ([np.inf, 1.0], "infinity"), (1.0, "scalar"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            map_.project(np.array(wrong))
        with pytest.raises(InputError, match=said):
            map_.support(torch.tensor(wrong))
    with pytest.raises(InputError, match="axis"):
        type(map_)(axis=3).project(np.zeros(2))


def test_bad_settings_are_refused():
    for make in (
        lambda: Entmax(0.5), lambda: Entmax(float("inf")), lambda: Simplex(total=0), lambda: Simplex(partial=0),
        lambda: Simplex(axis=1.5), lambda: Entmax(float("nan")),
    ):  # fmt: skip
        with pytest.raises(InputError):
            make()


def test_wide_values_keep_their_differences():
    x = np.array([1e6, 1e6 - 0.5, -1e6])
    np.testing.assert_allclose(Simplex().project(x), [0.75, 0.25, 0.0], atol=1e-9)
    assert Entmax(3.0).project(np.array([1e30, 0.0])).tolist() == [1.0, 0.0]
