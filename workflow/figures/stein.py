"""The Stein identity of several numbers: a matrix, or one for every wavenumber."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from workflow.figures import by_shell, colour, in_order, line, picture, share_legend

FIELDS = 4
"""Most fields whose matrix is drawn against the wavenumber."""

WRITTEN = 8
"""Most numbers whose entries are written into the matrix."""


def numbers(response: xr.Dataset, folder: Path) -> tuple[str, str] | None:
    """Raw Stein matrix, which is the identity for the score of the data.

        M_ab = -E[x_a s_b]

    Args:
        response: holds `stein`, dims (estimator, number, kicked_number, [[ky,] kx]).
        folder: where the picture goes.

    Returns:
        File name and caption; None when no estimator has the matrix.
    """
    data = response.stein.compute()
    names = [n for n in in_order(data.estimator.values) if data.sel(estimator=n).notnull().any()]
    if not names:
        return None
    waves = [d for d in ("ky", "kx") if d in data.dims]
    draw = _against_wavenumber if waves else _matrices
    draw(data, folder / "stein.png", names)
    identity = xr.DataArray(np.eye(data.sizes["number"]), dims=("number", "kicked_number"))
    worst = ", ".join(
        f"{n} {float(abs(data.sel(estimator=n) - identity).max()):.2g}" for n in names
    )
    manner = "means over the modes of a shell" if waves else "M - I, blue below and red above 0"
    caption = (
        "Stein identity before recalibration: M must be the identity"
        f"{' at every wavenumber' if waves else ''}; {manner}. Numbers are in the order of the "
        f"data, kicked ones along the columns. Largest |M - I|: {worst}."
    )
    return "stein.png", caption


def _matrices(data: xr.DataArray, path: Path, names: list[str]) -> None:
    size = data.sizes["number"]
    error = data.transpose("estimator", "number", "kicked_number") - np.eye(size)
    top = float(abs(error).max()) or 1.0
    with picture(path, 4.2 * len(names) + 1.2, 5.0) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(names)))
        for panel, name in zip(panels, names, strict=True):
            values = error.sel(estimator=name).values
            mesh = panel.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top)
            panel.set_title(f"{name}: $M - I$", color=colour(name))
            panel.set(xlabel="kicked number", ylabel="number")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True))
            if size <= WRITTEN:
                _write(panel, values, top)
        figure.colorbar(mesh, ax=list(panels), shrink=0.8, pad=0.02)


def _write(panel: Axes, values: np.ndarray, top: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        shade = "white" if abs(value) > 0.6 * top else "black"
        text = f"{value:.1g}" if abs(value) >= 1e-6 else "0"
        panel.text(column, row, text, ha="center", va="center", color=shade, fontsize=11)


def _against_wavenumber(data: xr.DataArray, path: Path, names: list[str]) -> None:
    waves = [d for d in ("ky", "kx") if d in data.dims]
    grid = np.meshgrid(*[data[w].values.astype(float) for w in waves], indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grid)).ravel()
    size = min(FIELDS, data.sizes["number"])
    with picture(path, 4.2 * size + 0.6, 3.0 * size + 0.8) as figure:
        panels = figure.subplots(size, size, squeeze=False, sharex=True)
        for (row, column), panel in np.ndenumerate(panels):
            one = data.isel(number=row, kicked_number=column)
            for name in names:
                values = one.sel(estimator=name).transpose(*waves).values.ravel()
                shell, total, count = by_shell(values, radius, np.ones(values.size))
                seen = count > 0
                panel.plot(shell[seen], total[seen] / count[seen], label=name, **line(name))
            panel.axhline(float(row == column), color="black", lw=0.8, ls=":")
            low, high = panel.get_ylim()
            middle = float(row == column)
            panel.set_ylim(min(low, middle - 0.05), max(high, middle + 0.05))
            panel.set_title(f"$M_{{{row}{column}}}$")
        for panel in panels[-1]:
            panel.set_xlabel("wavenumber |k|")
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        share_legend(figure, panels.flat)
