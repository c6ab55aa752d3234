"""BM25 by hand, against bm25s in all five forms, saved and loaded; tokens; Cranfield and MED."""

import math

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.retrieval import BM25Vectorizer, WordPieces, Words

PLAIN = Words(stop_words=None, stemmer=None)
TEXTS = ["cats and dogs chase cats", "dogs sleep", "birds sing and birds fly and birds sleep", "", "fish"]


def test_a_hand_computed_score():
    """Three documents, one query: every number of the lucene form written out."""
    texts = ["red red blue", "blue green", "green green green green"]
    model = BM25Vectorizer(k1=1.5, b=0.5, tokenizer=PLAIN).fit(texts)
    rows = model.transform(texts).toarray()
    assert model.vocabulary_ == ["blue", "green", "red"]
    mean = (3 + 2 + 4) / 3
    red = math.log(1 + 2.5 / 1.5) * 2 / (2 + 1.5 * (0.5 + 0.5 * 3 / mean))
    green = math.log(1 + 1.5 / 2.5) * 4 / (4 + 1.5 * (0.5 + 0.5 * 4 / mean))
    assert rows[0, 2] == pytest.approx(red, rel=1e-12)
    assert rows[2, 1] == pytest.approx(green, rel=1e-12)
    assert (rows > 0).sum() == 5
    scores = (model.transform_queries(["green red green unknown"]) @ model.transform(texts).T).toarray()[0]
    assert scores[2] == pytest.approx(2 * green, rel=1e-12)
    assert scores[0] == pytest.approx(red, rel=1e-12)


@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire", "bm25l", "bm25+"])
@pytest.mark.parametrize(("k1", "b", "delta"), [(1.2, 0.75, 0.5), (0.9, 0.0, 1.0), (2.0, 1.0, 0.1)])
def test_scores_equal_bm25s(variant, k1, b, delta):
    bm25s = pytest.importorskip("bm25s", reason="the peer of the extra `bench`")
    draw = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(60)])
    texts = [" ".join(words[draw.zipf(1.4, draw.integers(1, 40)) % 60]) for _ in range(80)]
    model = BM25Vectorizer(variant, k1=k1, b=b, delta=delta, tokenizer=PLAIN)
    rows = model.fit_transform(texts)
    np.testing.assert_allclose(rows.toarray(), model.transform(texts).toarray(), rtol=1e-12)
    peer = bm25s.BM25(method=variant, k1=k1, b=b, delta=delta)
    peer.index([PLAIN(text) for text in texts], show_progress=False)
    queries = ["w1 w2 w3", "w5 w5 w40", "w9"]
    asked = model.transform_queries(queries)
    ours = (asked @ rows.T).toarray() + model.constant(asked)[:, None]
    for query, scores in zip(queries, ours):
        np.testing.assert_allclose(scores, peer.get_scores(PLAIN(query)), atol=1e-5)


def test_terms_equal_those_of_bm25s():
    bm25s, stemmer = pytest.importorskip("bm25s"), pytest.importorskip("Stemmer")
    texts = [
        "The running dogs were RUNNING, weren't they? Don't! 42 a1",
        "Étude naïve of the wings' lifting",
        "x y 7 ?",
    ]
    theirs = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer.Stemmer("english"), return_ids=False,
                            show_progress=False)  # fmt: skip
    assert [Words()(text) for text in texts] == theirs


def test_stemmers_and_stop_words():
    pytest.importorskip("Stemmer")
    assert Words()("the wings are lifting") == ["wing", "lift"]
    assert Words(stop_words=("wings",), stemmer=None)("the wings are lifting") == ["the", "are", "lifting"]
    assert Words(lower=False, stop_words=None, stemmer=None)("The the") == ["The", "the"]
    assert Words(stemmer="german", stop_words=None)("laufende") == ["laufend"]
    for make, message in (
        (lambda: Words(stemmer="klingon"), "stemmer: got 'klingon'"),
        (lambda: Words(stop_words="german"), "stop_words: got 'german'"),
        (lambda: Words(pattern="("), "pattern: got"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_word_pieces_are_the_longest_matches():
    pytest.importorskip("tokenizers")
    pieces = WordPieces(("[UNK]", "wing", "##s", "lift", "##ing", ",", "a", "ero"))
    assert pieces("Wings, lifting zzz à") == ["wing", "##s", ",", "lift", "##ing", "a"]
    model = BM25Vectorizer(tokenizer=pieces).fit(["wings", "lifting a"])
    assert model.vocabulary_ == ["##ing", "##s", "a", "lift", "wing"]
    with pytest.raises(InputError, match="UNK"):
        WordPieces(("a",))


@pytest.mark.parametrize("tokenizer", [PLAIN, Words(stop_words=("and",), stemmer=None),
                                       WordPieces(("[UNK]", "dog", "##s", "sleep"))])  # fmt: skip
def test_what_is_saved_gives_the_same_weights(tmp_path, tokenizer):
    if isinstance(tokenizer, WordPieces):
        pytest.importorskip("tokenizers")
    model = BM25Vectorizer("bm25l", k1=0.8, b=0.3, delta=0.7, tokenizer=tokenizer).fit(TEXTS)
    model.save(tmp_path / "bm25")
    again = BM25Vectorizer.load(tmp_path / "bm25")
    for call in ("transform", "transform_queries"):
        a, b = getattr(model, call)(["dogs and cats sleep", ""]), getattr(again, call)(["dogs and cats sleep", ""])
        np.testing.assert_array_equal(a.toarray(), b.toarray())
    (tmp_path / "bm25").write_bytes((tmp_path / "bm25").read_bytes()[:-1])
    with pytest.raises(InputError, match="bm25"):
        BM25Vectorizer.load(tmp_path / "bm25")


def test_bad_input_is_named(tmp_path):
    for call, message in (
        (lambda: BM25Vectorizer("bm26"), "variant: got 'bm26'"),
        (lambda: BM25Vectorizer(k1=-1), "k1: got -1"),
        (lambda: BM25Vectorizer(b=1.5), "b: got 1.5"),
        (lambda: BM25Vectorizer(tokenizer=PLAIN).fit("text"), "texts: got one text"),
        (lambda: BM25Vectorizer(tokenizer=PLAIN).fit([]), "texts: got none"),
        (lambda: BM25Vectorizer(tokenizer=PLAIN).fit(["a", None]), "texts: got NoneType at place 1"),
        (lambda: BM25Vectorizer(tokenizer=PLAIN).transform(["a"]), "not fitted"),
        (
            lambda: BM25Vectorizer(tokenizer=str.split).fit(["a b"]).save(tmp_path / "x"),
            "tokenizer: a method_descriptor",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()
    empty = BM25Vectorizer(tokenizer=PLAIN).fit(["", ""])
    assert empty.transform(["word"]).shape == (1, 0)
