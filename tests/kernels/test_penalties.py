"""Every compiled penalty equals its plain form: prox, value and subdifferential distance, in both precisions."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero import kernels
from ellzero.errors import InputError
from ellzero.kernels.penalties import scalar
from ellzero.parts import penalties as P

pytestmark = pytest.mark.skipif(not kernels.live, reason="no compiled module is live")

alpha = st.floats(0.01, 3)
TWINS = {
    "L1": st.builds(P.L1, alpha),
    "L0": st.builds(P.L0, alpha),
    "ElasticNet": st.builds(P.ElasticNet, alpha, st.floats(0, 1)),
    "MCP": st.builds(P.MCP, alpha, st.floats(1.01, 6)),
    "SCAD": st.builds(P.SCAD, alpha, st.floats(2.01, 6)),
    "LogSum": st.builds(P.LogSum, alpha, st.floats(0.05, 4)),
    "Lq": st.builds(P.Lq, alpha, st.one_of(st.sampled_from([0.5, 2 / 3]), st.floats(0.05, 0.98))),
    "CEL0": st.builds(P.CEL0, alpha, st.floats(0.3, 2)),
    "Box": st.builds(lambda low, d: P.Box(low, low + d), st.floats(-3, 3), st.floats(0, 4)),
}
TOLERANCE = {np.float64: 1e-12, np.float32: 4e-6}


def sample(dtype):
    return np.concatenate([np.linspace(-9, 9, 401), [0.0, 1e-8, -1e-8, 400.0]]).astype(dtype)


def with_arguments(penalty, weights, positive):
    if isinstance(penalty, P.Box):
        return penalty
    return type(penalty)(*penalty.compiled[1], weights=weights, positive=positive)


def assert_same_minimum(ours, plain, penalty, x, step, tol):
    """Equal, but for draws within rounding, where the two may fall on either side: equal cost there."""
    apart = abs(ours - plain) > tol * (1 + abs(plain))

    def cost(w):
        return 0.5 * (w - x.astype(np.float64)) ** 2 + np.asarray(step, np.float64) * penalty.each(w)

    ours, plain = ours.astype(np.float64)[apart], plain.astype(np.float64)[apart]
    x, step = x[apart], np.broadcast_to(step, apart.shape)[apart]
    if apart.any():
        penalty = type(penalty)(*penalty.compiled[1])
        assert np.abs(cost(ours) - cost(plain)).max() <= 10 * tol * (1 + np.abs(x).max() ** 2)
        assert apart.mean() < 0.02


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=25)
@given(data=st.data(), step=st.one_of(st.floats(0.01, 9), st.sampled_from([1.0, 2.7, 3.0])), positive=st.booleans())
def test_the_twin_equals_the_plain_form(name, dtype, data, step, positive):
    penalty = with_arguments(data.draw(TWINS[name]), None, positive)
    twin, x, tol = scalar(penalty), sample(dtype), TOLERANCE[dtype]
    prox = twin.prox(x, step)
    assert prox.dtype == dtype
    assert_same_minimum(prox, penalty.prox(x, step), penalty, x, step, tol)
    np.testing.assert_allclose(twin.each(x), penalty.each(x), rtol=10 * tol, atol=tol)
    gradient = np.cos(x)
    distance = penalty.subdifferential_distance(x, gradient)
    np.testing.assert_allclose(twin.subdifferential_distance(x, gradient), distance, rtol=20 * tol, atol=tol)


@pytest.mark.parametrize("name", [name for name in TWINS if name != "Box"])
@settings(max_examples=15)
@given(data=st.data(), positive=st.booleans())
def test_weights_for_each_entry(name, data, positive):
    x = sample(np.float64)
    weights = np.resize([0.0, 0.3, 1.0, math.inf, 2.5], x.shape)
    steps = np.resize([0.2, 1.0, 7.0], x.shape)
    penalty = with_arguments(data.draw(TWINS[name]), weights, positive)
    twin = scalar(penalty)
    plain = penalty.prox(x, steps)
    same = abs(twin.prox(x, steps) - plain) <= 1e-12 * (1 + abs(plain))
    assert same.mean() > 0.98
    np.testing.assert_allclose(twin.each(x), penalty.each(x), rtol=1e-11, atol=1e-12)
    distance = penalty.subdifferential_distance(x, np.sin(x))
    np.testing.assert_allclose(twin.subdifferential_distance(x, np.sin(x)), distance, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(twin.prox(x, 1.0, 2.0), scalar(with_arguments(penalty, 2.0, positive)).prox(x, 1.0))


@pytest.mark.parametrize("name", TWINS)
def test_edges_shapes_and_layouts(name):
    penalty = P.Box(-1, 2) if name == "Box" else getattr(P, name)(0.7)
    twin = scalar(penalty)
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan])
    np.testing.assert_array_equal(twin.prox(x, 1.0), penalty.prox(x, 1.0))
    assert twin.prox(np.zeros((0, 3), np.float32), 1.0).shape == (0, 3)
    assert isinstance(twin.prox(2.5, 1.0), np.float64)
    grid = np.linspace(-5, 5, 24).reshape(4, 6)
    for view in (grid[::2], grid.T, grid[:, ::-1]):
        np.testing.assert_allclose(twin.prox(view, 0.3), penalty.prox(view, 0.3), rtol=1e-12)
    grid.setflags(write=False)
    np.testing.assert_allclose(twin.prox(grid, np.full((4, 1), 0.3)), penalty.prox(grid, 0.3), rtol=1e-12)


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon"])
def test_every_module_rounds_alike(isa):
    module = sys.modules.get(f"ellzero.kernels._{isa}")
    if module is None:
        pytest.skip(f"{isa} is not loaded here")
    x = sample(np.float32)
    for name in TWINS:
        twin = scalar(P.Box(-1, 2) if name == "Box" else getattr(P, name)(0.7))
        out = np.empty_like(x)
        one = np.ones(1, np.float32)
        module.prox_each(twin.name, twin.params, x, one, one, False, out)
        np.testing.assert_array_equal(out, twin.prox(x, 1.0))


def test_bad_input_is_named():
    twin, ones = scalar(P.L1(1.0)), np.ones(3)
    for call, message in [
        (lambda: scalar(P.GroupL2(1.0, 2)), "penalty: got GroupL2"),
        (lambda: scalar(P.Box(np.zeros(2), 1.0)), "penalty: got Box"),
        (lambda: twin.prox(np.ones(3, int), 1.0), "x: got dtype int64"),
        (lambda: twin.prox(np.ones(3, np.float16), 1.0), "x: got dtype float16"),
        (lambda: twin.prox(ones, -1.0), "step: got -1.0"),
        (lambda: twin.prox(ones, math.nan), "step: got nan"),
        (lambda: twin.prox(ones, np.ones(2)), "step: got shape"),
        (lambda: twin.prox(ones, 1.0, [-1.0, 1.0, 1.0]), "weights: got -1.0"),
        (lambda: twin.each(ones, np.ones(2)), "weights: got shape"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_without_a_compiled_module_the_error_says_so(monkeypatch):
    from ellzero.kernels import penalties

    monkeypatch.setattr(penalties, "CHOICE", penalties.CHOICE._replace(module=None))
    with pytest.raises(InputError, match="no compiled module is live"):
        scalar(P.L1(1.0))


def test_the_border_refuses_what_it_cannot_read_in_place():
    x, one, params = np.ones(4), np.ones(1), np.ones(1)

    def run(**k):
        return kernels.native.prox_each(
            **{"name": "L1", "params": params, "x": x, "step": one, "weights": one, "positive": False,
               "out": np.empty(4), **k}
        )  # fmt: skip

    run()
    for wrong, kind, message in [
        ({"name": "L7"}, ValueError, "penalty: got 'L7', want one of L1"),
        ({"params": np.ones(2)}, ValueError, "params: got 2 for L1, want 1"),
        ({"params": np.ones(1, np.float32)}, TypeError, "params: got"),
        ({"x": np.ones(8)[::2]}, TypeError, "x: got"),
        ({"step": np.ones(2)}, ValueError, "step: want"),
        ({"weights": np.ones(3)}, ValueError, "weights: want"),
        ({"out": np.empty(3)}, ValueError, "out: want"),
        ({"out": np.empty(4, np.float32)}, TypeError, "out: got"),
    ]:
        with pytest.raises(kind, match=message):
            run(**wrong)
    frozen = np.empty(4)
    frozen.setflags(write=False)
    with pytest.raises(TypeError, match="read-only"):
        run(out=frozen)
