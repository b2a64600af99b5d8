"""A user's own data: what they are, and blocks of them in our order.

Zarr and NetCDF of any layout that xarray opens: one long run or many members, no space, one or
two space dimensions, one or several variables. What cannot be used is refused before any work.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workflow.config import DataConfig, FoundConfig, SavedField
from workflow.interfaces import MEMBER, TIME, UserError

EVEN = 1e-3
"""Largest relative deviation of a time step from the mean step."""


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
    raw: xr.Dataset, config: DataConfig, path: str
) -> tuple[DataConfig, dict[str, float | int | str]]:
    """The same of an open dataset, which messages call `path`."""
    variables = config.variables or tuple(
        str(n) for n, v in raw.data_vars.items() if config.dims.get("time", TIME) in v.dims
    )
    if not variables:
        raise UserError(
            f"{path} has no variable with dimension '{config.dims.get('time', TIME)}'; "
            f"it has {_dims_of(raw)}; name the time with data.dims: {{time: NAME}}"
        )
    for name in variables:
        if name not in raw.data_vars:
            raise UserError(f"data.variables: {path} has no '{name}'; {_near(name, raw.data_vars)}")
    dims = _dims(raw, variables, config.dims, path)
    used = config.model_copy(update={"variables": variables, "dims": dims})
    data = arrange(raw, used)
    start, step, units = _times(data, path)
    values = data[variables[0]]
    _refuse_gaps(data, variables, path)
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
        if path.is_dir():
            return xr.open_zarr(path, chunks={})
        return xr.open_dataset(path, chunks={})
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"data.store={path} cannot be opened by xarray: {line}") from None


def arrange(raw: xr.Dataset, config: DataConfig) -> xr.Dataset:
    """The chosen variables with dims (member, time[, y][, x])."""
    names = {theirs: ours for ours, theirs in config.dims.items() if theirs != ours}
    data = raw[list(config.variables)]
    # A coordinate that already has one of our names, on another dimension, would collide.
    data = data.drop_vars([n for n in names.values() if n in data.coords])
    data = data.rename(names)
    if MEMBER not in config.dims:
        data = data.drop_vars(MEMBER, errors="ignore").expand_dims(MEMBER)
    order = [d for d in (MEMBER, TIME, "y", "x") if d == MEMBER or d in config.dims]
    return data.transpose(*order)


@lru_cache(maxsize=4)
def _arranged(text: str) -> xr.Dataset:
    config = DataConfig.model_validate_json(text)
    return arrange(open_data(Path(config.store)), config)


def read_data(config: DataConfig, *, members: range, times: range) -> np.ndarray:
    """A block of the data, `(member, time, field, *shape)`, finite.

    Raises:
        UserError: a value that is no number; names the variable, member and time.
    """
    data = _arranged(config.model_dump_json())
    fields = []
    for name in config.variables:
        block = data[name].isel(
            {MEMBER: slice(members.start, members.stop), TIME: slice(times.start, times.stop)}
        )
        values = np.asarray(block.values)
        _refuse_non_finite(values, name, members, times)
        fields.append(values)
    return np.stack(fields, axis=2)


def _refuse_non_finite(values: np.ndarray, name: str, members: range, times: range) -> None:
    first = first_bad(values)
    if first is not None:
        raise UserError(
            f"variable '{name}' has {int((~np.isfinite(values)).sum())} values that are no "
            f"numbers, the first at member {members[first[0]]}, time index {times[first[1]]}, "
            f"place {first[2:]}; fill the gaps, or cut out a part without any"
        )


def first_bad(values: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first value that is no finite number, None where all are."""
    bad = ~np.isfinite(values)
    return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None


def _refuse_gaps(data: xr.Dataset, variables: Sequence[str], path: str) -> None:
    """Look at the first and the last time at once; every other value is checked when copied."""
    length = data.sizes[TIME]
    for name in variables:
        if data[name].dtype.kind not in "fiu":
            raise UserError(f"variable '{name}' of {path} is {data[name].dtype}; needs numbers")
        for index in (0, length - 1):
            values = np.asarray(data[name].isel({TIME: [index]}).values)
            _refuse_non_finite(values, name, range(len(values)), range(index, index + 1))


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
    for ours in (MEMBER, TIME, "y", "x"):
        if ours not in dims and ours in theirs and ours not in dims.values():
            dims[ours] = ours
    if TIME not in dims:
        raise UserError(
            f"'{variables[0]}' of {path} has dimensions {theirs} and none is called 'time'; "
            "say which with data.dims: {time: NAME}"
        )
    rest = [str(d) for d in theirs if d not in dims.values()]
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


def _times(data: xr.Dataset, path: str) -> tuple[float, float, str]:
    """First time, time step, and CF units of the time, from even, increasing times."""
    length = data.sizes[TIME]
    if length < 3:
        raise UserError(f"{path} has {length} times; a response needs many more")
    if TIME not in data.coords:
        return 0.0, 1.0, "1"
    time = data[TIME]
    values, units, start = np.asarray(time.values), str(time.attrs.get("units", "1")), 0.0
    if values.dtype.kind in "Mm":
        first = np.datetime_as_string(values[0], unit="s") if values.dtype.kind == "M" else None
        units = f"seconds since {first}" if first else "s"
        values = (values - values[0]) / np.timedelta64(1, "s")
    elif values.dtype.kind == "O":
        units = f"seconds since {values[0].isoformat(sep=' ')}"
        values = np.array([(t - values[0]).total_seconds() for t in values])
    else:
        values = values.astype(np.float64)
        start = float(values[0])
    steps = np.diff(values)
    wrong = np.flatnonzero(steps <= 0)
    if wrong.size:
        what = "repeated" if steps[wrong[0]] == 0 else "decreasing"
        raise UserError(
            f"times of {path} are {what} at index {wrong[0] + 1}; sort them and drop repetitions "
            "(ds.sortby('time').drop_duplicates('time'))"
        )
    step = float(steps.mean())
    if np.abs(steps - step).max() > EVEN * step:
        raise UserError(
            f"times of {path} are {steps.min():g} to {steps.max():g} apart; needs even times: "
            "interpolate or select them"
        )
    return start, float(f"{step:.9g}"), units


def _near(name: str, known: Sequence[object] | Mapping[object, object]) -> str:
    names = [str(n) for n in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names)}"


def _dims_of(raw: xr.Dataset) -> str:
    return ", ".join(f"{n}{tuple(v.dims)}" for n, v in raw.data_vars.items()) or "no variables"
