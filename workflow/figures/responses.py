"""Pictures of the responses: curves with bands, and errors, against lag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from workflow.figures import colour, in_order, line, picture, share_legend

RESPONDERS = (0, 2, 4, 6)
"""Grid steps downstream of the kicked pixel: R11, R31, R51, R71 of arXiv:2402.01029, Fig. 1."""

REFERENCES = {"direct": "direct", "exact": "exact-score"}
"""What errors are measured against, and how a title says it."""

CLEAR = 3.0
"""Standard errors from which a place is taken to answer."""

PLACES = 3
"""Strongest places beside the first one, where the statistics depend on the place."""

LAG = "lag [model time]"


def curves(
    response: xr.Dataset,
    folder: Path,
    *,
    perturbation: str | None = None,
    observable: str | None = None,
) -> tuple[str, str] | None:
    """Response against lag, with bands, at four places.

    Around the kicked place these are the kicked pixel and three pixels downstream; on the grid of
    the fields the place that answers first, and the strongest ones later. A response without
    space, such as that of a mean, is one curve for each estimator.

    Args:
        response: holds `response`, `ci_low`, `ci_high`, dims (estimator, perturbation,
            observable, lag, [[dy,] dx] or [[y,] x]).
        folder: where the picture goes.
        perturbation: which kick; default the first one.
        observable: what is watched; default the first one.

    Returns:
        File name and caption; None for a row of numbers, such as a spectrum.
    """
    one = pick(response, perturbation, observable)
    space = space_of(one)
    if set(one.response.dims) - {"estimator", "lag", *space}:
        return None
    if not space:
        return _scalar_curve(response, one, folder)
    one = one.compute()
    names = in_order(one.estimator.values)
    moved = space[-1] == "dx"
    places = _downstream(one) if moved else strong_places(one, count=PLACES + 1)
    hidden = False
    rows = -(-len(places) // 2)
    with picture(folder / "response_curves.png", 12, 3.9 * rows + 0.6) as figure:
        panels = figure.subplots(rows, 2, squeeze=False)
        for panel in panels.flat[len(places) :]:
            panel.set_axis_off()
        for panel, place in zip(panels.flat, places, strict=False):
            at = one.sel(place)
            for name in names:
                band(panel, at.sel(estimator=name), name)
            hidden |= frame_curve(panel, at)
            panel.set_title(place_words(place))
            panel.set(xlabel=LAG, ylabel=f"response {units_words(response)}".strip())
        share_legend(figure, panels.flat)
    where = (
        "at the kicked pixel and at pixels downstream of it"
        if moved
        else "at the place that answers first and at the strongest ones later"
    )
    caption = (
        f"Mean response of {_label(one, 'observable')} {where}, to a unit kick of "
        f"{_label(one, 'perturbation')}, with {level_words(response)} bands."
    )
    caption += _ends(one, names)
    if hidden:
        caption += f" Lag 0 {'of the first panel ' if moved else ''}is above the frame."
    return "response_curves.png", caption


def errors(response: xr.Dataset, folder: Path) -> tuple[str, str] | None:
    """L2 and Linf distance from the direct and from the exact-score response against lag.

    Args:
        response: holds `l2`, `linf` and their `_standard_error`, dims (estimator, reference, lag).
        folder: where the picture goes.

    Returns:
        File name and caption; None when there is no reference to compare with.
    """
    if "reference" not in response.dims:
        return None
    found = [str(r) for r in response.reference.values]
    references = [r for r in found if bool(response.l2.sel(reference=r).notnull().any())]
    if not references:
        return None
    rows = len(references)
    single = "response" in response and set(response.response.dims) == {"estimator", "lag"}
    norms = ("l2",) if single else ("l2", "linf")  # the same for a single number
    with picture(folder / "response_errors.png", 12, 4.3 * rows + 0.5) as figure:
        panels = figure.subplots(rows, len(norms), squeeze=False)
        for row, reference in zip(panels, references, strict=True):
            for panel, norm in zip(row, norms, strict=True):
                _distance(panel, response.sel(reference=reference), norm)
                symbol = {"l2": "$L^2$", "linf": r"$L^\infty$"}[norm]
                truth = REFERENCES.get(reference, reference)
                panel.set_title(f"{symbol} distance from the {truth} response")
                panel.set(xlabel=LAG, ylabel=f"{symbol} distance {units_words(response)}".strip())
        share_legend(figure, panels.flat)
    caption = (
        "Distance of each estimator's response from the reference at each lag; bands are two "
        "standard errors. Distances hold the sampling noise of both sides, so they do not reach 0."
    )
    return "response_errors.png", caption


def pick(response: xr.Dataset, perturbation: str | None, observable: str | None) -> xr.Dataset:
    """One kick and one observable; the first ones where none is named."""
    names = ("response", "standard_error", "ci_low", "ci_high")
    one = response[list(names)]
    for dim, chosen in (("perturbation", perturbation), ("observable", observable)):
        if dim not in one.dims:
            continue
        one = one.isel({dim: 0}) if chosen is None else one.sel({dim: chosen})
    return one


def space_of(one: xr.Dataset) -> list[str]:
    """Dimensions of the place, y first: displacements from the kicked one, or the fields' own."""
    return [d for d in ("dy", "dx", "y", "x") if d in one.response.dims]


def trusted(names: list[str]) -> str:
    """The estimator that chooses places and lags: known at all lags, and the least noisy."""
    return next((n for n in ("exact", "neural", "kgmm") if n in names), names[-1])


def strong_places(one: xr.Dataset, *, count: int) -> list[dict[str, float]]:
    """The place that answers most at lag 0, then those that are strongest at later lags.

    Args:
        one: dims (estimator, lag, *space), one kick and observable.
        count: most places.
    """
    space = space_of(one)
    names = in_order(one.estimator.values)
    shown = one.sel(estimator=trusted(names))
    size = abs(shown.response).transpose("lag", *space).fillna(0)
    # Noise is searched only where there is no signal left.
    size = size.where(size > CLEAR * shown.standard_error, 1e-6 * size)
    flat = size.values.reshape(size.sizes["lag"], -1).copy()
    lags = np.unique(np.geomspace(1, max(1, len(flat) - 1), max(1, count - 1)).astype(int))
    found: list[int] = []
    for lag in [0, *lags, *[int(lags[-1])] * count][:count]:
        values = flat[min(lag, len(flat) - 1)].copy()
        values[found] = -1
        if values.max() < 0:
            break
        found.append(int(values.argmax()))
    grid = [np.unravel_index(i, [size.sizes[d] for d in space]) for i in found]
    return [{d: float(one[d][i]) for d, i in zip(space, at, strict=True)} for at in grid]


def place_words(place: dict[str, float]) -> str:
    """A place in a few words, for a title."""
    if list(place)[-1] != "dx":
        return ", ".join(f"{d} = {v:g}" for d, v in place.items())
    if not any(place.values()):
        return "kicked pixel"
    if place["dx"] > 0 and not place.get("dy"):
        return f"{place['dx']:g} grid step{'s' if place['dx'] > 1 else ''} downstream"
    return ", ".join(f"{d} = {v:g}" for d, v in place.items())


def _downstream(one: xr.Dataset) -> list[dict[str, float]]:
    still: dict[str, float] = {"dy": 0.0} if "dy" in one.dims else {}
    # Small grids lack some.
    return [still | {"dx": float(step)} for step in RESPONDERS if step in one.dx.values]


def _label(one: xr.Dataset, dim: str) -> str:
    return str(one[dim].item()) if dim in one.coords else dim


def _scalar_curve(response: xr.Dataset, one: xr.Dataset, folder: Path) -> tuple[str, str]:
    at = one.compute()
    kick, watched = _label(one, "perturbation"), _label(one, "observable")
    with picture(folder / "response_curves.png", 9, 4.8) as figure:
        panel = figure.subplots()
        for name in in_order(one.estimator.values):
            band(panel, at.sel(estimator=name), name)
        hidden = frame_curve(panel, at)
        panel.set_title(f"{watched} after {kick}")
        panel.set(xlabel=LAG, ylabel=f"response {units_words(response)}".strip())
        share_legend(figure, [panel])
    caption = f"Response of {watched} to a unit kick of {kick}, with {level_words(response)} bands."
    caption += _ends(at, in_order(at.estimator.values))
    return "response_curves.png", caption + (" Lag 0 is above the frame." if hidden else "")


def level_words(response: xr.Dataset) -> str:
    """Coverage of the bands."""
    return f"{100 * float(response.attrs.get('level', 0.95)):g} % confidence"


def _ends(one: xr.Dataset, names: list[str]) -> str:
    """Which estimators end before the last lag, in words."""
    space = [d for d in one.response.dims if d not in ("estimator", "lag")]
    known = one.response.notnull().any(space)
    last = {name: one.lag[known.sel(estimator=name)].values[-1:] for name in names}
    ends = {name: float(at[0]) for name, at in last.items() if len(at)}
    return "".join(
        f" The {name} response is known until lag {end:g}."
        for name, end in ends.items()
        if end < float(one.lag[-1])
    )


def units_words(response: xr.Dataset) -> str:
    """Units of the response in brackets; nothing where there are none."""
    units = str(response.response.attrs.get("units", "1"))
    return "" if units in ("1", "") else f"[{units}]"


def band(panel: Axes, at: xr.Dataset, name: str, *, along: str = "lag") -> None:
    """Curve of an estimator with its confidence band along one dimension."""
    if not bool(at.response.notnull().any()):
        return
    x = at[along].values
    panel.fill_between(x, at.ci_low, at.ci_high, color=colour(name), alpha=0.2, lw=0)
    panel.plot(x, at.response, label=name, **line(name))


def frame_curve(panel: Axes, at: xr.Dataset) -> bool:
    """Limits of a curve against lag; True when lag 0 was left out to show what follows."""
    panel.axhline(0, color="grey", lw=0.8, zorder=0)
    after = at.isel(lag=slice(1, None)) if at.sizes["lag"] > 1 else at
    low, high = min(0.0, float(after.response.min())), max(0.0, float(after.response.max()))
    start = float(at.response.isel(lag=0).max())
    hidden = start > 2.5 * high > 0
    seen = after if hidden else at
    high = max(high, float(seen.response.max()))
    # A band far wider than the curves must not flatten them.
    room = (high - low) or 1.0
    low = max(min(low, float(seen.ci_low.min())), low - room)
    high = min(max(high, float(seen.ci_high.max())), high + room)
    room = (high - low) or 1.0
    panel.set_ylim(low - 0.05 * room, high + 0.06 * room)
    panel.set_xlim(float(at.lag.min()), float(at.lag.max()))
    return hidden


def _distance(panel: Axes, response: xr.Dataset, norm: str) -> None:
    highest = []
    for name in in_order(response.estimator.values):
        value = response[norm].sel(estimator=name)
        error = response[f"{norm}_standard_error"].sel(estimator=name)
        if not bool(value.notnull().any()):
            continue
        low = np.maximum(value - 2 * error, 0)
        panel.fill_between(
            response.lag, low, value + 2 * error, color=colour(name), alpha=0.2, lw=0
        )
        panel.plot(response.lag, value, label=name, **line(name))
        highest.append(float((value + 2 * error).max()))
    panel.set_ylim(0, 1.08 * max(highest, default=1.0) or 1.0)
    # A reference known for the first lags only would leave most of the panel empty.
    known = response.lag[response[norm].notnull().any("estimator")]
    panel.set_xlim(float(known.min()), float(known.max()))
    panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
