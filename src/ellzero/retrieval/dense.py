"""Dense retrieval: texts as vectors of a sentence encoder, and exact search by inner product.

Lives here: ``DenseEncoder``, ``DenseIndex`` and the exact top-k behind it. Does not live here: the transformer
(``backbone``), several vectors of one document (``multivector``), mixing with sparse scores (``hybrid``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array, check_choice, check_integer
from ellzero.io import artefacts
from ellzero.kernels import top_k
from ellzero.registry import register
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.ids import Ids, as_ids

__all__ = ["DenseEncoder", "DenseIndex"]

KIND, VERSION = "dense-index", 1
QUERIES, DOCUMENTS = 64, 8192  # of one product: 2 MB of scores, which stay in the cache until they are read
POOLINGS = ("mean", "cls", "max")


class DenseEncoder:
    """Texts as dense vectors: token states of a transformer, pooled.

    ``mean`` is the mean of the states of a text's tokens, special ones included, ``cls`` the first token's state,
    ``max`` the largest value of each dimension. Reimers and Gurevych (2019), section 3.

    Parameters
    ----------
    backbone : gives ``TokenBatch`` from texts.
    pooling : ``"mean"``, ``"cls"`` or ``"max"``.
    normalize : scale vectors to length 1, so that inner products are cosines.
    """

    def __init__(self, backbone: Any, *, pooling: str = "mean", normalize: bool = True):
        self.backbone, self.normalize = backbone, bool(normalize)
        self.pooling = check_choice("pooling", pooling, POOLINGS)

    @classmethod
    def load(cls, path: str | os.PathLike, *, max_length: int | None = None) -> DenseEncoder:
        """The encoder of a Hugging Face folder (mean pooling, length 1) or of a sentence-transformers folder (its own).

        Raises
        ------
        InputError : nothing that can be read, or a module of the folder that is none of pooling and normalisation.
        """
        from ellzero.retrieval.backbone import Backbone

        pooling, normalize, longest = _sentence_transformers(Path(path))
        if max_length is not None:
            longest = check_integer("max_length", max_length, at_least=1)
        return cls(Backbone.load(path, max_length=longest), pooling=pooling, normalize=normalize)

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return self.backbone.width

    def encode(self, texts: Iterable[str], *, batch_size: int = 32) -> np.ndarray:
        """Vectors ``[texts, width]`` in float32. Texts of similar length share a batch; their order stays.

        Raises
        ------
        InputError : one text in place of a list, or something that is no text.
        """
        import torch

        check_integer("batch_size", batch_size, at_least=1)
        texts = texts if isinstance(texts, str) else list(texts)
        with torch.inference_mode():
            parts = [(rows, self.pool(batch)) for rows, batch in self.backbone.batches(texts, batch_size=batch_size)]
        found = np.zeros((len(texts), self.width), np.float32)
        for rows, pooled in parts:
            found[rows] = pooled
        return found

    encode_query = encode_document = encode

    def pool(self, batch: Any) -> np.ndarray:
        """Vectors ``[texts, width]`` of a ``TokenBatch``; of a text that stands there twice the second copy counts."""
        states = batch.states.detach().float().cpu().numpy()
        mask = (batch.mask if batch.echo is None else batch.echo).cpu().numpy()[..., None]
        if self.pooling == "cls":
            pooled = states[np.arange(len(states)), mask[..., 0].argmax(1)]
        elif self.pooling == "max":
            pooled = np.where(mask, states, -np.inf).max(1)
        else:
            pooled = (states * mask).sum(1) / np.maximum(mask.sum(1), 1)
        return unit_rows(pooled) if self.normalize else pooled


def _sentence_transformers(folder: Path) -> tuple[str, bool, int]:
    """Pooling, normalisation and length that a folder asks for."""
    if not (folder / "modules.json").is_file():
        return "mean", True, 256
    pooling, normalize, longest = "mean", False, 256
    for module in _json(folder / "modules.json"):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Normalize":
            normalize = True
        elif kind == "Pooling":
            pooling = _pooling(folder / module.get("path", "") / "config.json")
        elif kind != "Transformer":
            raise InputError(f"{folder}: has a module {kind!r}, want Transformer, Pooling and Normalize alone")
    settings = folder / "sentence_bert_config.json"
    if settings.is_file():
        longest = int(_json(settings).get("max_seq_length") or longest)
    return pooling, normalize, longest


def _pooling(path: Path) -> str:
    config = _json(path)
    if isinstance(config.get("pooling_mode"), str):
        return check_choice(f"{path}: pooling_mode", config["pooling_mode"], POOLINGS)
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in names:
        raise InputError(f"{path}: asks for {', '.join(asked) or 'no pooling'}, want one of {', '.join(names)}")
    return names[asked[0]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    size = np.linalg.norm(X, axis=-1, keepdims=True)
    return X / np.where(size > 0, size, 1)


@register(
    kind="method", wing="retrieval", source="Reimers and Gurevych (2019)", example=lambda: DenseIndex(np.eye(3)),
)  # fmt: skip
class DenseIndex:
    """Exact top-k of ``Q X'`` for dense rows: float32 products choose candidates, float64 sums decide among them.

    Candidates are all documents within the rounding error of the float32 product, ``2 d u |q| max |x|``, of the k-th;
    scores are float64 sums over a document's row by itself. So the list does not depend on blocks, threads or the BLAS,
    and equal rows have equal scores. Hits are ordered by score descending, then by id ascending; every document is a
    hit, whatever its score's sign.

    Parameters
    ----------
    X : ``[documents, d]``, finite; kept as float32. Scale rows to length 1 for cosines.
    ids : one per document, all whole numbers or all text; default 0, 1, ...

    Raises
    ------
    InputError : not a matrix of finite numbers, or ids that do not fit.
    """

    def __init__(self, X: Any, ids: Iterable[Any] | None = None):
        X = check_array("X", np.asarray(X), ndim=2, dtypes="fiu", allow_empty=True)
        given = as_ids("ids", range(len(X)) if ids is None else ids, len(X))
        self.ids, rank = Ids.sorted_from(given)
        self._names: np.ndarray | None = None
        self.rows = np.empty(X.shape, np.float32)
        self.rows[rank] = X

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return self.rows.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self.rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"DenseIndex({len(self)} documents, {self.width} dimensions)"

    def search(self, Q: Any, k: int = 10, *, within: Iterable[Any] | None = None) -> Hits:
        """The k best documents of each query.

        Parameters
        ----------
        Q : ``[queries, d]``. within : ids among which to search; those that the index does not have are ignored.

        Raises
        ------
        InputError : k below 1, or queries of another width.
        """
        k = check_integer("k", k, at_least=1)
        Q = as_queries(Q, self.width)
        rows, names = self.rows, self._named()
        places = None if within is None else held(self.ids, within)
        rows = rows if places is None else rows[places]

        def scored(queries: np.ndarray, low: int, high: int) -> np.ndarray:
            return queries @ rows[low:high].T

        found, scores = [], []
        slack = rounding(self.width) * np.linalg.norm(Q, axis=1) * np.linalg.norm(rows, axis=1).max(initial=0)
        for q, candidates in enumerate(candidates_of(scored, Q, len(rows), k, slack)):
            exact = row_products(rows[candidates], Q[q])
            best = first_by_score(exact, k)
            chosen = candidates[best]
            found.append(names[chosen if places is None else places[chosen]])
            scores.append(exact[best])
        return Hits(found, scores, "dense", "exact inner products", k=k)

    def _named(self) -> np.ndarray:
        """The ids as one array, made once."""
        if self._names is None:
            self._names = self.ids.take(np.arange(len(self)))
        return self._names

    def vectors(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Rows of these documents, float32 ``[ids, d]``; an id that the index lacks is refused."""
        places = self.ids.find(ids)
        if (places < 0).any():
            raise InputError(f"ids: {list(ids)[int(np.argmin(places))]!r} is not in the index")
        return self.rows[places]

    def save(self, path: str | os.PathLike) -> None:
        """One file: vectors in float32, and ids."""
        tensors = {"rows": self.rows}
        names = ("numbers",) if self.ids.kind == "number" else ("starts", "text")
        tensors |= {name: np.ascontiguousarray(getattr(self.ids, name)) for name in names}
        artefacts.save(path, tensors, {"ids": self.ids.kind}, KIND, VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> DenseIndex:
        """What ``save`` wrote.

        Raises
        ------
        InputError : a torn, foreign or newer file.
        """
        tensors, _ = artefacts.load(path, KIND, version=VERSION)
        made = cls.__new__(cls)
        made.rows = tensors.pop("rows")
        made.ids, made._names = Ids(**tensors), None
        return made


def as_queries(Q: Any, width: int) -> np.ndarray:
    """Finite queries ``[queries, width]`` in float32."""
    Q = check_array("Q", np.asarray(Q), ndim=2, dtypes="fiu", allow_empty=True)
    if Q.shape[1] != width:
        raise InputError(f"Q: got {Q.shape[1]} dimensions, want the {width} of the index")
    return np.ascontiguousarray(Q, np.float32)


def held(ids: Ids, within: Iterable[Any]) -> np.ndarray:
    """Places, ascending, of those ids that are there."""
    places = ids.find(list(within))
    return np.unique(places[places >= 0])


def rounding(width: int) -> float:
    """Twice the relative error of a float32 product of rows of that width. Higham (2002), equation 3.7."""
    return 2 * (width + 2) * float(np.finfo(np.float32).eps) / 2


def row_products(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """``rows @ query`` in float64, each row summed by itself in the same order whatever stands beside it."""
    return (rows.astype(np.float64) * query.astype(np.float64)).sum(-1)


def first_by_score(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest, descending; a tie goes to the earlier place."""
    return np.argsort(-scores, kind="stable")[:k]


def candidates_of(
    scored: Callable[[np.ndarray, int, int], np.ndarray], Q: np.ndarray, count: int, k: int, slack: np.ndarray
) -> Iterable[np.ndarray]:
    """For each query all documents whose score is at least the k-th largest less ``slack``, ascending.

    ``scored(queries, low, high)`` gives scores ``[queries, high - low]`` of a block of documents, so that the matrix
    of all of them is never held.
    """
    for first in range(0, len(Q), QUERIES):
        queries = Q[first : first + QUERIES]
        allowance = slack[first : first + QUERIES, None].astype(np.float32)
        best = np.full((len(queries), 0), -np.inf, np.float32)
        kept: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        for low in range(0, count, DOCUMENTS):
            scores = np.ascontiguousarray(scored(queries, low, min(low + DOCUMENTS, count)))
            best = np.concatenate([best, top_k(scores, min(k, scores.shape[1])).values], 1)
            best = top_k(best, min(k, best.shape[1])).values
            threshold = best[:, -1:] - allowance
            row, place = np.nonzero(scores >= threshold)
            ends = np.searchsorted(row, np.arange(len(queries) + 1))
            for q in range(len(queries)):
                at = place[ends[q] : ends[q + 1]]
                kept[q].append((at + low, scores[q, at]))
        for q, parts in enumerate(kept):
            places = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
            scores = np.concatenate([np.empty(0, np.float32), *(part[1] for part in parts)])
            yield places[scores >= best[q, -1] - allowance[q, 0]] if len(places) else places
