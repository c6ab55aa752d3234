"""Weights of bits: their values and derivatives by hand, payloads to the bit, training that resumes, float export."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ellzero.errors import InputError
from ellzero.network.bitwise import Bits, Bitwise
from ellzero.parts.gradients import StraightThrough
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import threads_for


class Net(nn.Module):
    """A convolution, a norm and two linear layers."""

    def __init__(self, seed=0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.two = nn.Linear(24, 16), nn.Linear(16, 3)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                drawn = rng(seed, name).standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(0.2 * drawn + (parameter.ndim == 1)))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).flatten(2)
        return self.two(torch.relu(self.one(x.mean(-1).repeat(1, 4))))


def data(rows=120):
    x = torch.from_numpy(rng(0, "x").standard_normal((rows, 1, 4, 4))).float()
    return x, (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0).long()


def fit(model, steps=20, first=0, checkpoint=None, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = Batches(*data(), batch_size=16, seed=1)
    with threads_for(0):
        return train(model, losses.classification, batches, optimizer=optimizer, steps=steps, checkpoint=checkpoint,
                     every=7, **options)  # fmt: skip


def test_the_straight_through_step_is_a_bit_with_the_identity_behind_it():
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 2.0], requires_grad=True)
    bit = StraightThrough().step(x)
    assert bit.tolist() == [0, 0, 0, 1, 1]
    bit.backward(torch.tensor([1.0, 2, 3, 4, 5]))
    assert x.grad.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"x: got torch\.int64"):
        StraightThrough().step(torch.tensor([1]))


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(1, 22), seed=st.integers(0, 99), low=st.integers(0, 23))
def test_values_and_derivatives_are_the_formula(bits, seed, low):
    low = min(low, bits - 1)
    trained = [*range(low, bits), bits]
    view = Bits((3, 2), bits, trained, 0.37, 0.1)
    held = rng(seed, "held").integers(0, 2**low, (3, 2))
    view.held.copy_(torch.from_numpy(held))
    x = torch.from_numpy(rng(seed, "x").standard_normal((len(trained), 3, 2))).requires_grad_()
    weight = view(x)
    b = (x.detach() > 0).double()
    size = torch.from_numpy(held).double() + sum(2.0**k * b[i] for i, k in enumerate(trained[:-1]))
    sign = 1 - 2 * b[-1]
    scale = float(view.scale)
    assert torch.equal(weight, scale * sign * size)
    g = torch.from_numpy(rng(seed, "g").standard_normal((3, 2)))
    weight.backward(g)
    for i, k in enumerate(trained[:-1]):
        torch.testing.assert_close(x.grad[i], g * scale * sign * 2.0**k)
    torch.testing.assert_close(x.grad[-1], -2 * weight.detach().abs() * g)
    single = view(x.detach().float())
    whole = view.integers(x.detach())
    assert torch.equal((single.double() / scale).round().abs().int(), whole & (2**bits - 1))


def test_the_surrogate_passes_gradcheck_where_bits_are_taken_as_numbers():
    """With every bit b in place of its step, the weight is a polynomial whose derivative is the one above."""
    x = torch.from_numpy(rng(0, "bits").integers(0, 2, (5, 3, 2))).double().requires_grad_()
    g = torch.from_numpy(rng(0, "g").standard_normal((3, 2)))

    def smooth(b):
        return 0.375 * (1 - 2 * b[-1]) * torch.tensordot(torch.tensor([1.0, 2, 4, 8]).double(), b[:-1], 1)

    assert torch.autograd.gradcheck(smooth, (x,))
    (want,) = torch.autograd.grad(smooth(x), x, g)
    view = Bits((3, 2), 4, range(5), 0.375, 0.1)
    (got,) = torch.autograd.grad(view(x), x, g)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bits", [1, 2, 8, 22])
def test_first_weights_have_the_deviation_of_he(bits):
    layer = nn.Linear(300, 200)
    Bitwise(layer, bits)
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert abs(float(layer.weight.detach().mean())) < 0.002


def test_bits_are_drawn_for_linear_layers_and_convolutions_alone_and_repeat():
    model, again, other = Net(), Net(), Net()
    handles = [Bitwise(model, 6, seed=3), Bitwise(again, 6, seed=3), Bitwise(other, 6, seed=4)]
    assert [row.name for row in handles[0].report()] == ["conv.weight", "one.weight", "two.weight"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(model.one.weight, other.one.weight)
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert len(list(model.parameters())) == len(list(Net().parameters()))
    one = Bitwise(nn.Linear(400, 300), 1).report()[0]
    assert one.zeros == pytest.approx(0.5, abs=0.01)


def test_it_learns_resumes_to_the_bit_and_goes_into_bfloat16(tmp_path):
    model = Net()
    Bitwise(model, 4)
    run = fit(model, 40)
    assert np.mean([run.losses[s] for s in range(36, 41)]) < 0.8 * np.mean([run.losses[s] for s in range(1, 6)])
    cut = Net()
    Bitwise(cut, 4)

    def stop(step, loss):
        if step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cut, 40, checkpoint=tmp_path, callbacks=[stop])
    resumed = Net(5)
    Bitwise(resumed, 4, seed=9)
    fit(resumed, 40, checkpoint=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values()))
    fit(resumed, 3, precision="bfloat16")


@pytest.mark.parametrize(("bits", "trained"), [(8, 3), (5, 0), (22, 1), (3, 2)])
def test_a_payload_reads_back_to_the_bit_through_training_and_export(bits, trained):
    model = Net()
    handle = Bitwise(model, bits, trained=trained)
    numel = sum(int(np.prod(row.shape)) for row in handle.report())
    assert handle.capacity == numel * (bits - trained) // 8 - 8
    data = rng(1, "payload").bytes(handle.capacity)
    for payload in (b"", b"some text", data):
        handle.store(payload)
        assert handle.read() == payload
    high = [view.integers(x.detach()) >> (bits - trained) for view, x in handle._views().values()]
    handle.store(data)
    assert all(
        torch.equal(view.integers(x.detach()) >> (bits - trained), was)
        for (view, x), was in zip(handle._views().values(), high)
    )
    fit(model, 5)
    assert handle.read() == data
    model.eval()
    before = model(torch.ones(2, 1, 4, 4))
    handle.remove()
    handle.remove()
    assert set(model.state_dict()) == set(Net().state_dict())
    torch.testing.assert_close(model(torch.ones(2, 1, 4, 4)), before)
    again = Net(7).eval()
    again.load_state_dict(model.state_dict())
    found = Bitwise(again, bits, trained=trained, start="weights")
    assert found.read() == data
    assert torch.equal(again.one.weight, model.one.weight)
    assert torch.equal(again.conv.weight, model.conv.weight)


def test_holding_keeps_every_bit_and_clearing_takes_the_low_ones():
    model = Net()
    handle = Bitwise(model, 8)
    before = model.one.weight.detach().clone()
    assert handle.capacity == 0
    handle.hold(3)
    assert torch.equal(model.one.weight, before)
    assert model.one.parametrizations.weight.original.shape == (4, 16, 24)
    assert {(row.trained, row.held) for row in handle.report()} == {(4, 5)}
    handle.clear()
    scale = handle.report()[1].scale
    size = (before.double().abs() / scale).round()
    want = torch.sign(before) * (scale * 32 * (size // 32)).float()
    torch.testing.assert_close(model.one.weight.detach(), want)
    with pytest.raises(InputError, match="trained: got 5, want at most 3"):
        handle.hold(5)


def test_weights_that_are_there_are_met_to_half_a_step():
    model, plain = Net(), Net()
    handle = Bitwise(model, 10, start="weights")
    for row in handle.report():
        a, b = (net.get_submodule(row.name.removesuffix(".weight")).weight for net in (plain, model))
        assert float((a - b).detach().abs().max()) <= row.scale / 2 * 1.001


def test_bad_input_is_named():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    gone = Bitwise(nn.Linear(3, 3))
    gone.remove()
    for call, words in [
        (lambda: Bitwise(Net(), 0), "bits: got 0"),
        (lambda: Bitwise(Net(), 23), "bits: got 23"),
        (lambda: Bitwise(Net(), 4, trained=5), "trained: got 5"),
        (lambda: Bitwise(Net(), start="he"), "start: got 'he'"),
        (lambda: Bitwise(Net(), spread=0), "spread: got 0"),
        (lambda: Bitwise(tied), "model: '0.weight' is tied"),
        (lambda: Bitwise(nn.Linear(3, 3).half()), "model: 'weight' is tied or torch.float16"),
        (lambda: Bitwise(nn.Linear(9, 9), trained=2).store(bytes(99)), "data: got 99 bytes"),
        (lambda: Bitwise(nn.Linear(9, 9), trained=2).read(), "no whole payload"),
        (lambda: Bitwise(nn.Linear(9, 9)).read(), "no whole payload"),
        (gone.report, "gone since remove"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    assert not hasattr(copy.deepcopy(tied)[0], "parametrizations")
