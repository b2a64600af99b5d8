"""Answers of a field to forcings in space and time, in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.interfaces import UserError
from workflow.responses.forecast import forecast

RATE, OMEGA = 1.3, 2.0


def decay(*, step, length=20.0, rate=RATE):
    lag = step * np.arange(round(length / step) + 1)
    return xr.DataArray(np.exp(-rate * lag), dims="lag", coords={"lag": lag}, name="response")


def series(values, *, step, first=0.0):
    values = np.asarray(values, dtype=float)
    return xr.DataArray(
        values, dims="time", coords={"time": first + step * np.arange(len(values))}, name="heating"
    )


def errors_at(steps, function):
    return [function(step) for step in steps]


def ou_system():
    return OrnsteinUhlenbeck(grid=8, relaxation=0.5, kappa=0.01, advection=0.7)


def exact_field(system, *, step, lags):
    """Exact response of the OU SPDE over displacements in increasing order."""
    lag = torch.arange(lags, dtype=torch.float64) * step
    response = np.fft.fftshift(system.exact_response(lag).numpy(), axes=(1, 2))
    centred = np.arange(8) - 4
    return xr.DataArray(
        response,
        dims=("lag", "dy", "dx"),
        coords={"lag": lag.numpy(), "dy": centred, "dx": centred},
        attrs={"units": "K"},
    )


def rates(system):
    """r_k from the exact response at one short lag, real at the Nyquist wavenumbers."""
    short = torch.tensor([1e-3], dtype=torch.float64)
    return -np.log(np.fft.rfft2(system.exact_response(short).numpy()[0])) / 1e-3


def modal_answer(system, pattern, t):
    """Every mode of the pattern forced by sin(omega t), in closed form."""
    r = rates(system)
    t = t[:, None, None]
    late = r * np.sin(OMEGA * t) - OMEGA * np.cos(OMEGA * t) + OMEGA * np.exp(-r * t)
    return np.fft.irfft2(np.fft.rfft2(pattern) * late / (r**2 + OMEGA**2), s=(8, 8))


def bump():
    pattern = np.zeros((8, 8))
    pattern[1:3, 2:6] = [[1.0, 2.0, 0.5, 0.1], [0.3, -1.0, 0.0, 0.7]]
    return xr.DataArray(pattern, dims=("y", "x"), coords={"x": np.linspace(0, 1, 8)})


def test_a_forcing_pattern_is_answered_by_the_field_in_closed_form():
    """Advection makes the answer travel, so a flipped or shifted convolution would show."""
    system = ou_system()

    def error(step):
        t = step * np.arange(round(3 / step) + 1)
        response = exact_field(system, step=step, lags=len(t))
        answer = forecast(response, series(np.sin(OMEGA * t), step=step), pattern=bump().T)
        assert answer.value.dims == ("time", "y", "x") and answer.value.attrs["units"] == "K"
        assert answer.x.values[-1] == 1.0 and "y" not in answer.coords
        return np.abs(answer.value.values - modal_answer(system, bump().values, t)).max()

    coarse, fine = errors_at((0.1, 0.05), error)
    assert coarse / fine == pytest.approx(4, abs=0.2) and fine < 5e-3


def test_a_forcing_in_space_and_time_is_the_sum_of_its_patterns():
    """A travelling wave cos(y - t) is two patterns with two histories."""
    response = exact_field(ou_system(), step=0.1, lags=25)
    t, y = 0.1 * np.arange(30), 2 * np.pi * np.arange(8) / 8
    ones = np.ones(8)
    wave = np.cos(y[None, :, None] - t[:, None, None]) * ones
    forcing = xr.DataArray(wave, dims=("time", "y", "x"), coords={"time": t})
    with pytest.warns(UserWarning, match="raise max_lag"):
        together = forecast(response, forcing.transpose("x", "time", "y")).value
        parts = [
            forecast(
                response,
                series(history(t), step=0.1),
                pattern=xr.DataArray(np.outer(history(y), ones), dims=("y", "x")),
            ).value
            for history in (np.cos, np.sin)
        ]
    np.testing.assert_allclose(together, parts[0] + parts[1], atol=1e-12)
    assert together.dims == ("time", "y", "x")


def test_a_pattern_of_one_pixel_moves_the_response_there():
    """Displacement is responder minus kicked pixel, for odd and even grids in one dimension."""
    for size in (7, 8):
        rng = np.random.default_rng(2)
        centred = np.arange(size) - size // 2
        response = xr.DataArray(
            rng.standard_normal((4, size)),
            dims=("lag", "dx"),
            coords={"lag": np.arange(4.0), "dx": centred},
        )
        pixel = xr.DataArray(np.eye(size)[2], dims="x")
        forcing = series([1.0, 2.0, -1.0], step=1.0)
        moved = forecast(response, forcing, pattern=pixel).value.values
        alone = forecast(response, forcing)
        assert alone.value.dims == ("time", "dx")
        for place in range(size):
            at = np.flatnonzero(centred % size == (place - 2) % size)[0]
            np.testing.assert_allclose(moved[:, place], alone.value[:, at], atol=1e-13)


def test_patterns_that_do_not_fit_are_refused():
    response = exact_field(ou_system(), step=0.1, lags=5)
    forcing = series(np.ones(4), step=0.1)
    with pytest.raises(UserError, match=r"has \{'y': 8, 'x': 7\}; the response needs"):
        forecast(response, forcing, pattern=bump()[:, :7])
    with pytest.raises(UserError, match="has no displacements"):
        forecast(decay(step=0.1), forcing, pattern=bump())
    with pytest.raises(UserError, match="and there is a pattern"):
        forecast(response, forcing * bump(), pattern=bump())
    with pytest.raises(UserError, match="pattern has values that are NaN"):
        forecast(response, forcing, pattern=bump().where(bump() != 2.0))
    for cut in (response.isel(dy=slice(None, None, -1)), response.drop_vars("dy")):
        with pytest.raises(UserError, match="displacements dy are not consecutive"):
            forecast(cut, forcing, pattern=bump())
