"""Sparse Bayesian learning: what it finds, and at what cost, against tuned baselines on the same draws."""

import numpy as np
import pytest
from sklearn.linear_model import LassoCV
from sklearn.model_selection import GridSearchCV

from ellzero.data.generators import AR, planted_regression
from ellzero.linear import SparseBayesianRegression

SHARES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)  # of the variance of y that is noise


def against_the_lasso(n, p, k, snr, draws):
    """Relative error and F1 of the support, of both with their one setting cross-validated; medians."""
    rows = []
    for seed in range(draws):
        planted = planted_regression(n, p, k, snr=snr, correlation=AR(0.5), amplitude="normal", seed=seed)
        grid = {"noise": [share * planted.y.var() for share in SHARES]}
        search = GridSearchCV(SparseBayesianRegression(), grid, cv=5).fit(planted.X, planted.y)
        row = []
        for coef in (search.best_estimator_.coef_, LassoCV(cv=5).fit(planted.X, planted.y).coef_):
            kept = np.flatnonzero(abs(coef) > 0.01)
            both = len(np.intersect1d(kept, planted.support))
            error = np.linalg.norm(coef - planted.coef) / np.linalg.norm(planted.coef)
            row += [error, 2 * both / (len(kept) + k)]
        rows.append(row)
    error, f1, lasso_error, lasso_f1 = np.median(rows, axis=0)
    print(f"n={n} p={p} k={k} snr={snr}: error {error:.3f}, F1 {f1:.2f}; Lasso {lasso_error:.3f}, {lasso_f1:.2f}")
    return error, f1, lasso_error, lasso_f1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_nearer_and_sparser_than_the_lasso():
    error, f1, lasso_error, lasso_f1 = against_the_lasso(120, 300, 8, 30, draws=3)
    assert error <= 0.8 * lasso_error
    assert f1 >= lasso_f1 + 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_nearer_and_sparser_than_the_lasso_over_sizes():
    for n, p, k, snr in ((200, 400, 15, 10), (120, 400, 15, 10), (120, 400, 15, 100)):
        error, f1, lasso_error, lasso_f1 = against_the_lasso(n, p, k, snr, draws=6)
        assert error <= 0.85 * lasso_error
        assert f1 >= lasso_f1 + 0.1
