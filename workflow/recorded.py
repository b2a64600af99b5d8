"""A user's own data: what they are, and blocks of them in our order.

Zarr and NetCDF of any layout that xarray opens: one long run or many members, no space, one or
two space dimensions, one or several variables. What cannot be used is refused before any work.
"""

from __future__ import annotations

import difflib
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workflow.config import DataConfig, FoundConfig, SavedField
from workflow.interfaces import MEMBER, TIME, Field, Saved, UserError

EVEN = 1e-3
"""Largest relative deviation of a time step from the mean step."""

MEMBER_NAMES = (
    "member",
    "ensemble",
    "ens",
    "ensemble_member",
    "realization",
    "realisation",
    "run",
    "number",
) + ("sample", "replica", "trajectory", "chain")
"""What members are called elsewhere: such a dimension is never taken for one of space."""

TIME_NAMES = ("time", "t", "valid_time", "Time", "TIME")
"""What times are called elsewhere."""

TIME_UNITS = (("days", 86400.0), ("hours", 3600.0), ("seconds", 1.0))
"""Units of recorded dates: the longest of which the time step is a whole number."""


def find(config: DataConfig, folder: Path) -> tuple[DataConfig, dict[str, float | int | str]]:
    """The data of an experiment, described and checked.

    Args:
        config: as the user wrote it.
        folder: what a relative `store` is relative to.

    Returns:
        The configuration with absolute store, variables, dims and `found` written out; and the
        keys of `ensemble` that the data decide: members, length, save_every, spinup, dtype.

    Raises:
        UserError: in one line, what the data lack.
    """
    path = (folder / config.store).resolve()
    return describe(open_data(path), config.model_copy(update={"store": str(path)}), str(path))


def describe(
    raw: xr.Dataset, config: DataConfig, path: str, *, read: bool = True
) -> tuple[DataConfig, dict[str, float | int | str]]:
    """The same of an open dataset, which messages call `path`; values are looked at if `read`."""
    variables = config.variables or _over_time(raw, config.dims, path)
    for name in variables:
        if name not in raw.data_vars:
            raise UserError(f"data.variables: {path} has no '{name}'; {_near(name, raw.data_vars)}")
        if raw[name].dtype.kind not in "fiu":
            raise UserError(f"variable '{name}' of {path} is {raw[name].dtype}; needs numbers")
    dims = _dims(raw, variables, config.dims, path)
    used = config.model_copy(update={"variables": variables, "dims": dims})
    data = arrange(raw, used)
    start, step, units, calendar = _times(data, path)
    values = data[variables[0]]
    found = FoundConfig(
        fields=tuple(
            SavedField(
                name=n,
                long_name=str(data[n].attrs.get("long_name", n)),
                units=str(data[n].attrs.get("units", "1")),
            )
            for n in variables
        ),
        shape=values.shape[2:],
        start=start,
        time_units=units,
        calendar=calendar,
        fingerprint=_fingerprint(data, variables) if read else "",
    )
    single = all(data[n].dtype == np.float32 for n in variables)
    ensemble = {
        "members": values.shape[0],
        "save_every": step,
        "length": step * values.shape[1],
        "spinup": 0.0,
        "dtype": "float32" if single else "float64",
    }
    return used.model_copy(update={"found": found}), ensemble


def saved_of(config: DataConfig) -> Saved:
    """What every snapshot of described data holds."""
    found = config.found
    assert found is not None, "written by `describe`"
    fields = tuple(Field(f.name, f.long_name, f.units) for f in found.fields)
    return Saved(fields, found.shape, config.homogeneous)


def open_data(path: Path) -> xr.Dataset:
    """A Zarr or NetCDF store as a lazy dataset.

    Raises:
        UserError: there is none, or it cannot be opened.
    """
    if not path.exists():
        raise UserError(
            f"data.store={path} does not exist; give the path of a Zarr or NetCDF store"
        )
    try:
        engine = "zarr" if path.is_dir() else None
        with warnings.catch_warnings():
            # Stores without consolidated metadata are read as well.
            warnings.filterwarnings("ignore", "Failed to open Zarr store", RuntimeWarning)
            return xr.open_dataset(path, engine=engine, chunks={}, decode_timedelta=False)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"data.store={path} cannot be opened by xarray: {line}") from None


def arrange(raw: xr.Dataset, config: DataConfig) -> xr.Dataset:
    """The chosen variables with dims (member, time[, y][, x]), other dims of length 1 left out."""
    names = {theirs: ours for ours, theirs in config.dims.items() if theirs != ours}
    data = raw[list(config.variables)]
    used = set(config.dims.values())
    data = data.squeeze([d for d in data.dims if d not in used and data.sizes[d] == 1], drop=True)
    # A coordinate that already has one of our names, on another dimension, would collide.
    data = data.drop_vars([n for n in names.values() if n in data.coords])
    data = data.rename(names)
    if MEMBER not in config.dims:
        data = data.drop_vars(MEMBER, errors="ignore").expand_dims(MEMBER)
    order = [d for d in (MEMBER, TIME, "y", "x") if d == MEMBER or d in config.dims]
    return data.transpose(*order)


def read_data(config: DataConfig, *, members: range, times: range) -> np.ndarray:
    """A block of the data, `(member, time, field, *shape)`, finite.

    Raises:
        UserError: a value that is no number; names the variable, member and time.
    """
    # Opened anew for every block: a store that has grown must not be read as it was.
    with open_data(Path(config.store)) as raw:
        data = arrange(raw, config)
        # A task reads by itself: asking the cluster it runs on would move the data once more.
        how = {"scheduler": "synchronous"}
        return block_of(data, config.variables, members=members, times=times, **how)


def block_of(
    data: xr.Dataset, variables: Sequence[str], *, members: range, times: range, **how: Any
) -> np.ndarray:
    """A block of arranged data, computed by Dask as `how` says; see `read_data`."""
    some = {MEMBER: slice(members.start, members.stop), TIME: slice(times.start, times.stop)}
    fields = [np.asarray(data[name].isel(some).compute(**how).values) for name in variables]
    for name, values in zip(variables, fields, strict=True):
        _refuse_non_finite(values, name, members, times)
    return np.stack(fields, axis=2)


def _refuse_non_finite(values: np.ndarray, name: str, members: range, times: range) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    first = [int(i) for i in np.argwhere(bad)[0]]
    count = int(bad.sum())
    where = f", place {tuple(first[2:])}" if first[2:] else ""
    raise UserError(
        f"variable '{name}' has {count} value{'s' if count > 1 else ''} of NaN or infinity, the "
        f"first at member {members[first[0]]}, time index {times[first[1]]}{where}; fill the "
        "gaps, or cut out a part without any"
    )


def _fingerprint(data: xr.Dataset, variables: Sequence[str]) -> str:
    """Checksum of the first three times of the first member, which longer data still begin with.

    Reads the last time too, to refuse early what has gaps there; every value is checked when
    it is copied.
    """
    last = data.sizes[TIME] - 1
    block_of(data, variables, members=range(data.sizes[MEMBER]), times=range(last, last + 1))
    first = block_of(data, variables, members=range(1), times=range(3))
    return f"{zlib.crc32(np.ascontiguousarray(first).tobytes()):08x}"


def _over_time(raw: xr.Dataset, dims: Mapping[Any, str], path: str) -> tuple[str, ...]:
    """All variables of numbers that have a time, by name: stores list them in any order."""
    names = (dims[TIME],) if TIME in dims else TIME_NAMES
    found = sorted(
        str(n)
        for n, v in raw.data_vars.items()
        if v.dtype.kind in "fiu" and any(name in v.dims for name in names)
    )
    if not found:
        raise UserError(
            f"{path} has no variable of numbers with dimension '{names[0]}'; "
            f"it has {_dims_of(raw)}; name the time with data.dims: {{time: NAME}}"
        )
    return tuple(found)


def _dims(
    raw: xr.Dataset, variables: Sequence[str], given: Mapping[Any, str], path: str
) -> dict[Any, str]:
    """Which of their dimensions is which of ours, in our order."""
    theirs = raw[variables[0]].dims
    for name in variables[1:]:
        if set(raw[name].dims) != set(theirs):
            raise UserError(
                f"variables of {path} differ in dimensions: '{variables[0]}' has {theirs}, "
                f"'{name}' has {raw[name].dims}; choose with data.variables"
            )
    for ours, name in given.items():
        if name not in theirs:
            raise UserError(
                f"data.dims.{ours}={name}: '{variables[0]}' of {path} has {theirs}; "
                f"{_near(name, theirs)}"
            )
    dims = dict(given)
    known = {MEMBER: MEMBER_NAMES, TIME: TIME_NAMES, "y": ("y",), "x": ("x",)}
    for ours, names in known.items():
        here = [n for n in names if n in theirs and n not in dims.values()]
        if ours not in dims and here:
            dims[ours] = here[0]
    if TIME not in dims:
        raise UserError(
            f"'{variables[0]}' of {path} has dimensions {theirs} and none is called 'time'; "
            "say which with data.dims: {time: NAME}"
        )
    sizes = raw[variables[0]].sizes
    rest = [str(d) for d in theirs if d not in dims.values() and sizes[d] > 1]
    free = [ours for ours in ("y", "x") if ours not in dims]
    if len(rest) > len(free):
        raise UserError(
            f"'{variables[0]}' of {path} has the dimensions {tuple(rest)} besides {sorted(dims)}; "
            "at most two of space are possible: name the members with data.dims: {member: NAME}, "
            "or select one index"
        )
    dims |= dict(zip(free[len(free) - len(rest) :], rest, strict=True))
    if "y" in dims and "x" not in dims:
        dims["x"] = dims.pop("y")
    return {ours: dims[ours] for ours in (MEMBER, TIME, "y", "x") if ours in dims}


def _times(data: xr.Dataset, path: str) -> tuple[float, float, str, str]:
    """First time, time step, CF units and calendar of even, increasing times."""
    length = data.sizes[TIME]
    if length < 3:
        raise UserError(f"{path} has {length} times; a response needs many more")
    if TIME not in data.coords:
        return 0.0, 1.0, "1", ""
    time = data[TIME]
    values, units, start, calendar = np.asarray(time.values), "", 0.0, ""
    if values.dtype.kind in "Mm":
        since = np.datetime_as_string(values[0], unit="s") if values.dtype.kind == "M" else ""
        values = (values - values[0]) / np.timedelta64(1, "s")
    elif values.dtype.kind == "O":
        since, calendar = values[0].isoformat(sep=" "), str(getattr(values[0], "calendar", ""))
        values = np.array([(t - values[0]).total_seconds() for t in values])
    elif values.dtype.kind in "fiu":
        since, units = "", str(time.attrs.get("units") or "1")
        values = values.astype(np.float64)
        start = float(values[0])
    else:
        raise UserError(f"times of {path} are {values.dtype}; needs numbers or dates")
    step = _even_step(values, path, dates=not units)
    if not units:
        units, length_of = next(u for u in TIME_UNITS if step % u[1] == 0 or u[1] == 1.0)
        step /= length_of
        units = f"{units} since {since}" if since else units
    return start, step, units, calendar


def _even_step(values: np.ndarray, path: str, *, dates: bool) -> float:
    """Step of even, increasing times: the shortest decimal number that none of them contradicts.

    Times in single precision have a mean step that changes when the data grow; this does not.
    """
    if not np.isfinite(values).all():
        raise UserError(f"times of {path} are missing at index {np.argmin(np.isfinite(values))}")
    steps = np.diff(values)
    wrong = np.flatnonzero(steps <= 0)
    if wrong.size:
        what = "repeated" if steps[wrong[0]] == 0 else "decreasing"
        raise UserError(
            f"times of {path} are {what} at index {wrong[0] + 1}; sort them and drop repetitions "
            "(ds.sortby('time').drop_duplicates('time'))"
        )
    step = float(values[-1] - values[0]) / len(steps)
    if np.abs(steps - step).max() > EVEN * step:
        months = dates and 28 <= steps.min() / 86400 and steps.max() / 86400 <= 31
        cure = "number the months (ds['time'] = np.arange(n) / 12)" if months else "interpolate"
        raise UserError(
            f"times of {path} are {steps.min():g} to {steps.max():g}{' s' if dates else ''} apart; "
            f"needs even times: {cure} or select them"
        )
    candidates = (float(f"{step:.{digits}g}") for digits in range(1, 16))
    near = (c for c in candidates if abs(c - step) * len(steps) <= EVEN * step)
    return next(near, step)


def time_unit(found: FoundConfig) -> str:
    """CF unit of time steps and lags: that of the times, without their origin."""
    return found.time_units.split(" since")[0]


def _near(name: str, known: Sequence[object] | Mapping[object, object]) -> str:
    names = {str(n).lower(): str(n) for n in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    if near:
        return f"did you mean '{names[near[0]]}'?"
    return f"choose from {', '.join(names.values())}"


def _dims_of(raw: xr.Dataset) -> str:
    return ", ".join(f"{n}{tuple(v.dims)}" for n, v in raw.data_vars.items()) or "no variables"
