"""The transformer: the codes of the autoencoder behind it, dense or CSR, and rows again."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ellzero.autoencoder.estimators import SAETransformer
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm
from ellzero.errors import InputError

X = np.random.default_rng(0).standard_normal((300, 8))


def make(**options):
    return SAETransformer(**{"n_components": 20, "k": 3, "steps": 30, "batch_size": 64, **options})


@pytest.mark.parametrize("preset", ["topk", "batchtopk", "relu_l1"])
def test_codes_are_those_of_the_autoencoder(preset):
    made = make(preset=preset).fit(X)
    z = made.transform(X)
    assert z.dtype == np.float32
    assert z.shape == (300, 20)
    plain = made.autoencoder_.encode(torch.from_numpy(X.astype(np.float32)))
    np.testing.assert_allclose(z, plain.detach().numpy(), atol=1e-5)
    packed = clone(made).set_params(sparse_output=True).fit(X).transform(X)
    assert isinstance(packed, sparse.csr_array)
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed.toarray(), z)
    rows = made.inverse_transform(z)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(made.inverse_transform(packed), rows)
    want = made.autoencoder_.decode(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(made.components_, made.autoencoder_.W_dec.detach().numpy())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)).transform(X), z)
    np.testing.assert_array_equal(clone(made).fit(X).transform(X), z)


def test_names_and_frames():
    pandas = pytest.importorskip("pandas")
    made = make(n_components=4, k=2).fit(pandas.DataFrame(X, columns=list("abcdefgh")))
    assert list(made.get_feature_names_out()) == [f"saetransformer{i}" for i in range(4)]
    out = made.set_output(transform="pandas").transform(pandas.DataFrame(X, columns=list("abcdefgh")))
    assert list(out.columns) == list(made.get_feature_names_out())
    assert (out.dtypes == np.float32).all()


def test_a_row_has_its_code_whatever_is_beside_it():
    made = make().fit(X)
    together = made.transform(X)
    np.testing.assert_array_equal(np.concatenate([made.transform(row[None]) for row in X]), together)


def test_digits_are_told_apart_by_few_active_latents():
    digits = load_digits()
    made = SAETransformer(n_components=256, k=8, steps=300, batch_size=256, lr=0.005, inputs=ExpectedNorm())
    pipe = make_pipeline(made, LogisticRegression(max_iter=300))
    pipe.fit(digits.data[:1300], digits.target[:1300])
    assert pipe.score(digits.data[1300:], digits.target[1300:]) > 0.85
    assert (pipe[0].transform(digits.data) != 0).sum(1).mean() <= 8
    assert pipe[0].loss_ < 0.4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "topkk"}, "preset: got 'topkk'"), ({"n_components": 0}, "n_components"), ({"k": 0}, "k"),
        ({"steps": 0}, "steps"), ({"lr": -1}, "lr"), ({"inputs": LayerNorm}, "inputs"),
        ({"batch_size": 0}, "batch_size"),
        ({"options": {"nonsense": 1}}, "options: .*topk does not take"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        make(**options).fit(X)


def test_data_that_cannot_be_are_refused_by_name():
    with pytest.raises(InputError, match="rows are equal"):
        make().fit(np.ones((9, 3)))
    made = make().fit(X)
    with pytest.raises(InputError, match="Z: got 3 columns, want 20"):
        made.inverse_transform(np.ones((2, 3)))
    made = make(inputs=LayerNorm()).fit(X)
    z = made.transform(X)
    with pytest.raises(InputError, match="undone row by row"):
        made.inverse_transform(z)
