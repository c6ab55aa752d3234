"""Heads: from token states to non-negative weights of terms, one row for each text.

Lives here: the heads of the learned sparse retrievers and their transforms. Does not live here: the pooled logits
(``pooled_logits``), backbones (``backbone``), pairs of heads (``encoder``, ``presets``). Every head is called with a
``TokenBatch`` and gives ``[b, size]``; ``columns`` holds the numbers of the pieces that a cut vocabulary keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.constraints import TopK
from ellzero.retrieval.pooled_logits import POOLINGS, SATURATIONS, pooled_logits, saturate
from ellzero.retrieval.states import TokenBatch

Expansion = Callable[[list[str]], list[str]]

__all__ = [
    "BinaryHead",
    "ClsMLMHead",
    "DictionaryHead",
    "ExpMLPHead",
    "Head",
    "IDFHead",
    "MLMHead",
    "MLMTransform",
    "MLPHead",
    "TopKCode",
    "UnitTransform",
    "head_from",
    "idf_of",
]


class Head(nn.Module):
    """What all heads share: which pieces their columns are.

    Parameters
    ----------
    vocabulary : the number of pieces of the backbone. columns : the pieces that are kept, ascending; default: all.
    """

    kind = ""
    needs_states = True

    def __init__(self, vocabulary: int, columns: Sequence[int] | np.ndarray | Tensor | None = None):
        super().__init__()
        self.vocabulary = check_integer("vocabulary", vocabulary, at_least=1)
        columns = None if columns is None else torch.as_tensor(columns, dtype=torch.int64).clone()
        if columns is not None:
            rising = columns.ndim == 1 and len(columns) and bool((columns.diff() > 0).all())
            if not rising or int(columns[0]) < 0 or int(columns[-1]) >= vocabulary:
                raise InputError(f"columns: want numbers of pieces from 0 to {vocabulary - 1}, ascending, at least one")
        self.register_buffer("columns", columns)
        place = torch.arange(vocabulary)
        if columns is not None:
            place = torch.full((vocabulary,), -1).index_put((columns,), torch.arange(len(columns)))
        self.register_buffer("_place", place, persistent=False)

    @property
    def size(self) -> int:
        """The number of columns."""
        return self.vocabulary if self.columns is None else len(self.columns)

    def settings(self) -> dict[str, Any]:
        """What makes it again beside its tensors, as JSON."""
        return {"kind": self.kind, "vocabulary": self.vocabulary}

    def names(self, pieces: Sequence[str]) -> list[str]:
        """The names of the columns, given those of the pieces."""
        return list(pieces) if self.columns is None else [pieces[column] for column in self.columns.tolist()]

    def spread(self, weights: Float[Tensor, "b L"], batch: TokenBatch, repeats: str) -> Float[Tensor, "b size"]:
        """Weights of a text's own tokens in the columns of their pieces; of equal ones the largest, or their sum."""
        place = self._place[batch.pieces]
        weights = weights.where(batch.own & (place >= 0), 0)
        out = weights.new_zeros(len(weights), self.size)
        if repeats == "sum":
            return out.scatter_add(1, place.clamp_min(0), weights)
        return out.scatter_reduce(1, place.clamp_min(0), weights, "amax")


class MLMTransform(nn.Module):
    """``LayerNorm(GELU(W h + b))``: what a masked language model does before its output embeddings."""

    kind = "mlm"

    def __init__(
        self, width: int, out: int | None = None, activation: str = "gelu", eps: float = 1e-12, bias: bool = True
    ):  # fmt: skip
        super().__init__()
        self.activation = check_choice("activation", activation, ("gelu", "gelu_new", "relu", "silu"))
        self.dense, self.norm = nn.Linear(width, out or width, bias=bias), nn.LayerNorm(out or width, eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        if self.activation.startswith("gelu"):
            return self.norm(F.gelu(x, approximate="tanh" if self.activation == "gelu_new" else "none"))
        return self.norm(F.relu(x) if self.activation == "relu" else F.silu(x))

    def settings(self) -> dict[str, Any]:
        """What makes it again beside its tensors."""
        out, width = self.dense.weight.shape
        return {"kind": self.kind, "width": width, "out": out, "activation": self.activation, "eps": self.norm.eps,
                "bias": self.dense.bias is not None}  # fmt: skip


class UnitTransform(nn.Module):
    """``gain * W h / |h|`` with W the identity at the start: for a body that was not trained with an MLM head.

    With unit embeddings the logits begin as ``gain`` times a cosine.
    """

    kind = "unit"

    def __init__(self, width: int, gain: float = 3.0):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))
        self.gain = nn.Parameter(torch.tensor(float(check("gain", gain, above=0))))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.linear(F.normalize(x, dim=-1), self.weight)

    def settings(self) -> dict[str, Any]:
        """What makes it again beside its tensors."""
        return {"kind": self.kind, "width": len(self.weight)}


_TRANSFORMS = {one.kind: one for one in (MLMTransform, UnitTransform)}


class MLMHead(Head):
    """Weights over the whole vocabulary: ``w_j = pool_i saturate(t(h_i) . E_j + c_j)``. Formal et al. (2021).

    Parameters
    ----------
    embeddings : E ``[size, d]``; a ``Parameter`` is shared and not copied, so it stays tied to the model's own.
    bias : c ``[size]``, a number, or None for 0. transform : t, or None.
    pooling : ``"max"`` or ``"sum"`` over the tokens, special ones included, padding not.
    saturation : ``"relu"``, ``"log1p"`` or ``"log1p_log1p"``.
    positions : ``"all"``, or ``"echo"``: the second copy of a text alone (decoders).
    quality : whether a document's weights are multiplied by ``sigmoid(u . h_1 + a)``, as EPIC does.
    vocabulary, columns : as for ``Head``; default: as many pieces as E has rows.
    """

    kind = "mlm"

    def __init__(
        self,
        embeddings: Tensor,
        bias: Tensor | float | None = None,
        *,
        transform: nn.Module | None = None,
        pooling: str = "max",
        saturation: str = "log1p",
        positions: str = "all",
        quality: bool = False,
        vocabulary: int | None = None,
        columns: Any = None,
    ):
        super().__init__(vocabulary or len(embeddings), columns)
        if embeddings.ndim != 2 or len(embeddings) != self.size:
            raise InputError(f"embeddings: got shape {tuple(embeddings.shape)}, want [{self.size}, d]")
        self.embeddings = embeddings if isinstance(embeddings, nn.Parameter) else nn.Parameter(embeddings.clone())
        if not isinstance(bias, Tensor):
            bias = torch.full((self.size,), float(bias or 0), dtype=embeddings.dtype)
        self.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.clone())
        self.transform = transform
        self.pooling = check_choice("pooling", pooling, POOLINGS)
        self.saturation = check_choice("saturation", saturation, SATURATIONS)
        self.positions = check_choice("positions", positions, ("all", "echo"))
        self.quality = nn.Linear(embeddings.shape[1], 1) if quality else None
        self.tied = False  # whether its parameters are those of the backbone's model

    def forward(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        states, mask = _states(batch), batch.mask
        if self.positions == "echo":
            if batch.echo is None:
                raise InputError("positions: got 'echo' for texts that stand there once, want a backbone of echo=True")
            mask = batch.echo & batch.mask
        bias = self.bias * self.transform.gain if isinstance(self.transform, UnitTransform) else self.bias
        out = pooled_logits(
            states, mask, self.embeddings, bias, pooling=self.pooling, saturation=self.saturation,
            transform=self.transform,
        )  # fmt: skip
        return out if self.quality is None else out * self.quality(first_state(batch)).sigmoid()

    def settings(self) -> dict[str, Any]:
        transform = None if self.transform is None else self.transform.settings()
        return {**super().settings(), "pooling": self.pooling, "saturation": self.saturation, "transform": transform,
                "positions": self.positions, "quality": self.quality is not None,
                "learns_embeddings": self.embeddings.requires_grad}  # fmt: skip


class ClsMLMHead(MLMHead):
    """Weights over the vocabulary from the first token alone, as TILDE has them. Zhuang and Zuccon (2021)."""

    kind = "cls_mlm"

    def forward(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        first = batch.mask & (batch.mask.cumsum(1) == 1)
        head = first_state(batch)[:, None]
        return super().forward(TokenBatch(head, batch.pieces[:, :1], first.any(1, keepdim=True), first[:, :1]))


class MLPHead(Head):
    """One weight for each token of the text: ``u_i = saturate(v . h_i + b)``, no terms beside its own.

    uniCOIL of Lin and Ma (2021), section 3: a document's repeated pieces keep the largest weight, a query's add up.

    Parameters
    ----------
    width : of a state. repeats : ``"max"`` (documents) or ``"sum"`` (queries).
    saturation : as for ``MLMHead``. bias : b at the start; above 0, or most tokens begin dead. v begins at 0.
    """

    kind = "mlp"

    def __init__(
        self, width: int, vocabulary: int, *, repeats: str = "max", saturation: str = "relu", bias: float = 1.0,
        columns: Any = None,
    ):  # fmt: skip
        super().__init__(vocabulary, columns)
        self.repeats = check_choice("repeats", repeats, ("max", "sum"))
        self.saturation = check_choice("saturation", saturation, SATURATIONS)
        self.linear = nn.Linear(check_integer("width", width, at_least=1), 1)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.fill_(check("bias", bias))

    def forward(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        weights = saturate(self.linear(_states(batch)).squeeze(-1), self.saturation)
        if batch.echo is not None:
            weights = weights * batch.echo
        return self.spread(weights, batch, self.repeats)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "width": self.linear.in_features, "repeats": self.repeats,
                "saturation": self.saturation}  # fmt: skip


class ExpMLPHead(MLPHead):
    """``MLPHead`` over texts to which an outside model has added terms. DeepImpact; TILDEv2.

    Parameters
    ----------
    expand : from a list of texts to the longer ones, called before they are cut into pieces; None where the texts
        come expanded. It is no part of a saved head.
    """

    kind = "exp_mlp"

    def __init__(self, width: int, vocabulary: int, *, expand: Expansion | None = None, **options: Any):
        super().__init__(width, vocabulary, **options)
        self.expand = expand


class IDFHead(Head):
    """A table of weights, no transformer: ``w_j = idf_j`` of each distinct piece of the text. Geng et al. (2024).

    Parameters
    ----------
    weights : ``[vocabulary]`` per piece, non-negative; see ``idf_of``. trainable : whether training moves them.
    """

    kind = "idf"
    needs_states = False

    def __init__(self, weights: Tensor | np.ndarray, *, trainable: bool = False, columns: Any = None):
        weights = torch.as_tensor(weights, dtype=torch.float32).clone()
        super().__init__(len(weights), columns)
        if weights.ndim != 1 or not bool(((weights >= 0) & weights.isfinite()).all()):
            raise InputError("weights: want one finite number from 0 on for each piece")
        self.weights = nn.Parameter(weights, requires_grad=trainable)

    @property
    def lookup(self) -> Tensor:
        """The weight of each piece."""
        return self.weights.relu()

    def forward(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        return self.spread(self.lookup[batch.pieces], batch, "max")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "trainable": self.weights.requires_grad}


class BinaryHead(Head):
    """1 for each distinct piece of the text."""

    kind = "binary"
    needs_states = False

    @property
    def lookup(self) -> Tensor:
        """The weight of each piece."""
        return torch.ones(self.vocabulary)

    def forward(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        return self.spread(batch.own.float(), batch, "max")


class TopKCode(nn.Module):
    """``relu`` of the k largest of ``W (x - a) + b``: the encoder of S088, as sentence-transformers keeps it.

    Parameters
    ----------
    width, size : of x and of the code. k : how many entries stay.
    normalise : whether x is first taken to mean 0 and deviation 1.
    """

    def __init__(self, width: int, size: int, k: int, *, normalise: bool = False):
        super().__init__()
        self.k, self.normalise = check_integer("k", k, at_least=1, at_most=size), bool(normalise)
        self.weight = nn.Parameter(torch.zeros(size, width))
        self.before, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(size))

    def encode(self, x: Float[Tensor, "b width"]) -> Float[Tensor, "b size"]:
        """Codes of rows."""
        if self.normalise:
            x = x - x.mean(-1, keepdim=True)
            x = x / (x.std(-1, keepdim=True) + 1e-5)
        z = F.linear(x - self.before, self.weight, self.bias)
        return z.where(TopK(self.k).support(z.detach()), 0).relu()

    def settings(self) -> dict[str, Any]:
        """What makes it again beside its tensors."""
        size, width = self.weight.shape
        return {"width": width, "size": size, "k": self.k, "normalise": self.normalise}


class DictionaryHead(Head):
    """The code of one state of the text in a dictionary: anything with ``.encode``, such as a sparse autoencoder.

    Parameters
    ----------
    dictionary : ``encode`` takes ``[b, d]`` and gives ``[b, size]``; what is negative is cut to 0.
    size : the number of its latents.
    pooling : the state is the ``"mean"`` of the tokens', or the ``"first"`` token's.
    normalise : whether it is scaled to unit length first.
    """

    kind = "dictionary"

    def __init__(self, dictionary: Any, size: int, *, pooling: str = "mean", normalise: bool = True):
        super().__init__(size)
        if not callable(getattr(dictionary, "encode", None)):
            raise InputError(f"dictionary: got {type(dictionary).__name__}, want an object with .encode")
        self.dictionary, self.normalise = dictionary, normalise
        self.pooling = check_choice("pooling", pooling, ("mean", "first"))

    def names(self, pieces: Sequence[str]) -> list[str]:
        """Latents have numbers for names."""
        return [f"latent {number}" for number in range(self.vocabulary)]

    def forward(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        if self.pooling == "first":
            dense = first_state(batch)
        else:
            counted = batch.mask if batch.echo is None else batch.echo
            dense = (_states(batch) * counted[..., None]).sum(1) / counted.sum(1, keepdim=True).clamp_min(1)
        out = self.dictionary.encode(F.normalize(dense, dim=-1) if self.normalise else dense)
        if tuple(out.shape) != (len(batch), self.vocabulary):
            raise InputError(f"dictionary: encode gave {tuple(out.shape)}, want ({len(batch)}, {self.vocabulary})")
        return out.relu()

    def settings(self) -> dict[str, Any]:
        if not isinstance(self.dictionary, TopKCode):
            raise InputError(f"dictionary: a {type(self.dictionary).__name__} is not saved with an encoder; save it "
                             "itself, and make the head anew")  # fmt: skip
        return {**super().settings(), "pooling": self.pooling, "normalise": self.normalise,
                "dictionary": self.dictionary.settings()}  # fmt: skip


def first_state(batch: TokenBatch) -> Float[Tensor, "b d"]:
    """The state of each text's first token, wherever the padding stands."""
    place = batch.mask.float().argmax(1)
    return _states(batch)[torch.arange(len(place), device=place.device), place]


def _states(batch: TokenBatch) -> Tensor:
    if batch.states is None:
        raise InputError("batch: has no token states, want those of a backbone")
    return batch.states


def idf_of(
    pieces: Iterable[Sequence[int] | np.ndarray], vocabulary: int, *, default: float | None = None
) -> Float[Tensor, " vocabulary"]:
    """``log(1 + (N - n + 0.5) / (n + 0.5))`` for each piece, n of N texts holding it.

    Parameters
    ----------
    pieces : the numbers in each text. default : the weight of pieces in none; without one, what the formula says.
    """
    found, texts = np.zeros(check_integer("vocabulary", vocabulary, at_least=1), np.int64), 0
    for one in pieces:
        found[np.unique(np.asarray(one, np.int64))] += 1
        texts += 1
    if not texts:
        raise InputError("pieces: got no text, want at least one")
    idf = np.log(1 + (texts - found + 0.5) / (found + 0.5))
    if default is not None:
        idf[found == 0] = check("default", default, at_least=0)
    return torch.from_numpy(idf).float()


_HEADS = {one.kind: one for one in (MLMHead, ClsMLMHead, MLPHead, ExpMLPHead, IDFHead, BinaryHead, DictionaryHead)}


def head_from(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Head:
    """The head that ``settings()`` and ``state_dict()`` describe."""
    settings = dict(settings)
    make = _HEADS[check_choice("kind", settings.pop("kind", None), _HEADS)]
    columns = tensors.get("columns")
    if issubclass(make, MLMHead):
        if (asked := settings.pop("transform")) is not None:
            asked = dict(asked)
            settings["transform"] = _TRANSFORMS[check_choice("transform", asked.pop("kind"), _TRANSFORMS)](**asked)
        learned = settings.pop("learns_embeddings")
        made = make(tensors["embeddings"], tensors["bias"], columns=columns, **settings)
        made.embeddings.requires_grad_(learned)
    elif make is IDFHead:
        made = make(tensors["weights"], trainable=settings["trainable"], columns=columns)
    elif make is DictionaryHead:
        dictionary, size = TopKCode(**settings.pop("dictionary")), settings.pop("vocabulary")
        made = make(dictionary, size, **settings)
    else:
        made = make(**settings, columns=columns)
    made.load_state_dict(dict(tensors))
    return made
