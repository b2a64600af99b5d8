"""An observable by its names: of itself, of its group in a store, of its axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from workflow.interfaces import UserError
from workflow.responses.probes import group_name


@dataclass(frozen=True)
class Observable:
    """A named function of the state.

    Attributes:
        name: label along the `observable` axis.
        long_name: what it is, in words.
        units: CF units.
        values: from snapshots `(batch, field, *shape)` to `(batch, *shape)` for an observable of
            the place, else to `(batch,)` or, with an axis, `(batch, numbers)`.
        of_place: True for one value at every place.
        axis: name of its own axis, such as "shell"; empty where it has none.
        coordinate: labels along that axis.
        continuous: False where it jumps: then a pair of runs that nothing crossed says nothing.
    """

    name: str
    long_name: str
    units: str
    values: Callable[[Tensor], Tensor]
    of_place: bool = True
    axis: str = ""
    coordinate: tuple[float, ...] = ()
    continuous: bool = True


def refuse_clashes(observables: Sequence[Observable]) -> None:
    """Refuse names that mean two things.

    Raises:
        UserError: two observables of one name or group, or several with labels of their own along
            the same axis and none without.
    """
    names = [one.name for one in observables]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"response.observables: '{twice[0]}' is there twice; give one a name")
    groups: dict[str, str] = {}
    for name in names:
        if groups.setdefault(group_name(name), name) != name:
            raise UserError(
                f"response.observables: '{groups[group_name(name)]}' and '{name}' would be one "
                f"group '{group_name(name)}' of response.zarr; give one another name"
            )
    _refuse_unlike_rows(observables)


def _refuse_unlike_rows(observables: Sequence[Observable]) -> None:
    """The first observable is the root where none is plain, and all groups inherit its labels."""
    first = observables[0] if observables else None
    if first is None or not all(one.axis for one in observables):
        return
    for one in observables[1:]:
        if one.axis == first.axis and one.coordinate != first.coordinate:
            raise UserError(
                f"response.observables: '{first.name}' and '{one.name}' have labels of their own "
                f"along '{one.axis}', and nothing else is watched; name 'field' too"
            )
