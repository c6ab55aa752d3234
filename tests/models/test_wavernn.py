"""WaveRNN: its equations by hand, halves that see no more than they may, folding, and nats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.models import load, save
from ellzero.models.wavernn import WaveRNNConfig, audio, fold, join, split, unfold
from ellzero.rng import rng

KINDS = {
    "plain": {}, "features": {"features": 3}, "folded": {"subscale": 4, "past": 3, "future": 2, "context": 8},
    "both": {"subscale": 3, "past": 2, "future": 1, "context": 6, "features": 2},
}  # fmt: skip


def build(kind, width=16, seed=1, double=True):
    model = WaveRNNConfig(width, **KINDS[kind]).build(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).add_(0.3 * (parameter.ndim == 1))
    return model.double() if double else model


def sound(n=2, length=24, seed=0):
    return torch.from_numpy(rng(seed, "sound").integers(-32768, 32768, (n, length)))


def features_of(kind, n=2, length=24):
    count = KINDS[kind].get("features", 0)
    return torch.from_numpy(rng(0, "features").standard_normal((n, length, count))).float() if count else None


@given(st.integers(-32768, 32767))
def test_a_sample_is_two_bytes(value):
    coarse, fine = split(torch.tensor([value]))
    assert 0 <= int(coarse) <= 255
    assert 0 <= int(fine) <= 255
    assert int(join(coarse, fine)) == value


@given(parts=st.integers(1, 6), times=st.integers(0, 5), rows=st.integers(0, 3))
def test_folding_interleaves_and_goes_back(parts, times, rows):
    x = torch.arange(rows * parts * times).reshape(rows, parts * times)
    folded = fold(x, parts)
    assert folded.shape == (rows, parts, times)
    for i in range(parts):
        assert torch.equal(folded[:, i], x[:, i::parts])
    assert torch.equal(unfold(folded), x)
    wide = x[..., None].expand(-1, -1, 2)
    assert torch.equal(unfold(fold(wide, parts, 1), 2), wide)


def test_the_network_is_the_equation():
    model, samples = build("plain"), sound(1, 7)
    half = 8
    coarse, fine = split(samples)
    before_c, before_f = (
        torch.cat([torch.tensor([[128]]), coarse[:, :-1]], 1),
        torch.cat([torch.tensor([[0]]), fine[:, :-1]], 1),
    )
    h, want = torch.zeros(16, dtype=torch.float64), []

    def scale(level):
        return float(level) / 127.5 - 1

    I = dict(zip("rue", model.I.reshape(3, 16, 2)))
    bias, I_c = dict(zip("rue", model.bias.reshape(3, 16))), dict(zip("rue", model.I_c))
    for t in range(7):
        x = torch.tensor([scale(before_c[0, t]), scale(before_f[0, t])], dtype=torch.float64)
        given = {g: I[g] @ x + bias[g] for g in "rue"}
        for g in "rue":
            given[g] = torch.cat([given[g][:half], given[g][half:] + I_c[g] * scale(coarse[0, t])])
        u = torch.sigmoid(model.R_u @ h + given["u"])
        r = torch.sigmoid(model.R_r @ h + given["r"])
        e = torch.tanh(r * (model.R_e @ h) + given["e"])
        h = u * h + (1 - u) * e
        logits = (model.O2(torch.relu(model.O1(h[:half]))), model.O4(torch.relu(model.O3(h[half:]))))
        want.append(-sum(l.log_softmax(0)[int(b[0, t])] for l, b in zip(logits, (coarse, fine))))
    got = model(samples)
    torch.testing.assert_close(got[0], torch.stack(want), atol=1e-6, rtol=1e-6)  # bytes are scaled in float32


@pytest.mark.parametrize("kind", KINDS)
def test_no_sample_knows_itself_or_what_comes_after_it_in_its_order(kind):
    """Sub-signal i at time t comes after all of sub-signals 0 .. i - 1 up to time t + future."""
    model, samples = build(kind), sound()
    given, config = features_of(kind), model.config
    parts = config.subscale
    base = model(samples, given).detach()
    for place in (5, 10, 17):
        changed = samples.clone()
        changed[:, place] ^= 1  # the fine byte alone
        moved = (model(changed, given).detach() - base).abs().sum(0)
        part, time = place % parts, place // parts
        for other in range(24):
            p, t = other % parts, other // parts
            own, follows = p == part and t >= time, p > part and (t + config.future >= time)
            if not (own or follows):
                assert moved[other] == 0, (place, other)
        assert moved[place] > 0
        if parts == 1:
            assert moved[place + 1] > 0
        coarse_changed = samples.clone()
        coarse_changed[:, place] ^= 256
        assert (model(coarse_changed, given).detach() - base).abs().sum(0)[place] > 0


def test_the_coarse_half_does_not_see_the_coarse_byte():
    model = build("plain")
    coarse, fine = split(sound())
    before = tuple(torch.nn.functional.pad(level, (1, -1)) for level in (coarse, fine))
    one = model.logits(coarse, fine, before)
    other_bytes = coarse.clone()
    other_bytes[:, -1] = 255 - other_bytes[:, -1]
    other = model.logits(other_bytes, fine, before)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1][:, -1], other[1][:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_built_model_is_near_chance_and_every_parameter_learns(kind):
    model = WaveRNNConfig(32, **KINDS[kind]).build(3)
    batch = sound() if features_of(kind) is None else (sound(), features_of(kind))
    loss = audio(model, batch)
    assert float(loss.detach()) == pytest.approx(2 * math.log(256), rel=0.05)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_it_is_saved_and_loaded(tmp_path):
    model = build("both", double=False)
    save(tmp_path / "net.safetensors", model)
    other, _ = load(tmp_path / "net.safetensors")
    assert other.config == model.config
    assert torch.equal(other(sound(), features_of("both")), model(sound(), features_of("both")))


def test_bad_input_is_named():
    for call, words in [
        (lambda: WaveRNNConfig(15), "width: got 15"),
        (lambda: WaveRNNConfig(16, subscale=0), "subscale: got 0"),
        (lambda: WaveRNNConfig(16, future=-1), "future: got -1"),
        (lambda: fold(torch.zeros(7), 2), "signal: got 7 samples"),
        (lambda: build("features")(sound()), "features: got None"),
        (lambda: build("plain")(sound(), torch.zeros(2, 24, 1)), "want None"),
        (lambda: build("both")(sound(length=25), torch.zeros(2, 25, 2)), "signal: got 25"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    assert np.isfinite(float(build("plain")(sound()).mean().detach()))
