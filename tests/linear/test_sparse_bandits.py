"""Bandits: covers, the guarantee's steps, exact and noisy queries, what is planned, and what is refused."""

import math

import numpy as np
import pytest

from ellzero.data.bandits import hidden_codeword_bandit, misspecified_bandit
from ellzero.errors import InputError
from ellzero.linear.sparse_bandits import LassoBandit, LeastSquaresBandit, SparseElimination, cover, plan


@pytest.mark.parametrize("radius", [0.1, 0.4])
def test_a_cover_reaches_everything_and_wastes_nothing(radius):
    points = np.random.default_rng(0).standard_normal((300, 2))
    chosen = cover(points, radius)
    distance = np.linalg.norm(points[:, None] - points[chosen], axis=2)
    assert distance.min(axis=1).max() <= radius
    apart = np.linalg.norm(points[chosen][:, None] - points[chosen], axis=2)[np.triu_indices(len(chosen), 1)]
    assert apart.min() > radius
    more = cover(points, radius, chosen[:5])
    assert not set(more) & set(chosen[:5])
    assert np.linalg.norm(points[:, None] - points[[*chosen[:5], *more]], axis=2).min(axis=1).max() <= radius


def test_the_representatives_cover_every_projection():
    bandit = misspecified_bandit(5, 2, n_actions=150, epsilon=0.3)
    for share in (True, False):
        chosen = SparseElimination(2, 0.3, share=share).representatives(bandit.actions)
        assert len(set(chosen.tolist())) == len(chosen)
        for i in range(5):
            for j in range(i):
                part = bandit.actions[:, [j, i]]
                assert np.linalg.norm(part[:, None] - part[chosen], axis=2).min(axis=1).max() <= 0.3


def test_exact_rewards_are_asked_for_once_each():
    bandit = misspecified_bandit(6, 2, n_actions=200, seed=1)
    asked = []

    def pull(actions, times):
        assert times == 1
        asked.extend(actions.tolist())
        return bandit.pull(actions)

    found = SparseElimination(2, 0.1).run(bandit.actions, pull)
    assert len(asked) == len(set(asked)) == found.queries == found.pulls
    assert bandit.rewards[found.action] == found.reward == max(bandit.rewards[asked])
    assert np.count_nonzero(found.theta) <= 2
    again = SparseElimination(2, 0.1).run(bandit.actions, bandit.pull)
    assert (again.action, again.queries) == (found.action, found.queries)


def test_noisy_rewards_are_asked_for_often_enough():
    bandit = misspecified_bandit(6, 2, n_actions=150, noise=0.3, size=0.6, seed=2)
    found = SparseElimination(2, 0.1, noise=0.3).run(bandit.actions, bandit.pull)
    times = math.ceil(2 * 0.09 * math.log(2 * 150 / 0.05) / 0.05**2)
    assert found.pulls == times * found.queries
    assert abs(found.reward - bandit.rewards[found.action]) <= 0.05
    assert bandit.gap(found.action) <= 0.6


def test_a_promise_that_is_broken_is_refuted():
    """With a coarse cover the first promise can be far off; the search goes on until one is kept."""
    kept, rounds = [], []
    for seed in range(6):
        bandit = misspecified_bandit(6, 2, n_actions=300, epsilon=0.05, misspecification="random", seed=seed)
        way = SparseElimination(2, 0.05, radius=1.4, consistent=1.0, agree=1.0)
        found = way.run(bandit.actions, bandit.pull)
        rounds.append(found.rounds)
        best = int((bandit.actions @ found.theta).argmax())
        kept.append(bandit.gap(best) <= 2 * 0.05 + 1e-9 or found.rounds > 1)
        assert bandit.gap(found.action) <= 10 * 0.05
    assert all(kept)
    assert max(rounds) > 1


def test_the_lasso_needs_few_queries_and_least_squares_more():
    bandit = misspecified_bandit(60, 2, n_actions=800, epsilon=0.02, misspecification="random", seed=3)
    lasso = LassoBandit(2, 0.02).run(bandit.actions, bandit.pull)
    assert lasso.queries <= math.ceil(16 * math.log(math.e * 30)) + 1
    assert set(np.flatnonzero(lasso.theta)) == set(np.flatnonzero(bandit.theta))
    assert bandit.gap(lasso.action) <= 2 * 0.02
    plain = LeastSquaresBandit(2, 0.02).run(bandit.actions, bandit.pull)
    assert plain.queries in (240, 241)
    assert np.count_nonzero(plain.theta) == 60


def test_without_any_reward_the_lasso_keeps_nothing():
    found = LassoBandit(1, 0.1, queries=3).run(np.eye(5), lambda actions, times: np.zeros(len(actions)))
    assert not found.theta.any()


def test_what_a_budget_buys():
    ways = plan(12, 2, 0.1, 1e5)
    assert [way.method for way in ways if way.affordable] == ["SparseElimination", "LeastSquaresBandit", "LassoBandit"]
    assert ways[0].pulls == pytest.approx(66 * 21**2)
    assert ways[0].gap == pytest.approx(1.0)
    assert plan(12, 2, 0.1, 1e5, n_actions=500)[0].pulls == 500
    poor = plan(1000, 3, 0.1, 500, conditioning=0.1)
    assert poor[0].method == "LassoBandit"
    assert [way.affordable for way in poor] == [True, False, False]
    noisy = plan(12, 2, 0.1, 1e5, noise=0.5)
    assert noisy[0].pulls > 100 * 97
    few, many = (next(way.pulls for way in plan(d, 3, 0.1, 1) if way.method == "SparseElimination") for d in (100, 200))
    assert math.log2(many / few) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize(("options", "message"), [
    ({"s": 0}, "s: got 0"), ({"s": 7}, "s: got 7"), ({"epsilon": 0}, "epsilon: got 0"), ({"noise": 0}, "noise: got 0"),
    ({"delta": 1}, "delta: got 1"), ({"radius": -1}, "radius: got -1"), ({"consistent": 0.5}, "consistent: got 0.5"),
    ({"agree": 1}, "agree: got 1"), ({"max_queries": 0}, "max_queries: got 0"),
    ({"max_queries": 3}, "max_queries: got 3, want at least"),
])  # fmt: skip
def test_bad_settings_are_named(options, message):
    bandit = misspecified_bandit(6, 2, n_actions=30)
    with pytest.raises(InputError, match=message):
        SparseElimination(**{"s": 2, "epsilon": 0.1, **options}).run(bandit.actions, bandit.pull)


def test_inputs_that_fit_nothing_are_named():
    bandit = misspecified_bandit(6, 2, n_actions=60, epsilon=0.5, seed=4)
    with pytest.raises(InputError, match="no 2-sparse parameter is so near"):
        SparseElimination(2, 1e-3).run(bandit.actions, bandit.pull)
    with pytest.raises(InputError, match="pull: got shape"):
        SparseElimination(2, 0.5).run(bandit.actions, lambda actions, times: np.zeros(3))
    with pytest.raises(InputError, match="not finite"):
        SparseElimination(2, 0.5).run(bandit.actions, lambda actions, times: np.full(len(actions), np.nan))
    with pytest.raises(InputError, match="LassoBandit needs none of them"):
        SparseElimination(8, 0.1).run(np.eye(40), lambda actions, times: np.zeros(len(actions)))
    with pytest.raises(InputError, match="queries: got 0"):
        LassoBandit(2, 0.1, queries=0)
    with pytest.raises(InputError, match="s: got 13"):
        plan(12, 13, 0.1, 5)


def test_no_codeword_but_one_pays():
    bandit = hidden_codeword_bandit(24, 16, n_actions=100)
    assert np.count_nonzero(bandit.rewards) == 1
    off = abs(bandit.rewards - bandit.actions @ bandit.theta)
    assert off.max() == pytest.approx(0.1)
    assert np.count_nonzero(bandit.theta) == 16
    assert bandit.rewards.max() > 1.2 * 0.1
    np.testing.assert_allclose(np.linalg.norm(bandit.actions, axis=1), 1)
    assert len(np.unique(bandit.actions, axis=0)) == 100


@pytest.mark.parametrize("misspecification", ["random", "least_squares"])
def test_errors_stay_within_the_misspecification(misspecification):
    bandit = misspecified_bandit(10, 3, n_actions=200, sparse_actions=4, misspecification=misspecification, size=0.5)
    off = abs(bandit.rewards - bandit.actions @ bandit.theta)
    assert off.max() <= 0.1 + 1e-12
    assert np.linalg.norm(bandit.theta) == pytest.approx(0.5)
    assert (np.count_nonzero(bandit.actions, axis=1) == 4).all()
    if misspecification == "least_squares":
        fit = np.linalg.lstsq(bandit.actions, bandit.rewards)[0]
        assert bandit.gap(int((bandit.actions @ fit).argmax())) > 2 * 0.1


def test_pulls_repeat_and_average():
    bandit = misspecified_bandit(4, 1, n_actions=500, noise=1.0)
    every = np.arange(500)
    assert np.array_equal(bandit.pull(every, 4), bandit.pull(every, 4))
    assert (bandit.pull(every, 4) - bandit.rewards).std() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(("options", "message"), [
    ({"d": 0}, "d: got 0"), ({"s": 7}, "s: got 7"), ({"n_actions": 1}, "n_actions: got 1"),
    ({"sparse_actions": 0}, "sparse_actions: got 0"), ({"epsilon": -1}, "epsilon: got -1"),
    ({"size": 0}, "size: got 0"),
    ({"misspecification": "rand"}, "did you mean 'random'"), ({"noise": -1}, "noise: got -1"),
])  # fmt: skip
def test_bad_generator_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        misspecified_bandit(**{"d": 6, "s": 2, **options})
    with pytest.raises(InputError, match="n_actions: got 9"):
        hidden_codeword_bandit(6, 4, n_actions=9)
