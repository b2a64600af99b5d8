"""Tables and figures of what the study has found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

Line = dict[str, Any]
NAMES = {
    "allen_cahn": "Allen-Cahn, exact scheme",
    "allen_cahn_paper": "Allen-Cahn, published scheme",
    "ornstein_uhlenbeck": "Ornstein-Uhlenbeck",
    "navier_stokes": "Navier-Stokes",
}
COLOURS = {"direct": "black", "exact": "C2", "gaussian": "C1", "neural": "C0"}
MEASURES = (("L2", "l2"), ("L2 without noise", "l2_corrected"), ("Linf", "linf"))
SHOWN = (2, 4, 6)
"""Pixels downstream of the kick: R31, R51, R71 of the publication."""


def report(work: Path) -> None:
    """Write `recipes.md`, `tables.md` and a figure per system from the JSON lines in `work`."""
    recipes, tables = _read(work, "recipes"), _read(work, "table")
    if recipes:
        (work / "recipes.md").write_text("\n".join(_recipes(recipes)) + "\n")
    text = []
    for case in [case for case in NAMES if any(line["case"] == case for line in tables)]:
        lines = [line for line in tables if line["case"] == case]
        text += [f"## {NAMES[case]}", "", *_errors(lines), *_scores(lines), "", *_peaks(lines), ""]
        _figure(lines, NAMES[case], work / f"{case}.png")
    (work / "tables.md").write_text("\n".join(text))


def _read(work: Path, part: str) -> list[Line]:
    files = sorted(work.glob(f"{part}*.jsonl"))
    return [json.loads(text) for file in files for text in file.read_text().splitlines()]


def _name(line: Line) -> str:
    if line["estimator"] != "neural":
        return line["estimator"]
    recipe = line.get("recipe", "base")
    return f"neural{'' if recipe == 'base' else f' ({recipe})'}, seed {line.get('seed', 0)}"


def _recipes(lines: Sequence[Line]) -> Iterable[str]:
    """One row a recipe, means over its seeds."""
    yield "| recipe | seeds | calls | parameters | held-out loss | score error | by band of k |"
    yield "|---|---|---|---|---|---|---|"
    for name, same in _by_recipe(lines):
        bands = np.mean([line["score_error_by_band"] for line in same], axis=0)
        first = same[0]
        cells = [
            name,
            len(same),
            first.get("calls", "-"),
            first.get("parameters", "-"),
            f"{np.mean([line['held_out_loss'] for line in same]):.4f}",
            _over_seeds([line["score_error"] for line in same]),
            " ".join(f"{band:.4f}" for band in bands),
        ]
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    yield "| recipe | L2 from exact, mean over lags | raw Stein error | raw Stein ratio by band |"
    yield "|---|---|---|---|"
    for name, same in _by_recipe([line for line in lines if "stein" in line]):
        ratios = np.mean([line["stein"]["raw_ratio_by_band"] for line in same], axis=0)
        cells = [
            name,
            _over_seeds([line["l2_mean"] for line in same]),
            _over_seeds([line["stein"]["raw"] for line in same]),
            " ".join(f"{ratio:.2f}" for ratio in ratios),
        ]
        yield f"| {' | '.join(cells)} |"


def _by_recipe(lines: Sequence[Line]) -> Iterable[tuple[str, list[Line]]]:
    for name in dict.fromkeys(line["recipe"] for line in lines):
        yield name, [line for line in lines if line["recipe"] == name]


def _over_seeds(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several."""
    several = f" +- {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{several}"


def _errors(lines: Sequence[Line]) -> Iterable[str]:
    """Distances at some lags from the paired runs, and from the exact score's response."""
    judged = [line for line in lines if line["estimator"] != "direct"]
    lags = judged[0]["lag"]
    shown = [i for i in range(1, len(lags)) if i % 2 == 1 or i == len(lags) - 1]
    head = [f"lag {lags[i]:g}" for i in shown]
    for words, reference in (("direct", "from_direct"), ("the exact score", "from_exact")):
        for name, key in MEASURES:
            if (reference, key) == ("from_exact", "l2_corrected"):  # they share their noise
                continue
            rows = [line for line in judged if reference in line]
            if not rows:
                continue
            yield f"| {name} from {words} | {' | '.join(head)} |"
            yield "|---" * (len(head) + 1) + "|"
            for line in rows:
                found = line[reference]
                values, errors = found[key], found[f"{key}_standard_error"]
                cells = [f"{values[i]:.3f} +- {errors[i]:.3f}" for i in shown]
                yield f"| {_name(line)} | {' | '.join(cells)} |"
            yield ""


def _scores(lines: Sequence[Line]) -> Iterable[str]:
    """Stein errors, errors of the scores themselves, and what they took."""
    head = "raw Stein error, recalibrated | raw Stein ratio by band | score error | by band"
    yield f"| score | {head} | calls | seconds | CPU seconds |"
    yield "|---" * 8 + "|"
    for line in lines:
        if line["estimator"] == "direct":
            continue
        stein = line["stein"]
        cells = [
            _name(line),
            f"{stein['raw']:.4f}, {stein['recalibrated']:.4f}",
            " ".join(f"{ratio:.3f}" for ratio in stein["raw_ratio_by_band"]),
            str(line.get("score_error", "-")),
            " ".join(f"{band:.4f}" for band in line.get("score_error_by_band", [])) or "-",
            str(line.get("calls", "-")),
            str(line.get("seconds", "-")),
            str(line.get("cpu_seconds", "-")),
        ]
        yield f"| {' | '.join(cells)} |"


def _peaks(lines: Sequence[Line]) -> Iterable[str]:
    """Largest response of the pixels downstream."""
    yield f"| peak | {' | '.join(f'R{pixel + 1}1' for pixel in SHOWN)} | held-out loss |"
    yield "|---" * (len(SHOWN) + 2) + "|"
    for line in lines:
        cells = []
        for pixel in SHOWN:
            curve = line["curves"][str(pixel)]
            at = int(np.argmax(curve["value"]))
            cells.append(f"{curve['value'][at]:.3f} +- {curve['standard_error'][at]:.3f}")
        loss = line.get("held_out_loss")
        cells.append("-" if loss is None else f"{loss:.3f}")
        yield f"| {_name(line)} | {' | '.join(cells)} |"


def _figure(lines: Sequence[Line], title: str, path: Path) -> None:
    """Responses downstream, and L2 distance from direct, over the lag."""
    lag = next(line["lag"] for line in lines if "lag" in line)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    drawn = set()
    for line in lines:
        name = line["estimator"]
        style = {"color": COLOURS[name], "lw": 1.2, "label": None if name in drawn else name}
        drawn.add(name)
        for pixel in SHOWN:
            curve = line["curves"][str(pixel)]
            error = curve["standard_error"] if name == "direct" else None
            left.errorbar(lag, curve["value"], yerr=error, **style)
            style["label"] = None
        if "from_direct" in line:
            found = line["from_direct"]
            right.errorbar(lag, found["l2"], yerr=found["l2_standard_error"], color=COLOURS[name])
    left.set(xlabel="lag", title=f"{title}: R31, R51, R71")
    right.set(xlabel="lag", title="L2 distance from direct")
    left.legend(frameon=False)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
