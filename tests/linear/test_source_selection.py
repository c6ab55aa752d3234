"""Source tasks: relevance against its dual, budgets to the last sample, the shared subspace, rounds that keep them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from ellzero.data.multitask import shared_subspace_tasks
from ellzero.errors import InputError
from ellzero.linear import ActiveSources
from ellzero.linear.source_selection import relevance, sample_sizes, shared_representation


@pytest.fixture(scope="module")
def heads():
    W = np.random.default_rng(0).standard_normal((4, 12))
    return W / np.linalg.norm(W, axis=0)


class TestRelevance:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_least_l1_norm_reaches_its_dual(self, heads, seed):
        g = np.random.default_rng(seed)
        target, costs = g.standard_normal(4), g.uniform(0.5, 2, 12)
        nu = relevance(heads, target, costs=costs)
        np.testing.assert_allclose(heads @ nu, target, atol=1e-9)
        assert np.count_nonzero(abs(nu) > 1e-9) <= 4
        rows = np.vstack([heads.T, -heads.T])  # max target'v with |heads' v| at most the costs
        dual = linprog(-target, A_ub=rows, b_ub=np.tile(costs, 2), bounds=(None, None))
        assert costs @ abs(nu) == pytest.approx(-dual.fun)

    def test_one_source_that_is_the_target_is_all_that_counts(self, heads):
        np.testing.assert_allclose(relevance(heads, -2 * heads[:, 5]), -2.0 * (np.arange(12) == 5), atol=1e-9)

    def test_with_alpha_it_is_the_lasso(self, heads):
        target, costs = np.random.default_rng(1).standard_normal(4), np.linspace(0.5, 2, 12)
        nu = relevance(heads, target, alpha=0.2, costs=costs)
        pull = heads.T @ (target - heads @ nu)  # optimality
        used = nu != 0
        np.testing.assert_allclose(pull[used], 0.2 * costs[used] * np.sign(nu[used]), atol=1e-6)
        assert (abs(pull[~used]) <= 0.2 * costs[~used] + 1e-6).all()
        assert used.any()

    def test_the_l2_norm_spreads(self, heads):
        target = np.random.default_rng(2).standard_normal(4)
        nu = relevance(heads, target, norm="l2")
        np.testing.assert_allclose(nu, np.linalg.pinv(heads) @ target)
        assert (nu != 0).all()
        ridge = relevance(heads, target, norm="l2", alpha=0.3)
        np.testing.assert_allclose(ridge, np.linalg.solve(heads.T @ heads + 0.3 * np.eye(12), heads.T @ target))

    def test_the_l1_split_is_the_best_design_for_the_target(self, heads):
        """``target' (sum_m n_m w_m w_m')^-1 target`` over shares n: least at |nu| / |nu|_1, and then |nu|_1^2."""
        target = np.random.default_rng(3).standard_normal(4)
        nu = relevance(heads, target)

        def error(shares):
            return target @ np.linalg.pinv((heads * shares) @ heads.T) @ target

        ours = error(abs(nu) / abs(nu).sum())
        assert ours == pytest.approx(abs(nu).sum() ** 2)
        for seed in range(2):
            start = np.random.default_rng(seed).standard_normal(12)
            found = minimize(lambda z: error(np.exp(z) / np.exp(z).sum()), start, options={"maxiter": 150})
            assert ours <= found.fun * (1 + 1e-6)


class TestSampleSizes:
    @settings(deadline=None, max_examples=100)
    @given(
        nu=st.lists(st.floats(-5, 5), min_size=1, max_size=9), budget=st.integers(0, 300), minimum=st.integers(0, 5),
        power=st.sampled_from([1.0, 2.0]),
    )  # fmt: skip
    def test_the_budget_is_used_up_in_proportion(self, nu, budget, minimum, power):
        nu = np.array(nu)
        budget += minimum * len(nu)
        counts = sample_sizes(nu, budget, minimum, power=power)
        assert counts.sum() == budget
        assert (counts >= minimum).all()
        size = abs(nu) ** power
        assert (np.diff(counts[np.argsort(size, kind="stable")]) >= -1).all()
        free = counts > minimum + 1
        if size[free].sum() > 0:  # those above the minimum share what the others leave
            share = size[free] / size[free].sum() * counts[free].sum()
            assert (abs(counts[free] - share) <= 1 + free.sum()).all()

    def test_small_cases(self):
        assert sample_sizes([1, 1, 1], 10).tolist() == [4, 3, 3]
        assert sample_sizes([0, 0], 5).tolist() == [3, 2]
        assert sample_sizes([3, -1, 0], 8).tolist() == [6, 2, 0]
        assert sample_sizes([3, 1, 0], 10, power=2).tolist() == [9, 1, 0]
        assert sample_sizes([1, 0, 0], 10, 2).tolist() == [6, 2, 2]
        assert sample_sizes([5, 1], 4, 2).tolist() == [2, 2]

    @settings(deadline=None, max_examples=60)
    @given(costs=st.lists(st.integers(1, 5), min_size=3, max_size=3), budget=st.integers(0, 100))
    def test_costs_are_kept_and_less_than_the_dearest_sample_is_left(self, costs, budget):
        spent = sample_sizes([2.0, 1.0, 0.5], budget, costs=costs) @ costs
        assert budget - max(costs) < spent <= budget


class TestRepresentation:
    def test_the_subspace_is_found(self):
        pool = shared_subspace_tasks(20, 3, 15, noise=0.1, seed=0)
        B, heads = shared_representation([draw(40, 0) for draw in pool.sources], 3)
        np.testing.assert_allclose(B.T @ B, np.eye(3), atol=1e-10)
        assert np.linalg.svd(B.T @ pool.basis)[1].min() > 0.99
        np.testing.assert_allclose(B @ heads, pool.basis @ pool.heads, atol=0.15)

    def test_no_small_move_lowers_the_loss(self):
        pool = shared_subspace_tasks(8, 2, 6, noise=0.5, seed=1)
        tasks = [draw(12 + 3 * m, 0) for m, draw in enumerate(pool.sources)]

        def loss(B):
            Q = np.linalg.qr(B)[0]
            return sum(((y - X @ Q @ np.linalg.lstsq(X @ Q, y)[0]) ** 2).sum() for X, y in tasks)

        B, _ = shared_representation(tasks, 2, ridge=1e-10, steps=2000, tol=1e-14)
        best = minimize(lambda b: loss(b.reshape(8, 2)), B.ravel(), options={"maxiter": 200})
        assert loss(B) <= best.fun * (1 + 1e-6)

    def test_as_many_directions_as_columns_are_the_tasks_own_fits(self):
        pool = shared_subspace_tasks(3, 2, 4, noise=0.5, seed=2)
        tasks = [draw(30, 0) for draw in pool.sources]
        B, heads = shared_representation(tasks, 3, ridge=1e-10)
        for (X, y), coef in zip(tasks, (B @ heads).T):
            np.testing.assert_allclose(coef, np.linalg.lstsq(X, y)[0], atol=1e-5)


class TestActiveSources:
    @pytest.mark.parametrize("rule", ["l1", "l2", "uniform"])
    def test_every_rule_spends_the_budget_and_no_more(self, rule):
        pool = shared_subspace_tasks(10, 2, 8, noise=0.3, seed=0)
        asked = []
        sources = [lambda n, r, m=m, draw=draw: asked.append((m, r, n)) or draw(n, r)
                   for m, draw in enumerate(pool.sources)]  # fmt: skip
        X, y = pool.target(30)
        model = ActiveSources(2, 500, rule=rule, rounds=3).fit(sources, X, y)
        assert model.counts_.sum() == 500 == sum(n for _, _, n in asked)
        assert [sum(n for m, _, n in asked if m == own) for own in range(8)] == model.counts_.tolist()
        assert {r for _, r, _ in asked} == {0, 1, 2, 3}
        assert len({(m, r) for m, r, _ in asked}) == len(asked)
        assert model.explored_ == 8 * int(0.3 * 500 / 8) == sum(n for _, r, n in asked if r == 0)
        assert pool.risk(model.coef_) < 0.1 * pool.risk(np.zeros(10))
        np.testing.assert_allclose(model.predict(X), X @ model.basis_ @ model.head_)
        again = ActiveSources(2, 500, rule=rule, rounds=3).fit(pool.sources, X, y)
        np.testing.assert_array_equal(model.coef_, again.coef_)

    def test_the_related_source_is_bought(self):
        pool = shared_subspace_tasks(12, 3, 9, related=1, noise=0.2, seed=4)
        model = ActiveSources(3, 900).fit(pool.sources, *pool.target(60))
        related = int(abs(pool.heads - pool.target_head[:, None]).sum(0).argmin())
        assert model.counts_.argmax() == related
        assert model.counts_[related] > 0.5 * (900 - model.explored_)

    def test_dear_sources_are_bought_less_and_costs_kept(self):
        pool = shared_subspace_tasks(12, 3, 9, related=1, noise=0.2, seed=4)
        related = int(abs(pool.heads - pool.target_head[:, None]).sum(0).argmin())
        costs = np.where(np.arange(9) == related, 8.0, 1.0)
        model = ActiveSources(3, 900, costs=costs).fit(pool.sources, *pool.target(60))
        cheap = ActiveSources(3, 900).fit(pool.sources, *pool.target(60))
        assert 900 - 8 < model.counts_ @ costs <= 900
        assert model.counts_[related] < cheap.counts_[related] / 2


X4, Y4 = np.ones((5, 4)), np.ones(5)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: relevance(np.ones((2, 3)), np.ones(3)), r"target: got shape \(3,\), want \(2\)"),
    (lambda: relevance(np.ones((2, 3)), [1.0, 2.0]), "target: is no combination of the heads"),
    (lambda: relevance(np.ones((2, 3)), [1, 1], norm="l3"), "norm: got 'l3'"),
    (lambda: relevance(np.ones((2, 3)), [1, 1], costs=[1, 0, 1]), "costs: got 0"),
    (lambda: sample_sizes([1, 1], 3, 2), "budget: got 3, want a number at least 4"),
    (lambda: sample_sizes([1, np.nan], 3), "nu: 1 entry not finite"),
    (lambda: sample_sizes([1, 1], 3, costs=[1]), "costs: got shape"),
    (lambda: shared_representation([], 1), "tasks: got none"),
    (lambda: shared_representation([(X4, Y4)], 2), "k: got 2, want a number at most 1"),
    (lambda: shared_representation([(X4, Y4[:3])], 1), r"tasks\[0\]: y: got shape \(3,\)"),
    (lambda: ActiveSources(0, 10), "k: got 0"),
    (lambda: ActiveSources(2, 10, rule="l0"), "rule: got 'l0'"),
    (lambda: ActiveSources(2, 10, explore=0), "explore: got 0"),
    (lambda: ActiveSources(2, 10, alpha=1), "alpha: got 1"),
    (lambda: ActiveSources(2, 10, rounds=0), "rounds: got 0"),
    (lambda: ActiveSources(2, 10).fit([lambda n, r: (X4, Y4)] * 4, X4, Y4), "budget: got 10, want at least 14"),
    (lambda: ActiveSources(2, 100).fit([lambda n, r: (X4, Y4)] * 4, X4, Y4[:2]), r"y: got shape \(2,\)"),
    (lambda: ActiveSources(2, 100, costs=[1, 2]).fit([lambda n, r: (X4, Y4)] * 4, X4, Y4), "costs: got shape"),
    (lambda: ActiveSources(2, 100, costs=[1, -2, 1, 1]).fit([lambda n, r: (X4, Y4)] * 4, X4, Y4), "costs: got -2"),
    (lambda: ActiveSources(2, 100).fit([lambda n, r: (X4[:, :3], Y4)] * 4, X4, Y4), "sources: the first gives 3"),
])  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
