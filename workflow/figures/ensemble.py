"""Pictures of the unperturbed data: what it looks like, its density, its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from workflow.figures import (
    COLOURS,
    by_shell,
    edges,
    label,
    picture,
    place,
    radius_of,
    spread,
    whole_ticks,
)

SAMPLE = 4_000_000
"""Most values that a density or a spectrum is made from."""

SHOWN_TIMES = 300
"""Most saved times in a diagram of time against x."""


def snapshots(
    ensemble: xr.Dataset, folder: Path, *, variable: str | None = None, members: int = 4
) -> tuple[str, str]:
    """Last snapshot of a few members, and time against x of the first member.

    Args:
        ensemble: holds the field, dims (member, time, [y,] x); lazy is fine.
        folder: where the picture goes.
        variable: name of the field; default the first one.
        members: most snapshots.

    Returns:
        File name and caption.
    """
    field = _field(ensemble, variable)
    shown = min(members, field.sizes["member"])
    last = field.isel(member=slice(shown), time=-1).compute()
    history = field.isel(member=0, time=slice(-SHOWN_TIMES, None))
    row = history.sizes.get("y", 0) // 2
    history = (history.isel(y=row) if "y" in history.dims else history).compute()
    limits = _limits(last, history)
    file = f"snapshots{_end(ensemble, field)}.png"
    with picture(folder / file, 13, 6.4) as figure:
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
        left, right = halves
        if "y" in field.dims:
            _maps(left, last, limits)
        else:
            _profiles(left, last, limits)
        panel = right.subplots()
        mesh = _time_against_x(panel, history, limits)
        where = f" at y = {place(field, 'y')[0][row]:.3g}" if "y" in field.dims else ""
        panel.set_title(
            f"member {field.member.values[0] if 'member' in field.coords else 0}{where}"
        )
        right.colorbar(mesh, ax=panel, label=label(field))
    caption = (
        f"{_sentence(label(field))}: last snapshot of {shown} member{'s' if shown > 1 else ''}, "
        f"and the last {history.sizes['time']} saved times of one of them "
        f"along x{where}; one colour scale."
    )
    return file, caption


def series(
    ensemble: xr.Dataset, folder: Path, *, members: int = 2, variables: int = 6
) -> tuple[str, str]:
    """Time series of a system without space: the end of the run of a few members.

    Args:
        ensemble: variables with dims (member, time); lazy is fine.
        folder: where the picture goes.
        members: most members.
        variables: most variables, a panel each.

    Returns:
        File name and caption.
    """
    names = [str(n) for n in ensemble.data_vars][:variables]
    data = ensemble[names].isel(member=slice(members), time=slice(-SHOWN_TIMES, None)).compute()
    shades = (COLOURS["direct"], "#9aa3ad")
    times = data.time.values if "time" in data.coords else np.arange(data.sizes["time"])
    with picture(folder / "snapshots.png", 12, 2.1 * len(names) + 1.2) as figure:
        panels = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            for member in reversed(range(data.sizes["member"])):
                shade = shades[min(member, 1)]
                panel.plot(times, data[name].isel(member=member), color=shade, lw=1.4)
            panel.axhline(0, color="grey", lw=0.6, zorder=0)
            panel.set_ylabel(label(data[name], None if len(names) == 1 else name))
        panels[-1].set_xlabel(_time_label(data))
        panels[-1].set_xlim(float(times[0]), float(times[-1]))
    shown = data.sizes["member"]
    left = len(ensemble.data_vars) - len(names)
    caption = (
        f"The last {data.sizes['time']} saved times of {shown} member{'s' if shown > 1 else ''}"
        f"{'' if shown == 1 else ', the first one in black'}."
    )
    return "snapshots.png", caption + (f" {left} more variables are not shown." if left else "")


def densities(ensemble: xr.Dataset, folder: Path, *, variables: int = 6) -> tuple[str, str]:
    """Density of every variable of a system without space against the Gaussian's.

    Args:
        ensemble: variables with dims (member, time); lazy is fine.
        folder: where the picture goes.
        variables: most variables, a panel each.

    Returns:
        File name and caption, which names skewness and excess kurtosis.
    """
    names = [str(n) for n in ensemble.data_vars][:variables]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    told = []
    with picture(folder / "densities.png", max(7.0, 4.3 * columns), 3.9 * rows + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel in panels.flat[len(names) :]:
            panel.set_axis_off()
        for panel, name in zip(panels.flat, names, strict=False):
            sample = spread(ensemble[name], SAMPLE, dims=("time", "member"))
            values = sample.values.ravel().astype(np.float64)
            _density(panel, values, label(sample, name))
            panel.set_title("")
            handles = panel.get_legend_handles_labels()
            panel.get_legend().remove()
            _, deviation, skewness, kurtosis = moments(values)
            told.append(
                f"{name}: standard deviation {deviation:.3g}, skewness {skewness:.2f}, excess "
                f"kurtosis {kurtosis:.2f}"
            )
        figure.legend(*handles, loc="outside upper center", ncols=2)
    return "densities.png", f"Density of every variable. {'; '.join(told)}."


def moments(values: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, standard deviation, skewness and excess kurtosis of a sample."""
    mean = float(values.mean())
    centred = values - mean
    deviation = float(centred.std())
    if deviation == 0:
        return mean, 0.0, 0.0, 0.0
    third, fourth = (float(np.mean(centred**n)) / deviation**n for n in (3, 4))
    return mean, deviation, third, fourth - 3


def density_and_spectrum(
    ensemble: xr.Dataset,
    folder: Path,
    *,
    variable: str | None = None,
    homogeneous: bool = True,
) -> tuple[str, str]:
    """Density of a pixel against the Gaussian of equal variance, and the isotropic spectrum.

        S(k) = 2 pi k <E|u_hat|^2>_k in the plane, 2 <E|u_hat|^2>_k on a line

    with the mean over the modes whose |k| rounds to k; S integrates to the variance. Where the
    statistics depend on the place there is no such spectrum: the density is of the deviation from
    each place's mean, and the standard deviation is shown by place.

    Args:
        ensemble: holds the field, dims (member, time, [y,] x); lazy is fine.
        folder: where the picture goes.
        variable: name of the field; default the first one.
        homogeneous: False where the statistics depend on the place.

    Returns:
        File name and caption, which names skewness and excess kurtosis.
    """
    field = _field(ensemble, variable)
    sample = spread(field, SAMPLE, dims=("time", "member"))
    space = [d for d in ("y", "x") if d in sample.dims]
    sample = sample.transpose("member", "time", *space)
    values = sample.values.astype(np.float64)
    if not homogeneous:
        values -= values.mean((0, 1))
    centred = values - values.mean()
    _, deviation, skewness, kurtosis = moments(values)
    file = f"density_spectrum{_end(ensemble, field)}.png"
    with picture(folder / file, 12, 4.8) as figure:
        left, right = figure.subplots(1, 2)
        _density(left, values.ravel(), label(field))
        if homogeneous:
            _spectrum(right, centred, len(space))
        else:
            _deviations(figure, right, sample.std(("member", "time"), keep_attrs=True), space)
    all_ways = ", over all directions" if len(space) == 2 else ""
    what = (
        f"variance per unit wavenumber{all_ways}; the open circle is the shell of half the grid, "
        "whose modes time steppers treat apart"
        if homogeneous
        else "standard deviation by place"
    )
    caption = (
        f"Left: density of a pixel ({label(field)}{'' if homogeneous else ', minus its mean'}; "
        f"standard deviation {deviation:.3g}, skewness {skewness:.2f}, excess kurtosis "
        f"{kurtosis:.2f}) and the Gaussian of the same "
        f"variance. Right: {what}. From "
        f"{sample.sizes['member']} members at {sample.sizes['time']} times."
    )
    return file, caption


def _field(ensemble: xr.Dataset, variable: str | None) -> xr.DataArray:
    return ensemble[variable or str(next(iter(ensemble.data_vars)))]


def _end(ensemble: xr.Dataset, field: xr.DataArray) -> str:
    """What tells the files of several fields apart."""
    return "" if field.name == next(iter(ensemble.data_vars)) else f"_{field.name}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _limits(*fields: xr.DataArray) -> tuple[float, float]:
    """Colour limits that a few extreme pixels do not stretch; symmetric about 0 or the median."""
    values = np.concatenate([f.values.ravel() for f in fields])
    low, middle, high = (float(v) for v in np.nanquantile(values, (0.002, 0.5, 0.998)))
    # A temperature in Kelvin has no sign: what matters is how far it is from the usual one.
    middle = 0.0 if low < 0 < high else middle
    largest = max(high - middle, middle - low) or 1.0
    return middle - largest, middle + largest


def _maps(figure: Any, last: xr.DataArray, limits: tuple[float, float]) -> None:
    """Snapshots as square maps, two to a row."""
    count = last.sizes["member"]
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    (x, x_label), (y, y_label) = place(last, "x"), place(last, "y")
    for index, panel in enumerate(panels.flat):
        if index >= count:
            panel.set_axis_off()
            continue
        values = last.isel(member=index).transpose("y", "x").values
        panel.pcolormesh(
            edges(x),
            edges(y),
            values,
            cmap="RdBu_r",
            vmin=limits[0],
            vmax=limits[1],
            rasterized=True,
        )
        panel.set_title(_member(last, index))
        panel.set_aspect("equal")
        whole_ticks(panel)
        if index % columns == 0:
            panel.set_ylabel(y_label)
        if index + columns >= count:
            panel.set_xlabel(x_label)
            panel.tick_params(labelbottom=True)


def _profiles(figure: Any, last: xr.DataArray, limits: tuple[float, float]) -> None:
    """Snapshots of a one-dimensional field as curves, one panel each."""
    count = last.sizes["member"]
    panels = np.atleast_1d(figure.subplots(count, 1, sharex=True, sharey=True))
    x, x_label = place(last, "x")
    for index, panel in enumerate(panels):
        panel.plot(x, last.isel(member=index).values, color=COLOURS["direct"], lw=1.6)
        panel.axhline(0.5 * sum(limits), color="grey", lw=0.6)
        panel.set_title(_member(last, index), loc="left", fontsize=12)
    room = 0.075 * (limits[1] - limits[0])
    panels[0].set_ylim(limits[0] - room, limits[1] + room)
    panels[-1].set_xlabel(x_label)
    figure.supylabel(label(last), fontsize=13)


def _member(last: xr.DataArray, index: int) -> str:
    number = last.member.values[index] if "member" in last.coords else index
    time = f", time {float(last.time):g}" if "time" in last.coords else ""
    return f"member {number}{time}"


def _time_against_x(panel: Axes, history: xr.DataArray, limits: tuple[float, float]) -> Any:
    x, x_label = place(history, "x")
    times = history.time.values if "time" in history.coords else np.arange(history.sizes["time"])
    mesh = panel.pcolormesh(
        edges(x),
        edges(np.asarray(times, dtype=float)),
        history.transpose("time", "x").values,
        cmap="RdBu_r",
        vmin=limits[0],
        vmax=limits[1],
        rasterized=True,
    )
    panel.set(xlabel=x_label, ylabel=_time_label(history))
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return mesh


def _density(panel: Axes, values: np.ndarray, name: str) -> None:
    density, bounds = np.histogram(values, bins=91, density=True)
    centres = 0.5 * (bounds[1:] + bounds[:-1])
    deviation = values.std()
    grid = np.linspace(bounds[0], bounds[-1], 400)
    gaussian = np.exp(-0.5 * ((grid - values.mean()) / deviation) ** 2)
    gaussian /= deviation * np.sqrt(2 * np.pi)
    seen = density > 0
    panel.semilogy(centres[seen], density[seen], color=COLOURS["direct"], lw=2.2, label="data")
    panel.semilogy(
        grid, gaussian, "--", color=COLOURS["gaussian"], lw=2, label="Gaussian, same variance"
    )
    top = max(density.max(), gaussian.max())
    # Below one count in the histogram there is nothing to compare.
    panel.set_ylim(0.5 * density[seen].min(), 6 * top)
    panel.set(xlabel=name, ylabel="probability density", title="Density of a pixel")
    panel.legend(loc="upper center", ncols=2, fontsize=12)


def _deviations(figure: Any, panel: Axes, deviation: xr.DataArray, space: Sequence[str]) -> None:
    x, x_label = place(deviation, "x")
    panel.set_title("Standard deviation")
    panel.set_xlabel(x_label)
    if len(space) == 1:
        panel.plot(x, deviation.values, "o-", color=COLOURS["direct"], ms=4)
        panel.set_ylim(bottom=0)
        panel.set_ylabel(label(deviation))
        return
    y, y_label = place(deviation, "y")
    values = deviation.transpose("y", "x").values
    mesh = panel.pcolormesh(edges(x), edges(y), values, cmap="viridis", rasterized=True)
    panel.set_ylabel(y_label)
    panel.set_aspect("equal")
    whole_ticks(panel)
    figure.colorbar(mesh, ax=panel, label=label(deviation), shrink=0.8)


def _spectrum(panel: Axes, centred: np.ndarray, space: int) -> None:
    shape = centred.shape[-space:]
    axes = tuple(range(1, space + 1))
    # Member by member: the transform of all at once would double the memory of the sample.
    total_power = sum((np.abs(np.fft.fftn(one, axes=axes)) ** 2).mean(0) for one in centred)
    power = np.asarray(total_power) / (len(centred) * float(np.prod(shape)) ** 2)
    shell, total, count = by_shell(power.ravel(), radius_of(shape), np.ones(power.size))
    # Mean times circumference: the number of modes in a shell jumps from shell to shell.
    density = total / np.maximum(count, 1) * (2 * np.pi * shell if space == 2 else 2.0)
    # Shells beyond the shortest half side are cut by the corners of the square.
    half = min(shape) // 2
    kept = slice(1, half + 1 if min(shape) % 2 else half)
    panel.loglog(shell[kept], density[kept], "o-", color=COLOURS["direct"], ms=5, lw=1.8)
    if min(shape) % 2 == 0:
        panel.plot(shell[half], density[half], "o", color=COLOURS["direct"], ms=7, mfc="white")
    if density[1 : half + 1].max() < 10 * density[1 : half + 1].min():
        # Less than a decade has one logarithmic tick, or two.
        panel.set_yscale("linear")
        panel.set_ylim(bottom=0)
    # Powers of two: matplotlib's own labels within a decade run into each other.
    panel.xaxis.set_major_locator(FixedLocator([2**n for n in range(16)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.set(
        xlabel="wavenumber |k| [waves per side]",
        ylabel="variance per unit wavenumber",
        title="Isotropic spectrum" if space == 2 else "Spectrum",
    )


def _time_label(data: xr.Dataset | xr.DataArray) -> str:
    units = data.time.attrs.get("units", "1") if "time" in data.coords else "1"
    return f"time [{'model units' if units == '1' else units}]"
