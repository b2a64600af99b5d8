"""Resamples of members and of time against the known scatter of white and coloured series."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from workflow.interfaces import UserError
from workflow.responses.resampling import (
    Units,
    autocorrelation_time,
    jackknife_weights,
    moving_blocks,
    ratio,
    resampling_units,
    unit_weights,
)

MEMBERS, STRETCHES, WRAPPED = Units(7, 3, 3), Units(1, 40, 4), Units(3, 10, 4)


def coloured(members, length, decay, seed):
    """Unit-variance AR(1), rho(t) = decay^t, `(member, time)`."""
    noise = np.random.default_rng(seed).standard_normal((members, length))
    noise *= np.sqrt(1 - decay**2)
    noise[:, 0] /= np.sqrt(1 - decay**2)
    return lfilter([1.0], [1.0, -decay], noise, axis=1)


def block_sums(series, block):
    """S `(member, block, 1)` and n `(block, 1)`; the last block may be shorter."""
    edges = np.arange(0, series.shape[1], block)
    sums = np.add.reduceat(series, edges, axis=1)[..., None]
    return sums, np.diff(np.append(edges, series.shape[1])).astype(float)[:, None]


@pytest.mark.parametrize("units", [MEMBERS, STRETCHES, WRAPPED, Units(1, 41, 4)])
def test_weights_are_means_and_shared_by_equal_seeds(units):
    weights = unit_weights(units, samples=50, seed=3)
    assert weights.shape == (50, units.members * units.blocks)
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert (weights == unit_weights(units, samples=50, seed=3)).all()
    assert (weights != unit_weights(units, samples=50, seed=4)).any()


@pytest.mark.parametrize("units", [MEMBERS, STRETCHES, WRAPPED, Units(1, 41, 4)])
def test_no_unit_is_drawn_less_than_another(units):
    """Without the wrap the ends of a run would hardly count, and the mean would be biased."""
    weights = unit_weights(units, samples=20000, seed=1)
    error = weights.std(axis=0, ddof=1) / np.sqrt(20000)
    assert (np.abs(weights.mean(axis=0) - 1 / weights.shape[1]) < 4.5 * error).all()


def test_members_are_drawn_whole():
    weights = unit_weights(MEMBERS, samples=20, seed=1).reshape(20, 7, 3)
    assert (weights == weights[..., :1]).all()
    assert MEMBERS.by == "member" and STRETCHES.by == "time"


@pytest.mark.parametrize("members", [2, 3, 16])
def test_variance_of_a_mean_over_members_is_the_unbiased_one(members):
    """Drawing all members instead would give (m - 1) / m of it: half for two."""
    x = np.random.default_rng(1).standard_normal((members, 1, 5)) + 1e6
    weights = unit_weights(Units(members, 1, 1), samples=20000, seed=2)
    error = ratio(x, np.ones((1, 5)), weights).std(axis=0, ddof=1)
    # Relative error of a standard deviation from 20000 draws: below 1 %, 4 of them below 4 %.
    assert np.allclose(error, x[:, 0].std(axis=0, ddof=1) / np.sqrt(members), rtol=0.04)


@pytest.mark.parametrize("units", [Units(1, 40, 1), STRETCHES, WRAPPED, Units(1, 21, 4)])
def test_variance_of_a_mean_over_white_blocks_is_unbiased(units):
    """Over many runs; K / (K - 1) is undone for any stretch, also one that does not divide."""
    size = units.members * units.blocks
    weights = unit_weights(units, samples=1000, seed=1)
    runs = np.random.default_rng(2).standard_normal((size, 4000))
    variance = (weights @ runs).var(axis=0, ddof=1)
    error = np.hypot(variance.std() / np.sqrt(4000), variance.mean() * np.sqrt(2 / 1000))
    assert abs(variance.mean() - 1 / size) < 4 * error
    # The scatter of the variance is that of chi-squared with the degrees of freedom.
    freedom = 2 * (variance.mean() / variance.std()) ** 2
    assert freedom == pytest.approx(units.degrees_of_freedom, rel=0.12)


def test_degrees_of_freedom_are_those_of_batches():
    """Members - 1; K - 1 without overlap; 1.5 as many with (overlapping batch means)."""
    assert MEMBERS.degrees_of_freedom == pytest.approx(6)
    assert Units(1, 30, 1).degrees_of_freedom == pytest.approx(29)
    assert Units(1, 2000, 50).degrees_of_freedom == pytest.approx(1.5 * 40, rel=0.03)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_ar1(decay):
    """tau = (1 + decay) / (1 - decay), for many members and for one run."""
    expected = (1 + decay) / (1 - decay)
    for members, length in ((64, 1000), (1, 64000)):
        series = coloured(members, length, decay, seed=3)
        # Relative error sqrt(2 (2 W + 1) / N), W = 2.5 tau (Wolff 2004, equation 42).
        error = expected * np.sqrt(2 * (5 * expected + 1) / (members * length))
        assert abs(autocorrelation_time(series) - expected) < 4 * error + 0.01 * expected
    assert autocorrelation_time(np.full((2, 50), 3.3)) == 1.0


@pytest.mark.parametrize(("members", "block"), [(1, 5), (1, 20), (1, 60), (4, 20)])
def test_stretches_hold_three_autocorrelation_times_whatever_the_block(members, block):
    """Block sums hide part of the correlation; the stretch must not shrink with it."""
    tau = (1 + 0.9) / (1 - 0.9)
    sums, pairs = block_sums(coloured(members, 2400 // members, 0.9, seed=4), block)
    stretch = block * moving_blocks(sums, pairs)
    assert stretch > 0.7 * 3 * tau
    assert stretch <= block + max(2 * 3 * tau, 2400 / 20)


def test_long_runs_get_longer_stretches_not_more_of_them():
    sums, pairs = block_sums(coloured(1, 100_000, 0.9, seed=5), 100)
    units = resampling_units(sums, pairs)
    assert units == Units(1, 1000, 50, units.inflation)
    assert 1.0 <= units.inflation < 1.01


def test_few_members_are_resampled_in_time_and_many_as_they_are():
    sums, pairs = block_sums(coloured(8, 1000, 0.5, seed=6), 50)
    assert resampling_units(sums, pairs).by == "member"
    assert resampling_units(sums, pairs, by="time").by == "time"
    few = resampling_units(sums[:4], pairs)
    assert few.by == "time" and few.degrees_of_freedom > 20
    # One block each: nothing but members is there to be drawn.
    assert resampling_units(sums[:3].sum(axis=1, keepdims=True), pairs[:1]) == Units(3, 1, 1)


def test_too_short_a_run_is_refused_and_its_advice_suffices():
    series = coloured(1, 20_000, 0.99, seed=7)  # tau = 199
    sums, pairs = block_sums(series[:, :2000], 100)
    with pytest.raises(UserError, match="raise ensemble.length to [0-9]+ samples") as refusal:
        resampling_units(sums, pairs)
    advised = int(str(refusal.value).split("ensemble.length to ")[1].split()[0])
    assert 2000 < advised < 20_000
    assert resampling_units(*block_sums(series, 100)).by == "time"
    with pytest.raises(UserError, match="ensemble.members=1: resampling members needs at least 2"):
        resampling_units(sums, pairs, by="member")


@pytest.mark.parametrize("complex_sums", [False, True])
def test_ratio_is_weighted_sums_over_weighted_counts(complex_sums):
    rng = np.random.default_rng(8)
    sums = rng.standard_normal((2, 3, 4, 5)) + (1j if complex_sums else 0)
    pairs = rng.integers(1, 9, size=(3, 4)).astype(float)
    weights = rng.random((6, 6))
    loop = np.zeros((6, 4, 5), dtype=sums.dtype)
    for sample, w in enumerate(weights.reshape(6, 2, 3)):
        for lag in range(4):
            total = sum(w[m, b] * sums[m, b, lag] for m in range(2) for b in range(3))
            loop[sample, lag] = total / sum(
                w[m, b] * pairs[b, lag] for m in (0, 1) for b in range(3)
            )
    assert np.abs(ratio(sums, pairs, weights) - loop).max() < 1e-12
    whole = sums.sum(axis=(0, 1)) / (2 * pairs.sum(axis=0))[:, None]
    assert np.abs(ratio(sums, pairs) - whole).max() < 1e-12


def test_a_lag_that_a_resample_cannot_see_is_refused():
    pairs = np.array([[4.0, 4.0], [4.0, 0.0]])
    with pytest.raises(UserError, match="lag 1 has no pair of samples in some resamples"):
        ratio(np.zeros((1, 2, 2)), pairs, np.array([[0.0, 1.0], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="weights for 4 units"):
        ratio(np.zeros((1, 2, 2)), pairs, np.zeros((3, 4)))


@pytest.mark.parametrize("units", [MEMBERS, STRETCHES, WRAPPED, Units(1, 41, 4)])
def test_jackknife_leaves_every_unit_out_once(units):
    left_out = jackknife_weights(units) == 0
    assert (left_out.sum(axis=0) == 1).all() and (left_out.sum(axis=1) >= 1).all()
    assert np.allclose(jackknife_weights(units).sum(axis=1), 1.0)


def test_nothing_to_resample_is_refused():
    with pytest.raises(UserError, match="ensemble.members=1 with 1 blocks of time"):
        Units(1, 1, 1)
    with pytest.raises(UserError, match="response.error.samples=1: an error bar needs at least 2"):
        unit_weights(MEMBERS, samples=1, seed=0)
