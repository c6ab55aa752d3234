"""Rankings against loops, adaptive thresholding against its definition, the table against single probes, no leaks."""

import numpy as np
import pytest
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.linear.neurons import RANKINGS, balanced_weights, select_neurons
from ellzero.linear.probing import SparseProbe, probe_table, rank_neurons
from ellzero.linear.screening import mutual_information
from ellzero.rng import rng


def concepts(n=240, d=12, L=3, seed=0):
    g = np.random.default_rng(seed)
    X = g.standard_normal((n, d))
    labels = np.where(
        X[:, :L].T + X[:, L : 2 * L].T + 0.3 * g.standard_normal((L, n)) > [[0.0], [1.0], [2.0]], 1.0, -1.0
    )
    return X, labels


def test_rankings_are_what_they_say():
    X, labels = concepts()
    mean = rank_neurons(X, labels)
    anova = rank_neurons(X, labels, "anova")
    information = rank_neurons(X, labels, "mutual_information")
    coefficient = rank_neurons(X, labels, "coefficient", alpha=0.1)
    for i, row in enumerate(labels):
        np.testing.assert_allclose(mean[i], abs(X[row > 0].mean(0) - X[row < 0].mean(0)), atol=1e-12)
        np.testing.assert_allclose(anova[i], f_classif(X, row)[0], rtol=1e-9)
        np.testing.assert_allclose(information[i], mutual_information(X, row), atol=1e-6)
        model = LogisticRegression(C=1 / (0.1 * len(X)), class_weight="balanced", tol=1e-10).fit(X, row)
        np.testing.assert_allclose(coefficient[i], abs(model.coef_[0]), atol=1e-3)


def test_weights_give_each_class_one_half():
    labels = np.array([[1, -1, -1, -1], [1, 1, -1, -1.0]])
    weights = balanced_weights(labels)
    np.testing.assert_allclose((weights * (labels > 0)).sum(1), 0.5)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_adaptive_thresholding_halves_by_the_weights_of_each_fit():
    """The chain of one concept, fit by fit with another solver; 12 columns: 12, 6, 3, 1."""
    X, labels = concepts(seed=4)
    found = select_neurons(X, labels, balanced_weights(labels), (1, 2, 5, 12), "adaptive", 0.01)
    for i, row in enumerate(labels):
        left = np.argsort(-abs(X[row > 0].mean(0) - X[row < 0].mean(0)), kind="stable")
        assert set(found[12][0][i]) == set(left)
        want = {}
        while len(left) > 1:
            model = LogisticRegression(C=1 / (0.01 * len(X)), class_weight="balanced", tol=1e-8).fit(X[:, left], row)
            left = left[np.argsort(-abs(model.coef_[0]), kind="stable")]
            want |= {k: set(left[:k]) for k in (1, 2, 5) if len(left) // 2 <= k < len(left)}
            left = left[: len(left) // 2]
        for k in (1, 2, 5):
            assert set(found[k][0][i]) == want[k]


def test_a_probe_is_the_same_alone_and_in_a_table():
    X, labels = concepts(d=40)
    weights = balanced_weights(labels)
    together = select_neurons(X, labels, weights, (1, 3, 4, 20), "adaptive", 0.01)
    for k in (1, 3, 4, 20):
        alone = select_neurons(X, labels[:1], weights[:1], (k,), "adaptive", 0.01)[k]
        np.testing.assert_array_equal(together[k][0][:1], alone[0])
        np.testing.assert_allclose(together[k][1].coef[:1], alone[1].coef, atol=1e-8)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_planted_neurons_are_found_and_scores_are_those_of_scikit_learn(ranking):
    X, labels = concepts(n=400)
    y = (labels.T > 0).astype(int)
    table = probe_table(X, y, (1, 2), ranking=ranking, seed=3)
    assert [set(row) for row in table.supports[2]] == [{i, i + 3} for i in range(3)]
    order = rng(3, "probe", "split").permutation(400)
    seen, unseen = order[80:], order[:80]
    mean, spread = X[seen].mean(0), X[seen].std(0)
    for i in range(3):
        Z = (X[:, table.supports[2][i]] - mean[table.supports[2][i]]) / spread[table.supports[2][i]]
        model = LogisticRegression(C=1 / (0.01 * 320), class_weight="balanced", tol=1e-8).fit(Z[seen], y[seen, i])
        said, truth = model.predict(Z[unseen]), y[unseen, i]
        scores = [score(truth, said) for score in (f1_score, precision_score, recall_score, matthews_corrcoef)]
        np.testing.assert_allclose(
            [part[i, 1] for part in (table.f1, table.precision, table.recall, table.mcc)], scores
        )
        share = truth.mean()
        assert table.null_f1[i] == pytest.approx(share / (share + 0.5))
    assert (table.f1[:, 1] >= table.f1[:, 0]).all()


def test_labels_by_class_and_by_indicator_agree():
    table = sets.digits()
    X, y = table.X[:600], table.y[:600]
    by_class = probe_table(X, y, (1, 4))
    by_indicator = probe_table(X, (y[:, None] == np.arange(10)).astype(bool), (1, 4))
    np.testing.assert_array_equal(by_class.f1, by_indicator.f1)
    assert by_class.f1.shape == (10, 2)
    assert by_class.f1.mean(0)[1] > by_class.f1.mean(0)[0] + 0.1


def test_noise_scores_as_chance():
    """Ranking and fits saw no test row: the best of 3000 noise neurons is worth a coin's F1."""
    g = np.random.default_rng(0)
    X, y = g.standard_normal((300, 3000)), (g.random((300, 8)) < 0.3).astype(int)
    for ranking in ("adaptive", "mean_difference"):
        table = probe_table(X, y, (1, 16), ranking=ranking)
        assert abs(table.mcc.mean(0)).max() < 0.15
        assert table.f1.mean() < table.null_f1.mean() + 0.1


def test_the_exact_ranking_has_the_best_objective():
    X, labels = concepts(n=80, seed=7)
    weights = balanced_weights(labels)
    exact = select_neurons(X, labels, weights, (2,), "exact", 0.01)[2][1].value
    for ranking in RANKINGS:
        assert (exact <= select_neurons(X, labels, weights, (2,), ranking, 0.01)[2][1].value + 1e-10).all()


def test_the_estimator_works_in_the_units_of_the_columns():
    table = sets.breast_cancer()
    probe = SparseProbe(3).fit(table.X, table.y)
    scaled = SparseProbe(3).fit(table.X * 1000 + 7, table.y)
    assert probe.support_.tolist() == scaled.support_.tolist()
    np.testing.assert_allclose(
        probe.decision_function(table.X), scaled.decision_function(table.X * 1000 + 7), atol=1e-6
    )
    assert np.count_nonzero(probe.coef_) == 3
    assert probe.score(table.X, table.y) > 0.93
    many = SparseProbe(8).fit(sets.digits().X, sets.digits().y)
    assert many.coef_.shape == (10, 64)
    assert (np.count_nonzero(many.coef_, axis=1) == 8).all()
    assert many.score(sets.digits().X, sets.digits().y) > 0.8


def test_token_concepts_lie_beside_the_activations_they_belong_to():
    pytest.importorskip("torch")
    import torch

    from ellzero.linear.concepts import concept_rows
    from ellzero.models import reference_language_model

    model, tokenizer = reference_language_model()
    texts = ['HAMLET:\nTo be, "or not" to be 7', "the heading\nwas longer than that " * 30]
    hook = "layers.1.feed_forward.down"
    names = ("after a line break", "speaker", "digit", "sign", "in quotation marks", "inside a word", "capital")
    rows = concept_rows(model, tokenizer, texts, hook, where="input", concepts=names)
    tokens = [tokenizer.encode(text) for text in texts]
    assert rows.X.shape == (len(tokens[0]) + len(tokens[1]), 352)
    np.testing.assert_array_equal(rows.documents, np.repeat([0, 1], [len(part) for part in tokens]))
    pieces = [tokenizer.decode([token]) for token in tokens[0]]
    said = {name: [p for p, own in zip(pieces, rows.y[: len(pieces), j]) if own] for j, name in enumerate(names)}
    assert "".join(said["speaker"]) == "HAMLET:"
    assert "".join(said["after a line break"]).startswith("To")
    assert said["digit"][0].strip() == "7"
    assert "".join(said["in quotation marks"]).startswith("or not")
    with torch.no_grad():
        seen = []
        model.layers[1].feed_forward.down.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        model(torch.tensor([[tokenizer.bos, *tokens[0]]]))
    np.testing.assert_allclose(rows.X[: len(pieces)], seen[-1][0, 1:].numpy(), atol=1e-5)
    few = concept_rows(model, tokenizer, texts, hook, where="input", concepts=names, rows=20)
    assert few.X.shape == (20, 352)
    assert (np.diff(few.documents) >= 0).all()
    for options, message in (({"hook": "layers.9"}, "hook: no module"), ({"concepts": ("speker",)}, "did you mean 'sp"),
                             ({"texts": []}, "texts: got no token"), ({"where": "inside"}, "where: got 'inside'"),
                             ({"hook": "layers.*.feed_forward"}, "fits several")):  # fmt: skip
        given = {"texts": texts, "hook": hook} | options
        with pytest.raises(InputError, match=message):
            concept_rows(model, tokenizer, given.pop("texts"), given.pop("hook"), **given)


X, Y = np.ones((10, 3)), np.arange(10) % 2


@pytest.mark.parametrize(("call", "message"), [
    (lambda: probe_table(X, Y, (4,)), "ks: got 4"), (lambda: probe_table(X, Y, ()), "ks: got none"),
    (lambda: probe_table(X, Y, (1,), ranking="adaptiv"), "did you mean 'adaptive'"),
    (lambda: probe_table(X, Y, (1,), alpha=0), "alpha: got 0"),
    (lambda: probe_table(X, Y, (1,), test=1), "test: got 1"),
    (lambda: probe_table(X, Y[:9], (1,)), r"y: got shape \(9,\)"),
    (lambda: probe_table(X, np.full((10, 2), 3), (1,)), "indicators of 0 and 1"),
    (lambda: probe_table(X, np.zeros((10, 1)), (1,)), "concept 0 has one class only in the training part"),
    (lambda: probe_table(X, np.full(10, np.nan), (1,)), "y: has entries that are not finite"),
    (lambda: probe_table(X * np.nan, Y, (1,)), "X: 30 entries not finite"),
    (lambda: rank_neurons(X, np.ones((1, 10))), "labels: want -1 and 1, both in every row"),
    (lambda: rank_neurons(X, np.ones((1, 9))), "labels: got shape"),
    (lambda: rank_neurons(X, np.ones((1, 10)), "anove"), "did you mean 'anova'"),
    (lambda: SparseProbe(4).fit(X, Y), "k: got 4, want at most 3"), (lambda: SparseProbe(0).fit(X, Y), "k: got 0"),
    (lambda: SparseProbe(ranking="x").fit(X, Y), "ranking: got 'x'"),
    (lambda: SparseProbe().fit(X, np.ones(10)), "y: got 1 class"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
