"""Stability selection: shares against a loop of scikit-learn's paths, bounds against linear programs, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog
from sklearn.linear_model import lasso_path
from sklearn.utils.estimator_checks import check_estimator

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import StabilitySelection, coefficient_table
from ellzero.linear.stability import bound_factor, complementary_pairs, expected_false, selection_counts


@pytest.fixture(scope="module")
def planted():
    return planted_regression(100, 40, 4, snr=4.0, seed=0)


@pytest.mark.filterwarnings("ignore")
def test_the_contract_of_scikit_learn():
    check_estimator(StabilitySelection(n_pairs=3, n_alphas=10))


def first_on_path(X, y, alphas, q):
    coefs = lasso_path(X - X.mean(0), y - y.mean(), alphas=alphas, tol=1e-8, max_iter=10**5)[1]
    chosen = []
    for w in coefs.T:
        new = [j for j in np.argsort(-abs(w), kind="stable") if w[j] and j not in chosen]
        chosen += new[: q - len(chosen)]
    return chosen


def test_half_samples_choose_what_single_paths_choose(planted):
    X, y = planted.X / planted.X.std(0), planted.y
    halves = complementary_pairs(y, "quadratic", 4, np.random.default_rng(0))
    counts = selection_counts(X, y, halves, 5, l1_ratio=1.0, eps=0.05, n_alphas=30)
    gradients = [abs((X[h > 0] - X[h > 0].mean(0)).T @ (y[h > 0] - y[h > 0].mean())).max() / 50 for h in halves.T]
    alphas = max(gradients) * np.geomspace(1, 0.05, 30)
    want = np.zeros(40)
    for h in halves.T:
        want[first_on_path(X[h > 0], y[h > 0], alphas, 5)] += 1
    np.testing.assert_array_equal(counts, want)


@pytest.mark.parametrize("loss", ["quadratic", "logistic"])
@pytest.mark.parametrize("n", [12, 13])
def test_halves_are_disjoint_equal_and_balanced(loss, n):
    y = (np.arange(n) % 3 == 0).astype(int)
    halves = complementary_pairs(y, loss, 5, np.random.default_rng(0))
    assert (halves.sum(0) == n // 2).all()
    assert (halves[:, ::2] * halves[:, 1::2] == 0).all()
    if loss == "logistic":
        share = y @ halves
        assert abs(share[::2] - share[1::2]).max() <= 1
    apart = complementary_pairs(y, loss, 5, np.random.default_rng(0), independent=True)
    assert (apart[:, ::2] * apart[:, 1::2]).any()


def largest_tail(threshold, pairs, theta):
    """By linear programs: the most that a unimodal law on 0, 1/B, ..., 1 with mean at most theta^2 has at 2 t - 1."""
    values = np.arange(pairs + 1) / pairs
    best = 0.0
    for mode in range(pairs + 1):
        blocks = [(a, b) for a in range(mode + 1) for b in range(mode, pairs + 1)]  # unimodal: a mix of these
        tail = [np.mean(values[a : b + 1] >= 2 * threshold - 1 - 1e-12) for a, b in blocks]
        mean = [values[a : b + 1].mean() for a, b in blocks]
        one = np.ones((1, len(blocks)))
        found = linprog(-np.array(tail), A_ub=[mean], b_ub=[theta**2], A_eq=one, b_eq=[1])
        best = max(best, -found.fun if found.status == 0 else 0.0)  # a high mode leaves no law of so small a mean
    return best


@pytest.mark.parametrize(("pairs", "theta"), [(10, 0.1), (10, 0.3), (25, 0.05), (25, 0.2)])
def test_the_bound_of_pairs_is_that_of_the_worst_unimodal_law(pairs, theta):
    """A column is kept only if both halves of a share of at least 2 t - 1 of the pairs choose it."""
    for step in (2, 3, pairs // 2, pairs - 2, pairs):
        threshold = 0.5 + step / (2 * pairs)
        want = largest_tail(threshold, pairs, theta)
        bound = bound_factor(threshold, pairs, theta) * theta**2
        assert want <= bound * (1 + 1e-9)
        assert bound <= 1.6 * want


@settings(deadline=None, max_examples=60)
@given(step=st.integers(1, 50), theta=st.floats(0.001, 1))
def test_pairs_never_bound_worse_and_stricter_is_tighter(step, theta):
    threshold = 0.5 + step / 100
    ours, plain = bound_factor(threshold, 50, theta), bound_factor(threshold, None, theta)
    assert ours <= plain == pytest.approx(1 / (2 * threshold - 1))
    assert bound_factor(threshold + 0.01, 50, theta) <= ours * (1 + 1e-9)
    assert bound_factor(0.5, 50, theta) == np.inf


def test_the_threshold_is_the_smallest_that_keeps_the_bound(planted):
    for sampling, pairs in (("pairs", 20), ("halves", None)):
        model = StabilitySelection(expected_false=0.5, n_pairs=20, sampling=sampling).fit(planted.X, planted.y)
        assert model.q_ == 4
        assert model.expected_false_ == expected_false(model.threshold_, 4, 40, pairs) <= 0.5
        assert expected_false(model.threshold_ - 1 / 40, 4, 40, pairs) > 0.5
        assert set(np.flatnonzero(model.support_)) <= set(planted.support)
        assert model.support_.sum() >= 3
        np.testing.assert_array_equal(model.support_, model.scores_ >= model.threshold_)
    assert StabilitySelection(threshold=0.9, q=6, n_pairs=2).fit(planted.X, planted.y).expected_false_ > 0


def test_what_was_kept_has_its_name_and_its_share(planted):
    pandas = pytest.importorskip("pandas")
    from ellzero.linear import Lasso

    frame = pandas.DataFrame(planted.X, columns=[f"gene{j}" for j in range(40)])
    model = StabilitySelection(n_pairs=10).fit(frame, planted.y)
    assert set(model.get_feature_names_out()) == {f"gene{j}" for j in planted.support}
    assert model.transform(frame).shape == (100, 4)
    table = coefficient_table(Lasso(0.1).fit(frame, planted.y), frequencies=model.scores_)
    assert [row["frequency"] for row in table.rows()[:4]] == [1.0] * 4


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_columns_have_the_same_shares(planted, form):
    X = planted.X * (abs(planted.X) > 1)
    options = {"n_pairs": 5, "n_alphas": 20}
    dense = StabilitySelection(**options).fit(X, planted.y)
    np.testing.assert_array_equal(StabilitySelection(**options).fit(form(X), planted.y).scores_, dense.scores_)


def test_two_classes_and_units(planted):
    y = np.where(planted.y > 0, "yes", "no")
    model = StabilitySelection(loss="logistic", n_pairs=10, expected_false=2, n_alphas=30).fit(planted.X, y)
    assert set(np.flatnonzero(model.support_)) >= set(planted.support[:2])
    assert set(np.flatnonzero(model.support_)) <= set(planted.support)
    units = StabilitySelection(loss="logistic", n_pairs=10, expected_false=2, n_alphas=30)
    np.testing.assert_array_equal(units.fit(planted.X * np.logspace(-3, 3, 40), y).scores_, model.scores_)


@pytest.mark.parametrize(("settings", "words"), [
    ({"sampling": "pair"}, "did you mean 'pairs'"), ({"loss": "hinge"}, "loss: got 'hinge'"),
    ({"n_pairs": 1}, "n_pairs: got 1"), ({"l1_ratio": 0}, "l1_ratio: got 0"), ({"q": 41}, "q: got 41"),
    ({"threshold": 0.5}, "threshold: got 0.5"), ({"expected_false": 0}, "expected_false: got 0"),
    ({"q": 30, "expected_false": 0.1}, "q: got 30, for which no threshold bounds 0.1"), ({"eps": 1}, "eps: got 1"),
])  # fmt: skip
def test_bad_settings_are_named(planted, settings, words):
    with pytest.raises(InputError, match=words):
        StabilitySelection(**settings).fit(planted.X, planted.y)
