"""Labelled data as blocks of tensors, and their scores: what an analysis in memory reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.config import DataConfig
from workflow.interfaces import MEMBER, TIME, Saved, System, UserError
from workflow.recorded import EVEN, arrange, block_of, saved_of
from workflow.responses.probes import Statistics, guarded
from workflow.scores.closed_form import fit_gaussian, refuse_dense
from workflow.scores.conditional import exact_score, gaussian_score
from workflow.scores.kgmm import KGMM, refuse_sizes

Score = Callable[[Tensor], Tensor]
ScoreLike = str | Score | xr.Dataset

BATCH = 4096
"""Snapshots that are scored together."""

FIT_NUMBERS = 1 << 25
"""Most numbers of snapshots that scores are fitted to: 256 MiB in float64."""


class Reader:
    """Blocks of arranged data as tensors; made without reading.

    Args:
        data: arranged.
        config: what is in it.
        given: variables that scores are conditioned on; they stand after the others.

    Raises:
        UserError: no such variable, or none is left.
    """

    def __init__(self, data: xr.Dataset, config: DataConfig, given: Sequence[str] = ()) -> None:
        assert config.found is not None, "written by `describe`"
        self.data, self.config, self.found = data, config, config.found
        self.saved = saved_of(config).conditioned(given, key="given")
        self._names = [field.name for field in self.saved.all_fields]
        self.single = all(data[name].dtype == np.float32 for name in self._names)
        self.members, self.times = data.sizes[MEMBER], data.sizes[TIME]
        keep = max(3, FIT_NUMBERS // max(1, self.saved.all_numbers * self.members))
        self._stride = max(1, -(-self.times // keep))

    def unread(self) -> Reader:
        """The same without what has been read: what it reads goes when it goes."""
        return Reader(self.data, self.config, [field.name for field in self.saved.given])

    @property
    def fields(self) -> int:
        """Number of fields that have a score."""
        return len(self.saved.fields)

    @property
    def fitted_to(self) -> int:
        """Number of `snapshots`."""
        return self.members * len(range(0, self.times, self._stride))

    @cached_property
    def snapshots(self) -> Tensor:
        """What scores are fitted to, `(member * time, field + given, *shape)`; read when asked."""
        return self.thinned(self.data)

    @cached_property
    def statistics(self) -> Statistics:
        """Of the snapshots."""
        return Statistics.fit(self.snapshots[:, : self.fields], homogeneous=self.saved.homogeneous)

    def block(self, members: range, times: range, data: xr.Dataset | None = None) -> Tensor:
        """One block `(member, time, field + given, *shape)`, in the precision of the data.

        Of other data, such as scores, what they have: `(member, time, field, *shape)`.

        Raises:
            UserError: a value that is no number.
        """
        part = self.data if data is None else data
        names = [name for name in self._names if name in part]
        values = block_of(part, names, members=members, times=times)
        kind = np.float32 if values.dtype == np.float32 else np.float64
        return torch.from_numpy(values.astype(kind, copy=False))

    def thinned(self, data: xr.Dataset) -> Tensor:
        """Snapshots as those of `block`: all, or evenly spaced times of large data."""
        thin = self.thin(data)
        times = range(thin.sizes[TIME])
        parts = [self.block(group, times, thin) for group in self.groups(most=self.members)]
        return torch.cat(parts).flatten(0, 1)

    def thin(self, data: xr.Dataset) -> xr.Dataset:
        """The times of `snapshots`: of such data the snapshots are all."""
        return data.isel({TIME: slice(0, None, self._stride)})

    def groups(self, *, most: int) -> list[range]:
        """Members that are read together: of one chunk where there are chunks, at most so many."""
        chunks = self.data[self._names[0]].chunksizes.get(MEMBER, (1,) * self.members)
        ends = np.cumsum(chunks)
        return [
            range(first, min(first + most, int(end)))
            for end, size in zip(ends, chunks, strict=True)
            for first in range(int(end) - size, int(end), most)
        ]


def score_of(
    one: ScoreLike, reader: Reader, config: DataConfig, *, system: System | None, seed: int
) -> tuple[Score, xr.Dataset | None]:
    """The score as a function, and as data where it was given so."""
    saved = reader.saved
    if isinstance(one, xr.Dataset):
        given = scores_as_data(one, reader)

        def only_data(_: Tensor) -> Tensor:
            raise UserError("this perturbation needs the score as a function, not as data")

        return only_data, given
    if callable(one):
        return one, None
    if one == "gaussian":
        told = len(saved.given)
        found = fit_gaussian(reader.snapshots, homogeneous=saved.homogeneous, given=told)
        return gaussian_score(found), None
    if one == "kgmm" and not saved.given:
        return KGMM.fit(reader.snapshots, seed=seed), None
    if one == "exact" and system is not None:
        return exact_score(system, _rows(saved, system), reader.fields), None
    raise _no_score(one, saved)


def check_score(one: ScoreLike, reader: Reader, *, system: System | None) -> None:
    """Refuse what cannot be a score of these data before any of them is read.

    A function is tried on two snapshots of zeros: its shapes are seen, not its values.

    Raises:
        UserError: no such score, another shape, a snapshot too large for it or too few of them.
    """
    saved = reader.saved
    if isinstance(one, xr.Dataset):
        scores_as_data(one, reader)
    elif callable(one):
        kind = torch.float32 if reader.single else torch.float64
        trial = torch.zeros(2, len(saved.all_fields), *saved.shape, dtype=kind)
        with torch.no_grad():
            _check_shape(guarded(one, name="the score")(trial), trial, reader.fields)
    elif one == "gaussian":
        if not saved.maps:
            refuse_dense(saved.all_numbers)
    elif one == "kgmm" and not saved.given:
        refuse_sizes(saved.numbers, samples=reader.fitted_to)
    elif one == "exact" and system is not None:
        exact, _ = score_of(one, reader, reader.config, system=system, seed=0)
        check_score(exact, reader, system=system)
    else:
        raise _no_score(one, saved)


def evaluated(score: Score, x: Tensor, fields: int) -> Tensor:
    """Scores `(batch, field, *shape)` of snapshots `(batch, field + given, *shape)`, in batches.

    Raises:
        UserError: a score of another shape, or with values that are no numbers.
    """
    with torch.no_grad():
        s = torch.cat([score(part) for part in x.split(BATCH)])
    _check_shape(s, x, fields)
    if not bool(torch.isfinite(s).all()):
        raise UserError("the score has values that are no numbers; it must be finite on all data")
    return s.to(x.dtype)


def _check_shape(s: Any, x: Tensor, fields: int) -> None:
    expected = (len(x), fields, *x.shape[2:])
    if not isinstance(s, Tensor) or s.shape != expected:
        what = f"shape {tuple(s.shape)}" if isinstance(s, Tensor) else f"type {type(s).__name__}"
        shape = "the same shape" if expected == x.shape else f"shape {expected}, without the given"
        raise UserError(
            f"the score of snapshots {tuple(x.shape)} has {what}; it must be a torch tensor of "
            f"{shape}"
        )


def _of_fields(reader: Reader) -> DataConfig:
    """What scores have in them: the variables that are not given."""
    names = tuple(field.name for field in reader.saved.fields)
    return reader.config.model_copy(update={"variables": names})


def _rows(saved: Saved, system: System) -> list[int]:
    """Which field of the system each field of a snapshot is, by name; a single one by itself.

    Raises:
        UserError: they are others.
    """
    ours = [field.name for field in system.fields]
    data = [field.name for field in saved.all_fields]
    if len(ours) == len(data) == 1:
        return [0]
    if sorted(ours) != sorted(data):
        raise UserError(
            f"score='exact': the data have {', '.join(data)}, the system {', '.join(ours)}; "
            "rename the variables to the fields of the system"
        )
    return [ours.index(name) for name in data]


def _no_score(one: object, saved: Saved) -> UserError:
    if one == "kgmm":
        return UserError(
            f"score='kgmm': clusters know no score given {saved.given_names}; use 'gaussian'"
        )
    return UserError(
        f"score={one!r}: give 'gaussian', 'kgmm', 'exact' with a system, a function or a Dataset"
    )


def scores_as_data(one: xr.Dataset, reader: Reader) -> xr.Dataset:
    """Scores that were given as data, arranged.

    Raises:
        UserError: a variable has none, or they are of other members, times or places.
    """
    data, config = reader.data, _of_fields(reader)
    names = {f"score_{n}": n for n in config.variables if f"score_{n}" in one}
    renamed = one.rename(names)
    missing = [n for n in config.variables if n not in renamed]
    if missing:
        raise UserError(
            f"the scores have {sorted(map(str, one.data_vars))}; need '{missing[0]}' or "
            f"'score_{missing[0]}'"
        )
    given = arrange(renamed, config)
    cure = "evaluate the score at the same members, times and places"
    if dict(given.sizes) != dict(data.sizes):
        raise UserError(f"the scores have {dict(given.sizes)}, the data {dict(data.sizes)}; {cure}")
    for name in map(str, data.dims):
        if name in given.coords and name in data.coords:
            theirs, ours = given[name].values, data[name].values
            if theirs.dtype.kind == "f" and ours.dtype.kind in "fiu":
                spacing = np.abs(np.diff(ours)).min(initial=np.inf)
                same = bool((np.abs(theirs - ours) <= EVEN * spacing).all())
            else:
                same = np.array_equal(theirs, ours)
            if not same:
                raise UserError(
                    f"the scores have {name} {theirs[0]} to {theirs[-1]}, the data {ours[0]} to "
                    f"{ours[-1]}, or others in between; {cure}"
                )
    return given
