"""Does EASE rank better than tuned neighbours and popularity, on users it has never seen?"""

import numpy as np
import pytest

from ellzero.data import sets
from ellzero.recommend import EASE, ItemKNN, Popularity, ease_path, hold_out_users, ndcg_at_k, read_ratings, recall_at_k

RATINGS = "retrieval/ml-latest-small/ratings.csv"
pytestmark = pytest.mark.skipif(sets.missing(RATINGS) is not None, reason=str(sets.missing(RATINGS)))
L2S = (50.0, 100.0, 200.0, 400.0)
NEIGHBOURS = [(n, shrink) for n in (25, 50, 100, 200) for shrink in (0.0, 5.0, 10.0, 20.0)]


def loved(takers):
    """Ratings of 4 and more, for films that at least so many users took."""
    matrix = read_ratings(sets.data_root() / RATINGS).matrix
    matrix = matrix[:, np.flatnonzero(matrix.sum(axis=0) >= takers)]
    return matrix[np.flatnonzero(matrix.sum(axis=1) >= 5)]


def ndcg(model, split):
    return float(ndcg_at_k(model.recommend(split.fold_in, 100).items, split.held_out, 100).mean())


def race(matrix, seed):
    """Tune both on users held out of the training users, refit, and score on users that neither has seen."""
    outer = hold_out_users(matrix, seed=seed)
    inner = hold_out_users(outer.train, seed=seed + 1000)
    by_l2 = [(ndcg(model, inner), model.l2) for model in ease_path(inner.train, L2S)]
    by_neighbours = [(ndcg(ItemKNN(n, shrink=s).fit(inner.train), inner), n, s) for n, s in NEIGHBOURS]
    l2, (_, n, shrink) = max(by_l2)[1], max(by_neighbours)
    models = {"EASE": EASE(l2), "neighbours": ItemKNN(n, shrink=shrink), "popularity": Popularity()}
    scores = {name: ndcg(model.fit(outer.train), outer) for name, model in models.items()}
    print(f"seed {seed}: l2 {l2:g}, {n} neighbours with shrink {shrink:g}; nDCG@100 "
          + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))  # fmt: skip
    return scores, models, outer


@pytest.mark.claim("S125")
def test_ease_beats_popularity_and_neighbours_on_the_films_most_taken():
    scores, _, _ = race(loved(takers=25), seed=0)
    assert scores["EASE"] >= scores["popularity"] + 0.08
    assert scores["EASE"] >= scores["neighbours"] - 0.005


@pytest.mark.slow
@pytest.mark.claim("S125")
def test_ease_over_five_splits():
    matrix = loved(takers=3)
    runs, cost = [], {0.1: [], 0.01: []}
    for seed in range(5):
        scores, models, outer = race(matrix, seed)
        runs.append(scores)
        ease, items = models["EASE"], matrix.shape[1]
        for density in cost:
            few = EASE(ease.l2, keep=round(density * items)).fit(outer.train)
            cost[density].append(1 - ndcg(few, outer) / scores["EASE"])
    mean = {name: np.mean([run[name] for run in runs]) for name in runs[0]}
    ahead = np.array([run["EASE"] - run["neighbours"] for run in runs])
    recall = recall_at_k(ease.recommend(outer.fold_in, 20).items, outer.held_out, 20).mean()
    print(f"{matrix.shape[0]} users, {items} films, 5 splits: nDCG@100 "
          + ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
          + f"; EASE ahead of neighbours by {ahead.mean():.3f} (each split {np.round(ahead, 3)}); "
          f"recall@20 of the last split {recall:.3f}; nDCG lost at density "
          + ", ".join(f"{density}: {100 * np.mean(lost):.1f} %" for density, lost in cost.items()))  # fmt: skip
    assert mean["EASE"] >= mean["neighbours"] + 0.01
    assert mean["EASE"] >= mean["popularity"] + 0.10
    assert np.mean(cost[0.1]) <= 0.01
    assert np.mean(cost[0.01]) <= 0.10  # 1 % is some twenty neighbours here
