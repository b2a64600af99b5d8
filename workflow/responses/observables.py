"""Observables A(x): what is watched, by name.

An observable of the place has one value at every place (the field itself, a power of it, whether
it exceeds a threshold); any other has one value, or one row of values, for the whole snapshot.
A new kind is one function here and one line in `OBSERVABLES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.interfaces import MEMBER, SPACE, TIME, Saved, UserError
from workflow.responses.observable import Observable, refuse_clashes
from workflow.responses.probes import (
    HIGHEST_MOMENT,
    Statistics,
    fields_of,
    find_function,
    guarded,
    label,
    nearest,
    number,
    parse,
    place_of,
    refuse_rest,
)

BINS = 40
"""Bins of a histogram by default."""


def build_observables(
    specs: Sequence[str | Mapping[str, Any]], saved: Saved, statistics: Statistics | None
) -> list[Observable]:
    """The observables that an experiment names.

    Args:
        specs: names, or mappings with `kind` and parameters.
        saved: the fields.
        statistics: of the unperturbed data; None while only the names are checked.

    Raises:
        UserError: an unknown kind or parameter, two observables of one name, or several with
            labels of their own along the same axis and none without.
    """
    found: list[Observable] = []
    fields = {one.name for one in field_observables(saved)}
    for index, spec in enumerate(specs):
        key = f"response.observables[{index}]"
        kind, parameters = parse(spec, key=key)
        name = parameters.pop("name", None)
        made = _build(kind, parameters, saved, statistics, key)
        own = {one.name for one in made} if kind == "field" else set()
        if name is not None and len(made) == 1:
            made = [_renamed(made[0], str(name))]
        for one in made:
            # The fields are watched in every run, and found by name.
            if one.name in fields - own:
                raise UserError(f"{key}: '{one.name}' is the name of a field; give another name")
        found += made
    refuse_clashes(found)
    return found


def field_observables(saved: Saved) -> list[Observable]:
    """The fields themselves, one observable each: what every recalibration needs."""
    return [_field(saved, field) for field in range(len(saved.fields))]


def _build(
    kind: str,
    parameters: dict[str, Any],
    saved: Saved,
    statistics: Statistics | None,
    key: str,
) -> list[Observable]:
    if ":" in kind:
        refuse_rest(parameters, ("name",), key=key)
        return [_users(kind, saved, key)]
    stem, _, order = kind.rpartition("_")
    name, known = (stem, "2") if stem in ("moment", "central_moment") else (kind, "")
    if name not in OBSERVABLES:
        raise UserError(f"{key}={kind}: no such observable; {nearest(kind, NAMES)}")
    if known:
        if not order.isdigit() or not 2 <= int(order) <= HIGHEST_MOMENT:
            raise UserError(f"{key}={kind}: moments have the orders 2 to {HIGHEST_MOMENT}")
        parameters["order"] = int(order)
    chosen = fields_of(saved, parameters, key=key)
    make = OBSERVABLES[name]
    made = []
    for field in chosen:
        own = dict(parameters)
        made.append(make(saved, field, statistics=statistics, parameters=own, key=key))
        refuse_rest(own, ("field", "name", *PARAMETERS.get(name, ())), key=key)
    return made


def _renamed(one: Observable, name: str) -> Observable:
    return replace(one, name=name)


def _field(saved: Saved, field: int, **_: Any) -> Observable:
    about = saved.fields[field]
    return Observable(
        label("field", saved, field), about.long_name, about.units, lambda x: x[:, field]
    )


def _mean(saved: Saved, field: int, **_: Any) -> Observable:
    about = saved.fields[field]
    return Observable(
        label("mean", saved, field),
        f"space mean of {about.long_name}",
        about.units,
        lambda x: x[:, field].reshape(len(x), -1).mean(1),
        of_place=False,
    )


def _pixel(
    saved: Saved, field: int, *, parameters: dict[str, Any], key: str, **_: Any
) -> Observable:
    if saved.maps:
        raise UserError(
            f"{key}=pixel: all pixels of a homogeneous field are one; use 'field', whose response "
            "at displacement (dy, dx) is that of a pixel"
        )
    place = place_of(parameters.pop("at", ()), saved.shape, key=key)
    about = saved.fields[field]
    flat = int(np.ravel_multi_index(place, saved.shape)) if saved.shape else 0
    where = ",".join(map(str, place))
    return Observable(
        label(f"pixel[{where}]", saved, field),
        f"{about.long_name} at index ({where})",
        about.units,
        lambda x: x[:, field].reshape(len(x), -1)[:, flat],
        of_place=False,
    )


def _moment(
    saved: Saved,
    field: int,
    *,
    statistics: Statistics | None,
    parameters: dict[str, Any],
    **_: Any,
) -> Observable:
    """(x - m)^n about the unperturbed mean m."""
    order = parameters.pop("order")
    mean = _like(statistics.mean[field], saved) if statistics else None
    about = saved.fields[field]

    def values(x: Tensor) -> Tensor:
        assert mean is not None
        return (x[:, field] - mean.to(x.dtype)).pow(order)

    return Observable(
        label(f"moment_{order}", saved, field),
        f"power {order} of the deviation of {about.long_name} from its unperturbed mean",
        _power(about.units, order),
        values,
    )


def _central_moment(
    saved: Saved,
    field: int,
    *,
    statistics: Statistics | None,
    parameters: dict[str, Any],
    **_: Any,
) -> Observable:
    """The central moment itself: its mean moves too, d<(x - m)^n> = d<A> - n m_{n-1} d<x>."""
    order = parameters.pop("order")
    mean = _like(statistics.mean[field], saved) if statistics else None
    slope = order * _like(statistics.moments[order - 1, field], saved) if statistics else None
    about = saved.fields[field]

    def values(x: Tensor) -> Tensor:
        assert mean is not None and slope is not None
        deviation = x[:, field] - mean.to(x.dtype)
        return deviation.pow(order) - slope.to(x.dtype) * deviation

    return Observable(
        label(f"central_moment_{order}", saved, field),
        f"central moment {order} of {about.long_name}",
        _power(about.units, order),
        values,
    )


def _exceedance(
    saved: Saved, field: int, *, parameters: dict[str, Any], key: str, **_: Any
) -> Observable:
    above = number(parameters, "above", None, key=key)
    about = saved.fields[field]
    return Observable(
        label(f"exceedance({above:g})", saved, field),
        f"probability that {about.long_name} exceeds {above:g}",
        "1",
        lambda x: (x[:, field] > above).to(x.dtype),
        continuous=False,
    )


def _spectrum(saved: Saved, field: int, *, key: str, **_: Any) -> Observable:
    """Variance of the field in shells of |k| rounded to whole numbers; the sum is the variance."""
    if not saved.shape:
        raise UserError(f"{key}=spectrum: needs a field in space; use moment_2")
    shape = saved.shape
    waves = [np.fft.fftfreq(n, 1 / n) for n in shape]
    radius = np.sqrt(sum(k**2 for k in np.meshgrid(*waves, indexing="ij")))
    shell = torch.from_numpy(np.rint(radius).astype(np.int64)).flatten()
    count = int(shell.max()) + 1
    about = saved.fields[field]

    def values(x: Tensor) -> Tensor:
        axes = tuple(range(1, x.ndim - 1))
        power = torch.fft.fftn(x[:, field], dim=axes).abs().square().flatten(1)
        sums = power.new_zeros(len(x), count).index_add_(1, shell, power)
        return sums / math.prod(shape) ** 2

    return Observable(
        label("spectrum", saved, field),
        f"variance of {about.long_name} by shell of wavenumber",
        _power(about.units, 2),
        values,
        of_place=False,
        axis="shell",
        coordinate=tuple(float(k) for k in range(count)),
    )


def _histogram(
    saved: Saved,
    field: int,
    *,
    statistics: Statistics | None,
    parameters: dict[str, Any],
    key: str,
) -> Observable:
    """Density of a pixel, mean over the places, from the share of pixels in each bin."""
    bins = int(number(parameters, "bins", BINS, key=key))
    given = parameters.pop("range", None)
    low, high = float(field), float(field) + 1.0  # not known yet, and not those of another field
    if given is not None:
        try:
            low, high = (float(v) for v in given)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
    elif statistics is not None:
        low, high = float(statistics.low[field]), float(statistics.high[field])
    if not low < high or bins < 2:
        raise UserError(f"{key}: histogram needs at least 2 bins and a range [low, high]")
    width = (high - low) / bins
    about = saved.fields[field]

    def values(x: Tensor) -> Tensor:
        flat = x[:, field].reshape(len(x), -1)
        index = ((flat - low) / width).floor().long().clamp(0, bins - 1)
        counts = torch.zeros(len(x), bins, dtype=x.dtype)
        counts.scatter_add_(1, index, torch.ones_like(flat))
        return counts / (flat.shape[1] * width)

    return Observable(
        label("histogram", saved, field),
        f"probability density of {about.long_name}; the end bins hold all beyond them",
        _power(about.units, -1),
        values,
        of_place=False,
        axis="bin",
        coordinate=tuple(low + width * (i + 0.5) for i in range(bins)),
        continuous=False,
    )


def _users(kind: str, saved: Saved, key: str) -> Observable:
    """A function from the Dataset (member, time, *space) to a DataArray of the same members and
    times: with the same space, with one axis of its own, or without.
    """
    function = guarded(find_function(kind, key=key), name=f"{key}: {kind}")
    space = SPACE[len(saved.shape)]
    names = [field.name for field in saved.fields]

    def call(x: Tensor) -> xr.DataArray:
        dims = (MEMBER, TIME, *space)
        data = xr.Dataset({n: (dims, x[None, :, i].numpy()) for i, n in enumerate(names)})
        answer = function(data)
        if not isinstance(answer, xr.DataArray) or not {MEMBER, TIME} <= set(answer.dims):
            raise UserError(f"{key}: {kind} must return a DataArray with dims member and time")
        return answer

    # Two snapshots that differ, so that functions that divide by a spread can be asked.
    zero = torch.zeros(1, len(names), *saved.shape)
    trial = torch.cat([zero, zero + 1])
    answer = call(trial)
    rest = [str(d) for d in answer.dims if d not in (MEMBER, TIME)]
    of_place = rest == list(space) and bool(space)
    if not of_place and len(rest) > 1:
        raise UserError(f"{key}: {kind} returns dims {answer.dims}; needs the space or one more")
    axis = "" if of_place or not rest else rest[0]
    coordinate = tuple(float(v) for v in answer[axis].values) if axis else ()
    order = (MEMBER, TIME, *rest)

    def values(x: Tensor) -> Tensor:
        found = np.ascontiguousarray(call(x).transpose(*order).values[0])
        return torch.from_numpy(found).to(x.dtype)

    return Observable(
        kind.partition(":")[2],
        str(answer.attrs.get("long_name", kind)),
        str(answer.attrs.get("units", "1")),
        values,
        of_place or (not saved.shape and not axis),
        axis,
        coordinate,
    )


def _like(values: Tensor, saved: Saved) -> Tensor:
    """A number of a homogeneous field, or one per place, made to broadcast over snapshots."""
    return values.reshape(1, *([1] * len(saved.shape) if values.ndim == 0 else saved.shape))


def _power(units: str, order: int) -> str:
    """CF units of a power."""
    return "1" if units in ("1", "") else f"({units}){order}"


OBSERVABLES: dict[str, Callable[..., Observable]] = {
    "field": _field,
    "mean": _mean,
    "pixel": _pixel,
    "moment": _moment,
    "central_moment": _central_moment,
    "exceedance": _exceedance,
    "spectrum": _spectrum,
    "histogram": _histogram,
}
"""Makers by kind; each takes (saved, field, statistics, parameters, key)."""

PARAMETERS = {"pixel": ("at",), "exceedance": ("above",), "histogram": ("bins", "range")}
"""Keys of the kinds that have any."""

NAMES = (
    "field",
    "mean",
    "pixel",
    *(f"moment_{n}" for n in range(2, HIGHEST_MOMENT + 1)),
    *(f"central_moment_{n}" for n in range(2, HIGHEST_MOMENT + 1)),
    "exceedance",
    "spectrum",
    "histogram",
)
"""Every name that an experiment can use."""
