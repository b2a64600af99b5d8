"""Answers that are computed when somebody wants their numbers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
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

    whole = dask.delayed(_numbers, pure=False)(_Once(asked))
    return {name: _labelled(one, name, whole, asked) for name, one in asked.outline().items()}


class _Once:
    """A reduction that Dask cannot look into, and its numbers once this process has made them.

    Whoever looks at one variable after the other must not read all the data for each.
    """

    def __init__(self, asked: Reduction) -> None:
        self._asked, self._lock = asked, threading.Lock()
        self._found: Mapping[tuple[str, str], np.ndarray] | None = None

    def __reduce__(self) -> tuple[type[_Once], tuple[Reduction]]:
        return type(self), (self._asked,)

    def numbers(self) -> Mapping[tuple[str, str], np.ndarray]:
        """By group and variable."""
        with self._lock:
            if self._found is None:
                asked = replace(self._asked, reader=self._asked.reader.unread())
                groups = asked.answer()
                self._found = {
                    (group, str(name)): v.values
                    for group, one in groups.items()
                    for name, v in one.data_vars.items()
                }
            return self._found


def _numbers(once: _Once) -> Mapping[tuple[str, str], np.ndarray]:
    return once.numbers()


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
