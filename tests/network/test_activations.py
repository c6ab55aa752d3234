"""Clipped activations and their variance map: by quadrature, by sampling, and by what wide networks do."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from ellzero.errors import InputError
from ellzero.network.activations import (
    CST,
    CReLU,
    clip_for_slope,
    layer_statistics,
    slope,
    stabilise,
    stable_initialisation,
    variance_map,
)
from ellzero.rng import rng

DESIGNS = [(0.85, math.inf), (0.85, 1.5), (0.7, 1.0), (0.9, 0.3), (0.5, math.inf), (0.3, 0.5)]


def deep(width=64, depth=8, design=None, inputs=16):
    layers = [nn.Linear(inputs, width), design.activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), design.activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def expectation(function, points):
    """Over a standard normal, piece by piece so that the quadrature sees the kinks."""
    edges = [-12.0, *sorted(p for p in points if abs(p) < 12), 12.0]
    pieces = [
        quad(lambda z: function(z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi), a, b, epsabs=1e-13)[0]
        for a, b in pairwise(edges)
    ]
    return sum(pieces)


def test_the_activations_by_hand():
    x = torch.tensor([-3.0, -1.5, -1.0, 0.0, 1.0, 1.5, 3.0])
    assert CReLU(1.0, 1.0)(x).tolist() == [0, 0, 0, 0, 0, 0.5, 1]
    assert CReLU(1.0)(x).tolist() == [0, 0, 0, 0, 0, 0.5, 2]
    assert CST(1.0, 1.0)(x).tolist() == [-1, -0.5, 0, 0, 0, 0.5, 1]
    assert CST(1.0)(x).tolist() == [-2, -0.5, 0, 0, 0, 0.5, 2]
    assert CReLU(1.0, 1.0)(x.half()).dtype == torch.float16
    y = torch.tensor([-2.7, -1.6, 0.3, 1.2, 5.0], dtype=torch.float64, requires_grad=True)
    for activation in (CReLU(1.0, 1.0), CST(1.0, 1.0)):
        assert torch.autograd.gradcheck(activation, (y,))
    assert "tau=1, m=0.5" in repr(CST(1.0, 0.5))


@pytest.mark.parametrize("kind", ["relu", "threshold"])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_map_and_its_slope_equal_quadrature(kind, design):
    found = stable_initialisation(*design, kind=kind)
    phi = found.activation()
    kinks = [side * k for side in (1, -1) for k in (found.tau, found.tau + found.m)]

    def value(q):
        def square(z):
            return float(phi(torch.tensor(math.sqrt(q) * z, dtype=torch.float64))) ** 2

        scaled = [k / math.sqrt(q) for k in kinks]
        return found.weight_variance * expectation(square, scaled) + found.bias_variance

    for q in (0.3, 1.0, 2.5):
        assert variance_map(q, found) == pytest.approx(value(q), abs=1e-9)
        step = 1e-4
        near = (variance_map(q + step, found) - variance_map(q - step, found)) / (2 * step)
        assert slope(q, found) == pytest.approx(near, abs=1e-6)
    assert variance_map(1.0, found) == pytest.approx(1.0, abs=1e-12)
    assert found.slope == slope(1.0, found)
    zero = expectation(lambda z: float(phi(torch.tensor(z, dtype=torch.float64)) == 0), kinks)
    assert zero == pytest.approx(design[0], abs=1e-6)
    size = abs if kind == "threshold" else float
    rising = expectation(lambda z: float(found.tau < size(z) < found.tau + found.m), kinks)
    assert found.weight_variance * rising == pytest.approx(1, abs=1e-6)


def test_without_a_shift_it_is_the_initialisation_of_he():
    found = stable_initialisation(0.5, math.inf)
    assert (found.tau, found.weight_variance, found.bias_variance) == pytest.approx((0, 2, 0), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0.5, 0.99), target=st.floats(0.05, 0.95), kind=st.sampled_from(["relu", "threshold"]))
def test_the_clip_of_a_slope_has_that_slope(sparsity, target, kind):
    m = clip_for_slope(sparsity, target, kind=kind)
    assert stable_initialisation(sparsity, m, kind=kind).slope == pytest.approx(target, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0.5, 0.99), kind=st.sampled_from(["relu", "threshold"]))
def test_unclipped_the_slope_is_one_and_the_map_is_convex(sparsity, kind):
    found = stable_initialisation(sparsity, math.inf, kind=kind)
    assert found.slope == pytest.approx(1, abs=1e-9)
    q = np.linspace(0.2, 3, 30)
    values = variance_map(q, found)
    assert values.shape == q.shape
    assert (values >= q - 1e-9).all()  # tangent to the diagonal at 1 and above it: a push upwards never comes back
    assert (np.diff(values, 2) >= -1e-10).all()


@pytest.mark.parametrize("kind", ["relu", "threshold"])
def test_a_wide_network_does_what_the_map_says(kind):
    found = stable_initialisation(0.8, 1.0, kind=kind)
    model = stabilise(deep(600, 4, found), found, seed=3, mean_square=4.0)
    x = torch.from_numpy(2 * rng(0, "inputs").standard_normal((400, 16))).float()
    x *= 2 / x.square().mean(1, keepdim=True).sqrt()
    rows = layer_statistics(model, x)
    assert [row.name for row in rows] == ["1", "3", "5", "7"]
    assert all(abs(row.mean_square - 1) < 0.15 and abs(row.sparsity - 0.8) < 0.03 for row in rows)
    pushed = stabilise(deep(600, 4, found), found, seed=3, mean_square=2.0)  # twice the variance at the first layer
    q = 2 * (1 - found.bias_variance) + found.bias_variance
    for row in layer_statistics(pushed, x):
        assert row.mean_square == pytest.approx(q, rel=0.15)
        q = variance_map(q, found)


def test_a_draw_repeats_and_reaches_convolutions():
    design = stable_initialisation(0.7, 1.0)
    models = [
        stabilise(
            nn.Sequential(nn.Conv2d(3, 64, 3), design.activation(), nn.Linear(5, 400, bias=False)), design, seed=s
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert not torch.equal(models[0][0].weight, models[2][0].weight)
    assert float(models[0][0].weight.detach().var()) == pytest.approx((1 - design.bias_variance) / 27, rel=0.15)
    assert float(models[0][2].weight.detach().var()) == pytest.approx(design.weight_variance / 5, rel=0.15)
    assert models[0][2].bias is None


def test_bad_input_is_named():
    for call, words in [
        (lambda: stable_initialisation(1.0), "sparsity: got 1.0"),
        (lambda: stable_initialisation(0.8, 0), "m: got 0"),
        (lambda: stable_initialisation(0.8, kind="gelu"), "kind: got 'gelu'"),
        (lambda: stable_initialisation(0.3, math.inf), "m: got inf at sparsity 0.3"),
        (lambda: clip_for_slope(0.8, 1.0), "target: got 1.0"),
        (lambda: clip_for_slope(0.3, 0.5), "sparsity: got 0.3"),
        (lambda: variance_map(0.0, stable_initialisation(0.8)), "q: got 0.0"),
        (lambda: CReLU(float("nan")), "tau: got NaN"),
        (lambda: CST(-1.0), "tau: got -1.0"),
        (lambda: CReLU(1.0, -1.0), "m: got -1.0"),
        (lambda: stabilise(nn.Sequential(nn.ReLU()), stable_initialisation(0.8)), "model: Sequential has no linear"),
        (lambda: stabilise(nn.Linear(2, 2), stable_initialisation(0.8), mean_square=0), "mean_square: got 0"),
        (lambda: layer_statistics(nn.Linear(2, 2), torch.zeros(1, 2)), "model: Linear has no CReLU"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
