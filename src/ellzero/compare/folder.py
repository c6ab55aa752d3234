"""The run folder: what was asked (run.json) and every fitted point (points.jsonl), safe against a kill at any time.

Lives here: ``RunFolder``, which opens, checks, locks, reads and appends. Does not live here: fitting, summaries or
reports. A point is one line, flushed to the disk before the next fit starts; a torn last line is dropped and redone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ellzero.errors import InputError
from ellzero.io import atomic
from ellzero.protocol import Point

__all__ = ["FORMAT", "VERSION", "RunFolder", "read_points", "read_question"]

FORMAT, VERSION = "ellzero run", 1


def read_question(folder: Path) -> dict[str, Any]:
    """The content of ``run.json``.

    Raises
    ------
    InputError : no such folder, not a run folder, a torn file, or one of a newer version.
    """
    path = folder / "run.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; want one that `ellzero compare --out` wrote")
    if not path.is_file():
        raise InputError(f"{folder}: is no run folder, it has no run.json")
    try:
        question = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read, it is torn or foreign ({error})") from error
    if not isinstance(question, dict) or question.get("format") != FORMAT:
        raise InputError(f"{path}: is not an ellzero run")
    version = question.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise InputError(f"{path}: has format version {version}, this ellzero reads up to {VERSION}; upgrade ellzero")
    question["methods"] = {name: question["methods"][name] for name in question["order"]}  # keys are sorted in the file
    return question


def read_points(path: Path) -> tuple[dict[str, Point], int]:
    """The points by key (the last line of a key wins) and the number of good bytes, before a torn last line.

    Raises
    ------
    InputError : a line before the last one is damaged.
    """
    content = path.read_bytes() if path.exists() else b""
    points: dict[str, Point] = {}
    good = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            if not line.endswith(b"\n"):
                break
            point = Point.from_json(line.decode())
        except (ValueError, TypeError) as error:
            if good + len(line) == len(content):
                break
            raise InputError(f"{path}: line {number} is damaged ({error})") from error
        points[point.key] = point
        good += len(line)
    return points, good


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Why the points of ``old`` do not belong to the question ``new``, or None. More of the same is the same."""
    if old["ellzero"] != new["ellzero"]:
        return f"it was made by ellzero {old['ellzero']}, this is {new['ellzero']}"
    before, now = old["task"]["describe"], new["task"]["describe"]
    if old["task"]["name"] != new["task"]["name"]:
        return f"its task is {old['task']['name']!r}, not {new['task']['name']!r}"
    for name in sorted({*before, *now}):
        if before.get(name, ...) != now.get(name, ...):
            return f"its task has {name} = {_short(before.get(name))}, not {_short(now.get(name))}"
    if old["trials"] != new["trials"]:
        return f"it gave each method {old['trials']} trials, not {new['trials']}"
    for name in ("budgets", "seeds"):
        if not set(old[name]) <= set(new[name]):
            return f"its {name} are {_short(old[name])}, not {_short(new[name])}"
    for name, record in old["methods"].items():
        if name not in new["methods"]:
            return f"it also compares {name!r}"
        if record["spec"] != new["methods"][name]["spec"]:
            return f"its {name!r} has other settings"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


class RunFolder:
    """The points of one comparison, in memory and (where ``path`` is given) on disk; a context manager.

    Raises
    ------
    InputError : ``path`` is a file, cannot be written, holds something else or another question, or is in use by
        another process. Nothing in it is changed then.
    """

    def __init__(self, path: str | os.PathLike | None, question: Mapping[str, Any]):
        self.path = None if path is None else Path(path)
        self.question = dict(question)
        self.points: dict[str, Point] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> RunFolder:
        if self.path is not None:
            self._open(self.path)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise InputError(f"out: {path} is a file, want a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            content = [name for name in os.listdir(path) if not name.endswith(atomic.TEMPORARY)]
        except OSError as error:
            raise InputError(f"out: {path} cannot be written ({error.strerror})") from error
        if content:
            if "run.json" not in content:
                raise InputError(f"out: {path} is not empty and is no run folder; want a new or empty folder")
            self._check_same(read_question(path), path)
        elif not os.access(path, os.W_OK):
            raise InputError(f"out: {path} cannot be written; want a writable folder")
        else:
            self.save_question()
        self._lock(path / "points.jsonl")
        self.save_question()

    def _check_same(self, old: Mapping[str, Any], path: Path) -> None:
        why = _difference(old, self.question)
        if why is not None:
            raise InputError(f"out: {path} holds another comparison: {why}; want a new folder")
        known = list(old["environments"])
        self.question["environments"] = known + [e for e in self.question["environments"] if e not in known]

    def _lock(self, path: Path) -> None:
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise InputError(f"out: {path} cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.__exit__()
            raise InputError(
                f"out: another process is writing {path.parent}; wait for it or use a new folder"
            ) from error
        try:
            self.points, good = read_points(path)
        except InputError:
            self.__exit__()
            raise
        self._file.truncate(good)

    def save_question(self) -> None:
        """Write ``run.json``, whole or not at all."""
        if self.path is not None:
            atomic.write_json(self.path / "run.json", self.question)

    def append(self, point: Point) -> None:
        """Keep a point; on return it is on the disk."""
        self.points[point.key] = point
        if self._file is not None:
            self._file.write(point.to_json().encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def log(self, text: str) -> None:
        """Append to ``failures.log``: the tracebacks behind points that failed."""
        if self.path is not None:
            with (self.path / "failures.log").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
