"""The task ``probing``: how well do few neurons of a model tell what it is reading?

Lives here: the activations and their concepts, the split by documents, and ``apply``. Does not live here: the methods
(``ellzero.linear.probes``), what a concept is (``ellzero.linear.concepts``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ellzero.compare.tasks.tables import split_by_units
from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.io.readers import read_matrix, read_table, read_texts
from ellzero.linear import probes
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register

__all__ = ["Probing"]

_HOOK = "layers.1.feed_forward.down"
_ROWS = 6000
_RARE = 0.005


@register(kind="task", wing="linear", source="none", name="probing", example=lambda: Probing())
@dataclass(frozen=True)
class Probing:
    """Concepts told from few neurons: F1 on documents not seen, a mean over concepts, against neurons per concept.

    Parameters
    ----------
    dataset : a file that ``read_table`` reads, activations with a column of classes: each class against the rest is a
        concept. Then neither ``model`` nor ``hook`` nor ``texts``. By default a model reads texts, and the concepts are
        those of ``ellzero.linear.concepts`` that 0.5 to 95 % of the tokens have.
    target : the file's column of classes.
    model : ``"reference"`` (the default), or what ``ellzero.models.load_model`` reads.
    hook : name of a module; by default the last map of the second feed-forward layer of the reference model.
    where : ``"input"`` or ``"output"`` of it. The neurons of a feed-forward layer are the input of its last map.
    texts : what ``read_texts`` reads; by default texts that the reference model was not trained on.
    rows : tokens at most, drawn by chance.
    """

    dataset: str | None = None
    target: str | None = None
    model: str | None = None
    hook: str | None = None
    where: str = "input"
    texts: str | None = None
    rows: int = _ROWS

    name: ClassVar[str] = "probing"
    fidelity: ClassVar[str] = "F1"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    bound: ClassVar[float | None] = 1.0
    unit: ClassVar[str] = "neurons"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = f"{probes.BATCH} rows"

    def __post_init__(self):
        check_choice("where", self.where, ("input", "output"))
        check_integer("rows", self.rows, at_least=100)
        for option in ("model", "hook", "texts"):
            if self.dataset is not None and getattr(self, option) is not None:
                raise InputError(
                    f"{option}: got {getattr(self, option)!r} beside data {self.dataset!r}, want one of them"
                )
        if self.model not in (None, "reference") and (self.hook is None or self.texts is None):
            lacking = "hook" if self.hook is None else "texts"
            raise InputError(f"{lacking}: got none, want one for the model {self.model!r}")

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Probing:  # fmt: skip
        """The task from the command line's options."""
        if eval is not None:
            raise InputError("eval: the task probing takes none, want --data or --model, --hook, --texts")
        settings, known = dict(extra or {}), ("where", "rows")
        for option in settings:
            if option not in known:
                near = suggestion(option, known)
                raise InputError(f"{option}: the task probing takes none, want one of {', '.join(known)}{near}")
        if isinstance(settings.get("rows"), str):
            if not settings["rows"].isdecimal():
                raise InputError(f"rows: got {settings['rows']!r}, want a whole number")
            settings["rows"] = int(settings["rows"])
        task = cls(data, target, model, hook, texts=texts, **settings)
        task._rows()  # what cannot be read is said before a run folder is made
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Probing:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of the labels (activations differ in their last bits between machines)."""
        rows = self._rows()
        content = hashlib.sha256(np.ascontiguousarray(rows.y).tobytes() + repr(rows.concepts).encode())
        return {**asdict(self), "shape": list(rows.X.shape), "digest": content.hexdigest()[:16]}

    # -- data

    def _rows(self) -> _Rows:
        if self.dataset is not None:
            return _from_file(self.dataset, self.target, Path(self.dataset).stat().st_mtime_ns
                              if Path(self.dataset).is_file() else None)  # fmt: skip
        return _from_model(self.model or "reference", self.hook or _HOOK, self.where, self.texts, self.rows)

    def _split(self, seed: int) -> tuple[np.ndarray, ...]:
        """Rows for training, validation and test: 60, 20 and 20 % of the documents."""
        return split_by_units(self._rows().units, seed, self.name, None)

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed: activations ``[n, d]`` and concepts ``[n, L]``."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation rows in the training part too."""
        check_choice("which", which, ("train", "all"))
        rows = self._rows()
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        info = {"concepts": rows.concepts}
        return Data((rows.X[used], rows.y[used]), (rows.X[validation], rows.y[validation]), info)

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The test rows."""
        rows = self._rows()
        chosen = self._split(0)[2]
        return rows.X[chosen], rows.y[chosen]

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """All neurons (dense), adaptive thresholding, mean difference, ANOVA, mutual information, coefficients."""
        return probes.methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """1 to 32 neurons, as far as there are so many."""
        most = data.train[0].shape[1]
        return tuple(sorted({min(k, most) for k in (1, 2, 4, 8, 16, 32)}))

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Whole numbers from 1 to the number of neurons."""
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of neurons")
            check("budgets", budget, at_least=1, at_most=self._rows().X.shape[1])

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """The probability of each concept, for each row of a file of activations or each token of texts.

        Texts (.txt, .jsonl or a folder) go through the task's model, if it has one. The fits weigh a concept and its
        absence alike, so probabilities are those of a world where both are as frequent.
        """
        found = probes.FittedProbes.load(directory)
        if self.dataset is None and (Path(source).is_dir() or source.endswith((".txt", ".jsonl", ".txt.gz"))):
            from ellzero.linear.concepts import concept_rows
            from ellzero.models import load_model

            model, tokenizer = load_model(self.model or "reference")
            hook = self.hook or _HOOK
            read = concept_rows(model, tokenizer, read_texts(source), hook, where=self.where, concepts=())
            X, first = read.X, {"text": read.documents, "token": read.tokens}
        else:
            X, first = read_matrix(source)[0], {}
            X = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
        if X.shape[1] != found.neurons:
            raise InputError(f"{source}: has {X.shape[1]} columns, want {found.neurons}, as in the training data")
        probabilities = 1 / (1 + np.exp(-found.log_odds(X)))
        columns = {**first, **{name: probabilities[:, i] for i, name in enumerate(found.concepts)}}
        return Output(columns, f"the probability of each concept, by {found.columns.shape[1]} neurons each")


@dataclass(frozen=True, eq=False)
class _Rows:
    """Activations, concepts as 0 or 1, their names, and what stays together in a split."""

    X: np.ndarray
    y: np.ndarray
    concepts: tuple[str, ...]
    units: np.ndarray


@lru_cache(maxsize=2)
def _from_model(model: str, hook: str, where: str, texts: str | None, rows: int) -> _Rows:
    from ellzero.linear.concepts import concept_rows
    from ellzero.models import load_model, reference_texts

    net, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"model: {model!r} has no tokenizer, want one with it to read texts")
    documents = reference_texts("validation") if texts is None else read_texts(texts)
    found = concept_rows(net, tokenizer, documents, hook, where=where, rows=rows)
    share = found.y.mean(0)
    usable = np.flatnonzero((share >= _RARE) & (share <= 0.95))
    if not len(usable):
        raise InputError("texts: no concept is in 0.5 to 95 % of the tokens, want other texts")
    units = np.unique(found.documents, return_inverse=True)[1].ravel()
    if units.max() < 9:
        raise InputError(f"texts: got {units.max() + 1} documents, want at least 10")
    return _frozen(_Rows(found.X, found.y[:, usable], tuple(found.concepts[i] for i in usable), units))


@lru_cache(maxsize=2)
def _from_file(dataset: str, target: str | None, stamp: int | None) -> _Rows:
    table = read_table(dataset, target)
    X = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    values = np.unique(table.y)
    if len(values) < 2 or len(values) > max(len(X) // 10, 2) or (values != np.round(values)).any():
        raise InputError(f"target: {table.target!r} has {len(values)} different values in {len(X)} rows, want classes")
    y = (table.y[:, None] == (values[1:] if len(values) == 2 else values)).astype(np.int8)
    names = tuple(f"{table.target} = {value:g}" for value in (values[1:] if len(values) == 2 else values))
    return _frozen(_Rows(X, y, names, np.arange(len(X))))


def _frozen(rows: _Rows) -> _Rows:
    for array in (rows.X, rows.y):
        array.setflags(write=False)
    return rows
