"""Files that are written whole or not at all.

Lives here: ``writing`` and the short forms for bytes, text and JSON; ``writing_folder``, the same for a folder of them.
Does not live here: any format.
A reader sees the old content or the new, also after a crash or a full disk, and never a mixture.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ellzero.errors import InputError

__all__ = ["TEMPORARY", "sync_directory", "write_bytes", "write_json", "write_text", "writing", "writing_folder"]

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written; one left behind by a killed process may be deleted."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of ``path`` when the block ends without an exception.

    The content goes to a temporary file in the same folder (a rename across file systems is not atomic), is
    flushed to the disk, renamed, and the folder is flushed. If anything fails, what stood there stays untouched.

    Raises
    ------
    InputError : the folder is missing or not writable, the path is a folder, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    if target.is_dir():
        raise InputError(f"{path}: is a folder, want the name of a file to write")
    temporary = target.with_name(f".{target.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask applies
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); want a file in a writable folder") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o7777)  # a replaced file keeps its permissions
        os.replace(temporary, target)
        sync_directory(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
        raise


@contextlib.contextmanager
def writing_folder(name: str, path: str | os.PathLike) -> Iterator[Path]:
    """A new folder beside ``path`` that takes its place when the block ends without an exception.

    Raises
    ------
    InputError : what stands there is no empty folder, or it cannot be written; ``name`` is the argument it names.
    """
    target = Path(os.path.abspath(path))
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(f"{name}: {path} is there already, want a new or empty folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.with_name(f".{target.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{name}: {path} cannot be written ({error.strerror})") from error
    try:
        yield folder
        if target.is_dir():
            target.rmdir()  # empty, or the rename below must not happen
        os.replace(folder, target)
        sync_directory(target.parent)
    except OSError as error:
        raise InputError(f"{name}: {path} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_directory(directory: str | os.PathLike) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with writing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write ``content`` as UTF-8 to ``path``, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, whole or not at all; NaN and infinity are refused."""
    try:
        content = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the value is not JSON ({error})") from error
    write_text(path, content + "\n")
