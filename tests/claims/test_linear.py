"""Where few coefficients are true: do sparse fits beat a tuned ridge, and is the Lasso's certificate true?"""

import numpy as np
import pytest
from sklearn import linear_model

from ellzero.data.generators import AR, planted_regression
from ellzero.linear import Lasso
from ellzero.linear.frontier import methods, r_squared
from ellzero.parts import penalties
from ellzero.protocol import Data
from ellzero.solvers.coordinate_descent import alpha_max, solve

BUDGETS = (2, 4, 6, 8, 10, 12, 16, 24, 32, 48)
TRIALS = 8


def race(seed, n=150, p=600, k=8, snr=3.0, trials=TRIALS):
    """R^2 on 2000 new rows per method, each with the settings and the count that validation rows chose."""
    planted = planted_regression(2 * n + 2000, p, k, snr=snr, correlation=AR(0.5), seed=seed)
    train, validation, test = ((planted.X[a:b], planted.y[a:b]) for a, b in ((0, n), (n, 2 * n), (2 * n, None)))
    data, scores, found = Data(train, validation), {}, {}
    for name in ("ridge", "lasso", "omp", "iht"):
        method = methods()[name]
        fits = [fit for candidate in method.candidates(trials, 0) for fit in candidate.frontier(data, BUDGETS, 0)]
        best = max(fits, key=lambda fit: fit.score(validation))
        scores[name], found[name] = best.score(test), set(best.model.support)
    scores["truth"] = r_squared(test[1], test[0] @ planted.coef)
    return scores, found, set(planted.support)


def report(runs):
    names = list(runs[0][0])
    print("R^2 on new rows, mean over seeds: "
          + ", ".join(f"{name} {np.mean([scores[name] for scores, _, _ in runs]):.3f}" for name in names))  # fmt: skip
    for name in ("lasso", "omp", "iht"):
        caught = np.mean([len(found[name] & true) / len(true) for _, found, true in runs])
        kept = np.mean([len(found[name]) for _, found, _ in runs])
        print(f"{name}: {caught:.2f} of the true columns among {kept:.1f} kept")


@pytest.mark.claim("Lasso")
def test_sparse_fits_beat_ridge_where_the_truth_is_sparse():
    runs = [race(seed, trials=4) for seed in range(2)]
    report(runs)
    for scores, _, _ in runs:
        for name in ("lasso", "omp", "iht"):
            assert scores["truth"] - scores[name] <= 0.4 * (scores["truth"] - scores["ridge"])


@pytest.mark.slow
@pytest.mark.claim("Lasso")
def test_sparse_fits_beat_ridge_over_ten_draws_and_lose_where_the_truth_is_dense():
    runs = [race(seed) for seed in range(10)]
    report(runs)
    lost = {name: np.mean([scores["truth"] - scores[name] for scores, _, _ in runs]) for name in runs[0][0]}
    for name in ("lasso", "omp", "iht"):
        assert lost[name] <= 0.25 * lost["ridge"]
    dense = [race(seed, k=600, snr=1.0) for seed in range(10)]
    report(dense)
    mean = {name: np.mean([scores[name] for scores, _, _ in dense]) for name in dense[0][0]}
    assert mean["ridge"] >= mean["omp"] + 0.01  # no free lunch: a dense truth is ridge's


@pytest.mark.claim("Lasso")
@pytest.mark.parametrize(("n", "p"), [(100, 400), (400, 100)])
def test_the_certificate_is_true(n, p):
    """The true distance to the optimum is never above the gap, whatever the accuracy of the fit."""
    planted = planted_regression(n, p, 10, snr=5.0, correlation=AR(0.6), seed=0)
    X, y = planted.X, planted.y + 1
    at_zero = ((y - y.mean()) ** 2).mean() / 2

    def objective(coef, intercept, alpha):
        return ((y - X @ coef - intercept) ** 2).mean() / 2 + alpha * abs(coef).sum()

    worst = 0.0
    for share in (0.5, 0.1, 0.01):
        alpha = share * alpha_max(X, y, penalties.L1(1.0))
        theirs = linear_model.Lasso(alpha=alpha, tol=1e-15, max_iter=10**6).fit(X, y)
        best = objective(theirs.coef_, theirs.intercept_, alpha)
        tight = Lasso(alpha, tol=1e-13).fit(X, y)
        assert objective(tight.coef_, tight.intercept_, alpha) <= best + 1e-12 * at_zero
        np.testing.assert_allclose(tight.coef_, theirs.coef_, atol=1e-6)
        for max_iter in (1, 2, 3):
            rough = solve(X, y, penalties.L1(alpha), tol=1e-15, max_iter=max_iter)
            true = (objective(rough.coef, rough.intercept, alpha) - best) / at_zero
            assert true <= rough.gap + 1e-13
            worst = max(worst, true / max(rough.gap, 1e-15)) if rough.gap > 1e-12 else worst
    print(f"largest share of the gap that was true: {worst:.2f}")
