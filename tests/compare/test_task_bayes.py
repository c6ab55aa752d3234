"""The task ``bayes``: one judge for Bayesian and deterministic networks, exact densities, files that load elsewhere."""

import json

import numpy as np
import pytest
import torch

from ellzero.compare.tasks.bayes import Bayes
from ellzero.errors import InputError
from ellzero.network.calibration import log_loss
from ellzero.network.variational import layers_of, predictive
from ellzero.network.variational_frontier import VariationalMethod
from ellzero.protocol import Fitted, Method, Task

SHORT = Bayes(steps=15, samples=3)


@pytest.fixture(scope="module")
def fitted():
    return next(iter(SHORT.methods()["ssvi"].frontier(SHORT.data(0), [0.1], 0)))


def test_it_keeps_the_contract(fitted):
    assert isinstance(SHORT, Task)
    assert isinstance(fitted, Fitted)
    for name, method in SHORT.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
    assert Bayes.from_spec(json.loads(json.dumps(SHORT.to_spec()))) == SHORT
    assert Bayes.from_options(extra={"judge": "brier", "samples": "4"}).samples == 4
    assert (SHORT.better, Bayes(judge="accuracy").better) == ("lower", "higher")
    assert len(SHORT.methods()["ssvi"].candidates(3, 0)) == 3


def test_weights_are_counted_and_judged_by_their_draws(fitted):
    numel = 64 * 256 + 256 * 128 + 128 * 10
    assert fitted.realised == pytest.approx(0.1, abs=1 / numel)
    held = sum(layer.value.numel() + layer.rho.numel() for layer in layers_of(fitted.model).values())
    assert held == 2 * fitted.report.kept
    X, y = SHORT.data(0).validation
    expected = log_loss(predictive(fitted.model, torch.from_numpy(X), 3), y)
    assert fitted.score((X, y)) == pytest.approx(expected)
    plain = next(iter(SHORT.methods()["rigl"].frontier(SHORT.data(0), [0.1], 0)))
    with torch.no_grad():
        logits = plain.model(torch.from_numpy(X))
    assert plain.score((X, y)) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))))
    assert fitted.time((X, y), repeats=2) > 0


def test_a_saved_network_says_the_same(fitted, tmp_path):
    fitted.save(tmp_path)
    stored = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert fitted.nbytes < stored < fitted.nbytes + 8000
    X = SHORT.test()[0]
    rows = tmp_path / "rows.csv"
    header = ",".join(SHORT._rows().columns)
    np.savetxt(rows, X[:20] * 16, delimiter=",", header=header, comments="")
    found = SHORT.apply(tmp_path, str(rows))
    probability = predictive(fitted.model, torch.from_numpy(X[:20]), 3)
    np.testing.assert_array_equal(found.columns["class"], probability.argmax(1).astype(str))
    np.testing.assert_allclose(found.columns["probability"], probability.max(1), rtol=1e-5)
    plain = next(iter(SHORT.methods()["rigl"].frontier(SHORT.data(0), [0.1], 0)))
    other = tmp_path / "plain"
    other.mkdir()
    plain.save(other)
    assert len(SHORT.apply(other, str(rows)).columns["class"]) == 20


def test_bad_options_are_named():
    for settings, name in (({"judge": "ece"}, "judge"), ({"samples": -1}, "samples"), ({"net": "residual"}, "net"),
                           ({"evaluate": "a:b"}, "eval")):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}"):
            Bayes(**settings)
    with pytest.raises(InputError, match="did you mean 'sigma'"):
        VariationalMethod(settings={"sigm": 0.1})
