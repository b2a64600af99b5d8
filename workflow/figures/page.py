"""The page of a run: headline numbers, pictures, and what the run was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from workflow.figures import colour, in_order

REFERENCES = ("direct", "exact")
"""What responses are compared with, in the order of the columns."""

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
th{font-weight:600;background:#f6f7f9}
td:first-child,th:first-child{text-align:left}
figure{margin:0 0 2.2rem}
figure img{display:block;width:100%;height:auto}
figcaption{max-width:52rem;margin-top:.5rem}
.run{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:0 2rem}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
@media(max-width:600px){body{font-size:16px;padding:1rem .8rem}td,th{padding:.35rem .5rem}}
@media print{figure{break-inside:avoid}}
"""


def write_page(
    folder: Path,
    title: str,
    summary: Mapping[str, Any],
    figures: Sequence[tuple[str, str]],
) -> Path:
    """Write `index.html` beside the pictures; nothing outside the folder is needed to read it.

    Args:
        folder: the report folder.
        title: heading.
        summary: content of `summary.json`; what it lacks is left out.
        figures: file name and caption of each picture, in order.

    Returns:
        The file written.
    """
    drawn = "\n".join(_figure(name, caption) for name, caption in figures)
    pictures = f"<h2>Pictures</h2>\n{drawn}" if drawn else ""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{_lead(summary)}
{_errors(summary)}
{pictures}
{_run(summary)}
</body></html>
"""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def _figure(name: str, caption: str) -> str:
    return (
        f'<figure><img src="{escape(name)}" alt="{escape(caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _lead(summary: Mapping[str, Any]) -> str:
    """What was asked, in one sentence."""
    system = summary.get("system")
    kind = system.get("kind") if isinstance(system, Mapping) else system
    words = f"Response of {kind}" if kind else "Response"
    words = f"{words.replace('_', ' ')} to a small kick, learned from unperturbed data"
    if "members" in summary and "length" in summary:
        words += f": {summary['members']} members of length {_number(summary['length'])}"
    if summary.get("pairs"):
        words += f"; the direct response is from {summary['pairs']} pairs of perturbed runs"
    return f'<p class="lead">{escape(words)}.</p>'


def _errors(summary: Mapping[str, Any]) -> str:
    """The headline table: a row for each estimator."""
    estimators = summary.get("estimators") or {}
    if not estimators:
        return ""
    head = ["estimator", *(f"summed L2 error against {r}" for r in REFERENCES)]
    head += ["Stein error, raw", "Stein error, recalibrated"]
    scores = summary.get("score_error") or {}
    if scores:
        head.append("score error, held out")
    rows = []
    for name in in_order(estimators):
        one = estimators[name]
        against = one.get("against") or {}
        row = [_with_error(against.get(r) or {}) for r in REFERENCES]
        row += [_number(one.get(f"stein_error_{end}")) for end in ("raw", "recalibrated")]
        row += [_number(scores.get(name))] if scores else []
        dot = f'<span class="dot" style="background:{colour(name)}"></span>'
        rows.append([dot + escape(name), *map(escape, row)])
    note = (
        "L2 errors are summed over the lags at which the Gaussian estimator's error is "
        "significant, ± one standard error; they hold the sampling noise of both sides. A dash: "
        "no reference, or no such lag. "
        "The Stein error is 0 for the score of the data."
    )
    return f'<h2>Errors</h2>\n{_table(head, rows)}\n<p class="note">{escape(note)}</p>'


def _with_error(against: Mapping[str, Any]) -> str:
    value, error = against.get("summed_l2"), against.get("summed_l2_standard_error")
    # A sum over no lag is 0, which would read as perfect agreement.
    if value is None or against.get("significant_lags") == []:
        return "–"
    return _number(value) if error is None else f"{_number(value)} ± {_number(error, 2)}"


def _run(summary: Mapping[str, Any]) -> str:
    """Sizes, wall times and versions, side by side where the screen is wide."""
    sizes = {k: summary[k] for k in ("members", "length", "pairs") if k in summary}
    stores = summary.get("sizes") or {}
    columns = [
        ("size", "", sizes | dict(stores)),
        ("stage", "wall seconds", summary.get("wall_seconds") or {}),
        ("package", "version", summary.get("versions") or {}),
    ]
    tables = []
    for first, second, found in columns:
        rows = [[escape(str(k)), escape(_cell(v))] for k, v in found.items()]
        if rows:
            tables.append(f"<div>{_table([first, second], rows)}</div>")
    return f'<h2>Run</h2>\n<div class="run">{"".join(tables)}</div>' if tables else ""


def _cell(value: Any) -> str:
    return _number(value, 4) if isinstance(value, float) else str(value)


def _number(value: Any, digits: int = 3) -> str:
    """A number in few digits; a dash for what is missing."""
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells of the rows are HTML already."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
