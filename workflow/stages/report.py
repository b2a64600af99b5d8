"""Report: summary.json, and the page with the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from hpc.files import atomic_write_bytes
from hpc.stores import open_store
from workflow.figures import ensemble, responses, samples, scores
from workflow.figures.gallery import gallery
from workflow.figures.maps import response_maps
from workflow.figures.nats import nats
from workflow.figures.page import page
from workflow.figures.pairs import effective_pairs
from workflow.figures.tails import tails
from workflow.responses.observables import build_observables
from workflow.responses.probes import group_name
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.quality import quality_of
from workflow.stages.summary import as_json, summarise
from workflow.stages.tails import tails_of

Picture = Callable[[], tuple[str, str] | None]
"""Draws a picture; returns its file name and caption, or None where there is nothing to draw."""

FIELDS = 3
"""Most fields whose snapshots, densities and scores are drawn."""


def report(run: Run, notify: Notify) -> None:
    """Write `report/`: summary.json, the pictures, index.html."""
    folder = run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    response = open_store(run.response).load()
    every = _every_response(run, response)
    # Most pictures are about the first perturbation and the first observable of the experiment.
    headline = _with_units(response.isel(perturbation=0, observable=0), every)
    found = tails_of(run)
    summary = summarise(run, headline, every, tails=found.plain() if found else {})
    formats = run.experiment.report.format
    if "json" in formats:
        atomic_write_bytes(folder / "summary.json", f"{as_json(summary)}\n".encode())
    if "html" not in formats:
        return
    for old in [*folder.glob("*.png"), *folder.glob("*.csv")]:
        old.unlink()
    pictures = _pictures(run, headline)
    pictures.append(partial(nats, summary, folder))
    if found is not None:
        shown = {name: one.numpy() for name, one in found.samples.items()}
        pictures.append(partial(tails, found.data.numpy(), shown, found.plain(), folder))
    more, left_out = _gallery(every, folder)
    drawn = []
    for count, draw in enumerate([*pictures, *more]):
        notify("report", count, len(pictures) + len(more))
        drawn.append(draw())
    experiment = (run.folder / "experiment.yaml").read_text()
    first, others = (
        [one for one in some if one is not None]
        for some in (drawn[: len(pictures)], drawn[len(pictures) :])
    )
    text = page(
        run.experiment.name,
        summary,
        first,
        gallery=others,
        left_out=left_out,
        experiment=experiment,
        folder=folder,
    )
    atomic_write_bytes(folder / "index.html", text.encode())
    notify("report", len(drawn), len(drawn))


def _every_response(run: Run, response: xr.Dataset) -> dict[str, xr.Dataset]:
    """Responses by observable, in the order of the experiment, in units of their own."""
    asked = build_observables(run.experiment.response.observables, run.saved, None)
    found = {}
    for one in asked:
        if one.name in response.observable.values:
            data = response.sel(observable=one.name)
        else:
            data = open_store(run.response / group_name(one.name)).load()
        data["response"] = data.response.assign_attrs(
            units=one.units, observable_long_name=one.long_name
        )
        found[one.name] = data
    return found


def _with_units(headline: xr.Dataset, every: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The headline in the units of its observable: those of all together may be lost."""
    attrs = every[str(headline.observable.values)].response.attrs
    return headline.assign(response=headline.response.assign_attrs(attrs))


def _gallery(every: Mapping[str, xr.Dataset], folder: Path) -> tuple[Sequence[Picture], int]:
    """All responses, where there is more than the headline."""
    if len(every) == 1 and all(one.sizes["perturbation"] == 1 for one in every.values()):
        return [], 0
    return gallery(every, folder)


def _numbered(run: Run, data: xr.Dataset) -> xr.Dataset:
    """The same with dates as time since the first, in the unit of the lags."""
    if data.time.dtype.kind not in "MO":
        return data
    unit = coordinates.lag(run, 0).attrs["units"]
    since = np.arange(data.sizes["time"]) * run.experiment.ensemble.save_every
    return data.assign_coords(time=("time", since, {"units": f"{unit} since the first"}))


def _pictures(run: Run, response: xr.Dataset) -> list[Picture]:
    """Every picture that this run may have, in the order of the page."""
    folder = run.folder / "report"
    fields = [field.name for field in run.saved.fields]
    sound = [m for m in range(run.experiment.ensemble.members) if m not in run.quarantined]
    data = _numbered(run, open_store(run.ensemble)[fields].isel(member=sound))
    pictures: list[Picture] = [
        *_of_samples(run, data),
        partial(responses.curves, response, folder),
        partial(responses.errors, response, folder),
        partial(effective_pairs, response, folder),
        partial(response_maps, response, folder),
    ]
    if run.saved.shape:
        for field in fields[:FIELDS]:
            pictures.append(partial(ensemble.snapshots, data, folder, variable=field))
        for field in fields[:FIELDS]:
            draw = partial(ensemble.density_and_spectrum, data, folder, variable=field)
            pictures.append(partial(draw, homogeneous=run.saved.homogeneous))
    else:
        pictures.append(partial(ensemble.series, data, folder))
        pictures.append(partial(ensemble.densities, data, folder))
    if run.learned:
        scored = open_store(run.scores).isel(member=sound)
        held = [m for m in scored.attrs["test_members"] if m in sound]
        scored = scored.assign_attrs(test_members=held)
        for field in fields[:FIELDS]:
            name = f"score_{field}"
            pictures.append(partial(scores.against_exact, scored, folder, variable=name))
        pictures.append(partial(scores.stein, response, folder))
    log = run.folder / "score" / "log.jsonl"
    if "neural" in run.trained and log.is_file():
        lines = [json.loads(text) for text in log.read_text().splitlines()]
        start = next((one.get("test_loss") for one in lines if one["step"] == 0), None)
        pictures.append(partial(scores.training, lines, folder, baseline=start))
    return pictures


def _of_samples(run: Run, data: xr.Dataset) -> list[Picture]:
    """Samples of the learned density beside data held out, where the experiment asks for them."""
    if run.experiment.sample is None:
        return []
    folder, drawn = run.folder / "report", open_store(run.samples)
    states = _held_out(run, data, drawn.sizes["member"])
    drawn = drawn.isel(member=slice(states.sizes["member"])).load()
    pictures: list[Picture] = [
        partial(samples.beside_data, drawn, states, folder),
        partial(samples.statistics, drawn, states, folder),
    ]
    found = quality_of(run)
    if found:
        compared = open_store(run.comparison).isel(member=slice(samples.POINTS))
        pictures += [
            partial(samples.quality, found, folder),
            partial(samples.by_setting, compared, folder),
        ]
    return pictures


def _held_out(run: Run, data: xr.Dataset, count: int) -> xr.Dataset:
    """About `count` states held out of training, as members of their own."""
    part = data.sel(member=[m for m in run.held_out.members if m not in run.quarantined])
    part = part.isel(time=slice(run.held_out.times.start, run.held_out.times.stop))
    every = max(1, part.sizes["member"] * part.sizes["time"] // count)
    rows = part.isel(time=slice(None, None, every)).stack(state=("member", "time"))
    return rows.reset_index("state", drop=True).rename(state="member").load()
