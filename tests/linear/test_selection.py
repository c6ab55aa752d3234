"""Choices of columns against their definitions, and the judge: the same for all, its file, its input."""

import numpy as np
import pytest
from sklearn.feature_selection import f_classif
from sklearn.linear_model import lasso_path
from sklearn.neural_network import MLPClassifier

from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.linear import selection
from ellzero.linear.judge import Judge
from ellzero.protocol import Data, Fitted, Method

DIGITS = sets.digits()
Z = DIGITS.X - DIGITS.X.mean(0)
INFO = {"columns": DIGITS.columns, "classes": DIGITS.labels, "target": "digit"}
CHEAP = [name for name in selection.methods() if name != "sequential attention"]


def data(n=600):
    return Data((DIGITS.X[:n], DIGITS.y[:n]), (DIGITS.X[n : n + 300], DIGITS.y[n : n + 300]), INFO)


def test_anova_ranks_as_the_f_statistic():
    used = Z.std(0) > 0
    order = selection.Anova()._order(Z[:, used], DIGITS.y, 64, 0)
    f = f_classif(DIGITS.X[:, used], DIGITS.y)[0]
    np.testing.assert_allclose(f[order], np.sort(f)[::-1], rtol=1e-9)


def test_forward_columns_take_what_explains_most_of_all_targets():
    g = np.random.default_rng(0)
    X, Y = g.standard_normal((40, 6)), g.standard_normal((40, 3))
    chosen = []
    for _ in range(3):
        left = [((Y - X[:, [*chosen, j]] @ np.linalg.lstsq(X[:, [*chosen, j]], Y)[0]) ** 2).sum() for j in range(6)]
        chosen.append(int(np.argmin(left)))
    assert selection.forward_columns(X, Y, 3).tolist() == chosen
    twice = np.column_stack([X[:, 0], X[:, 0], np.zeros(40)])
    assert selection.forward_columns(twice, Y, 3).tolist() == [0]


def test_the_lasso_orders_columns_by_their_entry():
    y = (DIGITS.y == 3).astype(int)
    X = Z[:, Z.std(0) > 0.5]
    order = selection.LassoColumns(n_alphas=60)._order(X, y, 8, 0)
    alphas, coefs, _ = lasso_path(X, y - y.mean(), alphas=abs(X.T @ (y - y.mean())).max() / len(y)
                                  * np.geomspace(1, 1e-2, 60), tol=1e-6)  # fmt: skip
    entered = np.array([alphas[np.flatnonzero(row)[0]] if row.any() else 0 for row in coefs])
    np.testing.assert_allclose(entered[order[:8]], np.sort(entered)[::-1][:8])


def test_every_method_keeps_the_contract(monkeypatch):
    monkeypatch.setattr("ellzero.linear.judge.STEPS", 120)
    parts = data()
    for name, method in selection.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
        if name in CHEAP:
            found = list(method.frontier(parts, () if method.dense else (3, 9), 0))
            assert all(isinstance(fit, Fitted) for fit in found)
            assert [fit.realised for fit in found] == ([64] if method.dense else [3, 9])
            assert found[-1].score(parts.validation) > (0.8 if method.dense else 0.3)
            again = next(iter(method.frontier(parts, () if method.dense else (3,), 0)))
            assert again.score(parts.validation) == found[0].score(parts.validation)
        offered = method.candidates(4, 0)
        assert len(offered) == 4
        assert offered[0] == method
        assert offered == method.candidates(4, 0)


def test_the_judge_is_scikit_learns_network_and_survives_its_file(tmp_path):
    X, y = DIGITS.X[:400], DIGITS.y[:400]
    for rows, labels, classes in ((X, y, DIGITS.labels), (X, (y < 5).astype(int), ("high", "low"))):
        support = np.array([40, 10, 20, 30])
        judge = Judge.train(rows, labels, support, 3, columns=DIGITS.columns, classes=classes)
        assert judge.kept == tuple(DIGITS.columns[j] for j in (10, 20, 30, 40))
        kept = (rows[:, judge.support] - judge.means) / judge.scale
        peer = MLPClassifier((67,), max_iter=1).partial_fit(kept, labels, classes=np.unique(labels))
        A, a, B, b = judge.weights
        two = len(classes) == 2
        peer.coefs_, peer.intercepts_ = [A, B[:, 1:] if two else B], [a, b[1:] if two else b]
        np.testing.assert_allclose(judge.probabilities(rows), peer.predict_proba(kept), atol=1e-10)
        assert (judge.probabilities(rows).argmax(1) == labels).mean() > 0.6
        judge.save(tmp_path)
        loaded = Judge.load(tmp_path)
        np.testing.assert_array_equal(loaded.probabilities(rows), judge.probabilities(rows))
        assert (loaded.columns, loaded.classes, loaded.target) == (judge.columns, judge.classes, judge.target)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: selection.Information(bandwidth=0), "bandwidth: got 0"),
    (lambda: selection.LassoColumns(by="firts"), "did you mean 'first'"),
    (lambda: selection.Sequential(lr=0), "lr: got 0"),
    (lambda: selection.Sequential(weight_decay=-1), "weight_decay: got -1"),
    (lambda: list(selection.Anova().frontier(data(), (2.5,), 0)), "budgets: got 2.5, want whole numbers of columns"),
    (lambda: list(selection.Anova().frontier(data(), (65,), 0)), "budgets: got 65"),
    (lambda: Judge.train(DIGITS.X[:3], DIGITS.y[:3], np.array([1]), 0, columns=DIGITS.columns, classes=DIGITS.labels),
     "y: 3 classes in the training part, want all 10"),
])  # fmt: skip
def test_bad_settings_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
