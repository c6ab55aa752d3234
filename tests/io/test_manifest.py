"""Many-file artefacts: whatever moment a writer dies at, the last good generation is read."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ellzero.errors import InputError
from ellzero.io import manifest, versions

WRITER = """
import sys
from ellzero.io import manifest
for i in range(1, 100_000):
    content = str(i).encode() * 2_000
    saved = manifest.save(sys.argv[1], {"a": content, "b": lambda f: f.write(content)}, {"i": i}, "thing")
    print(i, saved.number, flush=True)
"""


def save(directory, i, **more):
    return manifest.save(directory, {"a": b"%d" % i, "b.bin": lambda f: f.write(b"%d" % -i)}, {"i": i}, "thing", **more)


def assert_whole(generation):
    i = generation.meta["i"]
    assert (generation.read("a"), generation.read("b.bin")) == (b"%d" % i, b"%d" % -i)


def test_round_trip_and_cleaning(tmp_path):
    (tmp_path / "mine.txt").write_text("not ours")
    for i in (1, 2, 3):
        assert save(tmp_path, i).number == i
        found = manifest.load(tmp_path, "thing")
        assert found.number == i
        assert_whole(found)
    assert sorted(os.listdir(tmp_path)) == ["g000003-a", "g000003-b.bin", "manifest.json", "mine.txt"]


def test_killed_writers_leave_a_good_generation(tmp_path):
    """A real process, really killed, at random moments; each next writer goes on from what it finds."""
    chance = random.Random(0)
    interrupted = 0
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        first = writer.stdout.readline().split()
        assert first, "the writer did not start"
        time.sleep(chance.uniform(0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split("\n")
        writer.wait()
        done = [line.split() for line in [" ".join(first), *rest] if len(line.split()) == 2]
        confirmed, number = map(int, done[-1])
        found = manifest.load(tmp_path, "thing")
        i = found.meta["i"]
        assert i in (confirmed, confirmed + 1)
        assert found.number >= number
        assert found.read("a") == found.read("b") == str(i).encode() * 2_000
        interrupted += len(os.listdir(tmp_path)) > 3
    assert manifest.save(tmp_path, {"a": b"x"}, {}, "thing").number > number
    assert sorted(os.listdir(tmp_path))[1:] == ["manifest.json"]
    assert interrupted, "no writer died in the middle; the test says nothing"


class Crash(BaseException):
    """The process ends here: nothing after it runs, cleaning included."""


CALLS = ("open", "fsync", "replace", "unlink")  # a killed process does give back its descriptors and its lock


def crashing(monkeypatch, after):
    """Let the ``after``-th call of the file system, and every later one, do nothing but raise."""
    count = [0]

    def wrap(real):
        def call(*arguments, **more):
            count[0] += 1
            if count[0] > after:
                raise Crash
            return real(*arguments, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return count


def test_a_crash_at_every_single_step(tmp_path, monkeypatch):
    seen = set()
    for after in range(200):
        directory = tmp_path / str(after)
        directory.mkdir()
        save(directory, 1)
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            count = crashing(patch, after)
            save(directory, 2)
        found = manifest.load(directory, "thing")
        assert_whole(found)
        seen.add(found.meta["i"])
        assert_whole(save(directory, 3))
        assert sorted(os.listdir(directory))[-1] == "manifest.json"
        assert len(os.listdir(directory)) == 3
        if count[0] <= after:
            break
    else:
        pytest.fail("the save never ended")
    assert seen == {1, 2}
    assert after > 10


def test_a_reader_beside_a_writer_never_sees_a_mixture(tmp_path):
    save(tmp_path, 0)
    stop = threading.Event()

    def write():
        i = 0
        while not stop.is_set():
            i += 1
            save(tmp_path, i)

    writer = threading.Thread(target=write)
    writer.start()
    numbers, end = [], time.monotonic() + 60
    try:
        while len(numbers) < 100 or (numbers[-1] == numbers[0] and time.monotonic() < end):
            numbers.append(manifest.load(tmp_path, "thing").number)
    finally:
        stop.set()
        writer.join()
    assert numbers == sorted(numbers)
    assert numbers[-1] > numbers[0]


def test_every_changed_byte_and_every_cut_is_refused(tmp_path):
    save(tmp_path, 12)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for place in range(len(content)):
            for damaged in (content[:place] + bytes([content[place] ^ 0x29]) + content[place + 1 :], content[:place]):
                path.write_bytes(damaged)
                with pytest.raises(InputError):
                    manifest.load(tmp_path, "thing")
        path.unlink()
        with pytest.raises(InputError, match=r"no manifest|cannot be read"):
            manifest.load(tmp_path, "thing")
        path.write_bytes(content)
    assert_whole(manifest.load(tmp_path, "thing"))


def test_versions_and_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "_UPGRADES", {})
    save(tmp_path, 1, version=2)
    with pytest.raises(InputError, match="'thing' version 2, written by a newer ellzero"):
        manifest.load(tmp_path, "thing")
    with pytest.raises(InputError, match="no step from version 2"):
        manifest.load(tmp_path, "thing", version=3)
    versions.upgrade("thing", since=2)(lambda files, meta: ({"c": files["a"]}, {**meta, "new": True}))
    found = manifest.load(tmp_path, "thing", version=3)
    assert found.read("c") == b"1"
    assert found.meta == {"i": 1, "new": True}
    with pytest.raises(InputError, match="has no file 'd'"):
        found.read("d")
    with pytest.raises(InputError, match="holds 'thing', want 'thong'"):
        manifest.load(tmp_path, "thong")
    monkeypatch.setattr(manifest, "FORMAT", 7)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="file format 7"):
        manifest.load(tmp_path, "thing")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "1", "kind": "thing", "version": 1}', "[" * 5000])
def test_foreign_manifests(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="did not write it"):
        manifest.load(tmp_path, "thing")
    assert save(tmp_path, 1).number == 1


def test_bad_input_leaves_the_last_generation(tmp_path):
    save(tmp_path, 1)
    before = sorted(os.listdir(tmp_path))
    for files in ({"../a": b""}, {"": b""}, {"a/b": b""}, {3: b""}, {".a": b""}, {"a.tmp": b""}, {"a" * 101: b""}):
        with pytest.raises(InputError, match="files: got the name"):
            manifest.save(tmp_path, files, {}, "thing")
    with pytest.raises(InputError, match="meta"):
        manifest.save(tmp_path, {}, {"a": float("nan")}, "thing")
    with pytest.raises(InputError, match="kind"):
        manifest.save(tmp_path, {}, {}, "")
    with pytest.raises(InputError, match="version"):
        manifest.save(tmp_path, {}, {}, "thing", 0)

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        manifest.save(tmp_path, {"a": b"1", "b": fail}, {}, "thing")
    assert_whole(manifest.load(tmp_path, "thing"))
    assert set(before) <= set(os.listdir(tmp_path))
    assert save(tmp_path, 5).number == 3  # 2 was tried, and its first file lay there
    assert len(os.listdir(tmp_path)) == 3


def test_bad_places(tmp_path, monkeypatch):
    for directory in (tmp_path / "missing", Path(__file__)):
        with pytest.raises(InputError, match="not a folder"):
            save(directory, 1)
        with pytest.raises(InputError, match="not a folder"):
            manifest.load(directory, "thing")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        manifest.load(tmp_path, "thing")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        manifest.load(tmp_path, "thing")


def test_the_manifest_is_plain_json(tmp_path):
    save(tmp_path, 4)
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert (record["kind"], record["version"], record["generation"], record["meta"]) == ("thing", 1, 1, {"i": 4})
    assert record["files"]["a"]["file"] == "g000001-a"
    assert record["files"]["a"]["nbytes"] == 1
