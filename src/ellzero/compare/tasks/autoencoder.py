"""The task ``autoencoder``: how much of a model's activations can be told with few active latents?

Lives here: the activations (of the language model that ships, of a user's own, or from a file), the split by
document, and ``apply``. Does not live here: the methods (``ellzero.autoencoder.frontier``), hooks into models
(``ellzero.models``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ellzero.autoencoder import frontier, pca
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.pca import PCA
from ellzero.errors import InputError, check, check_array, check_choice, check_integer, suggestion
from ellzero.io import arrays
from ellzero.io.readers import read_matrix, read_texts
from ellzero.models.activation_cache import fingerprint
from ellzero.models.activations import ActivationStream
from ellzero.models.huggingface import load_model
from ellzero.models.reference import documents, reference_texts
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Autoencoder"]

_HOOK = "layers.2"
_ROWS = 40_000
_BLOCKS = 100
_FEWEST_ROWS, _FEWEST_DOCUMENTS = 50, 10


@register(
    kind="task", wing="autoencoder", source="none", extra="torch", name="autoencoder", example=lambda: Autoencoder()
)
@dataclass(frozen=True)
class Autoencoder:
    """Activations told by few latents: explained variance on rows not seen, against how many are active (L0).

    Parameters
    ----------
    dataset : a file that ``read_matrix`` reads, activations ``[rows, d]``; an .npz or .safetensors file may hold an
        array ``documents`` beside ``X``, one number per row. Then neither ``model`` nor ``hook`` nor ``texts``.
    model : a folder or id of Hugging Face, a file of ``ellzero.models.save``, or ``"reference"`` (the default).
    hook : the module whose output is wanted, as ``ellzero.models.sites.locate`` reads it; ``"layers.2"`` for the
        reference model.
    texts : a .txt file (its paragraphs are joined into documents of about 1,500 characters), a .jsonl file with a
        field ``text`` (a document per line) or a folder of .txt files (a document each); the texts that ship where
        there is none.
    width : number of latents of every autoencoder; 4 d by default.
    steps, batch_size : of the training that every autoencoder gets.
    rows : at most so many rows, drawn at random; by default 40,000 of a model, all of a file.

    Rows of one document stay in one part. Rows of a file without ``documents`` are split in a hundred runs of
    neighbours. A fifth of the documents, the same for every seed, is the test part.
    """

    dataset: str | None = None
    model: str | None = None
    hook: str | None = None
    texts: str | None = None
    width: int | None = None
    steps: int = 500
    batch_size: int = 512
    rows: int | None = None

    name: ClassVar[str] = "autoencoder"
    fidelity: ClassVar[str] = "explained variance"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    bound: ClassVar[float | None] = 1.0
    unit: ClassVar[str] = "L0"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = f"{frontier.BATCH} rows"

    def __post_init__(self):
        for name in ("steps", "batch_size", "width", "rows"):
            if getattr(self, name) is not None or name in ("steps", "batch_size"):
                check_integer(name, getattr(self, name), at_least=_FEWEST_ROWS if name == "rows" else 1)
        for name in ("model", "hook", "texts"):
            if self.dataset is not None and getattr(self, name) is not None:
                raise InputError(f"{name}: got {getattr(self, name)!r} beside data {self.dataset!r}, want one of them")
        if self.model not in (None, "reference") and self.hook is None:
            raise InputError("hook: got none, want a module of the model such as 'layers.2'")

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Autoencoder:  # fmt: skip
        """The task from the command line's options."""
        for option, given in (("eval", eval), ("target", target)):
            if given is not None:
                raise InputError(f"{option}: the task autoencoder takes none, want --data or --model, --hook, --texts")
        known, settings = ("width", "steps", "batch_size", "rows"), dict(extra or {})
        for option, value in settings.items():
            if option not in known:
                near = suggestion(option, known)
                raise InputError(f"{option}: the task autoencoder takes none, want one of {', '.join(known)}{near}")
            if isinstance(value, str):
                if not value.isdecimal():
                    raise InputError(f"{option}: got {value!r}, want a whole number")
                settings[option] = int(value)
        task = cls(data, model, hook, texts, **settings)
        task._source()  # what cannot be read is said before a run folder is made
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Autoencoder:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of what the activations are made from."""
        return {**asdict(self), "digest": self._source().digest}

    # -- data

    def _source(self) -> _Source:
        if self.dataset is not None:
            return _file(self.dataset, self.rows, _stamp(self.dataset))
        model, hook = self.model or "reference", self.hook or _HOOK
        return _streamed(model, hook, self.texts, self.rows or _ROWS, (_stamp(model), _stamp(self.texts)))

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows for training, validation and test: 60, 20 and 20 % of the documents."""
        origin = self._source().rows[1]
        units = np.unique(origin)
        shuffled = units[rng(0, "autoencoder", "test").permutation(len(units))]
        part = len(units) // 5
        test, rest = shuffled[:part], shuffled[part:]
        rest = rest[rng(seed, "autoencoder", "validation").permutation(len(rest))]
        return tuple(np.flatnonzero(np.isin(origin, chosen)) for chosen in (rest[part:], rest[:part], test))

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed: float32 ``[rows, d]``."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation rows in the training part too."""
        check_choice("which", which, ("train", "all"))
        X = self._source().rows[0]
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        info = {"d_sae": self._latents(), "steps": self.steps, "batch_size": self.batch_size}
        return Data(X[used], X[validation], info)

    def test(self) -> np.ndarray:
        """The test rows."""
        return self._source().rows[0][self._split(0)[2]]

    def _latents(self) -> int:
        return self.width or 4 * self._source().rows[0].shape[1]

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """PCA, ReLU + L1, TopK, BatchTopK."""
        return frontier.methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """4, 8, 16 and 32 active latents, as far as the width goes."""
        most = min(data.train.shape[1], data.info["d_sae"])
        return tuple(sorted({min(k, most) for k in (4, 8, 16, 32)}))

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Whole numbers from 1 to the number of features, or of latents if there are fewer."""
        most = min(self._source().rows[0].shape[1], self._latents())
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of active latents")
            check("budgets", budget, at_least=1, at_most=most)

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """The active latents of each row of a file of activations, and how far the reconstruction is off."""
        directory = Path(directory)
        code = PCA.load(directory) if (directory / pca.FILE).is_file() else SparseAutoencoder.load(directory)
        X = _matrix(source)
        wanted = code.mean.shape[0] if isinstance(code, PCA) else code.d_in
        if X.shape[1] != wanted:
            raise InputError(f"{source}: has {X.shape[1]} columns, want {wanted}, as in the training data")
        return _encoded(code, X)


def _encoded(code: Any, X: np.ndarray) -> Output:
    """Latents by row, the largest magnitude first, padded with zeros of latent -1."""
    found, errors = [], []
    with torch.inference_mode():
        for rows in torch.from_numpy(X).split(2048):
            z = code.encode(rows)
            errors.append((rows - code.decode(z)).double().square().sum(1))
            order = z.abs().sort(dim=1, descending=True, stable=True).indices
            found.append((z.gather(1, order), order, (z != 0).sum(1)))
    active = torch.cat([count for _, _, count in found]).numpy()
    most = int(active.max())
    values = torch.cat([z[:, :most] for z, _, _ in found]).numpy()
    indices = torch.cat([order[:, :most] for _, order, _ in found]).numpy()
    error = torch.cat(errors).numpy()
    spread = float(np.square(X - X.mean(0, dtype=np.float64)).sum())
    note = f"active latents of each row, largest first (padded with latent -1); {active.mean():.4g} on average"
    if spread > 0:
        note += f", explained variance {1 - error.sum() / spread:.4f} on these rows"
    columns = {
        "active": active,
        "squared_error": error,
        "latents": np.where(values != 0, indices, -1),
        "values": values,
    }
    return Output(columns, note)


class _Source:
    """Activations and the document of each row, read or computed when they are first asked for."""

    def __init__(self, digest: str, read: Callable[[], tuple[np.ndarray, np.ndarray]], option: str):
        self.digest, self._read, self._option = digest, read, option

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """``[rows, d]`` float32 and ``[rows]``."""
        X, origin = self._read()
        if len(X) < _FEWEST_ROWS:
            raise InputError(f"{self._option}: gives {len(X)} rows, want at least {_FEWEST_ROWS}")
        units = len(np.unique(origin))
        if units < _FEWEST_DOCUMENTS:
            raise InputError(f"{self._option}: gives {units} documents, want at least {_FEWEST_DOCUMENTS} to split")
        if not np.ptp(X, axis=0).any():
            raise InputError(f"{self._option}: all {len(X)} rows are equal, want rows that vary")
        X.setflags(write=False)
        return X, origin


def _stamp(path: str | None) -> int | None:
    return Path(path).stat().st_mtime_ns if path is not None and Path(path).exists() else None


def _matrix(path: str) -> np.ndarray:
    """The rows of a file as a float32 array of its own."""
    X, _ = read_matrix(path)
    X = X.toarray() if hasattr(X, "toarray") else X
    with np.errstate(over="ignore"):
        return check_array(str(path), np.array(X, dtype=np.float32))


@lru_cache(maxsize=2)
def _file(path: str, rows: int | None, stamp: int | None) -> _Source:
    X = _matrix(path)
    origin = np.arange(len(X)) * _BLOCKS // max(len(X), _BLOCKS)
    if Path(path).suffix.lower() in (".npz", ".safetensors") and "documents" in arrays.names(path):
        origin = arrays.read_vector(Path(path), "documents")
        if len(origin) != len(X):
            raise InputError(f"{path}: X has {len(X)} rows and documents has {len(origin)}, want equal")
    digest = hashlib.sha256(X.tobytes() + np.ascontiguousarray(origin).tobytes()).hexdigest()[:16]
    if rows is not None and rows < len(X):
        chosen = np.sort(rng(0, "autoencoder", "rows").choice(len(X), rows, replace=False))
        X, origin = X[chosen], origin[chosen]
    source = _Source(digest, lambda: (X, origin), "data")
    _ = source.rows
    return source


@lru_cache(maxsize=2)
def _streamed(path: str, hook: str, texts: str | None, rows: int, stamp: Any) -> _Source:
    model, tokenizer = load_model(path)
    if tokenizer is None:
        raise InputError(f"model: {path} has no tokenizer beside it, so it cannot read texts; give activations as data")
    found = _enough(_texts(texts), rows)
    stream = ActivationStream(
        model, hook=hook, texts=found, tokenizer=tokenizer, batch_size=_PASS, buffer=_PASS, seed=0
    )
    content = hashlib.sha256("\x1f".join(found).encode())
    digest = f"{fingerprint(model.state_dict())[:16]}-{stream.name}-{content.hexdigest()[:16]}"
    return _Source(digest, lambda: stream.collect(min(rows, stream.rows), return_documents=True), "texts")


_PASS = 4096
"""Rows held while windows, which the stream has shuffled, are gone through: enough, since training shuffles rows."""


def _texts(path: str | None) -> list[str]:
    if path is None:
        return reference_texts()
    found = read_texts(path)
    joined = not Path(path).is_dir() and ".txt" in [suffix.lower() for suffix in Path(path).suffixes]
    found = documents("\n\n".join(found)) if joined else found
    if len(found) < _FEWEST_DOCUMENTS:
        raise InputError(
            f"texts: {path} gives {len(found)} documents, want at least {_FEWEST_DOCUMENTS}, so that no document is "
            "in two parts"
        )
    return found


def _enough(texts: list[str], rows: int) -> list[str]:
    """Documents drawn at random until they must hold that many tokens; a token has fewer than 8 characters."""
    order = rng(0, "autoencoder", "documents").permutation(len(texts))
    ends = np.cumsum([len(texts[i]) for i in order])
    count = max(int(np.searchsorted(ends, 8 * rows)) + 1, _FEWEST_DOCUMENTS)
    return [texts[i] for i in order[:count]]
