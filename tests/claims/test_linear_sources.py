"""Samples bought from source tasks by relevance: what the paper claims, against its predecessor and equal shares."""

import numpy as np
import pytest

from ellzero.data.multitask import shared_subspace_tasks
from ellzero.linear import ActiveSources

BUDGET, SEEN = 3000, 100  # samples to buy from 30 tasks, and those of the target
TUNED = {"uniform": [{}], "l2": [{"alpha": a, "explore": e} for a in (1e-3, 3e-2) for e in (0.3, 0.5)],
         "l1": [{"alpha": a, "explore": e} for a in (0.03, 0.1) for e in (0.3, 0.5)]}  # fmt: skip


def risks(rule, seeds, **options):
    """Excess risk on the target and tasks bought beyond the first round: d = 50, k = 5, 30 tasks, 3 of them related."""
    found, tasks = [], []
    for seed in seeds:
        pool = shared_subspace_tasks(50, 5, 30, related=3, noise=0.5, seed=seed)
        model = ActiveSources(5, BUDGET, rule=rule, **options).fit(pool.sources, *pool.target(SEEN))
        assert model.counts_.sum() == BUDGET
        found.append(pool.risk(model.coef_))
        tasks.append(int((model.counts_ > model.explored_ / 30).sum()))
    return np.array(found), tasks


@pytest.mark.claim("S145")
def test_relevant_sources_lower_the_targets_risk_at_equal_cost():
    found = {rule: risks(rule, range(3))[0].mean() for rule in ("l1", "uniform")}
    print("\nexcess risk on the target, 3 pools:", {rule: round(risk, 4) for rule, risk in found.items()})
    assert found["l1"] <= 0.7 * found["uniform"]


@pytest.mark.slow
@pytest.mark.claim("S145")
def test_the_l1_norm_needs_fewer_sources_and_beats_the_l2_norm():
    """20 pools; each rule's weight and first round are tuned on four others. All costs count, the first round too.

    Measured: uniform 0.087, L2 0.052 (18 tasks bought from), L1 0.040 (5 tasks).
    """
    found, tasks = {}, {}
    for rule, variants in TUNED.items():
        best = min(variants, key=lambda own: risks(rule, range(100, 104), **own)[0].mean())
        found[rule], tasks[rule] = risks(rule, range(20), **best)
        print(f"\n{rule} {best}: excess risk {found[rule].mean():.4f} (median {np.median(found[rule]):.4f}), "
              f"tasks bought from {np.mean(tasks[rule]):.1f}, at most {max(tasks[rule])}")  # fmt: skip
    assert found["l1"].mean() <= 0.6 * found["uniform"].mean()
    assert found["l1"].mean() <= 0.95 * found["l2"].mean()
    assert (found["l1"] < found["uniform"]).sum() >= 18
    assert max(tasks["l1"]) <= 8 < np.mean(tasks["l2"])
