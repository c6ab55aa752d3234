"""Selection and explanation: what the papers claim, against baselines at equal cost."""

import numpy as np
import pytest


@pytest.mark.claim("S104")
@pytest.mark.parametrize("draws", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_information_finds_what_correlation_misses(draws):
    """n = 500, p = 2000, y = x_1^2 + |x_2| + noise, each draw: the ranks of the two features."""
    from ellzero.linear.screening import mutual_information

    seen = {"information": 0, "correlation": 0}
    for seed in range(draws):
        g = np.random.default_rng(seed)
        X = g.standard_normal((500, 2000))
        y = X[:, 0] ** 2 + abs(X[:, 1]) + 0.1 * g.standard_normal(500)
        scores = {
            "information": mutual_information(X, y),
            "correlation": abs((X - X.mean(0)).T @ (y - y.mean())) / X.std(0),
        }
        for name, score in scores.items():
            seen[name] += int((np.argsort(-score)[:10] < 2).sum() == 2)
    print(f"\nboth features in the top ten, of {draws} draws:", seen)
    assert seen["information"] >= 0.9 * draws
    assert seen["correlation"] <= 1
