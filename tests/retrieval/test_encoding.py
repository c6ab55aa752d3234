"""A corpus encoded into shards: rows and ids as the encoder gives them, killed at any moment, grown, changed."""

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import BM25Vectorizer, Encoded, ImpactIndex, Words, encode_corpus
from ellzero.retrieval.encoders import find_encoder, keep_encoder, load_encoder
from ellzero.rng import rng

LETTERS = "abcdefghij"


class Letters:
    """Counts letters: an encoder whose rows anyone can check."""

    vocabulary = tuple(LETTERS)

    def encode_document(self, texts):
        counts = [Counter(text) for text in texts]
        return sparse.csr_array(np.array([[c[x] for x in LETTERS] for c in counts], np.float32).reshape(-1, 10))

    encode_query = encode_document


def corpus(path, n, start=0):
    draw = rng(0, "corpus")
    texts = ["".join(draw.choice(list(LETTERS + " "), 12)) for _ in range(start + n)][start:]
    lines = [json.dumps({"_id": f"dôc {start + i}", "title": "", "text": text}) + "\n" for i, text in enumerate(texts)]
    with open(path, "a") as file:
        file.writelines(lines)
    return [f"dôc {start + i}" for i in range(n)], [text.strip() for text in texts]


def whole(encoded):
    parts = list(encoded)
    return np.concatenate([X.toarray() for X, _ in parts]), list(itertools.chain(*(ids for _, ids in parts)))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_rows_and_ids_are_the_encoders(tmp_path, n):
    ids, texts = corpus(tmp_path / "c.jsonl", n)
    seen = []
    found = encode_corpus(tmp_path / "c.jsonl", Letters(), tmp_path / "out", group=16, shard_documents=50,
                          report=seen.append)  # fmt: skip
    rows, names = whole(found)
    assert names == ids
    np.testing.assert_array_equal(rows, Letters().encode_document(texts).toarray())
    assert len(found) == max(1, n // 64 + (n % 64 > 0))  # four groups of 16 are the first to reach 50
    assert found.documents == n
    assert [step.documents for step in seen] == [min(16 * (i + 1), n) for i in range(-(-n // 16))]
    assert seen[-1].nbytes == seen[-1].total_nbytes == (tmp_path / "c.jsonl").stat().st_size
    assert seen[-1].seconds_left == 0
    index = ImpactIndex.build(found, scale=found.scale(), vocabulary=found.vocabulary, postings_at_once=100)
    other = ImpactIndex.build(Letters().encode_document(texts), ids, vocabulary=list(LETTERS))
    assert [a.tolist() for a in index.search([{"a": 2, "c": 1}], n)[0]] == [
        a.tolist() for a in other.search([{"a": 2, "c": 1}], n)[0]
    ]


def test_a_corpus_that_grew_is_gone_on_with(tmp_path):
    path, out = tmp_path / "c.jsonl", tmp_path / "out"
    corpus(path, 70)
    encode_corpus(path, Letters(), out, group=16)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    corpus(path, 100, start=70)
    found = encode_corpus(path, Letters(), out, group=16)
    rows, names = whole(found)
    assert names == [f"dôc {i}" for i in range(170)]
    assert rows.shape == (170, 10)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*") if p.name in before} == before
    again = encode_corpus(path, Letters(), out, group=16)  # nothing left to do
    np.testing.assert_array_equal(whole(again)[0], rows)


SLOW = """
import time, sys
sys.path.insert(0, {here!r})
from test_encoding import Letters

class Slow(Letters):
    def encode_document(self, texts):
        time.sleep(0.02)
        return super().encode_document(texts)

encoder = Slow()
"""
JOB = """
import sys
from slow import encoder
from ellzero.retrieval import encode_corpus
print("ready", flush=True)
encode_corpus("c.jsonl", encoder, "out", group=16, shard_documents=32)
print("done", flush=True)
"""


def test_a_job_killed_many_times_loses_and_doubles_nothing(tmp_path):
    """SIGKILL to a real process, until one is left to come to its end."""
    ids, texts = corpus(tmp_path / "c.jsonl", 800)
    (tmp_path / "slow.py").write_text(SLOW.format(here=os.path.dirname(__file__)))
    draw, kills, seen = rng(0, "kills of encode"), 0, []
    while True:
        job = subprocess.Popen([sys.executable, "-c", JOB], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert job.stdout.readline() == "ready\n"
        if kills < 5:
            time.sleep(draw.uniform(0.02, 0.35))
            job.send_signal(signal.SIGKILL)
        job.wait()
        seen.append(len(list((tmp_path / "out").glob("shard-*"))))
        if job.returncode == 0:
            break
        kills += 1
        assert job.returncode == -signal.SIGKILL
        with pytest.raises(InputError, match=r"is not complete|has no"):
            Encoded(tmp_path / "out")
    assert kills >= 4
    assert seen == sorted(seen)
    assert 0 < seen[-2] < seen[-1] == 25  # a later run really went on from an earlier one
    rows, names = whole(Encoded(tmp_path / "out"))
    assert names == ids
    np.testing.assert_array_equal(rows, Letters().encode_document(texts).toarray())
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_what_does_not_belong_together_is_refused(tmp_path):
    path, out = tmp_path / "c.jsonl", tmp_path / "out"
    corpus(path, 40)
    encode_corpus(path, Letters(), out, group=16)

    class Other(Letters):
        vocabulary = tuple(reversed(LETTERS))

    for encoder, options, message in (
        (Other(), {}, "begun with another encoder"), (Letters(), {"group": 8}, "another group"),
        (Letters(), {"name": "B"}, "begun with another encoder"),
        (object(), {}, "has no 'encode_document'"), (Letters(), {"group": 0}, "group"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            encode_corpus(path, encoder, out, **{"group": 16, **options})
    Other.__name__ = "Letters"
    with pytest.raises(InputError, match="begun with another terms"):
        encode_corpus(path, Other(), out, group=16)
    good = path.read_bytes()
    path.write_bytes(good.replace(b"a", b"b", 1))
    with pytest.raises(InputError, match=r"is not what shard-000000\.safetensors was made of"):
        encode_corpus(path, Letters(), out, group=16)
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match="is not what"):
        encode_corpus(path, Letters(), out, group=16)
    path.write_bytes(good)
    lock = os.open(out / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process"):
        encode_corpus(path, Letters(), out, group=16)
    os.close(lock)
    encode_corpus(path, Letters(), out, group=16)
    (out / "shard-000000.safetensors").unlink()
    with pytest.raises(InputError, match="has 0 shards"):
        Encoded(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds 'letter\.txt'"):
        encode_corpus(path, Letters(), tmp_path / "other")
    with pytest.raises(InputError, match=r"has no job\.json"):
        Encoded(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no documents"), ('{"_id": "a", "text": "x"}\n{"_id": 2}\n', "line 2 lacks"),
     ("{\n", "line 1 is no JSON"),
     ('{"_id": "\\ud800", "text": "x"}', "line 1 is no JSON object in UTF-8"),
     ('{"_id": "a", "text": "x", "title": 3}', "line 1 lacks")],
)  # fmt: skip
def test_bad_corpora_are_named_by_line(tmp_path, text, message):
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        encode_corpus(tmp_path / "c.jsonl", Letters(), tmp_path / "out", group=1)


def test_an_encoder_that_misbehaves_is_named(tmp_path):
    corpus(tmp_path / "c.jsonl", 5)

    class Few(Letters):
        def encode_document(self, texts):
            return super().encode_document(texts[1:])

    class Negative(Letters):
        def encode_document(self, texts):
            return super().encode_document(texts) * -1

    for encoder, message in ((Few(), "gave 4 rows for 5 texts"), (Negative(), "encoder: row 0")):
        with pytest.raises(InputError, match=message):
            encode_corpus(tmp_path / "c.jsonl", encoder, tmp_path / type(encoder).__name__)


def test_bm25_is_an_encoder_and_stands_beside_its_rows(tmp_path):
    ids, texts = corpus(tmp_path / "c.jsonl", 90)
    model = BM25Vectorizer(tokenizer=Words(stemmer=None, pattern="[a-j]")).fit(iter(texts))
    same = BM25Vectorizer(tokenizer=Words(stemmer=None, pattern="[a-j]"))
    X = same.fit_transform(texts)
    assert (model.vocabulary, model.length_, model.documents_) == (same.vocabulary, same.length_, same.documents_)
    np.testing.assert_array_equal(model.idf_, same.idf_)
    model.save(tmp_path / "m.safetensors")
    found = encode_corpus(tmp_path / "c.jsonl", model, tmp_path / "out", source=tmp_path / "m.safetensors", group=16)
    np.testing.assert_array_equal(whole(found)[0], X.toarray())
    kept = find_encoder(tmp_path / "out")
    np.testing.assert_array_equal(kept.encode_query(["abba"]).toarray(), model.transform_queries(["abba"]).toarray())
    direct = ImpactIndex.build(X, ids, vocabulary=model.vocabulary)
    index = ImpactIndex.build(found, scale=found.scale(), vocabulary=found.vocabulary)
    assert index.scale == direct.scale
    query = model.encode_query(["abba cade"])
    assert [a.tolist() for a in index.search(query, 90)[0]] == [a.tolist() for a in direct.search(query, 90)[0]]
    with pytest.raises(InputError, match="begun with another encoder"):
        encode_corpus(tmp_path / "c.jsonl", model, tmp_path / "out", group=16)


def test_an_encoders_place_beside_an_index(tmp_path):
    home = tmp_path / "index"
    home.mkdir()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.json").write_text("{}")
    keep_encoder(tmp_path / "e", home)
    assert [path.relative_to(home).as_posix() for path in sorted(home.rglob("*"))] == ["encoder", "encoder/config.json"]
    (tmp_path / "e" / "config.json").write_text("[]")
    keep_encoder(tmp_path / "e", home)
    assert (home / "encoder" / "config.json").read_text() == "[]"
    BM25Vectorizer(tokenizer=Words(stemmer=None)).fit(["some words"]).save(tmp_path / "m")
    keep_encoder(tmp_path / "m", home)
    assert [path.name for path in home.iterdir()] == ["bm25.safetensors"]
    assert load_encoder(home).vocabulary == ["some", "words"]
    keep_encoder(None, home)
    assert list(home.iterdir()) == []
    assert find_encoder(home) is None
    with pytest.raises(InputError, match="is not there"):
        load_encoder(tmp_path / "none")
