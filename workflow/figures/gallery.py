"""Every observable after every perturbation, in few compact pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from workflow.figures import in_order, picture, share_legend
from workflow.figures.maps import clear_lags, draw_map, mark_bar, steps_words
from workflow.figures.responses import (
    LAG,
    band,
    frame_curve,
    level_words,
    pick,
    place_words,
    space_of,
    strong_places,
    trusted,
    units_words,
)

LIMIT = 12
"""Most pictures of a gallery."""

ROWS, COLUMNS = 6, 4
"""Most observables and perturbations in one picture of curves."""

KICKS = 4
"""Most perturbations in one picture of a map, a spectrum or a histogram."""

EVEN = 1e-6
"""Relative differences between places that are rounding."""

AXES = {"shell": "wavenumber |k| [waves per side]", "bin": "value of the field"}
"""What the axis of a row of numbers says."""

Draw = Callable[[], tuple[str, str]]


def gallery(
    responses: Mapping[str, xr.Dataset], folder: Path, *, limit: int = LIMIT
) -> tuple[list[Draw], int]:
    """Pictures of all responses, to be drawn one by one.

    Numbers are curves against lag, in a matrix of observables and perturbations; spectra and
    histograms are curves at a few lags; maps are two maps and two curves for each perturbation.

    Args:
        responses: by observable, dims (estimator, perturbation, lag, ...).
        folder: where the pictures go.
        limit: most pictures.

    Returns:
        Functions that draw a picture and return its file name and caption, and how many more
        there would be.
    """
    numbers, others = _numbers_and_others(responses)
    found: list[Draw] = []
    for same in numbers:
        for rows in _parts(list(same), ROWS):
            perturbations = same[rows[0]].perturbation.values
            for kicks in _parts(list(map(str, perturbations)), COLUMNS):
                chosen = {name: same[name].sel(perturbation=kicks) for name in rows}
                found.append(partial(_numbers, chosen, folder, f"responses_{len(found) + 1}.png"))
    for name, data in others.items():
        draw = _maps if space_of(data) else _rows
        for kicks in _parts(list(map(str, data.perturbation.values)), KICKS):
            one = data.sel(perturbation=kicks)
            found.append(partial(draw, one, name, folder, f"responses_{len(found) + 1}.png"))
    return found[:limit], max(0, len(found) - limit)


def _numbers_and_others(
    responses: Mapping[str, xr.Dataset],
) -> tuple[list[dict[str, xr.Dataset]], dict[str, xr.Dataset]]:
    """Responses that are one number at each lag, in groups of equal perturbations, and the rest.

    The response of a homogeneous field to what moves everything is the same at every place.
    """
    plain, even, others = {}, {}, {}
    for name, data in responses.items():
        space = space_of(data)
        if not _trailing(data):
            plain[name] = data
            continue
        if not space or space[-1] != "dx":
            others[name] = data
            continue
        # Scores know that all places are alike; paired runs have noise of their own at each.
        shown = data.response.sel(estimator=trusted(in_order(data.estimator.values)))
        spread = shown.max(space) - shown.min(space)
        level = ~(spread > EVEN * abs(shown).max(space)).any("lag").values
        if level.any():
            even[name] = data.isel(perturbation=level).isel(dict.fromkeys(space, 0))
        if not level.all():
            others[name] = data.isel(perturbation=~level)
    kicks = {tuple(map(str, one.perturbation.values)) for one in even.values()}
    if len(kicks) > 1:  # what is even for one observable is not for another: by itself
        groups = [plain, *({name: one} for name, one in even.items())]
    else:
        groups = [plain, even]
    return [group for group in groups if group], others


def _trailing(data: xr.Dataset) -> list[str]:
    known = ("estimator", "perturbation", "lag")
    return [str(d) for d in data.response.dims if d not in known]


def _parts(names: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield list(names[start : start + size])


def _numbers(responses: Mapping[str, xr.Dataset], folder: Path, file: str) -> tuple[str, str]:
    """Small multiples: a row for each observable, a column for each perturbation."""
    first = next(iter(responses.values()))
    kicks = list(map(str, first.perturbation.values))
    rows, columns = len(responses), len(kicks)
    with picture(folder / file, max(6.5, 4.1 * columns), 2.7 * rows + 0.9) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for row, (name, data) in zip(panels, responses.items(), strict=True):
            for panel, kick in zip(row, kicks, strict=True):
                _curve(panel, pick(data, kick, None))
            row[0].set_ylabel(f"{name} {units_words(data)}".strip())
        for panel, kick in zip(panels[0], kicks, strict=True):
            panel.set_title(kick)
        for panel in panels[-1]:
            panel.set_xlabel(LAG)
        share_legend(figure, panels.flat)
    caption = (
        f"Responses of {', '.join(responses)} (rows) to unit {', '.join(kicks)} (columns), with "
        f"{level_words(first)} bands."
    )
    if "dx" in first.coords and "dx" not in first.dims and first.dx.ndim == 0:
        caption += " They are the same at every place."
    return file, caption


def _curve(panel: Axes, one: xr.Dataset) -> None:
    for name in in_order(one.estimator.values):
        band(panel, one.sel(estimator=name), name)
    frame_curve(panel, one)


def _rows(data: xr.Dataset, observable: str, folder: Path, file: str) -> tuple[str, str]:
    """A spectrum by shell or a histogram by bin at a few lags: a row for each perturbation."""
    (along,) = _trailing(data)
    kicks = list(map(str, data.perturbation.values))
    lags = clear_lags(pick(data, kicks[0], None), in_order(data.estimator.values), count=3)
    with picture(folder / file, 12.5, 2.9 * len(kicks) + 0.9) as figure:
        panels = figure.subplots(len(kicks), len(lags), squeeze=False, sharex=True)
        for row, kick in zip(panels, kicks, strict=True):
            one = pick(data, kick, None)
            for panel, lag in zip(row, lags, strict=True):
                at = one.sel(lag=lag)
                for name in in_order(one.estimator.values):
                    band(panel, at.sel(estimator=name), name, along=along)
                panel.axhline(0, color="grey", lw=0.8, zorder=0)
                _frame_row(panel, at)
            row[0].set_ylabel(f"{kick} {units_words(data)}".strip())
        for panel, lag in zip(panels[0], lags, strict=True):
            panel.set_title(f"lag {lag:g}")
        for panel in panels[-1]:
            panel.set_xlabel(AXES.get(along, along))
        share_legend(figure, panels.flat)
    told = data.response.attrs.get("observable_long_name", observable)
    caption = (
        f"Response of {observable} ({told}) to unit {', '.join(kicks)} (rows), with "
        f"{level_words(data)} bands."
    )
    return file, caption


def _frame_row(panel: Axes, at: xr.Dataset) -> None:
    """Limits that wide bands do not stretch."""
    low, high = min(0.0, float(at.response.min())), max(0.0, float(at.response.max()))
    room = (high - low) or 1.0
    low = max(min(low, float(at.ci_low.min())), low - 0.5 * room)
    high = min(max(high, float(at.ci_high.max())), high + 0.5 * room)
    room = (high - low) or 1.0
    panel.set_ylim(low - 0.05 * room, high + 0.05 * room)


def _maps(data: xr.Dataset, observable: str, folder: Path, file: str) -> tuple[str, str]:
    """Two maps and two curves for each perturbation; profiles where there is one dimension."""
    kicks = list(map(str, data.perturbation.values))
    names = in_order(data.estimator.values)
    shown = trusted(names)
    plane = len(space_of(data)) == 2
    with picture(folder / file, 14, 3.3 * len(kicks) + 0.7) as figure:
        panels = figure.subplots(len(kicks), 4, squeeze=False)
        for row, kick in zip(panels, kicks, strict=True):
            one = pick(data, kick, None)
            lags = clear_lags(one, [shown], count=2)
            lags = [lags[0], lags[-1]]
            places = strong_places(one, count=2)
            for panel, lag in zip(row[:2], lags, strict=True):
                at = one.sel(lag=lag)
                if plane:
                    _one_map(figure, panel, at.sel(estimator=shown), places, data)
                else:
                    _profile(panel, at, names)
                panel.set_title(f"{kick}, lag {lag:g}", fontsize=12)
            for panel, place, mark in zip(row[2:], places, MARKS, strict=False):
                _curve(panel, one.sel(place))
                panel.set_title(f"{mark if plane else ''} {place_words(place)}", fontsize=13)
                panel.set_xlabel(LAG)
        share_legend(figure, panels[:, 2:].flat)
    what = (
        f"maps of the {shown} response, each with its own scale of colours, and curves at the two "
        "places that are marked there"
        if plane
        else "profiles at two lags and curves at two places"
    )
    caption = (
        f"Response of {observable} to unit {', '.join(kicks)} (rows): {what}, with "
        f"{level_words(data)} bands."
    )
    return file, caption


MARKS = ("○", "□")
"""Names of the marked places in titles; `_one_map` draws the same signs."""


def _one_map(
    figure: Any, panel: Axes, at: xr.Dataset, places: Sequence[dict[str, float]], data: xr.Dataset
) -> None:
    limit = float(abs(at.response).max())
    limit = limit if np.isfinite(limit) and limit > 0 else 1.0
    mesh = draw_map(panel, at.response, limit)
    down, along = space_of(at)
    for place, sign in zip(places, "os", strict=False):
        panel.plot(place[along], place[down], sign, ms=9, mfc="none", mec="black", mew=1.4)
    panel.set(xlabel=steps_words(along), ylabel=steps_words(down))
    bar = figure.colorbar(mesh, ax=panel, shrink=0.85, pad=0.02)
    mark_bar(bar, limit, units_words(data))


def _profile(panel: Axes, at: xr.Dataset, names: Sequence[str]) -> None:
    (along,) = space_of(at)
    for name in names:
        band(panel, at.sel(estimator=name), name, along=along)
    panel.axhline(0, color="grey", lw=0.8, zorder=0)
    panel.set_xlabel(steps_words(along))
    _frame_row(panel, at)
