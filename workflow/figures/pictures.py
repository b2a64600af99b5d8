"""Pictures: each function draws one figure from labelled data and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {"direct": "black", "exact": "#2a9d3a", "neural": "#1f5fbf", "gaussian": "#d0342c"}
"""One colour for each estimator, the same in all pictures."""

RESPONDERS = (0, 2, 4, 6)
"""Grid steps downstream of the kicked pixel: R11, R31, R51, R71 of arXiv:2402.01029, Fig. 1."""


def _figure(columns: int, rows: int = 1, *, width: float = 3.4, height: float = 3.0) -> Figure:
    return Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)


def _image(axes: Axes, values: np.ndarray, limit: float, **options: Any) -> Any:
    values = np.atleast_2d(values)
    shown = axes.imshow(
        values, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", **options
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return shown


def snapshots(field: xr.DataArray) -> Figure:
    """Last snapshot of three members, and one member's x-time diagram.

    Args:
        field: dims (member, time, [y,] x).
    """
    figure = _figure(4)
    panels = figure.subplots(1, 4)
    members = field.member.values[:3]
    last = field.isel(time=-1).sel(member=members).compute()
    line = field.isel(member=0, time=slice(None, 200))
    line = (line.isel(y=0) if "y" in field.dims else line).compute()
    limit = float(abs(last).max())
    for panel, member in zip(panels, members, strict=False):
        shown = _image(panel, last.sel(member=member).values, limit)
        panel.set(title=f"member {member}", xlabel="x (grid steps)", ylabel="y (grid steps)")
    times = line.time.values
    extent = (0, line.sizes["x"], times[0], times[-1])
    shown = _image(panels[3], line.values, limit, extent=extent)
    panels[3].set(title="member 0 along a line", xlabel="x (grid steps)", ylabel="time")
    figure.colorbar(shown, ax=panels, label=f"{field.name}", shrink=0.85)
    return figure


def density_and_spectrum(field: xr.DataArray) -> Figure:
    """Density of a pixel against the Gaussian of equal variance, and the spectrum."""
    figure = _figure(2, width=4.2)
    left, right = figure.subplots(1, 2)
    values = field.isel(time=slice(None, None, max(1, field.sizes["time"] // 50))).values
    density, edges = np.histogram(values, bins=81, density=True)
    centres = 0.5 * (edges[1:] + edges[:-1])
    spread = values.std()
    gaussian = np.exp(-0.5 * ((centres - values.mean()) / spread) ** 2)
    left.plot(centres, density, color="black", label="data")
    left.plot(
        centres,
        gaussian / (spread * np.sqrt(2 * np.pi)),
        color=COLOURS["gaussian"],
        ls="--",
        label="Gaussian, same variance",
    )
    left.set(xlabel=f"{field.name} at a pixel", ylabel="density")
    left.legend(frameon=False)
    axes = tuple(range(2, values.ndim))
    power = (np.abs(np.fft.fftn(values - values.mean(), axes=axes)) ** 2).mean((0, 1))
    shell, total = by_shell(power / np.prod(power.shape))
    right.loglog(shell[1:], total[1:], "o-", color="black", ms=3)
    right.set(xlabel="wavenumber |k|", ylabel="variance per mode")
    return figure


def by_shell(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of values over shells of |k|, for an array over wavenumbers in FFT order."""
    waves = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in values.shape], indexing="ij")
    radius = np.sqrt(sum(w**2 for w in waves)).round().astype(int).ravel()
    counts = np.bincount(radius)
    sums = np.bincount(radius, weights=np.nan_to_num(values.ravel()))
    return np.arange(len(counts)), sums / np.maximum(counts, 1)


def scores_against_exact(scores: xr.DataArray, members: Sequence[int]) -> Figure | None:
    """Each score against the exact one, pixel by pixel on held-out members; None without one."""
    names = [str(n) for n in scores.estimator.values if n != "exact"]
    if "exact" not in scores.estimator.values or not names:
        return None
    figure = _figure(len(names), width=3.9, height=3.6)
    panels = np.atleast_1d(figure.subplots(1, len(names)))
    times = slice(None, None, max(1, scores.sizes["time"] // 40))
    chosen = scores.sel(member=list(members)).isel(time=times).compute()
    exact = chosen.sel(estimator="exact").values.ravel()
    limit = float(np.quantile(abs(exact), 0.999))
    for panel, name in zip(panels, names, strict=True):
        learned = chosen.sel(estimator=name).values.ravel()
        error = np.mean((learned - exact) ** 2) / np.mean(exact**2)
        box = (-limit, limit, -limit, limit)
        panel.hexbin(exact, learned, gridsize=60, extent=box, bins="log", cmap="Blues", mincnt=1)
        panel.plot([-limit, limit], [-limit, limit], color="black", lw=0.8)
        panel.set(
            title=f"{name}: relative squared error {error:.3f}",
            xlabel="exact score of a pixel",
            ylabel=f"{name} score",
        )
    return figure


def stein(response: xr.Dataset) -> Figure:
    """Raw lag-0 matrix per wavenumber: a map of M - 1 and M against |k|; exact is 1."""
    names = [str(n) for n in response.estimator.values if n != "direct"]
    figure = _figure(len(names) + 1)
    panels = figure.subplots(1, len(names) + 1)
    for panel, name in zip(panels, names, strict=False):
        values = response.stein.sel(estimator=name).values
        shown = _image(panel, values - 1, 0.5, extent=_extent(response.stein))
        panel.set(title=f"{name}: M - 1", xlabel="$k_x$", ylabel="$k_y$")
        shell, mean = by_shell(np.fft.ifftshift(values))
        panels[-1].plot(shell, mean, "o-", ms=3, color=COLOURS[name], label=name)
    figure.colorbar(shown, ax=panels[:-1], shrink=0.85)
    panels[-1].axhline(1, color="black", lw=0.8)
    panels[-1].set(xlabel="wavenumber |k|", ylabel="M, raw", title="Stein identity: M = 1")
    panels[-1].legend(frameon=False)
    return figure


def _extent(values: xr.DataArray) -> tuple[float, float, float, float] | None:
    if "ky" not in values.dims and "dy" not in values.dims:
        return None
    y, x = (values[d].values for d in values.dims[-2:])
    return (x[0] - 0.5, x[-1] + 0.5, y[0] - 0.5, y[-1] + 0.5)


def curves(response: xr.Dataset) -> Figure:
    """Response of pixels downstream of the kick against lag, with confidence bands."""
    one = response.isel(perturbation=0, observable=0)
    if "dy" in one.dims:
        one = one.sel(dy=0)
    figure = _figure(2, 2, width=4.4)
    panels = figure.subplots(2, 2).flat
    for panel, step in zip(panels, RESPONDERS, strict=True):
        if step > int(one.dx.max()):  # a grid too small for it
            panel.set_axis_off()
            continue
        for name in _drawn(response):
            at = one.sel(estimator=name, dx=step)
            panel.fill_between(one.lag, at.ci_low, at.ci_high, color=COLOURS[name], alpha=0.2, lw=0)
            style = "-" if name != "direct" else ":"
            panel.plot(one.lag, at.response, style, color=COLOURS[name], label=name, lw=1.6)
        panel.axhline(0, color="grey", lw=0.6)
        panel.set(
            title=f"$R_{{{step + 1}1}}$: {step} grid steps downstream",
            xlabel="lag (model time)",
            ylabel="response",
        )
        # A kick moves its own pixel by one at lag 0; the picture is about what follows.
        top = float(one.ci_high.sel(dx=step).isel(lag=slice(1, None)).max())
        low = float(one.ci_low.sel(dx=step).isel(lag=slice(1, None)).min())
        panel.set_ylim(low - 0.05 * (top - low), top + 0.08 * (top - low))
    figure.axes[0].legend(frameon=False)
    return figure


def _drawn(response: xr.Dataset) -> list[str]:
    """Estimators from the back of the picture to the front."""
    order = ("gaussian", "exact", "direct", "neural")
    return [name for name in order if name in response.estimator.values]


def errors(response: xr.Dataset) -> Figure:
    """L2 and Linf distance from the direct and from the exact-score response against lag."""
    references = [
        str(r) for r in response.reference.values if not response.l2.sel(reference=r).isnull().all()
    ]
    figure = _figure(2, max(1, len(references)), width=4.4)
    panels = figure.subplots(max(1, len(references)), 2, squeeze=False)
    for row, reference in zip(panels, references, strict=False):
        for panel, norm, text in zip(row, ("l2", "linf"), ("$L^2$", "$L^\\infty$"), strict=True):
            for name in _drawn(response):
                at = response.sel(estimator=name, reference=reference)
                value, spread = at[norm], at[f"{norm}_standard_error"]
                if name == "direct" or bool(value.isnull().all()):
                    continue
                panel.plot(response.lag, value, color=COLOURS[name], label=name)
                panel.fill_between(
                    response.lag,
                    value - 2 * spread,
                    value + 2 * spread,
                    color=COLOURS[name],
                    alpha=0.2,
                    lw=0,
                )
            panel.set(
                title=f"{text} distance from {reference}",
                xlabel="lag (model time)",
                ylabel="distance",
            )
            panel.set_ylim(bottom=0)
    figure.axes[0].legend(frameon=False)
    return figure


def maps(response: xr.Dataset) -> Figure:
    """Response around the kicked pixel at four lags, a row for each estimator."""
    one = response.response.isel(perturbation=0, observable=0)
    names = [n for n in ("direct", "exact", "neural", "gaussian") if n in one.estimator.values]
    known = one.sel(estimator=names[0]).isel(lag=slice(1, None)).dropna("lag").lag.values
    picks = sorted({float(known[int(f * (len(known) - 1))]) for f in (0, 0.1, 0.3, 0.8)})
    figure = _figure(len(picks), len(names), width=2.7, height=2.3)
    panels = figure.subplots(len(names), len(picks), squeeze=False)
    for column, lag in enumerate(picks):
        limit = float(abs(one.sel(lag=lag)).max())
        for row, name in enumerate(names):
            panel = panels[row, column]
            shown = _image(
                panel, one.sel(estimator=name, lag=lag).values, limit, extent=_extent(one)
            )
            panel.set_title(f"{name}, lag {lag:g}", fontsize=10)
        figure.colorbar(shown, ax=panels[:, column], shrink=0.7)
    for panel in panels[-1]:
        panel.set_xlabel("dx (grid steps)")
    for panel in panels[:, 0]:
        panel.set_ylabel("dy (grid steps)")
    return figure


def training(log: Sequence[Mapping[str, float]]) -> Figure:
    """Loss of the batches and of the held-out members; -1 is the Gaussian score's."""
    figure = _figure(1, width=6, height=3.2)
    panel = figure.subplots()
    steps = [line["step"] for line in log]
    panel.plot(steps, [line["loss"] for line in log], color="grey", lw=0.8, label="batch")
    held = [(line["step"], line["test_loss"]) for line in log if "test_loss" in line]
    if held:
        panel.plot(*zip(*held, strict=True), "o-", color=COLOURS["neural"], label="held-out")
    panel.axhline(-1, color=COLOURS["gaussian"], ls="--", label="Gaussian score")
    panel.set(xlabel="step", ylabel="score-matching loss per pixel")
    panel.legend(frameon=False)
    return figure
