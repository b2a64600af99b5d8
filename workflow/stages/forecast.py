"""Forecast: answers of a finished run to a forcing, with error bars from its resamples.

Resamples of responses are not stored, being hundreds of times the responses themselves. They are
made again from the sums, a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
from scipy import fft

from hpc.errors import MachineError
from hpc.stores import open_store
from workflow.interfaces import SPACE, UserError
from workflow.responses.channels import Channels
from workflow.responses.forecast import forecast_run
from workflow.responses.observable import Observable
from workflow.responses.probes import group_name, nearest, read_array
from workflow.responses.sources import Floats, Source
from workflow.runs import Run
from workflow.stages.data import load_channels
from workflow.stages.respond import load_sources

PIECE_NUMBERS = 1 << 23
"""Numbers of the resamples made together: 64 MiB in float64."""


def forecast(
    run: Run,
    forcing: xr.DataArray,
    *,
    perturbation: str | None = None,
    observable: str | None = None,
    estimator: str | None = None,
    pattern: xr.DataArray | None = None,
    level: float | None = None,
) -> xr.Dataset:
    """Change of an observable of a run under a forcing.

        d<A>(t) = integral_0^t R(t - t') f(t') dt'

    Args:
        run: with `response.zarr`, and the sums that it was made from.
        forcing: f, as for `responses.forecast.forecast`.
        perturbation: label of what is forced; may be left out where there is one.
        observable: label of what is forecast; may be left out where there is one.
        estimator: label; all of them by default.
        pattern: phi, dims of space, for a forcing f(t) on homogeneous fields.
        level: coverage of the intervals; that of the run by default.

    Returns:
        value, standard_error, ci_low, ci_high, dims (estimator, time, ...).

    Raises:
        MachineError: the run has no responses yet.
        UserError: a label that there is not, or a forcing that does not fit.
    """
    if "response" not in run.ledger("respond").done():
        raise MachineError(
            f"{run.folder} has no response.zarr yet; run first: gfdt run {run.experiment.name}"
        )
    channels = load_channels(run)
    one = _observable(run, channels, observable)
    kicked = _chosen([p.name for p in channels.perturbations], perturbation, "perturbation")
    names: list[str] = list(run.experiment.response.estimators)
    if estimator is not None:
        names = [_chosen(names, estimator, "estimator")]
    sources, weights = load_sources(run, channels)
    stored = _stored(run, one).sel(estimator=names, perturbation=kicked)
    index = [p.name for p in channels.perturbations].index(kicked)
    samples = [
        _resamples(sources[n], one, weights[n], perturbation=index, like=stored.response)
        for n in names
    ]
    stacked = dask.array.stack(samples, axis=1)
    dims = ("sample", *stored.response.dims)
    responses = stored[["response"]].assign(response_samples=(dims, stacked))
    freedom = min(sources[n].units.degrees_of_freedom for n in names)
    # In one thread: pieces made at the same time would need the memory of all of them.
    with dask.config.set(scheduler="synchronous"):
        answer = forecast_run(
            responses,
            forcing,
            pattern=pattern,
            level=run.experiment.response.error.level if level is None else level,
            members=max(2, int(freedom) + 1),
        )
    return answer.assign_attrs(perturbation=kicked, observable=one.name)


def read_pattern(path: Path, run: Run) -> xr.DataArray:
    """Kicks of every pixel per unit of the forcing, from a .npy, NetCDF or Zarr file.

    Raises:
        UserError: no such file, or one without a single array of the shape of the field.
    """
    values = read_array(path, shape=run.saved.shape, key="--pattern")
    return xr.DataArray(values, dims=SPACE[len(run.saved.shape)])


def summary(answer: xr.Dataset) -> list[str]:
    """The largest change of every estimator, and its error bar, in a line each."""
    lines = []
    for name in map(str, np.atleast_1d(answer.estimator.values)):
        one = answer.sel(estimator=name) if "estimator" in answer.dims else answer
        if not bool(np.isfinite(one.value).any()):
            lines.append(f"{name}: no response")
            continue
        at = {str(d): i for d, i in abs(one.value).argmax(...).items()}
        largest = one.isel(at)
        time = largest.time.values
        when = np.datetime_as_string(time, unit="s") if time.dtype.kind == "M" else str(time)
        where = ", ".join(
            f"{d} {largest[d].item() if d in largest.coords else i}"
            for d, i in at.items()
            if d != "time"
        )
        lines.append(
            f"{name}: largest change {float(largest.value):.4g} +- "
            f"{float(largest.standard_error):.2g} at time {when}{f', {where}' if where else ''}"
        )
    return lines


def _observable(run: Run, channels: Channels, wanted: str | None) -> Observable:
    root = open_store(run.response)
    asked = [str(name) for name in np.atleast_1d(root.observable.values)]
    rest = [one for one in channels.observables if one.name not in asked]
    asked += [o.name for o in rest if (run.response / group_name(o.name) / "zarr.json").is_file()]
    name = _chosen(asked, wanted, "observable")
    return next(one for one in channels.observables if one.name == name)


def _chosen(known: Sequence[str], label: str | None, what: str) -> str:
    if label is None and len(known) == 1:
        return known[0]
    if label is None:
        raise UserError(f"this run has several of {what}: {', '.join(known)}; choose one")
    if label not in known:
        raise UserError(f"{what} '{label}' is not in this run; {nearest(label, known)}")
    return label


def _stored(run: Run, one: Observable) -> xr.Dataset:
    """What `response.zarr` has about an observable, without a dimension for it."""
    root = open_store(run.response)
    if one.name in map(str, np.atleast_1d(root.observable.values)):
        return root.sel(observable=one.name, drop=True)
    return open_store(run.response / group_name(one.name))


def _resamples(
    source: Source, one: Observable, weights: Floats, *, perturbation: int, like: xr.DataArray
) -> Any:
    """Lazy `(sample, lag, ...)`, in the order of displacements of the store."""
    shape = like.isel(estimator=0).shape
    moved = tuple(axis - like.ndim for axis, name in enumerate(like.dims) if name in ("dy", "dx"))

    def make(rows: Floats) -> Floats:
        found = source.answer(one, slice(0, shape[0]), rows, raw=False)[:, perturbation]
        return np.asarray(fft.fftshift(found, axes=moved) if moved else found)

    together = max(1, PIECE_NUMBERS // max(1, int(np.prod(shape))))
    pieces = [weights[i : i + together] for i in range(0, len(weights), together)]
    return dask.array.concatenate(
        [
            dask.array.from_delayed(
                dask.delayed(make)(rows), shape=(len(rows), *shape), dtype=np.float64
            )
            for rows in pieces
        ]
    )
