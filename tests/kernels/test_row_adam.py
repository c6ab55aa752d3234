"""One step of Adam over rows: torch's Adam between a projection and a normalisation, threads, and what is refused."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.kernels import live
from ellzero.rng import rng

torch = pytest.importorskip("torch")

from ellzero.kernels import row_adam as module  # noqa: E402
from ellzero.kernels.row_adam import row_adam_, row_squares  # noqa: E402

SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-9}


@pytest.fixture(params=["kernels", "plain torch"])
def path(request, monkeypatch):
    if request.param == "plain torch":
        monkeypatch.setattr(module, "_native", lambda x: False)


def draw(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(rng(seed, "row_adam").standard_normal(shape)).to(dtype)


def tangent(gradient, W):
    return gradient - (gradient * W).sum(1, keepdim=True) * W


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("unit_norm", [False, True])
def test_equals_torchs_adam(path, dtype, unit_norm):
    W = torch.nn.functional.normalize(draw(0, 30, 37, dtype=dtype), dim=1)
    ours, first, second = W.clone(), torch.zeros_like(W), torch.zeros_like(W)
    theirs = torch.nn.Parameter(W.clone())
    optimizer = torch.optim.Adam([theirs], **SETTINGS)
    for step in range(1, 8):
        gradient = draw(step, 30, 37, dtype=dtype) * 10.0 ** (step - 5)
        row_adam_(ours, gradient, first, second, step=step, clip_scale=0.7, unit_norm=unit_norm, **SETTINGS)
        left = tangent(gradient, theirs.detach()) if unit_norm else gradient
        theirs.grad = left * 0.7
        optimizer.step()
        if unit_norm:
            with torch.no_grad():
                theirs.copy_(torch.nn.functional.normalize(theirs, dim=1))
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
    if dtype == torch.float64:
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_rows_without_gradient_stay(path):
    W, gradient = draw(0, 9, 20), draw(1, 9, 20)
    gradient[[0, 4, 8]] = 0
    first, second = draw(2, 9, 20), draw(3, 9, 20).abs()
    before = [t.clone() for t in (W, first, second)]
    whole = [t.clone() for t in (W, first, second)]
    row_adam_(W, gradient, first, second, step=3, skip_zero=True, **SETTINGS)
    row_adam_(whole[0], gradient, *whole[1:], step=3, **SETTINGS)
    still = torch.isin(torch.arange(9), torch.tensor([0, 4, 8]))
    for now, was, all_rows in zip((W, first, second), before, whole):
        assert torch.equal(now[still], was[still])
        torch.testing.assert_close(now[~still], all_rows[~still])
        assert not torch.equal(all_rows[still], was[still])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_squares_are_those_after_the_projection(path, dtype):
    W = torch.nn.functional.normalize(draw(0, 50, 33, dtype=dtype), dim=1)
    gradient = draw(1, 50, 33, dtype=dtype) + 100 * W
    assert row_squares(gradient) == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)
    wanted = float(tangent(gradient.double(), W.double()).square().sum())
    assert row_squares(gradient, W) == pytest.approx(wanted, rel=1e-12 if dtype == torch.float64 else 1e-3)


@pytest.mark.skipif(not live, reason="no compiled module is live")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_threads_change_nothing(dtype):
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            W, first, second = draw(0, 999, 301, dtype=dtype), draw(2, 999, 301, dtype=dtype), torch.ones(999, 301)
            second = second.to(dtype)
            gradient = draw(1, 999, 301, dtype=dtype)
            size = row_squares(gradient, W)
            row_adam_(W, gradient, first, second, step=2, unit_norm=True, **SETTINGS)
            found.append([W.numpy().tobytes(), first.numpy().tobytes(), second.numpy().tobytes(), size])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_column_ordered_encoders_and_empty_ones(path):
    encoder, gradient = torch.nn.Parameter(draw(0, 12, 5).T), draw(1, 5, 12)  # [5, 12], latents lie along memory
    first, second = torch.zeros(12, 5).double(), torch.zeros(12, 5).double()
    other = encoder.detach().clone()
    with torch.no_grad():
        row_adam_(encoder.T, gradient.T, first, second, step=1, **SETTINGS)
    row_adam_(plain := other.T.contiguous(), gradient.T.contiguous(), first * 0, second * 0, step=1, **SETTINGS)
    assert torch.equal(encoder.T, plain)
    none = torch.zeros(0, 5)
    row_adam_(none, none, none.clone(), none.clone(), step=1, **SETTINGS)
    assert row_squares(none) == 0


def test_moments_of_the_dead_end_at_zero():
    W, first, second = torch.ones(1, 16), torch.full((1, 16), 1e-37), torch.full((1, 16), 1e-37)
    for step in range(1, 60):
        row_adam_(W, torch.zeros(1, 16), first, second, step=step, **SETTINGS)
    assert float(first.abs().max()) == 0
    assert bool(W.isfinite().all())


def test_opcheck():
    tensors = draw(0, 6, 5), draw(1, 6, 5), draw(2, 6, 5), draw(3, 6, 5).abs()
    torch.library.opcheck(torch.ops.ellzero.row_adam_.default, (*tensors, 0.1, 1.0, 1e-8, 0.9, 0.99, 1.0, True, False))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"W": torch.zeros(5, 3).T}, "W: got strides (1, 3)"),
        ({"gradient": torch.zeros(3, 4)}, "gradient: got torch.float32 (3, 4)"),
        ({"first": torch.zeros(3, 5, dtype=torch.float64)}, "first: got torch.float64"),
        ({"second": torch.zeros(5)}, "second: got torch.float32 with 1 axes"),
        ({"lr": -1.0}, "lr: got -1"),
        ({"step": 0}, "step: got 0"),
        ({"betas": (0.9, 1.0)}, "betas: got 1"),
        ({"clip_scale": np.nan}, "clip_scale: got NaN"),
    ],
)
def test_bad_input_is_refused_by_name(changed, message):
    given = {name: torch.zeros(3, 5) for name in ("W", "gradient", "first", "second")} | SETTINGS | {"step": 1}
    with pytest.raises(InputError) as caught:
        row_adam_(**(given | changed))
    assert message in str(caught.value)
