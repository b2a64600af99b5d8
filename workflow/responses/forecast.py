"""Answers to any forcing from the impulse response, with its error bars.

    d<A>(t) = integral_0^t R(t - t') f(t') dt'            forecast
    chi(t) = integral_0^t R                               step_response
    chi(omega) = integral_0^infinity R exp(i omega t) dt  susceptibility

The forcing enters the dynamics as dx = [F + u(x) f(t)] dt + ..., so f is in kicks per unit of the
lag's time and the forecast in units of the observable. All are linear in R: its resamples, pushed
through the same map, give the error bars. Second-order in the step of the lags. To first order in
the forcing; beyond the longest lag R is taken as zero, which is told where it shows.

Source: arXiv:2504.13333, equations 7-10.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.integrate import cumulative_trapezoid

from workflow.interfaces import LAG, TIME, UserError
from workflow.responses.forcing import check_forcing
from workflow.responses.impulses import (
    NUMBERS,
    Impulse,
    estimate,
    read_impulse,
    tail,
)
from workflow.responses.quadrature import (
    Convolution,
    Floats,
    LinearMap,
    forcing_spectra,
    fourier_weights,
    in_turn,
    kick_pattern,
    weigh_lags,
    weigh_waves,
)
from workflow.responses.times import even_step, step_in

PARTS = ("real", "imag")
"""Labels of the parts of a complex number: files hold real ones only."""

_LONG_NAMES = {
    "standard_error": "standard error of {}",
    "ci_low": "lower end of the confidence interval of {}",
    "ci_high": "upper end of the confidence interval of {}",
}


def step_response(
    response: xr.DataArray | xr.Dataset, *, level: float = 0.95, members: int | None = None
) -> xr.Dataset:
    """Response to a forcing switched on for good, chi(t) = integral_0^t R, by trapezoids.

    The value at the last lag is the static sensitivity d<A>/d(forcing), as far as R has decayed
    by then: `last_lag_share` tells what is left of it.

    Args:
        response: R with dim lag, DataArray (perhaps with dim `sample`) or Dataset with `response`
            and perhaps `response_samples`.
        level: coverage of the intervals.
        members: independent members behind the resamples (intervals by Student's t); normal
            intervals without.

    Returns:
        value and, with resamples, standard_error, ci_low, ci_high: dims of the response, its
        units times those of the lag; NaN where R is. `last_lag_share`, |R(last)| / max |R|, dims
        (estimator, perturbation, observable) as there are. Attribute `warnings` where R is cut
        short.

    Raises:
        UserError: no or uneven lags, NaN in between, fewer than 2 resamples.
    """
    impulse = read_impulse(response, members=members)

    def integrate(samples: Floats) -> Floats:
        return np.asarray(cumulative_trapezoid(samples, dx=impulse.step, axis=1, initial=0))

    columns = estimate(
        impulse,
        lambda lags: [(slice(0, lags), integrate)],
        shape=tuple(impulse.value.sizes[name] for name in (LAG, *impulse.places)),
        level=level,
    )
    name, units = "response to a step of the forcing", _product(impulse.units, impulse.lag_units)
    axes = _axes(impulse, (LAG, *impulse.places))
    return _label(impulse, columns, axes, (name, units), *tail(impulse))


def susceptibility(
    response: xr.DataArray | xr.Dataset,
    frequencies: ArrayLike | None = None,
    *,
    level: float = 0.95,
    members: int | None = None,
) -> xr.Dataset:
    """Response to harmonic forcing, chi(omega) = integral_0^infinity R exp(i omega t) dt.

    A forcing Re(a exp(-i omega t)) is answered by Re(a chi(omega) exp(-i omega t)). Exact for the
    linear interpolant of R, so right above the Nyquist frequency too.

    Args:
        response: as for `step_response`.
        frequencies: omega, radians per unit of the lag; by default from 0 to the Nyquist
            frequency pi / step in steps of pi / longest lag.
        level: coverage of the intervals.
        members: as for `step_response`.

    Returns:
        As `step_response`, with dims (labels, part, frequency, places), part "real" and "imag":
        `value.sel(part="real") + 1j * value.sel(part="imag")` is complex.

    Raises:
        UserError: as `step_response`; frequencies that are no finite numbers.
    """
    impulse = read_impulse(response, members=members)
    default = np.linspace(0.0, np.pi / impulse.step, impulse.value.sizes[LAG])
    omega = np.asarray(default if frequencies is None else frequencies)
    if omega.ndim != 1 or omega.dtype.kind not in "iuf" or not np.isfinite(omega).all():
        raise UserError(
            f"frequencies of shape {omega.shape} and type {omega.dtype}; needs a list of finite "
            "numbers, radians per unit of the lag"
        )
    omega = omega.astype(np.float64)
    places = impulse.places
    shape = tuple(impulse.value.sizes[name] for name in places)

    def pieces(lags: int) -> Iterator[tuple[slice, LinearMap]]:
        # Both parts are rows of one real matrix: real parts first.
        both = np.concatenate([omega, omega])
        for rows in _rows(len(both), lags + math.prod(shape), most=len(both)):
            weights = fourier_weights(both[rows], step=impulse.step, lags=lags)
            real = np.arange(rows.start, rows.stop) < len(omega)
            yield rows, weigh_lags(np.where(real[:, None], weights.real, weights.imag))

    columns = estimate(impulse, pieces, shape=(2 * len(omega), *shape), level=level)
    labels = len(impulse.labels)
    columns = {
        name: np.reshape(array, (*array.shape[:labels], 2, len(omega), *shape))
        for name, array in columns.items()
    }
    unit = "rad" if impulse.lag_units == "1" else f"rad {impulse.lag_units}-1"
    frequency = xr.DataArray(omega, dims="frequency", attrs={"units": unit})
    frequency.attrs["long_name"] = "angular frequency of the forcing"
    part = xr.DataArray(np.array(PARTS), dims="part", attrs={"long_name": "part of the number"})
    axes = {"part": part, "frequency": frequency} | _axes(impulse, places)
    name, units = "susceptibility", _product(impulse.units, impulse.lag_units)
    return _label(impulse, columns, axes, (name, units), *tail(impulse))


def forecast(
    response: xr.DataArray | xr.Dataset,
    forcing: xr.DataArray,
    *,
    pattern: xr.DataArray | None = None,
    level: float = 0.95,
    members: int | None = None,
) -> xr.Dataset:
    """Change of the observable under a forcing, d<A>(t) = integral_0^t R(t - t') f(t') dt'.

    With a pattern phi or a forcing in space, and R over displacements (periodic space),

        d<A>(q, t) = sum_p integral_0^t R(t - t', q - p) phi(p) f(t') dt'

    Without, f(t) acts where the kick of R did. The forcing is zero before its first time. The
    trapezoid rule is on the step of the forcing over the smallest whole number that makes it no
    longer than the step of the lags; forcing and response in between are linear.

    Args:
        response: as for `step_response`; with dims dy, dx (dx in one dimension) for a pattern.
        forcing: f, dims (time) or (time, y, x), at even times; kicks per unit of the lag's time,
            also where its own times are in another unit (s, min, h, d are converted).
        pattern: phi, dims (y, x), kicks of every pixel per unit of f; for f(t) only.
        level: coverage of the intervals.
        members: as for `step_response`.

    Returns:
        As `step_response`, with dims (labels, time, places) at the times of the forcing and y, x
        instead of dy, dx where there is a pattern; units of the observable. Attribute `warnings`
        also where units of time are missing on one side.

    Raises:
        UserError: as `step_response`; a forcing or pattern that does not fit.
    """
    impulse = read_impulse(response, members=members)
    check_forcing(forcing)
    time_step, notes = _forcing_step(forcing, impulse)
    space = _space(impulse, forcing, pattern)
    forcing = forcing.transpose(TIME, *(name for name in space if name in forcing.dims))
    displaced = tuple(f"d{name}" for name in space)
    kept = tuple(name for name in impulse.places if name not in displaced)
    sizes = [impulse.value.sizes[name] for name in (*kept, *displaced)]
    series, times = forcing.values.astype(np.float64), forcing.sizes[TIME]
    zero = [_zero(impulse, name) for name in displaced]
    if pattern is not None:
        spread = kick_pattern(pattern.transpose(*space).values.astype(np.float64), zero)
    elif space:
        spectra = forcing_spectra(series, zero)

    def pieces(lags: int) -> Iterator[tuple[slice, LinearMap]]:
        rule = Convolution.of(lags=lags, lag_step=impulse.step, times=times, time_step=time_step)
        # Each wavenumber has its own weights, made anew for every few resamples: short pieces
        # leave room for more of these.
        most = lags if space and pattern is None else times
        needed = lags + rule.history.shape[1] + math.prod(sizes)
        for rows in _rows(times, needed, most=most):
            if space and pattern is None:
                yield rows, weigh_waves(rule, spectra, rows, shape=sizes[len(kept) :])
            else:
                weights = weigh_lags(rule.weights(series, rows))
                yield rows, weights if pattern is None else in_turn(weights, spread)

    columns = estimate(impulse, pieces, shape=(times, *sizes), level=level)
    where = pattern if pattern is not None else forcing
    axes: dict[str, xr.DataArray | None] = {TIME: forcing[TIME]}
    axes |= _axes(impulse, kept)
    axes |= {name: where[name] if name in where.coords else None for name in space}
    share, cut = tail(impulse, until=(times - 1) * time_step)
    name = "change of the observable under the forcing"
    return _label(impulse, columns, axes, (name, impulse.units), share, notes + cut)


def forecast_run(
    responses: xr.Dataset,
    forcing: xr.DataArray,
    *,
    perturbation: str | None = None,
    observable: str | None = None,
    estimator: str | None = None,
    pattern: xr.DataArray | None = None,
    level: float = 0.95,
    members: int | None = None,
) -> xr.Dataset:
    """Forecast from `response.zarr`, ready for `to_netcdf`.

    Args:
        responses: with `response` and perhaps `response_samples`, dims (estimator, perturbation,
            observable, lag, ...) as there are.
        forcing: as for `forecast`.
        perturbation: label of what is forced; may be left out where there is one.
        observable: label of what is forecast; may be left out where there is one.
        estimator: label; all of them by default.
        pattern: as for `forecast`.
        level: coverage of the intervals.
        members: as for `forecast`.

    Returns:
        As `forecast`, with attributes that say what was forced by what.

    Raises:
        UserError: as `forecast`; a label that there is not, or none where there are several.
    """
    names = [n for n in ("response", "response_samples") if n in responses]
    chosen = responses[names] if names else responses
    wanted = {"perturbation": perturbation, "observable": observable, "estimator": estimator}
    for dim, label in wanted.items():
        if dim not in chosen.dims:
            continue
        known = [str(value) for value in chosen[dim].values]
        if label is None and dim == "estimator":
            continue
        if label is None and len(known) == 1:
            label = known[0]
        if label not in known:
            near = difflib.get_close_matches(str(label), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; choose one of {known}"
            given = f"{dim}={label!r} is not in" if label else f"there are several of {dim} in"
            raise UserError(f"{given} these responses{hint}")
        wanted[dim] = label
        chosen = chosen.isel({dim: known.index(label)})
    answer = forecast(chosen, forcing, pattern=pattern, level=level, members=members)
    described = {name: label for name, label in wanted.items() if label is not None}
    kept = {k: v for k, v in responses.attrs.items() if isinstance(v, str | int | float)}
    title = {"Conventions": "CF-1.11", "title": "forecast: change of an observable under a forcing"}
    named = {"forcing": str(forcing.name)} if forcing.name is not None else {}
    return answer.assign_attrs(kept | title | described | named | answer.attrs)


def _forcing_step(forcing: xr.DataArray, impulse: Impulse) -> tuple[float, list[str]]:
    """Step of the forcing in units of the lag, and what was assumed for it."""
    step, units = even_step(forcing[TIME], name="forcing times")
    if forcing[TIME].dtype.kind in "mMO" and impulse.lag_units == "1":
        raise UserError(
            "forcing times are dates, lags have no units; give forcing times in the unit of the "
            "lags, or set lag.attrs['units'], as 's' or 'd'"
        )
    step, note = step_in(step, units, needed=impulse.lag_units, name="forcing times")
    return step, [note] if note else []


def _space(
    impulse: Impulse, forcing: xr.DataArray, pattern: xr.DataArray | None
) -> tuple[str, ...]:
    """Space axes of the forcing, empty for f(t) alone; refuses what does not fit the response."""
    given = {name: size for name, size in forcing.sizes.items() if name != TIME}
    if pattern is not None:
        if given:
            raise UserError(
                f"forcing has dims {forcing.dims} and there is a pattern; give f(t) with a "
                "pattern, or f(t, y, x) alone"
            )
        given = dict(pattern.sizes)
        if not np.isfinite(pattern).all():
            raise UserError("pattern has values that are NaN or infinite; fill them")
    elif not given:
        return ()
    needed = {n[1:]: impulse.value.sizes[n] for n in impulse.places if n in ("dy", "dx")}
    if given != needed:
        wanted = f"needs {needed}" if needed else "has no displacements: force it with f(t) alone"
        raise UserError(f"forcing in space has {given}; the response {wanted}")
    return tuple(needed)


def _zero(impulse: Impulse, name: str) -> int:
    """Index of displacement 0 along an axis that has every displacement once."""
    steps = impulse.value[name].values if name in impulse.value.coords else np.empty(0)
    first = int(steps[0]) if steps.size else 1
    if not -len(steps) < first <= 0 or not np.array_equal(steps, first + np.arange(len(steps))):
        raise UserError(f"displacements {name} are not consecutive grid steps around 0; keep all")
    return -first


def _rows(count: int, numbers: int, *, most: int) -> Iterator[slice]:
    """Rows of an answer in pieces of bounded memory, from the numbers that one row needs."""
    piece = max(1, min(most, NUMBERS // max(1, numbers)))
    for first in range(0, count, piece):
        yield slice(first, min(first + piece, count))


def _axes(impulse: Impulse, names: tuple[str, ...]) -> dict[str, xr.DataArray | None]:
    """Axes of the response with their coordinates."""
    value = impulse.value
    return {name: value[name] if name in value.coords else None for name in names}


def _product(units: str, others: str) -> str:
    """Product of two CF units."""
    return " ".join(u for u in (units, others) if u != "1") or "1"


def _label(
    impulse: Impulse,
    columns: Mapping[str, Floats],
    axes: Mapping[str, xr.DataArray | None],
    what: tuple[str, str],
    share: xr.DataArray,
    notes: list[str],
) -> xr.Dataset:
    """Dataset of an answer, with what is to be told about it."""
    axes = _axes(impulse, impulse.labels) | dict(axes)
    coords = {name: axis.variable for name, axis in axes.items() if axis is not None}
    # Coordinates of the response beside its axes (a selected estimator) go along as they are.
    single = {n: c.variable for n, c in impulse.value.coords.items() if c.ndim == 0}
    dataset = xr.Dataset(
        {name: (tuple(axes), array) for name, array in columns.items()}, coords=single | coords
    )
    for name in columns:
        long_name = _LONG_NAMES.get(name, "{}").format(what[0])
        dataset[name].attrs = {"long_name": long_name, "units": what[1]}
    dataset["last_lag_share"] = share
    dataset["last_lag_share"].attrs = {
        "long_name": "largest response at the last lag over the largest of all",
        "units": "1",
    }
    if notes:
        dataset.attrs["warnings"] = "; ".join(notes)
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=3)
    return dataset
