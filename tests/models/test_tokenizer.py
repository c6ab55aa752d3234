"""The tokenizer loses nothing, is the same each time, and learns what byte pair encoding says."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.models.tokenizer import Tokenizer, train_tokenizer

CORPUS = [
    "the cat sat on the mat, the cat that sat",
    "a cat\tand 42 hats\n\n  the 7th hat \u00e9\u00e8 \u4e2d\u6587",
] * 3
TOKENIZER = train_tokenizer(CORPUS, 300)


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_any_bytes_come_back(data):
    assert TOKENIZER.decode_bytes(TOKENIZER.encode(data)) == data


@settings(max_examples=60)
@given(st.text(alphabet=st.one_of(st.sampled_from("the cat\n  sat,4"), st.characters(codec="utf-8")), max_size=60))
def test_any_text_comes_back(text):
    tokens = TOKENIZER.encode(text, bos=True)
    assert tokens[0] == TOKENIZER.bos
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.token_bytes()[tokens].sum() == len(text.encode())


def test_merges_are_those_of_the_plain_algorithm():
    """An oracle that recounts every pair before every merge, on words cut by hand."""
    words = Counter({"low": 5, " lower": 2, " newest": 6, " widest": 3})
    text = "low" + "".join(w * n for w, n in words.items() if w != "low")
    texts = [text] + ["low"] * 4
    tokenizer = train_tokenizer(texts, 258 + 8)
    pieces = {w: [2 + b for b in w.encode()] for w in words}
    for i in range(8):
        count = Counter()
        for w, tokens in pieces.items():
            for pair in pairwise(tokens):
                count[pair] += words[w]
        best = min(count, key=lambda pair: (-count[pair], pair))
        assert tokenizer.merges[i] == best
        for w, tokens in pieces.items():
            out = []
            for t in tokens:
                if out and (out[-1], t) == best:
                    out[-1] = 258 + i
                else:
                    out.append(t)
            pieces[w] = out
    for w, tokens in pieces.items():
        assert tokenizer.encode(w) == tokens


def test_training_is_deterministic_and_ignores_order():
    assert train_tokenizer(CORPUS[::-1], 300) == TOKENIZER
    assert len(set(TOKENIZER.merges)) == len(TOKENIZER.merges)
    assert TOKENIZER.vocabulary <= 300


def test_longer_vocabularies_extend_shorter_ones_and_compress_more():
    small = train_tokenizer(CORPUS, 270)
    assert TOKENIZER.merges[: len(small.merges)] == small.merges
    text = CORPUS[0]
    assert len(TOKENIZER.encode(text)) < len(small.encode(text)) < len(Tokenizer().encode(text)) == len(text)


def test_nothing_to_merge_stops_early():
    assert train_tokenizer(["ab"], 1000) == Tokenizer()
    assert train_tokenizer([], 258) == Tokenizer()
    assert Tokenizer().encode("") == []


def test_the_file_comes_back(tmp_path):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    assert Tokenizer.load(path) == TOKENIZER
    assert Tokenizer.from_json(TOKENIZER.to_json()).encode(CORPUS[1]) == TOKENIZER.encode(CORPUS[1])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not JSON"),
        ("[1]", "another kind"),
        (json.dumps({"format": "ellzero.tokenizer", "version": 2, "merges": []}), "version 2"),
        (json.dumps({"format": "ellzero.tokenizer", "version": 1, "merges": 3}), "merges"),
        (json.dumps({"format": "ellzero.tokenizer", "version": 1, "merges": [[1, 2]]}), "merges: entry 0"),
        (json.dumps({"format": "ellzero.tokenizer", "version": 1, "merges": [[300, 2]]}), "merges: entry 0"),
        (json.dumps({"format": "ellzero.tokenizer", "version": 1, "merges": [["a", 2]]}), "merges: entry 0"),
        (json.dumps({"format": "ellzero.tokenizer", "version": 1, "merges": [[2, 2], [2, 2]]}), "twice"),
    ],
)
def test_foreign_files_are_refused(tmp_path, text, word):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        Tokenizer.load(path)


def test_bad_input():
    with pytest.raises(InputError, match="vocabulary"):
        train_tokenizer(["a"], 257)
    with pytest.raises(InputError, match="texts"):
        train_tokenizer("one string", 300)
    with pytest.raises(InputError, match="text: got int"):
        TOKENIZER.encode(3)
    with pytest.raises(InputError, match=r"tokens: got 300"):
        TOKENIZER.decode([300])
    with pytest.raises(InputError, match="cannot read"):
        Tokenizer.load("/nowhere/at/all.json")


def test_token_bytes_are_lengths():
    sizes = TOKENIZER.token_bytes()
    assert sizes[:2].tolist() == [0, 0]
    assert np.all(sizes[2:258] == 1)
    assert np.all(sizes[258:] >= 2)
