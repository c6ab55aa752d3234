"""Many-file artefacts: files named by generation, and a manifest that is renamed into place last.

Lives here: ``save``, ``load`` and ``Generation``. Does not live here: what the files hold, or one-file artefacts
(``artefacts``). A crash at any moment leaves the last good generation readable; older files are deleted only after
the new manifest is on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ellzero.errors import InputError, check_integer, suggestion
from ellzero.io.artefacts import canonical_json
from ellzero.io.atomic import TEMPORARY, sync_directory, write_bytes, writing
from ellzero.io.versions import bring_forward, check_version

__all__ = ["NAME", "Generation", "load", "save"]

FORMAT = 1
NAME = "manifest.json"
_OWN = re.compile(r"g(\d{6,})-(.+)")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Generation:
    """One complete state of a many-file artefact: its number, its dictionary, and its files by their plain names."""

    directory: Path
    number: int
    meta: Mapping[str, Any]
    files: Mapping[str, Path]

    def read(self, name: str) -> bytes:
        """The content of one file."""
        if name not in self.files:
            raise InputError(f"{self.directory}: has no file {name!r}{suggestion(name, self.files)}")
        return self.files[name].read_bytes()


def save(
    directory: str | os.PathLike,
    files: Mapping[str, bytes | Callable[[BinaryIO], None]],
    meta: Mapping[str, Any],
    kind: str,
    version: int = 1,
) -> Generation:
    """Write the next generation of a many-file artefact into an existing folder.

    Parameters
    ----------
    files : content by plain name, such as ``"weights.safetensors"``: bytes, or a function that writes to an open file.
    meta : whatever JSON holds. kind, version : as for one-file artefacts.

    Two processes that save to one folder take turns. Files of other names in the folder are left alone.

    Raises
    ------
    InputError : a missing or unwritable folder, or a bad name, meta, kind or version; the generation before stays.
    """
    directory = Path(directory)
    check_integer("version", version, at_least=1)
    if not isinstance(kind, str) or not kind:
        raise InputError(f"kind: got {kind!r}, want a word such as 'checkpoint'")
    for name in files:
        if not isinstance(name, str) or not _PLAIN.fullmatch(name) or name.endswith(TEMPORARY):
            raise InputError(f"files: got the name {name!r}, want letters, digits, '.', '_' and '-', at most 100")
    meta = json.loads(canonical_json("meta", dict(meta)))
    with _turn(directory):
        number = 1 + max([0, *_generations(directory)])
        listed = {}
        for name, content in files.items():
            own = f"g{number:06d}-{name}"
            with writing(directory / own) as file:
                content(file) if callable(content) else file.write(content)
            listed[name] = {"file": own, **_fingerprint(directory / own)}
        record = {
            "format": FORMAT, "kind": kind, "version": version, "generation": number, "meta": meta, "files": listed,
        }  # fmt: skip
        write_bytes(directory / NAME, _encode(record))
        _clean(directory, number)
    return Generation(directory, number, meta, {name: directory / entry["file"] for name, entry in listed.items()})


def load(directory: str | os.PathLike, kind: str, *, version: int = 1) -> Generation:
    """The newest complete generation, with the hash of every file checked.

    Parameters
    ----------
    kind : what the folder must hold. version : the newest version that the caller understands.

    Raises
    ------
    InputError : no manifest, a torn, changed, missing or foreign file, another kind, or a newer version.
    """
    directory = Path(directory)
    check_integer("version", version, at_least=1)
    seen = None
    while True:
        record = _read_manifest(directory, kind)
        check_version(directory / NAME, kind, record["version"], version)
        try:
            files = {name: _checked(directory, entry) for name, entry in record["files"].items()}
            break
        except InputError:
            if record["generation"] == seen:
                raise
            seen = record["generation"]  # a writer may have gone on and cleaned up meanwhile: look once more
    files, meta = bring_forward(directory, kind, record["version"], version, files, record["meta"])
    return Generation(directory, record["generation"], meta, files)


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Hold the folder's lock: the system gives it back also when the process is killed."""
    if not directory.is_dir():
        raise InputError(f"{directory}: is not a folder, want an existing one to write into")
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _generations(directory: Path) -> list[int]:
    """The numbers of every generation that left a file, complete or not, and of the manifest if it is readable."""
    numbers = [int(match[1]) for name in os.listdir(directory) if (match := _OWN.fullmatch(name))]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        numbers.append(int(json.loads((directory / NAME).read_bytes())["generation"]))
    return numbers


def _clean(directory: Path, number: int) -> None:
    """Delete older generations and what killed writers left; a file that cannot be deleted is left for later."""
    for name in os.listdir(directory):
        match = _OWN.fullmatch(name)
        torn = name.endswith(TEMPORARY) and (name.startswith(f".{NAME}.") or re.match(r"\.g\d{6,}-", name))
        if torn or (match and int(match[1]) != number):
            with contextlib.suppress(OSError):
                os.unlink(directory / name)
    sync_directory(directory)


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return {"nbytes": file.tell(), "blake2b": digest}


def _encode(record: Mapping[str, Any]) -> bytes:
    """The manifest as it is written, which carries a hash of itself."""
    body = {key: value for key, value in record.items() if key != "check"}
    plain = json.dumps(body, sort_keys=True).encode()
    check = hashlib.blake2b(plain, digest_size=16).hexdigest()
    return json.dumps({**body, "check": check}, sort_keys=True, indent=1).encode() + b"\n"


def _read_manifest(directory: Path, kind: str) -> dict[str, Any]:
    path = directory / NAME
    if not directory.is_dir():
        raise InputError(f"{directory}: is not a folder, want one that holds {NAME}")
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{directory}: has no {NAME}, so it is not a complete artefact of ellzero") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        record = json.loads(raw)
        newest, version, own = record["format"], record["version"], record["kind"]
        if type(newest) is not int or type(version) is not int:
            raise ValueError("versions that are not whole numbers")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: is damaged, or ellzero did not write it ({error})") from error
    if newest > FORMAT:
        raise InputError(f"{path}: has file format {newest}, written by a newer ellzero; this one reads up to {FORMAT}")
    if _encode(record) != raw:
        raise InputError(f"{path}: is damaged, or ellzero did not write it (its hash does not match)")
    if own != kind:
        raise InputError(f"{path}: holds {own!r}, want {kind!r}{suggestion(own, [kind])}")
    return record


def _checked(directory: Path, entry: Mapping[str, Any]) -> Path:
    path = directory / entry["file"]
    try:
        found = _fingerprint(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    for key, what in (("nbytes", "size"), ("blake2b", "hash")):
        if found[key] != entry[key]:
            raise InputError(f"{path}: is damaged (its {what} does not match the manifest)")
    return path
