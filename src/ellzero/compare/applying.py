"""Use a taken model: check its files, then let its task run it on new data.

Lives here: ``apply``, the name and version of ``ellzero.json``, and its checks. Does not live here: the artefact's own
format, nor how a wing runs it (``Task.apply``).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ellzero.compare.specs import rebuild_task
from ellzero.errors import InputError
from ellzero.protocol import Output

__all__ = ["CARD", "FORMAT", "VERSION", "apply", "file_digest", "read_card"]

CARD = "ellzero.json"
FORMAT, VERSION = "ellzero model", 1


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_card(directory: str | os.PathLike) -> dict[str, Any]:
    """The content of a model's ``ellzero.json``, after checking every file it lists.

    Raises
    ------
    InputError : no model there, a file that is missing or changed, or a newer format.
    """
    folder = Path(directory)
    path = folder / CARD
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; want one that `ellzero take --out` wrote")
    if not path.is_file():
        raise InputError(f"{folder}: is no taken model, it has no {CARD}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read, it is torn or foreign ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise InputError(f"{path}: is not the card of an ellzero model")
    version = card.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise InputError(f"{path}: has format version {version}, this ellzero reads up to {VERSION}; upgrade ellzero")
    for name, digest in card["files"].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: is missing, the model is torn; take it again")
        if file_digest(file) != digest:
            raise InputError(f"{file}: is not the file that was taken (its SHA-256 differs); take it again")
    return card


def apply(directory: str | os.PathLike, data: str | os.PathLike) -> Output:
    """Run a taken model on new data.

    Parameters
    ----------
    directory : what ``take`` wrote.
    data : path of the new data, or the name of a built-in set, as the task reads them.

    Returns
    -------
    Output : named columns, one entry per row of the data.

    Raises
    ------
    InputError : the model is torn, foreign or newer, or the data cannot be read or does not fit it.
    """
    card = read_card(directory)
    return rebuild_task(card["task"], Path(directory)).apply(Path(directory), os.fspath(data))
