"""The page of a run: headline numbers, pictures, and what the run was."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workflow.figures import colour, in_order
from workflow.figures.checked import DATA
from workflow.figures.phrases import number, with_error
from workflow.figures.verdict import verdict
from workflow.figures.words import REFERENCES, findings

DENSITY = 1.44
"""Pixels of a picture for one of the page: a picture of 12 inches fills a wide page."""

LARGEST = 300_000
"""Bytes of numbers of a picture that are put into the page too; larger ones are beside it."""

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:17px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;max-width:1120px;
margin:0 auto;padding:2rem 1.2rem 4rem;color:#1d1f23;background:#fff}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.35rem;margin:2.6rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid #ddd}
.lead,figcaption,.note{color:#555}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.4rem .9rem;border-bottom:1px solid #e3e3e3;text-align:right;vertical-align:top}
td{white-space:nowrap}
th{font-weight:600;background:#f6f7f9}
td:first-child,th:first-child{text-align:left}
.fails{color:#b00020;font-weight:600}
pre{background:#f6f7f9;padding:1rem;overflow-x:auto;font-size:.85em}
ul{padding-left:1.2rem;max-width:60rem}
li{margin:.4rem 0}
figure{margin:0 0 2.2rem}
figure img{display:block;max-width:100%;height:auto}
figcaption{max-width:52rem;margin-top:.5rem}
.run{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:0 2rem}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
.box{border:1px solid #ddd;border-left:.6rem solid #888;border-radius:.3rem;padding:.8rem 1.2rem;
margin:1.2rem 0;max-width:60rem}
.box p{margin:.3rem 0}.box .what{font-size:1.2rem;font-weight:600}
.box.high{border-left-color:#2a9d3a}.box.fair{border-left-color:#e08e0b}
.box.low,.box.none{border-left-color:#b00020}
summary{cursor:pointer;font-size:1.35rem;font-weight:600;margin:2.6rem 0 .6rem}
@media(max-width:600px){body{font-size:16px;padding:1rem .8rem}td,th{padding:.35rem .5rem}
figure img{max-width:none;width:44rem}}
@media print{body{font-size:10pt;max-width:none;padding:0}figure,table,.box,li{break-inside:avoid}
h2,summary{break-after:avoid}.wide{overflow:visible}.screen{display:none}}
"""


def page(
    title: str,
    summary: Mapping[str, Any],
    figures: Sequence[tuple[str, str]],
    *,
    gallery: Sequence[tuple[str, str]] = (),
    left_out: int = 0,
    experiment: str = "",
    folder: Path | None = None,
) -> str:
    """The report as one HTML text; nothing else is needed to read it.

    Args:
        title: heading.
        summary: content of `summary.json`; what it lacks is left out.
        figures: file name and caption of each picture beside the page, in order.
        gallery: the same for the pictures of all observables and perturbations.
        left_out: how many more pictures the gallery would have.
        experiment: the resolved experiment file.
        folder: where the pictures and their numbers are, to be put into the page; else the page
            links to the pictures beside it.

    Returns:
        HTML that loads nothing from anywhere else.
    """
    drawn = "\n".join(figure(name, caption, folder) for name, caption in figures)
    parts = (
        _lead(summary),
        _verdict_box(summary),
        _findings(summary),
        _errors(summary),
        _checks(summary),
        _budget(summary),
        f"<h2>Pictures</h2>\n{drawn}" if drawn else "",
        _gallery(gallery, left_out, folder),
        _run(summary),
        _experiment(experiment),
    )
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page with its style in it."""
    body = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def figure(name: str, caption: str, folder: Path | None) -> str:
    """A picture with its caption; with a folder, both it and its numbers are in the page itself.

    On a small screen it keeps a readable size and is moved under the finger.
    """
    link, numbers = escape(quote(name)), ""
    size = f'srcset="{link} {DENSITY}x"'
    if folder is not None:
        link, csv = _embedded(folder / name, "image/png"), (folder / name).with_suffix(".csv")
        size = f'width="{_width(folder / name) / DENSITY:.0f}"'
        if csv.is_file() and 0 < csv.stat().st_size <= LARGEST:
            data = _embedded(csv, "text/csv")
            numbers = f' <a class="screen" download="{escape(csv.name)}" href="{data}">Numbers</a>'
    return (
        f'<figure><div class="wide"><img src="{link}" {size} alt="{escape(caption)}"></div>'
        f"<figcaption>{escape(caption)}{numbers}</figcaption></figure>"
    )


def _width(path: Path) -> int:
    """Pixels across a PNG, of which bytes 16 to 20 tell."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(20)[16:])


def _embedded(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _gallery(figures: Sequence[tuple[str, str]], left_out: int, folder: Path | None) -> str:
    """Every observable after every perturbation."""
    if not figures:
        return ""
    drawn = "\n".join(figure(name, caption, folder) for name, caption in figures)
    more = (
        f'<p class="note">{left_out} more pictures are left out; all responses are in '
        "response.zarr.</p>"
    )
    return f"<h2>All responses</h2>\n{drawn}\n{more if left_out else ''}"


def _lead(summary: Mapping[str, Any]) -> str:
    """What was asked, in one sentence."""
    system, sizes = summary.get("system"), summary.get("sizes") or {}
    kind = system.get("kind") if isinstance(system, Mapping) else system
    words = f"Response of the {kind} system" if kind else "Response"
    words = f"{words.replace('_', ' ')} to a small kick, learned from unperturbed data"
    if not kind and summary.get("data"):
        words += f" in {Path(str(summary['data'])).name}"
    if "members" in sizes and "length" in sizes:
        plural = "" if sizes["members"] == 1 else "s"
        words += f": {sizes['members']} member{plural} of length {number(sizes['length'], 6)}"
    if sizes.get("pairs"):
        words += f"; the direct response is from {sizes['pairs']} pairs of perturbed runs"
    return f'<p class="lead">{escape(words)}.</p>'


def _verdict_box(summary: Mapping[str, Any]) -> str:
    """Which response to use and how far to trust it."""
    found = verdict(summary)
    if found is None:
        return ""
    reasons = "".join(f"<p>{escape(text)}</p>" for text in found.reasons)
    what = f"Use the {found.estimator} response. Trust: {found.level}."
    if found.level == "none":
        what = "Use none of these responses."
    return f'<div class="box {found.level}"><p class="what">{escape(what)}</p>{reasons}</div>'


def _findings(summary: Mapping[str, Any]) -> str:
    """What was found, in words."""
    told = "".join(f"<li>{escape(text)}</li>" for text in findings(summary))
    return f"<h2>Findings</h2>\n<ul>{told}</ul>" if told else ""


def _errors(summary: Mapping[str, Any]) -> str:
    """The headline table: a row for each estimator."""
    estimators = summary.get("estimators") or {}
    if not estimators:
        return ""
    references = [
        r for r in REFERENCES if any(r in (one.get("against") or {}) for one in estimators.values())
    ]
    head = ["estimator", *(f"summed L2 error against {r}" for r in references)]
    head += ["Stein error, raw", "Stein error, recalibrated"]
    scores = summary.get("score_error") or {}
    score_errors = summary.get("score_error_standard_error") or {}
    if scores:
        head.append("score error, held out")
    rows = []
    for name in in_order(estimators):
        one = estimators[name]
        against = one.get("against") or {}
        known = [against.get(reference) or {} for reference in references]
        row = [with_error(o.get("summed_l2"), o.get("summed_l2_standard_error")) for o in known]
        raw = one.get("stein_error_raw"), one.get("stein_error_raw_standard_error")
        row += [with_error(*raw), number(one.get("stein_error_recalibrated"))]
        row += [with_error(scores.get(name), score_errors.get(name))] if scores else []
        dot = f'<span class="dot" style="background:{colour(name)}"></span>'
        rows.append([dot + escape(name), *map(escape, row)])
    note = (
        "L2 errors are summed over the lags at which the Gaussian estimator's error is "
        "significant and this one's is known, ± one standard error; they hold the sampling noise "
        "of both sides. A dash: no reference, or no such lag. "
    )
    note = f"{note if references else ''}The Stein error is 0 for the score of the data."
    return f'<h2>Errors</h2>\n{table(head, rows)}\n<p class="note">{escape(note)}</p>'


def _checks(summary: Mapping[str, Any]) -> str:
    """What the data and the scores were tested by: a row for each check, a column for each."""
    found = {name: checks for name, checks in (summary.get("checks") or {}).items() if checks}
    if not found:
        return ""
    columns = [*(name for name in (DATA,) if name in found), *in_order(set(found) - {DATA})]
    # The same check of different estimators has the same name.
    names = dict.fromkeys(one["name"] for column in columns for one in found[column])
    rows = []
    for name in names:
        at = [next((c for c in found[column] if c["name"] == name), None) for column in columns]
        rows.append([escape(name), *(_verdict(check) for check in at)])
    heads = [f"the {name}" if name == DATA else name for name in columns]
    note = (
        "Deviation from what must be, in standard errors; up to 4 passes. Of many numbers the "
        "worst is told, made smaller for their number. A dash: these data cannot tell. What was "
        "found and expected is told where the pointer rests, and in checks.json."
    )
    return f'<h2>Checks</h2>\n{table(["check", *heads], rows)}\n<p class="note">{escape(note)}</p>'


def _verdict(check: Mapping[str, Any] | None) -> str:
    """A cell of the table of checks."""
    if check is None:
        return ""
    found = with_error(check.get("value"), check.get("standard_error"))
    wanted = f", expected {number(check['expected'])}" if check.get("expected") is not None else ""
    told = escape("; ".join(filter(None, [f"found {found}{wanted}", check.get("note")])))
    passed, z = check.get("passed"), check.get("z")
    if passed is None:
        return f'<span title="{told}">{number(check.get("value"))}</span>'
    off = "∞" if z is None else number(abs(z), 2)
    if passed:
        return f'<span title="{told}">passes ({off})</span>'
    return f'<span class="fails" title="{told}">fails ({off})</span>'


def _budget(summary: Mapping[str, Any]) -> str:
    """What samples of the learned score are off by, and what each term would allow."""
    budget = summary.get("error_budget") or {}
    if not budget:
        return ""
    words_of = {
        "score": "error of the score at all noise levels (first order)",
        "prior": "what noise makes of the data is not the prior (first order)",
        "early_stopping": "noise not taken off to the end (bound)",
    }
    rows = [[words_of[key], number(value), ""] for key, value in budget["terms"].items()]
    told = {"finite number of data: trained on, from held out": budget["finite_sample"]}
    for name, one in budget["measured"].items():
        told[f"measured: samples of the {name}, from held out"] = one["sliced_wasserstein"]
    for words, one in told.items():
        ends = f"{number(one['value'])} ({number(one['low'])} to {number(one['high'])})"
        rows.append([words, ends, f"{number(one['floor'])}, up to {number(one['floor_high'])}"])
    note = (
        f"Sliced Wasserstein distances of whitened snapshots, in standard deviations; those "
        f"measured are of {budget['samples']} samples in {budget['steps']} steps, with 95 % "
        "intervals. The floor is the distance of as many held-out snapshots from others."
    )
    if "total_variation" in budget:
        seen = budget["measured"]["reverse diffusion"]["pixel_density"]
        note += (
            f" By the path KL (Pinsker) no event is more than "
            f"{number(budget['total_variation'])} off in probability; of the density of one "
            f"number {number(seen['value'])} is measured, floor {number(seen['floor'])}."
        )
    if likelihood := budget.get("likelihood"):
        bound, flow = (with_error(*likelihood[key]) for key in ("bound", "flow"))
        note += (
            f" Log density of held-out data, nats a number: at least {bound} by the reverse "
            f"diffusion, {flow} by the probability flow; Gaussian data have "
            f"{number(likelihood['gaussian'], 4)}."
        )
    cells = table(["term", "distance", "floor"], [[escape(c) for c in row] for row in rows])
    return f'<h2>Error budget of samples</h2>\n{cells}\n<p class="note">{escape(note)}</p>'


def _run(summary: Mapping[str, Any]) -> str:
    """Sizes, wall times and versions, side by side where the screen is wide."""
    sizes = dict(summary.get("sizes") or {})
    stored = {name: _bytes(count) for name, count in (sizes.pop("bytes", None) or {}).items()}
    columns = [
        ("size", "", sizes | stored),
        ("stage", "wall seconds", summary.get("wall_seconds") or {}),
        ("package", "version", summary.get("versions") or {}),
    ]
    tables = []
    for first, second, found in columns:
        rows = [[escape(str(k).replace("_", " ")), escape(_cell(v))] for k, v in found.items()]
        if rows:
            tables.append(f"<div>{table([first, second], rows)}</div>")
    return f'<h2>Run</h2>\n<div class="run">{"".join(tables)}</div>' if tables else ""


def _experiment(text: str) -> str:
    if not text.strip():
        return ""
    return f"<details><summary>Experiment</summary><pre>{escape(text.strip())}</pre></details>"


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value))
    return number(value, 4) if isinstance(value, float) else str(value)


def _bytes(count: int) -> str:
    """A size in the largest unit that leaves at least one."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells of the rows are HTML already."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{whole}</div>'
