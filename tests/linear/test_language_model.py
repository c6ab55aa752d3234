"""Contexts and counts against plain loops, both models against their formulas, derivatives, sums of one."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from ellzero.errors import InputError
from ellzero.linear.contexts import Contexts, PairCounts, Shape, as_stream, ngram_shapes, skip_shapes
from ellzero.linear.kneser_ney import KneserNey
from ellzero.linear.language_model import SparseNonNegativeLM, _between, _LeaveOneOut


def documents(seed=0, n=12, vocabulary=6):
    g = np.random.default_rng(seed)
    table = g.dirichlet(np.full(vocabulary, 0.3), vocabulary)
    out = []
    for _ in range(n):
        words = [int(g.integers(vocabulary))]
        for _ in range(int(g.integers(3, 15))):
            words.append(int(g.choice(vocabulary, p=table[words[-1]])))
        out.append(words)
    return out


def behind(stream, t, offsets, end):
    return tuple(stream[t - o] if t >= o else end for o in offsets)


def test_shapes():
    assert [shape.offsets for shape in ngram_shapes(3)] == [(), (1,), (1, 2)]
    assert Shape(1, 2, 2).offsets == (1, 4, 5)
    shapes = skip_shapes(2, 2)
    assert {shape.offsets for shape in shapes} == {(2,), (3,), (1, 3), (1, 4), (2, 3), (3, 4)}
    assert skip_shapes(2, 0) == ()


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_contexts_and_counts_are_those_of_a_loop(seed):
    stream, other = as_stream(documents(seed), 6), as_stream(documents(seed + 1), 6)
    for shape in (Shape(0), Shape(2), Shape(0, 1, 1), Shape(1, 2, 2)):
        contexts = Contexts(shape, stream, 7)
        keys = [behind(stream, t, shape.offsets, 6) for t in range(len(stream))]
        names = dict(zip(keys, contexts.numbers))
        assert len(names) == contexts.count == len(set(contexts.numbers))
        np.testing.assert_array_equal(contexts.lookup(stream), contexts.numbers)
        want = [names.get(behind(other, t, shape.offsets, 6), -1) for t in range(len(other))]
        np.testing.assert_array_equal(contexts.lookup(other), want)
        pairs = PairCounts(contexts.numbers, stream, contexts.count, 7)
        counted = Counter(zip(contexts.numbers.tolist(), stream.tolist()))
        assert dict(zip(zip(pairs.context.tolist(), pairs.word.tolist()), pairs.count.tolist())) == counted
        np.testing.assert_array_equal(pairs.total, np.bincount(contexts.numbers))
        for i in range(contexts.count):
            assert (pairs.context[pairs.start[i] : pairs.start[i + 1]] == i).all()
        place = pairs.lookup(np.array([0, -1]), np.array([pairs.word[0], 0]))
        assert place.tolist() == [0, -1]
        absent = np.setdiff1d(np.arange(7), pairs.word[: pairs.start[1]])
        assert (pairs.lookup(np.zeros_like(absent), absent) == -1).all()


def kneser_ney_by_hand(train, test, order, factor):
    """Dictionaries and recursion, after Chen and Goodman (1999)."""
    stream, tokens = as_stream(train, 6).tolist(), 7
    grams = [Counter() for _ in range(order)]
    for t in range(len(stream)):
        grams[order - 1][behind(stream, t, range(1, order), 6), stream[t]] += 1
    for n in reversed(range(order - 1)):
        for context, word in grams[n + 1]:
            grams[n][context[:n], word] += 1

    def probability(context, word):
        below = probability(context[:-1], word) if context else 1 / tokens
        level = grams[len(context)]
        here = {w: c for (h, w), c in level.items() if h == context}
        if not here:
            return below
        n = Counter(min(c, 5) for c in level.values())
        y = n[1] / max(n[1] + 2 * n[2], 1)
        D = [0] + [
            min(max(factor * (k - (k + 1) * y * n[k + 1] / max(n[k], 1)), 0.01 * k), 0.999 * k) for k in (1, 2, 3)
        ]
        taken = {w: min(D[min(c, 3)], c) for w, c in here.items()}
        total = sum(here.values())
        own = (here[word] - taken[word]) / total if word in here else 0
        return own + sum(taken.values()) / total * below

    stream = as_stream(test, 6).tolist()
    return [math.log(probability(behind(stream, t, range(1, order), 6), stream[t])) for t in range(len(stream))]


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_kneser_ney_is_its_formula(order, factor):
    train, test = documents(0), documents(5, n=4)
    model = KneserNey(order, factor).fit(train, 6)
    np.testing.assert_allclose(
        model.log_probabilities(test), kneser_ney_by_hand(train, test, order, factor), atol=1e-10
    )
    assert model.perplexity(test) == pytest.approx(np.exp(-model.log_probabilities(test).mean()))


def test_kneser_ney_sums_to_one():
    model = KneserNey(3).fit(documents(0), 6)
    history = documents(0)[0][:5]
    ends = [[*history, word] for word in range(6)]
    total = sum(np.exp(model.log_probabilities([words])[5]) for words in ends)
    total += np.exp(model.log_probabilities([history])[5])
    assert total == pytest.approx(1, abs=1e-12)


def test_counts_lie_between_powers_of_two():
    low, far = _between(np.array([1, 2, 3, 4, 1024, 10**9]))
    np.testing.assert_allclose(2.0 ** (low[:5] + far[:5]), [1, 2, 3, 4, 1024])
    assert (low >= 0).all()
    assert (far[:5] < 1).all()
    assert (low + far)[5] == pytest.approx(np.log2(1e9))


def adjustment_by_hand(tables, shape, total, count, word, context):
    """A of one pair, one weight after another."""
    found = (
        tables["shape"][shape] + tables["word"][word] + tables["shape_word"][shape, word] + tables["context"][context]
    )
    for i, p in (
        (math.floor(math.log2(total)), 1 - math.log2(total) % 1),
        (math.floor(math.log2(total)) + 1, math.log2(total) % 1),
    ):
        for j, q in (
            (math.floor(math.log2(count)), 1 - math.log2(count) % 1),
            (math.floor(math.log2(count)) + 1, math.log2(count) % 1),
        ):
            found += (
                p
                * q
                * (tables["context_count"][shape, i] + tables["pair_count"][shape, j] + tables["counts"][shape, i, j])
            )
    return found


@pytest.mark.parametrize("loss", ["multinomial", "poisson"])
def test_the_loss_leaves_each_event_out(loss):
    """Every event with its own counts lowered by one, in a loop."""
    model = SparseNonNegativeLM(3, skip_words=1, skipped=1, loss=loss, prior=0.7)
    stream = as_stream(documents(1), 6)
    model.tokens = 7
    levels = []
    for shape in model.shapes:
        contexts = Contexts(shape, stream, 7)
        levels.append((contexts, PairCounts(contexts.numbers, stream, contexts.count, 7)))
    training = _LeaveOneOut(model, levels, len(stream))
    theta = 0.3 * np.random.default_rng(0).standard_normal(training.adjustment.length)
    tables = training.adjustment.tables(theta)
    floor, total, base = math.exp(tables["uniform"]), 0.0, 0
    starts = []
    for _, pairs in levels:
        starts.append(base)
        base += len(pairs.total)
    for t, w in enumerate(stream):
        true, every = floor / 7, floor
        for i, (contexts, pairs) in enumerate(levels):
            number = contexts.numbers[t]
            C = int(pairs.total[number]) - 1
            if C == 0:
                continue
            own = int(np.searchsorted(training.known, starts[i] + number))
            for p in range(pairs.start[number], pairs.start[number + 1]):
                v, c = int(pairs.word[p]), int(pairs.count[p]) - int(pairs.word[p] == w)
                if c:
                    value = c / C * math.exp(adjustment_by_hand(tables, i, C, c, v, own))
                    every += value
                    true += value * (v == w)
        total += (math.log(every) if loss == "multinomial" else every) - math.log(true)
    want = total / len(stream) + theta @ theta / (2 * 0.7**2 * len(stream))
    value, gradient = training(theta)
    assert value == pytest.approx(want, rel=1e-12)
    some = np.random.default_rng(1).permutation(len(theta))[:60]
    some = np.unique(np.append(some, [len(theta) - 1, *np.flatnonzero(abs(gradient) > 1e-2)[:20]]))

    def moved(x):
        full = theta.copy()
        full[some] = x
        return training(full)[0]

    np.testing.assert_allclose(gradient[some], approx_fprime(theta[some], moved, 1e-6), atol=1e-5)


def test_without_steps_it_mixes_plain_shares():
    train = documents(2)
    model = SparseNonNegativeLM(2, steps=0).fit(train, 6)
    stream = as_stream(train, 6)
    counts = defaultdict(Counter)
    for t, w in enumerate(stream.tolist()):
        counts[behind(stream.tolist(), t, (1,), 6)][w] += 1
        counts[()][w] += 1
    history = [3]
    rows = [counts[()], counts[(3,)]]
    want = (np.full(7, 1 / 7) + sum(np.array([row[w] / sum(row.values()) for w in range(7)]) for row in rows)) / 3
    np.testing.assert_allclose(model.next(history), want, atol=1e-12)


@pytest.mark.parametrize("loss", ["multinomial", "poisson"])
def test_probabilities_sum_to_one_and_agree(loss):
    train, test = documents(0, n=40), documents(3, n=3)
    model = SparseNonNegativeLM(3, skip_words=2, skipped=2, loss=loss, steps=15).fit(train, 6)
    said = model.log_probabilities(test)
    t = 0
    stream = as_stream(test, 6)
    for t in range(len(stream)):
        row = model.next(stream[:t])
        assert row.sum() == pytest.approx(1, abs=1e-9)
        assert np.log(row[stream[t]]) == pytest.approx(said[t], abs=1e-9)
    before = SparseNonNegativeLM(3, skip_words=2, skipped=2, loss=loss, steps=0).fit(train, 6)
    assert model.loss_ < before.loss_
    assert model.perplexity(train) > 1


@pytest.mark.parametrize(("call", "message"), [
    (lambda: SparseNonNegativeLM(0), "order: got 0"),
    (lambda: SparseNonNegativeLM(loss="poison"), "did you mean 'poisson'"),
    (lambda: SparseNonNegativeLM(prior=0), "prior: got 0"), (lambda: SparseNonNegativeLM(steps=-1), "steps: got -1"),
    (lambda: SparseNonNegativeLM(skip_words=-1), "skip_words: got -1"),
    (lambda: SparseNonNegativeLM().fit([], 5), "documents: got none"),
    (lambda: SparseNonNegativeLM().fit([[1, 9]], 5), r"documents\[0\]: got tokens 1 to 9, want 0 to 4"),
    (lambda: SparseNonNegativeLM().fit([[0.5]], 5), r"documents\[0\]: got dtype float64"),
    (lambda: SparseNonNegativeLM().fit("text", 5), "documents: got none"),
    (lambda: SparseNonNegativeLM(1, steps=0).fit([[1, 2]], 5).next([9]), "history: got tokens 9 to 9, want 0 to 5"),
    (lambda: KneserNey(0), "order: got 0"), (lambda: KneserNey(2, 3), "discount: got 3"),
    (lambda: KneserNey(2).fit([[1, 2]], 0), "vocabulary: got 0"),
    (lambda: KneserNey(2).fit([[1, 2]], 5).perplexity([[7]]), r"documents\[0\]: got tokens 7 to 7"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
