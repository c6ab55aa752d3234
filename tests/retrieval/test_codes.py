"""Codes as rows of an index, and steered queries, with coders that are small enough to follow."""

import numpy as np
import pytest
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex
from ellzero.retrieval.codes import CodeEncoder, as_codes, steer_query
from ellzero.retrieval.dense import DenseIndex


class Signs:
    """Positive and negative parts of each coordinate as latents."""

    def encode(self, x):
        return np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], 1)


class Letters:
    """Texts as counts of the letters a, b and c, less one."""

    width = 3

    def encode(self, texts, *, batch_size=32):
        return np.array([[text.count(letter) - 1 for letter in "abc"] for text in texts], np.float32)


def test_codes_do_not_depend_on_batches_or_their_form():
    x = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    wanted = Signs().encode(x)
    found = as_codes(Signs(), x, batch_size=3)
    np.testing.assert_array_equal(found.toarray(), wanted)
    assert found.dtype == np.float32

    class Tensors:
        def encode(self, rows):
            return pytest.importorskip("torch").from_numpy(Signs().encode(rows)).requires_grad_()

    np.testing.assert_array_equal(as_codes(Tensors(), x).toarray(), wanted)
    unit = as_codes(Signs(), x, normalize=True)
    np.testing.assert_allclose(sparse.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    with pytest.raises(InputError, match="negative"):
        as_codes(type("Itself", (), {"encode": staticmethod(lambda rows: rows)})(), x)


def test_an_encoder_of_codes_feeds_an_index():
    encoder = CodeEncoder(Letters(), Signs())
    texts = ["aaab", "bbbc", "ccca", "abc"]
    X = encoder.encode_document(texts)
    index = ImpactIndex.build(X, texts, vocabulary=encoder.vocabulary)
    assert encoder.vocabulary == [f"latent {j}" for j in range(6)]
    assert [ids[0] for ids, _ in index.search(encoder.encode_query(texts[:3]), 1)] == texts[:3]
    with pytest.raises(InputError, match="coder"):
        CodeEncoder(Letters(), 3)


def test_a_steered_query_is_searched_with():
    index = DenseIndex(np.eye(3, dtype=np.float32))

    def steer(x, latents):
        x = x.copy()
        for latent, value in latents.items():
            x[:, latent] = value
        return x

    found = steer_query(index, steer, np.array([1.0, 0.0, 0.0]), {2: 2.0}, 2)
    assert found.hits.ids[0].tolist() == [2, 0]
    assert found.cosine == pytest.approx(1 / 5**0.5)
    np.testing.assert_array_equal(found.query, [1, 0, 2])
    with pytest.raises(InputError, match="latents: got none"):
        steer_query(index, steer, np.ones(3), {})
    with pytest.raises(InputError, match="no length"):
        steer_query(index, steer, np.array([1.0, 0, 0]), {0: 0.0})
