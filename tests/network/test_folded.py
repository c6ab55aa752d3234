"""Moments of the size of a Gaussian weight, against Monte Carlo and exact integration."""

import numpy as np
import pytest
from scipy import integrate, stats

from ellzero.errors import InputError
from ellzero.network.folded import (
    CRITERIA,
    criterion,
    exponential_snr,
    log_exponential_moment,
    size_mean,
    size_sd,
    size_snr,
)

CASES = [(0.0, 1.0), (0.3, 0.5), (-0.7, 0.4), (2.0, 0.5), (1e-3, 0.2), (-0.05, 0.01)]


@pytest.mark.parametrize(("mu", "sigma"), CASES)
def test_the_moments_are_those_of_a_sample(mu, sigma):
    drawn = np.abs(mu + sigma * np.random.default_rng(0).standard_normal(4_000_000))
    assert size_mean(mu, sigma) == pytest.approx(drawn.mean(), abs=1e-3)
    assert size_sd(mu, sigma) == pytest.approx(drawn.std(), abs=1e-3)
    grown = np.exp(0.8 * drawn)
    assert np.exp(log_exponential_moment(mu, sigma, 0.8)) == pytest.approx(grown.mean(), rel=1.5e-3)
    assert exponential_snr(mu, sigma, 0.8) == pytest.approx(grown.mean() / grown.std(), rel=3e-3)


@pytest.mark.parametrize(("mu", "sigma"), CASES)
def test_the_moments_are_those_of_the_density(mu, sigma):
    def moment(function):
        density = stats.norm(mu, sigma).pdf
        points = [mu - 12 * sigma, mu, 0.0, mu + 12 * sigma]
        low, high = min(points), max(points)
        return integrate.quad(lambda w: function(abs(w)) * density(w), low, high, points=points, epsabs=1e-13)[0]

    mean = moment(lambda w: w)
    assert size_mean(mu, sigma) == pytest.approx(mean, rel=1e-9)
    assert size_sd(mu, sigma) == pytest.approx(np.sqrt(moment(lambda w: (w - mean) ** 2)), rel=1e-6)
    assert log_exponential_moment(mu, sigma, 3.0) == pytest.approx(np.log(moment(lambda w: np.exp(3 * w))), rel=1e-7)


def test_the_ratio_has_its_least_value_at_zero_and_ranks_as_the_plain_ratio():
    assert size_snr(0.0, 0.3) == pytest.approx(np.sqrt(2 / (np.pi - 2)), rel=1e-12)
    z = np.linspace(0, 60, 6001)
    ratio = size_snr(z * 0.1, np.full(len(z), 0.1))
    assert (np.diff(ratio) > 0).all()
    assert ratio[-1] == pytest.approx(60.0)


def test_far_from_zero_nothing_cancels():
    assert size_sd(1e4, 1e-6) == pytest.approx(1e-6)
    assert np.isfinite(exponential_snr(np.array([0.0, 50.0]), np.array([1e-3, 1e-3]), 2.0)).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_even_and_prefers_the_larger_mean(name):
    mu, sigma = np.linspace(0, 2, 30), np.full(30, 0.3)
    scores = criterion(name, mu, sigma, 0.5)
    np.testing.assert_allclose(scores, criterion(name, -mu, sigma, 0.5))
    if name != "exponential_snr":  # its standard deviation grows with the mean too
        assert (np.diff(scores) > 0).all()


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"criterion: got 'sizes', want one of .*did you mean 'size'"):
        criterion("sizes", 1.0, 1.0)
    with pytest.raises(InputError, match="sigma"):
        criterion("snr", 1.0, 0.0)
    with pytest.raises(InputError, match="slope"):
        criterion("exponential", 1.0, 1.0, 0.0)
