"""What the tasks about networks work on: rows of files, images or texts, and the networks that stand in for the user's.

Lives here: ``Rows`` and how they are read, ``net_spec`` and ``module_of`` (a network from its spec), ``apply_network``.
Does not live here: the tasks, the methods (``ellzero.network``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ellzero.compare.specs import load_object
from ellzero.compare.tasks.tables import kept_columns
from ellzero.data import sets
from ellzero.errors import InputError, check_choice
from ellzero.io import artefacts
from ellzero.io.readers import read_table, read_texts
from ellzero.models.mlp import MLPConfig
from ellzero.models.reference import held_out_loss, reference_language_model, reference_texts
from ellzero.models.residual import ResidualConfig
from ellzero.models.transformer import TransformerConfig
from ellzero.network import frontier, packed
from ellzero.protocol import Output
from ellzero.training.loop import seeded

__all__ = ["IMAGES", "Rows", "apply_network", "module_of", "net_spec", "read_rows", "read_windows"]

IMAGES = {"digits": (256, 128), "mnist": (300, 100)}
"""Sets of images, and the hidden layers of the perceptron that reads them."""
_WIDTHS = (8, 16, 32)
_TEXT = {"width": 64, "depth": 2, "heads": 4, "key_heads": 2, "hidden": 176, "context": 32}
_EVERY = 3
"""Of the shipped documents one in three, which is 0.7 million characters."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as float32, classes as 0, 1, ... with their names, the columns' names, and what stays together.

    Of texts: windows of tokens, and the tokens that follow each.
    """

    X: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    units: np.ndarray


@lru_cache(maxsize=4)
def read_rows(data: str, target: str | None, groups: str | None, stamp: int | None) -> Rows:
    if data in IMAGES:
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
    return Rows(scaled.astype(np.float32), labels.astype(np.int64), tuple(names), tuple(columns), units)


@lru_cache(maxsize=1)
def read_windows() -> Rows:
    """Windows of the shipped texts, each begun by the tokenizer's ``bos``; those of a document stay together."""
    tokenizer, context = reference_language_model()[1], _TEXT["context"]
    documents = [*reference_texts("train"), *reference_texts("validation")][::_EVERY]
    following, units = [], []
    for number, document in enumerate(documents):
        tokens = np.array(tokenizer.encode(document), dtype=np.int64)
        whole = len(tokens) // context
        following.append(tokens[: whole * context].reshape(whole, context))
        units.append(np.full(whole, number))
    y = np.concatenate(following)
    X = np.concatenate([np.full((len(y), 1), tokenizer.bos), y[:, :-1]], axis=1)
    return Rows(X, y, (), (), np.unique(np.concatenate(units), return_inverse=True)[1])


def net_spec(net: str, dataset: str, rows: Rows) -> dict[str, Any]:
    """What builds the network that stands in for the user's: ``"mlp"``, ``"residual"`` or ``"transformer"``."""
    common = {"inputs": rows.X.shape[1], "classes": list(rows.classes), "columns": list(rows.columns)}
    if net == "transformer":
        vocabulary = reference_language_model()[1].vocabulary
        return {"model": "transformer", "sizes": {"vocabulary": vocabulary, **_TEXT}, **common}
    scale = {"digits": 16.0, "mnist": 1.0}.get(dataset)
    if net == "residual":
        return {"model": "residual", "widths": list(_WIDTHS), "side": 8 if dataset == "digits" else 28, "scale": scale,
                **common}  # fmt: skip
    if scale is not None:
        return {"model": "mlp", "hidden": list(IMAGES[dataset]), "scale": scale, **common}
    return {"model": "mlp", "hidden": [256, 128], "standardized": True, **common}


def _standardized(network: nn.Module, rows: np.ndarray) -> nn.Module:
    """The network on columns of mean 0 and variance 1, as in these rows; the moments are buffers and saved with it."""
    mean, scale = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-7 * abs(mean), scale, 1.0)  # a column that never changes
    network.standardizes = True
    network.register_buffer("mean", torch.from_numpy(mean).float())
    network.register_buffer("scale", torch.from_numpy(scale).float())
    network.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - module.mean) / module.scale,))
    return network


def module_of(spec: Mapping[str, Any], seed: int, rows: np.ndarray | None = None) -> nn.Module:
    """The module of a build spec with its first weights, and the moments of ``rows`` where it standardises."""
    if spec["model"] == "mlp":
        network = MLPConfig(spec["inputs"], len(spec["classes"]), tuple(spec["hidden"])).build(seed)
        if not spec.get("standardized"):
            return network
        return _standardized(network, np.zeros((1, spec["inputs"])) if rows is None else rows)
    if spec["model"] == "residual":
        side = spec["side"]
        network = ResidualConfig(1, len(spec["classes"]), widths=tuple(spec["widths"])).build(seed)
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].reshape(-1, 1, side, side),))
        return network
    if spec["model"] == "transformer":
        return TransformerConfig(**spec["sizes"]).build(seed)
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


def apply_network(directory: Path, source: str) -> Output:
    """What a taken network says of each row, or text, of a file."""
    tensors, meta = artefacts.load(
        directory / "model.safetensors", frontier.KIND, version=frontier.VERSION, backend="torch"
    )
    spec = meta.get("build")
    if not isinstance(spec, Mapping) or not {"model", "inputs", "classes", "columns"} <= set(spec):
        raise InputError(f"{directory}: does not say which model its weights are of, want what take wrote")
    model = module_of(spec, 0)
    try:
        model.load_state_dict(packed.unpack(tensors, meta.get("shapes", {})))
    except RuntimeError as error:
        raise InputError(f"{directory}: the weights do not fit the model {spec['model']} ({error})") from error
    if spec["model"] == "transformer":
        return _apply_to_texts(model.eval(), source)
    X = kept_columns(source, (), spec["columns"], spec["columns"])
    logits = frontier.predict(model.eval(), X / spec.get("scale", 1.0))
    probability = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    best = probability.argmax(1)
    columns = {
        "class": np.asarray(spec["classes"])[best],
        "probability": probability[np.arange(len(best)), best],
    }
    return Output(columns, "the class with the largest logit, and its softmax probability")


def _apply_to_texts(model: nn.Module, source: str) -> Output:
    tokenizer, texts = reference_language_model()[1], read_texts(source)
    streams = [np.array(tokenizer.encode(text), dtype=np.int64) for text in texts]
    nats = [held_out_loss(model, stream, tokenizer.bos) for stream in streams]
    columns = {
        "text": np.arange(len(texts)), "tokens": np.array([len(s) for s in streams]), "nats_per_token": np.array(nats),
    }  # fmt: skip
    return Output(columns, f"{len(texts)} texts in windows of {model.config.context} tokens")
