"""Sparse Bayesian networks: as accurate as dense ones, and better calibrated than deterministic ones as sparse."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ellzero.network.calibration import calibration
from ellzero.network.folded import size_mean, size_sd
from ellzero.network.recipes import gmp, rigl
from ellzero.network.variational import SupportUpdates, elbo, kl, layers_of, predictive, sparse_variational
from ellzero.parts.schedules import Cosine
from ellzero.rng import rng, torch_generator
from ellzero.training import losses
from ellzero.training.loop import train
from ellzero.training.threads import threads_for
from tests.claims.network_bed import fit, mnist_bed, small_bed, spread


def trained(bed, model, loss, seed, lr, parts=()):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    parts = {name: make(model, optimizer) for name, make in parts}
    with threads_for(0):
        train(model, loss, bed.batches(seed), optimizer=optimizer, steps=bed.steps, schedule=Cosine(1.0, 0.0),
              clip=5.0, seed=seed, parts=parts)  # fmt: skip
    return model


def judged(bed, model, samples=10):
    X, y = bed.held_out
    return np.array(calibration(predictive(model, torch.from_numpy(X), samples), y))


def ssvi(bed, seed, lr, density=0.05, temperature=0.3, samples=10):
    model = sparse_variational(bed.model(seed), density, sigma=1e-2, seed=seed)
    loss = elbo(losses.classification, bed.split, prior=1.0, temperature=temperature)
    moves = partial(SupportUpdates, steps=bed.steps, every=bed.steps // 20)
    model = trained(bed, model, loss, seed, lr, [("support", moves)])
    return judged(bed, model, samples)


def deterministic(bed, recipe, seed, lr):
    return judged(bed, fit(bed, recipe(0.05, every=bed.steps // 20), seed, lr)[0])


class Dense(nn.Module):
    """Dense variational inference, written out: a mean and a spread for every weight."""

    def __init__(self, model, seed, sigma=1e-2):
        super().__init__()
        self.layers, self.generator = model.layers, torch_generator(seed, "claims", "dense")
        self.rho = nn.ParameterList([torch.full_like(layer.weight, float(np.log(np.expm1(sigma)))) for layer in
                                     model.layers])  # fmt: skip

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            noise = torch.randn(layer.weight.shape, generator=self.generator)
            x = F.linear(x, layer.weight + F.softplus(self.rho[i]) * noise, layer.bias)
            x = F.relu(x) if i + 1 < len(self.layers) else x
        return x

    def divergence(self, prior=1.0):
        pairs = zip(self.layers, self.rho)
        normal = torch.distributions.Normal
        each = [torch.distributions.kl_divergence(normal(layer.weight, F.softplus(rho)), normal(0.0, prior)).sum()
                for layer, rho in pairs]  # fmt: skip
        return sum(each)


def dense_vi(bed, seed, lr, temperature=0.3):
    def loss(model, batch):
        return losses.classification(model, batch) + temperature / bed.split * model.divergence()

    model = trained(bed, Dense(bed.model(seed), seed), loss, seed, lr).eval()
    X, y = bed.held_out
    with torch.no_grad():
        drawn = torch.stack([model(torch.from_numpy(X)).double().softmax(-1) for _ in range(10)]).mean(0)
    return np.array(calibration(drawn.numpy(), y))


def shown(name, rows):
    accuracy, loss, error = (spread(100 * column) for column in np.asarray(rows).T[:3])
    return f"{name}, in hundredths: accuracy {accuracy}, log loss {loss}, ECE {error}"


@pytest.mark.claim("S160")
def test_the_size_of_a_gaussian_weight_is_that_of_a_sample():
    drawn = rng(0, "claims", "folded").standard_normal(1_000_000)
    drawn = np.concatenate([drawn, -drawn])
    for mu, sigma in ((0.0, 0.5), (0.2, 0.3), (-0.6, 0.4), (1.0, 0.2)):
        sizes = np.abs(mu + sigma * drawn)
        assert abs(size_mean(mu, sigma) - sizes.mean()) < 1e-3
        assert abs(size_sd(mu, sigma) - sizes.std()) < 1e-3


@pytest.mark.claim("S160")
def test_a_sparse_posterior_learns_small_digits():
    bed = small_bed()
    model = sparse_variational(bed.model(0), 0.05, sigma=1e-2)
    before = float(kl(model, 1.0).detach())
    found = ssvi(bed, 0, 0.03)
    print(f"accuracy, log loss, ECE, Brier: {found.round(4)}; first divergence {before:.0f} nats of "
          f"{sum(layer.value.numel() for layer in layers_of(model).values())} weights")  # fmt: skip
    assert found[0] > 0.9
    assert found[1] < 0.3


@pytest.mark.slow
@pytest.mark.claim("S160")
def test_a_twentieth_of_the_weights_keeps_the_accuracy_and_calibrates_on_mnist():
    bed, seeds = mnist_bed(), range(3)
    ways = {
        "ssvi": (ssvi, (0.01, 0.02)), "dense vi": (dense_vi, (1e-3, 3e-3)),
        "rigl": (lambda *run: deterministic(run[0], rigl, *run[1:]), (0.1, 0.2)),
        "gmp": (lambda *run: deterministic(run[0], gmp, *run[1:]), (0.1, 0.2)),
    }  # fmt: skip
    found = {}
    for name, (way, rates) in ways.items():
        tried = {lr: way(bed.inner, 99, lr)[1] for lr in rates}  # by log loss, on training rows held out
        best = min(tried, key=tried.get)
        found[name] = np.array([way(bed, seed, best) for seed in seeds])
        print(shown(f"{name} (lr {best})", found[name]), flush=True)
    assert (found["ssvi"] - found["dense vi"])[:, 0].mean() > -0.01
    assert (found["ssvi"] - found["rigl"])[:, 1].mean() < 0
    assert (found["ssvi"] - found["rigl"])[:, 2].mean() < 0
