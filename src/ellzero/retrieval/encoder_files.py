"""Folders of sparse encoders: ours, and the choice between it and that of sentence-transformers.

Lives here: ``save`` and ``load``. Does not live here: the other library's folders (``sentence_transformers``). A folder
holds ``backbone/`` as Hugging Face writes it and ``heads.safetensors``, whose metadata say how the parts are joined and
what the backbone's files hash to. It is there whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ellzero.errors import InputError, check_choice
from ellzero.io import artefacts
from ellzero.io.atomic import writing_folder
from ellzero.retrieval.backbone import Backbone
from ellzero.retrieval.encoder import SparseEncoder
from ellzero.retrieval.encoders import fingerprint
from ellzero.retrieval.heads import ClsMLMHead, Head, MLMHead, head_from
from ellzero.retrieval.pretrained import mlm_head

__all__ = ["FORMATS", "load", "save"]

KIND, VERSION = "sparse-encoder", 1
HEADS, BACKBONES = "heads.safetensors", {"backbone": "backbone", "query": "query_backbone"}
FORMATS = ("ellzero", "sentence_transformers")


def save(encoder: SparseEncoder, path: str | os.PathLike, format: str = "ellzero") -> None:
    """Write an encoder into a new folder, whole or not at all.

    Raises
    ------
    InputError : something stands there already, or the format has no place for this encoder.
    """
    if check_choice("format", format, FORMATS) == "sentence_transformers":
        from ellzero.retrieval import sentence_transformers

        return sentence_transformers.save(encoder, path)
    heads, tensors = _heads(encoder)
    with writing_folder("path", path) as folder:
        bodies = {}
        for name, body in (("backbone", encoder.backbone), ("query", encoder.query_backbone)):
            if body is not None:
                (folder / BACKBONES[name]).mkdir()
                body.save(folder / BACKBONES[name])
                bodies[name] = {**body.settings(), "hash": fingerprint(folder / BACKBONES[name])}
        meta = {"heads": heads, "backbones": bodies, "query_terms": encoder.query_terms,
                "document_terms": encoder.document_terms}  # fmt: skip
        artefacts.save(folder / HEADS, tensors, meta, KIND, VERSION)
    return None


def load(path: str | os.PathLike, format: str = "auto") -> SparseEncoder:
    """An encoder from our folder or from one of sentence-transformers.

    Raises
    ------
    InputError : a torn, changed, foreign or newer folder, or one with parts that are not known here.
    """
    check_choice("format", format, ("auto", *FORMATS))
    path = Path(path)
    if format == "sentence_transformers" or (format == "auto" and (path / "modules.json").is_file()):
        from ellzero.retrieval import sentence_transformers

        return sentence_transformers.load(path)
    if not (path / HEADS).is_file():
        raise InputError(f"path: {path} has neither {HEADS} nor modules.json, want the folder of a sparse encoder")
    tensors, meta = artefacts.load(path / HEADS, KIND, version=VERSION, backend="torch")
    bodies = {}
    for name, settings in meta["backbones"].items():
        settings = dict(settings)
        if fingerprint(path / BACKBONES[name]) != settings.pop("hash"):
            raise InputError(f"path: {path / BACKBONES[name]} is damaged or was changed (its hash does not match)")
        bodies[name] = Backbone.load(path / BACKBONES[name], **settings)
    made = {}
    for side in ("document", "query"):
        if meta["heads"][side] == "document":
            made[side] = made["document"]
            continue
        own = {name.split(".", 1)[1]: one for name, one in tensors.items() if name.startswith(f"{side}.")}
        body = bodies.get("query", bodies["backbone"]) if side == "query" else bodies["backbone"]
        made[side] = _head(meta["heads"][side], own, body)
    return SparseEncoder(
        made["query"], made["document"], bodies["backbone"], query_backbone=bodies.get("query"),
        query_terms=meta["query_terms"], document_terms=meta["document_terms"],
    )  # fmt: skip


def _heads(encoder: SparseEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings by side, and tensors named by side; what a tied head shares with the backbone stays out."""
    settings: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for side, head in (("document", encoder.document_head), ("query", encoder.query_head)):
        if side == "query" and head is encoder.document_head:
            settings[side] = "document"
            continue
        tied = getattr(head, "tied", False)
        settings[side] = {**head.settings(), "tied": tied}
        for name, one in head.state_dict().items():
            if not tied or not name.startswith(("embeddings", "transform.")):
                tensors[f"{side}.{name}"] = one.detach().cpu().contiguous()
    return settings, tensors


def _head(settings: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone) -> Head:
    settings = dict(settings)
    if not settings.pop("tied"):
        return head_from(settings, tensors)
    make = {one.kind: one for one in (MLMHead, ClsMLMHead)}[settings["kind"]]
    options = {name: settings[name] for name in ("pooling", "saturation", "positions", "quality")}
    made = mlm_head(backbone, make, **options)
    made.load_state_dict(tensors, strict=False)
    return made
