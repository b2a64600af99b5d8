"""The page: headline numbers, pictures, and what the run was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#222}
h1{margin-bottom:0}h2{margin-top:2.2rem}table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.3rem .9rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}
figure{margin:1.6rem 0}figcaption{color:#555;max-width:60rem}img{max-width:100%}
pre{background:#f5f5f5;padding:1rem;overflow:auto}
"""


def page(
    title: str, summary: Mapping[str, Any], figures: Sequence[tuple[str, str]], experiment: str
) -> str:
    """The report as one HTML text.

    Args:
        title: heading.
        summary: content of `summary.json`.
        figures: file name and caption of each picture.
        experiment: the experiment file.
    """
    drawn = "\n".join(
        f'<figure><img src="{escape(name)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for name, caption in figures
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>Response of {escape(str(summary["system"]["kind"]))} to a kick of one pixel, from
{summary["members"]} unperturbed members of length {summary["length"]:g}; the direct response from
{summary["pairs"]} paired perturbed runs.</p>
<h2>Errors</h2>
{_errors(summary)}
<h2>Pictures</h2>
{drawn}
<h2>Run</h2>
{_table([["stage", "wall seconds"], *map(list, summary["wall_seconds"].items())])}
{_table([["package", "version"], *map(list, summary["versions"].items())])}
<pre>{escape(experiment)}</pre>
</body></html>
"""


def _errors(summary: Mapping[str, Any]) -> str:
    head = ["estimator", "L2 from direct", "L2 from exact", "Stein error, raw", "recalibrated"]
    head.append("score error, held out")
    rows = [head]
    for name, one in summary["estimators"].items():
        cells = [name]
        for reference in ("direct", "exact"):
            against = one["against"].get(reference, {})
            value, spread = (against.get(f"summed_l2{end}") for end in ("", "_standard_error"))
            cells.append("" if value is None else f"{value:.3f} ± {spread:.3f}")
        for key in ("stein_error_raw", "stein_error_recalibrated"):
            cells.append(f"{one[key]:.2g}" if key in one else "")
        error = summary["score_error"].get(name)
        cells.append("" if error is None else f"{error:.3f}")
        rows.append(cells)
    note = (
        "L2 is summed over the lags at which the Gaussian estimator's error exceeds three of its "
        "standard errors; it includes the sampling noise of both sides."
    )
    return f"{_table(rows)}<p>{note}</p>"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table>{line(rows[0], 'th')}{body}</table>"
