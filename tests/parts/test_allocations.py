"""Laws of allocations: exact totals, no layer above dense, the published proportions, one threshold."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.parts import allocations
from ellzero.parts.allocations import (
    ER,
    ERK,
    Balanced,
    Deviation,
    ERKPlus,
    FromScores,
    Global,
    Pyramidal,
    Uniform,
    kept_count,
    shared_out,
)
from ellzero.registry import entries

EXAMPLES = [entry.example() for entry in entries(kind="allocation") if entry.module == allocations.__name__]
SHAPES = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6
).map(lambda found: {f"layer{i}": shape for i, shape in enumerate(found)})  # fmt: skip
DENSITY = st.integers(0, 100).map(lambda n: n / 100)


def drawn_scores(shapes, seed, levels=None):
    generator = np.random.default_rng(seed)
    draw = (lambda s: generator.random(s)) if levels is None else (lambda s: generator.integers(0, levels, s) * 1.0)
    return {name: draw(shape) for name, shape in shapes.items()}


def test_every_allocation_is_registered():
    named = {"ER", "ERK", "Balanced", "ERKPlus", "Deviation", "FromScores", "Global", "Pyramidal", "Uniform"}
    assert {type(example).__name__ for example in EXAMPLES} == named


def test_random_starts_spread_as_published():
    shapes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    balanced = Balanced().counts(shapes, 0.05)
    assert balanced["c"] == 1000  # it would pass 1
    assert abs(balanced["a"] - balanced["b"]) <= 1
    p = Pyramidal().densities(shapes, 0.5)
    assert p["b"] == pytest.approx(p["a"] ** 2)
    assert p["c"] == pytest.approx(p["a"] ** 3)
    assert sum(p[name] * math.prod(shape) for name, shape in shapes.items()) == pytest.approx(0.5 * 266200)
    plus = ERKPlus().densities(shapes, 0.05)
    assert plus["c"] == 1
    assert plus["a"] / plus["b"] == pytest.approx(
        ERK().densities(shapes, 0.01)["a"] / ERK().densities(shapes, 0.01)["b"]
    )
    assert ERKPlus().densities(shapes, 0.005) == ERK().densities(shapes, 0.005)


@given(shapes=SHAPES, density=DENSITY)
@settings(deadline=None)
def test_balanced_and_pyramidal_layers_keep_an_entry_per_output_where_the_budget_allows(shapes, density):
    total, outputs = sum(map(math.prod, shapes.values())), sum(shape[0] for shape in shapes.values())
    for allocation in (Balanced(), Pyramidal()):
        counts = allocation.counts(shapes, density)
        assert sum(counts.values()) == kept_count(total, density)
        if density * total >= outputs:
            assert all(counts[name] >= shape[0] for name, shape in shapes.items())


def test_what_is_raised_is_one_entry_per_output_and_the_others_follow_the_rule():
    shapes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    found = Pyramidal().densities(shapes, 0.05)
    assert found["b"] * 30_000 == pytest.approx(100)
    assert found["c"] * 1000 == pytest.approx(10)
    assert found["a"] * 235_200 == pytest.approx(0.05 * 266_200 - 110)
    assert Balanced().counts({"wide": (50, 2), "deep": (5, 100)}, 0.1) == {"wide": 50, "deep": 10}
    assert Pyramidal().counts({"a": (10, 10), "b": (10, 10)}, 0.05) == {"a": 9, "b": 1}  # too few for one each


def filled(total, weight, room):
    """The real numbers ``min(room, level * weight)`` that sum to the total, the level by bisection."""
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if sum(min(room[n], level * weight[n]) for n in room) < total else (low, level)
    return {n: min(room[n], high * weight[n]) for n in room}


@given(st.lists(st.tuples(st.floats(0.01, 100) | st.just(0.0), st.integers(0, 40)), min_size=1, max_size=6),
       st.integers(0, 150))  # fmt: skip
def test_what_is_shared_out_is_all_of_it_in_proportion(layers, total):
    weight = {str(i): w for i, (w, _) in enumerate(layers)}
    room = {str(i): r for i, (_, r) in enumerate(layers)}
    got = shared_out(total, weight, room)
    assert sum(got.values()) == min(total, sum(room.values()))
    assert all(0 <= got[name] <= room[name] for name in room)
    if total <= sum(room[name] for name in room if weight[name]):
        ideal = filled(total, weight, room)
        assert all(abs(got[name] - ideal[name]) < 1 + 1e-6 for name in room)


@given(numel=st.integers(1, 10**7), hundredths=st.integers(0, 1000))
@settings(deadline=None, max_examples=300)
def test_kept_count_is_the_rule_in_exact_arithmetic(numel, hundredths):
    sparsity = 1 - Fraction(hundredths, 1000)
    assert kept_count(numel, hundredths / 1000) == numel - math.floor(sparsity * numel)
    assert kept_count(numel, 1 - (1 - hundredths / 1000)) == numel - math.floor(sparsity * numel)


@pytest.mark.parametrize("allocation", EXAMPLES, ids=repr)
@given(shapes=SHAPES, density=DENSITY, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_counts_are_whole_in_range_and_the_total_is_exact(allocation, shapes, density, seed):
    counts = allocation.counts(shapes, density, drawn_scores(shapes, seed))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert list(counts) == list(shapes)
    assert all(isinstance(count, int) and 0 <= count <= sizes[name] for name, count in counts.items())
    total, want = sum(counts.values()), kept_count(sum(sizes.values()), density)
    if isinstance(allocation, Uniform):
        assert want <= total < want + len(shapes)
        assert all(count == kept_count(sizes[name], density) for name, count in counts.items())
    else:
        assert total == want


@pytest.mark.parametrize("allocation", [ER(), ERK(), FromScores()], ids=repr)
@given(shapes=SHAPES, density=DENSITY, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_densities_are_proportional_below_one_and_spend_the_budget(allocation, shapes, density, seed):
    scores = drawn_scores(shapes, seed)
    found = allocation.densities(shapes, density, scores)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert all(0 <= value <= 1 + 1e-12 for value in found.values())
    assert sum(found[n] * sizes[n] for n in sizes) == pytest.approx(density * sum(sizes.values()), abs=1e-6)
    axes = 2 if isinstance(allocation, ER) else None
    law = (
        {n: scores[n].mean() for n in shapes}
        if isinstance(allocation, FromScores)
        else {n: sum(s[:axes]) / math.prod(s[:axes]) for n, s in shapes.items()}
    )
    free = [n for n in shapes if found[n] < 1]
    ratios = [found[n] / law[n] for n in free]
    if ratios:
        assert max(ratios) - min(ratios) <= 1e-9 * max(ratios) + 1e-12
        # a pinned layer is one that the common factor would push past dense
        assert all(max(ratios) * law[n] >= 1 - 1e-9 for n in shapes if n not in free)
    counts = allocation.counts(shapes, density, scores)
    assert all(abs(counts[n] - found[n] * sizes[n]) <= 1 + 1e-6 for n in shapes)


def test_erk_of_the_mnist_network_by_hand():
    shapes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    found = ERK().densities(shapes, 0.02)
    # eps * (1084 + 400 + 110) = 0.02 * 266200, no layer capped
    eps = 0.02 * 266_200 / 1594
    assert found == pytest.approx({"a": eps * 1084 / 235_200, "b": eps * 400 / 30_000, "c": eps * 110 / 1000})
    dense = ERK().densities(shapes, 0.2)  # eps would be 33.4, so c is dense and the rest is solved again
    assert dense["c"] == 1.0
    eps = (0.2 * 266_200 - 1000) / 1484
    assert dense["a"] == pytest.approx(eps * 1084 / 235_200)


def test_er_leaves_the_kernel_out_and_erk_does_not():
    shapes = {"conv": (16, 8, 3, 3), "head": (10, 64)}
    er, erk = ER().densities(shapes, 0.1), ERK().densities(shapes, 0.1)
    assert er["conv"] / er["head"] == pytest.approx((24 / 128) / (74 / 640))
    assert erk["conv"] / erk["head"] == pytest.approx((30 / 1152) / (74 / 640))


@given(shapes=SHAPES, density=DENSITY, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_global_is_one_stable_sort_over_all_layers(shapes, density, seed):
    scores = drawn_scores(shapes, seed, levels=4)  # many ties
    every = np.concatenate([scores[name].ravel() for name in shapes])
    owner = np.concatenate([np.full(scores[name].size, i) for i, name in enumerate(shapes)])
    kept = owner[np.argsort(-every, kind="stable")][: kept_count(every.size, density)]
    assert list(Global().counts(shapes, density, scores).values()) == np.bincount(kept, minlength=len(shapes)).tolist()


def test_global_takes_tensors_and_minus_infinity():
    shapes = {"a": (4,), "b": (4,)}
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, -torch.inf]), "b": torch.tensor([0.5] * 4)}
    assert Global().counts(shapes, 0.5, scores) == {"a": 3, "b": 1}
    assert Global().densities(shapes, 0.5, scores) == {"a": 0.75, "b": 0.25}


def test_deviation_is_one_multiple_of_each_layers_spread():
    draw = np.random.default_rng(0)
    scores = {"a": abs(draw.standard_normal((40, 30))), "b": abs(0.01 * draw.standard_normal((30, 20)))}
    shapes = {name: array.shape for name, array in scores.items()}
    counts = Deviation().counts(shapes, 0.2, scores)
    assert sum(counts.values()) == 360
    assert counts["b"] / 600 == pytest.approx(counts["a"] / 1200, abs=0.03)  # the scale of a layer plays no part
    assert counts["b"] > Global().counts(shapes, 0.2, scores)["b"] == 0
    cuts = [np.sort(scores[n].ravel())[-counts[n]] / np.sqrt((scores[n] ** 2).mean()) for n in shapes]
    assert cuts[0] == pytest.approx(cuts[1], rel=0.01)
    closed = {"a": np.array([-np.inf, 1.0, 2.0, 3.0]), "b": np.zeros(4)}
    assert Deviation().counts({"a": (4,), "b": (4,)}, 0.375, closed) == {"a": 3, "b": 0}


def test_from_scores_that_are_all_zero_is_uniform():
    shapes = {"a": (4, 5), "b": (10,)}
    assert FromScores().densities(shapes, 0.5, {n: np.zeros(s) for n, s in shapes.items()}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("allocation", EXAMPLES, ids=repr)
@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan, "half", None])
def test_a_density_outside_0_to_1_is_refused(allocation, density):
    shapes = {"a": (2, 3)}
    for call in (allocation.densities, allocation.counts):
        with pytest.raises(InputError, match="density"):
            call(shapes, density, drawn_scores(shapes, 0))


@pytest.mark.parametrize("allocation", EXAMPLES, ids=repr)
@pytest.mark.parametrize("shapes", [{}, {"a": (0, 3)}, {"a": ()}])
def test_empty_shapes_are_refused(allocation, shapes):
    with pytest.raises(InputError, match="shapes"):
        allocation.counts(shapes, 0.5, {})


@pytest.mark.parametrize("allocation", [Global(), Deviation(), FromScores()], ids=repr)
@pytest.mark.parametrize("scores", [None, {}, {"a": np.zeros(3)}, {"a": np.full((2, 3), np.nan)}])
def test_missing_or_broken_scores_are_refused(allocation, scores):
    with pytest.raises(InputError, match="scores"):
        allocation.counts({"a": (2, 3)}, 0.5, scores)


@pytest.mark.parametrize("bad", [-1.0, np.inf])
def test_from_scores_refuses_negative_and_infinite(bad):
    with pytest.raises(InputError, match="scores"):
        FromScores().densities({"a": (2,)}, 0.5, {"a": np.array([1.0, bad])})
