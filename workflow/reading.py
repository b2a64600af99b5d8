"""Labelled data as blocks of tensors, and their scores: what an analysis in memory reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.config import DataConfig
from workflow.interfaces import MEMBER, TIME, System, UserError
from workflow.recorded import EVEN, arrange, block_of, saved_of
from workflow.responses.probes import Statistics
from workflow.scores.closed_form import ExactScore, fit_gaussian
from workflow.scores.kgmm import KGMM

Score = Callable[[Tensor], Tensor]
ScoreLike = str | Score | xr.Dataset

FIT_NUMBERS = 1 << 25
"""Most numbers of snapshots that scores are fitted to: 256 MiB in float64."""


class Reader:
    """Blocks of arranged data as tensors, `(member, time, field, *shape)`."""

    def __init__(self, data: xr.Dataset, config: DataConfig) -> None:
        assert config.found is not None, "written by `describe`"
        self.data, self.found, self._names = data, config.found, config.variables
        self.saved = saved_of(config)
        self.members, self.times = data.sizes[MEMBER], data.sizes[TIME]
        keep = max(3, FIT_NUMBERS // max(1, self.saved.numbers * self.members))
        self._stride = max(1, -(-self.times // keep))
        self.snapshots = self.thinned(data)
        self.statistics = Statistics.fit(self.snapshots, homogeneous=config.homogeneous)

    def block(self, members: range, times: range, data: xr.Dataset | None = None) -> Tensor:
        """One block, in the precision of the data.

        Raises:
            UserError: a value that is no number.
        """
        part = self.data if data is None else data
        values = block_of(part, self._names, members=members, times=times)
        single = values.dtype == np.float32
        return torch.from_numpy(values.astype(np.float32 if single else np.float64, copy=False))

    def thinned(self, data: xr.Dataset) -> Tensor:
        """Snapshots `(member * time, field, *shape)`: all, or evenly spaced times of large data."""
        thin = data.isel({TIME: slice(0, None, self._stride)})
        times = range(thin.sizes[TIME])
        parts = [self.block(range(m, m + 1), times, thin) for m in range(self.members)]
        return torch.cat(parts).flatten(0, 1)


def score_of(
    one: ScoreLike, reader: Reader, config: DataConfig, *, system: System | None, seed: int
) -> tuple[Score, xr.Dataset | None]:
    """The score as a function, and as data where it was given so."""
    homogeneous = reader.saved.homogeneous
    if isinstance(one, xr.Dataset):
        given = _given_scores(one, reader.data, config)

        def only_data(_: Tensor) -> Tensor:
            raise UserError("this perturbation needs the score as a function, not as data")

        return only_data, given
    if callable(one):
        return one, None
    if one == "gaussian":
        return fit_gaussian(reader.snapshots, homogeneous=homogeneous), None
    if one == "kgmm":
        return KGMM.fit(reader.snapshots, seed=seed), None
    if one == "exact" and system is not None:
        return ExactScore(system), None
    raise UserError(
        f"score={one!r}: give 'gaussian', 'kgmm', 'exact' with a system, a function or a Dataset"
    )


def _given_scores(one: xr.Dataset, data: xr.Dataset, config: DataConfig) -> xr.Dataset:
    """Scores as data, arranged; refused where they belong to other members, times or places."""
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
