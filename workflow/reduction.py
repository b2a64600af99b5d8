"""Responses of labelled data from one pass over them, in blocks: the sums and the error bars."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.interfaces import System, UserError
from workflow.reading import BATCH, Reader, Score, ScoreLike, evaluated, score_of
from workflow.recorded import time_unit
from workflow.responses.assemble import ErrorBars, assemble
from workflow.responses.channels import Channels
from workflow.responses.correlation import pair_counts
from workflow.responses.labels import ResponseSet, label_responses, outline
from workflow.responses.observable import Observable
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import Perturbation
from workflow.responses.probes import parse
from workflow.responses.resampling import (
    ENOUGH_MEMBERS,
    FEWEST_BLOCKS,
    Units,
    resampling_units,
    unit_weights,
)
from workflow.responses.sources import Floats, Learned, Source
from workflow.responses.stein import LinearRecalibration, lag_zero_matrix
from workflow.responses.sums import Constants, block_sums

BLOCK_NUMBERS = 1 << 23
"""Numbers of data read at once: 64 MiB in float64."""

PIECE_NUMBERS = 1 << 19
"""Numbers of one member that are scored and correlated at once, or a block of time if longer."""

CENTRE = 1024
"""Snapshots of which means are taken to centre by: that changes the noise only."""

By = Literal["auto", "member", "time"]


@dataclass(frozen=True)
class Reduction:
    """From described data to responses: what is asked, before anything is read.

    Attributes:
        reader: of the data.
        scores: by name.
        observables: as the user named them; their constants come from the data.
        perturbations: what is kicked.
        system: for the exact score.
        lags: longest lag, in samples.
        step: time between samples.
        by: what error bars resample.
        bars: how error bars are made.
        recalibrate: whether to.
    """

    reader: Reader
    scores: Mapping[str, ScoreLike]
    observables: Sequence[str | Mapping[str, Any]]
    perturbations: Sequence[Perturbation]
    system: System | None
    lags: int
    step: float
    by: By
    bars: ErrorBars
    recalibrate: bool

    @property
    def lag(self) -> Floats:
        """Times since the kick, `(lag,)`."""
        return np.arange(self.lags + 1) * self.step

    @cached_property
    def blocks(self) -> list[range]:
        """Blocks of time that sums are kept of."""
        length, times = self.length, self.reader.times
        return [range(t, min(t + length, times)) for t in range(0, times, length)]

    @property
    def length(self) -> int:
        """Samples of a block; the last one may be shorter."""
        return max(4 * self.lags, 64)

    @property
    def whole(self) -> bool:
        """True where members are resampled: then one sum of each is enough."""
        many = self.reader.members >= ENOUGH_MEMBERS
        return self.by == "member" or (self.by == "auto" and many)

    def refuse_short(self) -> None:
        """Refuse data that are too few for an error bar, whatever is in them."""
        members, blocks = self.reader.members, self.blocks
        if self.by == "member" and members < 2:
            raise UserError(f"by='member' with {members} member: needs 2; give by='time', or more")
        drawn = self.by == "time" or members == 1
        if drawn and members * len(blocks) < FEWEST_BLOCKS:
            cure = "or 2 members" if members == 1 else "or by='member'"
            raise UserError(
                f"{members} member{'s' if members > 1 else ''} of {self.reader.times} times: an "
                f"error bar needs {FEWEST_BLOCKS} blocks of {self.length}, {cure}; "
                "lengthen the data or lower max_lag"
            )

    def outline(self) -> dict[str, xr.Dataset]:
        """The answer without its numbers, at one lag; reads the data only for bins of theirs."""
        known = None
        if _labelled_by_data(self.observables):
            known = self.reader.unread().statistics
        asked = build_observables(self.observables, self.reader.saved, known)
        channels = Channels.of(self.reader.saved, asked, self.perturbations)
        units = time_unit(self.reader.found)
        return outline(channels, asked, list(self.scores), lag_units=units)

    def answer(self) -> dict[str, xr.Dataset]:
        """The answer by group: reads the data, in blocks.

        Raises:
            UserError: a value that is no number, a score that does not fit, data that are too
                short for their correlations.
        """
        reader, names = self.reader, tuple(self.scores)
        asked = build_observables(self.observables, reader.saved, reader.statistics)
        channels = Channels.of(reader.saved, asked, self.perturbations)
        sources, weights = self._sources(channels)
        for name, source in sources.items():
            _warn_unseen(name, source)
        found = {o.name: self._assembled(sources, o, weights) for o in asked}
        spread = [reader.statistics.spread(field) for field in range(len(reader.saved.fields))]
        units = time_unit(reader.found)
        responses = ResponseSet(channels, sources, asked, found, self.lag, names, units, spread)
        return label_responses(responses)

    def _assembled(self, sources: Mapping[str, Source], one: Observable, weights: Floats) -> Any:
        shared, names = dict.fromkeys(sources, weights), tuple(sources)
        return assemble(
            sources, one, lags=self.lags, references=names, bars=self.bars, weights=shared
        )

    def _sources(self, channels: Channels) -> tuple[dict[str, Source], Floats]:
        """Every score as a source of responses, and the weights of the resamples they share."""
        sources: dict[str, Source] = {}
        units: Units | None = None
        weights: Floats = np.zeros(0)
        reader, bars = self.reader, self.bars
        for name, one in self.scores.items():
            score, given = score_of(one, reader, reader.config, system=self.system, seed=bars.seed)
            constants = _constants(reader, channels, score, given)
            sums, pairs = self._sums(channels, score, given, constants)
            if units is None:
                drawn: By = "member" if len(pairs) == 1 else "auto"
                drawn = "time" if self.by == "time" else drawn
                units = resampling_units(sums["totals"][..., :1], pairs, by=drawn)
                weights = unit_weights(units, samples=bars.samples, seed=bars.seed)
            placed = channels.of_place if reader.saved.maps else []
            sources[name] = Learned(
                channels,
                pairs=pairs,
                units=units,
                maps={o.name: sums["maps"][:, :, :, i] for i, o in enumerate(placed)},
                totals=sums["totals"],
                recalibrate=self.recalibrate,
                weights=weights,
                repair=constants.recalibration,
            )
        return sources, weights

    def _sums(
        self, channels: Channels, score: Score, given: xr.Dataset | None, constants: Constants
    ) -> tuple[dict[str, Floats], Floats]:
        """Sums `(member, block, ...)` and pairs `(block, lag)`; one block for whole members."""
        reader, whole = self.reader, self.whole
        pairs = np.stack(
            [
                pair_counts(b.start, b.stop, length=reader.times, max_lag=self.lags)
                for b in self.blocks
            ]
        ).astype(np.float64)
        found: dict[str, list[list[Floats]]] = {}
        for member, x, s, part in self._read(score, given):
            sums = block_sums(
                channels,
                constants,
                x,
                s,
                score,
                blocks=part,
                max_lag=self.lags,
                seed=(member, part[0].start),
            )
            for name, values in sums.items():
                rows = found.setdefault(name, [])
                if len(rows) == member:
                    rows.append([])
                rows[member].append(values)
        stacked = {}
        for name, rows in found.items():
            members = [np.concatenate(parts, axis=1) for parts in rows]
            stacked[name] = np.concatenate(
                [one.sum(1, keepdims=True) if whole else one for one in members]
            )
        return stacked, pairs.sum(0, keepdims=True) if whole else pairs

    def _read(
        self, score: Score, given: xr.Dataset | None
    ) -> Iterator[tuple[int, Tensor, Tensor, Sequence[range]]]:
        """Member, snapshots with `lags` more, their scores, and the blocks of time they are of.

        What is computed together depends on the sizes of the data only, what is read together on
        their chunks too: the same bits however the data are stored.
        """
        reader, numbers, length = self.reader, self.reader.saved.all_numbers, self.length
        snapshots, fields = min(BATCH, PIECE_NUMBERS // numbers), reader.fields
        pieces = list(_split(self.blocks, max(1, snapshots // length)))
        size = numbers * length * len(pieces[0])
        for group in reader.groups(most=max(1, BLOCK_NUMBERS // size)):
            for region in _split(pieces, max(1, BLOCK_NUMBERS // (size * len(group)))):
                start, stop = region[0][0].start, region[-1][-1].stop
                x = reader.block(group, range(start, min(stop + self.lags, reader.times)))
                known = None if given is None else reader.block(group, range(start, stop), given)
                for row, member in enumerate(group):
                    for part in region:
                        at = slice(part[0].start - start, part[-1].stop - start)
                        # Copies: rounding may depend on where in memory numbers begin.
                        own = x[row, at.start : at.stop + self.lags].clone()
                        if known is None:
                            s = evaluated(score, own[: at.stop - at.start], fields)
                        else:
                            s = known[row, at].clone()
                        yield member, own[None, :, :fields], s[None], part


def _labelled_by_data(specs: Sequence[str | Mapping[str, Any]]) -> bool:
    """True where labels depend on the data: the bins of a histogram without a range."""
    kinds = [parse(spec, key="observables") for spec in specs]
    return any(kind == "histogram" and "range" not in given for kind, given in kinds)


def _split(parts: Sequence[Any], together: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(parts), together):
        yield parts[first : first + together]


def _constants(
    reader: Reader, channels: Channels, score: Score, given: xr.Dataset | None
) -> Constants:
    """Means to centre by; and the recalibration, from all snapshots that scores are fitted to."""
    x = reader.snapshots
    s = evaluated(score, x, reader.fields) if given is None else reader.thinned(given)
    x = x[:, : reader.fields]
    repair = None
    if channels.versions == 2:
        maps, mean = reader.saved.maps, x.mean(0, dtype=torch.float64)
        if maps:
            mean = mean.mean(tuple(range(1, mean.ndim)), keepdim=True)
        parts = zip(x.split(BATCH), s.split(BATCH), strict=True)
        stein = sum(lag_zero_matrix(a.double() - mean, b.double(), maps=maps) for a, b in parts)
        repair = LinearRecalibration.fit(
            torch.as_tensor(stein) / len(x), maps=maps, shape=reader.saved.shape
        )
    few = slice(None, None, max(1, len(x) // CENTRE))
    return Constants.of(channels, x[few], s[few], score, recalibration=repair)


def _warn_unseen(name: str, source: Source) -> None:
    """Tell what recalibration could not repair: it is left raw there."""
    if not isinstance(source, Learned) or source.stein is None:
        return
    unseen, all_of_them = int(source.unresolved.sum()), source.unresolved.size
    if unseen or bool(source.repair.refused.any()):
        what = f"{unseen} of {all_of_them} numbers" if unseen else "the data"
        warnings.warn(
            f"score '{name}' is far from a score of {what}: the response to a kick of them is "
            "not recalibrated; use another score or more data",
            UserWarning,
            stacklevel=4,
        )
