"""Block descent against closed forms and another solver; rules by their definition; the problems' bookkeeping."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from ellzero.errors import InputError
from ellzero.parts.datafits import Huber, Logistic, Poisson, Quadratic
from ellzero.parts.penalties import L1, MCP, Box, ElasticNet
from ellzero.rng import rng
from ellzero.solvers.block_descent import block_descent
from ellzero.solvers.block_problems import LinearLoss, QuadraticForm, spread_labels
from ellzero.solvers.block_rules import FixedBlocks, VariableBlocks, coordinate_scores, partition
from ellzero.solvers.coordinate_descent import solve


def quadratic(p=24, seed=0, form=np.asarray, start=None):
    generator = rng(seed, "quadratic")
    root = generator.standard_normal((p, p)) * np.exp(generator.standard_normal(p))
    A = root @ root.T / p + np.eye(p)
    return QuadraticForm(form((A + A.T) / 2), generator.standard_normal(p), start)


def regression(n=60, p=40, seed=0):
    generator = rng(seed, "regression")
    X, w = generator.standard_normal((n, p)), np.zeros(p)
    w[:5] = [2, -2, 1, 1, -1]
    return X, X @ w + 0.3 * generator.standard_normal(n)


class TestProblems:
    @pytest.mark.parametrize("form", [np.asarray, sparse.csc_array])
    @pytest.mark.parametrize("datafit", [None, Quadratic(), Logistic(), Huber(0.5)])
    def test_moves_keep_value_gradient_and_bounds(self, form, datafit):
        generator = rng(1, "moves")
        start = generator.standard_normal(24)
        if datafit is None:
            problem = quadratic(form=form, start=start)
        else:
            X = generator.standard_normal((50, 24)) * (generator.random((50, 24)) < 0.3)
            y = np.sign(generator.standard_normal(50))
            problem = LinearLoss(form(X), y, datafit, l2=0.2, start=start)
        for _ in range(4):
            block, d = np.sort(generator.choice(24, 5, replace=False)), generator.standard_normal(5)
            before = problem.value()
            promised = problem.change(block, d)
            assert problem.move(block, d) == pytest.approx(promised)
            assert problem.value() - before == pytest.approx(promised, abs=1e-10)
            upper, here = problem.bound(block), problem.hessian(block)
            assert np.linalg.eigvalsh(upper - here)[0] >= -1e-10
            np.testing.assert_allclose(np.diag(upper), problem.curvature[block])
        h = 1e-6
        for j in range(24):
            slope = (problem.change(np.array([j]), np.array([h])) - problem.change(np.array([j]), np.array([-h]))) / (
                2 * h
            )
            assert problem.gradient[j] == pytest.approx(slope, abs=1e-6)

    def test_spread_labels_is_the_harmonic_function(self):
        generator = rng(0, "labels")
        W = generator.random((12, 12)) * (generator.random((12, 12)) < 0.5)
        W = W + W.T + np.diag(generator.random(12))
        labels = np.full(12, np.nan)
        labels[[2, 7]] = [1.0, -1.0]
        problem, unknown = spread_labels(W, labels)
        values = labels.copy()
        values[unknown] = block_descent(problem, 4, tol=1e-12).x
        np.fill_diagonal(W, 0)
        np.testing.assert_allclose(values[unknown], (W @ values / W.sum(1))[unknown], atol=1e-10)

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: QuadraticForm(np.ones((2, 3)), np.ones(2)), r"A: got shape \(2, 3\)"),
            (lambda: QuadraticForm(np.triu(np.ones((2, 2))), np.ones(2)), "A: got a matrix that differs"),
            (lambda: QuadraticForm(-np.eye(2), np.ones(2)), "A: got -1 on the diagonal"),
            (lambda: QuadraticForm(np.eye(2), np.ones(3)), "c: got shape"),
            (lambda: QuadraticForm(np.full((2, 2), np.nan), np.ones(2)), "A: 4 entries not finite"),
            (lambda: LinearLoss(np.eye(2), np.ones(3), Quadratic()), "y: got shape"),
            (lambda: LinearLoss(np.eye(2), np.zeros(2), Logistic()), "y: got the label 0"),
            (lambda: LinearLoss(np.eye(2), np.ones(2), Poisson()), "lacks 'lipschitz'"),
            (lambda: LinearLoss(np.eye(2), np.ones(2), Quadratic(), l2=-1), "l2: got -1"),
            (lambda: LinearLoss(np.eye(2), np.ones(2), Quadratic(), start=np.ones(3)), "start: got shape"),
            (lambda: spread_labels(np.eye(2), [1, np.nan]), "weights: node 1 has no neighbour"),
            (lambda: spread_labels(np.ones((2, 2)), [1, 2]), "labels: got 2 known of 2"),
            (lambda: spread_labels(-np.ones((2, 2)), [1, np.nan]), "weights: got -1"),
        ],
    )
    def test_bad_input(self, build, message):
        with pytest.raises(InputError, match=message):
            build()


GAINS = {
    "gs": lambda f, b: f.gradient[b] @ f.gradient[b],
    "gsl": lambda f, b: f.gradient[b] @ f.gradient[b] / np.linalg.eigvalsh(f.bound(b))[-1],
    "gsd": lambda f, b: f.gradient[b] ** 2 @ (1 / f.curvature[b]),
    "gsr": lambda f, b: ((f.gradient[b] / f.curvature[b]) ** 2).sum(),
    "gsq": lambda f, b: f.gradient[b] @ np.linalg.solve(f.bound(b), f.gradient[b]),
}


class TestRules:
    def best(self, problem, blocks, gain):
        return max(range(len(blocks)), key=lambda i: (gain(problem, np.asarray(blocks[i])), -i))

    @pytest.mark.parametrize("rule", GAINS)
    @pytest.mark.parametrize("kind", ["order", "sorted", "average", "random"])
    def test_fixed_blocks_are_chosen_by_definition(self, rule, kind):
        problem = quadratic(23)
        blocks = partition(kind, 5, problem.curvature, 0)
        assert sorted(np.concatenate(blocks)) == list(range(23))
        assert max(len(block) for block in blocks) <= 5
        want = self.best(problem, blocks, GAINS[rule])
        got = FixedBlocks(rule, blocks, problem, 0).next(problem, None)
        np.testing.assert_array_equal(got.index, blocks[want])
        np.testing.assert_allclose(problem.bound(got.index) @ got.solve(np.ones(len(got.index))), 1, atol=1e-8)

    @pytest.mark.parametrize("rule", ["gs", "gsd", "gsr"])
    def test_variable_blocks_are_the_best_of_all(self, rule):
        problem = quadratic(9)
        blocks = list(itertools.combinations(range(9), 3))
        want = blocks[self.best(problem, blocks, GAINS[rule])]
        np.testing.assert_array_equal(VariableBlocks(rule, 3, problem, 0).next(problem, None).index, want)

    def test_the_matrix_rule_gains_at_least_as_much_as_the_diagonal_one(self):
        gains = {"gsq": [], "gsd": []}
        for seed in range(20):
            problem = quadratic(40, seed)
            for rule in gains:
                block = VariableBlocks(rule, 6, problem, 0).next(problem, None).index
                assert len(block) == 6
                gains[rule].append(GAINS["gsq"](problem, block))
        assert np.mean(gains["gsq"]) > 1.2 * np.mean(gains["gsd"])

    def test_with_a_penalty_they_are_the_rules_s_r_and_q(self):
        X, y = regression()
        problem = LinearLoss(X, y, Quadratic(), start=rng(0, "start").standard_normal(40) * (np.arange(40) % 3 == 0))
        penalty = L1(0.3)
        grid = np.linspace(-8, 8, 160_001)
        scores = {rule: coordinate_scores(rule, problem, penalty) for rule in ("gs", "gsr", "gsd")}
        for j in (0, 1, 2, 9):
            x, g, L = problem.x[j], problem.gradient[j], problem.curvature[j]
            model = g * grid + L / 2 * grid**2 + 0.3 * abs(x + grid) - 0.3 * abs(x)
            assert scores["gsd"][j] == pytest.approx(-2 * model.min(), abs=1e-6)
            assert scores["gsr"][j] == pytest.approx(grid[model.argmin()] ** 2, abs=1e-3)
            slopes = g + 0.3 * (np.sign(x) if x else np.clip(-g / 0.3, -1, 1))
            assert scores["gs"][j] == pytest.approx(slopes**2, abs=1e-12)

    def test_neighbours_in_turn(self):
        problem = quadratic(7)
        rule = VariableBlocks("cyclic", 3, problem, 0)
        seen = [rule.next(problem, None).index.tolist() for _ in range(3)]
        assert seen == [[0, 1, 2], [3, 4, 5], [0, 1, 6]]


@pytest.mark.parametrize("update", ["gradient", "diagonal", "matrix", "newton"])
@pytest.mark.parametrize(
    ("rule", "blocks"),
    [("gsd", "variable"), ("gsq", "variable"), ("random", "variable"), ("gsl", "sorted"), ("gsq", "order"),
     ("cyclic", "random"), ("gs", [np.arange(12), np.arange(12, 24)])],
)  # fmt: skip
def test_every_combination_reaches_the_minimum(update, rule, blocks):
    problem = quadratic()
    solution = np.linalg.solve(problem.A, problem.c)
    found = block_descent(problem, 6, rule=rule, blocks=blocks, update=update, tol=1e-9, max_iter=200_000)
    assert found.converged
    assert found.distance <= 1e-9
    np.testing.assert_allclose(found.x, solution, atol=1e-6)
    assert (np.diff(found.objective) <= 1e-12).all()
    assert found.objective[-1] == pytest.approx(problem.value())
    assert len(found.objective) == len(found.active_set_trace) == found.n_iter + 1


@pytest.mark.parametrize("blocks", ["forest", "forests"])
def test_forests_reach_the_minimum_of_a_sparse_form(blocks):
    line = sparse.dia_array((np.ones((2, 15)), [-1, 1]), shape=(15, 15))
    eye = sparse.eye_array(15)
    A = sparse.csr_array(4.2 * sparse.eye_array(225) - sparse.kron(line, eye) - sparse.kron(eye, line))
    problem = QuadraticForm(A, rng(0, "c").standard_normal(225))
    found = block_descent(problem, rule="gsd", blocks=blocks, tol=1e-10)
    assert found.converged
    np.testing.assert_allclose(A @ found.x, problem.c, atol=1e-8)
    small = block_descent(QuadraticForm(A, problem.c), 20, tol=1e-10)
    assert found.n_iter < 0.5 * small.n_iter


@pytest.mark.parametrize("update", ["gradient", "diagonal", "matrix", "newton"])
@pytest.mark.parametrize(
    ("rule", "blocks"), [("gsd", "variable"), ("gs", "sorted"), ("gsr", "variable"), ("random", "order")]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_lasso_is_another_solvers(update, rule, blocks, weighted):
    X, y = regression()
    penalty = L1(0.2, weights=np.linspace(0.5, 2, 40) if weighted else None)
    want = solve(X, y, penalty, fit_intercept=False, tol=1e-13).coef
    problem = LinearLoss(X, y, Quadratic())
    found = block_descent(
        problem, 10, rule=rule, blocks=blocks, update=update, penalty=penalty, tol=1e-9, max_iter=20_000
    )
    assert found.converged
    np.testing.assert_allclose(found.x, want, atol=1e-7)
    np.testing.assert_array_equal(found.x != 0, want != 0)
    assert found.active_set_trace[-1] == np.count_nonzero(want)
    assert found.settled <= found.n_iter
    assert (np.diff(found.objective) <= 1e-12).all()


@pytest.mark.parametrize("positive", [False, True])
def test_after_the_pattern_settles_newton_ends_at_once(positive):
    X, y = regression(100, 300)
    problem = LinearLoss(X, y, Quadratic())
    found = block_descent(problem, 60, update="newton", penalty=L1(0.2, positive=positive), tol=1e-14)
    assert found.converged
    assert found.n_iter - found.settled <= 3
    assert not positive or found.x.min() >= 0


def test_bounds_are_kept_and_met():
    X, y = regression()
    low, high = np.full(40, -0.5), np.linspace(0.1, 1, 40)
    for update in ("matrix", "gradient"):
        problem = LinearLoss(X, y, Quadratic())
        found = block_descent(problem, 8, update=update, penalty=Box(low, high), tol=1e-9, max_iter=20_000)
        assert found.converged
        assert (found.x >= low).all()
        assert (found.x <= high).all()
        inside = (found.x > low) & (found.x < high)
        assert abs(problem.gradient[inside]).max() < 1e-7
        assert (problem.gradient[found.x == low] >= 0).all()
        assert (problem.gradient[found.x == high] <= 0).all()


def test_logistic_loss_by_newton_blocks():
    X, y = regression(200, 30)
    found = block_descent(LinearLoss(X, np.sign(y), Logistic(), l2=0.01), 10, update="newton", tol=1e-10)
    other = block_descent(LinearLoss(X, np.sign(y), Logistic(), l2=0.01), 10, tol=1e-10, max_iter=20_000)
    assert found.converged
    np.testing.assert_allclose(found.x, other.x, atol=1e-7)
    assert found.n_iter < 0.5 * other.n_iter


def test_a_singular_block_and_a_start_at_the_minimum():
    X, y = regression(30, 20)
    twice = np.hstack([X, X, np.zeros((30, 1))])
    found = block_descent(LinearLoss(twice, y, Quadratic()), 41, tol=1e-10)
    assert found.converged
    np.testing.assert_allclose(X.T @ (y - twice @ found.x), 0, atol=1e-8)
    rest = block_descent(QuadraticForm(np.eye(3), np.zeros(3)), 2)
    assert rest.converged
    assert rest.n_iter == 0
    assert rest.distance == 0


def test_other_penalties_take_prox_steps():
    X, y = regression()
    penalty = ElasticNet(0.2, 0.5)
    want = solve(X, y, penalty, fit_intercept=False, tol=1e-12).coef
    found = block_descent(
        LinearLoss(X, y, Quadratic()), 10, update="gradient", penalty=penalty, tol=1e-9, max_iter=9999
    )
    np.testing.assert_allclose(found.x, want, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: got 0"),
        ({"size": 25}, "size: got 25"),
        ({"size": 25, "blocks": "order"}, "size: got 25"),
        ({"rule": "gd"}, "rule: got 'gd'"),
        ({"rule": "gsl"}, "rule: got 'gsl' with variable blocks"),
        ({"update": "exact"}, "update: got 'exact'"),
        ({"blocks": "tree"}, "blocks: got 'tree'"),
        ({"blocks": [np.arange(3)]}, "blocks: want index arrays that hold each of the 24"),
        ({"blocks": "forest", "update": "gradient"}, "blocks: got 'forest', which need"),
        ({"blocks": "forest", "rule": "gsq"}, "rule: got 'gsq' with blocks 'forest'"),
        ({"blocks": "forests"}, "A: got ndarray, want a scipy sparse"),
        ({"penalty": L1(1.0), "rule": "gsq"}, "rule: got 'gsq' with a penalty"),
        ({"penalty": MCP(1.0)}, "penalty: got MCP with update 'matrix'"),
        ({"penalty": L1(1.0), "blocks": "forests"}, "blocks: got 'forests', which need"),
        ({"tol": -1}, "tol: got -1"),
        ({"max_iter": 0}, "max_iter: got 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        block_descent(quadratic(), **({"size": 6} | options))


def test_a_problem_that_lacks_something_is_named():
    with pytest.raises(InputError, match="block_descent: got object, which lacks 'x'"):
        block_descent(object())
