"""Pictures of the responses: curves, errors against lag, maps around the kicked pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.ticker import MaxNLocator

from workflow.figures import colour, edges, in_order, line, picture, share_legend, whole_ticks

RESPONDERS = (0, 2, 4, 6)
"""Grid steps downstream of the kicked pixel: R11, R31, R51, R71 of arXiv:2402.01029, Fig. 1."""

REFERENCES = {"direct": "direct", "exact": "exact-score"}
"""What errors are measured against, and how a title says it."""

CLEAR = 5.0
"""Largest pixel over its standard error from which a map is signal and not noise."""

_STEPS = "[grid steps]"
_LAG = "lag [model time]"


def curves(
    response: xr.Dataset,
    folder: Path,
    *,
    perturbation: str | None = None,
    observable: str | None = None,
) -> tuple[str, str]:
    """Response of the kicked pixel and of three pixels downstream against lag, with bands.

    A response without space, such as that of a mean, is one curve for each estimator.

    Args:
        response: holds `response`, `ci_low`, `ci_high`, dims (estimator, perturbation,
            observable, lag, [[dy,] dx]).
        folder: where the picture goes.
        perturbation: which kick; default the first one.
        observable: what is watched; default the first one.

    Returns:
        File name and caption.
    """
    one = _one(response, perturbation, observable)
    if "dx" not in one.dims:
        return _scalar_curve(response, one, folder)
    one = one.sel(dy=0) if "dy" in one.dims else one
    names = in_order(one.estimator.values)
    hidden = False
    steps = [step for step in RESPONDERS if step in one.dx.values]  # small grids lack some
    rows = -(-len(steps) // 2)
    with picture(folder / "response_curves.png", 12, 3.9 * rows + 0.6) as figure:
        panels = figure.subplots(rows, 2, squeeze=False)
        for panel in panels.flat[len(steps) :]:
            panel.set_axis_off()
        for panel, step in zip(panels.flat, steps, strict=False):
            at = one.sel(dx=step).compute()
            for name in names:
                _band(panel, at.sel(estimator=name), name)
            hidden |= _frame_curve(panel, at)
            where = "kicked pixel" if step == 0 else f"{step} grid steps downstream"
            panel.set_title(f"$R_{{{step + 1}1}}$: {where}")
            panel.set(xlabel=_LAG, ylabel=f"response {_units(response)}".strip())
        share_legend(figure, panels.flat)
    caption = (
        "Mean response of the kicked pixel and of pixels downstream of it to a unit kick of one "
        f"pixel, with {_level(response)} bands."
    )
    caption += _ends(one, names)
    if hidden:
        caption += " The kicked pixel starts at 1 at lag 0, above the frame."
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
    with picture(folder / "response_errors.png", 12, 4.3 * rows + 0.5) as figure:
        panels = figure.subplots(rows, 2, squeeze=False)
        for row, reference in zip(panels, references, strict=True):
            for panel, norm in zip(row, ("l2", "linf"), strict=True):
                _distance(panel, response.sel(reference=reference), norm)
                symbol = {"l2": "$L^2$", "linf": r"$L^\infty$"}[norm]
                truth = REFERENCES.get(reference, reference)
                panel.set_title(f"{symbol} distance from the {truth} response")
                panel.set(xlabel=_LAG, ylabel=f"{symbol} distance {_units(response)}".strip())
        share_legend(figure, panels.flat)
    caption = (
        "Distance of each estimator's response from the reference at each lag; bands are two "
        "standard errors. Distances hold the sampling noise of both sides, so they do not reach 0."
    )
    return "response_errors.png", caption


def maps(
    response: xr.Dataset,
    folder: Path,
    *,
    lags: Sequence[float] | None = None,
    perturbation: str | None = None,
    observable: str | None = None,
) -> tuple[str, str] | None:
    """Response around the kicked pixel at four lags: a row for each estimator.

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
    one = _one(response, perturbation, observable)
    if "dx" not in one.dims:
        return None
    names = in_order(one.estimator.values)
    wanted = _clear_lags(one, names) if lags is None else lags
    one = one.sel(lag=list(wanted), method="nearest").compute()
    if "dy" in one.dims:
        _draw_maps(folder / "response_maps.png", one, names, _units(response))
        manner = (
            "Each lag has its own colour scale, shared by the estimators; colours follow the "
            "square root of the response, so that weak responses show."
        )
    else:
        _draw_profiles(folder / "response_maps.png", one, names, _units(response))
        manner = "Bands are confidence intervals."
    times = ", ".join(f"{t:g}" for t in one.lag.values)
    caption = (
        f"Response around the kicked pixel (at the origin) at lags {times}; downstream is "
        f"positive. {manner}"
    )
    return "response_maps.png", caption


def _one(response: xr.Dataset, perturbation: str | None, observable: str | None) -> xr.Dataset:
    """One kick and one observable."""
    names = ("response", "standard_error", "ci_low", "ci_high")
    one = response[list(names)]
    for dim, chosen in (("perturbation", perturbation), ("observable", observable)):
        if dim not in one.dims:
            continue
        one = one.isel({dim: 0}) if chosen is None else one.sel({dim: chosen})
    return one


def _scalar_curve(response: xr.Dataset, one: xr.Dataset, folder: Path) -> tuple[str, str]:
    at = one.compute()
    kick, watched = str(one.perturbation.item()), str(one.observable.item())
    with picture(folder / "response_curves.png", 9, 4.8) as figure:
        panel = figure.subplots()
        for name in in_order(one.estimator.values):
            _band(panel, at.sel(estimator=name), name)
        hidden = _frame_curve(panel, at)
        panel.set_title(f"{watched} after {kick}")
        panel.set(xlabel=_LAG, ylabel=f"response {_units(response)}".strip())
        share_legend(figure, [panel])
    caption = f"Response of {watched} to a unit kick of {kick}, with {_level(response)} bands."
    caption += _ends(at, in_order(at.estimator.values))
    return "response_curves.png", caption + (" Lag 0 is above the frame." if hidden else "")


def _level(response: xr.Dataset) -> str:
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


def _units(response: xr.Dataset) -> str:
    units = str(response.response.attrs.get("units", "1"))
    return "" if units in ("1", "") else f"[{units}]"


def _band(panel: Axes, at: xr.Dataset, name: str, *, along: str = "lag") -> None:
    if not bool(at.response.notnull().any()):
        return
    x = at[along].values
    panel.fill_between(x, at.ci_low, at.ci_high, color=colour(name), alpha=0.2, lw=0)
    panel.plot(x, at.response, label=name, **line(name))


def _frame_curve(panel: Axes, at: xr.Dataset) -> bool:
    """Limits of a curve; True when lag 0 was left out to show what follows."""
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


def _clear_lags(one: xr.Dataset, names: list[str]) -> list[float]:
    """Four lags, closer together at first, as long as the first estimator sees a signal."""
    space = [d for d in ("dy", "dx") if d in one.dims]
    first = one.sel(estimator=names[0])
    ratio = (abs(first.response) / first.standard_error.where(first.standard_error > 0)).max(space)
    known = one.response.notnull().any(space).all("estimator").values
    clear = np.flatnonzero((ratio.values > CLEAR) & known)
    last = int(clear[-1]) if len(clear) else one.sizes["lag"] - 1
    last = max(last, min(4, one.sizes["lag"] - 1))
    picks = np.unique(np.rint(np.geomspace(1, max(last, 1), 4)).astype(int))
    spare = [i for i in range(1, last + 1) if i not in picks]
    picks = np.sort(np.concatenate([picks, spare[: 4 - len(picks)]]).astype(int))
    return [float(t) for t in one.lag.values[picks[picks < one.sizes["lag"]]]]


def _draw_maps(path: Path, one: xr.Dataset, names: list[str], units: str) -> None:
    rows, columns = len(names), one.sizes["lag"]
    x, y = (edges(one[d].values.astype(float)) for d in ("dx", "dy"))
    with picture(path, 3.1 * columns + 0.8, 2.75 * rows + 1.1) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for column in range(columns):
            at = one.response.isel(lag=column)
            limit = float(abs(at).max()) or 1.0
            norm = FuncNorm((_root, _square), vmin=-limit, vmax=limit)
            mesh: Any = None
            for row, name in enumerate(names):
                panel = panels[row, column]
                panel.set_facecolor("#dddddd")
                mesh = panel.pcolormesh(
                    x,
                    y,
                    at.sel(estimator=name).transpose("dy", "dx").values,
                    cmap="RdBu_r",
                    norm=norm,
                    rasterized=True,
                )
                panel.set_aspect("equal")
                whole_ticks(panel)
            bar = figure.colorbar(
                mesh, ax=panels[:, column], location="bottom", shrink=0.8, aspect=16, pad=0.02
            )
            ticks = _signed_ticks(limit)
            bar.set_ticks(ticks, labels=[f"{t:.1g}".replace("-", "\N{MINUS SIGN}") for t in ticks])
            bar.minorticks_off()
            bar.set_label(f"response {units}".strip())
            panels[0, column].set_title(f"lag {float(one.lag[column]):g}")
            panels[-1, column].set_xlabel(f"dx {_STEPS}")
        for row, name in enumerate(names):
            panels[row, 0].set_ylabel(f"dy {_STEPS}")
            panels[row, 0].text(
                *(0.04, 0.95, name),
                color=colour(name),
                fontweight="bold",
                va="top",
                transform=panels[row, 0].transAxes,
            )


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
    with picture(path, 4.0 * columns, 4.2) as figure:
        panels = np.atleast_1d(figure.subplots(1, columns))
        for column, panel in enumerate(panels):
            for name in names:
                _band(panel, one.isel(lag=column).sel(estimator=name), name, along="dx")
            panel.axhline(0, color="grey", lw=0.8, zorder=0)
            panel.set_title(f"lag {float(one.lag[column]):g}")
            panel.set_xlabel(f"dx {_STEPS}")
        panels[0].set_ylabel(f"response {units}".strip())
        share_legend(figure, panels)
