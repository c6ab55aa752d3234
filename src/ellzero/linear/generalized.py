"""Any datafit with any penalty, with ``fit``, ``path`` and ``predict``: the solver follows from what both can do.

Lives here: ``GeneralizedLinearEstimator``, the frame that the other generalized estimators share, and the choice of
solver. Does not live here: the solvers (``solvers``), penalties and datafits (``parts``), least squares with its own
names (``lasso``). The objective is ``mean loss + alpha * penalty``; the intercept is free.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from ellzero.errors import InputError
from ellzero.linear.estimators import _naming_columns as naming_columns
from ellzero.linear.lasso import warn_unless_converged
from ellzero.parts.datafits import Absolute, Quadratic
from ellzero.parts.penalties import L1
from ellzero.registry import register
from ellzero.solvers import conjugate_gradient, coordinate_descent, fista, least_absolute, prox_newton
from ellzero.solvers.operators import need

__all__ = ["Generalized", "GeneralizedLinearEstimator", "checked_weights", "encoded", "pick"]

_DATAFIT = ("value", "gradient", "outputs", "constants", "mean")


def pick(datafit: Any, penalty: Any, outputs: int | None = None) -> SimpleNamespace:
    """The solver for a datafit and a penalty, by what they offer: ``solve`` and ``path`` of ``(x, y, **options)``.

    ======================================== ======================================== ===================
    datafit                                  penalty                                  solver
    ======================================== ======================================== ===================
    ``Quadratic``, one output                separable                                coordinate descent
    ``Absolute``, one output                 ``L1``                                   linear programs
    second derivatives, or ``smoothed``      separable or of groups, with ``alpha``   proximal Newton
    ``lipschitz`` alone: not convex          separable                                conjugate gradient
    second derivatives                       anything with ``prox``                   FISTA
    ======================================== ======================================== ===================

    Raises
    ------
    InputError : naming the capability that is missing.
    """
    need("GeneralizedLinearEstimator", datafit, *_DATAFIT)
    need("GeneralizedLinearEstimator", penalty, "value", "prox")
    separable = hasattr(penalty, "each") and hasattr(penalty, "subdifferential_distance")
    smooth = hasattr(datafit, "hessian_diagonal") or hasattr(datafit, "curvature")
    if isinstance(datafit, Quadratic) and separable and outputs is None:
        return _least(coordinate_descent, penalty, "coordinate descent")
    if isinstance(datafit, Absolute) and isinstance(penalty, L1) and penalty.alpha > 0 and outputs is None:
        return _least(least_absolute, penalty, "linear programs")
    if separable and hasattr(datafit, "lipschitz") and not (smooth or hasattr(datafit, "smoothed")):
        return _general(conjugate_gradient, datafit, penalty, outputs, "conjugate gradient")
    if (separable or hasattr(penalty, "norms")) and hasattr(penalty, "alpha"):
        if not smooth:
            need("GeneralizedLinearEstimator", datafit, "smoothed")
        return _general(prox_newton, datafit, penalty, outputs, "proximal Newton")
    if not smooth:
        raise InputError(
            f"GeneralizedLinearEstimator: got {type(datafit).__name__} with {type(penalty).__name__}; the datafit "
            "lacks 'hessian_diagonal' and the penalty is neither separable nor of groups; want one of the two"
        )
    return _general(fista, datafit, penalty, outputs, "FISTA")


def _least(module: Any, penalty: Any, name: str) -> SimpleNamespace:
    def solve(x, y, start=None, **options):
        if start is not None:
            options["start"] = start[0]
        return module.solve(x, y, penalty, **options)

    def path(x, y, **options):
        return module.path(x, y, penalty, **options)

    return SimpleNamespace(name=name, solve=solve, path=path, outputs=None)


def _general(module: Any, datafit: Any, penalty: Any, outputs: int | None, name: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        solve=lambda x, y, **options: module.solve(x, y, datafit, penalty, **options),
        path=lambda x, y, **options: module.path(x, y, datafit, penalty, **options),
        outputs=outputs,
    )


class Generalized(BaseEstimator):
    """Input checks, the fit, its path and its predictions, for a subclass that gives ``_parts() -> datafit, penalty``.

    A subclass may turn y into what its datafit takes with ``_targets(X, y)``.
    """

    fit_intercept = True
    warm_start = False

    def _parts(self) -> tuple[Any, Any]:
        raise NotImplementedError

    def _targets(self, y: Any) -> np.ndarray:
        return np.asarray(y, dtype=np.float64)

    def _validated(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        with naming_columns(X):
            X, y = validate_data(
                self, X, y, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), multi_output=True
            )
        return X, self._targets(y)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Generalized:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and the targets.

        ``sample_weight`` ``[n]`` weighs the losses; only ratios matter.
        """
        X, y, solver, column = self._problem(X, y)
        options = self._settings()
        if self.warm_start and hasattr(self, "coef_"):
            shape = (X.shape[1],) if solver.outputs is None else (X.shape[1], solver.outputs)
            if self.coef_.size == np.prod(shape):
                options["start"] = (np.asarray(self.coef_).T.reshape(shape), np.squeeze(self.intercept_))
        fitted = solver.solve(X, y, sample_weight=checked_weights(sample_weight, X), **options)
        self._store(fitted._replace(coef=fitted.coef[:, None], intercept=np.array([fitted.intercept])) if column
                    else fitted)  # fmt: skip
        self.solver_ = solver.name
        warn_unless_converged(self, self.dual_gap_, self.n_iter_)
        return self

    def path(self, X: Any, y: Any, *, alphas: Any = None, n_alphas: int = 100, eps: float | None = None,
             sample_weight: Any = None) -> prox_newton.Path:  # fmt: skip
        """Fits along falling alphas, each started from the one before; this estimator's own ``alpha`` is not used.

        Parameters
        ----------
        alphas : default ``n_alphas`` of them, geometric, from where all penalised coefficients are 0 down to ``eps``
            times that (default 1e-2 for fewer rows than columns, else 1e-4).

        Returns
        -------
        Path : ``alphas`` ``[n_alphas]``, ``coefs`` ``[p, n_alphas]`` or ``[p, outputs, n_alphas]``, ``intercepts``,
            ``gaps``, ``n_iters``, ``converged``.
        """
        X, y, solver, _ = self._problem(X, y)
        options = {"alphas": alphas, "n_alphas": n_alphas, "eps": eps, **self._settings()}
        return solver.path(X, y, sample_weight=checked_weights(sample_weight, X), **options)

    def _problem(self, X: Any, y: Any) -> tuple[Any, np.ndarray, SimpleNamespace, bool]:
        """Checked input, the solver, and whether y was one column, which is solved as a vector."""
        self._parts()  # settings are refused before the data are looked at
        X, y = self._validated(X, y)
        datafit, penalty = self._parts()  # the number of classes may choose the datafit
        column = datafit.outputs(y) == 1 and (hasattr(penalty, "each") or hasattr(penalty, "norms"))
        y = y[:, 0] if column else y
        return X, y, pick(datafit, penalty, datafit.outputs(y)), column

    def _settings(self) -> dict[str, Any]:
        return {"fit_intercept": self.fit_intercept, "tol": self.tol, "max_iter": self.max_iter}

    def _store(self, fitted: Any) -> None:
        self.coef_, self.intercept_ = fitted.coef.T, fitted.intercept
        self.dual_gap_, self.n_iter_, self.converged_ = fitted.gap, max(fitted.n_iter, 1), fitted.converged

    def _linear(self, X: Any) -> np.ndarray:
        """``X w + b``: ``[n]`` or ``[n, outputs]``."""
        check_is_fitted(self)
        with naming_columns(X):
            X = validate_data(self, X, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), reset=False)
        return X @ np.asarray(self.coef_).T + self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


@register(
    kind="estimator", wing="linear", source="Nelder and Wedderburn (1972); Friedman, Hastie and Tibshirani (2010)",
    example=lambda: GeneralizedLinearEstimator(),
)  # fmt: skip
class GeneralizedLinearEstimator(RegressorMixin, Generalized):
    """Minimise ``f(y, X w + b) + penalty(w)`` for any datafit and penalty; ``pick`` says which solver does it.

    Parameters
    ----------
    datafit : of ``ellzero.parts``, such as ``Huber(1.35)``, ``Poisson()``, ``Logistic()``; default ``Quadratic()``.
    penalty : of ``ellzero.parts.penalties``, with its alpha, weights and sign; default ``L1(0.1)``.
    fit_intercept : whether b is fitted (never penalised).
    tol : ends the fit. For a convex penalty with a dual, the duality gap relative to that of the null model; for others
        the distance to stationarity relative to the gradient at w = 0.
    max_iter : working sets at most (rounds of 100 steps for FISTA).
    warm_start : whether a second ``fit`` starts from the coefficients of the first.

    Attributes
    ----------
    coef_ : ``[p]``, or ``[outputs, p]`` for y ``[n, outputs]``. intercept_. dual_gap_ : what ``tol`` bounds. n_iter_.
    converged_. solver_ : its name. classes_ : the two labels, where the datafit is one of labels.

    Notes
    -----
    ``predict`` gives what is expected of y: ``exp(X w + b)`` for Poisson, a label for datafits of labels, ``X w + b``
    for others.

    Raises
    ------
    InputError : a datafit or penalty that lacks what every solver needs, by name; targets outside the datafit's domain.
    """

    def __init__(self, datafit=None, penalty=None, *, fit_intercept=True, tol=1e-6, max_iter=100, warm_start=False):
        self.datafit = datafit
        self.penalty = penalty
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _parts(self):
        datafit = Quadratic() if self.datafit is None else self.datafit
        need("GeneralizedLinearEstimator", datafit, *_DATAFIT)
        return datafit, L1(0.1) if self.penalty is None else self.penalty

    def _targets(self, y):
        if not self._labels():
            return np.asarray(y, dtype=np.float64)
        self.classes_, numbers = encoded(y)
        if len(self.classes_) > 2:
            raise InputError(
                f"y: got {len(self.classes_)} classes, want two for {type(self._parts()[0]).__name__}. Only binary "
                "classification is supported. The type of the target is multiclass."
            )
        return 2.0 * numbers - 1

    def _labels(self) -> bool:
        return bool(getattr(self._parts()[0], "labels", False))

    @available_if(lambda self: self._labels())
    def decision_function(self, X: Any) -> np.ndarray:
        """``X w + b`` ``[n]``, above 0 for the second label; for datafits of labels only."""
        return self._linear(X)

    def predict(self, X: Any) -> np.ndarray:
        """What is expected of y, ``[n]`` or ``[n, outputs]``."""
        z = self._linear(X)
        return self.classes_[(z > 0).astype(int)] if self._labels() else self._parts()[0].mean(z)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2, or the share of right labels."""
        mixin = ClassifierMixin if self._labels() else RegressorMixin
        return mixin.score(self, X, y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        if self._labels():
            tags.estimator_type, tags.regressor_tags = "classifier", None
            tags.classifier_tags = ClassifierMixin.__sklearn_tags__(_Bare()).classifier_tags
            tags.classifier_tags.multi_class = False
            tags.target_tags.required = True
        else:
            tags.target_tags.multi_output = True
        return tags


def encoded(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The classes in order, at least two, and the number of each sample's."""
    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"y: got 1 class ({classes[0]}), want at least two")
    return classes, numbers


class _Bare(ClassifierMixin, BaseEstimator):
    """A classifier, for its tags."""


def checked_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    """``[n]`` weights of samples, a number among them spread, or ``None``."""
    return None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
