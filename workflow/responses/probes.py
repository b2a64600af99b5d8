"""What observables and perturbations share: how they are named, and what is known of the data."""

from __future__ import annotations

import difflib
import functools
import importlib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.interfaces import Saved, UserError, space_axes

HIGHEST_MOMENT = 5
"""Highest moment that is watched."""


@dataclass(frozen=True)
class Statistics:
    """What is known of the unperturbed data, from the snapshots that scores are learned from.

    Per field, and per place too where the statistics depend on it.

    Attributes:
        mean: `(field,)`, or `(field, *shape)` of inhomogeneous fields.
        moments: central moments of order 0 to 5, `(order, *mean.shape)`.
        low: smallest value of each field, `(field,)`.
        high: largest value of each field, `(field,)`.
    """

    mean: Tensor
    moments: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, x: Tensor, *, homogeneous: bool) -> Statistics:
        """Statistics of snapshots `(batch, field, *shape)`, in float64."""
        axes = (0, *space_axes(x)) if homogeneous else (0,)
        count = math.prod(x.shape[axis] for axis in axes)
        mean = x.mean(dim=axes, dtype=torch.float64)
        like = mean.reshape(len(mean), *([1] * (x.ndim - 2) if homogeneous else mean.shape[1:]))
        sums = torch.zeros(HIGHEST_MOMENT + 1, *mean.shape, dtype=torch.float64)
        for part in x.split(4096):
            deviation = part.double() - like
            for order in range(HIGHEST_MOMENT + 1):
                sums[order] += deviation.pow(order).sum(dim=axes)
        flat = x.transpose(0, 1).reshape(x.shape[1], -1)
        return cls(mean, sums / count, flat.min(1).values.double(), flat.max(1).values.double())

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `Statistics(**state)` makes it again."""
        names = ("mean", "moments", "low", "high")
        return {name: getattr(self, name) for name in names}

    def spread(self, field: int) -> float:
        """Standard deviation of a field, root mean square over the places."""
        return float(self.moments[2, field].mean().sqrt())


def parse(spec: str | Mapping[str, Any], *, key: str) -> tuple[str, dict[str, Any]]:
    """Kind and parameters of a probe, from its name or its mapping.

    Raises:
        UserError: a mapping without `kind`.
    """
    if isinstance(spec, str):
        return spec, {}
    parameters = dict(spec)
    kind = parameters.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{key}: {dict(spec)} has no kind; write it like {{kind: field}}")
    return kind, parameters


def refuse_rest(parameters: Mapping[str, Any], known: Collection[str], *, key: str) -> None:
    """Refuse the parameters that nothing has taken.

    Raises:
        UserError: the first of them, with the nearest of the known ones.
    """
    for name in parameters:
        raise UserError(f"unknown key '{key}.{name}'; {nearest(name, known)}")


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for a mistyped name."""
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if known else "it takes none"


def find_function(kind: str, *, key: str) -> Callable[..., Any]:
    """The function of `module:function`.

    Raises:
        UserError: there is none.
    """
    module, _, name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}: {kind}: {error}; put the module beside the experiment file or on PYTHONPATH"
        ) from None
    if not callable(found):
        raise UserError(f"{key}: {kind} is no function")
    function: Callable[..., Any] = found
    return function


def read_array(path: Path, *, shape: tuple[int, ...], key: str) -> np.ndarray:
    """An array of the user's, from a .npy file or the one variable of a NetCDF or Zarr store.

    Raises:
        UserError: no such file, no single array in it, or not finite numbers of that shape.
    """
    if not path.exists():
        raise UserError(f"{key}={path}: does not exist; give a .npy, NetCDF or Zarr file")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            opened = xr.open_zarr(path) if path.is_dir() else xr.open_dataset(path)
            (name,) = opened.data_vars
            values = opened[name].values
    except Exception as error:
        raise UserError(f"{key}={path}: cannot be read as one array: {first_line(error)}") from None
    if values.shape != shape or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UserError(
            f"{key}={path}: {values.dtype} of shape {values.shape}; needs finite numbers of "
            f"shape {shape}, that of the field"
        )
    return values.astype(np.float64)


def guarded(function: Callable[..., Any], *, name: str) -> Callable[..., Any]:
    """A function of the user's whose own errors are told in one line."""

    @functools.wraps(function)  # with its attributes: one of them may be a divergence
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{name} failed with {what}; mend the function") from error

    return call


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fields_of(saved: Saved, parameters: dict[str, Any], *, key: str) -> list[int]:
    """Indices of the fields that a probe is about: the one it names, else all."""
    name = parameters.pop("field", None)
    names = [field.name for field in saved.fields]
    if name is None:
        return list(range(len(names)))
    if name not in names:
        raise UserError(f"{key}.field={name}; {nearest(str(name), names)}")
    return [names.index(name)]


def label(kind: str, saved: Saved, field: int) -> str:
    """Label of a probe of one field: as "pixel", or "pixel:vorticity" where there are several."""
    return kind if len(saved.fields) == 1 else f"{kind}:{saved.fields[field].name}"


def group_name(observable: str) -> str:
    """Name of the group of an observable: its label, without what paths and people stumble over."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", observable).strip("_")


def place_of(at: Any, shape: Sequence[int], *, key: str) -> tuple[int, ...]:
    """A place of the grid from a list of whole numbers, y first."""
    try:
        place = tuple(int(i) for i in at)
    except (TypeError, ValueError):
        place = ()
    inside = len(place) == len(shape)
    inside = inside and all(-n <= i < n for i, n in zip(place, shape, strict=True))
    if not inside:
        raise UserError(f"{key}.at={at}: needs {len(shape)} grid indices within {tuple(shape)}")
    return tuple(i % n for i, n in zip(place, shape, strict=True))


def number(parameters: dict[str, Any], name: str, default: float | None, *, key: str) -> float:
    """A number among the parameters.

    Raises:
        UserError: it is missing and has no default, or is no number.
    """
    value = parameters.pop(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise UserError(f"{key}.{name}={value}: needs a number")
    return float(value)
