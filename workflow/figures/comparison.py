"""The page that compares several runs: what differs, what they found, how far to trust each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from workflow.figures import OTHER_COLOURS, in_order, line, picture
from workflow.figures.page import document, figure, table
from workflow.figures.phrases import number, off_by, with_error
from workflow.figures.responses import LAG, pick, space_of, units_words
from workflow.figures.verdict import verdict
from workflow.figures.words import REFERENCES

PALETTE = ("#1f5fbf", "#d0342c", "#2a9d3a", *OTHER_COLOURS)
"""One colour for each run."""


def comparison(
    summaries: Mapping[str, Mapping[str, Any]],
    *,
    differences: Mapping[str, Sequence[str]],
    reports: Mapping[str, str],
    figures: Sequence[tuple[str, str]],
    folder: Path,
) -> str:
    """Several runs on one page.

    Args:
        summaries: content of `summary.json` by run.
        differences: keys of the experiments that are not the same, and their values by run.
        reports: address of each run's own report, relative to the page.
        figures: file name and caption of each picture.
        folder: where the pictures are.
    """
    names = list(summaries)
    lead = f"{len(names)} runs: {', '.join(names)}. The response is that of the first perturbation "
    lead += "and observable of each."
    parts = [f'<p class="lead">{escape(lead)}</p>', _verdicts(summaries, reports)]
    drawn = [figure(name, caption, folder) for name, caption in figures]
    parts += ["<h2>Responses</h2>", *drawn] if drawn else []
    parts += [_errors(summaries), _differences(names, differences)]
    return document(" and ".join(filter(None, [", ".join(names[:-1]), names[-1]])), parts)


def _verdicts(summaries: Mapping[str, Mapping[str, Any]], reports: Mapping[str, str]) -> str:
    rows = []
    for name, summary in summaries.items():
        found, sizes = verdict(summary), summary.get("sizes") or {}
        link = f'<a href="{escape(quote(reports[name]))}">{escape(name)}</a>'
        told = [found.estimator if found and found.level != "none" else "–"]
        told += [found.level if found else "–"]
        length = f"{sizes.get('members', '–')} × {number(sizes.get('length'), 6)}"
        seconds = sum((summary.get("wall_seconds") or {}).values())
        rows.append([link, *map(escape, [*told, length, str(sizes.get("pairs", "–"))])])
        rows[-1].append(number(seconds / 60) if seconds else "–")
    head = ["run", "use", "trust", "members × length", "pairs", "minutes"]
    return f"<h2>Which to use</h2>\n{table(head, rows)}"


def _errors(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each run and estimator, every number with its standard error."""
    rows = []
    for run, summary in summaries.items():
        scores = summary.get("score_error") or {}
        errors = summary.get("score_error_standard_error") or {}
        for name in in_order(summary.get("estimators") or {}):
            one = summary["estimators"][name]
            row = [escape(run), escape(name)]
            for reference in REFERENCES:
                found = (one.get("against") or {}).get(reference) or {}
                row.append(escape(off_by(found) or "–"))
            raw = one.get("stein_error_raw"), one.get("stein_error_raw_standard_error")
            rows.append([*row, with_error(*raw), with_error(scores.get(name), errors.get(name))])
    head = ["run", "estimator", *(f"off {reference}" for reference in REFERENCES)]
    note = (
        "Off: L2 distance from the reference, without the noise of both, as a share of it, "
        "over the lags at which the Gaussian error is significant, ± one standard error, or below "
        "what noise allows (95 %). A dash: not known."
    )
    whole = table([*head, "Stein error, raw", "score error"], rows)
    return f'<h2>Errors</h2>\n{whole}\n<p class="note">{escape(note)}</p>'


def _differences(names: Sequence[str], differences: Mapping[str, Sequence[str]]) -> str:
    if not differences:
        return "<h2>What differs</h2>\n<p>Nothing: the experiments are the same.</p>"
    rows = [[escape(key), *map(escape, values)] for key, values in differences.items()]
    return f"<h2>What differs</h2>\n{table(['key', *names], rows)}"


def curves_of_runs(responses: Mapping[str, xr.Dataset], folder: Path) -> tuple[str, str] | None:
    """Response at the kicked place against lag: a panel for each estimator, a curve for each run.

    Args:
        responses: `response.zarr` of each run, dims as in `figures.responses.curves`.
        folder: where the picture goes.

    Returns:
        File name and caption; None where no response has such a curve.
    """
    found = {name: one for name, data in responses.items() if (one := _kicked(data)) is not None}
    names = in_order({str(n) for one in found.values() for n in one.estimator.values})
    if not names:
        return None
    rows = -(-len(names) // 2)
    with picture(folder / "runs.png", 12, 3.9 * rows + 0.6) as drawn:
        panels = drawn.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
        for panel in panels.flat[len(names) :]:
            panel.set_axis_off()
        for panel, estimator in zip(panels.flat, names, strict=False):
            for colour, (run, one) in zip(PALETTE, found.items(), strict=False):
                if estimator in one.estimator.values:
                    _curve(panel, one.sel(estimator=estimator), run, estimator, colour)
            panel.axhline(0, color="grey", lw=0.8, zorder=0)
            panel.set_title(estimator)
            panel.set(xlabel=LAG, ylabel=f"response {units_words(next(iter(found.values())))}")
        legend = {t: h for p in panels.flat for h, t in zip(*p.get_legend_handles_labels())}  # noqa: B905
        above: Any = "outside upper center"
        drawn.legend(list(legend.values()), list(legend), loc=above, ncols=min(4, len(legend)))
    left = [name for name in responses if name not in list(found)[: len(PALETTE)]]
    caption = "Response at the kicked place, or of the number watched, with confidence bands."
    return "runs.png", caption + (f" Not drawn: {', '.join(left)}." if left else "")


def _kicked(data: xr.Dataset) -> xr.Dataset | None:
    one = pick(data, None, None)
    space = space_of(one)
    if set(one.response.dims) - {"estimator", "lag", *space}:
        return None
    if any(dim in ("y", "x") for dim in space):
        return None  # which place was kicked is not said
    return one.sel({dim: 0 for dim in space}).compute()


def _curve(panel: Any, one: xr.Dataset, run: str, estimator: str, colour: str) -> None:
    if not bool(np.isfinite(one.response).any()):
        return
    panel.fill_between(one.lag, one.ci_low, one.ci_high, color=colour, alpha=0.2, lw=0)
    panel.plot(one.lag, one.response, label=run, **(line(estimator) | {"color": colour}))
