"""The numbers of a picture, as drawn: what a reader needs to draw it again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

COLUMNS = ("panel", "series", "x", "y", "low", "high")
"""`y` of a map is the place, and `value` its number; `low` and `high` are the ends of a band."""

MOST = 100_000
"""Most rows; of larger maps every n-th place is told."""


def numbers_of(figure: Figure) -> str:
    """Curves with their bands, and maps, of all panels as CSV, one row a point.

    Returns:
        CSV with the columns panel, series, x, y, low, high, value; empty where nothing is drawn.
    """
    rows = [row for number, panel in enumerate(figure.axes) for row in _panel(panel, number)]
    if not rows:
        return ""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((*COLUMNS, "value"))
    every = -(-len(rows) // MOST)
    table.writerows([_told(cell) for cell in row] for row in rows[::every])
    return text.getvalue()


def _told(cell: Any) -> Any:
    return f"{cell:.6g}" if isinstance(cell, float) else cell


def _panel(panel: Axes, number: int) -> Iterator[tuple[Any, ...]]:
    if panel.get_label() == "<colorbar>":
        return
    name = " ".join((panel.get_title() or f"panel {number + 1}").split())
    bands = [_ends(one) for one in panel.collections if isinstance(one, FillBetweenPolyCollection)]
    for curve in panel.get_lines():
        label = str(curve.get_label())
        if label.startswith("_"):  # axes and guides
            continue
        ends = next((e for colour, e in bands if colour == to_rgb(curve.get_color())), {})
        x, y = (np.atleast_1d(np.asarray(v, dtype=float)) for v in curve.get_data())
        for at, value in zip(x.tolist(), y.tolist(), strict=True):
            low, high = ends.get(at, ("", ""))
            yield name, label, at, value, low, high, ""
    for one in [*panel.collections, *panel.images]:
        if isinstance(one, QuadMesh | AxesImage):
            for along, across, value in _map(one):
                yield name, "map", along, across, "", "", value


def _ends(
    band: FillBetweenPolyCollection,
) -> tuple[tuple[float, ...], dict[float, tuple[Any, Any]]]:
    """Colour of a band, and its ends by place."""
    ends: dict[float, tuple[Any, Any]] = {}
    for path in band.get_paths():
        # Around the band: a start, one end forwards, a turn, the other end backwards, the start.
        points = np.asarray(path.vertices)
        count = (len(points) - 3) // 2
        first, second = points[1 : count + 1], points[count + 2 : 2 * count + 2][::-1]
        for (x, low), (_, high) in zip(first.tolist(), second.tolist(), strict=True):
            ends[x] = (low, high)
    red, green, blue = np.atleast_2d(np.asarray(band.get_facecolor()))[0, :3].tolist()
    return (red, green, blue), ends


def _map(one: Any) -> Iterator[tuple[float, float, float]]:
    values: Any = np.ma.filled(np.ma.asarray(one.get_array(), dtype=float), np.nan)
    if isinstance(one, QuadMesh):
        corners = np.asarray(one.get_coordinates())
        values = values.reshape(corners.shape[0] - 1, corners.shape[1] - 1)
        centres = 0.25 * (corners[1:, 1:] + corners[:-1, 1:] + corners[1:, :-1] + corners[:-1, :-1])
    else:
        left, right, bottom, top = one.get_extent()
        rows, columns = values.shape[:2]
        x = left + (np.arange(columns) + 0.5) * (right - left) / columns
        y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
        centres = np.stack(np.meshgrid(x, y), axis=-1)
    if values.ndim != 2:
        return  # colours, not numbers
    for place, value in zip(centres.reshape(-1, 2).tolist(), values.ravel().tolist(), strict=True):
        if value == value:  # what is not drawn
            yield place[0], place[1], value
