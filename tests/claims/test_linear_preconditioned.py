"""The preconditioned Lasso against the plain one, both tuned by the same cross-validation on the same draws."""

import warnings

import numpy as np
import pytest

from ellzero.linear import PreconditionedLasso, difficulty
from ellzero.rng import rng

KINDS = {"half": (1, 1e-4, 1e-4), "clusters": (20, 1e-4, 1e-1), "levels": (2, 1e-4, 0.3), "independent": (0, 1, 1)}


def instance(kind, seed, n=150, p=500, k=5, hard=True):
    """A design of groups that share a factor up to parts of unlike size, and k random columns that make y.

    Hard coefficients: those of one group cancel in its factor, and each group has the same energy.
    """
    groups, low, high = KINDS[kind]
    generator = rng(seed, "claim", kind)
    X, group = generator.standard_normal((n, p)), np.full(p, -1)
    if groups:
        dependent = np.arange(p) < (p // 2 if kind == "half" else p)
        group[dependent] = np.arange(dependent.sum()) % groups
        size = np.geomspace(low, high, groups)
        X[:, dependent] *= size[group[dependent]]
        X[:, dependent] += generator.standard_normal((n, groups))[:, group[dependent]]
    support, w = generator.choice(p, k, replace=False), np.zeros(p)
    w[support] = generator.standard_normal(k)
    for one in np.unique(group[support]) if hard else ():
        members = support[group[support] == one]
        if one >= 0 and len(members) > 1:
            w[members] -= w[members].mean()
        w[members] *= np.sqrt(n * len(members)) / np.linalg.norm(X[:, members] @ w[members])
    w *= np.sqrt(n) / np.linalg.norm(X @ w)
    return X, X @ w, generator


def risks(kind, seeds, *, hard=True, n_alphas=30):
    """``[seeds, 2]``: the prediction risk of the preconditioned and the plain Lasso, whose path goes further down."""
    rows = []
    for seed in seeds:
        X, signal, generator = instance(kind, seed, hard=hard)
        y = signal + 0.1 * generator.standard_normal(len(signal))
        common = {"fit_intercept": False, "n_alphas": n_alphas, "tol": 1e-4}
        eps = 1e-5 if hard and KINDS[kind][0] else 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the plain path does not always get to its tolerance
            ours = PreconditionedLasso(5, **common).fit(X, y)
            plain = PreconditionedLasso(5, max_directions=0, eps=eps, **common).fit(X, y)
        rows.append([np.mean((model.predict(X) - signal) ** 2) for model in (ours, plain)])
    rows = np.array(rows)
    print(
        f"{kind}, {'hard' if hard else 'plain'} coefficients: mean risk preconditioned {rows[:, 0].mean():.5f}, plain "
        f"{rows[:, 1].mean():.5f}, medians {np.median(rows, axis=0)}, {ours.n_directions_} directions"
    )
    return rows.mean(axis=0)


@pytest.mark.claim("S029")
def test_where_half_the_columns_nearly_depend_the_plain_lasso_fails():
    ours, plain = risks("half", range(2), n_alphas=15)
    assert ours <= 0.1 * plain


@pytest.mark.slow
@pytest.mark.claim("S029")
@pytest.mark.parametrize(("kind", "most"), [("half", 0.05), ("clusters", 0.3), ("levels", 0.1), ("independent", 1.0)])
def test_risk_on_hard_and_on_easy_designs(kind, most):
    """The mean over 20 random supports: in clusters it is the few supports with two of a tight one that count."""
    ours, plain = risks(kind, range(20))
    assert ours <= most * plain
    if kind == "independent":
        assert ours == plain


@pytest.mark.slow
@pytest.mark.claim("S029")
def test_where_the_dependence_does_not_matter_free_directions_cost_a_little():
    """Near copies in 20 clusters, coefficients that do not cancel: the plain Lasso is better, by noise / n a piece."""
    ours, plain = risks("clusters", range(20), hard=False)
    assert ours - plain <= 2 * 20 * 0.1**2 / 150


@pytest.mark.claim("S029")
@pytest.mark.parametrize("kind", KINDS)
def test_the_diagnostic_says_which_design_is_hard(kind):
    X, _, _ = instance(kind, 0)
    found = difficulty(X, 5)
    print(f"{kind}: {found.rank} directions; quantiles of the smallest singular value {found.quantiles()}")
    hardest = found.quantiles()[0.0]
    assert hardest[1] >= 0.2
    assert (hardest[0] < 0.05) == (kind != "independent")
