"""Perturbations u(x): what is kicked, by name.

A constant direction is a pattern over the fields and the grid: one pixel, a bump, everything, a
wave, an array of the user's. Its response follows from that of single pixels. A direction that
depends on the state (a parameter of the drift, of the noise, a function of the user's) has a
conjugate variable of its own, B = -div u - u . s. A new kind is one function and one line in
`PERTURBATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workflow.interfaces import Saved, System, UserError
from workflow.responses.directions import conjugate, user_direction
from workflow.responses.divergence import Seed
from workflow.responses.parameters import parameter_change
from workflow.responses.probes import (
    fields_of,
    find_function,
    guarded,
    label,
    nearest,
    number,
    parse,
    place_of,
    read_array,
    refuse_rest,
)

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Perturbation:
    """A named direction in which the state is displaced.

    Attributes:
        name: label along the `perturbation` axis.
        long_name: what it is, in words.
        pattern: constant direction `(field, *shape)`; None where it depends on the state. On
            homogeneous fields it is moved to every place: index 0 is the kicked place.
        conjugate: B `(batch,)` from snapshots `(batch, field, *shape)`, a score function, and the
            keyword `seed` of random probes, if any.
        direction: u(x) `(batch, field, *shape)`; None where no displacement of the state is the
            same (noise), so that paired runs cannot make it.
    """

    name: str
    long_name: str
    pattern: Tensor | None = None
    conjugate: Callable[..., Tensor] | None = None
    direction: Callable[[Tensor], Tensor] | None = None

    def displacement(self, x: Tensor) -> Tensor | None:
        """u(x) of snapshots `(batch, field, *shape)`; None where there is none."""
        if self.pattern is not None:
            return self.pattern.to(x.dtype).expand_as(x)
        return None if self.direction is None else self.direction(x)


def refuse_driven(many: Sequence[Perturbation], saved: Saved, *, key: str) -> None:
    """Refuse directions that depend on the state where scores are conditioned on other fields.

    Raises:
        UserError: names the first one; `key` is what the user calls them.
    """
    driven = [one.name for one in many if one.conjugate is not None]
    if driven and saved.given:
        raise UserError(
            f"{key} has '{driven[0]}', which depends on the state; scores given "
            f"{saved.given_names} answer kicks of fixed directions only: remove it, or take the "
            "score of all fields"
        )


def usual_perturbation(saved: Saved) -> str:
    """What is kicked where nothing else is asked: a pixel, or all where each place is its own."""
    return "pixel" if saved.maps or not saved.shape else "uniform"


def build_perturbations(
    specs: Sequence[str | Mapping[str, Any]], saved: Saved, *, system: System | None, where: Path
) -> list[Perturbation]:
    """The perturbations that an experiment names.

    Args:
        specs: names, or mappings with `kind` and parameters.
        saved: the fields.
        system: for changes of its parameters; None for recorded data.
        where: what paths of patterns are relative to.

    Raises:
        UserError: an unknown kind or parameter, a pattern that does not fit, or one twice.
    """
    found: list[Perturbation] = []
    for index, spec in enumerate(specs):
        key = f"response.perturbations[{index}]"
        kind, parameters = parse(spec, key=key)
        name = parameters.pop("name", None)
        made = _build(kind, parameters, saved, system=system, where=where, key=key)
        if name is not None and len(made) == 1:
            old = made[0]
            made = [
                Perturbation(str(name), old.long_name, old.pattern, old.conjugate, old.direction)
            ]
        found += made
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"response.perturbations: '{twice[0]}' is there twice; give one a name")
    return found


def _build(
    kind: str,
    parameters: dict[str, Any],
    saved: Saved,
    *,
    system: System | None,
    where: Path,
    key: str,
) -> list[Perturbation]:
    if kind in STATE_DEPENDENT or ":" in kind:
        maker = STATE_DEPENDENT["function" if ":" in kind else kind]
        driven = maker(parameters, saved=saved, system=system, key=key, kind=kind)
        refuse_rest(parameters, ("name", "parameter", "divergence"), key=key)
        return [driven]
    if kind not in PERTURBATIONS:
        names = [*PERTURBATIONS, *(k for k in STATE_DEPENDENT if k != "function")]
        raise UserError(f"{key}={kind}: no such perturbation; {nearest(kind, names)}")
    made = []
    for field in fields_of(saved, parameters, key=key):
        own = dict(parameters)
        suffix, words, one = PERTURBATIONS[kind](saved, own, key=key, where=where)
        refuse_rest(own, ("field", "name", *PARAMETERS.get(kind, ())), key=key)
        pattern = torch.zeros(len(saved.fields), *saved.shape, dtype=torch.float64)
        pattern[field] = one
        about = saved.fields[field].long_name
        made.append(
            Perturbation(label(f"{kind}{suffix}", saved, field), f"{words} of {about}", pattern)
        )
    return made


def _pixel(saved: Saved, parameters: dict[str, Any], *, key: str, **_: Any) -> tuple[str, str, Any]:
    one = torch.zeros(saved.shape, dtype=torch.float64)
    if saved.maps or not saved.shape:
        if "at" in parameters:
            raise UserError(
                f"{key}.at={parameters['at']}: every place of this field is the same; remove 'at'"
            )
        one[(0,) * len(saved.shape)] = 1.0
        return "", "unit kick of one pixel", one
    if "at" not in parameters:
        size = ", ".join("yx"[-len(saved.shape) :])
        raise UserError(
            f"{key}=pixel: the field is not homogeneous; say which one: "
            f"{{kind: pixel, at: [{size}]}}"
        )
    place = place_of(parameters.pop("at"), saved.shape, key=key)
    one[place] = 1.0
    where = ",".join(map(str, place))
    return f"[{where}]", f"unit kick of the pixel ({where})", one


def _bump(saved: Saved, parameters: dict[str, Any], *, key: str, **_: Any) -> tuple[str, str, Any]:
    """exp(-d^2 / (2 width^2)), d the distance in grid steps, around the ends of the grid."""
    if not saved.shape:
        raise UserError(f"{key}=bump: needs a field in space; use pixel")
    width = number(parameters, "width", 2.0, key=key)
    if width <= 0:
        raise UserError(f"{key}.width={width:g}: needs a positive number of grid steps")
    at = parameters.pop("at", None)
    if at is None and not saved.maps:
        raise UserError(f"{key}=bump: the field is not homogeneous; say where with at: [...]")
    centre = place_of(at if at is not None else [0] * len(saved.shape), saved.shape, key=key)
    square = torch.zeros(saved.shape, dtype=torch.float64)
    for axis, (n, middle) in enumerate(zip(saved.shape, centre, strict=True)):
        steps = (torch.arange(n, dtype=torch.float64) - middle).abs()
        if saved.maps:
            steps = torch.minimum(steps, n - steps)
        square = square + _along(steps.square(), axis, len(saved.shape))
    suffix = "" if at is None else f"[{','.join(map(str, centre))}]"
    return suffix, f"bump of {width:g} grid steps", (-square / (2 * width**2)).exp()


def _uniform(saved: Saved, parameters: dict[str, Any], **_: Any) -> tuple[str, str, Any]:
    return "", "unit displacement everywhere", torch.ones(saved.shape, dtype=torch.float64)


def _mode(saved: Saved, parameters: dict[str, Any], *, key: str, **_: Any) -> tuple[str, str, Any]:
    """cos(k . x) on the grid of 2 pi."""
    waves = parameters.pop("k", None)
    try:
        k = [int(v) for v in waves]  # type: ignore[union-attr]
    except TypeError:
        k = []
    if len(k) != len(saved.shape) or not k:
        raise UserError(f"{key}.k={waves}: needs {len(saved.shape)} whole wavenumbers, y first")
    phase = torch.zeros(saved.shape, dtype=torch.float64)
    for axis, (n, wave) in enumerate(zip(saved.shape, k, strict=True)):
        along = 2 * math.pi * wave * torch.arange(n, dtype=torch.float64) / n
        phase = phase + _along(along, axis, len(saved.shape))
    return (
        f"[{','.join(map(str, k))}]",
        f"wave of wavenumber ({','.join(map(str, k))})",
        phase.cos(),
    )


def _along(values: Tensor, axis: int, space: int) -> Tensor:
    """Numbers along one axis of the grid, made to broadcast over the others."""
    return values.reshape([-1 if a == axis else 1 for a in range(space)])


def _pattern(
    saved: Saved, parameters: dict[str, Any], *, key: str, where: Path
) -> tuple[str, str, Any]:
    """An array of the user's, from a .npy file or the one variable of a NetCDF or Zarr store."""
    file = str(parameters.pop("file", ""))
    if not file:
        raise UserError(f"{key}=pattern: say which, as {{kind: pattern, file: PATH}}")
    path = where / file
    values = read_array(path, shape=saved.shape, key=f"{key}.file")
    return f"({path.stem})", f"pattern {path.name}", torch.from_numpy(values)


def _parameter(
    parameters: dict[str, Any], *, system: System | None, key: str, **_: Any
) -> Perturbation:
    """A changed parameter of the equation, in its drift, its noise or both."""
    name = parameters.pop("parameter", None)
    if not isinstance(name, str):
        raise UserError(f"{key}: say which, as {{kind: parameter, parameter: NAME}}")
    if system is None:
        raise UserError(f"{key}=parameter: recorded data have no equation; use module:function")
    try:
        change = parameter_change(system, name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    # Only a change of the drift alone is a displacement of the state.
    direction = change.drift if change.noise is None else None
    return Perturbation(
        f"parameter({name})",
        f"unit change of the parameter {name}",
        conjugate=lambda x, score, seed=0: change.conjugate(x, score, seed=seed),
        direction=direction,
    )


def _function(
    parameters: dict[str, Any], *, saved: Saved, kind: str, key: str, **_: Any
) -> Perturbation:
    """u(x) of the user's, torch tensors `(batch, field, *shape)`; its divergence may be given."""
    function = guarded(find_function(kind, key=key), name=f"{key}: {kind}")
    given = parameters.pop("divergence", None)
    formula = find_function(str(given), key=f"{key}.divergence") if given else None
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn((4, len(saved.fields), *saved.shape), generator=generator)
    try:
        direction = user_direction(function, trial, formula=formula)
    except UserError as error:
        raise UserError(f"{key}: {kind}: {error}") from None

    def conjugate_of(x: Tensor, score: Score, seed: Seed = 0) -> Tensor:
        with torch.no_grad():
            s = score(x)
        return conjugate(direction, x, s, seed=seed)

    return Perturbation(
        kind.partition(":")[2],
        f"displacement {kind}",
        conjugate=conjugate_of,
        direction=direction,
    )


PERTURBATIONS: dict[str, Callable[..., tuple[str, str, Any]]] = {
    "pixel": _pixel,
    "bump": _bump,
    "uniform": _uniform,
    "mode": _mode,
    "pattern": _pattern,
}
"""Constant directions by kind: suffix of the label, words, and the pattern of one field."""

PARAMETERS = {
    "pixel": ("at",),
    "bump": ("width", "at"),
    "mode": ("k",),
    "pattern": ("file",),
}
"""Keys of the kinds that have any."""

STATE_DEPENDENT: dict[str, Callable[..., Perturbation]] = {
    "parameter": _parameter,
    "function": _function,
}
"""Directions that depend on the state, by kind; `module:function` is a function."""
