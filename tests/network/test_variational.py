"""Sparse variational layers: dense oracles, a support that moves, nothing of the dense size, runs that resume."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ellzero.errors import InputError
from ellzero.models.mlp import MLPConfig
from ellzero.network import variational
from ellzero.network.variational import (
    SupportUpdates,
    elbo,
    kl,
    layers_of,
    posterior,
    predictive,
    sparse_variational,
    steepest,
)
from ellzero.training import losses
from ellzero.training.loop import Batches, train


def net(density=0.2, seed=0, sigma=0.1, sizes=(12, (9, 7), 4)):
    return sparse_variational(MLPConfig(sizes[0], sizes[2], sizes[1]).build(seed), density, sigma=sigma, seed=seed)


def places(layer):
    pattern = layer.layout.pattern
    return pattern.row_of() * pattern.columns + pattern.index.astype(int)


def scattered(layer, values):
    flat = torch.zeros(layer.out_features * layer.in_features)
    return flat.index_put((torch.from_numpy(places(layer)),), values[:, 0]).reshape(layer.out_features, -1)


def test_a_step_has_the_derivatives_of_the_scattered_dense_layer():
    layer = next(iter(layers_of(net()).values()))
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise = copy.deepcopy(layer.noise)(layer.value)
    weights = torch.arange(5.0 * 9).reshape(5, 9).cos()
    (layer(x) * weights).sum().backward()
    mu, rho, bias = (p.detach().clone().requires_grad_() for p in (layer.value, layer.rho, layer.bias))
    seen = x.detach().clone().requires_grad_()
    dense = scattered(layer, mu + (1 + rho.exp()).log() * noise)
    ((seen @ dense.T + bias) * weights).sum().backward()
    for mine, other in ((layer.value, mu), (layer.rho, rho), (layer.bias, bias), (x, seen)):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_divergence_is_that_of_the_active_weights_alone():
    model = net()
    normal = torch.distributions.Normal
    expected = sum(
        torch.distributions.kl_divergence(normal(layer.value, layer.sigma), normal(0.0, 0.7)).sum()
        for layer in layers_of(model).values()
    )
    torch.testing.assert_close(kl(model, 0.7), expected)
    batch = (torch.ones(3, 12), torch.tensor([0, 1, 2]))
    model.eval()
    plain = losses.classification(model, batch)
    torch.testing.assert_close(elbo(losses.classification, 50, prior=0.7, temperature=0.3)(model, batch),
                               plain + 0.3 * expected / 50)  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 30, 2**18])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_steepest_places_are_those_of_the_whole_derivative(monkeypatch, chunk, count):
    monkeypatch.setattr(variational, "_CHUNK", chunk)
    stream = torch.Generator().manual_seed(1)
    records = [(torch.randn(6, 4, generator=stream), torch.randn(10, 4, generator=stream)) for _ in range(3)]
    taken = np.array([0, 3, 17, 18, 40, 59])
    whole = sum(grad @ x.T for x, grad in records).abs().reshape(-1)
    whole[taken] = -1
    expected = np.sort(whole.argsort(descending=True)[:count].numpy())
    np.testing.assert_array_equal(np.sort(steepest(records, taken, count)), expected)


def batch_of(model, rows=16, seed=0):
    stream = torch.Generator().manual_seed(seed)
    X = torch.randn(rows, 12, generator=stream)
    return X, X[:, :4].argmax(1)


def test_an_update_exchanges_the_least_and_hands_memory_on():
    model = net(0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    updates = SupportUpdates(model, optimizer, steps=10, every=4, until=1.0, drop=0.5, criterion="snr", average=2)
    for _ in range(3):
        optimizer.zero_grad()
        losses.classification(model, batch_of(model)).backward()
        optimizer.step()
        updates.step()
    optimizer.zero_grad()
    losses.classification(model, batch_of(model)).backward()
    optimizer.step()
    layer = layers_of(model)["layers.0"]
    before, value, sigma = places(layer), layer.value.detach().clone(), layer.sigma.detach().clone()
    memory = optimizer.state[layer.value]["exp_avg_sq"].clone()
    assert len(layer.records) == 2
    gradient = sum(grad @ x.T for x, grad in layer.records).abs().reshape(-1)
    updates.step()
    after = places(layer)
    assert len(after) == len(before)
    assert (np.diff(after) > 0).all()
    count = int(0.5 * (1 + np.cos(0.4 * np.pi)) / 2 * len(before))
    gone, come = np.setdiff1d(before, after), np.setdiff1d(after, before)
    ratio = (value.abs() / sigma)[:, 0].numpy()
    np.testing.assert_array_equal(gone, np.sort(before[np.argsort(ratio, kind="stable")[:count]]))
    gradient[before] = -1
    np.testing.assert_array_equal(come, np.sort(gradient.argsort(descending=True)[:count].numpy()))
    old = {place: i for i, place in enumerate(before)}
    for i, place in enumerate(after):
        fresh = place in come
        assert layer.value[i] == (0.0 if fresh else value[old[place]])
        wanted = sigma.mean() if fresh else sigma[old[place]]
        assert float(layer.sigma[i].detach()) == pytest.approx(float(wanted), rel=1e-5)
        assert optimizer.state[layer.value]["exp_avg_sq"][i] == (0.0 if fresh else memory[old[place]])
    assert layer.value is next(p for p in model.parameters() if p is layer.value)
    assert layer.records is None


class Largest(TorchDispatchMode):
    """The most entries of any tensor that an operator gave."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return out


def test_nothing_of_the_dense_size_is_made_in_training_updates_included(monkeypatch):
    monkeypatch.setattr(variational, "_CHUNK", 1024)
    model = net(0.02, sizes=(256, (512,), 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    updates = SupportUpdates(model, optimizer, steps=20, every=2, until=1.0, average=1)
    loss = elbo(losses.classification, 64)
    X = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    with Largest() as seen:
        for _ in range(4):
            optimizer.zero_grad()
            loss(model, (X, X[:, :4].argmax(1))).backward()
            optimizer.step()
            updates.step()
    assert updates.exchanged > 0
    assert seen.entries <= 8 * 512
    assert 30 * seen.entries < 256 * 512


def test_the_mean_is_used_outside_and_a_seeded_draw_inside_posterior():
    model = net().eval()
    X = batch_of(model)[0]
    first = model(X)
    torch.testing.assert_close(model(X), first, rtol=0, atol=0)
    weight = next(iter(layers_of(model).values()))
    torch.testing.assert_close(weight(X), X @ weight.to_dense().T + weight.bias)
    with posterior(model, 3):
        one, two = model(X), model(X)
    with posterior(model, 3):
        again = model(X)
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    np.testing.assert_array_equal(predictive(model, X, 4), predictive(model, X, 4))
    np.testing.assert_allclose(predictive(model, X, 0), first.detach().softmax(1).numpy(), atol=1e-6)
    np.testing.assert_allclose(predictive(model, X, 3).sum(1), 1)
    plain = MLPConfig(12, 4, (5,)).build(0)
    np.testing.assert_allclose(predictive(plain, X, 5), plain(X).softmax(1).detach().numpy(), atol=1e-6)


def test_draws_have_the_mean_and_the_spread_that_the_layer_says():
    layer = next(iter(layers_of(net(sigma=0.3)).values())).eval()
    eye = torch.eye(12)
    with torch.no_grad(), posterior(layer.train(False), 0):
        drawn = torch.stack([layer(eye) - layer.bias for _ in range(4000)])
    mean, spread = layer.to_dense().T, scattered(layer, layer.sigma.detach()).T
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), spread, atol=0.02, rtol=0)


def test_a_convolution_draws_once_for_all_images():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    sparse_variational(model, 0.3, sigma=0.2)
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    updates = SupportUpdates(model, optimizer, steps=4, every=2, until=1.0, drop=0.6, average=1)
    before = places_of_conv(model[0])
    for _ in range(2):
        out = model(x)
        torch.testing.assert_close(out[0], out[2])
        optimizer.zero_grad()
        losses.classification(model, (x, torch.tensor([0, 1, 2]))).backward()
        optimizer.step()
        updates.step()
    assert set(places_of_conv(model[0])) != set(before)


def places_of_conv(layer):
    pattern = layer.layout.pattern
    return (pattern.row_of() * pattern.columns + pattern.index.astype(int)).tolist()


def run(folder=None, steps=12, stop=None):
    model = net(0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    updates = SupportUpdates(model, optimizer, steps=steps, every=3, until=0.9, average=2)
    X, y = batch_of(model, 40)

    def halt(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    train(model, elbo(losses.classification, 40), Batches(X, y, batch_size=8, seed=0), optimizer=optimizer, steps=steps,
          parts={"support": updates}, checkpoint=folder, every=1, callbacks=[halt])  # fmt: skip
    return model


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_run_resumes_to_the_bit(tmp_path, stop):
    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=stop)
    resumed = run(tmp_path)
    for (name, one), (_, two) in zip(layers_of(whole).items(), layers_of(resumed).items()):
        np.testing.assert_array_equal(places(one), places(two), err_msg=name)
        for mine, other in zip(one.parameters(), two.parameters()):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_counts_are_those_of_the_allocation():
    model = net(0.1, sizes=(40, (30, 20), 5))
    assert sum(layer.value.numel() for layer in layers_of(model).values()) == 190  # a tenth of 1200 + 600 + 100
    dense = net(1.0)
    for layer, other in zip(layers_of(dense).values(), MLPConfig(12, 4, (9, 7)).build(0).layers):
        torch.testing.assert_close(layer.to_dense(), other.weight.detach())


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"density": 0.0}, "density"), ({"density": 1e-6}, "density"), ({"sigma": 0.0}, "sigma"), ({"seed": -1}, "seed"),
     ({"allocation": "even"}, "allocation"), ({"include": "nothing"}, "include")],
)  # fmt: skip
def test_bad_settings_are_named(settings, name):
    with pytest.raises(InputError, match=f"^{name}"):
        sparse_variational(MLPConfig(12, 4, (9,)).build(0), **settings)


def test_bad_models_and_settings_of_updates_are_named():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    other = torch.optim.Adam(net().parameters())
    for settings, name in (({"steps": 0}, "steps"), ({"every": 0}, "every"), ({"drop": 1.5}, "drop"),
                           ({"criterion": "magnitude"}, "criterion"), ({"average": 0}, "average")):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}"):
            SupportUpdates(model, optimizer, **{"steps": 10, **settings})
    with pytest.raises(InputError, match=r"^optimizer"):
        SupportUpdates(model, other, steps=10)
    plain = MLPConfig(12, 4, (9,)).build(0)
    with pytest.raises(InputError, match="no variational layer"):
        kl(plain)
    with pytest.raises(InputError, match="GRU"):
        sparse_variational(nn.Sequential(nn.GRU(4, 4)), 0.5)
    with pytest.raises(InputError, match="temperature"):
        elbo(losses.classification, 10, temperature=-1)
    with pytest.raises(InputError, match="samples"):
        predictive(model, torch.ones(2, 12), -1)


def test_what_is_recorded_stays_when_a_batch_is_filled_anew():
    layer = next(iter(layers_of(net()).values()))
    layer.records, batch, seen = [], torch.empty(5, 12), torch.randn(3, 5, 12)
    for x in seen:
        batch.copy_(x)
        layer(batch).square().sum().backward()
    for (x, grad), given in zip(layer.records, seen):
        torch.testing.assert_close(x, given.t())
        assert grad.shape == (9, 5)


@pytest.mark.parametrize("images", [1, 4])
def test_a_convolution_whose_means_are_frozen_trains_its_deviations(images):
    model = sparse_variational(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2)), 0.5, seed=0
    )
    conv = model[0]
    conv.value.requires_grad_(False)
    conv.bias.requires_grad_(False)
    conv.train()
    conv(torch.randn(images, 3, 4, 4)).square().sum().backward()
    assert conv.rho.grad.abs().sum() > 0
