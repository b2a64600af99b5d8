"""Forcings f(t) and f(t, y, x): read from files, checked before anything is computed."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from workflow.interfaces import TIME, UserError
from workflow.responses.times import even_step


def read_forcing(path: str | Path) -> xr.DataArray:
    """Forcing from a file, in memory.

    Args:
        path: NetCDF file, Zarr store (a folder), or CSV with a header and two columns,
            `time,value`; the times are numbers or ISO dates.

    Returns:
        The one variable of the file, dims (time) or (time, y, x), named as there.

    Raises:
        UserError: no such file, one that cannot be read, no time, several variables, NaN,
            uneven, unsorted or duplicated times.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"forcing {path} does not exist; give a NetCDF, Zarr or CSV file")
    forcing = _from_csv(path) if path.suffix.lower() == ".csv" else _from_store(path)
    check_forcing(forcing, source=f"forcing {path}")
    return forcing


def check_forcing(forcing: xr.DataArray, *, source: str = "forcing") -> None:
    """Refuse what is no real, complete series at even times.

    Args:
        forcing: anything labelled.
        source: what it is called in messages.

    Raises:
        UserError: see `read_forcing`.
    """
    if TIME not in forcing.dims or TIME not in forcing.coords:
        raise UserError(
            f"{source} has dims {forcing.dims} without a time coordinate; name its axis 'time' "
            "and give it times"
        )
    if forcing.dtype.kind not in "biuf":
        raise UserError(f"{source} is of type {forcing.dtype}; needs real numbers")
    even_step(forcing[TIME], name=f"{source}: times")
    missing = int((~np.isfinite(forcing)).sum())
    if missing:
        raise UserError(f"{source} has {missing} values that are NaN or infinite; fill them")


def _from_store(path: Path) -> xr.DataArray:
    """The one variable over time of a NetCDF file or a Zarr store."""
    engine = "zarr" if path.is_dir() else None
    try:
        with warnings.catch_warnings():
            # Stores without consolidated metadata are read as well.
            warnings.filterwarnings("ignore", "Failed to open Zarr store", RuntimeWarning)
            # Bounds of times are no forcing: decoded as coordinates.
            opened = xr.open_dataset(path, engine=engine, decode_coords="all")
    # What a broken file raises depends on the library that tries to read it.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"forcing {path} cannot be read ({reason}); give a NetCDF, Zarr or CSV file"
        ) from error
    with opened:
        over_time = [name for name, v in opened.data_vars.items() if TIME in v.dims]
        if not over_time:
            raise UserError(
                f"forcing {path} has no variable over time, only "
                f"{sorted(map(str, opened.variables))}; name its time axis 'time'"
            )
        if len(over_time) > 1:
            raise UserError(
                f"forcing {path} has the variables {sorted(map(str, over_time))}; needs one: "
                "save the one that forces in its own file"
            )
        return opened[over_time[0]].load()


def _from_csv(path: Path) -> xr.DataArray:
    """Two columns with a header, the first of them times."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"forcing {path} cannot be read ({error}); give a text file") from error
    header = rows[0] if rows else []
    if not header or header[0].lower() != TIME:
        raise UserError(
            f"forcing {path} starts with {','.join(header)!r}; needs the header 'time,value'"
        )
    if len(header) != 2:
        raise UserError(f"forcing {path} has the columns {header}; needs two, time and value")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise UserError(
                f"forcing {path}: row {number} has {len(row)} columns; needs two, time and value"
            )
    times = _parsed([row[0] for row in rows[1:]], path=path, column=header[0], dates=True)
    values = _parsed([row[1] for row in rows[1:]], path=path, column=header[1], dates=False)
    return xr.DataArray(values, dims=TIME, coords={TIME: times}, name=header[1])


def _parsed(cells: list[str], *, path: Path, column: str, dates: bool) -> np.ndarray:
    """Numbers, or dates where there are any."""
    for kind in ("float64", "datetime64[ns]") if dates else ("float64",):
        try:
            return np.array([cell or "nan" for cell in cells], dtype=kind)
        except ValueError:
            continue
    wanted = "numbers or ISO dates" if dates else "numbers"
    raise UserError(f"forcing {path}: column {column!r} needs {wanted} in every row")
