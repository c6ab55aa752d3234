"""Laws of the loss of sparse models: fitted, judged by bootstrap, and asked what sparsity is best.

Lives here: ``fit_scaling_law`` (sparsity, non-zero parameters, data), ``fit_average_law`` (average parameter count),
``average_parameters``, ``training_cost``. Does not live here: training runs, schedules (``parts.schedules``).
A law is fitted to logarithms of losses under the Huber loss, from many random starts; its coefficients are rarely
identified, so compare predictions and mind ``identified``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize_scalar

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["AverageLaw", "ScalingLaw", "average_parameters", "fit_average_law", "fit_scaling_law", "training_cost"]


@dataclass(frozen=True)
class _Law:
    """Coefficients that are all positive, the scales of the inputs, and what the bootstrap found."""

    coefficients: dict[str, float]
    scales: tuple[float, ...]
    r2: float
    """Of the losses themselves, on the rows of the fit."""
    largest_error: float
    """Largest relative error on those rows."""
    bootstrap: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    """``[resamples, coefficients]``."""

    def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Of each coefficient: the middle ``level`` of its bootstrap values."""
        check("level", level, above=0, below=1)
        if not len(self.bootstrap):
            raise InputError("intervals: the law was fitted with bootstrap=0, want at least 20 resamples")
        low, high = np.quantile(self.bootstrap, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return dict(zip(self.coefficients, zip(low.tolist(), high.tolist())))

    @property
    def identified(self) -> dict[str, bool]:
        """Of each coefficient: whether the upper end of its 90 % interval is at most twice the lower."""
        return {name: bool(high <= 2 * low) for name, (low, high) in self.intervals().items()}

    def _predict(self, columns: Sequence[Any], level: float | None) -> Any:
        columns = np.broadcast_arrays(*(np.asarray(column, dtype=np.float64) for column in columns))
        inputs = [column / scale for column, scale in zip(columns, self.scales)]
        found = self._terms(np.log(list(self.coefficients.values())), inputs)[0]
        if level is None:
            return found if found.ndim else float(found)
        check("level", level, above=0, below=1)
        if not len(self.bootstrap):
            raise InputError("level: the law was fitted with bootstrap=0, want at least 20 resamples")
        drawn = np.stack([self._terms(np.log(row), inputs)[0] for row in self.bootstrap])
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return found, low, high


@register(
    id="S064", kind="method", wing="network", source="arXiv:2309.08520",
    claim="one law foretells the loss of larger sparse models, and the best sparsity grows with the data",
)  # fmt: skip
@dataclass(frozen=True)
class ScalingLaw(_Law):
    """``L = (a_S (1 - S)^b_S + c_S) n^-b_N + (a_D / d)^b_D + c``: Frantar et al. (2024), equation 1.

    ``S`` is the sparsity, ``n`` the non-zero parameters and ``d`` the data, both over ``scales``. ``d`` counts what was
    seen in training, in any unit, as long as it is always the same one.
    """

    @staticmethod
    def _terms(logs: np.ndarray, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Losses ``[rows]``, and their derivatives by the logarithms of the coefficients ``[rows, 7]``."""
        a_s, b_s, c_s, b_n, a_d, b_d, c = np.exp(np.clip(logs, -60, 60))
        sparsity, n, d = inputs
        kept = np.log1p(-sparsity)
        fall, grown = a_s * np.exp(b_s * kept), np.exp(-b_n * np.log(n))
        ratio = np.log(a_d) - np.log(d)
        data = np.exp(np.clip(b_d * ratio, -60, 60))
        size = (fall + c_s) * grown
        parts = (fall * grown, fall * grown * b_s * kept, c_s * grown, -size * b_n * np.log(n),
                 b_d * data, b_d * ratio * data, np.full_like(data, c))  # fmt: skip
        return size + data + c, np.stack(np.broadcast_arrays(*parts), axis=-1)

    def predict(self, sparsity: Any, nonzeros: Any, data: Any, *, level: float | None = None) -> Any:
        """The loss; inputs broadcast. With ``level``: the loss, and the ends of its bootstrap interval."""
        return self._predict((_sparsity(sparsity), _positive("nonzeros", nonzeros), _positive("data", data)), level)

    def effective_size(self, sparsity: Any, nonzeros: Any) -> Any:
        """Parameters of the dense model with the same loss: equation 5 of the paper, whatever the data."""
        at = self.coefficients
        kept = np.power(1 - _sparsity(sparsity), at["b_S"])
        gain = ((at["a_S"] + at["c_S"]) / (at["a_S"] * kept + at["c_S"])) ** (1 / at["b_N"])
        return gain * _positive("nonzeros", nonzeros)

    def optimal_sparsity(
        self, nonzeros: float, data: float, *, cost: Callable[[float], float] | None = None, largest: float = 0.99
    ) -> float:
        """The sparsity of the least loss at ``nonzeros`` parameters and the compute of ``data`` on a dense model.

        Parameters
        ----------
        data : what a dense model of ``nonzeros`` parameters would see; a sparser one, which is larger for most of its
            training, sees ``data / cost(S)``.
        cost : times the dense model's; default ``training_cost``.
        largest : sparsities beyond it are not asked for; 0.99 as the answer means that it is at least so.
        """
        _positive("nonzeros", nonzeros)
        _positive("data", data)
        check("largest", largest, above=0, below=1)
        cost = training_cost if cost is None else cost

        def loss(kept: float) -> float:
            sparsity = -math.expm1(kept)
            return self.predict(sparsity, nonzeros, data / cost(sparsity))

        # In log(1 - S), where the law is smooth; a grid first, for the loss may fall at both ends.
        grid = np.linspace(math.log1p(-largest), 0.0, 200)
        values = [loss(kept) for kept in grid]
        best = int(np.argmin(values))
        ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        refined = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
        return float(-math.expm1(refined.x if refined.fun < values[best] else grid[best]))


@register(
    id="S150", kind="method", wing="network", source="arXiv:2501.12486",
    claim="sparse and dense runs of equal average parameter count end within a few per cent of each other",
)  # fmt: skip
@dataclass(frozen=True)
class AverageLaw(_Law):
    """``L = E + A / n^alpha + B / d^beta`` with ``n`` the average parameter count: Jin et al. (2025), equation 3.

    For a dense run that count is the size of the model, and this is the law of Hoffmann et al. (2022). Embeddings are
    not counted. On the 48 published runs of ``data.sets.scaling_runs`` R2 is 0.978 by the average and 0.928 by the last
    count. Transformers on characters, 300 steps, two seeds: sparse runs end 0.4 and 1.2 % above dense ones of the same
    average. That the middle half of the run is the best window did not show there: at equal cost the first half gave
    1.991 nats, the middle 2.114, the last 2.245, for so few steps an earlier cut buys more of them.
    """

    @staticmethod
    def _terms(logs: np.ndarray, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        least, a, alpha, b, beta = np.exp(np.clip(logs, -60, 60))
        n, d = (np.log(column) for column in inputs)
        size, data = a * np.exp(-alpha * n), b * np.exp(-beta * d)
        parts = (np.full_like(size, least), size, -size * alpha * n, data, -data * beta * d)
        return least + size + data, np.stack(np.broadcast_arrays(*parts), axis=-1)

    def predict(self, parameters: Any, data: Any, *, level: float | None = None) -> Any:
        """The loss; inputs broadcast. With ``level``: the loss, and the ends of its bootstrap interval."""
        return self._predict((_positive("parameters", parameters), _positive("data", data)), level)


def fit_scaling_law(
    sparsity: Any,
    nonzeros: Any,
    data: Any,
    loss: Any,
    *,
    delta: float = 1e-3,
    restarts: int = 40,
    bootstrap: int = 100,
    seed: int = 0,
) -> ScalingLaw:
    """``ScalingLaw`` from finished runs: ``[runs]`` sparsities, non-zero parameters, data seen and losses.

    Parameters
    ----------
    delta : from where the Huber loss on ``log L`` is linear; 1e-3 for language, 1e-2 for vision in the paper.
    restarts : random starts; the best fit is kept.
    bootstrap : resamples of the runs, for intervals; 0: none.
    seed : of starts and resamples.

    Warns
    -----
    UserWarning : coefficients that the runs do not identify, by their bootstrap intervals.

    Raises
    ------
    InputError : fewer runs than coefficients, or only one sparsity, size or amount of data.
    """
    columns = _columns(sparsity=_sparsity(sparsity), nonzeros=_positive("nonzeros", nonzeros),
                       data=_positive("data", data), loss=_positive("loss", loss))  # fmt: skip
    names = ("a_S", "b_S", "c_S", "b_N", "a_D", "b_D", "c")
    ranges = ((1e-2, 1e2), (0.1, 2), (1e-2, 1e2), (0.05, 1), (1e-4, 1e1), (0.05, 1), (1e-1, 1e0))
    return _fit(ScalingLaw, names, ranges, columns, delta, restarts, bootstrap, seed)


def fit_average_law(
    parameters: Any,
    data: Any,
    loss: Any,
    *,
    delta: float = 1e-3,
    restarts: int = 40,
    bootstrap: int = 100,
    seed: int = 0,
) -> AverageLaw:
    """``AverageLaw`` from finished runs: ``[runs]`` average parameter counts, data seen and losses.

    The options, warnings and errors are those of ``fit_scaling_law``.
    """
    columns = _columns(parameters=_positive("parameters", parameters), data=_positive("data", data),
                       loss=_positive("loss", loss))  # fmt: skip
    ranges = ((1e-1, 1e0), (1e-1, 1e1), (0.05, 1), (1e-1, 1e1), (0.05, 1))
    return _fit(AverageLaw, ("E", "A", "alpha", "B", "beta"), ranges, columns, delta, restarts, bootstrap, seed)


def training_cost(sparsity: float) -> float:
    """Training multiply-adds of a model pruned to ``sparsity``, over those of a dense one of the same final size.

    Dense for a quarter of the run, a cubic for half of it, and sparse for the rest: section 4 of Frantar et al. (2024).
    """
    check("sparsity", sparsity, at_least=0, below=1)
    return (0.25 + 0.5 * (1 - 0.75 * sparsity) + 0.25 * (1 - sparsity)) / (1 - sparsity)


def average_parameters(
    density: Callable[[float, float], float], parameters: float, steps: int, *, tokens: Sequence[float] | None = None
) -> float:
    """Mean over the tokens of a run of the active parameters.

    Parameters
    ----------
    density : a schedule of ``parts.schedules`` from ``(step, steps)`` to the kept share of ``parameters``. For a cubic
        to sparsity S between the fractions a and b the mean is ``a + (b - a)(1 - 3S/4) + (1 - b)(1 - S)``.
    parameters : of the dense model, embeddings left out.
    steps : of the run; a step has the density of its middle.
    tokens : ``[steps]``, where batches differ in size.
    """
    check("parameters", parameters, above=0)
    check_integer("steps", steps, at_least=1)
    shares = np.array([density(step + 0.5, steps) for step in range(steps)])
    if tokens is not None:
        tokens = check_array("tokens", np.asarray(tokens, dtype=np.float64), ndim=1)
        if len(tokens) != steps or not (tokens >= 0).all() or not tokens.sum() > 0:
            raise InputError(f"tokens: got {len(tokens)} counts for {steps} steps, want one at least 0 for each")
    return float(parameters * np.average(shares, weights=tokens))


def _positive(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"{name}: got {values.min() if values.size else values!r}, want positive finite numbers")
    return values


def _sparsity(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not ((values >= 0) & (values < 1)).all():
        raise InputError(f"sparsity: got {values.tolist()}, want shares from 0 to below 1")
    return values


def _columns(**columns: np.ndarray) -> list[np.ndarray]:
    length = len(np.atleast_1d(columns["loss"]))
    for name, column in columns.items():
        if column.ndim != 1 or len(column) != length:
            raise InputError(f"{name}: got the shape {column.shape}, want one number for each of {length} losses")
        if name != "loss" and len(np.unique(column)) < 2:
            raise InputError(f"{name}: got the same value in all runs, want at least two values")
    return list(columns.values())


def _fit(law, names, ranges, columns, delta, restarts, bootstrap, seed) -> Any:
    check("delta", delta, above=0)
    check_integer("restarts", restarts, at_least=1)
    check_integer("bootstrap", bootstrap, at_least=0)
    *inputs, loss = columns
    if len(loss) < len(names):
        raise InputError(f"loss: got {len(loss)} runs, want at least the {len(names)} coefficients")
    scales = tuple(1.0 if (column < 1).all() else float(np.exp(np.log(column).mean())) for column in inputs)
    inputs = [column / scale for column, scale in zip(inputs, scales)]
    draw = rng(seed, "scaling law")
    low, high = np.log(ranges).T
    starts = low + (high - low) * draw.random((restarts, len(names)))
    best = min((_descend(law, start, inputs, loss, delta) for start in starts), key=lambda found: found.cost)
    rows = [draw.integers(len(loss), size=len(loss)) for _ in range(bootstrap)]
    # Not from the best fit itself: where the runs say nothing of a direction, descent would not leave it.
    aside = best.x + 0.5 * draw.standard_normal((bootstrap, len(names)))
    drawn = [
        _descend(law, start, [column[at] for column in inputs], loss[at], delta).x for start, at in zip(aside, rows)
    ]
    predicted = law._terms(best.x, inputs)[0]
    found = law(
        dict(zip(names, np.exp(best.x).tolist())), scales,
        float(1 - ((predicted - loss) ** 2).sum() / ((loss - loss.mean()) ** 2).sum()),
        float(np.abs(predicted / loss - 1).max()), np.exp(drawn) if drawn else np.empty((0, len(names))),
    )  # fmt: skip
    if bootstrap >= 20 and not all(found.identified.values()):
        loose = [name for name, well in found.identified.items() if not well]
        warnings.warn(
            f"coefficients {', '.join(loose)} are not identified by these runs; compare predictions only", stacklevel=3
        )
    return found


def _descend(law, start, inputs, loss, delta):
    target = np.log(loss)

    def off(logs: np.ndarray) -> np.ndarray:
        return np.log(law._terms(logs, inputs)[0]) - target

    def slope(logs: np.ndarray) -> np.ndarray:
        value, parts = law._terms(logs, inputs)
        return parts / value[:, None]

    return least_squares(off, start, slope, loss="huber", f_scale=delta, max_nfev=400)
