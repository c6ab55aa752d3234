"""Models and tokenizers from a Hugging Face folder, or from our own model file.

Lives here: ``load_model``. Does not live here: hooks into them (``sites``, ``attach``). Weights are read from
safetensors alone, code that a folder brings along is never run, and nothing is fetched unless asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from ellzero.errors import InputError, require
from ellzero.models import storage
from ellzero.models.tokenizer import Tokenizer

__all__ = ["load_model", "no_progress_bar"]


def load_model(path: str | os.PathLike, *, download: bool = False) -> tuple[nn.Module, Any]:
    """A model in evaluation mode and its tokenizer (``None`` where there is none).

    Parameters
    ----------
    path : a folder that ``save_pretrained`` wrote, a hub id such as ``"openai-community/gpt2"``, a file that
        ``ellzero.models.save`` wrote, or ``"reference"`` for the language model that ships.
    download : let a hub id be fetched; otherwise it must be in the local cache.

    Raises
    ------
    InputError : what is there cannot be read, or would need pickle or foreign code.
    MissingExtraError : the extra ``hf`` is not installed.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InputError(f"model: got {path!r}, want a folder, a hub id or a file")
    if os.fspath(path) == "reference":
        from ellzero.models.reference import reference_language_model

        return reference_language_model()
    place = Path(path)
    if place.is_file():
        model, extra = storage.load(place)
        return model, Tokenizer.from_json(extra["tokenizer"]) if "tokenizer" in extra else None
    if place.is_dir() and not (place / "config.json").is_file():
        raise InputError(f"model: the folder {str(place)!r} has no config.json, want one that save_pretrained wrote")
    looks_local = os.fspath(path).startswith((".", "/", "~")) or os.fspath(path).count("/") > 1
    if looks_local and not place.is_dir():
        raise InputError(f"model: there is nothing at {str(place)!r}, want a folder, a hub id or a file")
    transformers = require("transformers", "hf", "to read Hugging Face models")
    options = {"local_files_only": place.is_dir() or not download, "trust_remote_code": False}
    try:
        with no_progress_bar(transformers.utils.logging):
            model = _model(transformers, path, options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"model: cannot load {str(path)!r} ({_first_line(error)})") from error
    return model.eval(), _tokenizer(transformers, path, options)


@contextmanager
def no_progress_bar(logging: Any) -> Iterator[None]:
    """A folder loads in a moment; bars belong to the caller."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _model(transformers: Any, path: str | os.PathLike, options: dict[str, Any]) -> nn.Module:
    """The class that the configuration names (it has the logits), else the bare model."""
    config = transformers.AutoConfig.from_pretrained(path, **options)
    name = (config.architectures or [None])[0]
    make = getattr(transformers, name, None) if name else None
    if make is None:
        make = transformers.AutoModel
    return make.from_pretrained(path, config=config, use_safetensors=True, local_files_only=options["local_files_only"])


def _tokenizer(transformers: Any, path: str | os.PathLike, options: dict[str, Any]) -> Any:
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
    if Path(path).is_dir() and not any((Path(path) / file).is_file() for file in files):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # the library below raises bare Exception for a file that it cannot parse
        raise InputError(f"model: cannot load the tokenizer of {str(path)!r} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
