"""A penalty is its kink and a smooth rest: the sum, the derivative and its bound, the share of soft thresholding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.parts.penalties import CEL0, L0, L1, MCP, SCAD, ElasticNet, GroupL2, LogSum, Lq
from ellzero.parts.penalty_split import split

ALL = [L1(0.7), ElasticNet(0.7, 0.4), MCP(0.7, 2.5), SCAD(0.7, 3.7), LogSum(0.7, 0.6), CEL0(0.7, 1.3)]
seeds = st.integers(0, 10**6)


@pytest.mark.parametrize("penalty", ALL, ids=lambda penalty: type(penalty).__name__)
@settings(max_examples=20)
@given(seed=seeds, weighted=st.booleans())
def test_the_parts_are_the_whole(penalty, seed, weighted):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=9) * 2 * (rng.random(9) < 0.8)
    weights = None
    if weighted:
        weights = rng.uniform(0.2, 2, 9)
        weights[0], weights[1], w[1] = 0, np.inf, 0
    whole = type(penalty)(**{**{name: getattr(penalty, name) for name in penalty.__dataclass_fields__},
                             "weights": weights})  # fmt: skip
    kink, rest = split(whole)
    assert kink.value(w) + rest.value(w) == pytest.approx(whole.value(w), abs=1e-12)
    h = 1e-6
    for i in range(9):
        step = h * (np.arange(9) == i)
        if weighted and i == 1:
            continue
        slope = (rest.value(w + step) - rest.value(w - step)) / (2 * h)
        assert rest.gradient(w)[i] == pytest.approx(slope, abs=1e-5)
    other = w + rng.normal(size=9) * (w != 0)
    far = abs(rest.gradient(w) - rest.gradient(other))
    assert (far <= rest.lipschitz() * abs(w - other) + 1e-12).all()
    tensor = rest.gradient(torch.tensor(w))
    np.testing.assert_allclose(tensor.numpy(), rest.gradient(w), atol=1e-14)


@pytest.mark.parametrize("penalty", ALL[2:4])
def test_the_bound_is_reached(penalty):
    _, rest = split(penalty)
    points = np.linspace(0, 5, 5001)
    assert np.max(abs(np.diff(rest.gradient(points)))) / 1e-3 == pytest.approx(rest.lipschitz(), rel=1e-9)


@pytest.mark.parametrize("penalty", [L0(1.0), Lq(1.0, 0.5), GroupL2(1.0, 2)])
def test_what_has_no_such_parts_is_named(penalty):
    with pytest.raises(InputError, match=f"penalty: got {type(penalty).__name__}, which is no kink"):
        split(penalty)
