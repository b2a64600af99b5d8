"""Report: summary.json, and the page with the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import xarray as xr

from hpc.files import atomic_write_bytes
from hpc.stores import open_store
from workflow.figures import ensemble, responses, scores
from workflow.figures.page import page
from workflow.runs import Notify, Run
from workflow.stages.summary import as_json, summarise

Picture = Callable[[], tuple[str, str] | None]
"""Draws a picture; returns its file name and caption, or None where there is nothing to draw."""


def report(run: Run, notify: Notify) -> None:
    """Write `report/`: summary.json, the pictures, index.html."""
    folder = run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    response = open_store(run.response).load()
    # Pictures and summary are about the first perturbation and observable of the experiment.
    headline = response.isel(perturbation=0, observable=0)
    summary = summarise(run, headline)
    formats = run.experiment.report.format
    if "json" in formats:
        atomic_write_bytes(folder / "summary.json", f"{as_json(summary)}\n".encode())
    if "html" not in formats:
        return
    pictures = _pictures(run, headline)
    drawn = []
    for count, draw in enumerate(pictures):
        notify("report", count, len(pictures))
        drawn.append(draw())
    experiment = (run.folder / "experiment.yaml").read_text()
    found = [picture for picture in drawn if picture is not None]
    text = page(run.experiment.name, summary, found, experiment=experiment)
    atomic_write_bytes(folder / "index.html", text.encode())
    notify("report", len(pictures), len(pictures))


def _pictures(run: Run, response: xr.Dataset) -> list[Picture]:
    """Every picture that this run may have, in the order of the page."""
    folder = run.folder / "report"
    field = run.saved.fields[0].name
    data = open_store(run.ensemble)
    # Curves are about one place: where places differ, the middle one.
    middle = {d: response.sizes[d] // 2 for d in ("y", "x") if d in response.dims}
    pictures: list[Picture] = [
        partial(responses.curves, response.isel(middle), folder),
        partial(responses.errors, response, folder),
    ]
    if run.saved.maps:
        pictures.append(partial(responses.maps, response, folder))
    if run.saved.shape:
        pictures += [
            partial(ensemble.snapshots, data, folder, variable=field),
            partial(ensemble.density_and_spectrum, data, folder, variable=field),
        ]
    if run.learned:
        scored = open_store(run.scores)
        pictures.append(partial(scores.against_exact, scored, folder, variable=f"score_{field}"))
        if run.saved.maps:
            pictures.append(partial(scores.stein, response, folder))
    log = run.folder / "score" / "log.jsonl"
    if "neural" in run.trained and log.is_file():
        lines = [json.loads(text) for text in log.read_text().splitlines()]
        # The antithetic loss of the Gaussian score is -1 per pixel by its whitening.
        pictures.append(partial(scores.training, lines, folder, baseline=-1.0))
    return pictures
