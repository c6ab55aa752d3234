"""Scaling laws: derivatives, recovery of planted laws, best sparsities, average parameter counts."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.network.laws import (
    AverageLaw,
    ScalingLaw,
    average_parameters,
    fit_average_law,
    fit_scaling_law,
    training_cost,
)
from ellzero.parts.schedules import Constant, Cubic

PLANTED = {"a_S": 0.4, "b_S": 0.8, "c_S": 1.0, "b_N": 0.25, "a_D": 0.05, "b_D": 0.5, "c": 0.6}


def runs():
    sparsity, nonzeros, data = (
        grid.ravel() for grid in np.meshgrid([0, 0.5, 0.75, 0.9], [1e6, 4e6, 1.6e7, 6.4e7], [1e5, 4e5, 1.6e6])
    )
    return sparsity, nonzeros, data


def planted():
    return ScalingLaw(PLANTED, (1.0, 1e7, 4e5), 1.0, 0.0)


@pytest.mark.parametrize(("law", "inputs"), [(ScalingLaw, runs()), (AverageLaw, runs()[1:])])
def test_the_derivatives_are_those_of_the_losses(law, inputs):
    inputs = [np.asarray(x) / (1.0 if x.max() < 1 else x.mean()) for x in inputs]
    logs = np.log(np.linspace(0.3, 0.9, 7 if law is ScalingLaw else 5))
    _value, slopes = law._terms(logs, inputs)
    for i in range(len(logs)):
        step = np.eye(len(logs))[i] * 1e-6
        want = (law._terms(logs + step, inputs)[0] - law._terms(logs - step, inputs)[0]) / 2e-6
        np.testing.assert_allclose(slopes[:, i], want, rtol=1e-6, atol=1e-8)


def test_a_planted_law_is_foretold_where_no_run_was():
    sparsity, nonzeros, data = runs()
    inside = nonzeros < 5e7
    loss = planted().predict(sparsity, nonzeros, data)
    law = fit_scaling_law(sparsity[inside], nonzeros[inside], data[inside], loss[inside], restarts=8, bootstrap=0)
    assert law.r2 > 1 - 1e-6
    np.testing.assert_allclose(law.predict(sparsity, nonzeros, data), loss, rtol=2e-3)
    np.testing.assert_allclose(
        law.effective_size([0.5, 0.9], 1e7), planted().effective_size([0.5, 0.9], 1e7), rtol=0.05
    )


def test_what_the_runs_do_not_tell_is_said():
    sparsity, nonzeros, data = (column[::4] for column in runs())
    sparsity = np.where(np.arange(len(sparsity)) % 2, 0.5, 0.0)
    noise = 1 + 0.003 * np.random.default_rng(0).standard_normal(len(sparsity))
    with pytest.warns(UserWarning, match="not identified"):
        law = fit_scaling_law(
            sparsity, nonzeros, data, planted().predict(sparsity, nonzeros, data) * noise, restarts=4, bootstrap=20
        )
    assert not all(law.identified.values())
    middle, low, high = law.predict(0.5, 1e7, [1e5, 1e6], level=0.9)
    assert (low <= high).all()
    assert low.shape == middle.shape == (2,)


def test_the_dense_model_of_the_same_loss():
    law = planted()
    size = law.effective_size(0.75, 2e7)
    assert size > 2e7
    assert law.predict(0.0, size, 3e5) == pytest.approx(law.predict(0.75, 2e7, 3e5), rel=1e-12)


def test_the_best_sparsity_is_the_best_and_grows_with_the_data():
    law = planted()
    found = [law.optimal_sparsity(1e7, data) for data in (1e3, 1e5, 1e6, 1e7, 1e8)]
    assert found == sorted(found)
    assert found[0] < found[-1]
    grid = np.linspace(0, 0.99, 2001)
    for data, best in zip((1e5, 1e7), (found[1], found[3])):
        losses = [law.predict(s, 1e7, data / training_cost(s)) for s in grid]
        assert best == pytest.approx(grid[int(np.argmin(losses))], abs=1e-3)
    assert law.optimal_sparsity(1e7, 1e6, cost=lambda s: 1e6 if s else 1.0) == 0
    assert training_cost(0) == 1


@settings(max_examples=20)
@given(st.floats(0.05, 0.95), st.floats(0.0, 0.45), st.floats(0.5, 1.0))
def test_the_average_over_a_cubic_has_its_closed_form(sparsity, begin, end):
    want = begin + (end - begin) * (1 - 0.75 * sparsity) + (1 - end) * (1 - sparsity)
    got = average_parameters(Cubic(1.0, 1 - sparsity, begin, end), 1.0, 4000)
    assert got == pytest.approx(want, abs=2e-4)


def test_the_closed_form_is_met_to_the_sixth_digit():
    got = average_parameters(Cubic(1.0, 0.2, 0.25, 0.75), 2e6, 10_000)
    assert got == pytest.approx(2e6 * (0.25 + 0.5 * (1 - 0.6) + 0.25 * 0.2), rel=1e-6)


def test_the_average_is_over_tokens():
    halves = Cubic(1.0, 0.5, 0.0, 1e-9)
    assert average_parameters(Constant(0.25), 8, 3) == 2
    assert average_parameters(lambda step, _: 1.0 if step < 1 else 0.0, 10, 2, tokens=[3, 1]) == 7.5
    assert average_parameters(halves, 10, 10) == 5


def test_the_law_of_averages_is_recovered():
    _, nonzeros, data = runs()
    nonzeros, data = np.unique(np.stack([nonzeros, data]), axis=1)
    loss = 0.7 + 0.8 * (nonzeros / 1e7) ** -0.3 + 0.4 * (data / 4e5) ** -0.4
    law = fit_average_law(nonzeros, data, loss, restarts=8, bootstrap=0)
    assert isinstance(law, AverageLaw)
    assert law.r2 > 1 - 1e-6
    np.testing.assert_allclose(law.predict(2e8, 5e6), 0.7 + 0.8 * 20**-0.3 + 0.4 * 12.5**-0.4, rtol=5e-3)


def test_a_seed_repeats_itself():
    columns = (*runs(), planted().predict(*runs()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, again = (fit_scaling_law(*columns, restarts=2, bootstrap=3, seed=4) for _ in range(2))
    assert first.coefficients == again.coefficients
    assert np.array_equal(first.bootstrap, again.bootstrap)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sparsity": np.full(48, 1.0)}, "sparsity"),
        ({"nonzeros": np.zeros(48)}, "nonzeros"),
        ({"data": np.ones(47)}, "data"),
        ({"data": np.ones(48)}, "data"),
        ({"loss": np.full(48, np.nan)}, "loss"),
        ({"delta": 0}, "delta"),
        ({"restarts": 0}, "restarts"),
        ({"bootstrap": -1}, "bootstrap"),
    ],
)
def test_bad_input_is_named(change, name):
    given_ = dict(zip(("sparsity", "nonzeros", "data", "loss"), (*runs(), planted().predict(*runs()))))
    with pytest.raises(InputError, match=name):
        fit_scaling_law(**{**given_, **change})


def test_too_few_runs_and_no_bootstrap_are_named():
    few = [column[:6] for column in (*runs(), planted().predict(*runs()))]
    few[0] = np.array([0, 0.5] * 3)
    few[1], few[2] = np.arange(1, 7.0), np.arange(1, 7.0)
    with pytest.raises(InputError, match="loss: got 6 runs"):
        fit_scaling_law(*few)
    with pytest.raises(InputError, match="intervals"):
        planted().intervals()
    with pytest.raises(InputError, match="level"):
        planted().predict(0.5, 1e6, 1e5, level=0.5)
