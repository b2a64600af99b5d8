"""Even time axes: their step and their units, numbers and dates alike."""

from __future__ import annotations

import numpy as np
import xarray as xr

from workflow.interfaces import UserError

SECONDS = {
    unit: seconds
    for seconds, units in {
        1.0: ("s", "sec", "second", "seconds"),
        60.0: ("min", "minute", "minutes"),
        3600.0: ("h", "hr", "hour", "hours"),
        86400.0: ("d", "day", "days"),
    }.items()
    for unit in units
}
"""Length of the units that are converted into each other; model time is in no unit, "1"."""


def even_step(times: xr.DataArray, *, name: str) -> tuple[float, str]:
    """Step of an even time axis, and its units.

    Args:
        times: numbers (units from the attribute), time differences or dates, one-dimensional.
        name: what the axis is called in messages, as "forcing times".

    Returns:
        (step, units): seconds for dates and time differences; units "1" where none are given.

    Raises:
        UserError: fewer than 2 times; missing, duplicated, unsorted or uneven ones.
    """
    if times.size < 2:
        raise UserError(
            f"{name}: {times.size} given, a step needs at least 2; give a longer series"
        )
    values = np.asarray(times.values)
    if values.dtype.kind not in "iufmMO":
        raise UserError(f"{name} are of type {values.dtype}; needs numbers or dates")
    units = "s" if values.dtype.kind in "mMO" else str(times.attrs.get("units", "1"))
    # Seconds since the first, so that dates lose no digits in float64.
    since = np.asarray(values - values[0])
    if since.dtype.kind == "m":
        since = np.where(np.isnat(since), np.nan, since / np.timedelta64(1, "s"))
    elif since.dtype.kind == "O":  # calendar dates
        since = np.array([difference.total_seconds() for difference in since])
    since = since.astype(np.float64)
    if not np.isfinite(since).all():
        raise UserError(
            f"{name} are missing (NaN) in {(~np.isfinite(since)).sum()} places; drop them"
        )
    steps = np.diff(since)
    if (steps == 0).any():
        at = values[int(np.argmax(steps == 0))]
        raise UserError(
            f"{name} are duplicated ({(steps == 0).sum()}, first {at}); keep one of each"
        )
    if (steps < 0).any():
        at = values[int(np.argmax(steps < 0)) + 1]
        raise UserError(f"{name} decrease ({(steps < 0).sum()} times, first at {at}); sort by time")
    step = float(since[-1] / (since.size - 1))
    # Times stored in single precision are even only to their last digit.
    digits = np.finfo(values.dtype).eps * np.abs(values).max() if values.dtype.kind == "f" else 0.0
    if np.abs(steps - step).max() > 1e-6 * step + 4 * digits:
        raise UserError(
            f"{name} are {steps.min():g} to {steps.max():g} apart; needs even steps: "
            "interpolate to even times"
        )
    return step, units


def step_in(step: float, given: str, *, needed: str, name: str) -> tuple[float, str]:
    """A step in other units, and what had to be assumed.

    Args:
        step: in units `given`.
        given: units of the step; "1" for none.
        needed: units to convert to; "1" for none.
        name: what the step belongs to, for messages.

    Returns:
        (step, note): the note is empty, or tells that units are missing on one side and both
        were taken as the same.

    Raises:
        UserError: two different units that are not seconds, minutes, hours or days.
    """
    if given == needed:
        return step, ""
    if given in SECONDS and needed in SECONDS:
        return step * SECONDS[given] / SECONDS[needed], ""
    if "1" in (given, needed):
        bare, units = (
            (name, f"lags in {needed}") if given == "1" else ("lags", f"{name} in {given}")
        )
        return step, f"{bare} without units, {units}: taken as the same unit"
    raise UserError(
        f"{name} in {given!r}, lags in {needed!r}; give both in one unit (s, min, h, d)"
    )
