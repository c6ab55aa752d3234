"""The task ``network``: how accurate is a classifier that keeps a small share of its weights?

Lives here: the data, the split, the model that every method trains, and ``apply``. Does not live here: the methods
(``ellzero.network.frontier``). The user's own model and judge join as ``module:function``:
``build() -> torch.nn.Module`` maps float32 rows ``[batch, features]`` to logits ``[batch, classes]``, and
``evaluate(model, X, y) -> float`` judges it, higher being better. A model of one's own sees the rows as they are in the
file; the perceptron that stands in for it sees columns of mean 0 and variance 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ellzero.compare.specs import load_object
from ellzero.compare.tasks.tables import kept_columns, split_by_units
from ellzero.data import sets
from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.io import artefacts
from ellzero.io.readers import read_table
from ellzero.models.mlp import MLPConfig
from ellzero.network import frontier, packed
from ellzero.network.sparsifier import prunable
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register
from ellzero.training.loop import seeded

__all__ = ["Network"]

_HIDDEN = {"digits": (256, 128), "mnist": (300, 100)}


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows as float32, classes as 0, 1, ... with their names, the columns' names, and what stays together."""

    X: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    units: np.ndarray


@lru_cache(maxsize=4)
def _read(data: str, target: str | None, groups: str | None, stamp: int | None) -> _Rows:
    if data in _HIDDEN:
        for option, given in (("target", target), ("groups", groups)):
            if given is not None:
                raise InputError(f"{option}: got {given!r}, but {data} has none to choose; want none")
        table = sets.digits() if data == "digits" else sets.mnist().table()
    else:
        table = read_table(data, target)
    X = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    columns, units = list(table.columns), np.arange(len(table.y))
    if groups is not None:
        place = columns.index(check_choice("groups", groups, columns))
        units = np.unique(X[:, place], return_inverse=True)[1].ravel()
        X = np.delete(X, place, axis=1)
        columns.pop(place)
    y = np.asarray(table.y)
    classes, labels = np.unique(y, return_inverse=True)
    if (y.dtype.kind == "f" and (y != np.round(y)).any()) or len(classes) > max(len(y) // 5, 2):
        raise InputError(f"data: {data} has {len(classes)} different targets in {len(y)} rows, want classes")
    if len(classes) < 2 or len(y) < 20:
        raise InputError(f"data: {data} has {len(classes)} classes in {len(y)} rows, want at least 2 in 20")
    if not columns:
        raise InputError(f"data: {data} has no column left to tell the classes by")
    named = table.labels
    names = (named[int(value)] if named and int(value) < len(named) else str(int(value)) for value in classes)
    scaled = X / 16 if data == "digits" else X
    return _Rows(scaled.astype(np.float32), labels.astype(np.int64), tuple(names), tuple(columns), units)


@register(kind="task", wing="network", source="none", extra="torch", name="network", example=lambda: Network())
@dataclass(frozen=True)
class Network:
    """A classifier on digits or on the user's rows: fidelity against the kept share of its weights.

    Parameters
    ----------
    dataset : ``"digits"`` (1797 of 8 x 8), ``"mnist"`` (10,000 of 28 x 28 from ``ELLZERO_DATA``), or a file that
        ``read_table`` reads, its target being classes.
    target : the file's target column.
    groups : a column whose equal values stay together in one part (patients, writers); it tells nothing itself.
    model : ``module:function`` giving a fresh module, which may hold trained weights; None for a multilayer perceptron.
    evaluate : ``module:function(model, X, y)`` giving the fidelity; None for accuracy.
    steps, batch_size : of the training that every method gets.
    include, exclude : names or glob patterns of what takes part in the pruning; on the command line with commas.

    A fifth of the rows (or groups), the same for every seed, is the test part.
    """

    dataset: str = "digits"
    target: str | None = None
    model: str | None = None
    evaluate: str | None = None
    steps: int = 400
    batch_size: int = 64
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    groups: str | None = None

    name: ClassVar[str] = "network"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    unit: ClassVar[str] = "density"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = "64 rows, ordinary dense layers, one thread"

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
        known, settings = ("steps", "batch_size", "include", "exclude", "groups"), dict(extra or {})
        for option, value in settings.items():
            if option not in known:
                near = suggestion(option, known)
                raise InputError(f"{option}: the task network takes none, want one of {', '.join(known)}{near}")
            if option in ("steps", "batch_size") and isinstance(value, str):
                if not value.isdecimal():
                    raise InputError(f"{option}: got {value!r}, want a whole number")
                settings[option] = int(value)
            elif option in ("include", "exclude") and isinstance(value, str):
                settings[option] = tuple(value.split(","))
        task = cls(data or "digits", target, model, eval, **settings)
        prunable(task._build(0), task.include, task.exclude)  # what cannot work is said before a run folder is made
        task._evaluate()
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Network:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of the rows."""
        rows = self._rows()
        content = hashlib.sha256(rows.X.tobytes() + rows.y.tobytes()).hexdigest()[:16]
        return {
            **json.loads(json.dumps(self.to_spec())), "rows": len(rows.y), "features": rows.X.shape[1],
            "classes": list(rows.classes), "digest": content,
        }  # fmt: skip

    # -- data

    def _rows(self) -> _Rows:
        stamp = Path(self.dataset).stat().st_mtime_ns if Path(self.dataset).is_file() else None
        return _read(self.dataset, self.target, self.groups, stamp)

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows for training, validation and test: 60, 20 and 20 %, the test rows the same for every seed."""
        return split_by_units(self._rows().units, seed, self.name, self.groups)

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation rows in the training part too."""
        check_choice("which", which, ("train", "all"))
        X, y = self._rows().X, self._rows().y
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        info = {
            "build": partial(self._build, rows=X[used]), "spec": self._build_spec(), "steps": self.steps,
            "batch_size": self.batch_size, "include": self.include, "exclude": self.exclude,
            "evaluate": self._evaluate(),
        }  # fmt: skip
        return Data((X[used], y[used]), (X[validation], y[validation]), info)

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The test rows."""
        rows = self._split(0)[2]
        return self._rows().X[rows], self._rows().y[rows]

    # -- the model

    def _evaluate(self) -> Any:
        return load_object(self.evaluate) if self.evaluate else None

    def _build_spec(self) -> dict[str, Any]:
        rows = self._rows()
        common = {"inputs": rows.X.shape[1], "classes": list(rows.classes), "columns": list(rows.columns)}
        if self.model is not None:
            return {"model": self.model, **common}
        if self.dataset in _HIDDEN:
            scale = 16.0 if self.dataset == "digits" else 1.0
            return {"model": "mlp", "hidden": list(_HIDDEN[self.dataset]), "scale": scale, **common}
        return {"model": "mlp", "hidden": [256, 128], "standardized": True, **common}

    def _build(self, seed: int, rows: np.ndarray | None = None) -> nn.Module:
        return _module(self._build_spec(), seed, rows)

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
        """Class and probability of each row of a file, in the units of the data that the model was trained on.

        Columns are found by name where the file has names, else by place.
        """
        return _apply(Path(directory), source)


def _standardized(network: nn.Module, rows: np.ndarray) -> nn.Module:
    """The network on columns of mean 0 and variance 1, as in these rows; the moments are buffers and saved with it."""
    mean, scale = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-7 * abs(mean), scale, 1.0)  # a column that never changes
    network.register_buffer("mean", torch.from_numpy(mean).float())
    network.register_buffer("scale", torch.from_numpy(scale).float())
    network.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - module.mean) / module.scale,))
    return network


def _module(spec: Mapping[str, Any], seed: int, rows: np.ndarray | None = None) -> nn.Module:
    """The module of a build spec with its first weights, and the moments of ``rows`` where it standardises."""
    if spec["model"] == "mlp":
        network = MLPConfig(spec["inputs"], len(spec["classes"]), tuple(spec["hidden"])).build(seed)
        if not spec.get("standardized"):
            return network
        return _standardized(network, np.zeros((1, spec["inputs"])) if rows is None else rows)
    factory = load_object(spec["model"])
    with seeded(seed, 0, torch.device("cpu")):
        module = factory()
    if not isinstance(module, nn.Module):
        raise InputError(f"model: {spec['model']} gave {type(module).__name__}, want a torch module")
    try:
        with torch.no_grad():
            found = module.eval()(torch.zeros(2, spec["inputs"]))
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"model: {spec['model']} fails on rows of {spec['inputs']} features ({error})") from error
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    if shape != (2, len(spec["classes"])):
        raise InputError(f"model: gives {shape} for 2 rows, want (2, {len(spec['classes'])}), one logit per class")
    return module.train()


def _apply(directory: Path, source: str) -> Output:
    tensors, meta = artefacts.load(
        directory / "model.safetensors", frontier.KIND, version=frontier.VERSION, backend="torch"
    )
    spec = meta.get("build")
    if not isinstance(spec, Mapping) or not {"model", "inputs", "classes", "columns"} <= set(spec):
        raise InputError(f"{directory}: does not say which model its weights are of, want what take wrote")
    model = _module(spec, 0)
    try:
        model.load_state_dict(packed.unpack(tensors, meta.get("shapes", {})))
    except RuntimeError as error:
        raise InputError(f"{directory}: the weights do not fit the model {spec['model']} ({error})") from error
    X = kept_columns(source, (), spec["columns"], spec["columns"])
    logits = frontier.predict(model.eval(), X / spec.get("scale", 1.0))
    probability = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    best = probability.argmax(1)
    columns = {
        "class": np.asarray(spec["classes"])[best],
        "probability": probability[np.arange(len(best)), best],
    }
    return Output(columns, "the class with the largest logit, and its softmax probability")
