"""What flows through one module of a model, as a shuffled stream of rows.

Lives here: ``ActivationStream``. Does not live here: which module that is (``sites``), the cutting of texts
(``windows``), the shuffling (``shuffling``), the files of the cache (``activation_cache``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ellzero.errors import InputError, check_array, check_integer
from ellzero.models.activation_cache import ActivationCache, fingerprint
from ellzero.models.attach import attach
from ellzero.models.shuffling import shuffled
from ellzero.models.sites import locate
from ellzero.models.windows import Window, bos_token, cut_texts, cut_tokens, padded
from ellzero.rng import rng

__all__ = ["ActivationStream", "ForwardPass", "Reached", "evaluating"]


class Reached(Exception):
    """Raised by the hook: what comes after the module need not be computed."""


class ForwardPass(NamedTuple):
    """One batch of windows as the model takes it: ``model(tokens, **keywords)``."""

    tokens: Tensor
    """``[windows, time]``, on the model's device."""
    keywords: dict[str, Any]
    """The attention mask, where the model takes one."""
    counts: np.ndarray
    """Which positions count, ``[windows, time]``: neither padding nor left-out special tokens."""
    documents: np.ndarray
    """The document of each window, ``[windows]``."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class ActivationStream:
    """Activations of one module over a corpus: iterating gives shuffled batches ``[batch_size, d]``.

    Each pass gives every position once, with neither padding nor the special tokens around a window. The order
    depends on the data, the sizes and ``seed`` alone, and is the same with and without ``cache``.

    Parameters
    ----------
    model : ours, one of Hugging Face, or any torch module. It runs in evaluation mode and is left as it was.
    hook, site : which module, see ``ellzero.models.sites.locate``.
    texts, tokens, inputs : one of the three. Texts need ``tokenizer``. Tokens are sequences of whole numbers, one per
        document. Inputs are whatever the model takes, as a list or other repeatable iterable of batches: a tensor, or
        a dictionary of keyword arguments (its ``attention_mask`` says which positions count).
    context : longest window in tokens, special ones included; by default 128, or what the model reads if that is less.
    sequences : windows per forward pass.
    batch_size : rows per batch that comes out; the last of a pass may be shorter.
    buffer : rows held for shuffling.
    drop_bos : leave out the special tokens that were put around each window (or, for ``tokens``, a first token
        equal to the tokenizer's).
    dtype : of the rows.
    cache : a folder; filled during the first pass, also across interrupted runs, and read afterwards.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hook: str,
        site: str = "residual",
        texts: Iterable[str] | None = None,
        tokens: Iterable[Sequence[int]] | None = None,
        inputs: Iterable[Any] | None = None,
        tokenizer: Any = None,
        context: int | None = None,
        sequences: int = 32,
        batch_size: int = 1024,
        buffer: int = 65_536,
        drop_bos: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        cache: str | Path | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise InputError(f"model: got {type(model).__name__}, want a torch module")
        given = [name for name, x in (("texts", texts), ("tokens", tokens), ("inputs", inputs)) if x is not None]
        if len(given) != 1:
            raise InputError(f"texts, tokens, inputs: got {' and '.join(given) or 'none'}, want exactly one of them")
        if texts is not None and tokenizer is None:
            raise InputError("tokenizer: got none, want the model's tokenizer to read texts")
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"dtype: got {dtype!r}, want a floating point dtype of torch")
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.buffer = check_integer("buffer", buffer, at_least=self.batch_size)
        self.sequences = check_integer("sequences", sequences, at_least=1)
        longest = _longest(model)
        if context is None:
            context = min(128, longest or 128)
        self.context = check_integer("context", context, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        self.model, self.dtype, self.drop_bos = model, dtype, bool(drop_bos)
        self.name = locate(model, hook, site)
        self._takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
        self._inputs, self._windows, self.plan, self._cache = inputs, [], [], None
        if inputs is None:
            self._cut(texts, tokens, tokenizer)
        if cache is not None:
            self._open_cache(Path(cache))

    def _cut(self, texts: Any, tokens: Any, tokenizer: Any) -> None:
        longest = _longest(self.model)
        if longest is not None and self.context > longest:
            raise InputError(f"context: got {self.context}, but the model reads at most {longest} tokens")
        if texts is not None:
            self._windows = cut_texts(texts, tokenizer, self.context, self.drop_bos)
        else:
            bos = bos_token(tokenizer) if tokenizer is not None and self.drop_bos else None
            self._windows = cut_tokens(tokens, self.context, bos)
        if not any(window.counts.any() for window in self._windows):
            raise InputError(f"{'tokens' if texts is None else 'texts'}: got no token that counts, want some text")
        low = min(int(window.tokens.min()) for window in self._windows)
        high = max(int(window.tokens.max()) for window in self._windows)
        known = _vocabulary(self.model)
        if low < 0 or (known is not None and high >= known):
            wrong = low if low < 0 else high
            raise InputError(f"tokens: got token {wrong}, but the model knows 0 to {known - 1}: whose tokenizer is it?")
        self.plan = self._batched(rng(self.seed, "windows").permutation(len(self._windows)))

    def _batched(self, order: np.ndarray) -> list[list[Window]]:
        """The windows of each forward pass; of equal length where the model cannot be told about padding."""
        open_batches: dict[int, list[Window]] = {}
        plan = []
        for index in order:
            window = self._windows[index]
            key = 0 if self._takes_mask else len(window.tokens)
            batch = open_batches.setdefault(key, [])
            batch.append(window)
            if len(batch) == self.sequences:
                plan.append(open_batches.pop(key))
        return plan + [open_batches[key] for key in sorted(open_batches)]

    def _open_cache(self, folder: Path) -> None:
        if self._inputs is not None:
            raise InputError("cache: got a folder with inputs, want texts or tokens, which can be told apart later")
        state = {
            "model": fingerprint(self.model.state_dict()),
            "hook": self.name,
            "windows": fingerprint(
                {f"{i}.{key}": np.asarray(getattr(window, key)) for i, window in enumerate(self._windows)
                 for key in ("tokens", "counts", "document")}
            ),
            "sequences": self.sequences,
            "seed": self.seed,
            "dtype": str(self.dtype),
        }  # fmt: skip
        self._cache = ActivationCache(folder, state)

    @property
    def rows(self) -> int | None:
        """Rows of one pass; ``None`` for ``inputs``, where only a pass can tell."""
        return None if self._inputs is not None else sum(int(window.counts.sum()) for window in self._windows)

    def __iter__(self) -> Iterator[Float[Tensor, "rows d"]]:
        return (rows for rows, _ in self.batches())

    def batches(self, epoch: int = 0) -> Iterator[tuple[Float[Tensor, "rows d"], np.ndarray]]:
        """One pass as pairs of rows and their documents' numbers; each ``epoch`` shuffles anew."""
        epoch = check_integer("epoch", epoch, at_least=0)
        capacity = self.buffer if self.rows is None else max(self.batch_size, min(self.buffer, self.rows))
        return shuffled(self._source(), capacity, self.batch_size, rng(self.seed, "buffer", epoch))

    def collect(
        self, n: int | None = None, *, return_documents: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The first ``n`` rows of the stream (all by default) as one array ``[n, d]``.

        With ``return_documents`` also the number of each row's document, for splits that keep documents whole.
        Rows narrower than float32 are widened to it, since NumPy has no bfloat16.
        """
        if n is not None:
            check_integer("n", n, at_least=1, at_most=self.rows)
        parts, documents, found = [], [], 0
        for rows, origin in self.batches():
            parts.append(rows.to(torch.float32) if rows.element_size() < 4 else rows)
            documents.append(origin)
            found += len(rows)
            if n is not None and found >= n:
                break
        if found < (n or 1):
            raise InputError(f"n: got {n}, but the inputs give {found} rows")
        values, origins = torch.cat(parts)[:n].numpy(), np.concatenate(documents)[:n]
        return (values, origins) if return_documents else values

    def passes(self) -> Iterator[ForwardPass]:
        """The forward passes over texts or tokens, in the order of the stream before it is shuffled."""
        if self._inputs is not None:
            raise InputError("passes: the stream is over inputs, want one over texts or tokens")
        return map(self.forward_pass, self.plan)

    @property
    def cached(self) -> bool:
        """Whether rows are kept in a folder."""
        return self._cache is not None

    def forward_pass(self, batch: Sequence[Window]) -> ForwardPass:
        """Windows of one batch as the model takes them."""
        tokens, real, counts = padded(batch)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        keywords = {"attention_mask": torch.from_numpy(real).long().to(device)} if self._takes_mask else {}
        documents = np.array([window.document for window in batch])
        return ForwardPass(torch.from_numpy(tokens).to(device), keywords, counts, documents)

    def _source(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        if self._inputs is not None:
            return self._from_inputs()
        if self._cache is not None:
            return self._cache.through(self.plan, self._from_windows)
        return (self._from_windows(batch) for batch in self.plan)

    def _from_windows(self, batch: Sequence[Window]) -> tuple[Tensor, np.ndarray]:
        tokens, keywords, counts, documents = self.forward_pass(batch)
        out = self._record((tokens,), keywords)
        if out.ndim != 3 or out.shape[:2] != tokens.shape:
            raise InputError(
                f"hook: {self.name!r} gives shape {tuple(out.shape)} for tokens {tuple(tokens.shape)}, "
                "want (batch, time, d)"
            )
        origin = np.broadcast_to(documents[:, None], counts.shape)
        return self._checked(out[torch.from_numpy(counts).to(out.device)]), origin[counts]

    def _from_inputs(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        seen = 0
        for batch in self._inputs:
            if not isinstance(batch, Tensor | Mapping):
                raise InputError(
                    f"inputs: got {type(batch).__name__}, want tensors or dictionaries of keyword arguments"
                )
            keywords = dict(batch) if isinstance(batch, Mapping) else {}
            out = self._record(() if keywords else (batch,), keywords)
            if out.ndim < 2:
                raise InputError(f"hook: {self.name!r} gives shape {tuple(out.shape)}, want (batch, ..., d)")
            if out.ndim == 4:  # images: the channels are the features, every place a row
                out = out.permute(0, 2, 3, 1)
            counts = torch.ones(out.shape[:-1], dtype=torch.bool, device=out.device)
            mask = keywords.get("attention_mask")
            if mask is not None:
                if mask.shape != counts.shape:
                    raise InputError(f"attention_mask: got shape {tuple(mask.shape)}, want {tuple(counts.shape)}")
                counts = mask.bool().to(out.device)
            origin = torch.arange(seen, seen + len(out)).reshape(-1, *[1] * (out.ndim - 2)).expand(counts.shape)
            seen += len(out)
            yield self._checked(out[counts]), origin[counts.cpu()].numpy()

    @torch.no_grad()
    def _record(self, arguments: tuple, keywords: dict[str, Any]) -> Tensor:
        """The module's output, from a forward pass in evaluation mode that ends there."""
        found: list[Tensor] = []

        def keep(x: Tensor) -> None:
            found.append(x)
            raise Reached

        with suppress(Reached), evaluating(self.model), attach(self.model, {self.name: keep}):
            self.model(*arguments, **keywords)
        if not found:
            raise InputError(f"hook: {self.name!r} did not run in a forward pass, want a module that does")
        return found[0]

    def _checked(self, rows: Tensor) -> Tensor:
        rows = rows.detach().to("cpu", self.dtype)
        return check_array(f"activations of {self.name!r}", rows, ndim=2, dtypes="f", allow_empty=True)


def _longest(model: nn.Module) -> int | None:
    """The longest sequence that the model reads, if it says so."""
    config = getattr(model, "config", None)
    names = ("context", "max_position_embeddings", "n_positions")
    return next((getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)), None)


def _vocabulary(model: nn.Module) -> int | None:
    """How many tokens the model knows, if it says so."""
    config = getattr(model, "config", None)
    names = ("vocabulary", "vocab_size")
    return next((getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)), None)
