"""Pictures of a run, and the page that holds them: one manner of drawing for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workflow.figures.numbers import numbers_of

COLOURS = {
    "direct": "black",
    "exact": "#2a9d3a",
    "neural": "#1f5fbf",
    "kgmm": "#1aa3d8",
    "gaussian": "#d0342c",
}
"""One colour for each estimator, the same in all pictures."""

LINES = {
    "direct": "-",
    "exact": (0, (6, 2)),
    "neural": "-",
    "kgmm": "-",
    "gaussian": (0, (4, 1.5, 1, 1.5)),
}
"""One line style for each estimator, so that pictures survive a grey printer."""

OTHER_COLOURS = ("#8e44ad", "#e08e0b", "#0b8e8e", "#7f5539")
"""For estimators without a colour of their own."""

MANNER: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "legend.fontsize": 13,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}
"""Settings of matplotlib while a picture is drawn, readable from the back of a room."""


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, on leaving written as PNG to `path`, its numbers as CSV beside it.

    Args:
        path: file to write; its folder is made.
        width: inches.
        height: inches.
    """
    # Ticks are made while saving, so the settings must still hold then.
    with rc_context(MANNER):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    path.with_suffix(".csv").write_text(numbers_of(figure))


def colour(estimator: str) -> str:
    """Colour of an estimator; unknown names share a second palette."""
    return COLOURS.get(estimator, OTHER_COLOURS[sum(map(ord, estimator)) % len(OTHER_COLOURS)])


def line(estimator: str) -> dict[str, Any]:
    """Colour, dashes, width and layer of an estimator's curve."""
    style = LINES.get(estimator, "-")
    return {
        "color": colour(estimator),
        "linestyle": style,
        "linewidth": 2.4 if estimator == "direct" else 2.0,
        # Dashes above whole lines: where two estimators agree, both are seen.
        "zorder": 2.0 if style == "-" else 2.5,
    }


def in_order(names: Iterable[object]) -> list[str]:
    """Estimators in the order of legends and rows: references first, unknown ones last."""
    given = [str(name) for name in names]
    known = [name for name in COLOURS if name in given]
    return known + [name for name in given if name not in COLOURS]


def label(values: xr.DataArray, text: str | None = None) -> str:
    """Name of a variable with its unit, for an axis."""
    words = text or str(values.attrs.get("long_name") or values.name or "field")
    units = str(values.attrs.get("units", "1"))
    return words if units in ("1", "") else f"{words} [{units}]"


def place(values: xr.DataArray, dim: str) -> tuple[np.ndarray, str]:
    """Positions along a space dimension and their label; grid steps without a coordinate."""
    if dim in values.coords:
        return np.asarray(values[dim].values, dtype=float), label(values[dim], dim)
    return np.arange(values.sizes[dim], dtype=float), f"{dim} [grid steps]"


def edges(centres: np.ndarray) -> np.ndarray:
    """Cell edges around evenly or unevenly spaced centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def spread(
    values: xr.DataArray, numbers: int, *, dims: tuple[str, ...] = ("time",)
) -> xr.DataArray:
    """Evenly spaced part of lazy data that holds about `numbers` values, loaded.

    Args:
        values: any data.
        numbers: most values to load.
        dims: dimensions that may be thinned, the first one first.
    """
    for dim in dims:
        excess = values.size / numbers
        keep = max(1, int(values.sizes[dim] / max(excess, 1.0)))
        picks = np.linspace(0, values.sizes[dim] - 1, keep).round().astype(int)
        values = values.isel({dim: np.unique(picks)})
    return values.compute()


def radius_of(shape: tuple[int, ...]) -> np.ndarray:
    """|k| in waves per side of every mode of a transform, `(mode)`, in its order."""
    waves = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in shape], indexing="ij")
    return np.asarray(np.sqrt(sum(w**2 for w in waves))).ravel()


def by_shell(
    values: np.ndarray, radius: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted sums over shells of |k|, rounded to whole numbers.

    Returns:
        |k| of the shells, sum of weights * values, sum of weights; NaN values count for nothing.
    """
    known = np.isfinite(values)
    shell = np.rint(radius[known]).astype(int)
    count = int(np.rint(radius.max())) + 1
    total = np.bincount(shell, weights=(weights * np.nan_to_num(values))[known], minlength=count)
    return np.arange(count), total, np.bincount(shell, weights=weights[known], minlength=count)


def share_legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend above all panels, each curve named once."""
    found: dict[str, Any] = {}
    for panel in axes:
        found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = in_order(found)
    if names:
        above: Any = "outside upper center"
        columns = min(len(names), max(2, int(figure.get_figwidth() / 1.5)))
        figure.legend([found[name] for name in names], names, loc=above, ncols=columns)


def whole_ticks(panel: Axes) -> None:
    """Few ticks, at whole numbers, along both axes of a map."""
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
