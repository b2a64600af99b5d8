"""Pictures of the scores: against the exact one, against the Stein identity, while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.ticker import MaxNLocator

from workflow.figures import (
    COLOURS,
    by_shell,
    colour,
    edges,
    in_order,
    line,
    picture,
    share_legend,
    spread,
    whole_ticks,
)
from workflow.figures.stein import numbers

SAMPLE = 2_000_000
"""Most pixels of one estimator in a scatter."""

STEIN_FLOOR = 1e-3
"""Smallest |M - 1| with a colour of its own."""


def against_exact(
    scores: xr.Dataset, folder: Path, *, variable: str | None = None
) -> tuple[str, str] | None:
    """Each score against the exact one, pixel by pixel, as a density.

        R^2 = 1 - sum (s - s_exact)^2 / sum (s_exact - mean)^2

    Members in `attrs["test_members"]` are used where that is given. Without an exact score the
    Gaussian one is the abscissa, and the caption says that it is not the truth.

    Args:
        scores: holds `score_<field>`, dims (estimator, member, time, [y,] x); lazy is fine.
        folder: where the picture goes.
        variable: name of the variable; default the first one.

    Returns:
        File name and caption; None when there is nothing to compare with.
    """
    score = scores[variable or str(next(iter(scores.data_vars)))]
    names = in_order(n for n in score.estimator.values if str(n) != "direct")
    reference = next((n for n in ("exact", "gaussian") if n in names), None)
    names = [name for name in names if name != reference]
    if reference is None or not names:
        return None
    held = scores.attrs.get("test_members", score.attrs.get("test_members"))
    if held is not None:
        score = score.sel(member=[int(m) for m in np.atleast_1d(held)])
    score = spread(score, SAMPLE * score.sizes["estimator"], dims=("time", "member"))
    x = score.sel(estimator=reference).values.ravel().astype(np.float64)
    found = []
    first = score.name == next(iter(scores.data_vars))
    file = "scores.png" if first else f"{score.name}.png"
    with picture(folder / file, 5.4 * len(names) + 0.4, 5.2) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(names)))
        frame = tuple(float(v) for v in np.nanquantile(score.values, (0.0002, 0.9998)))
        for panel, name in zip(panels, names, strict=True):
            y = score.sel(estimator=name).values.ravel().astype(np.float64)
            known = np.isfinite(x) & np.isfinite(y)
            found.append(_scatter(panel, x[known], y[known], name, frame))
            panel.set(xlabel=f"{reference} score", ylabel=f"{name} score")
    which = "held-out member" if held is not None else "member"
    which += "s" if score.sizes["member"] > 1 else ""
    truth = "" if reference == "exact" else " No exact score is known: the Gaussian is no truth."
    of = "" if len(scores.data_vars) == 1 else f" of {str(score.name).removeprefix('score_')}"
    caption = (
        f"Scores{of} against the {reference} score at the same pixels of {score.sizes['member']} "
        f"{which}; darker is denser, on a log scale; in 1 / units of the field. "
        f"{' '.join(found)}{truth}"
    )
    return file, caption


def stein(response: xr.Dataset, folder: Path) -> tuple[str, str] | None:
    """Error of the raw Stein identity by wavenumber, and the ratio against |k|.

        M_k = -E[s_k conj(x_k)],   1 at every k for the score of the data

    Args:
        response: holds `stein` and `unresolved`, dims (estimator, [ky,] kx), any order of k;
            with (number, kicked_number) see `stein.numbers`.
        folder: where the picture goes.

    Returns:
        File name and caption; None when no estimator has the ratio.
    """
    if "stein" not in response or response.stein.dims == ("estimator",):
        return None
    if "number" in response.stein.dims:
        return numbers(response, folder)
    waves = [d for d in ("ky", "kx") if d in response.stein.dims]
    data = response[["stein", "unresolved"]].sortby(waves).compute()
    data = data.transpose("estimator", *waves)
    error = abs(data.stein.where(data.unresolved == 0) - 1)
    names = [n for n in in_order(data.estimator.values) if error.sel(estimator=n).notnull().any()]
    if not names:
        return None
    maps = names if len(waves) == 2 else []
    with picture(folder / "stein.png", 2.6 * len(maps) + 5.2, 4.2) as figure:
        panels = np.atleast_1d(
            figure.subplots(1, len(maps) + 1, width_ratios=[1.0] * len(maps) + [1.6])
        )
        top = max(10 * STEIN_FLOOR, float(error.max()))
        norm = LogNorm(STEIN_FLOOR, top, clip=True)
        mesh = None
        for panel, name in zip(panels[:-1], maps, strict=True):
            mesh = _stein_map(panel, error.sel(estimator=name), norm)
            panel.set_title(f"{name}: $|M_k - 1|$", color=colour(name))
        for panel in panels[1:-1]:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
        if mesh is not None:
            figure.colorbar(mesh, ax=list(panels[:-1]), shrink=0.8, pad=0.02)
        for name in names:
            _stein_curve(panels[-1], data.sel(estimator=name), waves, name)
        _finish_stein(panels[-1], _radius(data, waves).max())
        share_legend(figure, panels[-1:])
    worst = ", ".join(f"{n} {float(error.sel(estimator=n).max()):.2g}" for n in names)
    caption = (
        "Stein identity before recalibration: M must be 1 at every wavenumber. Lines are means "
        "over directions, bands their range; grey modes are unresolved and left out. "
        f"Largest |M - 1|: {worst}."
    )
    return "stein.png", caption


def training(
    log: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    baseline: float | None = None,
    baseline_name: str = "score before training",
) -> tuple[str, str] | None:
    """Learning curves: loss of batches and of held-out data, raw Stein ratios by band of |k|.

    Args:
        log: lines with `step`, `loss` and, on some, `test_loss`, `stein` and `skipped`.
        folder: where the picture goes.
        baseline: loss of a known score, drawn as a line.
        baseline_name: what that score is.

    Returns:
        File name and caption; None for an empty log.
    """
    batch = _curve(log, "loss")
    if not len(batch):
        return None
    held = _curve(log, "test_loss")
    stein = [row for row in log if None not in row.get("stein", [None])]
    with picture(folder / "training.png", 12, 5.2) as figure:
        widths = [1.6, 1.0] if stein else [1.0]
        panel, *more = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        panel.plot(*batch.T, color="#b5b5b5", lw=1, label="batch")
        if len(batch) >= 40:
            width = max(5, len(batch) // 40)
            smooth = np.median(np.lib.stride_tricks.sliding_window_view(batch[:, 1], width), -1)
            steps = batch[width // 2 : width // 2 + len(smooth), 0]
            panel.plot(steps, smooth, color="#555555", lw=2, label="running median")
        if len(held):
            panel.plot(*held.T, "o-", color=COLOURS["neural"], ms=4, lw=2, label="held-out data")
            chosen = held[held[:, 1].argmin(), 0]
            panel.axvline(chosen, color=COLOURS["neural"], lw=1, ls=":", label="used parameters")
        if baseline is not None:
            panel.axhline(baseline, color=COLOURS["gaussian"], ls="--", lw=1.8, label=baseline_name)
        _frame_losses(panel, batch, held, baseline)
        panel.set(xlabel="training step", ylabel="score-matching loss [per pixel]")
        panel.legend(loc="upper right", ncols=2)
        for other in more:
            _stein_ratios(other, stein)
    caption = f"Training loss to step {batch[-1, 0]:g}; last batch {batch[-1, 1]:.4g}"
    if len(held):
        best = held[held[:, 1].argmin()]
        caption += (
            f", held-out data {held[-1, 1]:.4g} with the averaged weights, which follow late at "
            f"first; used are those of step {best[0]:g}, whose loss {best[1]:.4g} is the lowest"
        )
    skipped = log[-1].get("skipped", 0)
    if skipped:
        caption += f"; {skipped} steps skipped because they were not finite"
    return "training.png", f"{caption}."


def _scatter(panel: Axes, x: np.ndarray, y: np.ndarray, name: str, frame: tuple[float, ...]) -> str:
    """Draw one density; return R^2 and relative error in words."""
    room = 0.08 * (frame[1] - frame[0]) or 1.0
    low, high = frame[0] - room, frame[1] + room
    bounds = np.linspace(low, high, 101)
    counts = np.histogram2d(y, x, bins=(bounds, bounds))[0]
    shades = LinearSegmentedColormap.from_list(name, ["#d4d7dc", colour(name), "black"])
    panel.pcolormesh(
        bounds,
        bounds,
        np.where(counts > 0, counts, np.nan),
        cmap=shades,
        norm=LogNorm(1, max(2, counts.max())),
        rasterized=True,
    )
    panel.plot([low, high], [low, high], color="black", lw=1.2, ls=":")
    miss = float(np.sum((y - x) ** 2))
    r2 = 1 - miss / float(np.sum((x - x.mean()) ** 2))
    relative = np.sqrt(miss / float(np.sum(x**2)))
    panel.set_title(f"{name}: $R^2$ = {r2:.4f}", color=colour(name))
    panel.set_aspect("equal")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    return f"{name}: R² = {r2:.4f}, relative error {relative:.3f}."


def _stein_map(panel: Axes, error: xr.DataArray, norm: LogNorm) -> Any:
    panel.set_facecolor("#b0b0b0")
    mesh = panel.pcolormesh(
        edges(error.kx.values.astype(float)),
        edges(error.ky.values.astype(float)),
        np.maximum(error.values, STEIN_FLOOR),
        norm=norm,
        cmap="viridis",
        rasterized=True,
    )
    panel.set(xlabel="$k_x$", ylabel="$k_y$")
    whole_ticks(panel)
    panel.set_aspect("equal")
    return mesh


def _stein_curve(panel: Axes, one: xr.Dataset, waves: list[str], name: str) -> None:
    """M against |k|: mean over the modes of a shell, and their range."""
    radius = _radius(one, waves)
    values = one.stein.where(one.unresolved == 0).values.ravel()
    # Half a spectrum holds the modes kx > 0 for their conjugates too.
    kx = xr.broadcast(*[one[w] for w in waves])[-1].transpose(*waves).values.ravel()
    weights = np.where((kx.min() >= 0) & (kx > 0), 2.0, 1.0)
    shell, total, count = by_shell(values, radius, weights)
    seen = count > 0
    rounded = np.rint(radius).astype(int)
    inside = [values[(rounded == s) & np.isfinite(values)] for s in shell[seen]]
    low, high = [v.min() for v in inside], [v.max() for v in inside]
    panel.fill_between(shell[seen], low, high, color=colour(name), alpha=0.18, lw=0)
    panel.plot(shell[seen], total[seen] / count[seen], marker="o", ms=4, label=name, **line(name))


def _radius(data: xr.Dataset, waves: list[str]) -> np.ndarray:
    """|k| of every mode, `(mode)`."""
    grid = xr.broadcast(*[data[w] for w in waves])
    k = [g.transpose(*waves).values.astype(float).ravel() for g in grid]
    return np.asarray(np.sqrt(np.sum(np.square(k), axis=0)))


def _finish_stein(panel: Axes, largest: float) -> None:
    panel.axhline(1, color="black", lw=1)
    panel.set_xlim(-0.02 * largest, 1.02 * np.ceil(largest))
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0.95), max(high, 1.05))
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.set(xlabel="wavenumber |k| [waves per side]", title="$M_k$ before recalibration")


def _stein_ratios(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raw ratio of each band of |k| against the step."""
    steps, ratios = [row["step"] for row in rows], np.array([row["stein"] for row in rows])
    for band, values in enumerate(ratios.T):
        shade = (band + 1) / ratios.shape[1]
        name = "all" if ratios.shape[1] == 1 else ("large scales", "", "", "small scales")[band]
        panel.plot(steps, values, color=COLOURS["neural"], alpha=shade, lw=2, label=name or None)
    panel.axhline(1, color="#555555", ls="--", lw=1.2, label="score of the data")
    panel.set(xlabel="training step", ylabel="raw Stein ratio of held-out data")
    panel.legend(loc="lower right")


def _curve(log: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Steps and finite values of one column of the log, `(line, 2)`."""
    found = [(float(row["step"]), float(row[key])) for row in log if row.get(key) is not None]
    return np.array([pair for pair in found if np.isfinite(pair[1])]).reshape(-1, 2)


def _frame_losses(panel: Axes, batch: np.ndarray, held: np.ndarray, baseline: float | None) -> None:
    """Limits that the first, wild steps do not stretch."""
    settled = batch[len(batch) // 20 :, 1]
    values = [*np.quantile(settled, (0.002, 0.998)), *held[len(held) // 20 :, 1]]
    values += [] if baseline is None else [baseline]
    low, high = min(values), max(values)
    room = (high - low) or abs(high) or 1.0
    # The legend needs a free strip at the top.
    panel.set_ylim(low - 0.05 * room, high + 0.3 * room)
