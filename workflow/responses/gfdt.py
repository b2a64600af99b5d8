"""Response to a small kick, read from an unperturbed run and its score (labelled arrays)."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from workflow.interfaces import LAG, MEMBER, TIME, UserError
from workflow.responses.correlation import block_bounds, lag_sums, pair_counts

_BLOCK_NUMBERS = 1 << 24
"""Numbers read at once from a lazy array: 64 MiB in float32."""


def impulse_response(
    x: xr.DataArray,
    score: xr.DataArray,
    *,
    max_lag: int,
    centre: bool = True,
) -> xr.DataArray:
    """Mean response of every pixel to a kick of one pixel, from unperturbed data alone.

        R(lag, r) = -< x(p + r, t + lag) s(p, t) >,      s = grad log p

    averaged over the kicked pixel p and the time t. A forcing of any shape and history is
    answered by a convolution with R. Wrong where the statistics depend on the place (then R
    depends on p too), where x hides part of the state that the kick would move, and where the
    score is wrong: R(0, r) must be 1 at r = 0 and 0 elsewhere (see `recalibration`).

    Args:
        x: responding field, dims (member, time) and up to two of space, on a periodic grid;
            may be lazy, it is read in blocks of time and groups of members.
        score: score of the kicked field at the same times, same dims, 1 / units of that field.
        max_lag: longest lag, in saved samples.
        centre: subtract the mean over members, time and space of both; their product is
            zero in expectation only and its sample value is noise.

    Returns:
        R per member, dims (member, lag, dy, dx), without dy or without both for fewer space
        dimensions; lag in units of the time coordinate, displacements in grid steps of the
        responder from the kicked pixel. Average over members last: their spread is the error
        bar (`statistics.estimate`).

    Raises:
        UserError: dims that do not fit, uneven times, or lags that no pair of samples spans.

    Source: arXiv:2402.01029, equation 3.
    """
    check_arrays(x, score)
    step = time_step(x)
    members, length, *shape = x.shape
    block = min(length, max(4 * max_lag, _BLOCK_NUMBERS // max(1, x[0, 0].size), 1))
    bounds = list(block_bounds(length, block, max_lag=max_lag))
    means = array_means(x, score) if centre else (0.0, 0.0)
    group = max(1, _BLOCK_NUMBERS // (block * max(1, x[0, 0].size)))
    pairs = pair_counts(0, length, length=length, max_lag=max_lag)
    sums = np.zeros((members, max_lag + 1, *shape))
    for start, stop, stop_lagged in bounds:
        for first in range(0, members, group):
            some = slice(first, first + group)
            a, b = x[some, start:stop_lagged].values, score[some, start:stop].values
            if centre:
                a, b = a - means[0], b - means[1]
            sums[some] += lag_sums(a[:, :, None], b[:, :, None], max_lag=max_lag)[:, :, 0, 0]
    response = sums / -pairs.reshape(-1, *[1] * len(shape))
    labelled = label_displacements(response, space=x.dims[2:])
    labelled = labelled.assign_coords(lag=step * np.arange(max_lag + 1))
    if MEMBER in x.coords:
        labelled = labelled.assign_coords({MEMBER: x.coords[MEMBER].values})
    labelled[LAG].attrs = lag_attributes(x)
    return labelled


def label_displacements(
    response: NDArray[np.floating], *, space: tuple[object, ...]
) -> xr.DataArray:
    """Labelled response, displacements in increasing order.

    Args:
        response: `(member, lag, *shape)`, displacements in FFT order.
        space: names of the space axes, `("y", "x")`.

    Returns:
        Dims (member, lag, dy, dx); dy and dx from -n//2 to (n - 1)//2.
    """
    shape = response.shape[2:]
    axes = tuple(range(2, response.ndim))
    coords = {f"d{name}": np.arange(n) - n // 2 for name, n in zip(space, shape, strict=True)}
    array = xr.DataArray(
        np.fft.fftshift(response, axes=axes) if axes else response,
        dims=(MEMBER, LAG, *coords),
        coords=coords,
        name="response",
        attrs={"long_name": "impulse response", "units": "1"},
    )
    for name in coords:
        array[name].attrs = {
            "long_name": f"displacement along {name[1:]} of the responder from the kicked pixel",
            "units": "1",
        }
    return array


def check_arrays(x: xr.DataArray, score: xr.DataArray) -> None:
    """Refuse arrays that are not fields of the same runs at the same times."""
    if x.dims[:2] != (MEMBER, TIME) or x.ndim > 4:
        raise UserError(
            f"x has dims {x.dims}; needs (member, time) and up to two of space: transpose it"
        )
    if score.dims != x.dims or score.shape != x.shape:
        raise UserError(
            f"score has {dict(score.sizes)}, x has {dict(x.sizes)}; "
            "evaluate the score at the same members, times and places"
        )


def time_step(x: xr.DataArray) -> float:
    """Spacing of the saved times, seconds for dates; 1 without a time coordinate."""
    if TIME not in x.coords or x.sizes[TIME] < 2:
        return 1.0
    times = np.asarray(x[TIME].values)
    steps = np.diff(times)
    if steps.dtype.kind == "m":
        steps = steps / np.timedelta64(1, "s")
    elif steps.dtype.kind == "O":  # calendar dates
        steps = np.array([step.total_seconds() for step in steps])
    steps = steps.astype(np.float64)
    if steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-6):
        raise UserError(
            f"times are {steps.min():g} to {steps.max():g} apart; needs even, increasing times: "
            "interpolate or select them"
        )
    return float(steps.mean())


def array_means(x: xr.DataArray, score: xr.DataArray) -> tuple[float, float]:
    """Means over members, time and space, summed in float64."""
    return float(x.mean(dtype=np.float64)), float(score.mean(dtype=np.float64))


def lag_attributes(x: xr.DataArray) -> dict[str, str]:
    """Name and units of the lag of a response of x."""
    attributes = {"long_name": "time since the kick"}
    if TIME in x.coords:
        time = x[TIME]
        if time.dtype.kind in "MmO":
            attributes["units"] = "s"
        elif "units" in time.attrs:
            attributes["units"] = str(time.attrs["units"])
    return attributes
