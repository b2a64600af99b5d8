"""Responses of labelled data, in memory or lazy, without a run folder.

The same channels, sums and error bars as a run; for data that one process can read through. Use
an experiment with `data:` where there is more, or where a learned score is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workflow.config import DataConfig
from workflow.interfaces import TIME, Field, Saved, System, UserError
from workflow.recorded import arrange, describe, first_bad
from workflow.responses.assemble import ErrorBars, assemble
from workflow.responses.channels import Channels
from workflow.responses.correlation import pair_counts
from workflow.responses.labels import ResponseSet, label_responses
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import build_perturbations
from workflow.responses.probes import Statistics
from workflow.responses.resampling import ENOUGH_MEMBERS, Units, resampling_units, unit_weights
from workflow.responses.sources import Floats, Learned, Source
from workflow.responses.stein import LinearRecalibration, lag_zero_matrix
from workflow.responses.sums import Constants, block_sums
from workflow.scores.closed_form import ExactScore, fit_gaussian
from workflow.scores.kgmm import KGMM

Score = Callable[[Tensor], Tensor]
ScoreLike = str | Score | xr.Dataset

FIT_NUMBERS = 1 << 26
"""Most numbers of snapshots that scores are fitted to: 512 MiB in float64."""

BLOCK_NUMBERS = 1 << 23
"""Numbers of data read at once: 64 MiB in float64."""


def responses_of(
    data: xr.Dataset | xr.DataArray,
    *,
    max_lag: float | np.timedelta64,
    score: ScoreLike | Mapping[str, ScoreLike] = "gaussian",
    observables: Sequence[str | Mapping[str, Any]] = ("field",),
    perturbations: Sequence[str | Mapping[str, Any]] = ("pixel",),
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
        max_lag: longest lag, in units of the time coordinate (seconds for dates), or a timedelta.
        score: "gaussian", "kgmm" (up to 8 numbers a snapshot), "exact" (with `system`), a
            function of torch tensors `(batch, field, *shape)`, or a Dataset of scores with the
            variables and dims of the data; several by name to compare them.
        observables: as `response.observables` of an experiment.
        perturbations: as `response.perturbations` of an experiment.
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
    reader = _Reader(arrange(raw, config), config)
    channels = Channels.of(
        reader.saved,
        build_observables(observables, reader.saved, reader.statistics),
        build_perturbations(perturbations, reader.saved, system=system, where=Path.cwd()),
    )
    lags = _lags(max_lag, float(decided["save_every"]), reader.times)
    bars = ErrorBars(samples, level, bands, seed)
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
    asked = build_observables(observables, reader.saved, reader.statistics)
    names = tuple(sources)
    shared = dict.fromkeys(names, weights)
    found = {
        o.name: assemble(sources, o, lags=lags, references=names, bars=bars, weights=shared)
        for o in asked
    }
    lag = np.arange(lags + 1) * float(decided["save_every"])
    units = "1" if config.found is None else _lag_units(config.found.time_units)
    labelled = label_responses(ResponseSet(channels, sources, asked, found, lag, names, units))
    title = {"title": "responses with error bars", "level": level, "Conventions": "CF-1.11"}
    groups = {name: one.assign_attrs(title) for name, one in labelled.items()}
    if len(groups) == 1:
        return groups[""]
    return xr.DataTree.from_dict({f"/{name}": one for name, one in groups.items()})


def _named(score: Any) -> dict[str, Any]:
    """Scores by name. A Dataset is a mapping too, of its variables: it is one score."""
    if isinstance(score, Mapping) and not isinstance(score, xr.Dataset):
        return dict(score)
    if isinstance(score, str):
        return {score: score}
    name = "given" if isinstance(score, xr.Dataset) else getattr(score, "__name__", "score")
    return {name: score}


def _sources(
    reader: _Reader,
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
        function, given = _score(one, reader, config, system=system, seed=bars.seed)
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


class _Reader:
    """Blocks of arranged data as tensors, `(member, time, field, *shape)`."""

    def __init__(self, data: xr.Dataset, config: DataConfig) -> None:
        assert config.found is not None
        self._data, self._config = data, config
        fields = tuple(Field(f.name, f.long_name, f.units) for f in config.found.fields)
        self.saved = Saved(fields, config.found.shape, config.homogeneous)
        self.members, self.times = data.sizes["member"], data.sizes[TIME]
        self.snapshots = self._snapshots()
        self.statistics = Statistics.fit(self.snapshots, homogeneous=config.homogeneous)

    def block(self, members: slice, times: slice, data: xr.Dataset | None = None) -> Tensor:
        """One block, in the precision of the data.

        Raises:
            UserError: a value that is no number.
        """
        part = (self._data if data is None else data).isel(member=members, time=times)
        names = self._config.variables
        values = np.stack([np.asarray(part[name].values) for name in names], axis=2)
        for index, name in enumerate(names):
            bad = first_bad(values[:, :, index])
            if bad is not None:
                raise UserError(
                    f"variable '{name}' has a value that is no number at member "
                    f"{members.start + bad[0]}, time index {times.start + bad[1]}; fill the gaps"
                )
        single = values.dtype == np.float32
        return torch.from_numpy(values.astype(np.float32 if single else np.float64, copy=False))

    def _snapshots(self) -> Tensor:
        """Snapshots that scores are fitted to: all, or evenly spaced times of large data."""
        keep = max(3, FIT_NUMBERS // max(1, self.saved.numbers * self.members))
        stride = max(1, -(-self.times // keep))
        parts = [
            self.block(slice(m, m + 1), slice(0, self.times), self._data)[:, ::stride]
            if stride == 1
            else self._thinned(m, stride)
            for m in range(self.members)
        ]
        return torch.cat(parts).flatten(0, 1)

    def _thinned(self, member: int, stride: int) -> Tensor:
        thin = self._data.isel(time=slice(0, None, stride))
        return self.block(slice(member, member + 1), slice(0, thin.sizes[TIME]), thin)


def _score(
    one: ScoreLike, reader: _Reader, config: DataConfig, *, system: System | None, seed: int
) -> tuple[Score, xr.Dataset | None]:
    """The score as a function, and as data where it was given so."""
    homogeneous = reader.saved.homogeneous
    if isinstance(one, xr.Dataset):
        names = {f"score_{n}": n for n in config.variables if f"score_{n}" in one}
        given = arrange(one.rename(names), config)
        if given.sizes != reader._data.sizes:
            raise UserError(
                f"the scores have {dict(given.sizes)}, the data {dict(reader._data.sizes)}; "
                "evaluate the score at the same members, times and places"
            )

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


def _sums(
    reader: _Reader,
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
    pairs = np.stack(
        [pair_counts(b.start, b.stop, length=reader.times, max_lag=lags) for b in blocks]
    ).astype(np.float64)
    together = max(1, BLOCK_NUMBERS // max(1, reader.saved.numbers * length))
    found: dict[str, list[Floats]] = {}
    for member in range(reader.members):
        own: dict[str, list[Floats]] = {}
        for part in _pieces(blocks, together):
            at = slice(member, member + 1)
            reach = min(part[-1].stop + lags, reader.times)
            x = reader.block(at, slice(part[0].start, reach))
            past = slice(part[0].start, part[-1].stop)
            s = _evaluated(reader, score, given, at, past, x)
            sums = block_sums(channels, constants, x, s, score, blocks=part, max_lag=lags)
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


def _evaluated(
    reader: _Reader,
    score: Score,
    given: xr.Dataset | None,
    members: slice,
    times: slice,
    x: Tensor,
) -> Tensor:
    if given is not None:
        return reader.block(members, times, given)
    past = x[:, : times.stop - times.start]
    with torch.no_grad():
        return score(past.flatten(0, 1)).reshape(past.shape).to(x.dtype)


def _constants(
    reader: _Reader, channels: Channels, score: Score, given: xr.Dataset | None
) -> Constants:
    stride = max(1, reader.times // 512)
    everyone = slice(0, reader.members)
    at = [slice(t, t + 1) for t in range(0, reader.times, stride)]
    x = torch.cat([reader.block(everyone, t) for t in at], dim=1)
    s = torch.cat(
        [_evaluated(reader, score, given, everyone, t, reader.block(everyone, t)) for t in at],
        dim=1,
    )
    x, s = x.flatten(0, 1), s.flatten(0, 1)
    repair = None
    if channels.versions == 2:
        maps, mean = reader.saved.maps, x.double().mean(0)
        if maps:
            mean = mean.mean(tuple(range(1, mean.ndim)), keepdim=True)
        stein = lag_zero_matrix(x.double() - mean, s.double(), maps=maps) / len(x)
        repair = LinearRecalibration.fit(stein, maps=maps, shape=reader.saved.shape)
    return Constants.of(channels, x, s, score, recalibration=repair)


def _lags(max_lag: float | np.timedelta64, step: float, times: int) -> int:
    value = max_lag / np.timedelta64(1, "s") if isinstance(max_lag, np.timedelta64) else max_lag
    lags = round(float(value) / step)
    if not 1 <= lags < times:
        raise UserError(
            f"max_lag={max_lag} is {lags} saved samples; needs 1 to {times - 1}: the data have "
            f"{times} times, {step:g} apart"
        )
    return lags


def _lag_units(time_units: str) -> str:
    return "s" if time_units.startswith("seconds since") else time_units
