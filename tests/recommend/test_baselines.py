"""Popularity and item neighbours against plain loops."""

import numpy as np
import pytest
from scipy import sparse

from ellzero.errors import InputError
from ellzero.recommend import ItemKNN, Popularity
from ellzero.rng import rng

R = sparse.csr_array((rng(0, "baselines").random((30, 12)) < 0.3).astype(np.float32))


def test_popularity_counts():
    got = Popularity().fit(R).recommend(R, 12, exclude_seen=False)
    counts = R.toarray().sum(axis=0)
    assert (got.items == np.argsort(-counts, kind="stable")).all()
    unseen = Popularity().fit(R).recommend(R, 3)
    assert not R.toarray()[np.arange(30)[:, None], unseen.items].any()


@pytest.mark.parametrize("shrink", [0.0, 3.0])
def test_neighbours_are_the_nearest_of_each_item(shrink):
    dense = R.toarray().astype(np.float64)
    expected = np.zeros((12, 12))
    for j in range(12):
        cosine = np.array([
            0 if i == j else dense[:, i] @ dense[:, j]
            / (np.linalg.norm(dense[:, i]) * np.linalg.norm(dense[:, j]) + shrink) for i in range(12)
        ])  # fmt: skip
        for i in np.argsort(-cosine.astype(np.float32), kind="stable")[:4]:
            expected[i, j] = cosine[i]
    model = ItemKNN(4, shrink=shrink).fit(R)
    assert abs(model.similarity_.toarray() - expected).max() <= 1e-6
    assert abs(model.predict(R) - dense @ expected).max() <= 1e-5


def test_items_that_nobody_took_have_no_neighbours():
    model = ItemKNN().fit(np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert not model.similarity_.toarray()[1].any()
    assert np.isfinite(model.similarity_.data).all()


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"neighbours": 2.5}, {"shrink": -1}])
def test_bad_settings(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        ItemKNN(**settings).fit(R)
