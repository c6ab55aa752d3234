"""Times to an event, some of them only known to be longer: Cox's model with ``fit``, ``path`` and survival curves.

Lives here: ``CoxRegression``, with its forms of y, the baseline hazard and the concordance. Does not live here: the
partial likelihood (``parts.datafits_survival``), the solver (``solvers.prox_newton``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.linear.generalized import Generalized, checked_weights
from ellzero.parts.datafits_survival import Cox
from ellzero.parts.penalties import L1, ElasticNet
from ellzero.registry import register

__all__ = ["CoxRegression", "concordance"]


@register(
    kind="estimator", wing="linear", source="Cox (1972); Tibshirani (1997); Simon et al. (2011)",
    example=lambda: CoxRegression(0.1),
)  # fmt: skip
class CoxRegression(Generalized):
    """Hazards ``h_0(t) exp(X w)`` from right-censored times: few columns, of any shape of the baseline h_0.

    Minimises minus the log partial likelihood over the sum of weights, plus
    ``alpha sum_j weight_j (r |w_j| + (1 - r) w_j^2 / 2)``, r = ``l1_ratio``. Cox (1972); Simon, Friedman, Hastie and
    Tibshirani (2011), equation 5.

    Parameters
    ----------
    alpha : strength of the penalty, at least 0. Scale the columns alike: the penalty is blind to their units.
    l1_ratio : 1 for the L1 penalty, less for the elastic net.
    ties : ``"breslow"`` or ``"efron"``, for events at equal times.
    tol : duality gap, relative to that of the null model, that ends the fit.
    max_iter : working sets at most.
    positive : demand w >= 0.
    weights : ``[p]`` factors of the penalty; 0 leaves a column unpenalised, infinity excludes it.
    warm_start : whether a second ``fit`` starts from the coefficients of the first.

    Attributes
    ----------
    coef_ : ``[p]`` log hazard ratios. baseline_times_, baseline_hazard_ : the times with events, rising, and the
    cumulative hazard of ``X w = 0`` at each. dual_gap_ : the certified relative gap. n_iter_. converged_.

    Raises
    ------
    InputError : y of another form, no event, a setting out of range, or a column with text or missing values, by name.
    """

    fit_intercept = False

    def __init__(
        self, alpha=0.1, *, l1_ratio=1.0, ties="breslow", tol=1e-6, max_iter=100, positive=False, weights=None,
        warm_start=False,
    ):  # fmt: skip
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.ties = ties
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _parts(self) -> tuple[Any, Any]:
        if self.l1_ratio == 1:
            return Cox(self.ties), L1(self.alpha, weights=self.weights, positive=self.positive)
        penalty = ElasticNet(self.alpha, self.l1_ratio, weights=self.weights, positive=self.positive)
        return Cox(self.ties), penalty

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> CoxRegression:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and the times.

        Parameters
        ----------
        y : ``[n, 2]``: the time, and 1 where the event was seen then, 0 where the sample was lost from sight; or a
            structured array with one field of numbers and one of truth values; or ``[n]`` times, all with events.
        sample_weight : ``[n]`` weighs the samples; only ratios matter.
        """
        y = times_and_events(y)
        super().fit(X, y, sample_weight)
        weights = checked_weights(sample_weight, y)
        self.baseline_times_, self.baseline_hazard_ = Cox(self.ties).baseline(y, self.predict(X), weights)
        return self

    def path(self, X: Any, y: Any, **options: Any) -> Any:
        """Fits along falling alphas, as ``Lasso.path``; y as in ``fit``."""
        return super().path(X, times_and_events(y), **options)

    def predict(self, X: Any) -> np.ndarray:
        """Log hazard ratios ``X w`` ``[n]``: the larger, the sooner the event."""
        return self._linear(X)

    def predict_survival(self, X: Any, times: Any) -> np.ndarray:
        """``[n, times]`` probabilities that the event comes later than each time."""
        ratios = np.exp(self.predict(X).astype(np.float64))
        times = check_array("times", np.asarray(times, dtype=np.float64), ndim=1)
        place = np.searchsorted(self.baseline_times_, times, side="right")
        return np.exp(-ratios[:, None] * np.concatenate([[0.0], self.baseline_hazard_])[place])

    def score(self, X: Any, y: Any) -> float:
        """The concordance of predictions and times: 1 for the right order, 0.5 for chance."""
        return concordance(y, self.predict(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def times_and_events(y: Any) -> np.ndarray:
    """``[n, 2]`` of times and events (1 or 0), from any form that ``CoxRegression.fit`` takes."""
    if y is None:
        raise InputError("y: got None, want times and events; requires y to be passed, but the target y is None")
    names = getattr(getattr(y, "dtype", None), "names", None)
    if names:
        seen = [name for name in names if y.dtype[name].kind == "b"]
        if len(names) != 2 or len(seen) != 1:
            raise InputError(f"y: got the fields {', '.join(names)}, want one of truth values and one of times")
        y = np.stack([y[next(name for name in names if name != seen[0])], y[seen[0]]], axis=1)
    y = np.asarray(y, dtype=np.float64)
    return np.stack([y, np.ones(len(y))], axis=1) if y.ndim == 1 else y


def concordance(y: Any, risk: Any) -> float:
    """The share of comparable pairs in which the sample with the earlier event has the larger risk; ties count half.

    A pair is comparable where the earlier time is an event, or both are at one time and one of them is. Harrell,
    Lee and Mark (1996).
    """
    y = Cox().check_targets(times_and_events(y))
    risk = check_array("risk", np.asarray(risk, dtype=np.float64), shape=(len(y),))
    right, pairs = 0.0, 0
    for i in np.flatnonzero(y[:, 1]):
        later = risk[(y[:, 0] > y[i, 0]) | ((y[:, 0] == y[i, 0]) & (y[:, 1] == 0))]
        right += float((later < risk[i]).sum()) + 0.5 * float((later == risk[i]).sum())
        pairs += len(later)
    if not pairs:
        raise InputError("y: got no two times that can be compared, want an event before another time")
    return right / pairs
