"""Report: summary.json, and the page with the pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator

from matplotlib.figure import Figure

from hpc.files import atomic_write_bytes, atomic_write_json
from hpc.stores import open_store
from workflow.figures import pictures
from workflow.figures.html import page
from workflow.runs import Notify, Run
from workflow.stages.summary import summarise


def report(run: Run, notify: Notify) -> None:
    """Write `report/`: summary.json, the pictures, index.html."""
    folder = run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(run, open_store(run.response).load())
    formats = run.experiment.report.format
    if "json" in formats:
        atomic_write_json(folder / "summary.json", summary)
    if "html" not in formats:
        return
    figures = []
    for count, (name, caption, figure) in enumerate(_figures(run)):
        notify("report", count, EXPECTED_FIGURES)
        figure.savefig(folder / f"{name}.png")
        figures.append((f"{name}.png", caption))
    experiment = (run.folder / "experiment.yaml").read_text()
    text = page(run.experiment.name, summary, figures, experiment)
    atomic_write_bytes(folder / "index.html", text.encode())
    notify("report", EXPECTED_FIGURES, EXPECTED_FIGURES)


EXPECTED_FIGURES = 8
"""Pictures of a run with all estimators."""


def _figures(run: Run) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of every picture that this run can have."""
    response = open_store(run.response).load()
    name = run.system.fields[0].name
    field = open_store(run.ensemble)[name]
    yield (
        "response_curves",
        "Response to a kick of one pixel, with confidence bands: the kicked pixel itself and "
        "pixels downstream of it.",
        pictures.curves(response),
    )
    yield (
        "response_errors",
        "Distance of each estimator's response from the direct and from the exact-score one; "
        "bands are two standard errors.",
        pictures.errors(response),
    )
    yield (
        "response_maps",
        "Response around the kicked pixel (at the origin) at four lags.",
        pictures.maps(response),
    )
    yield "snapshots", "The unperturbed field.", pictures.snapshots(field)
    yield (
        "density_spectrum",
        "Density of a pixel, and variance of the modes.",
        pictures.density_and_spectrum(field),
    )
    if run.learned:
        scores = open_store(run.scores)[f"score_{name}"]
        scatter = pictures.scores_against_exact(scores, run.test_members)
        if scatter is not None:
            text = "Score of each estimator against the exact score, on members held out."
            yield "scores", text, scatter
        yield (
            "stein",
            "The identity that every score must satisfy, before recalibration, by wavenumber.",
            pictures.stein(response),
        )
    log = run.folder / "score" / "log.jsonl"
    if run.experiment.score.estimator == "neural" and log.is_file():
        lines = [json.loads(text) for text in log.read_text().splitlines()]
        yield "training", "Loss of the training.", pictures.training(lines)
