"""Scores of labelled data, and the identity that tests them; lazy where the data are lazy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from workflow.config import DataConfig
from workflow.interfaces import MEMBER, SPACE, TIME, System, UserError
from workflow.reading import (
    Reader,
    Score,
    ScoreLike,
    check_score,
    evaluated,
    score_of,
    scores_as_data,
)
from workflow.recorded import arrange, describe

MATRIX = 4096
"""Most numbers of a snapshot whose whole Stein matrix is made."""


def scores_of(
    data: xr.Dataset | xr.DataArray,
    *,
    score: ScoreLike = "gaussian",
    dims: Mapping[str, str] | None = None,
    given: str | Sequence[str] = (),
    homogeneous: bool = False,
    system: System | None = None,
    seed: int = 1,
) -> xr.Dataset:
    """The score of every snapshot of the data.

        s(x) = grad log p(x),  or of some variables x given others y:  s(x, y) = grad_x log p(x | y)

    Dask data stay lazy: the score is fitted (to at most 256 MiB of evenly spaced snapshots) and
    applied when the answer is computed, chunk by chunk of time and member; only coordinates are
    looked at before.

    Args:
        data: as for `workflow.analysis.responses_of`.
        score: "gaussian", "kgmm", "exact" (with `system`), or a function of torch tensors
            `(batch, field + given, *shape)` that returns `(batch, field, *shape)`.
        dims: what our dimensions are called in the data, as {"time": "t", "member": "run"}.
        given: variables that drive the others: the score is that of the others given these.
        homogeneous: True where the statistics do not depend on the place (periodic grid).
        system: for the exact score.
        seed: of KGMM.

    Returns:
        `score_<variable>` with the dims and coordinates of the data, in inverse units of it; none
        of given variables.

    Raises:
        UserError: in one line, what the data or the arguments lack; of values when computed.
    """
    reader = _read(data, dims, given, homogeneous)
    if isinstance(score, xr.Dataset):
        raise UserError("score: these are scores already; give a name or a function")
    check_score(score, reader, system=system)
    config, fields = reader.config, [field.name for field in reader.saved.fields]
    options = {"system": system, "seed": seed}
    if any(reader.data[field.name].chunks for field in reader.saved.all_fields):
        stacked = _lazily(reader, score, options)
    else:
        stacked = _apply(_stack(reader), fitted(reader, score, options), reader.fields)
    arranged = reader.data
    order = [d for d in (MEMBER, TIME, "y", "x") if d in arranged[fields[0]].dims]
    coords = {n: c for n, c in arranged.coords.items() if set(c.dims) <= set(order)}
    found = {}
    for i, name in enumerate(fields):
        units = str(arranged[name].attrs.get("units", "1"))
        words = str(arranged[name].attrs.get("long_name", name))
        attrs = {"long_name": f"score of {words}", "units": "1" if units == "1" else f"({units})-1"}
        found[f"score_{name}"] = (order, stacked[:, :, i], attrs)
    answer = xr.Dataset(found, coords=coords, attrs={"Conventions": "CF-1.11"})
    answer.attrs["title"] = f"score by {score if isinstance(score, str) else 'a function'}"
    answer = answer.rename({o: t for o, t in config.dims.items() if o != t and o in answer.dims})
    return answer if MEMBER in config.dims else answer.squeeze(MEMBER, drop=True)


def stein_of(
    data: xr.Dataset | xr.DataArray,
    *,
    score: ScoreLike = "gaussian",
    dims: Mapping[str, str] | None = None,
    given: str | Sequence[str] = (),
    homogeneous: bool = False,
    system: System | None = None,
    seed: int = 1,
) -> xr.Dataset:
    """The identity that the true score obeys, tested: M = -<(x - <x>) s^T> = 1.

    Args:
        data: as for `scores_of`, and the rest too.
        score: as there, or a Dataset of scores `score_<variable>` with the dims of the data.
        dims: as there.
        given: as there; the identity is that of the other variables.
        homogeneous: then M is told per wavenumber, else as a whole matrix.
        system: as there.
        seed: as there.

    Returns:
        `stein` with dims (variable, kicked_variable[, ky][, kx]), or (number, kicked_number) for
        fields of other places; `expected`; and `standard_error`, from the spread of members where
        there are several. Lazy where the data are lazy.

    Raises:
        UserError: as `scores_of`; more numbers in a snapshot than a matrix may have rows.
    """
    reader = _read(data, dims, given, homogeneous)
    scored = score
    if not isinstance(scored, xr.Dataset):
        own: dict[str, Any] = {"dims": dims, "given": given, "homogeneous": homogeneous}
        scored = scores_of(data, score=scored, system=system, seed=seed, **own)
    names = [field.name for field in reader.saved.fields]
    x, s = _joined(reader.data[names]), _joined(scores_as_data(scored, reader))
    shape = reader.saved.shape
    x = x - x.mean((MEMBER, TIME, *(SPACE[len(shape)] if homogeneous else ())))
    if homogeneous and shape:
        products = _by_wavenumber(x, s, shape)
    else:
        products = _whole(x, s, shape)
    members = products.sizes[MEMBER]
    error = products.std(MEMBER, ddof=1) / np.sqrt(members) if members > 1 else None
    words = "Stein matrix -<x s^T>, the expected one for the score of the data"
    found = {"stein": products.mean(MEMBER).assign_attrs(long_name=words, units="1")}
    if error is not None:
        words = f"standard error of stein, from the spread of {members} members"
        found["standard_error"] = error.assign_attrs(long_name=words, units="1")
    found["expected"] = _expected(found["stein"])
    title = {"Conventions": "CF-1.11", "title": "test of a score by the Stein identity"}
    return xr.Dataset(found, attrs=title)


def fitted(reader: Reader, score: ScoreLike, options: Mapping[str, Any]) -> Score:
    """The score as a function, fitted to the data where it has to be."""
    function, _ = score_of(score, reader, reader.config, **options)
    return function


def _fitted_to(
    data: xr.Dataset,
    config: DataConfig,
    given: Sequence[str],
    score: ScoreLike,
    options: Mapping[str, Any],
) -> Score:
    return fitted(Reader(data, config, given), score, options)


def _read(
    data: xr.Dataset | xr.DataArray,
    dims: Mapping[str, str] | None,
    given: str | Sequence[str],
    homogeneous: bool,
) -> Reader:
    """A reader of the data that has not read anything."""
    raw = data.to_dataset(name=data.name or "x") if isinstance(data, xr.DataArray) else data
    config = DataConfig(store="data", dims=dict(dims or {}), homogeneous=homogeneous)
    config, _ = describe(raw, config, "the data", read=False)
    told = (given,) if isinstance(given, str) else given
    return Reader(arrange(raw, config), config, told)


def _stack(reader: Reader) -> np.ndarray:
    fields = [reader.data[field.name].values for field in reader.saved.all_fields]
    return np.stack(fields, axis=2)


def _apply(values: np.ndarray, score: Score, fields: int) -> np.ndarray:
    """Scores `(member, time, field, *shape)` of `(member, time, field + given, *shape)`."""
    if not values.size or not np.isfinite(values).all():
        raise UserError("the data have values that are no numbers; fill the gaps, or cut them out")
    kind = torch.float32 if values.dtype == np.float32 else torch.float64
    x = torch.from_numpy(np.ascontiguousarray(values)).to(kind)
    s = evaluated(score, x.flatten(0, 1), fields)
    return np.asarray(s.unflatten(0, x.shape[:2]))


def _lazily(reader: Reader, score: ScoreLike, options: Mapping[str, Any]) -> Any:
    """Scores as a dask array; one task fits, one task a chunk applies."""
    import dask
    import dask.array

    fields = [field.name for field in reader.saved.all_fields]
    thin = reader.thin(reader.data)
    function: Any = score
    if not callable(score):
        function = dask.delayed(_fitted_to)(
            thin, reader.config, fields[reader.fields :], score, options
        )
    arrays = [dask.array.asarray(reader.data[name].data) for name in fields]
    whole = {axis: -1 for axis in range(2, arrays[0].ndim)}
    x = dask.array.stack([one.rechunk(whole) for one in arrays], axis=2).rechunk({2: -1})
    kind = np.float32 if x.dtype == np.float32 else np.float64
    chunks = (*x.chunks[:2], (reader.fields,), *x.chunks[3:])
    meta = np.empty((0,) * x.ndim, kind)
    return x.map_blocks(_apply, function, reader.fields, chunks=chunks, dtype=kind, meta=meta)


def _joined(data: xr.Dataset) -> xr.DataArray:
    names = list(data.data_vars)
    joined = xr.concat(
        [data[n] for n in names], dim="variable", coords="minimal", compat="override"
    )
    return joined.drop_vars(list(joined.coords)).assign_coords(variable=names)


def _by_wavenumber(x: xr.DataArray, s: xr.DataArray, shape: tuple[int, ...]) -> xr.DataArray:
    """-Re <x_k conj(s_k)> / numbers of places, per member and wavenumber."""
    space = list(SPACE[len(shape)])
    waves = [f"k{d}" for d in space]

    def transform(one: xr.DataArray) -> xr.DataArray:
        axes = tuple(range(-len(space), 0))
        return xr.apply_ufunc(
            lambda v: np.fft.fftshift(np.fft.fftn(v, axes=axes), axes=axes),
            one.chunk({d: -1 for d in space}) if one.chunks else one,
            input_core_dims=[space],
            output_core_dims=[waves],
            dask="parallelized",
            output_dtypes=[np.complex128],
            dask_gufunc_kwargs={"output_sizes": dict(zip(waves, shape, strict=True))},
        )

    kicked = transform(s).rename(variable="kicked_variable")
    found = -(transform(x) * kicked.conj()).mean(TIME).real / np.prod(shape)
    steps = {k: np.arange(n) - n // 2 for k, n in zip(waves, shape, strict=True)}
    return found.assign_coords(steps).transpose(MEMBER, "variable", "kicked_variable", *waves)


def _whole(x: xr.DataArray, s: xr.DataArray, shape: tuple[int, ...]) -> xr.DataArray:
    """-<x s^T> of all numbers of a snapshot, per member."""
    space = SPACE[len(shape)]
    if not space:
        kicked = s.rename(variable="kicked_variable")
        return -xr.dot(x, kicked, dim=TIME) / x.sizes[TIME]
    numbers = x.sizes["variable"] * int(np.prod(shape))
    if numbers > MATRIX:
        raise UserError(
            f"a snapshot has {numbers} numbers, its Stein matrix would have {numbers**2}; give "
            f"homogeneous=True where places are alike, or select at most {MATRIX} numbers"
        )
    stacked = [
        one.stack({to: ("variable", *space)}, create_index=False).drop_vars("variable")
        for one, to in ((x, "number"), (s, "kicked_number"))
    ]
    return -xr.dot(*stacked, dim=TIME) / x.sizes[TIME]


def _expected(stein: xr.DataArray) -> xr.DataArray:
    rows, columns = stein.dims[:2]
    identity = np.eye(stein.sizes[rows], stein.sizes[columns])
    return xr.DataArray(
        identity, dims=(rows, columns), attrs={"long_name": "identity", "units": "1"}
    )
