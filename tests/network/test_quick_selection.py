"""The sparse autoencoder: exact counts, SET's moves, the gradients of a masked dense twin, scikit-learn's contract."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from ellzero.errors import InputError
from ellzero.kernels.sparse import Pattern
from ellzero.layouts.grouped import CSR
from ellzero.layouts.nn import SparseLinear
from ellzero.network.quick_selection import (
    Evolution,
    QuickSelection,
    SparseAutoencoder,
    evolved,
    free_places,
    reconstruction,
)
from ellzero.rng import rng, torch_generator
from ellzero.training.loop import Batches, train


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 100), st.data())
def test_free_places_are_distinct_free_and_as_many_as_asked(size, seed, data):
    n_taken = data.draw(st.integers(0, size))
    taken = rng(seed, "taken").choice(size, n_taken, replace=False)
    count = data.draw(st.integers(0, size - n_taken))
    found = free_places(rng(seed, "draw"), size, taken, count)
    assert len(found) == len(set(found.tolist())) == count
    assert not set(found.tolist()) & set(taken.tolist())
    assert count == 0 or (found.min() >= 0 and found.max() < size)
    with pytest.raises(InputError, match="count"):
        free_places(rng(seed), size, taken, size - n_taken + 1)


@pytest.mark.parametrize("size", [60, 2000])  # crowded, and by rejection
def test_every_free_place_is_as_likely(size):
    taken, seen, draws = np.arange(0, 20), np.zeros(size), 1500
    for i in range(draws):
        seen[free_places(rng(i, "even"), size, taken, 5)] += 1
    want = 5 * draws / (size - 20)
    assert (seen[:20] == 0).all()
    assert np.square(seen[20:] - want).sum() / want == pytest.approx(size - 21, rel=6 * (2 / (size - 21)) ** 0.5)


def some_layer(seed, shape=(7, 9), density=0.4):
    draw = rng(seed, "layer")
    return CSR.from_dense((draw.standard_normal(shape) * (draw.random(shape) < density)).astype(np.float32))


@pytest.mark.parametrize("drop", [0.0, 0.2, 0.5, 1.0])
def test_evolution_drops_each_sign_nearest_zero_and_keeps_the_rest(drop):
    for seed in range(10):
        layout = some_layer(seed)
        memory = rng(seed, "memory").standard_normal(layout.nnz).astype(np.float32)
        following, moved = evolved(layout, memory, drop, rng(seed, "evolved"))
        assert following.nnz == layout.nnz
        before, after = layout.to_dense(), following.to_dense()
        dense_memory, dense_moved = (
            CSR(own.pattern, value[:, None]).to_dense() for own, value in ((layout, memory), (following, moved))
        )
        survives = np.zeros(before.shape, bool)
        for sign in (1, -1):  # by sorting the dense matrix
            sizes = np.sort((sign * before)[sign * before > 0])
            survives |= sign * before > (sizes[int(drop * len(sizes)) - 1] if int(drop * len(sizes)) else 0)
        np.testing.assert_array_equal(after[survives], before[survives])
        np.testing.assert_array_equal(dense_moved[survives], dense_memory[survives])
        assert (dense_moved[~survives] == 0).all()
        assert (after != 0).sum() == layout.nnz
        assert np.all(np.diff(following.pattern.row_of() * 9 + following.pattern.index.astype(int)) > 0)


def masked_twin(model):
    """Dense layers with the same zeros, held there by masking the gradients."""
    layers = []
    for layer in (model.encoder, model.decoder):
        dense = nn.Linear(layer.in_features, layer.out_features)
        with torch.no_grad():
            dense.weight.copy_(layer.to_dense())
            dense.bias.copy_(layer.bias)
        mask = dense.weight.detach() != 0
        dense.weight.register_hook(lambda gradient, mask=mask: gradient * mask)
        layers.append(dense)
    return nn.Sequential(layers[0], nn.Sigmoid(), nn.Dropout(0.0), layers[1])


def test_an_epoch_is_that_of_the_masked_dense_twin():
    X = torch.from_numpy(rng(0, "rows").standard_normal((60, 30)).astype(np.float32))
    sparse = SparseAutoencoder(30, 20, epsilon=3.0, dropout=0.0)
    twin = masked_twin(sparse)
    for model in (sparse, twin):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
        loss = reconstruction(0.2, torch_generator(0, "noise"))
        train(model, loss, Batches(X, batch_size=10, seed=1), optimizer=optimizer, steps=12)
    for layer, dense in ((sparse.encoder, twin[0]), (sparse.decoder, twin[3])):
        torch.testing.assert_close(layer.to_dense(), dense.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.bias.detach(), dense.bias.detach(), rtol=1e-4, atol=1e-5)
    want = twin[0].weight.detach().abs().sum(0).double().numpy()
    np.testing.assert_allclose(sparse.strength(), want, rtol=1e-4)


def test_the_count_of_weights_is_exact_and_constant_and_the_last_epoch_is_followed_by_none():
    X = torch.from_numpy(rng(0, "rows").standard_normal((20, 40)).astype(np.float32))
    model = SparseAutoencoder(40, 30, epsilon=2.5)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    evolution = Evolution(model, optimizer, drop=0.3, epoch=2, epochs=3)
    patterns = []

    def watch(step, loss):
        layout = model.encoder.layout
        assert layout.nnz == model.decoder.layout.nnz == round(2.5 * 70)
        patterns.append(layout.pattern.index.copy())

    train(model, reconstruction(0.2, torch_generator(0)), Batches(X, batch_size=10), optimizer=optimizer, steps=6,
          parts={"evolution": evolution}, callbacks=[watch])  # fmt: skip
    moved = [not np.array_equal(a, b) for a, b in itertools.pairwise(patterns)]
    assert moved == [True, False, True, False, False]  # after steps 2 and 4, not after 6
    assert all(a is b for a, b in zip(parameters, model.parameters()))
    assert model.encoder.value.grad is not None
    fresh = Evolution(model, optimizer, drop=0.3, epoch=2, epochs=3)
    fresh.load_state_dict(evolution.state_dict())
    assert fresh.count == 6


def test_no_tensor_of_the_dense_size_is_made():
    """At 4000 columns a dense layer would be 4 million numbers; the largest tensor of a step is far smaller."""
    X = torch.from_numpy(rng(0, "rows").standard_normal((20, 4000)).astype(np.float32))
    model = SparseAutoencoder(4000, 1000, epsilon=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        reconstruction(0.2, torch_generator(0))(model, X).backward()
        optimizer.step()
    assert max(largest) <= 20 * 4000 < 4000 * 1000
    assert sum(p.numel() for p in model.parameters()) == 2 * 2 * 5000 + 5000


class TestRewire:
    def test_the_parameter_stays_and_the_pattern_moves(self):
        layer = SparseLinear(some_layer(0), torch.zeros(7))
        value, other = layer.value, evolved(some_layer(0), None, 0.5, rng(0))[0]
        layer.rewire(other)
        assert layer.value is value
        np.testing.assert_array_equal(layer.to_dense().numpy(), other.to_dense())
        x = torch.randn(3, 9, requires_grad=True)
        layer(x).sum().backward()
        dense = torch.from_numpy(other.to_dense())
        torch.testing.assert_close(x.grad, dense.sum(0).expand(3, 9))
        again = SparseLinear(some_layer(3), torch.zeros(7))
        again.load_state_dict(copy.deepcopy(layer.state_dict()))
        np.testing.assert_array_equal(again.to_dense().numpy(), other.to_dense())

    def test_bad_layouts_are_refused(self):
        layer = SparseLinear(some_layer(0), torch.zeros(7))
        wrong = CSR(Pattern(np.array([0, *[1] * 7]), np.array([0]), columns=9), np.ones((1, 1), np.float32))
        with pytest.raises(InputError, match=r"layout: got \(7, 9\) with values \(1, 1\), want"):
            layer.rewire(wrong)
        with pytest.raises(InputError, match="layout: got csr, want one whose values train"):
            layer.rewire(CSR.from_dense(some_layer(0).to_dense(), dtype="bfloat16"))


@pytest.mark.filterwarnings("ignore")
def test_the_contract_of_scikit_learn():
    check_estimator(QuickSelection(hidden=8, epochs=2))


def test_a_fit_repeats_itself_and_says_what_it_holds():
    X = rng(0, "x").standard_normal((60, 30)) @ rng(1, "x").standard_normal((30, 30))
    chosen = QuickSelection(7, hidden=20, epsilon=4.0, epochs=6, batch_size=10).fit(X)
    assert chosen.support_.sum() == 7
    assert set(np.flatnonzero(chosen.support_)) == set(np.argsort(-chosen.strength_)[:7])
    assert chosen.transform(X).shape == (60, 7)
    assert chosen.n_weights_ == 2 * 200
    assert 2 * 200 * 6 < chosen.nbytes_ < 2 * 200 * 6 + 8 * (20 + 30 + 2) + 1
    assert chosen.losses_[-1] < chosen.losses_[0]
    again = QuickSelection(7, hidden=20, epsilon=4.0, epochs=6, batch_size=10).fit(X)
    np.testing.assert_array_equal(again.strength_, chosen.strength_)
    other = QuickSelection(7, hidden=20, epsilon=4.0, epochs=6, output="tanh", standardize=False, seed=1).fit(X / 20)
    assert not np.array_equal(other.strength_, chosen.strength_)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"k": 9}, "k: got 9"), ({"k": 0}, "k"), ({"hidden": 0}, "hidden"), ({"epsilon": 0}, "epsilon"),
        ({"drop": 1.5}, "drop"), ({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch_size"), ({"lr": 0}, "lr"),
        ({"momentum": 1}, "momentum"), ({"dropout": 1}, "dropout"), ({"noise": -1}, "noise"),
        ({"weight_decay": -1}, "weight_decay"), ({"output": "relu"}, "output"), ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(changed, named):
    X = rng(0, "x").standard_normal((10, 8))
    with pytest.raises(InputError, match=named):
        QuickSelection(**{"hidden": 4, "epochs": 1, **changed}).fit(X)
