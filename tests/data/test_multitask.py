"""The pool of tasks: its stated law, repeatable draws, refusals."""

import numpy as np
import pytest

from ellzero.data.multitask import shared_subspace_tasks
from ellzero.errors import InputError


def test_samples_follow_the_stated_law():
    pool = shared_subspace_tasks(8, 3, 5, related=2, noise=0.3, seed=1)
    np.testing.assert_allclose(pool.basis.T @ pool.basis, np.eye(3), atol=1e-12)
    assert sum(np.allclose(pool.heads[:, [a, b]].sum(1), pool.target_head) for a in range(5) for b in range(a)) == 1
    for (X, y), head in ((pool.sources[4](20_000, 0), pool.heads[:, 4]), (pool.target(20_000), pool.target_head)):
        coef = np.linalg.lstsq(X, y)[0]
        np.testing.assert_allclose(coef, pool.basis @ head, atol=0.02)
        assert (y - X @ coef).std() == pytest.approx(0.3, rel=0.03)


def test_draws_repeat_and_are_new_for_every_task_and_round():
    draw = shared_subspace_tasks(4, 2, 3, seed=0).sources
    np.testing.assert_array_equal(draw[0](5, 1)[0], shared_subspace_tasks(4, 2, 3, seed=0).sources[0](5, 1)[0])
    for other in (draw[1](5, 1), draw[0](5, 2), shared_subspace_tasks(4, 2, 3, seed=1).sources[0](5, 1)):
        assert not np.isclose(draw[0](5, 1)[0], other[0]).any()


def test_risk_is_the_error_beyond_the_noise():
    pool = shared_subspace_tasks(6, 2, 4, noise=0.5, seed=0)
    truth = pool.basis @ pool.target_head
    assert pool.risk(truth) == 0
    coef = truth + 0.1
    X, y = pool.target(200_000)
    assert pool.risk(coef) == pytest.approx(0.06)
    assert np.mean((y - X @ coef) ** 2) - 0.25 == pytest.approx(0.06, abs=0.01)


@pytest.mark.parametrize(("settings", "words"), [
    ({"d": 0}, "d: got 0"), ({"d": 3, "k": 4}, "k: got 4"), ({"tasks": 0}, "tasks: got 0"),
    ({"tasks": 2, "related": 3}, "related: got 3"), ({"noise": -1}, "noise: got -1"),
])  # fmt: skip
def test_bad_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        shared_subspace_tasks(**settings)
