"""Error bars of forecasts, responses cut short, and responses that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.interfaces import UserError
from workflow.responses import impulses
from workflow.responses.forecast import forecast, step_response, susceptibility
from workflow.responses.gfdt import impulse_response
from workflow.responses.resampling import Units, ratio, unit_weights

RATE, OMEGA = 1.3, 2.0


def decay(*, step, length=20.0, rate=RATE):
    lag = step * np.arange(round(length / step) + 1)
    return xr.DataArray(np.exp(-rate * lag), dims="lag", coords={"lag": lag}, name="response")


def series(values, *, step, first=0.0):
    values = np.asarray(values, dtype=float)
    return xr.DataArray(
        values, dims="time", coords={"time": first + step * np.arange(len(values))}, name="heating"
    )


def answer_to_sine(t):
    """integral_0^t exp(-r (t - t')) sin(omega t') dt'."""
    late = RATE * np.sin(OMEGA * t) - OMEGA * np.cos(OMEGA * t)
    return (late + OMEGA * np.exp(-RATE * t)) / (RATE**2 + OMEGA**2)


def with_samples(mean, covariance, *, samples, seed):
    """A response with Gaussian resamples of known covariance over the lags."""
    rng = np.random.default_rng(seed)
    draws = rng.multivariate_normal(mean.values, covariance, size=samples, method="cholesky")
    return xr.Dataset({"response": mean, "response_samples": (("sample", "lag"), draws)})


def lag_covariance(lags, *, scale=0.1):
    index = np.arange(lags)
    return scale**2 * np.exp(-np.abs(index[:, None] - index) / 3)


def messages(dataset):
    return dataset.attrs.get("warnings", "")


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


def bump():
    pattern = np.zeros((8, 8))
    pattern[1:3, 2:6] = [[1.0, 2.0, 0.5, 0.1], [0.3, -1.0, 0.0, 0.7]]
    return xr.DataArray(pattern, dims=("y", "x"), coords={"x": np.linspace(0, 1, 8)})


def test_white_noise_of_the_response_adds_up_in_the_step_response():
    """Var chi(t_j) = dt^2 s^2 (j - 1/2): ends of a trapezoid count a quarter in the variance."""
    mean = decay(step=0.5, length=5.0)
    response = with_samples(mean, 0.01 * np.eye(11), samples=3000, seed=4)
    error = step_response(response, members=5).standard_error.values
    expected = 0.5 * 0.1 * np.sqrt(np.arange(1, 11) - 0.5)
    assert np.abs(error[1:] / expected - 1).max() < 4 / np.sqrt(2 * 3000)


def test_few_members_widen_the_interval():
    response = with_samples(decay(step=0.5), lag_covariance(41), samples=50, seed=5)
    answer = step_response(response, members=5, level=0.9)
    width = (answer.ci_high - answer.value)[1:] / answer.standard_error[1:]
    np.testing.assert_allclose(width, 2.131847, rtol=1e-6)


@pytest.mark.parametrize("numbers", [1 << 22, 500])
def test_resamples_in_pieces_are_the_resamples_at_once(numbers, monkeypatch):
    """Memory is bounded by pieces; the spread of mapped resamples, one by one, is the answer."""
    monkeypatch.setattr(impulses, "NUMBERS", numbers)
    monkeypatch.setattr("workflow.responses.forecast.NUMBERS", numbers)
    rng = np.random.default_rng(6)
    base = exact_field(ou_system(), step=0.2, lags=12)
    draws = base + 0.1 * xr.DataArray(
        rng.standard_normal((9, *base.shape)), dims=("sample", *base.dims)
    )
    forcing = series(np.sin(np.arange(10.0)), step=0.2)
    answer = forecast(draws, forcing, pattern=bump())
    each = xr.concat(
        [forecast(draws.isel(sample=i), forcing, pattern=bump()).value for i in range(9)], "sample"
    )
    np.testing.assert_allclose(answer.value, each.mean("sample"), atol=1e-12)
    np.testing.assert_allclose(answer.standard_error, each.std("sample", ddof=1), atol=1e-12)
    full = forcing * bump()
    again = forecast(draws, full)
    np.testing.assert_allclose(again.value, answer.value, atol=1e-12)
    np.testing.assert_allclose(again.standard_error, answer.standard_error, atol=1e-12)


def test_lazy_resamples_give_the_same_numbers():
    response = with_samples(decay(step=0.1), lag_covariance(201), samples=40, seed=7)
    forcing = series(np.sin(np.arange(100.0)), step=0.1)
    lazy = forecast(response.chunk(sample=7), forcing.chunk(time=10))
    xr.testing.assert_identical(lazy.compute(), forecast(response, forcing))


def test_a_forecast_from_data_covers_the_closed_form():
    """From an unperturbed OU run alone: every error within 4 standard errors, and small."""
    rng = np.random.default_rng(8)
    members, length, step = 48, 1500, 0.1
    factor = np.exp(-RATE * step)
    x = np.empty((members, length))
    x[:, 0] = rng.standard_normal(members)
    noise = np.sqrt(1 - factor**2) * rng.standard_normal((members, length))
    for time in range(1, length):
        x[:, time] = factor * x[:, time - 1] + noise[:, time]
    run = xr.DataArray(x, dims=("member", "time"), coords={"time": step * np.arange(length)})
    per_member = impulse_response(run, -run, max_lag=60)
    weights = unit_weights(Units(members, 1, 1), samples=300, seed=1)
    draws = ratio(per_member.values[:, None], np.ones((1, 61)), weights)
    response = xr.Dataset(
        {
            "response": per_member.mean("member"),
            "response_samples": (("sample", "lag"), draws),
        }
    )
    t = step * np.arange(60)
    answer = forecast(response, series(np.sin(OMEGA * t), step=step), members=members)
    error = np.abs(answer.value.values - answer_to_sine(t))[1:]
    assert (error < 4 * answer.standard_error.values[1:] + 2e-3).all()
    assert answer.standard_error.values.max() < 0.05


def test_a_response_cut_short_is_told():
    short = decay(step=0.1, length=1.0)
    with pytest.warns(UserWarning, match="at the last lag 1 is still 0.27 of its largest"):
        answer = step_response(short)
    assert float(answer.last_lag_share) == pytest.approx(np.exp(-RATE))
    assert "raise max_lag" in messages(answer)
    with pytest.warns(UserWarning, match="raise max_lag"):
        assert messages(susceptibility(short))
    forcing = series(np.ones(20), step=0.1)
    with pytest.warns(UserWarning, match="raise max_lag"):
        assert messages(forecast(short, forcing))


@pytest.mark.filterwarnings("error")
def test_a_response_that_is_long_enough_is_not_told():
    """Decayed, or longer than the forcing, or zero within its error."""
    assert not messages(step_response(decay(step=0.1)))
    short = decay(step=0.1, length=1.0)
    assert not messages(forecast(short, series(np.ones(11), step=0.1)))
    noisy = with_samples(short, lag_covariance(11, scale=0.2), samples=500, seed=9)
    assert not messages(step_response(noisy))


def test_a_cut_at_many_places_counts_the_places():
    """2 standard errors at one of 400 places are nothing; 6 are a cut."""
    rng = np.random.default_rng(10)
    noise = rng.standard_normal((300, 5, 400))
    values = np.ones((5, 400))
    values[-1] = 0.1 * rng.standard_normal(400).clip(-3, 3)
    coords = {"lag": np.arange(5.0)}

    def answer():
        mean = xr.DataArray(values, dims=("lag", "x"), coords=coords)
        draws = (("sample", "lag", "x"), values + 0.1 * noise)
        return step_response(xr.Dataset({"response": mean, "response_samples": draws}))

    assert not messages(answer())
    values[-1, 7] = 0.6
    with pytest.warns(UserWarning, match="raise max_lag"):
        answer()


def bad_responses():
    good = decay(step=0.5)
    samples = with_samples(good, lag_covariance(41), samples=3, seed=12)
    hole = good.where(good.lag != 2.0)
    broken = samples.copy(deep=True)
    broken["response_samples"][1, 3] = np.nan
    return {
        "needs 'lag' with its coordinate": good.rename(lag="time"),
        "needs 'lag' with its coordinate,*": good.drop_vars("lag"),
        "lags start at 0.5": good[1:],
        "apart; needs even steps": good[[0, 1, 3]],
        "1 given, a step needs": good[:1],
        "NaN at lag number 4 and numbers after it": hole,
        "response has 1 lags": good.where(good.lag == 0.0),
        "needs a variable 'response'": xr.Dataset({"answer": good}),
        "at least 2 of 'sample'": samples.isel(sample=[0]),
        "resamples have .*need those of the response": xr.Dataset(
            {"response": good, "response_samples": good}
        ),
        "response_samples has NaN": broken,
    }


@pytest.mark.parametrize("message", bad_responses())
def test_a_response_that_does_not_fit_is_refused_in_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        step_response(bad_responses()[message])
    assert "\n" not in str(caught.value)


def test_settings_that_make_no_sense_are_refused():
    response = with_samples(decay(step=0.5), lag_covariance(41), samples=3, seed=13)
    with pytest.raises(UserError, match="level=95: needs to be between 0 and 1"):
        step_response(response, level=95)
    with pytest.raises(UserError, match="members=1: an error bar needs"):
        step_response(response, members=1)
    for frequencies in (2.0, [np.nan], ["a"]):
        with pytest.raises(UserError, match="needs a list of finite numbers"):
            susceptibility(response, frequencies)
