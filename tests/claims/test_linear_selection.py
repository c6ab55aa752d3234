"""Selection and explanation: what the papers claim, against baselines at equal cost."""

import numpy as np
import pytest


@pytest.mark.claim("S104")
@pytest.mark.parametrize("draws", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_information_finds_what_correlation_misses(draws):
    """n = 500, p = 2000, y = x_1^2 + |x_2| + noise, each draw: the ranks of the two features."""
    from ellzero.linear.screening import mutual_information

    seen = {"information": 0, "correlation": 0}
    for seed in range(draws):
        g = np.random.default_rng(seed)
        X = g.standard_normal((500, 2000))
        y = X[:, 0] ** 2 + abs(X[:, 1]) + 0.1 * g.standard_normal(500)
        scores = {
            "information": mutual_information(X, y),
            "correlation": abs((X - X.mean(0)).T @ (y - y.mean())) / X.std(0),
        }
        for name, score in scores.items():
            seen[name] += int((np.argsort(-score)[:10] < 2).sum() == 2)
    print(f"\nboth features in the top ten, of {draws} draws:", seen)
    assert seen["information"] >= 0.9 * draws
    assert seen["correlation"] <= 1


KS = (1, 2, 4, 8, 16, 32)


def activations(layers, rows, documents=84):
    """Neurons of the reference language model at tokens of texts it never saw, with what those tokens are."""
    pytest.importorskip("torch")
    from ellzero.linear.concepts import concept_rows
    from ellzero.models import reference_language_model, reference_texts

    model, tokenizer = reference_language_model()
    texts = reference_texts("validation")[:: 84 // documents]
    for layer in layers:
        yield (
            layer,
            concept_rows(model, tokenizer, texts, f"layers.{layer}.feed_forward.down", where="input", rows=rows),
        )


def lasso_f1(X, y, ks, seed=0):
    """The tuned baseline: per concept and k the densest point of the L1-logistic path, refitted on its columns."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    from ellzero.linear.neurons import balanced_weights
    from ellzero.rng import rng

    order, held = rng(seed, "probe", "split").permutation(len(X)), round(0.2 * len(X))
    seen, unseen = order[held:], order[:held]
    mean, spread = X[seen].mean(0), X[seen].std(0)
    Z = (X - mean) / np.where(spread > 0, spread, 1)
    signs = np.where(y[seen].T > 0, 1.0, -1.0)
    steepest = abs((signs * balanced_weights(signs)) @ Z[seen] / 2).max(1) * len(seen)
    out = np.zeros((y.shape[1], len(ks)))
    for i, own in enumerate(y.T):
        path = [LogisticRegression(C=C, l1_ratio=1, solver="liblinear", class_weight="balanced").fit(Z[seen], own[seen])
                for C in np.r_[np.linspace(1.02, 1.5, 8), np.geomspace(1.6, 60, 16)] / steepest[i]]  # fmt: skip
        for j, k in enumerate(ks):
            fits = [model.coef_[0] for model in path if 0 < np.count_nonzero(model.coef_) <= k]
            if fits:
                S = np.flatnonzero(max(fits, key=np.count_nonzero))
                refit = LogisticRegression(C=100 / len(seen), class_weight="balanced").fit(
                    Z[np.ix_(seen, S)], own[seen]
                )
                out[i, j] = f1_score(own[unseen], refit.predict(Z[np.ix_(unseen, S)]))
    return out


@pytest.mark.claim("S031")
def test_few_neurons_tell_many_concepts():
    from ellzero.linear.probing import probe_table

    for layer, found in activations((1,), 1200, documents=10):
        table = probe_table(found.X, found.y[:, :5], KS[:5])
        f1, coin = table.f1.mean(0), table.null_f1.mean()
        print(f"\nlayer {layer}: F1 of five concepts by k {f1.round(3)}, of a coin {coin:.3f}")
        assert (np.diff(f1) > -0.01).all()
        assert f1[-1] > coin + 0.25


@pytest.mark.slow
@pytest.mark.claim("S031")
def test_adaptive_thresholding_against_mean_difference_and_the_lasso():
    """Layers 0, 1 and 3 of the language model with eight concepts, and Isolet's 26 letters; the same split for all."""
    from ellzero.data import sets
    from ellzero.linear.probing import probe_table

    tables = {f"layer {layer}": (found.X, found.y) for layer, found in activations((0, 1, 3), 5000)}
    if not sets.missing("linear/Isolet.mat"):
        letters = sets.feature_selection("Isolet")
        tables["Isolet"] = letters.X, (letters.y[:, None] == np.arange(26)).astype(int)
    ahead = []
    for name, (X, y) in tables.items():
        rankings = ("adaptive", "mean_difference", "mutual_information", "coefficient")
        f1 = {ranking: probe_table(X, y, KS, ranking=ranking).f1.mean(0) for ranking in rankings}
        f1["lasso"] = lasso_f1(np.asarray(X, float), np.asarray(y), KS).mean(0)
        print(f"\n{name}: F1 by k = {KS}")
        for ranking, row in f1.items():
            print(f"  {ranking:20s}", row.round(3))
        assert (np.diff(f1["adaptive"]) > -0.01).all()
        assert (f1["adaptive"][3:] > f1["lasso"][3:] - 0.03).all()
        if name == "Isolet":
            assert (f1["adaptive"][1:] > f1["mean_difference"][1:] + 0.03).all()
        else:
            ahead.append(f1["adaptive"] - f1["mean_difference"])
    print("\nadaptive ahead of mean difference, mean over layers:", np.mean(ahead, axis=0).round(3))
    assert (np.mean(ahead, axis=0)[3:] > 0.01).all()


@pytest.mark.slow
@pytest.mark.claim("S031")
def test_cheap_rankings_come_close_to_the_exact_search():
    """One, two and three of 64 neurons: F1 on rows not seen, against supports that are certified to fit best."""
    from ellzero.linear.probing import probe_table

    ((_, found),) = activations((1,), 3000)
    X = found.X[:, np.argsort(-found.X.std(0), kind="stable")[:64]]
    f1 = {ranking: probe_table(X, found.y, (1, 2, 3), ranking=ranking).f1.mean(0)
          for ranking in ("exact", "adaptive", "mean_difference", "mutual_information")}  # fmt: skip
    print("\nF1 at k = 1, 2, 3:", {ranking: row.round(3).tolist() for ranking, row in f1.items()})
    assert (f1["adaptive"] > f1["exact"] - 0.04).all()
    assert (f1["mean_difference"] > f1["exact"] - 0.04).all()


def judged(dataset, k, seeds, trials, names=None):
    """Test accuracy of the fixed judge per method: settings chosen on validation rows, a mean over seeds."""
    from ellzero.compare.tasks.selection import Selection

    task, found = Selection(dataset), {}
    test = task.test()
    for seed in seeds:
        data = task.data(seed)
        for name, method in task.methods().items():
            if names is None or name in names:
                fits = [
                    next(iter(own.frontier(data, (k,), seed))) for own in dict.fromkeys(method.candidates(trials, 0))
                ]
                best = max(fits, key=lambda fit: fit.score(data.validation))
                found.setdefault(name, []).append(best.score(test))
    print(f"\n{dataset}, {k} columns, test accuracy:", {name: round(float(np.mean(v)), 3) for name, v in found.items()})
    return {name: np.mean(values) for name, values in found.items()}


@pytest.mark.claim("S050")
def test_sequential_attention_beats_one_shot_scores_on_digits_after_a_short_training():
    """Ten of 64 pixels, three splits: a linear model of 240 steps against the scores; nearest neighbours judge."""
    pytest.importorskip("torch")
    from sklearn.feature_selection import f_classif
    from sklearn.neighbors import KNeighborsClassifier

    from ellzero.data import sets
    from ellzero.linear import SequentialAttention

    table, found = sets.load("digits"), {"anova": [], "random": [], "sequential attention": []}
    for seed in range(3):
        generator = np.random.default_rng(seed)
        train, test = np.split(generator.permutation(len(table.y)), [1200])
        X, y = table.X[train], table.y[train]
        chosen = {
            "anova": np.argsort(-np.nan_to_num(f_classif(X, y)[0]), kind="stable")[:10],
            "random": generator.permutation(64)[:10],
            "sequential attention": SequentialAttention(10, hidden=(), steps=240, lr=1e-2).fit(X, y).order_,
        }
        for name, columns in chosen.items():
            judge = KNeighborsClassifier().fit(X[:, columns], y)
            found[name].append(judge.score(table.X[test][:, columns], table.y[test]))
    found = {name: float(np.mean(values)) for name, values in found.items()}
    print("\ndigits, 10 columns, test accuracy:", {name: round(value, 3) for name, value in found.items()})
    assert found["sequential attention"] > found["anova"] + 0.008
    assert found["sequential attention"] > found["random"] + 0.1


@pytest.mark.slow
@pytest.mark.claim("S050")
def test_sequential_attention_beats_one_shot_scores_on_digits():
    pytest.importorskip("torch")
    found = judged("digits", 10, (0,), 1, ("random", "anova", "sequential attention"))
    assert found["sequential attention"] > found["anova"] + 0.015
    assert found["sequential attention"] > found["random"] + 0.1


@pytest.mark.slow
@pytest.mark.claim("S050")
@pytest.mark.parametrize(("dataset", "k", "beaten", "ahead"), [
    ("Isolet", 50, ("random", "anova", "information", "lasso"), 0.04),
    ("COIL20", 10, ("random", "anova", "information", "lasso"), 0.01),
    ("madelon", 20, ("random", "lasso", "forward"), 0.05),
])  # fmt: skip
def test_sequential_attention_against_tuned_selectors(dataset, k, beaten, ahead):
    """Equal k, equal trials, the same judge. A training run of some seconds for each fit is why this takes minutes.

    Measured, two seeds, three trials, test accuracy:

    ========  ====  ======  =====  ===========  =====  =======  ====================
    set       k     random  anova  information  lasso  forward  sequential attention
    ========  ====  ======  =====  ===========  =====  =======  ====================
    Isolet    50    0.857   0.761  0.686        0.853  0.944    0.934
    COIL20    10    0.785   0.168  0.878        0.851  0.872    0.915
    madelon   20    0.499   0.770  0.761        0.564  0.553    0.673
    ========  ====  ======  =====  ===========  =====  =======  ====================

    Forward selection by least squares, which is what sequential attention is for a linear model, is as good on
    Isolet in a twentieth of the time. On madelon, where 480 of 500 columns are noise, a network on all columns learns
    next to nothing (0.535), and one-shot scores find more than attention inside that network.
    """
    from ellzero.data import sets

    pytest.importorskip("torch")
    if reason := sets.missing(f"linear/{dataset}.mat"):
        pytest.skip(reason)
    found = judged(dataset, k, (0, 1), 3)
    for name in beaten:
        assert found["sequential attention"] > found[name] + ahead


def text_pair(name, C):
    """Counts as log(1 + count), 1500 training rows, labels -1 and 1; an L1-logistic fit of them."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    from ellzero.data import sets

    if reason := sets.missing(f"linear/{name}.mat"):
        pytest.skip(reason)
    table = sets.feature_selection(name)
    X, y = sparse.csr_array(np.log1p(table.X)), np.where(table.y > 0, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(y))
    seen, unseen = order[:1500], order[1500:]

    def fit(rows, tol=1e-6):
        model = LogisticRegression(C=C, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=tol, max_iter=5000)
        return model.fit(X[rows], y[rows]).coef_[0]

    return X, y, seen, unseen, fit


@pytest.mark.claim("S041")
def test_shares_of_training_samples_add_up_to_each_prediction():
    from ellzero.linear.representer import L1Representer
    from ellzero.parts.datafits import Logistic

    X, y, seen, unseen, fit = text_pair("PCMAC", 0.3)
    for tol, error in ((1e-4, 1e-1), (1e-9, 1e-6)):
        coef = fit(seen, tol)
        found = L1Representer.of(X[seen], y[seen], coef, alpha=1 / (0.3 * 1500), datafit=Logistic())
        miss = abs(found.contributions(X[unseen]).sum(1) - X[unseen] @ coef).max()
        print(f"\n{np.count_nonzero(coef)} columns, solver tolerance {tol:g}: largest miss of the identity {miss:.1e}")
        assert miss < error


@pytest.mark.slow
@pytest.mark.claim("S041")
@pytest.mark.parametrize("name", ["PCMAC", "BASEHOCK"])
def test_deleting_proponents_moves_predictions(name):
    """Delete a prediction's strongest 1, 3 and 10 % of samples, train again: how far does it fall, for 12 test rows?

    Measured, mean fall of the logit over the three: PCMAC (91 columns) 1.54, influence functions with the exact Hessian
    of the support 1.86, ridge representers 1.12, random samples 0.03; BASEHOCK (76 columns) 2.02, 3.00, 1.38, 0.13.
    The paper's finding that representers move predictions further than influence functions does not repeat here, where
    the Hessian is small enough to be solved exactly; they cost a tenth of the time and no second derivative.
    """
    import time

    from sklearn.linear_model import LogisticRegression

    from ellzero.linear.representer import L1Representer
    from ellzero.parts.datafits import Logistic

    C = 0.3
    X, y, seen, unseen, fit = text_pair(name, C)
    coef, rows, labels = fit(seen, 1e-9), X[seen], y[seen]
    rows_new = unseen[np.random.default_rng(1).permutation(len(unseen))[:12]]
    before = X[rows_new] @ coef
    toward = np.sign(before)[:, None]
    found = L1Representer.of(rows, labels, coef, alpha=1 / (C * 1500), datafit=Logistic())
    start = time.perf_counter()
    shares = {"representer": found.contributions(X[rows_new]) * toward}
    seconds = {"representer": time.perf_counter() - start}
    start = time.perf_counter()
    used = np.flatnonzero(coef)
    own, own_new = rows[:, used].toarray(), X[rows_new][:, used].toarray()
    p = 1 / (1 + np.exp(-own @ coef[used]))
    hessian = (own * (p * (1 - p))[:, None]).T @ own + 1e-6 * np.eye(len(used))
    shares["influence"] = -(own_new @ np.linalg.solve(hessian, own.T)) * (p - (labels > 0)) * toward
    seconds["influence"] = time.perf_counter() - start
    ridge = LogisticRegression(C=C, fit_intercept=False, tol=1e-8, max_iter=1000).fit(rows, labels).coef_[0]
    slopes = 1 / (1 + np.exp(-rows @ ridge)) - (labels > 0)
    shares["l2 representer"] = -(X[rows_new] @ rows.T).toarray() * slopes * toward
    shares["random"] = np.random.default_rng(2).random((12, 1500))
    falls = {}
    for method, share in shares.items():
        order = np.argsort(-share, axis=1)
        after = [[X[[new]] @ fit(seen[order[i, count:]]) for i, new in enumerate(rows_new)] for count in (15, 45, 150)]
        falls[method] = ((before - np.squeeze(after)) * toward[:, 0]).mean(1)
    print(f"\n{name}, {len(used)} columns: mean fall of the logit (of {abs(before).mean():.2f}) without 1, 3, 10 %:")
    for method, fall in falls.items():
        print(f"  {method:15s} {fall.round(3)}  {seconds.get(method, 0) * 1e3:.1f} ms")
    area = {method: fall.mean() for method, fall in falls.items()}
    assert area["representer"] > 5 * abs(area["random"])
    assert area["representer"] > 1.2 * area["l2 representer"]
    assert area["representer"] > 0.6 * area["influence"]
