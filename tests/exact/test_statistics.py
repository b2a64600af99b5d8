"""Error bars and distances against the known scatter of Gaussian ensembles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from workflow.interfaces import UserError
from workflow.responses import statistics
from workflow.responses.recalibration import recalibrate
from workflow.responses.resampling import Units, ratio, unit_weights
from workflow.responses.statistics import critical_value, distance, estimate, jackknife


def resampled_means(per_member, *, samples, seed):
    """Resampled means over members `(member, ...)`, `(sample, ...)`."""
    units = Units(len(per_member), blocks=1, moving=1)
    weights = unit_weights(units, samples=samples, seed=seed)
    return ratio(per_member[:, None], np.ones((1, per_member.shape[1])), weights)


def test_error_bar_of_a_mean_is_its_own_scatter():
    """A large mean must not cancel the digits of the small scatter."""
    x = np.random.default_rng(1).standard_normal((16, 1, 5)) + 1e6
    found = estimate(x, np.ones((1, 5)), units=Units(16, 1, 1), samples=20000, seed=2)
    expected = x[:, 0].std(axis=0, ddof=1) / 4
    assert np.allclose(found.standard_error, expected, rtol=0.04)
    assert np.allclose(found.value, x.mean(axis=(0, 1)), rtol=1e-15)
    assert np.allclose(found.high - found.value, student.ppf(0.975, 15) * found.standard_error)
    assert np.allclose(found.value - found.low, found.high - found.value)


@pytest.mark.parametrize("bands", ["pointwise", "simultaneous"])
def test_chunks_of_resamples_change_nothing(monkeypatch, bands):
    sums = np.random.default_rng(4).standard_normal((6, 2, 3, 4, 4)) * 0.01
    sums[:, :, 0, 0, 0] += 1.0
    pairs = np.array([[1.0, 1.0, 1.0], [1.0, 0.9, 0.8]])

    def repaired(response):
        return recalibrate(response, space=2).response

    settings = {"units": Units(6, 2, 2), "samples": 100, "seed": 5, "bands": bands}
    whole = estimate(sums, pairs, repaired, **settings)
    monkeypatch.setattr(statistics, "_CHUNK_NUMBERS", 7 * sums[0, 0].size)
    chunked = estimate(sums, pairs, repaired, **settings)
    assert np.abs(chunked.high - whole.high).max() < 1e-12
    # Lag 0 of a recalibrated response is the identity in every resample.
    assert whole.standard_error[0].max() < 1e-12 < whole.standard_error[1].min()
    assert np.isfinite(whole.low).all()


@pytest.mark.parametrize("numbers", [1, 12])
def test_simultaneous_bands_are_as_wide_as_independent_numbers_need(numbers):
    """Largest of 12 independent Gaussians: 2 Phi(-c) = 1 - 0.95^(1/12); copies cost nothing."""
    rng = np.random.default_rng(3)
    draws = np.repeat(rng.standard_normal((40000, numbers)), 3, axis=1)
    found = critical_value(np.abs(draws).max(axis=1), freedom=1e6, level=0.95)
    expected = norm.isf((1 - 0.95 ** (1 / numbers)) / 2)
    density = numbers * 2 * norm.pdf(expected) * 0.95 ** (1 - 1 / numbers)
    assert abs(found - expected) < 4 * np.sqrt(0.95 * 0.05 / 40000) / density
    # Few degrees of freedom widen them as they widen one interval.
    few = critical_value(np.abs(draws).max(axis=1), freedom=5, level=0.95)
    assert few == pytest.approx(student.isf(norm.sf(found), 5), rel=1e-4)


def test_jackknife_finds_the_bias_of_a_square():
    """E xbar^2 - mu^2 = sigma^2 / G, which the jackknife estimates without bias by s^2 / G."""
    x = np.random.default_rng(5).standard_normal((40, 1, 3)) + 2.0
    found = jackknife(x, np.ones((1, 3)), lambda r: r**2, units=Units(40, 1, 1))
    variance = x[:, 0].var(axis=0, ddof=1) / 40
    assert np.allclose(found.bias, variance, rtol=1e-10)
    linear = jackknife(x, np.ones((1, 3)), units=Units(40, 1, 1))
    assert np.abs(linear.bias).max() < 1e-12
    assert np.allclose(linear.standard_error, np.sqrt(variance), rtol=1e-12)


def test_biases_of_many_ratios_do_not_add_up():
    """E b / a is 0.5 (1 + Var a): 0.0019 each, against a scatter of their mean of 0.0022."""
    rng = np.random.default_rng(6)

    def mean_ratio(response):
        return (response[:, 1] / response[:, 0]).mean(axis=-1, keepdims=True)

    found = []
    for replica in range(200):
        sums = rng.standard_normal((32, 1, 2, 1024)) * 0.35 + np.array([[1.0], [0.5]])
        settings = {"units": Units(32, 1, 1), "samples": 100, "seed": replica}
        found.append(estimate(sums, np.ones((1, 2)), mean_ratio, **settings))
    value = np.array([e.value[0] for e in found])
    plain = value + np.array([e.bias[0] for e in found])
    error = value.std(ddof=1) / np.sqrt(200)
    assert abs(value.mean() - 0.5) < 4 * error
    assert plain.mean() - 0.5 > 8 * error
    covered = np.mean([e.low[0] <= 0.5 <= e.high[0] for e in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200)


@pytest.mark.parametrize("separation", [0.0, 0.3])
def test_distance_without_its_noise_is_unbiased(separation):
    """Two ensembles with 60 pixels of noise; the plain distance sees mostly that noise."""
    rng = np.random.default_rng(8)
    gap = separation * rng.standard_normal((2, 60))
    squared, plain = [], []
    for replica in range(400):
        truth = rng.standard_normal((8, 2, 60))
        model = rng.standard_normal((6, 2, 60)) + gap
        d = distance(
            model.mean(axis=0),
            truth.mean(axis=0),
            estimate_samples=resampled_means(model, samples=50, seed=replica),
            reference_samples=resampled_means(truth, samples=50, seed=10_000 + replica),
        )
        squared.append(d.l2_squared)
        plain.append(d.l2**2)
    expected = (gap**2).sum(axis=1)
    error = np.std(squared, axis=0, ddof=1) / np.sqrt(400)
    assert (np.abs(np.mean(squared, axis=0) - expected) < 4 * error).all()
    assert (np.mean(plain, axis=0) > expected + 40 * error).all()
    # The error bar of one distance is of the size of its scatter, or cautious.
    scatter = np.std(squared, axis=0, ddof=1)
    assert (d.l2_squared_standard_error > 0.5 * scatter).all()
    assert (d.l2_squared_standard_error < 3.0 * scatter).all()


def test_shared_draws_cancel_the_common_noise():
    """Two estimators of one ensemble that differ by a constant differ without noise."""
    rng = np.random.default_rng(9)
    first = rng.standard_normal((10, 3, 20))
    second = first + 0.1
    d = distance(
        second.mean(axis=0),
        first.mean(axis=0),
        estimate_samples=resampled_means(second, samples=200, seed=1),
        reference_samples=resampled_means(first, samples=200, seed=1),
    )
    assert np.allclose(d.l2, 0.1 * np.sqrt(20)) and np.allclose(d.linf, 0.1)
    assert (d.l2_standard_error < 1e-12).all() and (d.noise < 1e-24).all()
    assert np.allclose(d.l2_corrected, d.l2)


def test_distance_to_a_known_reference_has_the_noise_of_one_side():
    rng = np.random.default_rng(10)
    x = rng.standard_normal((50, 1, 400))
    samples = resampled_means(x, samples=2000, seed=2)
    d = distance(x.mean(axis=0), np.zeros((1, 400)), estimate_samples=samples)
    assert np.allclose(d.noise, 400 / 50, rtol=0.05)
    with pytest.raises(ValueError, match="all need the same lags and places"):
        distance(x.mean(axis=0), np.zeros((1, 399)), estimate_samples=samples)


def test_a_level_that_is_no_probability_is_refused():
    with pytest.raises(UserError, match="response.error.level=95"):
        estimate(np.zeros((3, 1, 4)), np.ones((1, 4)), units=Units(3, 1, 1), level=95)
