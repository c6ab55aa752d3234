"""Training: it finds planted directions, repeats to the bit, goes on after a kill, and wakes dead latents."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.trainer import SAETrainer, geometric_median, learning_rate_factor
from ellzero.errors import InputError

PRESETS = ("relu_l1", "gated", "topk", "batchtopk", "jumprelu", "abs_topk", "matryoshka", "hierarchical_topk")


def planted(rows=4000, d=16, features=32, k=2, seed=0):
    """Sums of k of 32 random directions with positive weights, off the origin."""
    draw = np.random.default_rng(seed)
    atoms = draw.standard_normal((features, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((rows, features))
    for row in codes:
        row[draw.choice(features, k, replace=False)] = draw.uniform(1, 2, k)
    return (codes @ atoms + 3).astype(np.float32), atoms


X, ATOMS = planted()


def make(name="topk", k=2, d_sae=48, **options):
    return SparseAutoencoder.from_preset(name, d_in=16, d_sae=d_sae, k=k, **options)


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", PRESETS)
def test_it_finds_planted_directions(name):
    options = {} if name in ("relu_l1", "gated", "jumprelu") else {"dead_after": 2560}
    sae = make(name, **options)
    SAETrainer(sae, lr=0.01, batch_size=128, steps=600).fit(X[:3500])
    found = evaluate(sae, X[3500:])
    # The price shrinks codes, at two active ones strongly; nested levels share what one level could have alone.
    assert found["fvu"] < {"relu_l1": 0.5, "matryoshka": 0.2, "gated": 0.2}.get(name, 0.1)
    assert found["l0"] == pytest.approx(2, rel=0.15)
    best = np.abs(ATOMS @ sae.W_dec.detach().numpy().T).max(1)
    assert np.median(best) > (0.9 if name == "matryoshka" else 0.95)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))
    assert not sae.training


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_seed_gives_the_same_bits_and_global_generators_are_left_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, again, other = make(name), make(name), make(name)
    for sae, seed in ((one, 0), (again, 0), (other, 1)):
        SAETrainer(sae, lr=0.01, batch_size=64, steps=30, seed=seed).fit(X)
    assert same(one, again)
    assert not same(one, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("source", ["array", "list"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(name, source, tmp_path):
    options = {"lr": 0.01, "batch_size": 100, "steps": 60}
    acts = X if source == "array" else [X[:150], X[150:700], X[700:]]
    whole = make(name)
    SAETrainer(whole, **options).fit(acts)
    cut = SAETrainer(make(name), **options)
    combine, count = cut.sae.combine, []

    def dies(z):
        count.append(1)
        if len(count) == 37:
            raise Killed
        return combine(z)

    cut.sae.combine = dies
    before = cut.sae.b_dec.detach().clone()
    with pytest.raises(Killed):
        cut.fit(acts, checkpoint=tmp_path, every=10)
    assert not torch.equal(cut.sae.b_dec, before)
    resumed = make(name)
    found = SAETrainer(resumed, **options).fit(acts, checkpoint=tmp_path, every=10)
    assert min(found.losses) == 31
    assert same(whole, resumed)
    finished = make(name)
    assert not SAETrainer(finished, **options).fit(acts, checkpoint=tmp_path, every=10).losses
    assert same(whole, finished)


def test_dead_latents_are_counted_in_rows_and_wake_up_by_the_auxiliary_loss():
    found = {}
    for dead_after in (1000, 10**9):
        sae = make(d_sae=32, dead_after=dead_after)
        with torch.no_grad():
            sae.W_enc[:, :16] *= 0.01  # positive now and then, but never among the two largest
        SAETrainer(sae, lr=0.01, batch_size=100, steps=300).fit(X)
        found[dead_after] = evaluate(sae, X)
    assert found[10**9]["dead"] == 0.5
    assert found[1000]["dead"] < 0.2
    assert found[1000]["fvu"] < 0.5 * found[10**9]["fvu"]
    asleep = make(d_sae=64)
    with torch.no_grad():
        asleep.b_enc[0] = -1e4
    trainer = SAETrainer(asleep, lr=1e-6, batch_size=100, steps=7)
    trainer.fit(X)
    assert trainer.state.silent[0] == 700


def test_a_latent_that_fires_in_this_batch_is_not_dead_in_it():
    sae = make(dead_after=5)
    trainer = SAETrainer(sae, batch_size=10, steps=1)
    trainer.state.silent += 100
    seen = []
    sae.objective = (lambda step: seen.append((step.dead, step.z)) or step.z.sum(),)
    trainer.state.loss(torch.from_numpy(X[:10]))
    dead, z = seen[0]
    assert torch.equal(dead, torch.zeros(48, dtype=torch.bool)) or not (z[:, dead] > 0).any()


@pytest.mark.parametrize(("lr", "k", "steps"), [(0.003, 2, 500), (0.01, 6, 300), (0.02, 3, 300)])
def test_the_price_is_steered_to_the_target(lr, k, steps):
    sae = make("relu_l1", k=k)
    SAETrainer(sae, lr=lr, batch_size=128, steps=steps).fit(X[:3500])
    assert evaluate(sae, X[3500:])["l0"] == pytest.approx(k, rel=0.2)


def test_training_on_scaled_activations_gives_the_scaled_autoencoder():
    one, other = make(), make()
    for sae, factor in ((one, 1.0), (other, 1024.0)):
        SAETrainer(sae, lr=0.01, batch_size=64, steps=20).fit(X * factor)
    torch.testing.assert_close(other.W_dec, one.W_dec)
    torch.testing.assert_close(other.b_dec, 1024 * one.b_dec)


def test_arrays_maps_tensors_and_batches_train_alike(tmp_path):
    np.save(tmp_path / "x.npy", X)
    found = []
    for acts in (X, X.astype(np.float64), np.load(tmp_path / "x.npy", mmap_mode="r"), torch.from_numpy(X)):
        found.append(make())
        SAETrainer(found[-1], lr=0.01, batch_size=64, steps=10).fit(acts)
    assert all(same(found[0], other) for other in found[1:])
    for acts in ([X[:33], X[33:]], iter([X[:1000]]), [torch.from_numpy(X[:7]).double()], (row[None] for row in X)):
        sae = make()
        SAETrainer(sae, lr=0.01, batch_size=50, steps=12).fit(acts)
        assert evaluate(sae, X)["fvu"] < 1


def test_a_last_batch_of_one_row_does_no_harm():
    for name in PRESETS:
        sae = make(name)
        SAETrainer(sae, lr=0.003, batch_size=50, steps=9).fit(X[:101])
        assert np.isfinite(evaluate(sae, X)["fvu"])


def test_the_start_is_the_geometric_median():
    cloud = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32))
    cloud[:20] += 500
    point = geometric_median(cloud).double()
    distance = lambda p: (cloud.double() - p).norm(dim=1).sum()  # noqa: E731
    assert all(distance(point) <= distance(point + 0.05 * torch.eye(3)[i] * s) for i in range(3) for s in (-1, 1))
    assert point.norm() < 1
    sae = make()
    with torch.no_grad():
        sae.b_dec.fill_(4.0)
    kept = copy.deepcopy(sae)
    SAETrainer(sae, lr=1e-9, batch_size=64, steps=1).fit(X)
    SAETrainer(kept, lr=1e-9, batch_size=64, steps=1, initialize=False).fit(X)
    torch.testing.assert_close(sae.b_dec, geometric_median(torch.from_numpy(X)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(kept.b_dec, torch.full((16,), 4.0))


def test_the_learning_rate_warms_up_and_goes_to_zero():
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2)
    assert factors[4:80] == [1.0] * 76
    assert 0 < factors[99] < 0.06
    assert factors[80:] == sorted(factors[80:], reverse=True)
    sae = make()
    assert SAETrainer(sae).lr == pytest.approx(2e-4 / (48 / 16384) ** 0.5)


def test_a_failed_run_leaves_the_scale_as_it_was():
    sae = make()
    with torch.no_grad():
        sae.b_enc.fill_(3.0)
    trainer = SAETrainer(sae, lr=1e-9, batch_size=64, steps=5)
    sae.objective = (lambda step: step.z.sum() * float("nan"),)
    with pytest.raises(InputError, match="loss"):
        trainer.fit(X)
    torch.testing.assert_close(sae.b_enc, torch.full((48,), 3.0))


@pytest.mark.parametrize(
    ("acts", "named"),
    [
        (X[:, :9], r"acts: got shape \(4000, 9\), want \(any, 16\)"), (X[0], "acts: .*2 axes"), (X[:0], "no entries"),
        (np.ones((4, 16)), "acts: all 4 rows are equal"), (X.astype(int), "acts: got dtype"), (3, "acts: got int"),
        (np.where(X > 4.5, np.nan, X), "acts: .* not finite"), ([], "acts: got no rows"),
        ([X[:, :3]], r"acts: .*\(any, 16\)"),
        (iter([X[:9]]), "acts: got fewer rows"), (iter([X[:100]]), "batches: got 1, want 5"),
    ],
)  # fmt: skip
def test_activations_that_cannot_be_used_are_refused_by_name(acts, named):
    with pytest.raises(InputError, match=named):
        SAETrainer(make(), batch_size=64, steps=5).fit(acts)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": 0.0}, "lr"), ({"lr": float("inf")}, "lr"), ({"batch_size": 0}, "batch_size"), ({"steps": 1.5}, "steps"),
        ({"clip": 0}, "clip"), ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        SAETrainer(make(), **options)
    with pytest.raises(InputError, match="sae: got Linear"):
        SAETrainer(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["topk", "batchtopk", "abs_topk", "k_sparse", "matryoshka", "hierarchical_topk"])
def test_the_sparse_engine_takes_the_same_course_as_the_dense_one(name, monkeypatch):
    losses = {}
    for engine in ("dense", "sparse"):
        options = {"dead_after": 1000} if name != "k_sparse" else {}
        sae = make(name, d_sae=96, **options)
        with monkeypatch.context() as patch:
            if engine == "sparse":  # the matrix of all activations is never asked for
                patch.setattr(SparseAutoencoder, "codes", None)
            found = SAETrainer(sae, lr=0.002, batch_size=400, steps=40, engine=engine).fit(X)
        losses[engine] = np.array(list(found.losses.values()))
    np.testing.assert_allclose(losses["sparse"], losses["dense"], rtol=0.01)


def test_an_engine_that_is_none_is_refused():
    with pytest.raises(InputError, match="engine: got 'fast'"):
        SAETrainer(make(), engine="fast")


def test_thresholds_learnt_by_their_logarithm_stay_where_they_were_in_a_short_run():
    """Adam moves a logarithm by its rate a step, so by a factor; the threshold itself goes as far as it must."""
    found = {}
    for log in (False, True):
        sae = make("jumprelu", log=log, initial=0.001, bandwidth=0.5, warm=0.0)
        SAETrainer(sae, lr=0.01, batch_size=128, steps=150).fit(X)
        found[log] = evaluate(sae, X)["l0"], float(sae.thresholds().median())
    assert found[True][1] < 0.1 * found[False][1]
    assert abs(found[False][0] - 2) < abs(found[True][0] - 2)


def test_silence_is_counted_in_rows_and_not_in_steps():
    for batch in (50, 200):
        sae = make("topk", d_sae=400)
        trainer = SAETrainer(sae, lr=0.03, batch_size=batch, steps=2000 // batch)
        trainer.fit(X)
        silent = trainer.state.silent
        assert 500 < int(silent.max()) <= 2000
        assert not (silent % batch).any()
