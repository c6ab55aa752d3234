"""Files are written whole or not at all; a failure leaves what stood there untouched."""

import errno
import json
import os

import pytest

from ellzero.errors import InputError
from ellzero.io import atomic


def test_content_and_no_leftovers(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "ä")
    atomic.write_bytes(path, b"two")
    atomic.write_json(tmp_path / "b.json", {"b": 1, "a": [True, None]})
    assert path.read_bytes() == b"two"
    assert json.loads((tmp_path / "b.json").read_text()) == {"a": [True, None], "b": 1}
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.json"]


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_a_failing_writer_changes_nothing(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)), atomic.writing(path) as file:  # noqa: PT012
        file.write(b"half of the new")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    path.write_text("old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match="No space left"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_unwritable_places(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing" / "a", tmp_path / "file" / "a"):
        with pytest.raises(InputError, match="cannot be written"):
            atomic.write_text(path, "new")
    with pytest.raises(InputError, match="is a folder"):
        atomic.write_text(tmp_path, "new")

    def refuse(*_, **__):  # a superuser may write anywhere, so the refusal of the system is imitated
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        atomic.write_text(tmp_path / "a", "new")


def test_not_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    for value in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(InputError, match="not JSON"):
            atomic.write_json(path, value)
    assert path.read_text() == "old"


def test_permissions_and_links_stay(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640
    mask = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "fresh", "x")
    finally:
        os.umask(mask)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o640


def test_the_rename_comes_after_the_flush_and_before_the_folder_flush(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    atomic.write_text(tmp_path / "a", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.writing_folder("out", tmp_path / "a") as folder:
        (folder / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()  # an empty one is taken
    with atomic.writing_folder("out", tmp_path / "a") as folder:
        (folder / "whole").write_text("x")
        assert list((tmp_path / "a").iterdir()) == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole"]
    with pytest.raises(InputError, match=r"out: .* is there already"), atomic.writing_folder("out", tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
