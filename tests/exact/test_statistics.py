"""Error bars and distances against the known scatter of Gaussian ensembles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from workflow.interfaces import UserError
from workflow.responses import statistics
from workflow.responses.correlation import lag_sums, pair_counts
from workflow.responses.recalibration import recalibrate
from workflow.responses.statistics import (
    bootstrap,
    distance,
    member_weights,
    resampled_means,
)


def test_weights_are_means_and_shared_by_equal_seeds():
    weights = member_weights(7, samples=50, seed=3)
    assert weights.shape == (50, 7)
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert (weights == member_weights(7, samples=50, seed=3)).all()
    assert (weights != member_weights(7, samples=50, seed=4)).any()


@pytest.mark.parametrize("members", [2, 3, 16])
def test_standard_error_of_a_mean_is_the_unbiased_one(members):
    """Drawing all members instead would give sqrt((m - 1) / m) of it: 0.71 for two."""
    x = np.random.default_rng(1).standard_normal((members, 5)) + 1e6
    estimate = bootstrap(x, samples=20000, seed=2)
    expected = x.std(axis=0, ddof=1) / np.sqrt(members)
    # Relative error of a standard deviation from 20000 draws: below 1 %, 4 of them below 4 %.
    assert np.allclose(estimate.standard_error, expected, rtol=0.04)
    assert np.allclose(estimate.value, x.mean(axis=0), rtol=1e-15)


def test_chunks_of_resamples_change_nothing(monkeypatch):
    response = np.random.default_rng(4).standard_normal((6, 3, 4, 4)) * 0.01
    response[:, 0, 0, 0] += 1.0

    def repaired(means):
        return recalibrate(means, space=2).response

    whole = bootstrap(response, repaired, samples=100, seed=5)
    monkeypatch.setattr(statistics, "_CHUNK_NUMBERS", 7 * response[0].size)
    chunked = bootstrap(response, repaired, samples=100, seed=5)
    assert np.abs(chunked.standard_error - whole.standard_error).max() < 1e-12
    # Lag 0 of a recalibrated response is the identity in every resample.
    assert whole.standard_error[0].max() < 1e-12 < whole.standard_error[1].min()


def ou_runs(runs, length, decay, rng):
    """Unit-variance OU at its saved times, `(run, time)`."""
    noise = rng.standard_normal((runs, length)) * np.sqrt(1 - decay**2)
    noise[:, 0] /= np.sqrt(1 - decay**2)
    return lfilter([1.0], [1.0, -decay], noise, axis=1)


@pytest.mark.parametrize("members", [4, 32])
@pytest.mark.parametrize("recalibrated", [False, True])
def test_intervals_of_95_percent_cover_the_ou_propagator(members, recalibrated):
    """Score of unit-variance OU is -x, so R(t) = exp(-A t) (T19)."""
    rate, step, replicas, max_lag = 1.0, 0.2, 200, 10
    rng = np.random.default_rng(7)
    x = ou_runs(replicas * members, 200, np.exp(-rate * step), rng)
    sums = lag_sums(x[:, :, None], x[:, :, None], max_lag=max_lag)[:, :, 0, 0]
    per_member = sums / pair_counts(0, 200, length=200, max_lag=max_lag)
    responses = per_member.reshape(replicas, members, max_lag + 1)
    expected = np.exp(-rate * step * np.arange(max_lag + 1))

    def repaired(means):
        return recalibrate(means, space=0, unresolved=np.zeros((), dtype=bool)).response

    covered = []
    for replica, response in enumerate(responses):
        statistic = repaired if recalibrated else None
        estimate = bootstrap(response, statistic, samples=200, seed=replica)
        inside = (estimate.low <= expected) & (expected <= estimate.high)
        covered.append(inside[1:])
    # All lags together: one lag alone scatters by 1.5 % over 200 replicas.
    assert 0.90 <= np.mean(covered) <= 0.98
    assert (np.mean(covered, axis=0) > 0.88).all()


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
            estimate_samples=resampled_means(model, member_weights(6, samples=50, seed=replica)),
            reference_samples=resampled_means(
                truth, member_weights(8, samples=50, seed=10_000 + replica)
            ),
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
    weights = member_weights(10, samples=200, seed=1)
    d = distance(
        second.mean(axis=0),
        first.mean(axis=0),
        estimate_samples=resampled_means(second, weights),
        reference_samples=resampled_means(first, weights),
    )
    assert np.allclose(d.l2, 0.1 * np.sqrt(20)) and np.allclose(d.linf, 0.1)
    assert (d.l2_standard_error < 1e-12).all() and (d.noise < 1e-24).all()
    assert np.allclose(d.l2_corrected, d.l2)


def test_distance_to_a_known_reference_has_the_noise_of_one_side():
    rng = np.random.default_rng(10)
    x = rng.standard_normal((50, 1, 400))
    samples = resampled_means(x, member_weights(50, samples=2000, seed=2))
    d = distance(x.mean(axis=0), np.zeros((1, 400)), estimate_samples=samples)
    assert np.allclose(d.noise, 400 / 50, rtol=0.05)
    with pytest.raises(ValueError, match="all need the same lags and places"):
        distance(x.mean(axis=0), np.zeros((1, 399)), estimate_samples=samples)


def test_error_bars_without_members_are_refused():
    with pytest.raises(UserError, match="ensemble.members=1: an error bar needs at least 2"):
        bootstrap(np.zeros((1, 4)))
    with pytest.raises(UserError, match="response.error.level=95"):
        bootstrap(np.zeros((3, 4)), level=95)
    with pytest.raises(ValueError, match="3 members with weights for 4"):
        resampled_means(np.zeros((3, 2)), member_weights(4, samples=5, seed=0))
