"""Folders of sentence-transformers' ``SparseEncoder``: read and written without that library.

Lives here: ``load`` and ``save`` for SPLADE (a masked language model and its pooling), inference-free SPLADE (a router
whose query side is a table) and CSR (a pooled state and its sparse code). Does not live here: our own folder
(``encoder_files``). Weights are read from safetensors alone, and code that a folder names is never run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ellzero.errors import InputError
from ellzero.io.atomic import write_json, writing_folder
from ellzero.retrieval.backbone import Backbone
from ellzero.retrieval.encoder import SparseEncoder
from ellzero.retrieval.heads import BinaryHead, DictionaryHead, Head, IDFHead, MLMHead, TopKCode
from ellzero.retrieval.pretrained import mlm_head

__all__ = ["load", "save"]

TYPES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Router": "sentence_transformers.base.modules.router.Router",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "SpladePooling": "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
    "SparseStaticEmbedding":
        "sentence_transformers.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding",
    "SparseAutoEncoder": "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder",
}  # fmt: skip
ACTIVATIONS = {"relu": "log1p", "log1p_relu": "log1p_log1p"}  # theirs takes a log1p more than its name says
Side = tuple[Head, Backbone | None]


def load(path: str | os.PathLike) -> SparseEncoder:
    """An encoder from a folder that their ``save_pretrained`` wrote; vectors are equal to theirs.

    Raises
    ------
    InputError : parts that are not known here (named), prompts, weights that are no safetensors, a torn folder.
    """
    path = Path(path)
    parts = [(_short(one["type"]), path / one["path"]) for one in _json(path / "modules.json", list)]
    about = (
        _json(path / "config_sentence_transformers.json")
        if (path / "config_sentence_transformers.json").is_file()
        else {}
    )
    if any((about.get("prompts") or {}).values()):
        raise InputError(f"path: {path} puts prompts before texts, which are not known here; want one without")
    if [kind for kind, _ in parts] != ["Router"]:
        head, backbone = _side(path, parts)
        if backbone is None:
            raise InputError(f"path: {path} has a table alone; want a transformer on the documents' side")
        return SparseEncoder(head, head, backbone)
    router = _json(parts[0][1] / "router_config.json")
    sides = {}
    for side, names in router["structure"].items():
        sides[side] = _side(path, [(_short(router["types"][name]), parts[0][1] / name) for name in names])
    if set(sides) != {"query", "document"} or sides["document"][1] is None:
        raise InputError(f"path: {path} routes {sorted(sides)}, want query, and document with a transformer")
    (query, body), (document, backbone) = sides["query"], sides["document"]
    if query.size != document.size and isinstance(query, IDFHead) and query.size < document.size:
        query = IDFHead(torch.nn.functional.pad(query.weights.detach(), (0, document.size - query.size)))
    return SparseEncoder(query, document, backbone, query_backbone=body)


def _side(path: Path, parts: Sequence[tuple[str, Path]]) -> Side:
    """A head, and the backbone that it needs."""
    kinds = [{"MLMTransformer": "Transformer"}.get(kind, kind) for kind, _ in parts]
    places = [place for _, place in parts]
    if kinds == ["SparseStaticEmbedding"]:
        return _table(places[0]), None
    if kinds == ["Transformer", "SpladePooling"]:
        config, backbone = _json(places[1] / "config.json"), _backbone(places[0])
        activation = config.get("activation_function", "relu")
        if activation not in ACTIVATIONS:
            raise InputError(
                f"path: {places[1]} has the activation {activation!r}, want one of {', '.join(ACTIVATIONS)}"
            )
        pooling = config.get("pooling_strategy", "max")
        return mlm_head(backbone, pooling=pooling, saturation=ACTIVATIONS[activation], positions="all"), backbone
    if kinds == ["Transformer", "Pooling", "SparseAutoEncoder"]:
        return _code(places[1], places[2]), _backbone(places[0])
    raise InputError(f"path: {path} is made of {', '.join(kinds)}, want a Transformer and SpladePooling, a "
                     "SparseStaticEmbedding, or a Transformer, Pooling and SparseAutoEncoder")  # fmt: skip


def _backbone(place: Path) -> Backbone:
    made = Backbone.load(place, echo=False)
    about = _json(place / "sentence_bert_config.json") if (place / "sentence_bert_config.json").is_file() else {}
    limits = [about.get("max_seq_length"), made.tokenizer.model_max_length]
    limits.append(getattr(made.model.config, "max_position_embeddings", None))
    made.max_length = int(min(limit for limit in limits if limit is not None and limit > 0))
    return made


def _table(place: Path) -> IDFHead:
    config = _json(place / "config.json")
    named = config.get("path")
    if named is not None and str(named).endswith(".json"):
        known = _json(place / "tokenizer.json")["model"]["vocab"]
        weights = torch.zeros(max(known.values()) + 1)
        for piece, weight in _json(place / Path(named).name).items():
            if piece in known:
                weights[known[piece]] = weight
    else:
        weights = _tensors(place)["weight"]
    return IDFHead(weights, trainable=not config.get("frozen", False))


def _code(pooling: Path, place: Path) -> DictionaryHead:
    asked, config, tensors = _json(pooling / "config.json"), _json(place / "config.json"), _tensors(place)
    mode = asked.get("pooling_mode") or next(
        (name.removeprefix("pooling_mode_") for name, on in asked.items() if name.startswith("pooling_mode_") and on),
        None,
    )
    mode = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}.get(mode)
    if mode is None:
        raise InputError(f"path: {pooling} has another pooling than mean and cls, want one of these")
    code = TopKCode(config["input_dim"], config["hidden_dim"], config["k"], normalise=config.get("normalize", False))
    tied = tensors["encoder.weight" if "encoder.weight" in tensors else "decoder.linear.weight"]
    code.load_state_dict({"weight": tied, "before": tensors["pre_bias"], "bias": tensors["latent_bias"]})
    return DictionaryHead(code, config["hidden_dim"], pooling=mode, normalise=False)


def save(encoder: SparseEncoder, path: str | os.PathLike) -> None:
    """Write a folder that their ``SparseEncoder`` loads.

    Raises
    ------
    InputError : something stands there already, or a head that they do not have.
    """
    document, query = encoder.document_head, encoder.query_head
    if encoder.query_terms is not None or encoder.document_terms is not None:
        raise InputError(
            "encoder: keeps the largest terms of each row, which their folder cannot say; want None for both"
        )
    about = {"model_type": "SparseEncoder", "prompts": {"query": "", "document": ""}, "default_prompt_name": None,
             "similarity_fn_name": "dot", "__version__": {"sentence_transformers": "5.4.0"}}  # fmt: skip
    with writing_folder("path", path) as folder:
        write_json(folder / "config_sentence_transformers.json", about)
        if query is document:
            parts = _write_side(folder, document, encoder.backbone, "")
            write_json(folder / "modules.json", [
                {"idx": place, "name": str(place), "path": name, "type": TYPES[kind]}
                for place, (kind, name) in enumerate(parts)
            ])  # fmt: skip
            return
        body = encoder.query_backbone or encoder.backbone
        sides = {"query": _write_side(folder, query, body, "query_"),
                 "document": _write_side(folder, document, encoder.backbone, "document_")}  # fmt: skip
        write_json(folder / "router_config.json", {
            "types": {name: TYPES[kind] for parts in sides.values() for kind, name in parts},
            "structure": {side: [name for _, name in parts] for side, parts in sides.items()},
            "parameters": {"default_route": "document", "allow_empty_key": True, "route_mappings": {}},
        })  # fmt: skip
        write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": TYPES["Router"]}])


def _write_side(folder: Path, head: Head, backbone: Backbone, prefix: str) -> list[tuple[str, str]]:
    """Write a head's parts, and give their kinds and folders."""
    if isinstance(head, IDFHead | BinaryHead) and head.columns is None:
        name = f"{prefix}0_SparseStaticEmbedding"
        (folder / name).mkdir()
        frozen = not (isinstance(head, IDFHead) and head.weights.requires_grad)
        write_json(folder / name / "config.json", {"frozen": frozen})
        save_file({"weight": head.lookup.detach().cpu().contiguous()}, folder / name / "model.safetensors")
        backbone.tokenizer.save_pretrained(folder / name)
        return [("SparseStaticEmbedding", name)]
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    plain = isinstance(head, MLMHead) and head.kind == "mlm" and head.tied and head.quality is None
    if plain and head.saturation in theirs and head.positions == "all" and not backbone.echo:
        pooling = {"pooling_strategy": head.pooling, "activation_function": theirs[head.saturation]}
        after = [("SpladePooling", {**pooling, "embedding_dimension": None}, {})]
        return _write_transformer(folder, backbone, prefix, "fill-mask", "logits", after)
    if isinstance(head, DictionaryHead) and isinstance(head.dictionary, TopKCode) and not head.normalise:
        code, mode = head.dictionary, {"mean": "mean", "first": "cls"}[head.pooling]
        config = {"input_dim": code.weight.shape[1], "hidden_dim": head.size, "k": code.k, "k_aux": head.size,
                  "normalize": code.normalise, "dead_threshold": 30}  # fmt: skip
        weights = {"decoder.linear.weight": code.weight, "pre_bias": code.before, "latent_bias": code.bias,
                   "stats_last_nonzero": torch.zeros(head.size, dtype=torch.int64)}  # fmt: skip
        pooling = {"embedding_dimension": backbone.width, "pooling_mode": mode, "include_prompt": True}
        after = [("Pooling", pooling, {}), ("SparseAutoEncoder", config, weights)]
        return _write_transformer(folder, backbone, prefix, "feature-extraction", "last_hidden_state", after)
    raise InputError(f"encoder: their folder has no place for this {type(head).__name__}; want tables over the whole "
                     "vocabulary, the backbone's own MLM head with log1p, or a TopKCode")  # fmt: skip


def _write_transformer(
    folder: Path, backbone: Backbone, prefix: str, task: str, output: str,
    after: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Tensor]]],
) -> list[tuple[str, str]]:  # fmt: skip
    name = f"{prefix}0_Transformer" if prefix else ""
    (folder / name).mkdir(exist_ok=True)
    backbone.save(folder / name)
    tokens = folder / name / "tokenizer_config.json"
    write_json(tokens, {**_json(tokens), "model_max_length": backbone.max_length})
    write_json(folder / name / "sentence_bert_config.json", {
        "transformer_task": task, "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
    })  # fmt: skip
    written = [("Transformer", name)]
    for place, (kind, config, tensors) in enumerate(after, 1):
        written.append((kind, f"{prefix}{place}_{kind}"))
        (folder / written[-1][1]).mkdir()
        write_json(folder / written[-1][1] / "config.json", dict(config))
        if tensors:
            held = {key: one.detach().cpu().contiguous() for key, one in tensors.items()}
            save_file(held, folder / written[-1][1] / "model.safetensors")
    return written


def _short(name: str) -> str:
    return str(name).rsplit(".", 1)[-1]


def _json(path: Path, wanted: type = dict) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"path: {path} cannot be read as JSON ({error})") from error
    if not isinstance(found, wanted):
        raise InputError(f"path: {path} holds a {type(found).__name__}, want a {wanted.__name__}")
    return found


def _tensors(place: Path) -> dict[str, Tensor]:
    if not (place / "model.safetensors").is_file():
        raise InputError(f"path: {place} has no model.safetensors, want weights in that form")
    return load_file(place / "model.safetensors")
