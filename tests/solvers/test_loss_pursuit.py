"""Pursuit of any loss against its definition by brute force, plain OMP, linear programs, and itself in batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog, minimize_scalar

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.loss_pursuit import fit_absolute, loss_pursuit
from ellzero.solvers.pursuit import omp

LOSS = {
    "squared": lambda r: r @ r / (2 * len(r)),
    "square_root": lambda r: np.linalg.norm(r) / np.sqrt(len(r)),
    "absolute": lambda r: abs(r).sum() / len(r),
}


def by_definition(X, y, k, loss, alpha, weights, penalty):
    """Minimise the objective along every coordinate numerically, refit by the loss alone, stop when nothing changes."""
    p = X.shape[1]

    def price(w):
        return alpha * (weights @ abs(w) if penalty == "l1" else weights**2 @ (abs(w) > 1e-12))

    def objective(w):
        return LOSS[loss](y - X @ w) + price(w)

    def decrease(w, j):
        def along(t):
            moved = w.copy()
            moved[j] += t
            return objective(moved)

        reach = 3 * (np.linalg.norm(y) / np.linalg.norm(X[:, j]) + abs(w[j]))
        grid = np.linspace(-reach, reach, 401)
        near = grid[np.argmin([along(t) for t in grid])]
        found = minimize_scalar(along, bounds=(near - reach / 100, near + reach / 100), options={"xatol": 1e-12})
        return objective(w) - min(found.fun, along(-w[j]), along(0.0))

    support, w = [], np.zeros(p)
    for _ in range(k):
        gains = np.array([decrease(w, j) for j in range(p)])
        best = int(np.argmax(gains))
        if best in support or gains[best] <= 1e-9:
            return support, w, True
        support.append(best)
        chosen = X[:, support]
        values = fit_absolute(chosen, y)[0] if loss == "absolute" else np.linalg.lstsq(chosen, y, rcond=None)[0]
        w = np.zeros(p)
        w[support] = values
    return support, w, None


@pytest.mark.parametrize("loss", LOSS)
@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_definition(loss, penalty, seed):
    generator = rng(seed, "definition")
    X = generator.standard_normal((12, 8)) * np.exp(0.5 * generator.standard_normal(8))
    y = X[:, :3] @ [2.0, -1.0, 0.5] + 0.3 * generator.standard_normal(12)
    weights = 0.5 + generator.random(8)
    alpha = {"squared": 0.1, "square_root": 0.1, "absolute": 0.05}[loss]
    support, w, ended = by_definition(X, y, 5, loss, alpha, weights, penalty)
    found = loss_pursuit(X, y, 5, loss=loss, alpha=alpha, weights=weights, penalty=penalty)
    assert list(found.support) == support
    np.testing.assert_allclose(found.coef, w, atol=1e-8)
    if ended is not None:
        assert found.ended


@pytest.mark.parametrize("loss", ["squared", "square_root"])
@pytest.mark.parametrize("penalty", ["l1", "l0"])
@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 30), p=st.integers(2, 40), seed=st.integers(0, 999))
def test_without_a_penalty_it_is_plain(loss, penalty, n, p, seed):
    generator = rng(seed, "plain")
    X = generator.standard_normal((n, p)) * np.exp(generator.standard_normal(p))
    Y = generator.standard_normal((n, 3))
    k = min(n, p) // 2 + 1
    plain = omp(X, Y, k)
    for one, other in zip(loss_pursuit(X, Y, k, loss=loss, penalty=penalty), plain):
        np.testing.assert_array_equal(one.support, other.support)
        np.testing.assert_allclose(one.coef, other.coef(), atol=1e-8 * abs(other.coef()).max())


@pytest.mark.parametrize("loss", LOSS)
@pytest.mark.parametrize("penalty", ["l1", "l0"])
def test_many_targets_equal_one_by_one(loss, penalty):
    generator = rng(0, "targets")
    X = generator.standard_normal((40, 70))
    Y = X[:, :5] @ generator.standard_normal((5, 6)) + 0.1 * generator.standard_normal((40, 6))
    Y[:, 3] = 0
    options = {"loss": loss, "penalty": penalty, "alpha": 0.02}
    together = loss_pursuit(X, Y, 9, **options)
    assert len({len(fit.support) for fit in together}) > 1
    for t in range(6):
        alone = loss_pursuit(X, Y[:, t], 9, **options)
        np.testing.assert_array_equal(together[t].support, alone.support)
        np.testing.assert_allclose(together[t].coef, alone.coef, atol=1e-12)
        assert together[t].ended == alone.ended
    assert not together[3].coef.any()


@pytest.mark.parametrize("loss", LOSS)
def test_weights_favour_and_infinity_excludes(loss):
    generator = rng(1, "weights")
    X = generator.standard_normal((60, 20))
    X[:, 7] = X[:, 3] + 0.02 * generator.standard_normal(60)
    y = X[:, 3] + 0.05 * generator.standard_normal(60)
    for favoured in (3, 7):
        weights = np.ones(20)
        weights[favoured] = 0.1
        found = loss_pursuit(X, y, 1, loss=loss, alpha=0.3, weights=weights)
        assert found.support.tolist() == [favoured]
    barred = np.where(np.arange(20) == 3, np.inf, 1.0)
    for penalty in ("l1", "l0"):
        found = loss_pursuit(X, y, 5, loss=loss, penalty=penalty, weights=barred)
        assert found.support[0] == 7
        assert 3 not in found.support


@pytest.mark.parametrize("loss", LOSS)
def test_copies_and_zeros_are_never_chosen_twice(loss):
    generator = rng(2, "copies")
    X = generator.standard_normal((25, 10))
    X = np.hstack([np.zeros((25, 1)), X, X, -2 * X])
    y = generator.standard_normal(25)
    found = loss_pursuit(X, y, 15, loss=loss)
    assert 0 not in found.support
    assert len(set((found.support - 1) % 10)) == len(found.support)
    if loss != "absolute":  # where one column alone may not help while two would
        assert len(found.support) == 10
        assert found.support.max() <= 10


@pytest.mark.parametrize("loss", LOSS)
def test_sparse_float32_and_a_target_of_zeros(loss):
    X = sparse.random_array((50, 60), density=0.3, rng=np.random.default_rng(0), format="csc")
    y = X.toarray()[:, [5, 9]] @ [3.0, -2.0]
    options = {"loss": loss, "alpha": 1e-3}
    want = loss_pursuit(X.toarray(), y, 6, **options)
    assert set(want.support) == {5, 9}
    assert want.ended
    np.testing.assert_allclose(loss_pursuit(X, y, 6, **options).coef, want.coef, atol=1e-12)
    single = loss_pursuit(X.astype(np.float32), y, 6, **options)
    assert single.coef.dtype == np.float32
    np.testing.assert_allclose(single.coef, want.coef, atol=1e-4)
    assert not loss_pursuit(X, np.zeros(50), 3, **options).coef.any()


def test_a_tolerance_ends_it():
    generator = rng(4, "tol")
    X, y = generator.standard_normal((40, 60)), generator.standard_normal(40)
    for loss in LOSS:
        found = loss_pursuit(X, y, 30, loss=loss, tol=0.5)
        size = np.linalg.norm if loss != "absolute" else lambda r: abs(r).sum()
        assert size(y - X @ found.coef) <= 0.5 * size(y)
        shorter = loss_pursuit(X, y, len(found.support) - 1, loss=loss)
        assert size(y - X @ shorter.coef) > 0.5 * size(y)


class TestLeastAbsolute:
    @settings(max_examples=25, deadline=None)
    @given(n=st.integers(1, 30), m=st.integers(0, 8), seed=st.integers(0, 99), rank=st.integers(1, 8))
    def test_it_is_the_linear_program(self, n, m, seed, rank):
        generator = rng(seed, "lad")
        A = generator.standard_normal((n, rank)) @ generator.standard_normal((rank, m))
        A *= 10.0 ** generator.integers(-3, 4, m)
        y = 1e4 * generator.standard_normal(n)
        w, residual = fit_absolute(A, y)
        np.testing.assert_allclose(residual, y - A @ w, atol=1e-5)
        if m:
            both = np.hstack([A / np.maximum(np.linalg.norm(A, axis=0), 1e-300), np.eye(n), -np.eye(n)])
            cost = np.r_[np.zeros(m), np.ones(2 * n)]
            best = linprog(cost, A_eq=both, b_eq=y, bounds=[(None, None)] * m + [(0, None)] * (2 * n)).fun
            assert abs(residual).sum() == pytest.approx(best, rel=1e-6, abs=1e-4)

    def test_rows_that_fit_are_exact(self):
        generator = rng(0, "exact")
        A, w = generator.standard_normal((200, 9)), generator.standard_normal(9)
        y = A @ w
        y[::10] += 50 * generator.standard_normal(20)
        found, residual = fit_absolute(A, y)
        np.testing.assert_allclose(found, w, atol=1e-12)
        assert (residual == 0).sum() >= 9


def test_the_absolute_loss_fits_its_own_intercept():
    generator = rng(5, "intercept")
    X = generator.standard_normal((80, 30))
    y = 7 + 2 * X[:, 4]
    y[:6] = -300
    found = loss_pursuit(X, y, 5, loss="absolute", fit_intercept=True)
    assert found.support.tolist() == [4]
    assert found.intercept == pytest.approx(7)
    assert found.coef[4] == pytest.approx(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 5}, "k: got 5"),
        ({"loss": "square"}, "loss: got 'square'.*did you mean 'squared'"),
        ({"penalty": "l2"}, "penalty: got 'l2'"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"alpha": np.inf}, "alpha: got inf"),
        ({"tol": -1.0}, "tol: got -1.0"),
        ({"weights": np.ones(3)}, r"weights: got shape \(3,\), want \(6\)"),
        ({"weights": -np.ones(6)}, "weights: got -1.0 at 0"),
        ({"weights": np.full(6, np.nan)}, "weights: got nan at 0"),
        ({"y": np.ones(3)}, "y: got 3 rows"),
        ({"y": np.full(4, np.nan)}, "y: 4 entries not finite"),
        ({"fit_intercept": True}, "fit_intercept: got True"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": rng(0).standard_normal((4, 6)), "y": np.ones(4), "k": 2} | change
    with pytest.raises(InputError, match=message):
        loss_pursuit(**arguments)
