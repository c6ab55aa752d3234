"""Model steps of many problems: compiled equals plain, both solve the model, and threads change nothing."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.kernels import bundle as module
from ellzero.kernels import live
from ellzero.kernels.bundle import Metric, bundle_step
from ellzero.kernels.coordinate_descent import reference as plain_descent
from ellzero.parts.penalties import ElasticNet


def problem(inverse, intercept=True, l2=0.0, problems=5, size=14, width=20, seed=0):
    """Random models; the metric's columns are scattered among ``width``. Everything ``bundle_step`` takes."""
    g = np.random.default_rng(seed)
    a, h = g.standard_normal((size, 40)), g.random(40) / 40
    tilt, mass = (a @ h, h.sum()) if intercept else (np.zeros(size), 0.0)
    gram = (a * h) @ a.T - (np.outer(tilt, tilt) / mass if intercept else 0)
    stored = np.zeros((size + 3, size + 3), np.float32)
    stored[:size, :size] = gram
    inverted = stored.copy()
    inverted[:size, :size] = np.linalg.inv(gram + l2 * np.eye(size))
    metric = Metric(stored, inverted if inverse else None, g.permutation(width)[:size].astype(np.int64), tilt, mass)
    w = g.standard_normal((problems, width)) * (g.random((problems, width)) < 0.3)
    w[:, np.setdiff1d(np.arange(width), metric.columns)] = 0
    return {
        "metrics": [metric], "which": np.zeros(problems, np.int64), "own": np.ones((problems, width), bool),
        "gradient": g.standard_normal((problems, width)) / 10, "gradient0": g.standard_normal(problems) / 10,
        "scale": np.ones(problems), "l1": np.full(problems, 0.05), "l2": np.full(problems, l2), "w": w,
        "intercept": np.zeros(problems),
    }  # fmt: skip


def copied(inputs):
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("l2", "scale"), [(0.0, 1.0), (0.02, 1.0), (0.0, 1.7)])
def test_it_is_the_minimum_of_the_model(inverse, intercept, l2, scale):
    inputs = problem(inverse, intercept, l2)
    inputs["scale"][:] = scale
    start = inputs["w"].copy()
    bundle_step(**inputs, accuracy=1e-7, max_sweeps=5000)
    metric = inputs["metrics"][0]
    size, columns = len(metric.columns), metric.columns
    gram = scale * metric.gram[:size, :size].astype(np.float64)
    for b in range(len(start)):
        lean = inputs["gradient0"][b] / metric.mass if intercept else 0.0
        gradient = inputs["gradient"][b, columns] - metric.tilt * lean
        w = start[b, columns].copy()
        slope = gradient.copy()
        penalty = ElasticNet(0.05 + l2, 0.05 / (0.05 + l2))
        plain_descent(gram, w, slope, penalty, None, 1e-13, 100_000)

        def cost(x, base=start[b, columns], gradient=gradient):
            d = x - base
            return gradient @ d + d @ gram @ d / 2 + l2 * x @ x / 2 + 0.05 * abs(x).sum()

        assert cost(inputs["w"][b, columns]) <= cost(w) + 1e-7
        np.testing.assert_allclose(inputs["w"][b, columns], w, atol=2e-3)
        move = metric.tilt @ (inputs["w"][b] - start[b])[columns]
        want = -(inputs["gradient0"][b] / scale + move) / metric.mass if intercept else 0.0
        assert inputs["intercept"][b] == pytest.approx(want, abs=1e-9)


@pytest.mark.skipif(not live, reason="no compiled module is live")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_compiled_is_plain(inverse, share, monkeypatch):
    inputs = problem(inverse, l2=0.01)
    inputs["own"] = np.random.default_rng(1).random(inputs["own"].shape) < share
    inputs["scale"][:] = np.linspace(0.5, 2, 5)
    plain = copied(inputs)
    sweeps = bundle_step(**inputs, max_sweeps=7)
    monkeypatch.setattr(module, "CHOICE", type(module.CHOICE)("reference", None, True, {}))
    assert (bundle_step(**plain, max_sweeps=7) == sweeps).all()
    np.testing.assert_allclose(inputs["w"], plain["w"], atol=1e-5)
    np.testing.assert_allclose(inputs["intercept"], plain["intercept"], atol=1e-5)


def test_columns_that_are_not_a_problems_own_stay_zero():
    inputs = problem(False)
    inputs["w"][:] = 0
    inputs["own"][:, ::2] = False
    bundle_step(**inputs)
    assert not inputs["w"][:, ::2].any()
    assert inputs["w"].any()


def test_threads_change_no_bit():
    inputs = problem(False, problems=300, size=120, width=150)
    again = copied(inputs)
    bundle_step(**inputs, n_threads=1)
    bundle_step(**again, n_threads=2)
    np.testing.assert_array_equal(inputs["w"], again["w"])


def test_shapes_are_checked():
    inputs = problem(False)
    with pytest.raises(InputError, match=r"w: got shape \(5, 20\) beside own \(5, 19\)"):
        bundle_step(**(inputs | {"own": inputs["own"][:, :19]}))
    if live:
        bad = inputs["metrics"][0]._replace(columns=inputs["metrics"][0].columns + 20)
        with pytest.raises(ValueError, match="want positions in a row of w"):
            bundle_step(**(inputs | {"metrics": [bad]}))
