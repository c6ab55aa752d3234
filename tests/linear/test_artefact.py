"""A linear model as a file: the same predictions after a round trip, and refusals that name the file."""

import csv

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.linear.artefact import KIND, VERSION, LinearModel

COEF = np.array([0.0, 1.5, 0.0, -0.1])


@pytest.fixture
def model():
    return LinearModel.of(COEF, 2.0, ["a", "b, c", "d", "e"], "price")


def test_it_keeps_what_is_not_zero(model):
    assert model.kept == ("b, c", "e")
    np.testing.assert_array_equal(model.support, [1, 3])
    assert model.nbytes == 2 * 8 + 2 * 4 + 8
    X = np.random.default_rng(0).standard_normal((5, 4))
    np.testing.assert_allclose(model.predict(X), X @ COEF + 2)
    np.testing.assert_array_equal(model.predict_kept(X[:, [1, 3]]), model.predict(X))
    assert LinearModel.of(COEF, 0.0, None).kept == ("x1", "x3")


def test_a_round_trip_is_exact(model, tmp_path):
    model.save(tmp_path)
    loaded = LinearModel.load(tmp_path)
    X = np.random.default_rng(0).standard_normal((5, 4))
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert (loaded.columns, loaded.target, loaded.intercept) == (model.columns, "price", 2.0)
    with open(tmp_path / "coefficients.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["column", "coefficient"], ["(intercept)", "2.0"], ["b, c", "1.5"], ["e", "-0.1"]]


@pytest.mark.parametrize("coef", [np.zeros(3), np.array([1.0, 2.0, 3.0])], ids=["none", "all"])
def test_none_and_all_columns(coef, tmp_path):
    LinearModel.of(coef, 1.0, None).save(tmp_path)
    X = np.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(LinearModel.load(tmp_path).predict(X), X @ coef + 1)


def test_what_cannot_be_a_model_is_refused(model, tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors"):
        LinearModel.load(tmp_path)
    path = tmp_path / "model.safetensors"
    model.save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        LinearModel.load(tmp_path)
    tensors = {"support": np.array([1, 9]), "values": np.ones(2), "intercept": np.ones(1)}
    meta = {"columns": ["a", "b"], "target": "y"}
    artefacts.save(path, tensors, meta, KIND, VERSION)
    with pytest.raises(InputError, match="do not fit its 2 columns"):
        LinearModel.load(tmp_path)
    artefacts.save(path, tensors, meta, KIND, VERSION + 1)
    with pytest.raises(InputError, match="newer"):
        LinearModel.load(tmp_path)
    artefacts.save(path, tensors, meta, "pruned-network", VERSION)
    with pytest.raises(InputError, match=f"want {KIND!r}"):
        LinearModel.load(tmp_path)
