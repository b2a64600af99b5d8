"""Answers that are computed when somebody wants their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from workflow.reduction import Reduction


def deferred(asked: Reduction) -> dict[str, xr.Dataset]:
    """The answer by group, as dask arrays that share the one task that makes them all.

    The task holds the data as they are, lazy, and reads them block by block: were their chunks its
    inputs, Dask would hold all of them at once.
    """
    import dask

    whole = dask.delayed(_numbers, pure=False)(_Closed(asked))
    return {name: _labelled(one, name, whole, asked) for name, one in asked.outline().items()}


class _Closed:
    """What Dask must not look into."""

    def __init__(self, asked: Reduction) -> None:
        self.asked = asked


def _numbers(closed: _Closed) -> Mapping[tuple[str, str], np.ndarray]:
    groups = closed.asked.answer()
    return {(g, str(n)): v.values for g, one in groups.items() for n, v in one.data_vars.items()}


def _labelled(one: xr.Dataset, group: str, whole: Any, asked: Reduction) -> xr.Dataset:
    """The outline of a group with its numbers to come."""
    import dask.array

    lag = asked.lag
    sizes = {**one.sizes, "lag": len(lag)}
    variables = {}
    for name, v in one.data_vars.items():
        shape = tuple(sizes[d] for d in v.dims)
        values = dask.array.from_delayed(whole[group, str(name)], shape, dtype=v.dtype)
        variables[name] = (v.dims, values, v.attrs)
    coords = {n: c if n != "lag" else ("lag", lag, c.attrs) for n, c in one.coords.items()}
    return xr.Dataset(variables, coords=coords, attrs=one.attrs)
