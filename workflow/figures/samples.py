"""Pictures of samples of the learned density: beside data, and how good for how many calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from workflow.figures import COLOURS, by_shell, label, picture, place, radius_of

Numbers = Mapping[str, Any]

MAPS = 5
"""Maps in a row."""
POINTS = 3000
"""Points of a scatter at most."""
BINS = 80
SAMPLES = "#1f5fbf"
"""Colour of samples; data are black."""
PALETTE = ("#1f5fbf", "#d0342c", "#2a9d3a", "#e08e0b", "#8e44ad", "#0b8e8e", "#7f5539", "#555555")
"""Colours of samplers, in their order."""
TITLES = {
    "sliced_wasserstein": "Sliced Wasserstein distance, whitened",
    "spectrum": "Spectrum: r.m.s. of ln of the ratio",
    "pixel_density": "Density of a pixel: total variation",
    "energy": "Energy distance",
}


def beside_data(samples: xr.Dataset, data: xr.Dataset, folder: Path) -> tuple[str, str] | None:
    """Samples beside as many states of the data: maps, curves, or points of two variables.

    Args:
        samples: dims (member, [y,] [x]).
        data: the same; states that training has not seen.
        folder: where the picture goes.

    Returns:
        File name and caption; None for a single variable, of which there is nothing to see.
    """
    names = [str(name) for name in samples.data_vars]
    space = [d for d in ("y", "x") if d in samples.dims]
    file, pair = "samples.png", (data, samples)
    if not space and len(names) == 1:
        return None
    size = {2: (13.0, 5.6), 1: (12.0, 6.0), 0: (12.0, 5.8)}[len(space)]
    with picture(folder / file, *size) as figure:
        if len(space) == 2:
            _maps(figure, [one[names[0]] for one in pair])
        elif len(space) == 1:
            _profiles(figure, [one[names[0]] for one in pair])
        else:
            panels = figure.subplots(1, 2, sharex=True, sharey=True)
            for panel, one, title in zip(panels, pair, ("Data", "Samples"), strict=True):
                _points(panel, one, names[:2], SAMPLES if one is samples else COLOURS["direct"])
                panel.set_title(title)
                panel.set_xlabel(label(one[names[0]]))
            panels[0].set_ylabel(label(data[names[1]]))
    what = f"of {names[0]}" if space else f"of {names[0]} and {names[1]}"
    how = f"sampler '{samples.attrs['sampler']}', {samples.attrs['nfe']} network calls each"
    where = "Top: data held out of training; bottom: samples" if space else "Data and samples"
    return file, f"{where} {what}; {how}. Their order has no meaning."


def statistics(samples: xr.Dataset, data: xr.Dataset, folder: Path) -> tuple[str, str]:
    """Densities of a pixel on a log axis, and spectra, of samples and of data."""
    names = [str(name) for name in samples.data_vars][:3]
    space = [d for d in ("y", "x") if d in samples.dims]
    count = len(names) + (1 if space else 0)
    with picture(folder / "samples_statistics.png", 5.6 * count + 0.6, 4.8) as figure:
        panels = np.atleast_1d(figure.subplots(1, count))
        for panel, name in zip(panels, names, strict=False):
            _densities(panel, data[name], samples[name])
        if space:
            _spectra(panels[-1], data[names[0]], samples[names[0]], space)
        panels[0].legend()
    numbers = (f"{samples.sizes['member']} samples", f"{data.sizes['member']} states of the data")
    right = f" Right: power of {names[0]} by wavenumber." if space else ""
    what = "a pixel" if space else "each variable"
    return (
        "samples_statistics.png",
        f"Density of {what} on a log axis, of {numbers[0]} and {numbers[1]} held out.{right}",
    )


def quality(found: Numbers, folder: Path) -> tuple[str, str]:
    """Distance from data against network calls, one panel for each measure.

    Args:
        found: content of `quality.json`.
        folder: where the picture goes.
    """
    settings = found["settings"]
    measures = list(settings[0]["distances"])
    samplers = list(dict.fromkeys(one["sampler"] for one in settings))
    with picture(folder / "quality.png", 4.8 * len(measures) + 0.4, 5.2) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(measures)))
        for panel, measure in zip(panels, measures, strict=True):
            for number, sampler in enumerate(samplers):
                rows = [one for one in settings if one["sampler"] == sampler]
                _curve(panel, rows, measure, sampler, number)
            _floor(panel, [one["distances"][measure] for one in settings])
            panel.set(xlabel="network calls", title=TITLES.get(measure, measure))
            calls = sorted({one["nfe"] for one in settings})
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(FixedLocator(calls))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.set_yscale("log")
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        handles, names = panels[0].get_legend_handles_labels()
        above: Any = "outside upper center"
        figure.legend(handles, names, loc=above, ncols=len(names))
    first = settings[0]["distances"][measures[0]]
    return (
        "quality.png",
        f"Distance of {first['samples']} samples from as many held-out states against the calls "
        f"of the network for a sample; bars are {first['level']:.0%} bootstrap intervals. Dashed: "
        "the same distance between two parts of the data; samples below it, or in the grey up to "
        "the end of its interval, cannot be told from data.",
    )


def by_setting(samples: xr.Dataset, folder: Path) -> tuple[str, str] | None:
    """The same few samples by every sampler, a row each, with more and more calls."""
    names = [str(name) for name in samples.data_vars]
    space = [d for d in ("y", "x") if d in samples.dims]
    if len(space) == 1 or (not space and len(names) == 1):
        return None
    labels = [str(text).rsplit(" ", 1) for text in samples.setting.values]
    rows = list(dict.fromkeys(name for name, _ in labels))
    calls = list(dict.fromkeys(number for _, number in labels))
    with picture(folder / "samplers.png", 2.9 * len(calls) + 0.8, 2.7 * len(rows) + 0.4) as figure:
        panels = figure.subplots(len(rows), len(calls), sharex=True, sharey=True, squeeze=False)
        limits = _limits(samples[names[0]].isel(setting=-1))
        for index, (name, number) in enumerate(labels):
            panel = panels[rows.index(name)][calls.index(number)]
            one = samples.isel(setting=index)
            if space:
                _map(panel, one[names[0]].isel(member=0), limits)
            else:
                _points(panel, one, names[:2])
        for row, name in zip(panels, rows, strict=True):
            row[0].set_ylabel(name.replace("_", "\n"))
        for panel, number in zip(panels[0], calls, strict=True):
            panel.set_title(f"{number} calls")
        if not space:
            most = labels.index([rows[0], calls[-1]])
            _frame(panels[0][0], samples.isel(setting=most), names)
    what = "The same sample" if space else "The same samples"
    return "samplers.png", f"{what} by each sampler with more and more calls of the network."


def _maps(figure: Figure, pair: Sequence[xr.DataArray]) -> None:
    panels = figure.subplots(2, MAPS, sharex=True, sharey=True)
    limits = _limits(pair[0])
    for row, values, title in zip(panels, pair, ("data", "samples"), strict=True):
        picks = np.linspace(0, values.sizes["member"] - 1, MAPS).round().astype(int)
        for panel, member in zip(row, picks, strict=True):
            mesh = _map(panel, values.isel(member=int(member)), limits)
        row[0].set_ylabel(title)
    figure.colorbar(mesh, ax=panels, label=label(pair[0]), shrink=0.8)


def _map(panel: Axes, values: xr.DataArray, limits: tuple[float, float]) -> Any:
    panel.set(xticks=[], yticks=[], aspect="equal")
    numbers = values.transpose("y", "x").values
    return panel.pcolormesh(numbers, cmap="RdBu_r", vmin=limits[0], vmax=limits[1], rasterized=True)


def _profiles(figure: Figure, pair: Sequence[xr.DataArray]) -> None:
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, values, colour in zip(panels, pair, (COLOURS["direct"], SAMPLES), strict=True):
        x, x_label = place(values, "x")
        panel.plot(x, values.isel(member=slice(MAPS)).transpose("x", "member").values, color=colour)
        panel.set_ylabel(label(values))
    panels[-1].set_xlabel(x_label)


def _points(panel: Axes, one: xr.Dataset, names: Sequence[str], colour: str = SAMPLES) -> None:
    x, y = (one[name].values[:POINTS] for name in names)
    panel.scatter(x, y, s=2, alpha=0.35, color=colour, lw=0, rasterized=True)
    panel.set_aspect("equal")


def _frame(panel: Axes, best: xr.Dataset, names: Sequence[str]) -> None:
    """Limits that points far off do not stretch."""
    for name, axis in zip(names[:2], ("xlim", "ylim"), strict=True):
        low, high = (float(v) for v in np.nanquantile(best[name].values, (0.001, 0.999)))
        panel.set(**{axis: (low - 0.4 * (high - low), high + 0.4 * (high - low))})


def _limits(values: xr.DataArray) -> tuple[float, float]:
    """Colours that extreme pixels do not stretch, symmetric where the field has both signs."""
    low, high = (float(v) for v in np.nanquantile(values.values, (0.002, 0.998)))
    return (-max(-low, high), max(-low, high)) if low < 0 < high else (low, high)


def _densities(panel: Axes, data: xr.DataArray, samples: xr.DataArray) -> None:
    """Both in the bins of the data, which have room beyond their extremes."""
    known = data.values.ravel()
    low, high = float(known.min()), float(known.max())
    bounds = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), BINS + 1)
    for values, name, colour, dashes in (
        (known, "data", COLOURS["direct"], "-"),
        (samples.values.ravel(), "samples", SAMPLES, "--"),
    ):
        counts, _ = np.histogram(values, bounds)
        density = counts / (len(values) * np.diff(bounds))
        seen = np.where(counts > 0, density, np.nan)
        middle = 0.5 * (bounds[1:] + bounds[:-1])
        panel.semilogy(middle, seen, dashes, color=colour, lw=2, label=name)
    panel.set(xlabel=label(data), ylabel="probability density")


def _spectra(panel: Axes, data: xr.DataArray, samples: xr.DataArray, space: Sequence[str]) -> None:
    """Mean power of a mode by |k|."""
    for values, colour, dashes in ((data, COLOURS["direct"], "o-"), (samples, SAMPLES, "s--")):
        numbers = values.transpose("member", *space).values.astype(float)
        axes = tuple(range(1, numbers.ndim))
        power = (np.abs(np.fft.fftn(numbers, axes=axes, norm="ortho")) ** 2).mean(0)
        shell, total, count = by_shell(power.ravel(), radius_of(power.shape), np.ones(power.size))
        kept = slice(1, min(power.shape) // 2 + 1)
        panel.loglog(shell[kept], (total / count)[kept], dashes, color=colour, ms=4)
    panel.xaxis.set_major_locator(FixedLocator([2**n for n in range(16)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.set(xlabel="wavenumber |k| [waves per side]", ylabel="power of a mode")


def _curve(panel: Axes, rows: Sequence[Numbers], measure: str, name: str, number: int) -> None:
    found = [one["distances"][measure] for one in rows]
    value = np.array([one["value"] for one in found])
    least = 1e-6  # unbiased distances of equal laws may be below 0
    ends = [np.array([one[end] for one in found]) for end in ("low", "high")]
    spread = [np.maximum(value, least) - np.maximum(ends[0], least), ends[1] - value]
    panel.errorbar(
        [one["nfe"] for one in rows],
        np.maximum(value, least),
        yerr=np.maximum(spread, 0),
        color=PALETTE[number % len(PALETTE)],
        marker="osD^vPX*"[number % 8],
        ms=6,
        lw=2,
        capsize=3,
        label=name,
    )


def _floor(panel: Axes, found: Sequence[Numbers]) -> None:
    """The distance of data from data, and the upper end of its interval."""
    floor = max(float(np.median([one["floor"] for one in found])), 1e-6)
    high = float(np.median([one["floor_high"] for one in found]))
    panel.axhline(floor, color="grey", ls="--", lw=1.5, label="data against data")
    panel.axhspan(floor, max(high, floor), color="grey", alpha=0.15, lw=0)
    low = min([floor, *(one["value"] for one in found if one["value"] > 0)])
    panel.set_ylim(bottom=0.5 * low)
