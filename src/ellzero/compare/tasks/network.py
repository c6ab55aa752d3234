"""The task ``network``: how accurate is a classifier that keeps a small share of its weights?

Lives here: the data, the split, the model that every method trains, and ``apply``. Does not live here: the methods
(``ellzero.network.frontier``). The user's own model and judge join as ``module:function``:
``build() -> torch.nn.Module`` maps float32 rows ``[batch, features]`` to logits ``[batch, classes]``, and
``evaluate(model, X, y) -> float`` judges it, higher being better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ellzero.compare.specs import load_object
from ellzero.data import sets
from ellzero.errors import InputError, check, check_integer
from ellzero.io import artefacts
from ellzero.io.readers import read_matrix, read_table
from ellzero.models.mlp import MLPConfig
from ellzero.network import frontier, packed
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training.loop import seeded

__all__ = ["Network"]

_HIDDEN = {"digits": (256, 128), "mnist": (300, 100)}


@lru_cache(maxsize=4)
def _rows(data: str, target: str | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Rows as float32, classes as 0, 1, ..., and the classes' names."""
    if data in _HIDDEN:
        table = sets.digits() if data == "digits" else sets.mnist().table()
        X = table.X / 16 if data == "digits" else table.X
        return X.astype(np.float32), np.asarray(table.y, np.int64), tuple(str(i) for i in range(10))
    table = read_table(data, target)
    y = np.asarray(table.y)
    X = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    classes, labels = np.unique(y, return_inverse=True)
    if (y.dtype.kind == "f" and (y != np.round(y)).any()) or len(classes) > max(len(y) // 5, 2):
        raise InputError(f"data: {data} has {len(classes)} different targets in {len(y)} rows, want classes")
    if len(classes) < 2 or len(y) < 20:
        raise InputError(f"data: {data} has {len(classes)} classes in {len(y)} rows, want at least 2 in 20")
    named = getattr(table, "classes", None)
    names = tuple(named) if named else tuple(f"{value:g}" for value in classes)
    return X.astype(np.float32), labels.astype(np.int64), names


@register(kind="task", wing="network", source="none", extra="torch", name="network", example=lambda: Network())
@dataclass(frozen=True)
class Network:
    """A classifier on digits or on the user's rows: fidelity against the kept share of its weights.

    Parameters
    ----------
    dataset : ``"digits"`` (1797 of 8 x 8), ``"mnist"`` (10,000 of 28 x 28 from ``ELLZERO_DATA``), or a file that
        ``read_table`` reads, its target being classes.
    target : the file's target column.
    model : ``module:function`` giving a fresh module, which may hold trained weights; None for a multilayer perceptron.
    evaluate : ``module:function(model, X, y)`` giving the fidelity; None for accuracy.
    steps, batch_size : of the training that every method gets.
    include, exclude : names or glob patterns of what takes part in the pruning.
    """

    dataset: str = "digits"
    target: str | None = None
    model: str | None = None
    evaluate: str | None = None
    steps: int = 400
    batch_size: int = 64
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    name: ClassVar[str] = "network"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    unit: ClassVar[str] = "density"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = "64 rows, ordinary dense layers"

    def __post_init__(self):
        check_integer("steps", self.steps, at_least=1)
        check_integer("batch_size", self.batch_size, at_least=1)
        for option in ("model", "evaluate"):
            given = getattr(self, option)
            if given is not None and ":" not in str(given):
                name = "eval" if option == "evaluate" else option
                raise InputError(f"{name}: got {given!r}, want module:function")
        for option in ("include", "exclude"):
            given = getattr(self, option)
            if given is not None:
                object.__setattr__(self, option, (given,) if isinstance(given, str) else tuple(given))

    @property
    def fidelity(self) -> str:
        """The word on the axis."""
        return "accuracy" if self.evaluate is None else self.evaluate.rpartition(":")[2]

    @property
    def bound(self) -> float | None:
        """The best possible fidelity, where it is known."""
        return 1.0 if self.evaluate is None else None

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Network:  # fmt: skip
        """The task from the command line's options."""
        for option, given in (("hook", hook), ("texts", texts)):
            if given is not None:
                raise InputError(f"{option}: the task network takes none, want --data, --model, --eval or --target")
        known = ("steps", "batch_size", "include", "exclude")
        settings = dict(extra or {})
        for option in settings:
            if option not in known:
                raise InputError(f"{option}: the task network takes none, want one of {', '.join(known)}")
        for option in ("steps", "batch_size"):
            if isinstance(settings.get(option), str):
                if not settings[option].isdecimal():
                    raise InputError(f"{option}: got {settings[option]!r}, want a whole number")
                settings[option] = int(settings[option])
        return cls(data or "digits", target, model, eval, **settings)

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Network:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of the rows."""
        X, y, classes = self._rows()
        content = int(np.frombuffer(X.tobytes()[: X.nbytes // 4 * 4], np.uint32).sum(dtype=np.uint64))
        return {
            **json.loads(json.dumps(self.to_spec())), "rows": len(y), "features": X.shape[1], "classes": list(classes),
            "checksum": content + int((y * np.arange(1, len(y) + 1)).sum()),
        }  # fmt: skip

    # -- data

    def _rows(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return _rows(self.dataset, self.target)

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows for training, validation and test: 60, 20 and 20 %, the test rows the same for every seed."""
        n = len(self._rows()[1])
        order = rng(0, "network", "test").permutation(n)
        test, rest = order[: n // 5], order[n // 5 :]
        rest = rest[rng(seed, "network", "validation").permutation(len(rest))]
        return rest[n // 5 :], rest[: n // 5], test

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation rows in the training part too."""
        X, y, _ = self._rows()
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        info = {
            "build": self._build, "spec": self._build_spec(), "steps": self.steps, "batch_size": self.batch_size,
            "include": self.include, "exclude": self.exclude,
            "evaluate": load_object(self.evaluate) if self.evaluate else None,
        }  # fmt: skip
        return Data((X[used], y[used]), (X[validation], y[validation]), info)

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The test rows."""
        X, y, _ = self._rows()
        rows = self._split(0)[2]
        return X[rows], y[rows]

    # -- the model

    def _build_spec(self) -> dict[str, Any]:
        X, _, classes = self._rows()
        common = {"inputs": X.shape[1], "classes": list(classes)}
        if self.model is not None:
            return {"model": self.model, **common}
        hidden = _HIDDEN.get(self.dataset, (256, 128))
        return {"model": "mlp", "hidden": list(hidden), "scale": 16.0 if self.dataset == "digits" else 1.0, **common}

    def _build(self, seed: int) -> nn.Module:
        return _module(self._build_spec(), seed)

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """Dense, one-shot, gradual magnitude with three allocations, RigL."""
        return frontier.methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """Densities where the methods part."""
        return (0.02, 0.05, 0.1, 0.3)

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Densities lie in (0, 1]."""
        for budget in budgets:
            check("budgets", budget, above=0, at_most=1)

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """Class and probability of each row of a file, in the units of the data that the model was trained on."""
        return _apply(Path(directory), source)


def _module(spec: Mapping[str, Any], seed: int) -> nn.Module:
    """The module of a build spec with its first weights."""
    if spec["model"] == "mlp":
        return MLPConfig(spec["inputs"], len(spec["classes"]), tuple(spec["hidden"])).build(seed)
    factory = load_object(spec["model"])
    with seeded(seed, 0, torch.device("cpu")):
        module = factory()
    if not isinstance(module, nn.Module):
        raise InputError(f"model: {spec['model']} gave {type(module).__name__}, want a torch module")
    try:
        with torch.no_grad():
            shape = tuple(module.eval()(torch.zeros(2, spec["inputs"])).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"model: {spec['model']} fails on rows of {spec['inputs']} features ({error})") from error
    if shape != (2, len(spec["classes"])):
        raise InputError(f"model: gives {shape} for 2 rows, want (2, {len(spec['classes'])}), one logit per class")
    return module.train()


def _apply(directory: Path, source: str) -> Output:
    tensors, meta = artefacts.load(
        directory / "model.safetensors", frontier.KIND, version=frontier.VERSION, backend="torch"
    )
    spec = meta["build"]
    model = _module(spec, 0)
    try:
        model.load_state_dict(packed.unpack(tensors, meta["shapes"]))
    except RuntimeError as error:
        raise InputError(f"{directory}: the weights do not fit the model {spec['model']} ({error})") from error
    X, _ = read_matrix(source)
    X = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
    if X.shape[1] != spec["inputs"]:
        raise InputError(f"{source}: has {X.shape[1]} columns, want {spec['inputs']}, as in the training data")
    logits = frontier.predict(model.eval(), X / spec.get("scale", 1.0))
    probability = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    best = probability.argmax(1)
    columns = {
        "class": np.asarray(spec["classes"])[best],
        "probability": probability[np.arange(len(best)), best],
    }
    return Output(columns, "the class with the largest logit, and its softmax probability")
