"""Respond: responses with error bars from sums and paired runs, and how far they are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, read_block, write_block
from workflow.quarantine import quarantined, rows_of
from workflow.responses.assemble import ErrorBars, assemble
from workflow.responses.channels import Channels
from workflow.responses.correlation import pair_counts
from workflow.responses.labels import ResponseSet, label_responses
from workflow.responses.observables import build_observables
from workflow.responses.pairs import PairMoments
from workflow.responses.resampling import Units, resampling_units, unit_weights
from workflow.responses.sources import Floats, Learned, Paired, Source
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.constants import load_constants
from workflow.stages.data import load_channels, load_statistics
from workflow.stages.overview import REFERENCES


def respond(run: Run, notify: Notify) -> None:
    """Write `response.zarr` from the sums, unless it is that already."""
    ledger, key = run.ledger("respond"), run.key("response")
    channels = load_channels(run)
    statistics = load_statistics(run)
    asked = {
        one.name
        for one in build_observables(run.experiment.response.observables, run.saved, statistics)
    }
    observables = [one for one in channels.observables if one.name in asked]
    if "response" in ledger.done() and ledger.load("response").facts.get("key") == key:
        notify("error bars", len(observables), len(observables))
        return
    ledger.drop("response")
    run.discard(run.response)
    sources, weights = load_sources(run, channels)
    bars = error_bars(run)
    found = {}
    for count, one in enumerate(observables):
        notify("error bars", count, len(observables))
        found[one.name] = assemble(
            sources, one, lags=run.lags, references=REFERENCES, bars=bars, weights=weights
        )
    lag = coordinates.lag(run, run.lags)
    units = str(lag.attrs["units"])
    spread = [statistics.spread(field) for field in range(len(run.saved.fields))]
    responses = ResponseSet(
        channels, sources, observables, found, lag.values, REFERENCES, units, spread
    )
    groups = label_responses(responses)
    attrs = run.attributes("responses with error bars") | {"level": bars.level} | _units(sources)
    _save(run, {name: data.assign_attrs(attrs) for name, data in groups.items()})
    notify("error bars", len(observables), len(observables))


def error_bars(run: Run) -> ErrorBars:
    """How the experiment wants its error bars."""
    error = run.experiment.response.error
    return ErrorBars(error.samples, error.level, error.bands, run.experiment.seed)


def load_sources(run: Run, channels: Channels) -> tuple[dict[str, Source], dict[str, Floats]]:
    """Every estimator of the run as a source of responses, and the weights of its resamples.

    Raises:
        UserError: a run too short for its correlations.
    """
    bars = error_bars(run)
    sources: dict[str, Source] = {}
    weights: dict[str, Floats] = {}
    units: Units | None = None
    shared: Floats = np.zeros(0)
    pairs = np.stack(
        [
            pair_counts(block.start, block.stop, length=run.times, max_lag=run.lags)
            for block in run.sum_blocks
        ]
    ).astype(np.float64)
    whole = run.errors_by == "member"
    for name in run.experiment.response.estimators:
        if name == "direct":
            sources[name] = _direct(run, channels)
            # Other draws: the noise of the paired runs is its own.
            seed = bars.seed + 1
            weights[name] = unit_weights(sources[name].units, samples=bars.samples, seed=seed)
            continue
        sums = _read(run, "totals", name, whole=whole)
        if units is None:
            units = _units_of(run, sums, pairs)
            shared = unit_weights(units, samples=bars.samples, seed=bars.seed)
        weights[name] = shared
        sources[name] = Learned(
            channels,
            pairs=pairs.sum(0, keepdims=True) if whole else pairs,
            units=units,
            maps=_Maps(run, name, channels, whole=whole),
            totals=sums,
            recalibrate=run.experiment.response.recalibrate,
            weights=shared,
            repair=load_constants(run, name).recalibration,
            controlled=name == "exact" and run.experiment.response.control_variates,
        )
    return sources, weights


def _units_of(run: Run, sums: Floats, pairs: Floats) -> Units:
    if run.errors_by == "member":
        return Units(len(sums), 1, 1)
    # Few members whose runs are too short for blocks of time are resampled themselves.
    by = run.experiment.response.error.by
    return resampling_units(sums[..., :1], pairs, by="auto" if by == "auto" else "time")


class _Maps(Mapping[str, Floats]):
    """Sums of the observables of the place, read when they are asked for; the last one is kept."""

    def __init__(self, run: Run, estimator: str, channels: Channels, *, whole: bool) -> None:
        self._run, self._estimator, self._whole = run, estimator, whole
        self._names = [one.name for one in channels.of_place] if run.saved.maps else []
        self._kept: tuple[str, Floats] = ("", np.zeros(0))

    def __getitem__(self, name: str) -> Floats:
        if self._kept[0] != name:
            index = self._names.index(name)
            self._kept = ("", np.zeros(0))
            sums = _read(self._run, "maps", self._estimator, whole=self._whole, observable=index)
            self._kept = (name, sums[:, :, :, 0])
        return self._kept[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read(
    run: Run, variable: str, estimator: str, *, whole: bool, observable: int | None = None
) -> Floats:
    """Sums `(member, block, lag, ...)`; whole members have one block."""
    groups = []
    for group in run.groups:
        start = {"estimator": run.learned.index(estimator), "member": group.start}
        size = {"estimator": 1, "member": len(group)}
        if observable is not None:
            start["observable"], size["observable"] = observable, 1
        sums = read_block(run.correlations, variable, start=start, size=size)[0]
        sums = np.delete(sums, rows_of(group, run.quarantined), axis=0)
        groups.append(sums.sum(axis=1, keepdims=True) if whole else sums)
    return np.concatenate(groups)


def _direct(run: Run, channels: Channels) -> Paired:
    rounds = np.array([len(r) for r in run.round_blocks], dtype=np.float64)
    share = rounds / rounds.sum()
    out = sorted({*run.quarantined, *quarantined(run.ledger("direct"))})
    totals = np.einsum("b,b...->...", share, read_block(run.perturbed, "totals", start={}, size={}))
    maps: dict[str, Floats] = {}
    if run.saved.maps:
        for index, one in enumerate(channels.of_place):
            part = {"observable": index}
            blocks = read_block(run.perturbed, "response", start=part, size={"observable": 1})
            maps[one.name] = np.einsum("b,b...->...", share, blocks)[:, :, :, 0]
    maps = {name: np.delete(one, out, axis=0) for name, one in maps.items()}
    square, fourth = (
        np.delete(read_block(run.perturbed, name, start={}, size={}), out, axis=1)
        for name in ("square", "fourth")
    )
    moments = PairMoments.of(square, fourth, rounds)
    return Paired(channels, maps=maps, totals=np.delete(totals, out, axis=0), moments=moments)


def _units(sources: Mapping[str, Source]) -> dict[str, str]:
    """In words, what the error bars of each estimator resample."""
    words = {}
    for name, source in sources.items():
        u = source.units
        what = (
            f"{u.members} members"
            if u.by == "member"
            else (f"stretches of {u.moving} of {u.blocks} blocks of {u.members} members")
        )
        words[f"resampled_{name}"] = what
    return words


def _save(run: Run, groups: Mapping[str, xr.Dataset]) -> None:
    files: dict[str, str] = {}
    for group, dataset in groups.items():
        path = run.response / group if group else run.response
        _create(path, dataset)
        for name, v in dataset.data_vars.items():
            values = np.ascontiguousarray(v.values.astype("int8") if v.dtype == bool else v.values)
            written = write_block(path, str(name), start={}, values=values)
            inside = Path("response.zarr") / group
            files |= {str(inside / key): crc for key, crc in written.items()}
    consolidate(run.response)
    run.ledger("respond").record(Receipt("response", files, {"key": run.key("response")}))


def _create(path: Path, dataset: xr.Dataset) -> None:
    create_store(
        path,
        variables=[
            Variable(
                str(name),
                tuple(map(str, v.dims)),
                v.shape,
                v.shape,
                "int8" if v.dtype == bool else str(v.dtype),
                dict(v.attrs),
            )
            for name, v in dataset.data_vars.items()
        ],
        coordinates=[
            Coordinate(str(name), v.values, dict(v.attrs)) for name, v in dataset.coords.items()
        ],
        attrs=dataset.attrs,
    )
