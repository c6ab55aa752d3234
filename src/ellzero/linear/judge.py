"""The fixed judge of a choice of columns: a small network trained on those columns alone.

Lives here: ``Judge``, its training, prediction in plain NumPy, and its file. Does not live here: who chooses the
columns (``selection``). Every choice gets the same network, settings and seed, so that only the choice differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.rng import rng

__all__ = ["KIND", "VERSION", "Judge"]

KIND, VERSION = "column-judge", 1
HIDDEN, STEPS, BATCH = 67, 600, 256
_WEIGHTS = ("first", "first_bias", "second", "second_bias")


@dataclass(frozen=True, eq=False)
class Judge:
    """``softmax(relu(z @ A + a) @ B + b)`` on the standardised chosen columns ``z``.

    ``weights`` are ``(A, a, B, b)``; ``means, scale`` belong to the chosen columns; ``columns`` names all columns.
    """

    support: np.ndarray
    means: np.ndarray
    scale: np.ndarray
    weights: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    target: str = "class"

    @classmethod
    def train(
        cls, X: np.ndarray, y: np.ndarray, support: np.ndarray, seed: int, *, columns: Sequence[str],
        classes: Sequence[str], target: str = "class",
    ) -> Judge:  # fmt: skip
        """Train on rows ``X [n, p]`` and classes ``y [n]`` (0, 1, ...): 67 hidden units, about 600 steps of Adam."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        support = np.sort(np.asarray(support, dtype=np.int64))
        kept = np.asarray(X[:, support], dtype=np.float64)
        means, scale = kept.mean(0), kept.std(0)
        scale = np.where(scale > 1e-12 * np.maximum(abs(means), 1e-300), scale, 1.0)
        epochs = max(1, round(STEPS * BATCH / max(len(X), BATCH)))
        state = int(rng(seed, "judge").integers(2**31))
        net = MLPClassifier(
            (HIDDEN,), alpha=1e-3, learning_rate_init=3e-3, batch_size=min(BATCH, len(X)), max_iter=epochs,
            n_iter_no_change=epochs, random_state=state,
        )  # fmt: skip
        with warnings.catch_warnings():  # the number of steps is part of the judge
            warnings.simplefilter("ignore", ConvergenceWarning)
            net.fit((kept - means) / scale, y)
        if len(net.classes_) != len(classes):
            raise InputError(f"y: {len(net.classes_)} classes in the training part, want all {len(classes)}")
        (A, B), (a, b) = net.coefs_, net.intercepts_
        if len(classes) == 2:  # scikit-learn keeps one logit for two classes
            B, b = np.hstack([np.zeros_like(B), B]), np.append(0.0, b)
        return cls(support, means, scale, (A, a, B, b), tuple(columns), tuple(classes), target)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the columns that it reads."""
        return tuple(self.columns[j] for j in self.support)

    @property
    def nbytes(self) -> int:
        """All stored numbers."""
        return sum(x.nbytes for x in (self.means, self.scale, *self.weights)) + 4 * len(self.support)

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """``[n, classes]`` for rows of all columns, in the order of ``columns``."""
        return self.probabilities_kept(np.asarray(X)[:, self.support])

    def probabilities_kept(self, X: np.ndarray) -> np.ndarray:
        """``[n, classes]`` for rows of the kept columns alone."""
        A, a, B, b = self.weights
        return softmax(np.maximum((X - self.means) / self.scale @ A + a, 0) @ B + b, axis=1)

    def save(self, directory: Path) -> None:
        """Write ``model.safetensors`` into an existing folder."""
        tensors = {"support": self.support, "means": self.means, "scale": self.scale}
        tensors |= dict(zip(_WEIGHTS, self.weights))
        meta = {"columns": list(self.columns), "classes": list(self.classes), "target": self.target}
        artefacts.save(Path(directory) / "model.safetensors", tensors, meta, KIND, VERSION)

    @classmethod
    def load(cls, directory: Path) -> Judge:
        """The inverse of ``save``; ``InputError`` for a missing, torn, foreign or newer file."""
        path = Path(directory) / "model.safetensors"
        tensors, meta = artefacts.load(path, KIND, version=VERSION)
        support, weights = tensors["support"], tuple(tensors[name] for name in _WEIGHTS)
        if not len(support) == len(weights[0]) or (support.max(initial=0) >= len(meta["columns"])):
            raise InputError(f"{path}: its weights do not fit its {len(support)} columns")
        return cls(
            support, tensors["means"], tensors["scale"], weights, tuple(meta["columns"]), tuple(meta["classes"]),
            meta["target"],
        )  # fmt: skip
