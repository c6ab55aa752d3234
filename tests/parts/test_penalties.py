"""Laws of the separable penalties: the prox is the global minimum, stationarity, weights, dtypes, both libraries."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero import registry
from ellzero.errors import InputError
from ellzero.parts import penalties as P

alphas = st.floats(0.01, 3.0)
steps = st.one_of(st.floats(0.01, 9.0), st.sampled_from([1.0, 2.7, 3.0, 4.7]))
points = st.floats(-9.0, 9.0)


def integral(slope, *knots):
    """p(w) as the integral of its slope from 0, linear between knots: shares no formula with the code."""

    def p(w):
        size, edges = abs(np.asarray(w, dtype=float)), [0.0, *knots, 1e3]
        total = 0.0
        for low, high in itertools.pairwise(edges):
            top = np.clip(size, low, high)
            total = total + (top - low) * slope((low + top) / 2)
        return total

    return p


def scad_slope(a, g):
    return lambda t: np.where(t <= a, a, np.maximum(a * g - t, 0) / (g - 1))


# Each case draws a penalty, and p of one coordinate in plain numbers.
CASES = {
    "L1": st.builds(lambda a: (P.L1(a), lambda w: a * abs(w)), alphas),
    "L0": st.builds(lambda a: (P.L0(a), lambda w: a * (np.asarray(w) != 0)), alphas),
    "ElasticNet": st.builds(
        lambda a, r: (P.ElasticNet(a, r), integral(lambda t: a * (r + (1 - r) * t))), alphas, st.floats(0, 1)
    ),
    "MCP": st.builds(
        lambda a, g: (P.MCP(a, g), integral(lambda t: np.maximum(a - t / g, 0), a * g)), alphas, st.floats(1.01, 6)
    ),
    "SCAD": st.builds(lambda a, g: (P.SCAD(a, g), integral(scad_slope(a, g), a, a * g)), alphas, st.floats(2.01, 6)),
    "LogSum": st.builds(
        lambda a, e: (P.LogSum(a, e), lambda w: a * np.log((abs(w) + e) / e)), alphas, st.floats(0.05, 4)
    ),
    "Lq": st.builds(
        lambda a, q: (P.Lq(a, q), lambda w: a * np.exp2(q * np.log2(np.maximum(abs(w), 1e-300))) * np.sign(abs(w))),
        alphas, st.one_of(st.sampled_from([0.5, 2 / 3]), st.floats(0.05, 0.98)),
    ),
    "CEL0": st.builds(
        lambda a, n: (
            P.CEL0(a, n),
            lambda w: a - n**2 / 2 * (abs(w) - math.sqrt(2 * a) / n) ** 2 * (abs(w) <= math.sqrt(2 * a) / n),
        ),
        alphas, st.floats(0.3, 2),
    ),
    "Box": st.builds(
        lambda low, d: (P.Box(low, low + d), lambda w: np.where((low <= w) & (w <= low + d), 0.0, math.inf)),
        st.floats(-3, 3), st.floats(0, 4),
    ),
    "NonNegative": st.builds(lambda _: (P.NonNegative(), lambda w: np.where(w >= 0, 0.0, math.inf)), alphas),
}  # fmt: skip
WEIGHTED = [name for name in CASES if name not in ("Box", "NonNegative")]
CONVEX = ["L1", "ElasticNet", "Box", "NonNegative"]
TYPICAL = {
    "L1": P.L1, "L0": P.L0, "ElasticNet": P.ElasticNet, "MCP": P.MCP, "SCAD": P.SCAD, "LogSum": P.LogSum, "Lq": P.Lq,
    "Lq 2/3": lambda a, **k: P.Lq(a, 2 / 3, **k), "Lq 0.3": lambda a, **k: P.Lq(a, 0.3, **k), "CEL0": P.CEL0,
}  # fmt: skip


def lowest(cost, x):
    """The global minimum of a cost of one number: a dense grid, then finer grids around its best places."""
    grid = np.concatenate([np.linspace(-10, 10, 4001), [0.0, x]])
    costs = cost(grid)
    best = costs.min()
    for centre in grid[np.argsort(costs)[:3]]:
        width = 0.005
        for _ in range(4):
            fine = np.linspace(centre - width, centre + width, 41)
            values = cost(fine)
            centre, width = fine[values.argmin()], width / 16
            best = min(best, values.min())
    return best


def test_every_registered_penalty_is_tested():
    assert {entry.name for entry in registry.entries("penalty")} == set(CASES)
    for entry in registry.entries("penalty"):
        assert entry.example().prox(np.ones(3), 1.0).shape == (3,)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40)
@given(data=st.data(), x=points, step=steps)
def test_the_prox_is_the_global_minimum(name, data, x, step):
    penalty, p = data.draw(CASES[name])

    def cost(w):
        return 0.5 * (w - x) ** 2 + step * p(w)

    w = penalty.prox(np.float64(x), step)
    assert cost(w) <= lowest(cost, x) + 1e-9
    assert abs(w) <= abs(x) + 1e-12 or name in ("Box", "NonNegative")


@pytest.mark.parametrize("step", [0.2, 0.99, 1.0, 1.7, 1.99, 2.0, 2.4, 2.9, 3.0, 3.5, 4.0, 5.5])
def test_the_prox_is_the_global_minimum_at_every_knee_and_jump(step):
    # A fine sweep through the narrow bands where one piece of the prox takes over from another.
    x, grid = np.linspace(0, 6, 701)[:, None], np.linspace(0, 6, 1201)
    for penalty, p in (
        (P.L0(0.8), lambda w: 0.8 * (w != 0)),
        (P.MCP(1.0, 2.0), integral(lambda t: np.maximum(1 - t / 2, 0), 2.0)),
        (P.SCAD(1.0, 3.0), integral(scad_slope(1.0, 3.0), 1.0, 3.0)),
        (P.LogSum(1.0, 0.4), lambda w: np.log((w + 0.4) / 0.4)),
        (P.Lq(0.5, 0.5), lambda w: 0.5 * w**0.5),
        (P.Lq(0.5, 2 / 3), lambda w: 0.5 * np.cbrt(w) ** 2),
        (P.Lq(0.5, 0.2), lambda w: 0.5 * w**0.2),
        (P.CEL0(0.5, 0.8), lambda w: 0.5 - 0.32 * np.maximum(1.25 - w, 0) ** 2),
    ):
        w = penalty.prox(x, step)
        lowest_cost = (0.5 * (grid - x) ** 2 + step * p(grid)).min(1, keepdims=True)
        assert (0.5 * (w - x) ** 2 + step * p(w) <= lowest_cost + 1e-12).all(), penalty


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30)
@given(data=st.data(), w=points)
def test_each_is_the_formula(name, data, w):
    penalty, p = data.draw(CASES[name])
    assert penalty.each(np.float64(w)) == pytest.approx(p(w), rel=1e-9, abs=1e-12)
    assert penalty.each(0.0) == pytest.approx(p(0.0))
    assert penalty.value(np.array([w, w, 0.0])) == pytest.approx(2 * p(w) + p(0.0), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", CONVEX)
@given(data=st.data(), x=points, y=points, step=steps)
def test_convex_proxes_do_not_expand(name, data, x, y, step):
    penalty, _ = data.draw(CASES[name])
    pair = penalty.prox(np.array([x, y]), step)
    assert abs(pair[0] - pair[1]) <= abs(x - y) + 1e-12


@pytest.mark.parametrize("name", WEIGHTED)
@settings(max_examples=30)
@given(data=st.data(), x=points, step=steps, weight=st.floats(0.1, 4), positive=st.booleans())
def test_weights_and_positivity_are_what_they_say(name, data, x, step, weight, positive):
    plain, p = data.draw(CASES[name])
    penalty = type(plain)(plain.alpha, *plain.compiled[1][1:], weights=[weight, 0.0, math.inf], positive=positive)
    w = penalty.prox(np.full(3, x), step)
    free = max(x, 0.0) if positive else x

    def cost(v):
        return np.where(positive & (v < 0), math.inf, 0.5 * (v - x) ** 2 + step * weight * p(v))

    assert cost(w[0]) <= lowest(cost, x) + 1e-9
    assert w[1] == free
    assert w[2] == 0
    np.testing.assert_array_equal(plain.prox(np.full(3, x), step, [weight, 0.0, math.inf]) * (w != 0), w)
    each = penalty.each(np.full(3, x))
    if x == 0:
        assert (each == 0).all()
    elif positive and x < 0:
        assert (each == math.inf).all()
    else:
        assert each[0] == pytest.approx(weight * p(x), rel=1e-9)
        assert (each[1], each[2]) == (0, math.inf)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30)
@given(data=st.data(), x=points, step=steps, positive=st.booleans())
def test_a_prox_is_stationary(name, data, x, step, positive):
    penalty, _ = data.draw(CASES[name])
    if positive and name in WEIGHTED:
        penalty = type(penalty)(*penalty.compiled[1], weights=2.0, positive=True)
    w = penalty.prox(np.float64(x), step)
    assert penalty.subdifferential_distance(w, (w - np.float64(x)) / step) <= 1e-7 / step


@pytest.mark.parametrize("name", WEIGHTED)
@settings(max_examples=30)
@given(data=st.data(), w=st.floats(0.05, 8), gradient=points, sign=st.sampled_from([-1, 1]))
def test_the_distance_away_from_zero_is_the_derivative(name, data, w, gradient, sign):
    penalty, p = data.draw(CASES[name])
    h = 1e-6 * w
    left, right = (p(w) - p(w - h)) / h, (p(w + h) - p(w)) / h
    if abs(left - right) < 1e-3:  # not at a knee
        got = penalty.subdifferential_distance(sign * w, sign * gradient)
        assert got == pytest.approx(abs(gradient + (left + right) / 2), abs=2e-3)


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_distance_with_weights_and_signs(name):
    penalty = TYPICAL[name](1.0, positive=True)
    w, gradient = np.array([0.0, 0.0, -1.0, 0.0, 2.0]), np.array([5.0, -9.0, 0.0, -3.0, 0.7])
    distance = penalty.subdifferential_distance(w, gradient, [1.0, 0.0, 1.0, math.inf, 0.0])
    np.testing.assert_allclose(distance, [0.0, 9.0, math.inf, 0.0, 0.7])
    assert penalty.subdifferential_distance(1.0, 0.0, math.inf) == math.inf


@pytest.mark.parametrize("name", ["L1", "ElasticNet", "MCP", "SCAD", "LogSum", "CEL0"])
@pytest.mark.parametrize("positive", [False, True])
def test_alpha_max_is_where_zero_becomes_stationary(name, positive):
    gradient, weights = np.array([0.5, -1.5, 2.0, -40.0, 60.0]), np.array([1.0, 2.0, 4.0, 0.0, math.inf])

    def make(alpha):
        return TYPICAL[name](alpha, positive=positive)

    top = make(1.0).alpha_max(gradient, weights)
    counted, scale = gradient[:3], weights[:3]
    zero = np.zeros(3)
    assert (make(top * (1 + 1e-9)).subdifferential_distance(zero, counted, scale) == 0).all()
    assert (make(top * (1 - 1e-6)).subdifferential_distance(zero, counted, scale) > 0).any()
    assert make(1.0).alpha_max(np.zeros(3)) == 0
    assert make(1.0).alpha_max(np.zeros(0)) == 0
    assert make(1.0).alpha_max(torch.tensor(gradient)) > 0


def test_alpha_max_where_there_is_none():
    for penalty in (P.L0(1.0), P.Lq(1.0)):
        with pytest.raises(InputError, match="alpha_max: got"):
            penalty.alpha_max(np.ones(2))
    assert P.ElasticNet(1.0, 0.0).alpha_max(np.ones(2)) == math.inf
    assert P.ElasticNet(1.0, 0.0).alpha_max(np.zeros(2)) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*TYPICAL, "Box"])
def test_numpy_and_torch_agree_and_keep_the_dtype(name, dtype):
    penalty = P.Box(-1, 2) if name == "Box" else TYPICAL[name](0.7)
    x = np.linspace(-6, 6, 243).astype(dtype).reshape(3, -1)
    tensor = torch.from_numpy(x)
    tight = {"rtol": 4 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
    loose = {"rtol": 40 * np.finfo(dtype).eps, "atol": 40 * np.finfo(dtype).eps}
    for step in (0.5, 2.9, 5.0):
        ours, theirs = penalty.prox(x, step), penalty.prox(tensor, step)
        assert ours.dtype == x.dtype
        assert theirs.dtype == tensor.dtype
        np.testing.assert_array_equal(ours != 0, theirs.numpy() != 0)
        np.testing.assert_allclose(ours, theirs.numpy(), **loose)
        wide = penalty.prox(x.astype(np.float64), step)
        np.testing.assert_allclose(ours, wide, rtol=2e-6 if dtype == "float32" else 0, atol=1e-6)
    for out, other in (
        (penalty.each(x), penalty.each(tensor)),
        (penalty.value(x), penalty.value(tensor)),
        (penalty.subdifferential_distance(x, x), penalty.subdifferential_distance(tensor, tensor)),
    ):
        assert out.dtype == x.dtype
        assert other.dtype == tensor.dtype
        np.testing.assert_allclose(out, other.numpy(), **{**loose, "rtol": tight["rtol"] * 20})
    np.testing.assert_array_equal(penalty.support(x), penalty.support(tensor).numpy())


@pytest.mark.parametrize("name", TYPICAL)
def test_steps_and_weights_broadcast(name):
    penalty = TYPICAL[name](0.7)
    rng = np.random.default_rng(0)
    x, step, weights = rng.normal(size=(4, 5)) * 4, rng.uniform(0.1, 6, (4, 1)), rng.uniform(0, 3, 5)
    got = penalty.prox(x, step, weights)
    one_by_one = [[penalty.prox(x[i, j], step[i, 0] * weights[j]) for j in range(5)] for i in range(4)]
    np.testing.assert_allclose(got, one_by_one, rtol=1e-14)
    same = penalty.prox(torch.tensor(x), torch.tensor(step), torch.tensor(weights)).numpy()
    np.testing.assert_allclose(got, same, rtol=1e-13)
    np.testing.assert_allclose(TYPICAL[name](0.7, weights=weights).prox(x, step), got)
    assert penalty.prox(np.zeros((0, 3), np.float32), 1.0).shape == (0, 3)
    assert penalty.value(np.zeros((0, 3))) == 0
    np.testing.assert_allclose(penalty.prox(x.T[::2], 0.5), penalty.prox(x.T[::2].copy(), 0.5))


@pytest.mark.parametrize("name", TYPICAL)
def test_edges(name):
    penalty = TYPICAL[name](0.7)
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-300, 1e300])
    with np.errstate(over="ignore"):
        w = penalty.prox(x, 1.0)
    assert (w[:2] == 0).all()
    assert not np.signbit(w[:2]).any()
    assert w[2] == math.inf
    assert w[3] == -math.inf
    assert np.isnan(w[4])
    assert w[5] == 0
    assert 1e299 < w[6] <= 1e300
    assert penalty.prox(x[[2, 3]], 1.0, math.inf).tolist() == [0, 0]
    np.testing.assert_array_equal(TYPICAL[name](0.7, positive=True).prox(x[:5], 1.0), [0, 0, math.inf, 0, math.nan])
    np.testing.assert_array_equal(penalty.prox(x[5:], 0.0), x[5:])
    np.testing.assert_allclose(TYPICAL[name](0.0).prox(np.array([-2.0, 3.0]), 1.0), [-2, 3], rtol=1e-15)
    assert TYPICAL[name](0.0).value(np.array([-2.0, 3.0])) == 0
    assert TYPICAL[name](0.0).subdifferential_distance(0.0, 3.0) == 3


def test_draws_go_to_zero():
    assert P.L0(2.0).prox(2.0, 1.0) == 0  # the threshold is sqrt(2 * 2) = 2
    assert P.MCP(1.0, 2.0).prox(4.0, 8.0) == 0  # sqrt(8 * 2) = 4
    assert P.SCAD(1.0, 3.0).prox(8.0, 16.0) == 0  # sqrt(16 * 4) = 8
    assert P.CEL0(2.0, 1.0).prox(2.0, 1.0) == 0
    assert P.L0(2.0).prox(2.0 + 1e-9, 1.0) > 2


@pytest.mark.parametrize("name", ["L1", "ElasticNet", "MCP", "LogSum", "Lq", "Lq 2/3", "Lq 0.3", "SCAD"])
def test_the_prox_has_its_gradient_under_torch(name):
    x = torch.tensor([-7.3, -2.6, 1.9, 8.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: TYPICAL[name](0.6).prox(t, 0.8), x)
    assert torch.autograd.gradcheck(lambda t: TYPICAL[name](0.6).value(t), x)


def test_penalties_are_values():
    assert P.L1(1.0, [1, 2]) == P.L1(1.0, np.array([1.0, 2.0]))
    assert hash(P.L1(1.0, [1, 2])) == hash(P.L1(1.0, (1, 2)))
    assert P.L1(1.0, [1, 2]) != P.L1(1.0, [1, 3])
    assert P.L1(1.0) != P.L0(1.0)
    assert P.L1(1.0, torch.ones(2)) == P.L1(1.0, torch.ones(2))
    kept = np.ones(2)
    penalty = P.L1(1.0, kept)
    kept[0] = 9
    assert penalty.weights.tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        penalty.weights[0] = 3
    with pytest.raises(AttributeError):
        penalty.alpha = 2.0


BAD = [
    (lambda: P.L1(-1.0), "alpha: got -1"),
    (lambda: P.L1(math.nan), "alpha: got NaN"),
    (lambda: P.L1(math.inf), "alpha: got inf"),
    (lambda: P.L1("1"), "alpha: got '1'"),
    (lambda: P.MCP(1.0, 1.0), "gamma: got 1.0, want a number above 1"),
    (lambda: P.SCAD(1.0, 2.0), "gamma: got 2.0, want a number above 2"),
    (lambda: P.LogSum(1.0, 0.0), "epsilon: got 0"),
    (lambda: P.Lq(1.0, 1.0), "q: got 1.0"),
    (lambda: P.Lq(1.0, 0.0), "q: got 0.0"),
    (lambda: P.CEL0(1.0, 0.0), "norm: got 0.0"),
    (lambda: P.ElasticNet(1.0, 1.1), "l1_ratio: got 1.1"),
    (lambda: P.L1(1.0, [1.0, -2.0]), "weights: got -2.0"),
    (lambda: P.L1(1.0, [1.0, math.nan]), "weights: got nan"),
    (lambda: P.L1(1.0, torch.tensor([-1.0])), "weights: got -1.0"),
    (lambda: P.L1(1.0, "heavy"), "weights: got str"),
    (lambda: P.L1(1.0, []), "weights: got shape"),
    (lambda: P.L1(1.0, positive="yes"), "positive: got 'yes'"),
    (lambda: P.L1(1.0).prox(np.ones(2), -1.0), "step: got -1.0"),
    (lambda: P.L1(1.0).prox(np.ones(2), math.nan), "step: got NaN"),
    (lambda: P.L1(1.0).prox(np.ones(2), np.array([1.0, -1.0])), "step: got -1.0"),
    (lambda: P.L1(1.0).prox(np.ones(2), np.array([1.0, math.nan])), "step: 1 entry not finite"),
    (lambda: P.L1(1.0).prox(np.ones(2), "1"), "step: got str"),
    (lambda: P.L1(1.0).prox(np.ones(2), 1.0, np.ones(3)), "weights: got shape"),
    (lambda: P.L1(1.0).prox(np.ones(2, int), 1.0), "x: got dtype int64"),
    (lambda: P.L1(1.0).prox([1.0], 1.0), "x: got list"),
    (lambda: P.L1(1.0).value("x"), "x: got str"),
    (lambda: P.Box(1.0, 0.0), "high: got 0.0 below low 1.0"),
    (lambda: P.Box(math.nan, 0.0), "low: got NaN"),
    (lambda: P.Box(np.array([0.0, math.nan]), 1.0), "NaN"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_boxes_with_a_bound_for_each_coordinate():
    box = P.Box(np.array([-1.0, 0.0]), np.array([1.0, 3.0]))
    assert box.prox(np.array([[-4.0, 9.0], [0.5, -1.0]])).tolist() == [[-1, 3], [0.5, 0]]
    assert box.value(np.array([0.0, 4.0])) == math.inf
    assert box.compiled is None
    assert box == P.Box(np.array([-1.0, 0.0]), np.array([1.0, 3.0]))
    assert P.Box().prox(np.array([5.0])) == 5
