"""Nested reconstructions against the plain formula: every level decoded by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ellzero.autoencoder.codes import SparseCode, ranked
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.nested import NestedReconstruction
from ellzero.autoencoder.objective import Step
from ellzero.errors import InputError


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def a_step(name="topk", k=4, sparse=False, seed=0):
    sae = SparseAutoencoder.from_preset(name, d_in=5, d_sae=12, k=k).double().train()
    with torch.no_grad():
        sae.b_dec.add_(draw(5, seed=8))
    x = draw(7, 5, seed=seed)
    z, pre = sae.codes(x)
    code = ranked(z, k) if sparse else z
    return Step(sae, x, None if sparse else pre, code, sae.decode(code), torch.zeros(12, dtype=torch.bool), 3.0)


def plainly(step, levels, axis, error):
    """One decoding from nothing for each level."""
    sae, x, found = step.sae, step.x, []
    activations = sae.pre(x)
    activations = activations.relu() if sae.encoder.rule == "relu" else activations
    z = step.z.dense(12) if isinstance(step.z, SparseCode) else step.z
    for level in levels:
        if axis == "prefix":
            part = z * (torch.arange(12) < level)
        else:
            order = activations.detach().abs().argsort(dim=1, descending=True, stable=True)[:, :level]
            part = activations * torch.zeros_like(activations).scatter(1, order, 1.0)
        squared = (x - part @ sae.W_dec - sae.b_dec).square().sum(1)
        if error == "normalised":
            found.append((squared / (x - x.mean(0)).square().sum(1)).mean())
        else:
            found.append(squared.mean() / step.spread)
    return found


@pytest.mark.parametrize("axis", ["prefix", "rank"])
@pytest.mark.parametrize("error", ["squared", "normalised"])
@pytest.mark.parametrize("sparse", [False, True])
@given(levels=st.sets(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 20))
def test_value_and_gradients_are_those_of_the_plain_formula(axis, error, sparse, levels, seed):
    levels = tuple(sorted(levels))
    for name in ("topk", "abs_topk"):
        mine, plain = a_step(name, sparse=sparse, seed=seed), a_step(name, sparse=sparse, seed=seed)
        loss = NestedReconstruction(levels, axis=axis, error=error)(mine)
        wanted = torch.stack(plainly(plain, levels, axis, error)).mean()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
        loss.backward()
        wanted.backward()
        for (key, parameter), other in zip(mine.sae.named_parameters(), plain.sae.parameters()):
            torch.testing.assert_close(parameter.grad, other.grad, msg=f"{name} {key}")


def test_weights_and_the_level_of_the_bias_alone():
    step = a_step()
    first, second = plainly(step, (2, 12), "prefix", "squared")
    loss = NestedReconstruction((2, 12), (0.25, 2.0))(step)
    assert loss.item() == pytest.approx((0.25 * first + 2 * second).item())
    alone = (step.x - step.sae.b_dec).square().sum(1).mean() / step.spread
    with_bias = NestedReconstruction((2, 12), bias=True)(step)
    assert with_bias.item() == pytest.approx(((alone + first + second) / 3).item())


def test_ranks_may_exceed_the_codes():
    """The term at 4 k of Multi-TopK sees four times as many activations as are kept."""
    step = a_step(k=2)
    loss = NestedReconstruction((2, 8), (1.0, 1 / 8), axis="rank")(step)
    near, far = plainly(step, (2, 8), "rank", "squared")
    assert loss.item() == pytest.approx((near + far / 8).item())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"levels": ()}, "levels: got"), ({"levels": (2, 2)}, "levels: got"), ({"levels": (0, 1)}, "levels: got 0"),
        ({"levels": (1, 2), "weights": (1.0,)}, "weights: got 1, want 2"), ({"levels": (1,), "axis": "rows"}, "axis"),
        ({"levels": (1,), "weights": (-1.0,)}, "weights: got -1"), ({"levels": (1,), "error": "abs"}, "error"),
        ({"levels": 3}, "levels: got 3"),
    ],
)  # fmt: skip
def test_levels_that_cannot_be_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        NestedReconstruction(**options)
