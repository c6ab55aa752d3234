"""Sparse linear regression: estimators in scikit-learn's form, and the methods that the comparison runs.

Lives here: ``Lasso``, ``ElasticNet``, ``MCPRegression``, ``SCADRegression`` (``lasso``), their choice of alpha
(``lasso_cv``), ``IterativeHardThresholding`` (``estimators``), greedy pursuit of any loss (``pursuit``), recovery from
few measurements (``recovery``, ``phase_retrieval``), and ridge, Lasso, OMP and IHT as methods with a frontier
(``frontier``).
Does not live here: the algorithms (``solvers``), penalties (``parts``), data and the question asked of it
(``compare.tasks.regression``).
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ActiveSources": "source_selection",
        "CoxRegression": "survival",
        "ElasticNet": "lasso",
        "ElasticNetCV": "lasso_cv",
        "FrameModel": "frame_model",
        "GeneralizedLinearEstimator": "generalized",
        "GroupLasso": "group_lasso",
        "HardThresholdingPursuit": "recovery",
        "IterativeHardThresholding": "estimators",
        "KneserNey": "kneser_ney",
        "KnockoffSelection": "knockoffs",
        "LADLasso": "robust",
        "L1Representer": "representer",
        "LassoBandit": "sparse_bandits",
        "Lasso": "lasso",
        "LassoCV": "lasso_cv",
        "MCPRegression": "lasso",
        "MutualInformationScreening": "screening",
        "NuclearRepresenter": "representer",
        "NullSpaceTuning": "recovery",
        "OrthogonalMatchingPursuit": "pursuit",
        "PreconditionedLasso": "preconditioned",
        "QGaussianRegression": "q_gaussian",
        "SCADRegression": "lasso",
        "SequentialAttention": "sequential_attention",
        "SigLasso": "sig_lasso",
        "SparseBayesianRegression": "bayes",
        "SparseLogisticRegression": "logistic",
        "SparseLogisticRegressionCV": "logistic_cv",
        "SparseNonNegativeLM": "language_model",
        "SparsePhaseRetrieval": "phase_retrieval",
        "SparseElimination": "sparse_bandits",
        "SparseProbe": "probing",
        "SparseWithinSparseGP": "gaussian_process",
        "SquareRootLasso": "robust",
        "StabilitySelection": "stability",
        "bootstrap_path": "resampling",
        "coefficient_table": "tables",
        "cross_validate_path": "bundles",
        "difficulty": "preconditioned",
        "fit_bundle": "bundles",
        "kronecker_bayes": "ellzero.solvers.kronecker_bayes",
        "orthogonal_mp": "pursuit",
        "permutation_test": "resampling",
    },
    ("artefact", "bayes", "best_subset", "bundles", "concepts", "contexts", "estimators", "frame_model", "frontier",
     "gaussian_process", "generalized", "group_lasso", "information", "judge", "kneser_ney", "knockoffs",
     "language_model", "lasso", "lasso_cv", "logistic", "logistic_cv", "neurons", "phase_retrieval",
     "preconditioned", "probes", "probing", "pursuit", "q_gaussian", "recovery", "recovery_methods", "representer",
     "resampling", "restricted", "robust", "screening", "selection", "sequential_attention", "sig_lasso", "signatures",
     "source_selection", "sparse_bandits", "stability", "survival", "tables"),
)  # fmt: skip
