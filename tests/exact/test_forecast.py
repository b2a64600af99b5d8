"""Answers to forcings against closed forms; units, dates and forcings that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workflow.interfaces import UserError
from workflow.responses.forecast import forecast, forecast_run, step_response, susceptibility

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


def errors_at(steps, function):
    return [function(step) for step in steps]


def test_answer_to_a_sine_is_the_closed_form_to_second_order():
    """T12: halving the step quarters the error; a dropped end point would only halve it."""

    def error(step):
        t = step * np.arange(round(10 / step) + 1)
        answer = forecast(decay(step=step), series(np.sin(OMEGA * t), step=step))
        return np.abs(answer.value.values - answer_to_sine(t)).max()

    coarse, middle, fine = errors_at((0.1, 0.05, 0.025), error)
    assert fine < 2e-4
    assert coarse / middle == pytest.approx(4, abs=0.15)
    assert middle / fine == pytest.approx(4, abs=0.05)


def test_answer_to_a_cosine_is_second_order_where_the_forcing_starts():
    """The first end point counts: f(0) = 1 is switched on at once."""

    def error(step):
        t = step * np.arange(round(5 / step) + 1)
        forcing = series(np.cos(OMEGA * t), step=step, first=1000.0)
        exact = RATE * np.cos(OMEGA * t) + OMEGA * np.sin(OMEGA * t) - RATE * np.exp(-RATE * t)
        exact /= RATE**2 + OMEGA**2
        return np.abs(forecast(decay(step=step), forcing).value.values - exact).max()

    coarse, fine = errors_at((0.04, 0.02), error)
    assert coarse / fine == pytest.approx(4, abs=0.1)


def test_step_response_is_the_integral_of_the_impulse_response():
    """chi(t) = (1 - exp(-r t)) / r; trapezoid error r^2 dt^2 / 12 of it."""

    def error(step):
        response = decay(step=step)
        answer = step_response(response)
        assert answer.value.dims == response.dims and float(answer.value[0]) == 0.0
        exact = (1 - np.exp(-RATE * response.lag)) / RATE
        return float(np.abs(answer.value - exact).max())

    coarse, fine = errors_at((0.1, 0.05), error)
    assert coarse / fine == pytest.approx(4, abs=0.05)
    assert fine == pytest.approx(RATE**2 * 0.05**2 / 12 / RATE, rel=0.01)


def test_a_constant_forcing_is_the_step_response():
    response = decay(step=0.1)
    answer = forecast(response, series(np.ones(201), step=0.1))
    np.testing.assert_allclose(answer.value, step_response(response).value, atol=1e-13)


def test_susceptibility_of_a_decay_is_a_lorentzian_to_second_order():
    """1 / (r - i omega), up to frequencies near the Nyquist one."""
    omega = np.array([0.0, 1e-6, 0.3, RATE, 10.0, 30.0, -3.0])

    def error(step):
        value = susceptibility(decay(step=step), omega).value
        chi = value.sel(part="real").values + 1j * value.sel(part="imag").values
        return np.abs(chi * (RATE - 1j * omega) - 1)

    coarse, fine = errors_at((0.1, 0.05), error)
    assert fine.max() < 1e-3
    np.testing.assert_allclose(coarse[:5] / fine[:5], 4, atol=0.3)


def test_susceptibility_is_right_far_above_the_nyquist_frequency():
    """i / omega there; the trapezoid rule is periodic, 1000 times too large at 2 pi / step."""
    step, omega = 0.05, 2 * np.pi / 0.05 * np.array([1.0, 8.0])
    value = susceptibility(decay(step=step), omega).value
    exact = 1 / (RATE - 1j * omega)
    chi = value.sel(part="real").values + 1j * value.sel(part="imag").values
    assert (np.abs(chi - exact) < 0.02 * np.abs(exact)).all()
    trapezoid = abs(float(step_response(decay(step=step)).value[-1]))
    assert trapezoid > 90 * abs(exact[0])


def test_susceptibility_at_zero_frequency_is_the_static_sensitivity():
    response = decay(step=0.1).expand_dims(x=3)
    answer = susceptibility(response)
    assert answer.value.dims == ("part", "frequency", "x")
    assert answer.sizes["frequency"] == response.sizes["lag"]
    assert float(answer.frequency[-1]) == pytest.approx(np.pi / 0.1)
    static = step_response(response).value.isel(lag=-1)
    np.testing.assert_allclose(answer.value.sel(part="real", frequency=0.0), static, rtol=1e-13)


@pytest.mark.parametrize("ratio", [4, 2.5, 1.0, 0.5, 0.3, 0.07])
def test_the_forcing_may_have_any_step(ratio):
    """Values at the times of the forcing, second-order in the longer of the two steps."""

    def error(step):
        t = ratio * step * np.arange(round(6 / (ratio * step)) + 1)
        answer = forecast(decay(step=step), series(np.sin(OMEGA * t), step=ratio * step))
        np.testing.assert_array_equal(answer.time, ratio * step * np.arange(len(t)))
        return np.abs(answer.value.values - answer_to_sine(t)).max()

    coarse, fine = errors_at((0.08, 0.02), error)
    assert coarse / fine == pytest.approx(16, rel=0.15)


def linear_rule(response, forcing, *, times, last):
    """Trapezoid rule of two linear interpolants, from its definition."""
    lag, time = response.lag.values, forcing.time.values
    ratio = (time[1] - time[0]) / (lag[1] - lag[0])
    step = (time[1] - time[0]) / max(1, int(np.ceil(ratio - 1e-9)))
    total = np.zeros(len(times))
    for i, t in enumerate(times):
        count = int(np.floor(min(t, last) / step + 1e-9))
        ago = step * np.arange(count + 1)
        r = np.interp(ago, lag, response.values)
        f = np.interp(t - ago, time, forcing.values)
        total[i] = np.trapezoid(r * f, dx=step)
        if t > last + 1e-9:
            total[i] += (last - ago[-1]) * (r[-1] + response.values[-1]) / 2 * f[-1]
    return total


@pytest.mark.parametrize("steps", [(1.0, 3.0), (1.0, 0.25), (1.0, 0.3), (1.0, 1.7), (0.1, 0.1)])
@pytest.mark.parametrize("numbers", [1 << 22, 60])
def test_any_response_and_forcing_follow_the_rule_exactly(steps, numbers, monkeypatch):
    """Random numbers, so no smoothness hides a wrong weight; in one piece or in many."""
    monkeypatch.setattr("workflow.responses.forecast.NUMBERS", numbers)
    rng = np.random.default_rng(1)
    lag = steps[0] * np.arange(6)
    response = xr.DataArray(rng.standard_normal(6), dims="lag", coords={"lag": lag})
    forcing = series(rng.standard_normal(40), step=steps[1])
    with pytest.warns(UserWarning, match="raise max_lag"):
        answer = forecast(response, forcing).value.values
    expected = linear_rule(response, forcing, times=forcing.time.values, last=lag[-1])
    assert np.abs(answer - expected).max() < 1e-12


def bump():
    pattern = np.zeros((8, 8))
    pattern[1:3, 2:6] = [[1.0, 2.0, 0.5, 0.1], [0.3, -1.0, 0.0, 0.7]]
    return xr.DataArray(pattern, dims=("y", "x"), coords={"x": np.linspace(0, 1, 8)})


@pytest.mark.filterwarnings("ignore:response at the last lag")
def test_error_bars_are_those_of_a_linear_map_of_gaussian_samples():
    """Var(K R) = K C K^T; 4000 resamples know a standard error to 1.1 %."""
    mean = decay(step=0.25, length=5.0)
    covariance = lag_covariance(len(mean))
    response = with_samples(mean, covariance, samples=4000, seed=3)
    forcing = series(np.sin(np.arange(30.0)), step=0.25)
    cases = (
        (step_response, {}),
        (susceptibility, {"frequencies": [0.0, 1.0, 9.0]}),
        (forecast, {"forcing": forcing}),
    )
    identity = xr.DataArray(np.eye(len(mean)), dims=("lag", "unit"), coords={"lag": mean.lag})
    for function, arguments in cases:
        answer = function(response, **arguments)
        rows = function(identity, **arguments).value.values
        variance = np.einsum("...i,ij,...j->...", rows, covariance, rows)
        ratio = answer.standard_error.values[variance > 0] / np.sqrt(variance[variance > 0])
        assert np.abs(ratio - 1).max() < 4 / np.sqrt(2 * 4000)
        assert np.abs(answer.standard_error.values[variance == 0]).max(initial=0) < 1e-12
        np.testing.assert_allclose(answer.value, rows @ mean.values, atol=1e-12)
        width = (answer.ci_high - answer.ci_low) / 2
        np.testing.assert_allclose(width, 1.959964 * answer.standard_error, rtol=1e-6)


def stored(*, samples=20):
    """As `response.zarr`: two estimators, the second with half as many lags."""
    lag = 0.5 * np.arange(41)
    value = np.stack([np.exp(-lag), np.exp(-lag)])
    value[1, 30:] = np.nan
    rng = np.random.default_rng(11)
    draws = value + 1e-3 * rng.standard_normal((samples, 2, 41))
    dims = ("estimator", "perturbation", "observable", "lag")
    return xr.Dataset(
        {
            "response": (dims, value[:, None, None], {"units": "K"}),
            "response_samples": (("sample", *dims), draws[:, :, None, None].astype("f4")),
        },
        coords={
            "estimator": ["neural", "direct"],
            "perturbation": ["pixel"],
            "observable": ["field"],
            "lag": lag,
        },
        attrs={"references": "arXiv:2402.01029", "source": "test"},
    )


def test_estimators_with_fewer_lags_are_answered_as_far_as_they_reach():
    answer = step_response(stored())
    assert np.isnan(answer.value.sel(estimator="direct")).sum() == 11
    assert np.isfinite(answer.standard_error.sel(estimator="neural")).all()
    chosen = answer.sel(perturbation="pixel", observable="field").value
    xr.testing.assert_equal(
        chosen.sel(estimator="direct", drop=True)[:30],
        chosen.sel(estimator="neural", drop=True)[:30],
    )
    assert answer.last_lag_share.dims == ("estimator", "perturbation", "observable")
    forced = forecast(stored(), series(np.ones(60), step=0.5))
    assert np.isfinite(forced.value).all()


def test_answers_survive_a_netcdf_file(tmp_path):
    """Also with the format that knows neither complex numbers nor 64-bit integers."""
    stored_responses = stored()
    forced = forecast_run(
        stored_responses, series(np.ones(60), step=0.5), observable="field", perturbation="pixel"
    )
    assert forced.attrs["perturbation"] == "pixel" and forced.attrs["forcing"] == "heating"
    assert forced.value.dims == ("estimator", "time") and forced.value.attrs["units"] == "K"
    assert forced.attrs["references"] == "arXiv:2402.01029"
    answers = forced, step_response(stored_responses), susceptibility(stored_responses, [0.0, 1.0])
    for number, answer in enumerate(answers):
        path = tmp_path / f"{number}.nc"
        answer.to_netcdf(path, engine="scipy")
        with xr.open_dataset(path, engine="scipy") as again:
            for name, variable in answer.variables.items():
                np.testing.assert_array_equal(again[name].astype(variable.dtype), variable)
                units = variable.attrs.get("units")
                assert again[name].attrs.get("units") == units
            assert again.attrs == answer.attrs


def test_labels_are_checked():
    forcing = series(np.ones(4), step=0.5)
    one = forecast_run(stored(), forcing, estimator="neural")
    assert one.value.dims == ("time",) and one.estimator == "neural"
    with pytest.raises(UserError, match="observable='feild' is not in .*did you mean 'field'"):
        forecast_run(stored(), forcing, observable="feild")
    with pytest.raises(UserError, match="perturbation='bump' is not in .*choose one of"):
        forecast_run(stored(), forcing, perturbation="bump")
    several = xr.concat([stored(), stored().assign_coords(observable=["mean"])], "observable")
    with pytest.raises(UserError, match="several of observable .*'field', 'mean'"):
        forecast_run(several, forcing)
    with pytest.raises(UserError, match="needs a variable 'response'"):
        forecast_run(stored().drop_vars(["response", "response_samples"]), forcing)


def in_units(response, units):
    response = response.copy()
    response["lag"] = response.lag.assign_attrs(units=units)
    return response


def test_dates_and_units_of_time_are_converted():
    """Lags in days, forcing by the date, by hours or in seconds: the same answer."""
    response = in_units(decay(step=0.5), "days").assign_attrs(units="K")
    values = np.sin(np.arange(30.0))
    in_days = series(values, step=0.5)
    with pytest.warns(UserWarning, match="taken as the same unit"):
        expected = forecast(response, in_days)
    assert "lags in days: taken as the same unit" in messages(expected)
    dates = np.datetime64("2001-02-27", "ns") + np.arange(30) * np.timedelta64(12, "h")
    differences = dates - dates[0]
    hours = xr.DataArray(12.0 * np.arange(30), dims="time", attrs={"units": "hours"})
    for times in (dates, differences, hours):
        answer = forecast(response, in_days.assign_coords(time=times))
        np.testing.assert_allclose(answer.value, expected.value, atol=1e-12)
        assert not messages(answer)
    assert step_response(response).value.attrs["units"] == "K days"


@pytest.mark.filterwarnings("ignore:forcing times")
@pytest.mark.filterwarnings("ignore:lags without")
def test_missing_units_are_told_and_different_ones_refused():
    forcing = series(np.ones(5), step=0.1)
    seconds = forcing.assign_coords(time=forcing.time.assign_attrs(units="s"))
    assert "forcing times without units, lags in s" in messages(
        forecast(in_units(decay(step=0.1), "s"), forcing)
    )
    assert "lags without units, forcing times in s" in messages(forecast(decay(step=0.1), seconds))
    with pytest.raises(UserError, match="forcing times in 's', lags in 'turns'"):
        forecast(in_units(decay(step=0.1), "turns"), seconds)
    dates = np.datetime64("2001-01-01", "ns") + np.arange(5) * np.timedelta64(1, "s")
    with pytest.raises(UserError, match="forcing times are dates, lags have no units"):
        forecast(decay(step=0.1), forcing.assign_coords(time=dates))


def bad_forcings():
    good = series(np.ones(6), step=0.5)

    def at(*times):
        return good.assign_coords(time=np.array(times, dtype=float))

    text = good.assign_coords(time=list("abcdef"))
    return {
        "0.5 to 1 apart; needs even steps": at(0, 0.5, 1, 1.5, 2, 3),
        r"duplicated \(1, first 0.5\); keep one": at(0, 0.5, 0.5, 1, 1.5, 2),
        r"decrease \(1 times, first at 0.5\); sort": at(0, 1, 0.5, 1.5, 2, 2.5),
        r"missing \(NaN\) in 1 places": at(0, 0.5, np.nan, 1.5, 2, 2.5),
        "of type <U1; needs numbers or dates": text,
        "1 given, a step needs at least 2": good[:1],
        "1 values that are NaN or infinite": good.where(good.time != 1.0),
        "without a time coordinate": good.rename(time="t"),
        "without a time coordinate;": good.drop_vars("time"),
        "of type complex128; needs real": good * 1j,
        r"forcing in space has \{'y': 2\}": good.expand_dims(y=2, axis=1),
    }


@pytest.mark.parametrize("message", bad_forcings())
def test_a_forcing_that_does_not_fit_is_refused_in_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        forecast(decay(step=0.5), bad_forcings()[message])
    assert "\n" not in str(caught.value)
