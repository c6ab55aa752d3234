"""Greedy gains against brute force: the penalised loss itself, minimised along one coordinate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.greedy_gains import LOSSES, Absolute, Squared, SquareRoot

NORMS = {"squared": lambda r: (r**2).sum(0), "square_root": lambda r: np.sqrt((r**2).sum(0)),
         "absolute": lambda r: abs(r).sum(0)}  # fmt: skip


def brute(loss, kind, residual, column, value, price):
    """The largest decrease over a fine grid of steps, and over the kinks."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = residual / column
    middle = column @ residual / (column @ column)
    reach = 3 * (abs(middle) + abs(value) + 1e-3)
    steps = np.concatenate([np.linspace(-reach, reach, 6001), kinks[np.isfinite(kinks)], [-value, 0.0, middle]])
    fit = NORMS[loss](residual[:, None] - steps * column[:, None])
    after = np.where(abs(value + steps) < 1e-14, 0, abs(value + steps))
    now = NORMS[loss](residual[:, None])[0]
    cost = price * after if kind == "l1" else price * (after != 0)
    start = price * abs(value) if kind == "l1" else price * (value != 0)
    return max(now + start - (fit + cost).min(), 0)


def case(seed, inside, rows=9):
    generator = rng(seed, "gain")
    column = generator.standard_normal(rows)
    column /= np.linalg.norm(column)
    residual = generator.standard_normal(rows) * np.exp(generator.normal())
    if inside:
        residual -= (column @ residual) * column
    return column, residual, float(generator.normal() * np.exp(generator.normal())) if inside else 0.0, generator


@pytest.mark.parametrize("kind", ["l1", "l0"])
@pytest.mark.parametrize("loss", ["squared", "square_root"])
@pytest.mark.parametrize("inside", [False, True])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_smooth_gains_are_the_best_decrease(loss, kind, inside, seed):
    column, residual, value, generator = case(seed, inside)
    price = float(generator.exponential(0.7))
    rule, length = LOSSES[loss](kind), np.linalg.norm(residual)
    if inside:
        gain = rule.inside(abs(value), length, price)
    else:
        gain = rule.outside(abs(column @ residual), length, price)
    best = brute(loss, kind, residual, column, value, price)
    assert gain == pytest.approx(best, rel=2e-5, abs=1e-5 * (length + length**2 + abs(value)))
    assert gain >= best - 1e-9 * (1 + length**2 + price * abs(value))


@pytest.mark.parametrize("kind", ["l1", "l0"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), zeros=st.integers(0, 4))
def test_absolute_gains_are_the_best_decrease(kind, seed, zeros):
    generator = rng(seed, "absolute")
    columns = generator.standard_normal((11, 5)) * np.exp(generator.standard_normal(5))
    residual, price = generator.standard_normal(11), generator.exponential(2.0, 5)
    residual[:zeros] = 0
    columns[3, 0] = 0
    gains = Absolute(kind).gain(columns, residual, np.zeros(5), price)
    for j in range(5):
        best = brute("absolute", kind, residual, columns[:, j], 0.0, price[j])
        assert gains[j] == pytest.approx(best, abs=1e-9 * abs(residual).sum())
    total = abs(columns).sum(0)
    bound = Absolute(kind).bound(abs(np.sign(residual) @ columns), total, abs(residual).sum(), price)
    assert (gains <= bound + 1e-9).all()


@pytest.mark.parametrize("kind", ["l1", "l0"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_absolute_gains_inside_a_fitted_support(kind, seed):
    """One column fitted by its weighted median, so that no free step along it helps."""
    generator = rng(seed, "inside")
    column, y, price = generator.standard_normal(9), generator.standard_normal(9), generator.exponential(1.0)
    kinks, weights = y / column, abs(column)
    order = np.argsort(kinks)
    value = kinks[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)]
    residual = y - value * column
    gain = Absolute(kind).gain(column[:, None], residual, np.array([value]), np.array([price]))[0]
    assert gain == pytest.approx(brute("absolute", kind, residual, column, value, price), abs=1e-9)


def test_without_a_penalty_all_rank_by_correlation():
    correlation, length = np.linspace(0, 2, 9), 2.0
    np.testing.assert_allclose(Squared("l1").outside(correlation, length, 0.0), correlation**2)
    np.testing.assert_allclose(Squared("l0").outside(correlation, length, 0.0), correlation**2)
    for kind in ("l1", "l0"):
        gain = SquareRoot(kind).outside(correlation, length, 0.0)
        np.testing.assert_allclose(gain, length - np.sqrt(length**2 - correlation**2), atol=1e-15)
        assert not SquareRoot(kind).inside(np.array([0.0, 1.0]), length, 0.0).any()


@pytest.mark.parametrize("loss", ["squared", "square_root"])
def test_excluded_and_perfectly_fitted(loss):
    for kind in ("l1", "l0"):
        rule = LOSSES[loss](kind)
        assert rule.outside(np.array([1.0]), 1.0, np.array([np.inf]))[0] == 0
        assert rule.outside(np.array([0.0]), np.float64(0.0), np.array([0.5]))[0] == 0


def test_an_unknown_penalty_is_refused():
    for rule in LOSSES.values():
        with pytest.raises(InputError, match="penalty: got 'l2', want one of l1, l0"):
            rule("l2")
