"""Files of an index: round trips, writers killed at any moment, torn and foreign files, writers in each other's way."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex
from ellzero.rng import rng

TERMS = 12


def matrix(n, start=0):
    return rng(0, "segments", str(start)).integers(0, 60, (n, TERMS)).astype(float)


def hits(index, k=30):
    return [(ids.tolist(), scores.tolist()) for ids, scores in index.search(np.eye(TERMS) + 1, k)]


@pytest.mark.parametrize("text", [True, False])
def test_what_is_saved_is_loaded(tmp_path, text):
    ids = [f"dôc {i}" for i in range(300)] if text else list(range(300, 0, -1))
    index = ImpactIndex.build(matrix(300), ids, vocabulary=[f"t{i}" for i in range(TERMS)], block_size=1)
    index.append(matrix(40, 1), [f"x{i}" for i in range(40)] if text else range(1000, 1040))
    index.delete(ids[:3])
    index.save(tmp_path / "index")
    found = ImpactIndex.load(tmp_path / "index")
    assert hits(found) == hits(index)
    assert (found.vocabulary, found.scale, found.documents) == (index.vocabulary, index.scale, 337)
    assert found.search([{"t3": 1.0}], 1)[0][0].tolist() == index.search([{"t3": 1.0}], 1)[0][0].tolist()
    found.delete(ids[5:9])
    found.merge()
    again = ImpactIndex.load(tmp_path / "index")
    assert hits(again) == hits(found)
    assert again.documents == 333
    assert len(list((tmp_path / "index").glob("segment-*"))) == 1


WRITER = """
import sys, numpy as np
from ellzero.retrieval import ImpactIndex
from ellzero.rng import rng
home, job = sys.argv[1:]
def matrix(n, start=0):
    return rng(0, "segments", str(start)).integers(0, 60, (n, 12)).astype(float)
print("ready", flush=True)
if job == "build":
    while True:
        ImpactIndex.build(iter([(matrix(400, 0), range(400)), (matrix(400, 1), range(400, 800))]), path=home,
                          postings_at_once=2000)
index = ImpactIndex.load(home)
step = 800 - index.documents
while job == "delete":
    index.delete(range(step, step + 5)); step += 5
    if step % 50 == 0:
        index.merge()
while True:
    n = 1000 + 50 * step
    index.append(matrix(50, n), range(n, n + 50)); step += 1
    if job == "merge" and step % 2 == 0:
        index.merge()
"""


JOBS = ("build", "append", "merge", "delete")


@pytest.mark.parametrize(
    ("job", "kills"), [*((job, 6) for job in JOBS), *(pytest.param(job, 25, marks=pytest.mark.slow) for job in JOBS)]
)
def test_a_writer_killed_at_any_moment_leaves_the_last_good_index(tmp_path, job, kills):
    home = tmp_path / "index"
    ImpactIndex.build(iter([(matrix(400, 0), range(400)), (matrix(400, 1), range(400, 800))]), path=home,
                      postings_at_once=2000)  # fmt: skip
    draw, changed = rng(0, "kills", job), 0
    for _ in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(home), job],
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.25))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        found = ImpactIndex.load(home)
        if job == "delete":
            gone = 800 - found.documents
            assert gone % 5 == 0
            left = np.concatenate([matrix(400, 0), matrix(400, 1)])[gone:]
            assert hits(found) == hits(ImpactIndex.build(left, range(gone, 800), scale=1.0))
            changed += gone
            if gone > 700:
                ImpactIndex.build(np.concatenate([matrix(400, 0), matrix(400, 1)]), range(800), path=home, scale=1.0)
            continue
        appended = (found.documents - 800) // 50
        changed += appended
        assert found.documents == 800 + 50 * appended
        whole = [matrix(400, 0), matrix(400, 1), *(matrix(50, 1000 + 50 * s) for s in range(appended))]
        ids = [*range(800), *range(1000, 1000 + 50 * appended)]
        assert hits(found) == hits(ImpactIndex.build(np.concatenate(whole), ids, scale=1.0))
        if job == "build":
            assert found.documents == 800
        else:  # the next writer begins again
            found.append(matrix(1, 9), [5000])
            found.delete([5000, *ids[800:]])
            found.merge()
            assert ImpactIndex.load(home).documents == 800
            assert len(list(home.glob("segment-*"))) == 1
    assert job == "build" or kills < 10 or changed > 0  # some writers came to work before they were killed


def test_torn_and_foreign_files_are_refused_by_name(tmp_path):
    home = tmp_path / "index"
    ImpactIndex.build(matrix(100), [f"d{i}" for i in range(100)], path=home)
    segment = next(home.glob("segment-*"))
    for path in sorted(segment.iterdir()):
        good = path.read_bytes()
        for bad in (good[:-1], good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]):
            path.write_bytes(bad)
            with pytest.raises(InputError, match=path.name):
                ImpactIndex.load(home)
        path.unlink()
        with pytest.raises(InputError, match=path.name):
            ImpactIndex.load(home)
        path.write_bytes(good)
    assert ImpactIndex.load(home).documents == 100
    with pytest.raises(InputError, match="manifest"):
        ImpactIndex.load(tmp_path)
    with pytest.raises(InputError, match="impact-segment"):
        ImpactIndex.load(segment)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"letter\.txt"):
        ImpactIndex.build(matrix(5), path=tmp_path / "other")
    with pytest.raises(InputError, match="is a file"):
        ImpactIndex.build(matrix(5), path=tmp_path / "other" / "letter.txt")
    assert (tmp_path / "other" / "letter.txt").read_text() == "dear"


def test_a_newer_index_is_refused(tmp_path):
    from ellzero.io import manifest
    from ellzero.retrieval import segments

    ImpactIndex.build(matrix(10), path=tmp_path)
    record = json.loads((tmp_path / manifest.NAME).read_text())
    manifest.save(tmp_path, {}, record["meta"], segments.INDEX, segments.VERSION + 1)
    with pytest.raises(InputError, match="newer ellzero"):
        ImpactIndex.load(tmp_path)


def test_two_writers_of_one_folder_do_not_lose_each_others_documents(tmp_path):
    ImpactIndex.build(matrix(10), path=tmp_path)
    one, two = ImpactIndex.load(tmp_path), ImpactIndex.load(tmp_path)
    one.append(matrix(2, 1), [100, 101])
    with pytest.raises(InputError, match="changed by another writer"):
        two.append(matrix(2, 2), [200, 201])
    assert hits(two) == hits(ImpactIndex.build(matrix(10)))  # a reader keeps its snapshot
    assert ImpactIndex.load(tmp_path).documents == 12


def test_a_failed_append_changes_nothing(tmp_path):
    index = ImpactIndex.build(matrix(10), path=tmp_path)
    before = hits(index)
    with pytest.raises(InputError, match="is in the index already"):
        index.append(matrix(2), [50, 3])
    assert hits(index) == before == hits(ImpactIndex.load(tmp_path))
    index.append(matrix(2), [50, 51])
    assert ImpactIndex.load(tmp_path).documents == 12
