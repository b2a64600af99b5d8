"""Channels: the numbers per snapshot whose lag correlations make all responses of a run.

On a homogeneous field the kicks are averaged over the kicked place, and an observable of the
place has a map of responses around it:

    maps      A: every observable of the place     B: -s of every field        over the grid
    totals    A: its space mean, other observables B: space mean of -s, and
                                                      state-dependent B        plain numbers

Anything else (plain variables, fields whose statistics depend on the place) has totals only; then
the places of an observable are numbers of their own, and so are the kicks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workflow.interfaces import Saved
from workflow.responses.divergence import Seed
from workflow.responses.observable import Observable
from workflow.responses.observables import field_observables
from workflow.responses.perturbations import Perturbation

FULL_MATRIX = 64
"""Numbers of a snapshot up to which every one of them is kicked, so that error bars know of the
recalibration; beyond it only the directions that are asked for are."""


@dataclass(frozen=True)
class Channels:
    """What is correlated, for one experiment.

    Attributes:
        saved: the fields.
        observables: asked for; the fields themselves come first, asked for or not.
        perturbations: asked for.
    """

    saved: Saved
    observables: tuple[Observable, ...]
    perturbations: tuple[Perturbation, ...]

    @classmethod
    def of(
        cls,
        saved: Saved,
        observables: Sequence[Observable],
        perturbations: Sequence[Perturbation],
    ) -> Channels:
        """Channels of these probes, with the fields in front."""
        fields = field_observables(saved)
        names = {one.name for one in fields}
        rest = [one for one in observables if one.name not in names]
        return cls(saved, (*fields, *rest), tuple(perturbations))

    @cached_property
    def of_place(self) -> list[Observable]:
        """Observables with a value at every place."""
        return [one for one in self.observables if one.of_place]

    @cached_property
    def others(self) -> list[Observable]:
        """Observables of the whole snapshot."""
        return [one for one in self.observables if not one.of_place]

    @cached_property
    def driven(self) -> list[Perturbation]:
        """Perturbations that depend on the state."""
        return [one for one in self.perturbations if one.pattern is None]

    @property
    def every_number_kicked(self) -> bool:
        """False where only the directions asked for are kicked."""
        return self.saved.maps or self.saved.numbers <= FULL_MATRIX

    def columns(self, one: Observable) -> slice:
        """Where an observable lies among the totals of A."""
        start = 0
        for other in (*self.of_place, *self.others):
            width = self._width(other)
            if other.name == one.name:
                return slice(start, start + width)
            start += width
        raise KeyError(one.name)

    @property
    def totals_a(self) -> int:
        """Number of totals of A."""
        return sum(self._width(one) for one in (*self.of_place, *self.others))

    @property
    def versions(self) -> int:
        """2 where B is also made from the recalibrated score beforehand, after the raw one."""
        return 2 if self.driven or not self.every_number_kicked else 1

    @property
    def kicks(self) -> int:
        """Number of totals of B that are constant directions."""
        if self.saved.maps:
            return len(self.saved.fields)
        return self.saved.numbers if self.every_number_kicked else len(self._patterns)

    @property
    def totals_b(self) -> int:
        """Number of totals of B."""
        return self.kicks + len(self.driven)

    def maps_a(self, x: Tensor) -> Tensor:
        """A of the place, `(batch, observable, *shape)`, of snapshots `(batch, field, *shape)`."""
        return torch.stack([one.values(x) for one in self.of_place], dim=1)

    def observe(self, x: Tensor, maps: Tensor | None = None) -> Tensor:
        """Totals of A, `(batch, total)`; `maps` are those of `maps_a` where known already."""
        parts = []
        if self.of_place:
            placed = self.maps_a(x) if maps is None else maps
            flat = placed.reshape(*placed.shape[:2], -1)
            parts.append(flat.mean(2) if self.saved.maps else flat.flatten(1))
        for one in self.others:
            values = one.values(x)
            parts.append(values if values.ndim == 2 else values[:, None])
        return torch.cat(parts, dim=1)

    def conjugates(
        self, x: Tensor, s: Tensor, score: Callable[[Tensor], Tensor], *, seed: Seed = 0
    ) -> Tensor:
        """Totals of B, `(batch, total)`, from snapshots, their scores, and the score function.

        `seed` names the random probes of divergences of large states: one for each block, or
        their error would be the same in all and no error bar would know of it.
        """
        flat = -s.reshape(*s.shape[:2], -1)
        if self.saved.maps:
            parts = [flat.mean(2)]
        elif self.every_number_kicked:
            parts = [flat.flatten(1)]
        else:
            patterns = torch.stack([p.flatten() for p in self._patterns], dim=1).to(s.dtype)
            parts = [flat.flatten(1) @ patterns]
        for one in self.driven:
            assert one.conjugate is not None
            parts.append(one.conjugate(x, score, seed)[:, None].to(s.dtype))
        return torch.cat(parts, dim=1)

    @cached_property
    def _patterns(self) -> list[Tensor]:
        return [one.pattern for one in self.perturbations if one.pattern is not None]

    def _width(self, one: Observable) -> int:
        if one.of_place:
            places = self.saved.numbers // len(self.saved.fields)
            return 1 if self.saved.maps else places
        return max(1, len(one.coordinate))
