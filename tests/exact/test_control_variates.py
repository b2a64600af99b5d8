"""Control variates against the variances that linear systems leave, and their honesty."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.signal import lfilter

from workflow.interfaces import UserError
from workflow.responses.control_variates import control, control_by_stein
from workflow.responses.resampling import Units, ratio, resampling_units
from workflow.responses.statistics import estimate

STEP, LAGS = 0.25, 8
EXACT = np.exp(-STEP * np.arange(LAGS + 1))


def scalar_runs(members, length, seed):
    """Unit-variance, unit-rate OU `(member, time)`; its exact score is -x."""
    decay = np.exp(-STEP)
    noise = np.random.default_rng(seed).standard_normal((members, length)) * np.sqrt(1 - decay**2)
    noise[:, 0] /= np.sqrt(1 - decay**2)
    return lfilter([1.0], [1.0, -decay], noise, axis=1)


def sums_of(x, score, *, block):
    """S `(member, block, lag)` of -x(t + lag) s(t), and n `(block, lag)`."""
    members, length = x.shape
    blocks = length // block
    products = np.zeros((members, LAGS + 1, length))
    for lag in range(LAGS + 1):
        products[:, lag, : length - lag] = -x[:, lag:] * score[:, : length - lag]
    valid = np.arange(length) + np.arange(LAGS + 1)[:, None] < length
    sums = products.reshape(members, LAGS + 1, blocks, block).sum(axis=-1).swapaxes(1, 2)
    return sums, valid.reshape(LAGS + 1, blocks, block).sum(axis=-1).T.astype(float)


def controlled(sums, pairs, units):
    channels = sums[..., None, None]
    found = control_by_stein(channels, pairs, lag_zero=channels[:, :, 0], space=0, units=units)
    return found.sums[..., 0, 0], found.coefficients[0, :, 0, 0]


def test_variances_are_those_of_the_closed_form():
    """Long runs; in units of 2 Var M they are 1 +- (1 + 2 l) q and 1 - (1 + 2 l + 2 l^2) q."""
    sums, pairs = sums_of(*[scalar_runs(4000, 2000, 1)] * 2, block=2000)
    sums = -sums
    response = sums[:, 0] / pairs[0]
    corrected, beta = controlled(sums, pairs, Units(4000, 1, 1))
    scaled = STEP * np.arange(LAGS + 1)
    q = np.exp(-2 * scaled)
    # Sums over samples instead of integrals: x coth x of the integral, x = 0.25.
    unit = 0.25 / np.tanh(0.25) / (2000 * STEP)
    ways = {
        "raw": (response, 1 + (1 + 2 * scaled) * q),
        "ratio": (response - EXACT * (response[:, :1] - 1), 1 - (1 + 2 * scaled) * q),
        "best": (corrected[:, 0] / pairs[0], 1 - (1 + 2 * scaled + 2 * scaled**2) * q),
    }
    for name, (values, expected) in ways.items():
        # 4 standard errors of a variance of 4000 are 9 %; edges and sums of samples add 5 %.
        measured = values.var(axis=0, ddof=1)[4:] / unit
        assert np.allclose(measured, expected[4:], rtol=0.14), name
    assert np.allclose(beta[1:], ((1 + scaled) * np.exp(-scaled))[1:], atol=0.08)


@pytest.mark.parametrize(("members", "length", "block"), [(32, 200, 200), (1, 4000, 20)])
def test_intervals_still_cover_and_are_narrower(members, length, block):
    """200 replicas with the exact score; coefficients and their noise are part of each (T19)."""
    inside, widths, values = [], [], []
    runs = scalar_runs(200 * members, length, 2).reshape(200, members, length)
    for replica, x in enumerate(runs):
        sums, pairs = sums_of(x, -x, block=block)
        units = resampling_units(sums, pairs)
        corrected, _ = controlled(sums, pairs, units)
        common = {"units": units, "samples": 200, "seed": replica}
        found = estimate(corrected, pairs, **common)
        divided = estimate(sums, pairs, lambda r: r / r[:, :1], **common)
        inside.append((found.low <= EXACT) & (found.high >= EXACT))
        widths.append(found.standard_error / np.maximum(divided.standard_error, 1e-300))
        values.append(found.value)
    assert 0.90 <= np.mean(np.array(inside)[:, 1:]) <= 0.98
    assert (np.mean(inside, axis=0)[1:] > 0.88).all()
    error = np.std(values, axis=0, ddof=1) / np.sqrt(200)
    assert (np.abs(np.mean(values, axis=0) - EXACT)[1:] < 4 * error[1:]).all()
    narrower = np.mean(widths, axis=0)[1:]
    assert (narrower[:4] < 0.85).all() and (narrower < 1.02).all()


def test_useless_controls_cost_nothing_and_move_nothing():
    """Shrinkage; unshrunk coefficients of 3 controls in 32 units would add 12 % of variance."""
    rng = np.random.default_rng(3)
    before, after = [], []
    for _ in range(600):
        sums = rng.standard_normal((32, 1, 4))
        corrected = control(
            sums,
            np.ones((1, 4)),
            rng.standard_normal((32, 1, 3)),
            units=Units(32, 1, 1),
        ).sums
        before.append(sums.mean(axis=(0, 1)))
        after.append(corrected.mean(axis=(0, 1)))
    assert np.var(after) / np.var(before) < 1.06
    difference = np.array(after) - before
    assert (np.abs(difference.mean(axis=0)) < 4 * difference.std(axis=0) / np.sqrt(600)).all()


def test_lag_zero_becomes_the_identity_it_is():
    sums, pairs = sums_of(*[scalar_runs(16, 100, 4)] * 2, block=100)
    corrected, beta = controlled(-sums, pairs, Units(16, 1, 1))
    assert ratio(corrected, pairs)[0] == pytest.approx(1.0, abs=1e-12)
    assert beta[0] == pytest.approx(1.0, abs=1e-12)


def test_a_score_that_is_not_exact_is_not_repaired():
    """Bias (R - beta) (M - 1) with M = 1.2: why control variates are for the exact score only."""
    x = scalar_runs(2000, 400, 5)
    sums, pairs = sums_of(x, -1.2 * x, block=400)
    corrected, beta = controlled(sums, pairs, Units(2000, 1, 1))
    value, plain = ratio(corrected, pairs), ratio(sums, pairs)
    expected = plain - beta * (plain[0] - 1)
    assert np.allclose(value, expected, atol=1e-3)
    assert (np.abs(value - EXACT)[3:] > 0.04).all()
    assert np.abs(plain / plain[0] - EXACT).max() < 0.01


def test_matrices_are_controlled_by_the_column_of_the_kicked_variable():
    """Three coupled variables: every entry keeps its expectation, and short lags gain."""
    rate = np.array([[1.0, 0.8, 0.0], [-0.3, 0.8, 0.5], [0.2, -0.4, 1.1]])
    # Noise that makes the covariance the identity: D = A + A^T.
    propagator = expm(-rate * STEP)
    spread = np.linalg.cholesky(np.eye(3) - propagator @ propagator.T)
    rng = np.random.default_rng(6)
    x = np.empty((320, 400, 3))
    x[:, 0] = rng.standard_normal((320, 3))
    for time in range(1, 400):
        x[:, time] = x[:, time - 1] @ propagator.T + rng.standard_normal((320, 3)) @ spread.T
    sums = np.stack([x[:, lag:].swapaxes(1, 2) @ x[:, : 400 - lag] for lag in range(4)], axis=1)
    sums, pairs = sums[:, None], 400.0 - np.arange(4)[None]
    units = Units(320, 1, 1)
    found = control_by_stein(sums, pairs, lag_zero=sums[:, :, 0], space=0, units=units)
    truth = np.stack([np.linalg.matrix_power(propagator, lag) for lag in range(4)])
    better = estimate(found.sums, pairs, units=units, samples=400, seed=1)
    divided = estimate(
        sums, pairs, lambda r: r @ np.linalg.inv(r[:, :1]), units=units, samples=400, seed=1
    )
    assert np.abs(better.value[0] - np.eye(3)).max() < 1e-10
    assert (np.abs(better.value - truth)[1:] < 4.5 * better.standard_error[1:]).all()
    assert (better.standard_error[1:] < 1.03 * divided.standard_error[1:]).all()
    gain = (better.standard_error**2)[1:].sum() / (divided.standard_error**2)[1:].sum()
    assert gain < 0.7


def test_fields_are_controlled_per_wavenumber():
    """White noise in space and OU in time: real sums, equivariant under shifts of the field."""
    rng = np.random.default_rng(7)
    x = lfilter([1.0], [1.0, -0.8], rng.standard_normal((24, 200, 6, 5)), axis=1) * 0.6
    x_hat = np.fft.fft2(x)
    lagged = [(x_hat[:, lag:] * x_hat[:, : 200 - lag].conj()).sum(axis=1) / 30 for lag in range(5)]
    sums = np.fft.ifft2(np.stack(lagged, axis=1)).real[:, None, :, None, None]
    pairs, units = 200.0 - np.arange(5)[None], Units(24, 1, 1)

    def run(values, zero):
        return control_by_stein(values, pairs, lag_zero=zero, space=2, units=units).sums

    plain = run(sums, sums[:, :, 0])
    assert plain.dtype == np.float64 and plain.shape == sums.shape
    rolled = run(np.roll(sums, (2, -1), axis=(-2, -1)), sums[:, :, 0])
    assert np.abs(rolled - np.roll(plain, (2, -1), axis=(-2, -1))).max() < 1e-10
    identity = np.zeros((6, 5))
    identity[0, 0] = 1.0
    assert np.abs(ratio(plain, pairs)[0, 0, 0] - identity).max() < 1e-12
    noise = (ratio(plain, pairs) - ratio(sums, pairs))[1:3]
    assert np.abs(noise).max() > 1e-4


def test_too_few_units_for_the_controls_are_refused():
    with pytest.raises(UserError, match="3 control variates with 20 independent units: need 8"):
        control(np.zeros((20, 1, 2)), np.ones((1, 2)), np.zeros((20, 1, 3)), units=Units(20, 1, 1))
    with pytest.raises(ValueError, match="needs \\(member, block, control"):
        control(np.zeros((20, 1, 2)), np.ones((1, 2)), np.zeros((20, 3)), units=Units(20, 1, 1))
