"""Applications of sparse linear models: what the papers claim, against baselines at equal cost."""

import time

import numpy as np
import pytest


def driven(system, observations, n=50):
    from ellzero.data.dynamics import driven_systems

    train = driven_systems(system, n, observations=observations, seed=0)
    return train, driven_systems(system, n, observations=observations, seed=0, part="test")


def trajectory_errors(train, test):
    """Mean squared error of whole test trajectories: signatures, the mean, the Lasso on time and the last sample."""
    from sklearn.linear_model import LassoCV

    from ellzero.linear.sig_lasso import SigLasso

    def last(paths, at):
        rows = [np.column_stack([w, v[np.searchsorted(t, w, side="right") - 1]]) for (t, v), w in zip(paths, at)]
        return np.concatenate(rows)

    seen = np.concatenate([y for _, y in train.targets])
    grid = [test.grid] * len(test.paths)
    plain = LassoCV().fit(last(train.paths, [t for t, _ in train.targets]), seen).predict(last(test.paths, grid))
    errors = {"mean": ((test.truth - seen.mean()) ** 2).mean(),
              "lasso on the last sample": ((test.truth.ravel() - plain) ** 2).mean()}  # fmt: skip
    start = time.perf_counter()
    fits = [SigLasso(depths=(1, 2, 3, 4), origin=origin).fit(train.paths, train.targets) for origin in (False, True)]
    best = min(fits, key=lambda fit: min(fit.scores_.values()))
    seconds = time.perf_counter() - start
    for name, model in (("signatures", best), ("depth 1", SigLasso(depths=(1,)).fit(train.paths, train.targets))):
        errors[name] = ((np.stack(model.predict(test.paths, grid)) - test.truth) ** 2).mean()
    return errors, best, seconds


def recurrent_error(train, test, rates=(3e-3, 1e-2), epochs=200):
    """A GRU of 128 units on the sampled paths with time steps; rate and epoch chosen on ten subjects held out."""
    import torch
    from torch import nn

    def batch(data):
        x = np.stack([np.column_stack([t, np.diff(t, prepend=0), v]) for t, v in data.paths])
        return torch.from_numpy(x).float()

    X, X_test = batch(train), batch(test)
    times = np.stack([t for t, _ in train.paths])
    at = [np.searchsorted(own, w, side="right") - 1 for own, (w, _) in zip(times, train.targets)]
    rows = torch.from_numpy(np.repeat(np.arange(len(at)), [len(a) for a in at]))
    places = torch.from_numpy(np.concatenate(at))
    seen = torch.from_numpy(np.concatenate([y for _, y in train.targets])).float()
    middle, spread = seen.mean(), seen.std()
    held = rows >= len(at) - 10
    best = (np.inf, None)
    for rate in rates:
        torch.manual_seed(0)
        gru, head = nn.GRU(X.shape[2], 128, batch_first=True), nn.Linear(128, 1)
        optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=rate)
        for _ in range(epochs):
            out = head(gru(X)[0])[..., 0][rows, places]
            error = (out - (seen - middle) / spread) ** 2
            if float(error.detach()[held].mean()) < best[0]:
                with torch.no_grad():
                    best = float(error.detach()[held].mean()), head(gru(X_test)[0])[..., 0] * spread + middle
            optimizer.zero_grad()
            error[~held].mean().backward()
            optimizer.step()
    times = np.stack([t for t, _ in test.paths])
    grid = np.stack([np.searchsorted(own, test.grid, side="right") - 1 for own in times])
    said = np.take_along_axis(best[1].numpy(), grid, 1)
    return ((said - test.truth) ** 2).mean()


@pytest.mark.claim("S128")
def test_signatures_follow_a_driven_process_from_four_observations_each():
    errors, model, _ = trajectory_errors(*driven("ornstein-uhlenbeck", 4))
    print("\nOrnstein-Uhlenbeck:", {name: round(float(e), 3) for name, e in errors.items()}, "depth", model.depth_)
    assert errors["signatures"] < 0.2 * errors["mean"]
    assert errors["signatures"] < 0.5 * errors["depth 1"]


@pytest.mark.slow
@pytest.mark.claim("S128")
@pytest.mark.parametrize(("system", "share"), [("ornstein-uhlenbeck", 0.5), ("cde", 0.5), ("tumour", 1.1)])
def test_signatures_against_a_recurrent_network(system, share):
    """50 subjects, four observations each. The network's 400 passes over them are why this takes half a minute each."""
    pytest.importorskip("torch")
    train, test = driven(system, 4)
    errors, model, seconds = trajectory_errors(train, test)
    start = time.perf_counter()
    errors["gru"] = recurrent_error(train, test)
    slower = (time.perf_counter() - start) / seconds
    said = {name: round(float(e), 4) for name, e in errors.items()}
    used = f"{np.count_nonzero(model.coef_)} of {len(model.coef_)} terms"
    print(f"\n{system}: {said}, depth {model.depth_}, {used}; the network took {slower:.0f} x as long")
    assert errors["signatures"] < share * errors["gru"]
    assert errors["signatures"] < 0.3 * errors["mean"]
    assert errors["signatures"] < 0.7 * errors["depth 1"]


def words_of(name, share=1.0, size=10_000):
    """A shipped text as words in lower case, numbered by frequency, rare ones 0: training and test documents."""
    import re
    from collections import Counter

    from ellzero.data import sets

    documents = [re.findall(r"[\w'<>@-]+|[^\w\s]", text.lower()) for text in sets.texts(name)]
    documents = documents[: round(share * len(documents))]
    cut = round(0.9 * len(documents))
    known = Counter(word for document in documents[:cut] for word in document).most_common(size - 1)
    numbers = {word: i + 1 for i, (word, _) in enumerate(known)}
    coded = [[numbers.get(word, 0) for word in document] for document in documents]
    return coded[:cut], coded[cut:], len(numbers) + 1


def tuned_kneser_ney(train, test, vocabulary, order):
    """The discount's factor is chosen on a tenth of the training documents."""
    from ellzero.linear.kneser_ney import KneserNey

    part, held = [document for i, document in enumerate(train) if i % 10], train[::10]
    factors = (0.8, 0.9, 1.0, 1.1, 1.2)
    best = min(factors, key=lambda f: KneserNey(order, f).fit(part, vocabulary).perplexity(held))
    return KneserNey(order, best).fit(train, vocabulary).perplexity(test)


@pytest.mark.claim("S135")
def test_adjusted_counts_are_worth_kneser_ney_smoothing():
    from ellzero.linear.language_model import SparseNonNegativeLM

    train, test, vocabulary = words_of("tinyshakespeare", 0.25, 4000)
    found = {"Kneser-Ney 3": tuned_kneser_ney(train, test, vocabulary, 3)}
    for name, options in (("shares", {"steps": 0}), ("SNM 3", {"steps": 25})):
        found[name] = SparseNonNegativeLM(3, **options).fit(train, vocabulary).perplexity(test)
    print(f"\n{sum(map(len, train))} words of Shakespeare, perplexity:", {k: round(v, 1) for k, v in found.items()})
    assert found["SNM 3"] < 1.02 * found["Kneser-Ney 3"]
    assert found["SNM 3"] < 0.85 * found["shares"]


@pytest.mark.slow
@pytest.mark.claim("S135")
@pytest.mark.parametrize("name", ["wikitext2", "tinyshakespeare"])
def test_skip_grams_against_kneser_ney(name):
    """About 200,000 words, 10,000 of them known. Two million counted pairs are why this takes half a minute."""
    from ellzero.linear.language_model import SparseNonNegativeLM

    train, test, vocabulary = words_of(name)
    found = {"Kneser-Ney 5": tuned_kneser_ney(train, test, vocabulary, 5)}
    for label, options in (("shares", {"steps": 0}), ("SNM 5", {}), ("SNM 5 Poisson", {"loss": "poisson"}),
                           ("SNM 5 and skips", {"skip_words": 1, "skipped": 10})):  # fmt: skip
        found[label] = SparseNonNegativeLM(5, **options).fit(train, vocabulary).perplexity(test)
    print(f"\n{name}, {sum(map(len, train))} words, perplexity:", {k: round(v, 1) for k, v in found.items()})
    assert found["SNM 5"] < 1.02 * found["Kneser-Ney 5"]
    assert found["SNM 5"] < 0.85 * found["shares"]
    assert found["SNM 5 and skips"] < 0.97 * found["SNM 5"]
