"""Responses against exact answers: double loops, linear propagators, Gaussian identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.interfaces import UserError
from workflow.responses.correlation import block_bounds, lag_sums, pair_counts
from workflow.responses.gfdt import impulse_response
from workflow.responses.recalibration import (
    recalibrate,
    smoothed_stein,
    stein_error,
    stein_spectrum,
    unresolved_modes,
)
from workflow.responses.resampling import Units
from workflow.responses.statistics import estimate
from workflow.scores.closed_form import SpectralGaussian


def streamed(x, s, *, max_lag, block=None, x_mean=0.0, s_mean=0.0):
    length = x.shape[1]
    x, s = (x - x_mean)[:, :, None], (s - s_mean)[:, :, None]
    sums = sum(
        lag_sums(x[:, start:end], s[:, start:stop], max_lag=max_lag)[:, :, 0, 0]
        for start, stop, end in block_bounds(length, block or length, max_lag=max_lag)
    )
    pairs = pair_counts(0, length, length=length, max_lag=max_lag)
    return -sums / pairs.reshape(-1, *[1] * (x.ndim - 3))


def double_loop(x, s, *, max_lag):
    members, length, *shape = x.shape
    response = np.zeros((members, max_lag + 1, *shape))
    axes = tuple(range(2, x.ndim))
    for lag in range(max_lag + 1):
        for r in np.ndindex(*shape):
            moved = np.roll(x[:, lag:], [-i for i in r], axis=axes)
            products = moved * s[:, : length - lag]
            response[:, lag][(slice(None), *r)] = -products.mean(axis=(1, *axes))
    return response


def linear_field(*, members, length, size, seed):
    """Stationary linear field: mode k decays and travels, x_k(t+1) = g_k x_k(t) + noise.

    Returns the field, the variance C_k of its orthonormal modes and the factors g_k.
    """
    rng = np.random.default_rng(seed)
    k = 2 * np.pi * np.fft.fftfreq(size)
    variance = 1.0 / (1.0 + k[:, None] ** 2 + k[None, :] ** 2)
    shift = 0.3 * np.sin(k)[None, :] + 0.0 * k[:, None]
    factor = (0.9 - 0.05 * (k[:, None] ** 2 + k[None, :] ** 2)) * np.exp(-1j * shift)

    def noise(spectrum):
        white = rng.standard_normal((members, size, size))
        return np.fft.fft2(white, norm="ortho") * np.sqrt(spectrum)

    x_hat = noise(variance)
    run = np.empty((members, length, size, size))
    for time in range(length):
        run[:, time] = np.fft.ifft2(x_hat, norm="ortho").real
        x_hat = factor * x_hat + noise(variance * (1 - np.abs(factor) ** 2))
    return run, variance, factor


def per_mode(x, gain):
    return np.fft.ifft2(np.fft.fft2(x) * gain).real


@pytest.mark.parametrize("shape", [(8, 8), (5, 6), (7,), ()])
@pytest.mark.parametrize("block", [20, 7, 1])
def test_streamed_response_is_the_double_loop(shape, block):
    rng = np.random.default_rng(1)
    x, s = rng.standard_normal((2, 3, 20, *shape))
    expected = double_loop(x, s, max_lag=9)
    assert np.abs(streamed(x, s, max_lag=9, block=block) - expected).max() < 1e-10


def test_blocks_of_any_size_give_the_same_response():
    """Long enough for many windows and several partial sums."""
    rng = np.random.default_rng(2)
    x, s = rng.standard_normal((2, 2, 1500, 3, 4))
    whole = streamed(x, s, max_lag=5)
    expected = -np.einsum("mtyx,mtyx->m", x[:, 5:], s[:, :-5]) / (1495 * 12)
    assert np.abs(whole[:, 5, 0, 0] - expected).max() < 1e-12
    for block in (1, 13, 64, 700):
        assert np.abs(streamed(x, s, max_lag=5, block=block) - whole).max() < 1e-12


def test_means_are_subtracted_and_members_are_independent():
    rng = np.random.default_rng(3)
    x, s = rng.standard_normal((2, 4, 30, 6)) + 5.0
    together = streamed(x, s, max_lag=4, block=11, x_mean=5.0, s_mean=5.0)
    assert np.abs(together - double_loop(x - 5.0, s - 5.0, max_lag=4)).max() < 1e-10
    apart = [streamed(x[i : i + 2], s[i : i + 2], max_lag=4, x_mean=5, s_mean=5) for i in (0, 2)]
    assert np.abs(np.concatenate(apart) - together).max() < 1e-13


def test_rolling_the_responder_rolls_the_response():
    rng = np.random.default_rng(4)
    x, s = rng.standard_normal((2, 2, 40, 8, 8))
    moved = streamed(np.roll(x, (3, -2), axis=(2, 3)), s, max_lag=6)
    expected = np.roll(streamed(x, s, max_lag=6), (3, -2), axis=(2, 3))
    assert np.abs(moved - expected).max() < 1e-12
    both = streamed(np.roll(x, 3, axis=3), np.roll(s, 3, axis=3), max_lag=6)
    assert np.abs(both - streamed(x, s, max_lag=6)).max() < 1e-12


def test_float32_data_cost_single_precision_only():
    """Measured: 2e-8 where R is 1, 2e-9 where it is 0; a mean far above the spread is harmless."""
    x, variance, _ = linear_field(members=2, length=2000, size=16, seed=5)
    x, s = x.astype(np.float32), per_mode(x, -1 / variance).astype(np.float32)
    exact = streamed(x.astype(float), s.astype(float), max_lag=50)
    single = streamed(x, s, max_lag=50, block=512)
    assert single.dtype == np.float64
    assert np.abs(single - exact).max() < 1e-7
    offset = x + np.float32(300.0)
    centred = streamed(offset, s, max_lag=50, x_mean=300.0)
    exact = streamed(offset.astype(float), s.astype(float), max_lag=50, x_mean=300.0)
    assert np.abs(centred - exact).max() < 1e-7


def autoregression(*, members, length, decay, seed):
    rng = np.random.default_rng(seed)
    x, noise = np.empty((members, length)), rng.standard_normal((members, length))
    x[:, 0] = rng.standard_normal(members) / np.sqrt(1 - decay**2)
    for time in range(1, length):
        x[:, time] = decay * x[:, time - 1] + noise[:, time]
    return x, noise


def test_long_lags_are_unbiased():
    """At half the run a periodic or truncated estimator would lose one half (T10)."""
    x, noise = autoregression(members=4000, length=400, decay=0.995, seed=6)
    lag = np.array([0, 50, 100, 200])
    for conjugate, expected in ((-x, 0.995**lag / (1 - 0.995**2)), (-noise, 0.995**lag)):
        response = streamed(x, conjugate, max_lag=200)[:, lag]
        error = response.std(axis=0, ddof=1) / np.sqrt(4000)
        assert (np.abs(response.mean(axis=0) - expected) < 3 * error).all()
        assert error[-1] < 0.25 * expected[-1]


def test_response_of_a_linear_field_is_its_propagator():
    x, variance, factor = linear_field(members=256, length=60, size=8, seed=7)
    response = streamed(x, per_mode(x, -1 / variance), max_lag=12)
    lag = np.arange(13)[:, None, None]
    expected = np.fft.ifft2(factor**lag).real
    units = Units(256, blocks=1, moving=1)
    found = estimate(response[:, None], np.ones((1, 13)), units=units, samples=400, seed=1)
    assert (np.abs(found.value - expected) < 4 * found.standard_error).all()


def test_gaussian_score_gives_the_ratio_of_lagged_covariances():
    x, variance, _ = linear_field(members=4, length=50, size=6, seed=8)
    x_hat = np.fft.fft2(x, norm="ortho")
    variance = (np.abs(x_hat) ** 2).mean(axis=(0, 1))
    lagged = np.stack([(x_hat[:, t:] * x_hat[:, : 50 - t].conj()).mean((0, 1)) for t in range(11)])
    response = streamed(x, per_mode(x, -1 / variance), max_lag=10).mean(axis=0)
    assert np.abs(np.fft.fft2(response) - lagged / variance).max() < 1e-10
    identity = np.zeros((6, 6))
    identity[0, 0] = 1.0
    assert np.abs(response[0] - identity).max() < 1e-12


def test_a_smoothed_score_is_repaired_exactly():
    """The score at noise level sigma: raw C/(C + sigma^2), recalibrated C(t)/C(0) (T14)."""
    x, _, _ = linear_field(members=4, length=50, size=6, seed=9)
    x_hat = np.fft.fft2(x, norm="ortho")
    variance = (np.abs(x_hat) ** 2).mean(axis=(0, 1))
    lagged = np.stack([(x_hat[:, t:] * x_hat[:, : 50 - t].conj()).mean((0, 1)) for t in range(11)])
    score = per_mode(x, -1 / (variance + 0.5**2))
    raw = streamed(x, score, max_lag=10).mean(axis=0)
    assert np.abs(stein_spectrum(raw, space=2) - smoothed_stein(variance, 0.5)).max() < 1e-8
    repaired = recalibrate(raw, space=2)
    assert not repaired.unresolved.any() and not repaired.refused
    assert np.abs(np.fft.fft2(repaired.response) - lagged / variance).max() < 1e-8
    assert stein_error(repaired.response, space=2) < 1e-12 < stein_error(raw, space=2)


def test_an_affine_change_of_units_changes_no_response():
    """c u + m is the same equation with noise c epsilon; its exact score knows that (T13)."""
    generator = torch.Generator().manual_seed(12)
    system = OrnsteinUhlenbeck(grid=8)
    state, saved = system.initial(torch.randn(3, 8, 8, generator=generator).double()), []
    for _ in range(30):
        noise = torch.randn(3, *system.noise_shape, generator=generator).double()
        state = system.step(state, noise)
        saved.append(system.observe(state)[:, 0])
    x, c, m = torch.stack(saved, dim=1), 0.02, 40.0

    def responded(system, y, mean):
        s = system.exact_score((y - mean).reshape(-1, 1, 8, 8)).reshape(y.shape)
        return streamed(y, s, max_lag=9, x_mean=mean)

    changed = responded(OrnsteinUhlenbeck(grid=8, epsilon=c * system.epsilon), c * x + m, m)
    assert np.abs(changed - responded(system, x, 0.0)).max() < 1e-8


def test_units_of_each_field_change_the_response_as_a_matrix():
    """y_i = c_i x_i + m_i answers with T R T^-1 (T13), the score being fitted anew."""
    x, _, _ = linear_field(members=2, length=30, size=6, seed=12)
    other, _, _ = linear_field(members=2, length=30, size=6, seed=13)
    fields = np.stack([x, 0.5 * other + np.roll(x, 1, axis=3)], axis=2)
    scale = np.array([3.0, 0.02])
    shift = np.array([-7.0, 40.0])[:, None, None]

    def responses(y):
        flat = torch.from_numpy(y).flatten(0, 1)
        s = SpectralGaussian.fit(flat)(flat).reshape(y.shape).numpy()
        means = y.mean(axis=(0, 1, 3, 4))
        return np.array(
            [
                [streamed(y[:, :, i], s[:, :, j], max_lag=5, x_mean=means[i]) for j in (0, 1)]
                for i in (0, 1)
            ]
        )

    expected = responses(fields) * (scale[:, None] / scale[None, :]).reshape(2, 2, 1, 1, 1, 1)
    changed = responses(fields * scale[:, None, None] + shift)
    np.testing.assert_allclose(changed, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def circulant(kernel):
    """Matrix M[i, j] of the displacement kernel M(i - j), pixels flattened."""
    shape = kernel.shape
    if not shape:
        return kernel.reshape(1, 1)
    columns = [np.roll(kernel, j, axis=tuple(range(kernel.ndim))) for j in np.ndindex(*shape)]
    return np.stack([c.ravel() for c in columns], axis=1)


@pytest.mark.parametrize("shape", [(4, 6), (5, 3), (7,), ()])
def test_circulant_recalibration_is_the_dense_inverse(shape):
    rng = np.random.default_rng(10)
    raw = 0.05 * rng.standard_normal((3, 4, *shape))
    raw[(slice(None), 0, *[0] * len(shape))] += 1.0
    repaired = recalibrate(raw, space=len(shape)).response
    for sample in range(3):
        inverse = np.linalg.inv(circulant(raw[sample, 0]))
        for lag in range(4):
            dense = circulant(raw[sample, lag]) @ inverse
            assert np.abs(circulant(repaired[sample, lag]) - dense).max() < 1e-8
    stein = stein_spectrum(raw, space=len(shape))
    late = recalibrate(raw[:, 2:], space=len(shape), stein=stein).response
    assert np.abs(late - repaired[:, 2:]).max() < 1e-12


def test_modes_that_the_score_cannot_see_are_left_alone():
    """A score blind to some modes must not have its noise divided by its noise."""
    x, variance, _ = linear_field(members=64, length=40, size=8, seed=11)
    blind = np.zeros((8, 8), dtype=bool)
    blind[4, :], blind[:, 4] = True, True
    noise = np.random.default_rng(0).standard_normal(x.shape)
    score = per_mode(x, np.where(blind, 0.0, -1 / variance)) + 0.01 * per_mode(noise, blind)
    response = streamed(x, score, max_lag=3)
    unresolved = unresolved_modes(response, space=2)
    assert (unresolved == blind).all()
    raw = response.mean(axis=0)
    repaired = recalibrate(raw, space=2, unresolved=unresolved)
    spectrum, before = np.fft.fft2(repaired.response), np.fft.fft2(raw)
    assert np.abs(spectrum[:, blind] - before[:, blind]).max() < 1e-12
    assert np.abs(spectrum[0, ~blind] - 1.0).max() < 1e-12


def test_a_hopeless_score_is_not_repaired():
    raw = np.full((2, 3), 0.01)
    raw[1] = 0.5
    none = np.zeros((), dtype=bool)
    repaired = recalibrate(raw, space=0, unresolved=none)
    assert repaired.refused.tolist() == [True, False]
    assert (repaired.response == [[0.01] * 3, [1.0] * 3]).all()


def labelled(values):
    dims = ("member", "time", "y", "x")[: values.ndim]
    return xr.DataArray(values, dims=dims, coords={"time": 3.0 + 0.5 * np.arange(values.shape[1])})


def test_labels_say_where_and_when():
    rng = np.random.default_rng(13)
    x, s = rng.standard_normal((2, 2, 30, 4, 5))
    response = impulse_response(labelled(x), labelled(s), max_lag=3, centre=False)
    assert response.dims == ("member", "lag", "dy", "dx")
    assert response.lag.values.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert response.dy.values.tolist() == [-2, -1, 0, 1]
    assert response.dx.values.tolist() == [-2, -1, 0, 1, 2]
    expected = double_loop(x, s, max_lag=3)
    for dy in (-2, 0, 1):
        for dx in (-2, 0, 2):
            got = response.sel(dy=dy, dx=dx).values
            assert np.abs(got - expected[:, :, dy, dx]).max() < 1e-12
    scalar = impulse_response(labelled(x[:, :, 0, 0]), labelled(s[:, :, 0, 0]), max_lag=3)
    assert scalar.dims == ("member", "lag")


def test_lags_and_blocks_that_do_not_fit_are_refused():
    x = np.zeros((2, 10, 4))
    with pytest.raises(UserError, match="max_lag=50 needs more than the 10 saved samples"):
        impulse_response(labelled(x), labelled(x), max_lag=50)
    with pytest.raises(ValueError, match="evaluate the score at the same members"):
        impulse_response(labelled(x), labelled(x[:, :9]), max_lag=2)
