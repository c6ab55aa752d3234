"""Laws of the group and matrix penalties: the prox is the minimum, its residual is a subgradient, both libraries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ellzero import registry
from ellzero.errors import InputError
from ellzero.parts import penalties as P

LABELS = np.array([0, 1, 0, 2, 1, 0])
SHAPE = (4, 6)


def norm(x):
    return math.sqrt(float((x * x).sum()))


def groups_cost(x, alpha, ratio, v, u):
    """The group penalties, from loops over rows and groups."""
    total = 0.0
    for row in x.reshape(-1, 6):
        total += sum((1 - ratio) * alpha * v[g] * norm(row[g == LABELS]) for g in range(3))
        total += ratio * alpha * float((u * abs(row)).sum())
    return total


V, U = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.2, 0.7, 1.5, 0.0, 1.0])
FREQUENCY = np.array([1, 3, 0, 9, 5, 10])
IDF = np.log(1 + (10 - FREQUENCY + 0.5) / (FREQUENCY + 0.5))
CASES = {
    "GroupL2": (lambda a: P.GroupL2(a, LABELS, V), lambda x, a: groups_cost(x, a, 0.0, V, U)),
    "SparseGroup": (
        lambda a: P.SparseGroup(a, LABELS, 0.4, V, U), lambda x, a: groups_cost(x, a, 0.4, V, U)
    ),
    "L21": (lambda a: P.L21(a, np.arange(4.0)), lambda x, a: a * sum(i * norm(x[i]) for i in range(4))),
    "Nuclear": (P.Nuclear, lambda x, a: a * float(np.sqrt(np.clip(np.linalg.eigvalsh(x @ x.T), 0, None)).sum())),
    "FLOPs": (
        lambda a: P.FLOPs(a, U), lambda x, a: a * sum(U[j] * (abs(x[:, j]).sum() / 4) ** 2 for j in range(6))
    ),
    "IDFFLOPs": (
        lambda a: P.idf_flops(FREQUENCY, 10, a),
        lambda x, a: a * sum((abs(x[:, j]).sum() / 4) ** 2 / IDF[j] for j in range(6)),
    ),
}  # fmt: skip
SIGNED = {
    "GroupL2": lambda a: P.GroupL2(a, LABELS, V, positive=True),
    "SparseGroup": lambda a: P.SparseGroup(a, LABELS, 0.4, V, U, positive=True),
    "L21": lambda a: P.L21(a, np.arange(4.0), positive=True),
    "FLOPs": lambda a: P.FLOPs(a, U, positive=True),
}
seeds, steps = st.integers(0, 10**6), st.floats(0.05, 8)


def draw(seed, scale=3.0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape) * scale


def test_every_registered_penalty_is_tested():
    names = {entry.name for kind in ("group_penalty", "matrix_penalty") for entry in registry.entries(kind)}
    assert names == {*CASES, "Simplex"}
    for kind in ("group_penalty", "matrix_penalty"):
        for entry in registry.entries(kind):
            assert entry.example().prox(np.ones((3, 4)), 1.0).shape == (3, 4)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(seed=seeds, alpha=st.floats(0.05, 2))
def test_the_value_is_the_formula(name, seed, alpha):
    make, cost = CASES[name]
    x = draw(seed) * (draw(seed + 1) > 0)
    assert make(alpha).value(x) == pytest.approx(cost(x, alpha), rel=1e-7, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(seed=seeds, alpha=st.floats(0.05, 2), step=steps)
def test_no_perturbation_beats_the_prox(name, seed, alpha, step):
    # All are convex, so a point that no small or large change improves is the minimum.
    make, penalty = CASES[name]
    x = draw(seed)
    w = make(alpha).prox(x, step)

    def cost(v):
        return 0.5 * float(((v - x) ** 2).sum()) + step * penalty(v, alpha)

    best, rng = cost(w), np.random.default_rng(seed)
    tries = [np.zeros_like(x), x, w * 0.99, w * 1.01, np.where(w == 0, 0.05 * x, w), np.where(abs(w) < 0.3, 0, w)]
    for size in (1e-3, 1e-2, 1e-1, 1.0):
        tries += [w + size * rng.normal(size=SHAPE) * (rng.random(SHAPE) < keep) for keep in (0.05, 0.3, 1.0)]
        tries += [w + size * (x - w), w - size * (x - w)]
    assert best <= min(cost(v) for v in tries) + 1e-9


@pytest.mark.parametrize("name", ["GroupL2", "SparseGroup", "L21", "FLOPs", "IDFFLOPs"])
@pytest.mark.parametrize("positive", [False, True])
def test_the_prox_equals_a_numeric_minimiser(name, positive):
    penalty = CASES[name][1]
    if positive and name == "IDFFLOPs":
        pytest.skip("takes no sign")
    x, step, alpha = draw(3), 1.3, 0.6
    w = (SIGNED if positive else {key: value[0] for key, value in CASES.items()})[name](alpha).prox(x, step)
    # Signs never flip, so the problem is smooth (but at 0) over magnitudes with bounds.
    sign = np.sign(x)
    start = np.maximum(abs(w), 1e-3) * (1 if not positive else sign > 0)

    def cost(v):
        return 0.5 * float(((v * sign.ravel() - x.ravel()) ** 2).sum()) + step * penalty(v.reshape(SHAPE), alpha)

    bounds = [(0, 0 if positive and s < 0 else None) for s in sign.ravel()]
    found = minimize(cost, start.ravel() * 0.8, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9})
    assert cost(abs(w).ravel()) <= found.fun + 1e-9
    np.testing.assert_allclose(abs(w).ravel(), found.x, atol=2e-3)
    assert ((w == 0) | (np.sign(w) == sign)).all()


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(seed=seeds, alpha=st.floats(0.05, 2), step=steps)
def test_proxes_do_not_expand_and_leave_a_subgradient(name, seed, alpha, step):
    penalty = CASES[name][0](alpha)
    x, y = draw(seed), draw(seed + 1)
    p, q = penalty.prox(x, step), penalty.prox(y, step)
    assert norm(p - q) <= norm(x - y) + 1e-9
    assert ((p - q) * (x - y)).sum() >= norm(p - q) ** 2 - 1e-9  # firmly
    assert np.max(penalty.subdifferential_distance(p, (p - x) / step)) <= 1e-8 / step
    assert np.max(penalty.subdifferential_distance(p, (p - x) / step + 10.0)) > 0.1


@pytest.mark.parametrize("name", SIGNED)
@settings(max_examples=15)
@given(seed=seeds, alpha=st.floats(0.05, 2), step=steps)
def test_positive_proxes(name, seed, alpha, step):
    penalty, x = SIGNED[name](alpha), draw(seed)
    w = penalty.prox(x, step)
    assert (w >= 0).all()
    assert (w[x <= 0] == 0).all()
    assert np.max(penalty.subdifferential_distance(w, (w - x) / step)) <= 1e-8 / step
    assert penalty.value(w) == pytest.approx(CASES[name][1](w, alpha), rel=1e-9, abs=1e-9)
    assert penalty.value(-np.ones(SHAPE)) == math.inf
    assert np.max(penalty.subdifferential_distance(-np.ones(SHAPE), x)) == math.inf


@pytest.mark.parametrize("name", ["GroupL2", "L21"])
@settings(max_examples=15)
@given(seed=seeds, step=steps)
def test_moreau(name, seed, step):
    """What the prox of ``step |.|`` removes is the projection onto the ball of radius ``step`` of the dual norm."""
    x = draw(seed)
    penalty = P.GroupL2(1.0, 3) if name == "GroupL2" else P.L21(1.0)
    removed = (x - penalty.prox(x, step)).reshape(4, 2, 3) if name == "GroupL2" else x - penalty.prox(x, step)
    blocks = x.reshape(removed.shape)
    lengths = np.linalg.norm(blocks, axis=-1, keepdims=True)
    np.testing.assert_allclose(removed, blocks * np.minimum(1, step / lengths), atol=1e-12)


@pytest.mark.parametrize("name", ["GroupL2", "SparseGroup", "L21"])
@pytest.mark.parametrize("positive", [False, True])
def test_alpha_max_is_where_zero_becomes_stationary(name, positive):
    gradient, zero = draw(5), np.zeros(SHAPE)
    build = SIGNED[name] if positive else CASES[name][0]
    if name == "L21":
        gradient[0] = 0  # its weight is 0
    top = build(1.0).alpha_max(gradient)
    assert np.max(build(top * (1 + 1e-9)).subdifferential_distance(zero, gradient)) < 1e-8
    assert np.max(build(top * (1 - 1e-5)).subdifferential_distance(zero, gradient)) > 0
    assert build(1.0).alpha_max(zero) == 0
    assert build(1.0).alpha_max(torch.tensor(gradient)) == pytest.approx(top)


def test_alpha_max_leaves_out_what_is_free_or_excluded():
    gradient = np.array([100.0, 0.0, 3.0, 4.0, 50.0, 50.0])
    assert P.GroupL2(1.0, 2, [0.0, 1.0, math.inf]).alpha_max(gradient) == pytest.approx(5)
    free = P.SparseGroup(1.0, 2, 0.5, [0.0, 1.0, math.inf], [0, 0, 0, 0, 1, 1])
    assert free.alpha_max(gradient) == pytest.approx(10)
    only_l1 = P.SparseGroup(1.0, 2, 1.0, None, [1, 1, 1, 1, math.inf, math.inf])
    assert only_l1.alpha_max(gradient) == pytest.approx(100)
    assert P.Nuclear(1.0).alpha_max(np.diag([3.0, -7.0])) == pytest.approx(7)


def test_weights_of_zero_and_infinity():
    x = draw(1, shape=(6,))
    w = P.GroupL2(50.0, LABELS, [0.0, 1.0, math.inf]).prox(x, 1.0)
    np.testing.assert_array_equal(w, np.where(LABELS == 0, x, 0))
    assert P.GroupL2(0.0, LABELS, [1.0, 1.0, math.inf]).prox(x, 1.0)[3] == 0
    assert P.GroupL2(1.0, LABELS, [1.0, 1.0, math.inf]).value(x) == math.inf
    np.testing.assert_array_equal(P.GroupL2(1.0, LABELS).prox(x, 1.0, V), P.GroupL2(1.0, LABELS, V).prox(x, 1.0))
    w = P.SparseGroup(0.01, LABELS, 0.5, None, [math.inf, 1, 1, 1, 1, 1]).prox(x, 1.0)
    assert w[0] == 0
    assert (w[1:] != 0).any()
    barred = P.SparseGroup(0.01, LABELS, 0.5, [1, 1, math.inf], [math.inf, 1, 1, 1, 1, 1])
    assert barred.subdifferential_distance(x, x).tolist()[::2] == [math.inf, math.inf]
    assert barred.subdifferential_distance(np.zeros(6), np.where(LABELS == 2, 9.0, 0.0))[2] == 0
    columns = np.array([0.0, math.inf, 1.0])
    flops, x = P.FLOPs(5.0, columns), draw(2, shape=(4, 3))
    w = flops.prox(x, 1.0)
    np.testing.assert_array_equal(w[:, 0], x[:, 0])
    assert (w[:, 1] == 0).all()
    assert flops.value(x) == math.inf
    assert np.isinf(flops.subdifferential_distance(x, x)[:, 1]).all()
    np.testing.assert_array_equal(w, P.FLOPs(5.0).prox(x, 1.0, columns))


def test_steps_broadcast():
    x = draw(1)
    rows = np.array([0.5, 1.0, 2.0, 0.0])
    w = P.L21(1.0).prox(x, rows)
    for i in range(4):
        np.testing.assert_allclose(w[i], P.L21(1.0).prox(x[i], rows[i]))
    w = P.SparseGroup(1.0, LABELS, 0.5).prox(x, np.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(w[:, LABELS == 2], P.SparseGroup(1.0, LABELS, 0.5).prox(x, 2.0)[:, LABELS == 2])
    w = P.Nuclear(1.0).prox(np.stack([x, x]), np.array([0.5, 2.0]))
    np.testing.assert_allclose(w[1], P.Nuclear(1.0).prox(x, 2.0), atol=1e-12)
    tall = P.L21(1.0, axis=0)
    np.testing.assert_allclose(tall.prox(x, 0.7), P.L21(1.0).prox(x.T, 0.7).T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*CASES, "Simplex"])
def test_numpy_and_torch_agree_and_keep_the_dtype(name, dtype):
    penalty = P.Simplex(2.0) if name == "Simplex" else CASES[name][0](0.5)
    x = draw(7).astype(dtype)
    tensor, tol = torch.from_numpy(x), 200 * float(np.finfo(dtype).eps)
    ours, theirs = penalty.prox(x, 0.8), penalty.prox(tensor, 0.8)
    assert ours.dtype == x.dtype
    assert theirs.dtype == tensor.dtype
    np.testing.assert_allclose(ours, theirs.numpy(), atol=tol)
    assert penalty.value(ours).dtype == x.dtype
    assert penalty.value(theirs).dtype == tensor.dtype
    assert float(penalty.value(ours)) == pytest.approx(float(penalty.value(theirs)), rel=tol)
    far, other = penalty.subdifferential_distance(ours, x), penalty.subdifferential_distance(theirs, tensor)
    assert far.dtype == x.dtype
    assert other.dtype == tensor.dtype
    np.testing.assert_allclose(far, other.numpy(), atol=3 * tol)
    np.testing.assert_array_equal(penalty.support(ours), penalty.support(theirs).numpy())


@pytest.mark.parametrize("name", CASES)
def test_values_have_gradients_under_torch(name):
    x = torch.tensor(draw(8), requires_grad=True)
    assert torch.autograd.gradcheck(CASES[name][0](0.5).value, x)
    dead = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    if name != "Nuclear":
        CASES[name][0](0.5).value(dead).backward()
        assert (dead.grad == 0).all()


@settings(max_examples=60)
@given(seed=seeds, radius=st.floats(0.1, 20), n=st.integers(1, 7))
def test_the_simplex_projection_is_the_best_of_all_faces(seed, radius, n):
    x = draw(seed, shape=(n,))
    w = P.Simplex(radius).prox(x)
    best = math.inf
    for face in range(1, 2**n):  # brute force: on each face the projection is a common shift
        kept = np.array([bool(face >> i & 1) for i in range(n)])
        v = np.where(kept, x - (x[kept].sum() - radius) / kept.sum(), 0.0)
        if (v >= 0).all():
            best = min(best, ((v - x) ** 2).sum())
    assert ((w - x) ** 2).sum() <= best + 1e-9
    assert P.Simplex(radius).value(w) == 0
    assert P.Simplex(radius).value(w + 0.01) == math.inf
    assert P.Simplex(radius).subdifferential_distance(w, w - x) <= 1e-7
    np.testing.assert_allclose(P.Simplex(radius).prox(w), w, atol=1e-12)


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(1, 6))
def test_the_simplex_distance_is_the_nearest_shift(seed, n):
    w = np.random.default_rng(seed).dirichlet(np.ones(n)) * (draw(seed, shape=(n,)) > -1)
    g, used = draw(seed + 1, shape=(n,)), w > 0
    if not used.any():
        return
    shifts = np.linspace(-12, 12, 200_001)[:, None]
    residual = np.where(used, -g - shifts, np.maximum(-g - shifts, 0))
    best = np.sqrt((residual**2).sum(1).min())
    assert P.Simplex().subdifferential_distance(w, g) == pytest.approx(best, abs=2e-4)


def test_the_simplex_along_any_axis_and_far_from_zero():
    x = draw(1, shape=(3, 4, 5))
    for axis in (0, 1, 2, -1, -2):
        w = P.Simplex(1.5, axis).prox(x)
        np.testing.assert_allclose(w.sum(axis), 1.5)
        np.testing.assert_allclose(w, np.moveaxis(P.Simplex(1.5).prox(np.moveaxis(x, axis, -1)), -1, axis))
        assert P.Simplex(1.5, axis).value(w) == 0
        assert P.Simplex(1.5, axis).subdifferential_distance(w, w - x).max() < 1e-9
    small = np.float32([0.1, 0.2, 0.5])
    far = P.Simplex().prox(small + np.float32(4096))
    assert far.sum() == pytest.approx(1, abs=1e-6)


def test_flops_evens_out_the_load():
    x = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert P.FLOPs(1.0).value(x) == 1 + 1 / 16
    w = P.FLOPs(1.0).prox(x, 1.0)
    assert w[0, 0] < w[0, 1]
    assert P.FLOPs(1.0).value(x.reshape(2, 2, 2)) == 1 + 1 / 16
    assert P.FLOPs(1.0).prox(np.zeros((0, 3)), 1.0).shape == (0, 3)
    assert P.FLOPs(1.0).value(np.zeros((0, 3))) == 0


def test_idf_is_its_formula():
    np.testing.assert_allclose(P.idf(FREQUENCY, 10), IDF)
    np.testing.assert_allclose(P.idf_flops(FREQUENCY, 10).weights, 1 / IDF)
    assert (np.diff(P.idf(np.arange(11), 10)) < 0).all()


def test_nuclear_counts_the_rank():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(5, 2)) @ rng.normal(size=(2, 4))
    assert P.Nuclear(1.0).support(low).sum() == 2
    assert P.Nuclear(1.0).prox(np.zeros((2, 3)), 1.0).tolist() == np.zeros((2, 3)).tolist()
    assert P.Nuclear(2.0).subdifferential_distance(np.zeros((2, 2)), np.diag([3.0, 1.0])) == pytest.approx(1)


def test_arrays_without_entries():
    for penalty in (P.GroupL2(1.0, 2), P.L21(1.0), P.SparseGroup(1.0, 2)):
        for empty in (np.zeros((0, 4)), np.zeros((3, 0)), torch.zeros(3, 0)):
            assert penalty.prox(empty, 1.0).shape == empty.shape
            assert penalty.value(empty) == 0
    assert P.GroupL2(1.0, 2).alpha_max(np.zeros((0, 4))) == 0


def test_nan_is_not_hidden():
    x = np.array([[math.nan, 1.0], [2.0, 3.0]])
    assert np.isnan(P.L21(1.0).prox(x, 1.0)[0]).all()
    assert np.isnan(P.GroupL2(1.0, 2).prox(x, 1.0)[0]).all()
    assert np.isnan(P.FLOPs(1.0).prox(x, 1.0)[0, 0])


ONES = np.ones((2, 6))
BAD = [
    (lambda: P.GroupL2(-1.0, 2), "alpha: got -1"),
    (lambda: P.GroupL2(1.0, 0), "groups: got 0"),
    (lambda: P.GroupL2(1.0, [0, 2]), "groups: got no coordinate labelled 1"),
    (lambda: P.GroupL2(1.0, [-1, 0]), "groups: got the label -1"),
    (lambda: P.GroupL2(1.0, [0.5, 1.0]), "groups: got dtype float64"),
    (lambda: P.GroupL2(1.0, []), "groups: got shape"),
    (lambda: P.GroupL2(1.0, 4).value(ONES), "x: got 6 on the last axis, want a multiple"),
    (lambda: P.GroupL2(1.0, [0, 1]).value(ONES), "x: got 6 on the last axis, want 2"),
    (lambda: P.GroupL2(1.0, 2, [1.0, 2.0]).prox(ONES, 1.0), "weights: got shape"),
    (lambda: P.GroupL2(1.0, 2, [1.0, -2.0, 1.0]), "weights: got -2.0"),
    (lambda: P.SparseGroup(1.0, 2, 1.5), "l1_ratio: got 1.5"),
    (lambda: P.SparseGroup(1.0, 2, feature_weights=[-1.0]), "feature_weights: got -1.0"),
    (lambda: P.SparseGroup(1.0, 2).prox(ONES, -1.0), "step: got -1.0"),
    (lambda: P.L21(1.0, axis=2).value(ONES), "axis: got 2"),
    (lambda: P.L21(1.0, axis=0.5), "axis: got 0.5"),
    (lambda: P.Nuclear(math.nan), "alpha: got NaN"),
    (lambda: P.Nuclear(1.0).value(np.ones(3)), "x: got shape"),
    (lambda: P.Nuclear(1.0).prox(np.full((2, 2), math.nan), 1.0), "x: 4 entries not finite"),
    (lambda: P.Nuclear(1.0).prox(ONES, -1.0), "step: got -1.0"),
    (lambda: P.Nuclear(1.0).subdifferential_distance(np.ones((2, 2, 2)), np.ones((2, 2, 2))), "want one matrix"),
    (lambda: P.Simplex(0.0), "radius: got 0.0"),
    (lambda: P.Simplex(1.0, 3).prox(ONES), "axis: got 3"),
    (lambda: P.Simplex().prox(np.ones((2, 0))), "x: got shape"),
    (lambda: P.Simplex().prox(np.array([math.nan, 1.0])), "x: "),
    (lambda: P.FLOPs(-2.0), "alpha: got -2"),
    (lambda: P.FLOPs(1.0).prox(ONES, math.inf), "step: got inf"),
    (lambda: P.idf([3], 2), "document_frequency: got 3"),
    (lambda: P.idf([-1], 2), "document_frequency: got -1"),
    (lambda: P.idf([1], 0), "n_documents: got 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
