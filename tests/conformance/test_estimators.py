"""Every registered estimator: scikit-learn's contract, and what a fit reports about itself."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from ellzero import registry
from ellzero.parts.datafits import Huber, Logistic, Poisson, Quadratic, SquareRoot
from ellzero.parts.penalties import L1, L21, MCP

pytest.importorskip("torch")  # an estimator of the linear wing trains with it
registry.load_all()
ENTRIES = [entry for entry in registry.entries("estimator") if entry.wing in ("linear", "recommend", "autoencoder")]

# The checks fit some fifty times; what searches, resamples or trains does so briefly here.
BRIEF = {
    "ElasticNetCV": {"n_alphas": 8, "cv": 2},
    "KnockoffSelection": {"n_alphas": 8, "cv": 2},
    "LassoCV": {"n_alphas": 8, "cv": 2},
    "PreconditionedLasso": {"n_alphas": 8, "cv": 2},
    "SAETransformer": {"n_components": 24, "k": 3, "steps": 8},
    "SequentialAttention": {"steps": 6, "hidden": ()},
    "SparseBayesianRegression": {"tol": 1e-2},
    "SparseLogisticRegressionCV": {"n_alphas": 2, "eps": 0.3, "cv": 2, "tol": 1e-9},
    "SparseWithinSparseGP": {"n_inducing": 16, "n_neighbors": 4, "steps": 5},
    "StabilitySelection": {"n_pairs": 3, "n_alphas": 8},
}
# Settings that take another road through the code.
ROADS = {
    "CoxRegression": [{"l1_ratio": 0.5}],
    "EASE": [{"dtype": "float64", "keep": 1}],
    "GeneralizedLinearEstimator": [
        {"datafit": Huber(), "penalty": L1(0.01)}, {"datafit": Logistic(), "penalty": L1(0.01)},
        {"datafit": Quadratic(), "penalty": L21(0.1)}, {"datafit": SquareRoot(), "penalty": MCP(0.1)},
    ],
    "GroupLasso": [{"l1_ratio": 0.5, "alpha": 0.3}],
    "OrthogonalMatchingPursuit": [{"loss": "square_root", "alpha": 0.1}, {"loss": "absolute", "k": 1}],
    "SAETransformer": [{"preset": "batchtopk"}, {"preset": "jumprelu", "sparse_output": True}],
    "SparseBayesianRegression": [{"posterior": "messages"}],
    "SparseLogisticRegression": [{"grouped": True, "alpha": 0.1}],
    "SquareRootLasso": [{"alpha": 0.1}],
}  # fmt: skip
SCORES = "predict gives a matrix of scores, one column per item"
EXPECTED = {"recommend": dict.fromkeys(("check_estimator_sparse_array", "check_estimator_sparse_matrix"), SCORES)}
CASES = [
    pytest.param(entry, {**BRIEF.get(entry.name, {}), **road}, id=f"{entry.name}-{place}" if place else entry.name)
    for entry in ENTRIES
    for place, road in enumerate([{}, *ROADS.get(entry.name, [])])
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("entry", "settings"), CASES)
def test_the_contract_of_scikit_learn(entry, settings):
    check_estimator(entry.target(**settings), expected_failed_checks=EXPECTED.get(entry.wing))


def test_the_settings_above_are_of_estimators():
    assert {*BRIEF, *ROADS} <= {entry.name for entry in ENTRIES}


def fitted(entry, settings, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 8))
    estimator = entry.target(**settings)
    y = X[:, 0] - 0.7 * X[:, 2] + 0.3 * rng.normal(size=60)
    counted = isinstance(getattr(estimator, "datafit", None), Poisson) or entry.name == "SparsePhaseRetrieval"
    labelled = estimator.__sklearn_tags__().estimator_type == "classifier"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X, (y > 0).astype(int) if labelled else abs(y) if counted else y)


LINEAR = [case for case in CASES if case.values[0].wing == "linear"]


@pytest.mark.parametrize(("entry", "settings"), LINEAR)
def test_a_fit_says_whether_it_converged_and_how_near_it_is(entry, settings):
    estimator = fitted(entry, settings)
    if not hasattr(estimator, "coef_") or entry.name == "SparseProbe":
        return  # selectors and processes; a probe is a table of small exact fits
    assert estimator.n_iter_ >= 1
    assert np.all(estimator.converged_)
    if {"alpha", "penalty", "alphas"} & set(estimator.get_params()) and hasattr(estimator, "dual_gap_"):
        assert 0 <= estimator.dual_gap_ <= estimator.tol
    else:  # counted or learned sparsity: not convex, and no certificate is claimed
        assert {"k", "posterior"} & set(estimator.get_params())


@pytest.mark.parametrize(("entry", "settings"), LINEAR)
def test_fits_repeat_themselves(entry, settings):
    one, two = fitted(entry, settings), fitted(entry, settings)
    for name, value in vars(one).items():
        if name.endswith("_") and isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(two, name), err_msg=name)
