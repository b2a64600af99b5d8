"""Maps of responses at a few lags: around the kicked pixel, or on the grid of the fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm

from workflow.figures import colour, edges, in_order, picture, share_legend, whole_ticks
from workflow.figures.responses import band, pick, space_of, units_words

CLEAR = 5.0
"""Largest place over its standard error from which a map is signal and not noise."""


def response_maps(
    response: xr.Dataset,
    folder: Path,
    *,
    lags: Sequence[float] | None = None,
    perturbation: str | None = None,
    observable: str | None = None,
) -> tuple[str, str] | None:
    """Response around the kicked pixel, or on the grid, at four lags: a row for each estimator.

    One-dimensional systems have a panel for each lag that holds all estimators.

    Args:
        response: holds `response`, `standard_error`, dims as in `curves`.
        folder: where the picture goes.
        lags: model times to show; default four lags until the signal is lost in noise.
        perturbation: which kick; default the first one.
        observable: what is watched; default the first one.

    Returns:
        File name and caption; None for a response without space.
    """
    one = pick(response, perturbation, observable)
    space = space_of(one)
    if not space:
        return None
    moved = space[-1] == "dx"
    names = in_order(one.estimator.values)
    wanted = clear_lags(one, names) if lags is None else lags
    one = one.sel(lag=list(wanted), method="nearest").compute()
    if len(space) == 2:
        _draw_maps(folder / "response_maps.png", one, names, units_words(response))
        manner = (
            "Each lag has its own colour scale, shared by the estimators; colours follow the "
            "square root of the response, so that weak responses show."
        )
    else:
        _draw_profiles(folder / "response_maps.png", one, names, units_words(response))
        manner = "Bands are confidence intervals."
    times = ", ".join(f"{t:g}" for t in one.lag.values)
    where = (
        "around the kicked pixel (at the origin; downstream is positive)"
        if moved
        else "on the grid of the fields"
    )
    kick = f" to a unit kick of {one.perturbation.item()}" if "perturbation" in one.coords else ""
    caption = f"Response {where} at lags {times}{kick}. {manner}"
    return "response_maps.png", caption


def clear_lags(one: xr.Dataset, names: list[str], count: int = 4) -> list[float]:
    """A few lags, closer together at first, as long as the first estimator sees a signal."""
    space = [d for d in one.response.dims if d not in ("estimator", "lag")]
    first = one.sel(estimator=names[0])
    ratio = (abs(first.response) / first.standard_error.where(first.standard_error > 0)).max(space)
    known = one.response.notnull().any(space).all("estimator").values
    clear = np.flatnonzero((ratio.values > CLEAR) & known)
    last = int(clear[-1]) if len(clear) else one.sizes["lag"] - 1
    last = max(last, min(count, one.sizes["lag"] - 1))
    picks = np.unique(np.rint(np.geomspace(1, max(last, 1), count)).astype(int))
    spare = [i for i in range(1, last + 1) if i not in picks]
    picks = np.sort(np.concatenate([picks, spare[: count - len(picks)]]).astype(int))
    return [float(t) for t in one.lag.values[picks[picks < one.sizes["lag"]]]]


def _draw_maps(path: Path, one: xr.Dataset, names: list[str], units: str) -> None:
    rows, columns = len(names), one.sizes["lag"]
    down, along = space_of(one)
    tall = min(1.6, max(0.45, one.sizes[down] / one.sizes[along]))
    with picture(path, 3.1 * columns + 0.8, (2.4 * tall + 0.35) * rows + 1.2) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for column in range(columns):
            at = one.response.isel(lag=column)
            limit = float(abs(at).max()) or 1.0
            mesh: Any = None
            for row, name in enumerate(names):
                mesh = draw_map(panels[row, column], at.sel(estimator=name), limit)
            bar = figure.colorbar(
                mesh, ax=panels[:, column], location="bottom", shrink=0.8, aspect=16, pad=0.02
            )
            mark_bar(bar, limit, units)
            panels[0, column].set_title(f"lag {float(one.lag[column]):g}")
            panels[-1, column].set_xlabel(steps_words(along))
        for row, name in enumerate(names):
            panels[row, 0].set_ylabel(steps_words(down))
            panels[row, 0].text(
                *(0.04, 0.95, name),
                color=colour(name),
                fontweight="bold",
                va="top",
                transform=panels[row, 0].transAxes,
            )


def draw_map(panel: Axes, values: xr.DataArray, limit: float) -> Any:
    """One map on the signed square root of the response, so that weak responses show."""
    down, along = ("dy", "dx") if "dx" in values.dims else ("y", "x")
    panel.set_facecolor("#dddddd")
    mesh = panel.pcolormesh(
        edges(values[along].values.astype(float)),
        edges(values[down].values.astype(float)),
        values.transpose(down, along).values,
        cmap="RdBu_r",
        norm=FuncNorm((_root, _square), vmin=-limit, vmax=limit),
        rasterized=True,
    )
    panel.set_aspect("equal")
    whole_ticks(panel)
    return mesh


def mark_bar(bar: Any, limit: float, units: str) -> None:
    """Ticks and label of the colour bar of a map."""
    ticks = _signed_ticks(limit)
    bar.set_ticks(ticks, labels=[f"{t:.1g}".replace("-", "\N{MINUS SIGN}") for t in ticks])
    bar.minorticks_off()
    bar.set_label(f"response {units}".strip())


def steps_words(dim: str) -> str:
    """Label of an axis of places."""
    return f"{dim} [grid {'steps' if dim.startswith('d') else 'index'}]"


def _root(value: Any) -> Any:
    """Signed square root: the kicked pixel is far above all others, which must be seen too."""
    return np.sign(value) * np.sqrt(np.abs(value))


def _square(value: Any) -> Any:
    return np.sign(value) * np.square(value)


def _signed_ticks(limit: float) -> list[float]:
    """The largest one-digit number within the limit and about a quarter of it, on both sides."""
    unit = 10 ** np.floor(np.log10(limit))
    top = float(np.floor(limit / unit + 1e-9) * unit)
    quarter = float(f"{top / 4:.1g}")
    return [-top, -quarter, 0.0, quarter, top]


def _draw_profiles(path: Path, one: xr.Dataset, names: list[str], units: str) -> None:
    columns = one.sizes["lag"]
    (along,) = space_of(one)
    with picture(path, 4.0 * columns, 4.2) as figure:
        panels = np.atleast_1d(figure.subplots(1, columns))
        for column, panel in enumerate(panels):
            for name in names:
                band(panel, one.isel(lag=column).sel(estimator=name), name, along=along)
            panel.axhline(0, color="grey", lw=0.8, zorder=0)
            panel.set_title(f"lag {float(one.lag[column]):g}")
            panel.set_xlabel(steps_words(along))
        panels[0].set_ylabel(f"response {units}".strip())
        share_legend(figure, panels)
