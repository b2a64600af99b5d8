"""Responses of labelled data, in memory or lazy, without a run folder.

The same channels, sums and error bars as a run; for data that one process can read through. Use
an experiment with `data:` where there is more, or where a learned score is wanted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.config import DataConfig
from workflow.interfaces import System, UserError
from workflow.reading import Reader, Score, ScoreLike, score_of
from workflow.recorded import arrange, describe, time_unit
from workflow.responses.assemble import ErrorBars, assemble
from workflow.responses.channels import Channels
from workflow.responses.correlation import pair_counts
from workflow.responses.labels import ResponseSet, label_responses
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import build_perturbations, usual_perturbation
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
from workflow.responses.times import SECONDS

BLOCK_NUMBERS = 1 << 23
"""Numbers of data read at once: 64 MiB in float64."""

BATCH = 4096
"""Snapshots that are scored together."""

CENTRE = 1024
"""Snapshots of which means are taken to centre by: that changes the noise only."""


def responses_of(
    data: xr.Dataset | xr.DataArray,
    *,
    max_lag: float | timedelta | np.timedelta64,
    score: ScoreLike | Mapping[str, ScoreLike] = "gaussian",
    observables: Sequence[str | Mapping[str, Any]] = ("field",),
    perturbations: Sequence[str | Mapping[str, Any]] | None = None,
    dims: Mapping[str, str] | None = None,
    homogeneous: bool = False,
    system: System | None = None,
    recalibrate: bool = True,
    by: Literal["auto", "member", "time"] = "auto",
    samples: int = 500,
    level: float = 0.95,
    bands: Literal["pointwise", "simultaneous"] = "pointwise",
    seed: int = 1,
) -> xr.Dataset | xr.DataTree:
    """Responses to small perturbations, from unperturbed data alone, with error bars.

        R(lag) = < A(x(t + lag)) B(x(t)) >,      B = -div u - u . s,      s = grad log p

    Args:
        data: one or several variables of the same dims: a time, perhaps members, up to two of
            space. Lazy data are read in blocks.
        max_lag: longest lag, a timedelta or a number in units of the time coordinate; for dates
            those of the answer's lag: days, hours or seconds, whichever fits the time step.
        score: "gaussian", "kgmm" (up to 8 numbers a snapshot), "exact" (with `system`), a
            function of torch tensors `(batch, field, *shape)`, or a Dataset of scores with the
            variables and dims of the data; several by name to compare them.
        observables: as `response.observables` of an experiment.
        perturbations: as `response.perturbations` of an experiment; by default a pixel, or
            everything at once where places differ.
        dims: what our dimensions are called in the data, as {"time": "t", "member": "run"}.
        homogeneous: True where the statistics do not depend on the place: then kicks are averaged
            over it, on a periodic grid.
        system: for the exact score and for changes of its parameters.
        recalibrate: repair the score so that lag 0 is the identity; raw responses are kept too.
        by: what error bars resample; auto: members from 8 on, else stretches of time.
        samples: resamples.
        level: coverage of the intervals.
        bands: pointwise, or simultaneous over all lags and places.
        seed: of the resamples and of KGMM.

    Returns:
        A Dataset with dims (estimator, perturbation, observable, lag, ...) as `response.zarr`;
        a DataTree where the observables have different dims, one node for each kind.

    Raises:
        UserError: in one line, what the data or the arguments lack.
    """
    raw = data.to_dataset(name=data.name or "x") if isinstance(data, xr.DataArray) else data
    config = DataConfig(store="data", dims=dict(dims or {}), homogeneous=homogeneous)
    config, decided = describe(raw, config, "the data")
    reader = Reader(arrange(raw, config), config)
    step, units = float(decided["save_every"]), time_unit(reader.found)
    lags = _lags(max_lag, step, units, reader.times)
    asked = build_observables(observables, reader.saved, reader.statistics)
    kicked = perturbations or (usual_perturbation(reader.saved),)
    where, bars = Path.cwd(), ErrorBars(samples, level, bands, seed)
    channels = Channels.of(
        reader.saved,
        asked,
        build_perturbations(kicked, reader.saved, system=system, where=where),
    )
    sources, weights = _sources(
        reader,
        channels,
        _named(score),
        config,
        system=system,
        lags=lags,
        by=by,
        bars=bars,
        recalibrate=recalibrate,
    )
    for name, source in sources.items():
        _warn_unseen(name, source)
    names = tuple(sources)
    shared = dict.fromkeys(names, weights)
    found = {
        o.name: assemble(sources, o, lags=lags, references=names, bars=bars, weights=shared)
        for o in asked
    }
    lag = np.arange(lags + 1) * step
    spread = [reader.statistics.spread(field) for field in range(len(reader.saved.fields))]
    labelled = label_responses(
        ResponseSet(channels, sources, asked, found, lag, names, units, spread)
    )
    title = {"title": "responses with error bars", "level": level, "Conventions": "CF-1.11"}
    groups = {name: one.assign_attrs(title) for name, one in labelled.items()}
    if len(groups) == 1:
        return groups[""]
    return xr.DataTree.from_dict({f"/{name}": one for name, one in groups.items()})


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
            stacklevel=3,
        )


def _named(score: Any) -> dict[str, Any]:
    """Scores by name. A Dataset is a mapping too, of its variables: it is one score."""
    if isinstance(score, Mapping) and not isinstance(score, xr.Dataset):
        return dict(score)
    if isinstance(score, str):
        return {score: score}
    name = "given" if isinstance(score, xr.Dataset) else getattr(score, "__name__", "score")
    return {name: score}


def _sources(
    reader: Reader,
    channels: Channels,
    scores: Mapping[str, Any],
    config: DataConfig,
    *,
    system: System | None,
    lags: int,
    by: Literal["auto", "member", "time"],
    bars: ErrorBars,
    recalibrate: bool,
) -> tuple[dict[str, Source], Floats]:
    """Every score as a source of responses, and the weights of the resamples that they share."""
    sources: dict[str, Source] = {}
    units: Units | None = None
    weights: Floats = np.zeros(0)
    for name, one in scores.items():
        function, given = score_of(one, reader, config, system=system, seed=bars.seed)
        constants = _constants(reader, channels, function, given)
        sums, pairs = _sums(reader, channels, function, given, constants, lags=lags, by=by)
        if units is None:
            drawn: Literal["member", "auto", "time"] = "member" if len(pairs) == 1 else "auto"
            drawn = "time" if by == "time" else drawn
            units = resampling_units(sums["totals"][..., :1], pairs, by=drawn)
            weights = unit_weights(units, samples=bars.samples, seed=bars.seed)
        placed = channels.of_place if reader.saved.maps else []
        sources[name] = Learned(
            channels,
            pairs=pairs,
            units=units,
            maps={o.name: sums["maps"][:, :, :, i] for i, o in enumerate(placed)},
            totals=sums["totals"],
            recalibrate=recalibrate,
            weights=weights,
            repair=constants.recalibration,
        )
    return sources, weights


def _sums(
    reader: Reader,
    channels: Channels,
    score: Score,
    given: xr.Dataset | None,
    constants: Constants,
    *,
    lags: int,
    by: str,
) -> tuple[dict[str, Floats], Floats]:
    """Sums `(member, block, ...)` and pairs `(block, lag)`; one block where members are drawn."""
    whole = by == "member" or (by == "auto" and reader.members >= ENOUGH_MEMBERS)
    length = max(4 * lags, 64)
    blocks = [range(t, min(t + length, reader.times)) for t in range(0, reader.times, length)]
    if reader.members == 1 and len(blocks) < FEWEST_BLOCKS:
        raise UserError(
            f"1 member of {reader.times} times: an error bar needs {FEWEST_BLOCKS} blocks of "
            f"{length}, or 2 members; lengthen the data or lower max_lag"
        )
    pairs = np.stack(
        [pair_counts(b.start, b.stop, length=reader.times, max_lag=lags) for b in blocks]
    ).astype(np.float64)
    together = max(1, BLOCK_NUMBERS // max(1, reader.saved.numbers * length))
    found: dict[str, list[Floats]] = {}
    for member in range(reader.members):
        own: dict[str, list[Floats]] = {}
        for part in _pieces(blocks, together):
            at, past = range(member, member + 1), range(part[0].start, part[-1].stop)
            x = reader.block(at, range(past.start, min(past.stop + lags, reader.times)))
            if given is None:
                s = _evaluated(score, x[:, : len(past)].flatten(0, 1)).unflatten(0, (1, -1))
            else:
                s = reader.block(at, past, given)
            seed = (member, part[0].start)
            sums = block_sums(
                channels, constants, x, s, score, blocks=part, max_lag=lags, seed=seed
            )
            for name, values in sums.items():
                own.setdefault(name, []).append(values)
        for name, parts in own.items():
            joined = np.concatenate(parts, axis=1)
            found.setdefault(name, []).append(joined.sum(1, keepdims=True) if whole else joined)
    stacked = {name: np.concatenate(parts) for name, parts in found.items()}
    return stacked, pairs.sum(0, keepdims=True) if whole else pairs


def _pieces(blocks: Sequence[range], together: int) -> Iterator[Sequence[range]]:
    for first in range(0, len(blocks), together):
        yield blocks[first : first + together]


def _evaluated(score: Score, x: Tensor) -> Tensor:
    """Scores of snapshots `(batch, field, *shape)`, in batches.

    Raises:
        UserError: a score of another shape, or with values that are no numbers.
    """
    with torch.no_grad():
        s = torch.cat([score(part) for part in x.split(BATCH)])
    if s.shape != x.shape or not bool(torch.isfinite(s).all()):
        raise UserError(
            f"the score of snapshots {tuple(x.shape)} has shape {tuple(s.shape)}, or values that "
            "are no numbers; it must be finite and of the same shape"
        )
    return s.to(x.dtype)


def _constants(
    reader: Reader, channels: Channels, score: Score, given: xr.Dataset | None
) -> Constants:
    """Means to centre by; and the recalibration, from all snapshots that scores are fitted to."""
    x = reader.snapshots
    s = _evaluated(score, x) if given is None else reader.thinned(given)
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


def _lags(max_lag: float | timedelta | np.timedelta64, step: float, units: str, times: int) -> int:
    if isinstance(max_lag, timedelta | np.timedelta64):
        if units not in SECONDS:
            raise UserError(f"max_lag={max_lag}: the times of the data are numbers; give a number")
        seconds = np.timedelta64(max_lag) / np.timedelta64(1, "s")
        lags = round(float(seconds) / SECONDS[units] / step)
    else:
        lags = round(float(max_lag) / step)
    if not 1 <= lags < times:
        raise UserError(
            f"max_lag={max_lag} is {lags} saved samples; needs 1 to {times - 1}: the data have "
            f"{times} times, {step:g} apart"
        )
    return lags
