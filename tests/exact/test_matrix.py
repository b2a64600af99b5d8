"""Full response matrices: exact propagators, circulant limits, ill-conditioned scores."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from workflow.interfaces import UserError
from workflow.responses import matrix as matrix_module
from workflow.responses.correlation import lag_sums, pair_counts
from workflow.responses.gfdt import impulse_response
from workflow.responses.matrix import matrix_bytes, recalibrated_matrix, response_matrix
from workflow.responses.recalibration import recalibrate


def labelled(values, step=0.5):
    dims = ("member", "time", *("y", "x")[4 - values.ndim :])
    return xr.DataArray(values, dims=dims, coords={"time": step * np.arange(values.shape[1])})


def covariance_loop(x, s, *, max_lag):
    """One covariance per lag about the means over the whole run."""
    x = (x - x.mean((0, 1))).reshape(*x.shape[:2], -1)
    s = (s - s.mean((0, 1))).reshape(*s.shape[:2], -1)
    length = x.shape[1]
    pairs = x.shape[0] * (length - np.arange(max_lag + 1))
    return np.stack(
        [
            -np.einsum("mti,mtj->ij", x[:, lag:], s[:, : length - lag]) / pairs[lag]
            for lag in range(max_lag + 1)
        ]
    )


@pytest.mark.parametrize("shape", [(9,), (3, 4)])
@pytest.mark.parametrize("block_numbers", [1 << 25, 400, 1])
def test_the_streamed_matrix_is_a_covariance_per_lag(shape, block_numbers, monkeypatch):
    monkeypatch.setattr(matrix_module, "_BLOCK_NUMBERS", block_numbers)
    rng = np.random.default_rng(1)
    x, s = rng.standard_normal((2, 3, 90, *shape)) + 2.0
    lazy = [labelled(v).chunk({"time": 25, "member": 2}) for v in (x, s)]
    for given in ((labelled(x), labelled(s)), lazy):
        found = response_matrix(*given, max_lag=6, recalibrate=False)
        got = found.response.values.reshape(7, np.prod(shape), -1)
        assert np.abs(got - covariance_loop(x, s, max_lag=6)).max() < 1e-10
    space = found.response.dims[1 : 1 + len(shape)]
    assert found.response.dims == ("lag", *space, *(f"{name}_kicked" for name in space))
    assert np.allclose(found.lag, 0.5 * np.arange(7))


def test_the_matrix_of_an_inhomogeneous_linear_system_is_its_propagator():
    """x(t+1) = A x(t) + noise has score -C^-1 x and R(lag) = A^lag, A not symmetric."""
    rng = np.random.default_rng(2)
    size, members, length, max_lag = 5, 16, 4000, 6
    a = np.diag([0.9, 0.6, 0.8, 0.3, 0.7]) + np.diag([0.3, -0.2, 0.1, 0.2], 1)
    variance = np.diag([0.5, 1.0, 2.0, 1.0, 0.2])
    c = scipy.linalg.solve_discrete_lyapunov(a, variance)
    x = np.empty((members, length, size))
    state = rng.standard_normal((members, size)) @ np.linalg.cholesky(c).T
    for t in range(length):
        x[:, t] = state
        state = state @ a.T + rng.standard_normal((members, size)) * np.sqrt(np.diag(variance))
    s = -x @ np.linalg.inv(c)
    expected = np.stack([np.linalg.matrix_power(a, lag) for lag in range(max_lag + 1)])
    found = response_matrix(labelled(x), labelled(s), max_lag=max_lag)
    pairs = pair_counts(0, length, length=length, max_lag=max_lag)[:, None, None]
    per_member = -lag_sums(x, s, max_lag=max_lag) / pairs
    error = per_member.std(0, ddof=1) / np.sqrt(members)
    assert (np.abs(found.response_raw - expected) < 5 * error).all()
    # Centred with the mean of the whole run: 0.1 of a standard error.
    assert (np.abs(per_member.mean(0) - found.response_raw) < error).all()
    assert np.abs(found.response[0] - np.eye(size)).max() < 1e-10
    assert (np.abs(found.response[1:] - expected[1:]) < 5 * error[1:] + 0.002).all()
    assert found.recalibrated == 1
    stein = found.response_raw.values[0] - np.eye(size)
    assert found.stein_error == pytest.approx(np.linalg.norm(stein) / np.sqrt(size))


def test_the_mean_over_places_of_the_matrix_is_the_homogeneous_response():
    rng = np.random.default_rng(3)
    x, s = rng.standard_normal((2, 2, 60, 4, 6))
    x, s = (v - v.mean((0, 1)) for v in (x, s))
    full = response_matrix(labelled(x), labelled(s), max_lag=3, recalibrate=False).response.values
    expected = impulse_response(labelled(x), labelled(s), max_lag=3).mean("member")
    for dy in (-1, 0, 1):
        for dx in (-2, 0, 2):
            places = [full[:, (y + dy) % 4, (i + dx) % 6, y, i] for y in range(4) for i in range(6)]
            got = np.mean(places, axis=0)
            assert np.abs(got - expected.sel(dy=dy, dx=dx)).max() < 1e-10


def circulant(kernel):
    """Matrices `(lag, n, n)` with R_ij = kernel(i - j)."""
    n = kernel.shape[-1]
    index = (np.arange(n)[:, None] - np.arange(n)) % n
    return kernel[:, index]


def test_recalibration_of_a_circulant_matrix_is_the_division_per_wavenumber():
    """All modes resolved: inverse (T11). One unresolved mode: left alone by both."""
    rng = np.random.default_rng(4)
    kernel = 0.1 * rng.standard_normal((5, 12))
    kernel[0, 0] += 1.0
    expected = recalibrate(kernel, space=1).response
    got = recalibrated_matrix(circulant(kernel))
    assert np.abs(got.response - circulant(expected)).max() < 1e-8
    inverse = circulant(kernel) @ np.linalg.inv(circulant(kernel)[0])
    assert np.abs(got.response - inverse).max() < 1e-8
    spectrum = np.fft.rfft(kernel, axis=1)
    spectrum[0, 4] = 0.01
    kernel = np.fft.irfft(spectrum, n=12, axis=1)
    expected = recalibrate(kernel, space=1)
    assert expected.unresolved.sum() == 2
    with pytest.warns(UserWarning, match="2 of 12 directions are not seen by the score"):
        got = recalibrated_matrix(circulant(kernel))
    assert np.abs(got.response - circulant(expected.response)).max() < 1e-8
    assert (got.unresolved, got.refused) == (2, False)


def test_a_score_that_sees_nothing_is_warned_of_and_the_raw_matrix_kept():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 50, 8))
    with pytest.warns(UserWarning, match="recalibration refused: the score sees 0 of 8"):
        found = response_matrix(labelled(x), labelled(0.0 * x), max_lag=2)
    assert (found.response == found.response_raw).all()
    assert found.recalibrated == 0
    with pytest.warns(UserWarning, match="directions are not seen by the score"):
        few = response_matrix(labelled(x[:, :5]), labelled(-x[:, :5]), max_lag=2)
    assert np.isfinite(few.response).all()


def test_too_large_matrices_and_missing_values_are_refused():
    x = np.random.default_rng(6).standard_normal((2, 30, 4))
    with pytest.raises(UserError, match="4 places and 3 lags needs 1.5 GiB, limit 1.0 GiB; coar"):
        response_matrix(labelled(x), labelled(x), max_lag=2, limit=1 << 30)
    assert matrix_bytes(1024, 51) - matrix_bytes(1024, 50) == 2 * 8 * 1024**2
    x[1, 3, 2] = np.nan
    with pytest.raises(UserError, match="missing or infinite values"):
        response_matrix(labelled(x), labelled(x), max_lag=2)
    with pytest.raises(UserError, match="max_lag=50 needs more than the 30 saved samples"):
        response_matrix(labelled(x), labelled(x), max_lag=50)


def test_a_good_score_is_recalibrated_without_a_warning():
    x = np.random.default_rng(7).standard_normal((2, 2000, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response_matrix(labelled(x), labelled(-x), max_lag=2)
