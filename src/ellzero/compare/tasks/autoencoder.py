"""The task ``autoencoder``: how much of a model's activations can be told with few active latents?

Lives here: the question, the split by document, and ``apply``. Does not live here: the activations of a model or file
(``ellzero.autoencoder.sources``), the methods (``ellzero.autoencoder.frontier``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ellzero.autoencoder import frontier, pca, sources
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.pca import PCA
from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.io.readers import read_texts
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Autoencoder"]

_HOOK = "layers.2"
_ROWS = 40_000
_STRONGEST = 16


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
    batch: ClassVar[str] = f"{frontier.BATCH} rows, one thread"

    def __post_init__(self):
        for name in ("steps", "batch_size", "width", "rows"):
            if getattr(self, name) is not None or name in ("steps", "batch_size"):
                check_integer(name, getattr(self, name), at_least=sources.FEWEST_ROWS if name == "rows" else 1)
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

    def _source(self) -> sources.Source:
        if self.dataset is not None:
            return sources.from_file(self.dataset, self.rows)
        return sources.from_model(*self.site(), self.texts, self.rows or _ROWS)

    def site(self) -> tuple[str, str]:
        """Model and module, by name."""
        return self.model or "reference", self.hook or _HOOK

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
        """PCA, and every preset that has a budget and learns from activations alone."""
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
        """The active latents of each row of a file of activations, or the strongest ones of each text.

        Texts (.txt, .jsonl or a folder) go through the task's model, if it has one.
        """
        directory = Path(directory)
        code = PCA.load(directory) if (directory / pca.FILE).is_file() else SparseAutoencoder.load(directory)
        if self.dataset is None and (Path(source).is_dir() or sources.suffix(source) in (".txt", ".jsonl")):
            found = read_texts(source)
            X, origin = sources.stream(*self.site(), found).collect(return_documents=True)
        else:
            found, X = None, sources.read_rows(source)
        wanted = code.mean.shape[0] if isinstance(code, PCA) else code.d_in
        if X.shape[1] != wanted:
            raise InputError(f"{source}: has {X.shape[1]} columns, want {wanted}, as in the training data")
        return _encoded(code, X) if found is None else _strongest(code, X, origin, len(found))


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


def _strongest(code: Any, X: np.ndarray, origin: np.ndarray, texts: int) -> Output:
    """For each text its tokens, the mean number of active latents, and the latents that peak highest in it."""
    peaks, active = None, torch.zeros(texts)
    with torch.inference_mode():
        for rows, place in zip(torch.from_numpy(X).split(2048), torch.from_numpy(origin).split(2048)):
            z = code.encode(rows).abs()
            peaks = z.new_zeros(texts, z.shape[1]) if peaks is None else peaks
            peaks.scatter_reduce_(0, place[:, None].expand_as(z), z, "amax")
            active.index_add_(0, place, (z > 0).sum(1).float())
    tokens = np.bincount(origin, minlength=texts)
    best = peaks.sort(dim=1, descending=True, stable=True)
    values, latents = best.values[:, :_STRONGEST].numpy(), best.indices[:, :_STRONGEST].numpy()
    columns = {
        "tokens": tokens,
        "active": active.numpy() / np.maximum(tokens, 1),
        "latents": np.where(values > 0, latents, -1),
        "peaks": values,
    }
    note = f"of each text: tokens, active latents per token, and the {values.shape[1]} latents that peak highest in it"
    return Output(columns, f"{note}; {active.sum() / len(X):.4g} active per token in all")
