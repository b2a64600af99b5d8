"""Tails of samples beside those of the data, where a density shows nothing: on log axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erfc

from workflow.figures import in_order, line, picture, share_legend
from workflow.figures.phrases import number

FEWEST = 5
"""Values beyond a point below which a tail is not drawn."""


def tails(
    data: np.ndarray,
    samples: Mapping[str, np.ndarray],
    distances: Mapping[str, Mapping[str, Mapping[str, Any]]],
    folder: Path,
) -> tuple[str, str]:
    """Probability to exceed a size, and quantiles of samples over those of the data.

    Args:
        data: |x - mean| in standard deviations, `(snapshot, number)`.
        samples: the same by estimator.
        distances: `tail_error` by estimator, as `Distance.plain`.
        folder: where the picture goes.

    Returns:
        File name and caption.
    """
    names = in_order(samples)
    with picture(folder / "tails.png", 12, 5) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(*_exceedance(data), label="data, held out", color="black", lw=2.4)
        for name in names:
            left.plot(*_exceedance(samples[name]), label=name, **line(name))
        gauss = np.linspace(0, min(5.0, float(data.max())), 200)
        left.plot(gauss, _normal_exceedance(gauss), color="#999999", lw=1.2, ls=":", label="normal")
        left.set(
            yscale="log",
            xlabel="|x - mean| [standard deviations]",
            ylabel="probability to exceed",
            ylim=(0.3 * FEWEST / data.size, 1.2),
        )
        right.axhline(1, color="black", lw=2.4)
        size = min(one.size for one in samples.values())
        beyond = LEVELS[min(size, data.size) * LEVELS >= FEWEST]
        truth = np.quantile(data, 1 - beyond)
        for name in names:
            right.plot(beyond, np.quantile(samples[name], 1 - beyond) / truth, **line(name))
        low, high = _spread(beyond, data, size)
        right.fill_between(beyond, low, high, color="#dddddd", zorder=1)
        right.set(
            xscale="log",
            xlabel="probability beyond the quantile",
            ylabel="quantile of samples / of data",
        )
        right.invert_xaxis()
        share_legend(figure, (left, right))
    found = "; ".join(_told(name, distances[name]["tail_error"]) for name in names)
    floor = distances[names[0]]["tail_error"]
    caption = (
        "Tails of samples drawn from each learned density beside those of held-out data, to the "
        f"last {FEWEST} values. Mean squared log error of the quantiles beyond 95 %: {found}; "
        f"{number(floor['floor'])} between two sets of data of this size. Grey: "
        "two standard errors of independent data."
    )
    return "tails.png", caption


LEVELS = np.geomspace(0.5, 1e-5, 160)
"""Probabilities beyond a quantile."""


def _told(name: str, one: Mapping[str, Any]) -> str:
    return f"{name} {number(one['value'])} ({number(one['low'])} to {number(one['high'])})"


def _exceedance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, and the share of values beyond them, down to the last few."""
    ordered = np.sort(values, axis=None)[::-1]
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    kept = np.unique(np.geomspace(FEWEST, len(ordered), 400).astype(int)) - 1
    return ordered[kept], share[kept]


def _normal_exceedance(x: np.ndarray) -> np.ndarray:
    return np.asarray(erfc(x / np.sqrt(2)))


def _spread(beyond: np.ndarray, data: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of quantiles of so many other values of the same law, two standard errors each way."""
    error = 2 * np.sqrt((1 / size + 1 / data.size) / beyond)
    inner, middle, outer = (
        np.quantile(data, 1 - np.clip(beyond * factor, 0, 1))
        for factor in (1 + error, 1, 1 - error)
    )
    return inner / middle, outer / middle
