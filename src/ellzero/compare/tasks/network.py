"""The task ``network``: how good is a network that keeps a small share of its weights?

Lives here: the split, the options, and what every method gets. Does not live here: the rows and the networks that stand
in for the user's (``network_rows``), the methods (``ellzero.network.contenders``).
The user's own model and judge join as ``module:function``: ``build() -> torch.nn.Module`` maps float32 rows
``[batch, features]`` to logits ``[batch, classes]``, and ``evaluate(model, X, y) -> float`` judges it, higher being
better. A model of one's own sees the rows as they are in the file; the perceptron that stands in for it sees columns of
mean 0 and variance 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from ellzero.compare.specs import load_object
from ellzero.compare.tasks import network_rows
from ellzero.compare.tasks.network_rows import IMAGES, Rows, module_of, net_spec
from ellzero.compare.tasks.tables import split_by_units
from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.network import contenders
from ellzero.network.sparsifier import prunable
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register

__all__ = ["Network"]

_NETS = ("mlp", "residual", "transformer")


@register(kind="task", wing="network", source="none", extra="torch", name="network", example=lambda: Network())
@dataclass(frozen=True)
class Network:
    """A network on digits, texts or the user's rows: fidelity against the kept share of its weights.

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
    net : ``"mlp"``; ``"residual"``, a small residual network for the two sets of images; or ``"transformer"``, a
        language model of two layers on texts that ship, judged by nats per token, lower being better, trained by AdamW.

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
    net: str = "mlp"

    name: ClassVar[str] = "network"
    default_methods: ClassVar[tuple[str, ...] | None] = (
        "dense", "one-shot", "gradual-uniform", "gradual-erk", "gradual-global", "rigl",
    )  # fmt: skip
    options: ClassVar[tuple[str, ...]] = ("steps", "batch_size", "include", "exclude", "groups", "net")
    nets: ClassVar[tuple[str, ...]] = _NETS
    unit: ClassVar[str] = "density"
    of: ClassVar[Literal["kept", "seen"]] = "kept"

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
        check_choice("net", self.net, self.nets)
        if self.net != "mlp" and self.model is not None:
            raise InputError(f"net: got {self.net!r} beside a model of your own, want one of the two")
        if self.net == "residual" and self.dataset not in IMAGES:
            raise InputError(f"net: got 'residual' with {self.dataset!r}, want digits or mnist, which are images")
        if self.net == "transformer":
            for option, given in (("data", self.dataset), ("target", self.target), ("groups", self.groups)):
                if given not in (None, "texts"):
                    raise InputError(
                        f"{option}: got {given!r}, but net=transformer reads the texts that ship; want none"
                    )

    @property
    def fidelity(self) -> str:
        """The word on the axis."""
        usual = "nats per token" if self.net == "transformer" else "accuracy"
        return usual if self.evaluate is None else self.evaluate.rpartition(":")[2]

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Lower for nats per token, higher for all else."""
        return "lower" if self.net == "transformer" and self.evaluate is None else "higher"

    @property
    def bound(self) -> float | None:
        """The best possible fidelity, where it is known."""
        return 1.0 if self.evaluate is None and self.net != "transformer" else None

    @property
    def batch(self) -> str:
        """What is timed."""
        rows = "8 windows of tokens" if self.net == "transformer" else "64 rows"
        return f"{rows}, ordinary dense layers, one thread"

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Network:  # fmt: skip
        """The task from the command line's options."""
        for option, given in (("hook", hook), ("texts", texts)):
            if given is not None:
                raise InputError(f"{option}: the task {cls.name} takes none, want --data, --model, --eval or --target")
        settings = dict(extra or {})
        for option, value in settings.items():
            if option not in cls.options:
                near = suggestion(option, cls.options)
                raise InputError(
                    f"{option}: the task {cls.name} takes none, want one of {', '.join(cls.options)}{near}"
                )
            if option in ("steps", "batch_size") and isinstance(value, str):
                if not value.isdecimal():
                    raise InputError(f"{option}: got {value!r}, want a whole number")
                settings[option] = int(value)
            elif option in ("include", "exclude") and isinstance(value, str):
                settings[option] = tuple(value.split(","))
        usual = "texts" if settings.get("net") == "transformer" else "digits"
        task = cls(data or usual, target, model, eval, **settings)
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

    def _rows(self) -> Rows:
        if self.net == "transformer":
            return network_rows.read_windows()
        stamp = Path(self.dataset).stat().st_mtime_ns if Path(self.dataset).is_file() else None
        return network_rows.read_rows(self.dataset, self.target, self.groups, stamp)

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
            "evaluate": self._evaluate(), "tokens": self.net == "transformer",
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
        spec = net_spec(self.net, self.dataset, self._rows())
        if self.model is None:
            return spec
        return {"model": self.model, **{name: spec[name] for name in ("inputs", "classes", "columns")}}

    def _build(self, seed: int, rows: np.ndarray | None = None) -> nn.Module:
        return module_of(self._build_spec(), seed, rows)

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """Every recipe that trains from scratch to a density; ``default_methods`` where the user names none."""
        return contenders.recipe_methods(self._training, linear=self.net == "mlp")

    @property
    def _training(self) -> Mapping[str, Any]:
        return contenders.ADAMW if self.net == "transformer" else contenders.SGD

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

        Columns are found by name where the file has names, else by place. Of texts, the nats per token of each.
        """
        return network_rows.apply_network(Path(directory), source)
