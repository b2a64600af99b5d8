"""`ds.gfdt.plot`: one call to see responses, in the manner of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from workflow.interfaces import UserError
from workflow.responses.probes import nearest

OF = ("observable", "perturbation")
"""In the order of a title."""


class Plot:
    """Pictures of a response Dataset: of `ds.gfdt.response(...)` or of `response.zarr`."""

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        self._data = data

    def response(
        self,
        perturbation: str | None = None,
        observable: str | None = None,
        *,
        ax: Axes | None = None,
        **place: Any,
    ) -> Axes:
        """Response against lag with its confidence band, a curve for each estimator.

        Args:
            perturbation: which kick; default the first one.
            observable: what is watched; default the first one.
            ax: where to draw; default a new figure.
            place: of the responder, as dx=2 or y=3, x=1; default the kicked place, or the one that
                answers most.

        Raises:
            UserError: the data hold no responses, or not that one.
        """
        from workflow.figures import in_order
        from workflow.figures.responses import band, frame_curve, space_of, units_words

        one = self._pick(perturbation, observable).compute()
        rest = set(one.response.dims) - {"estimator", "lag"} - set(space_of(one))
        if rest - set(place):
            raise UserError(f"the response has the axis {sorted(rest)}; choose one with NAME=VALUE")
        where = _strongest(one) | {"dx": 0, "dy": 0} | place
        at = one.sel({d: where[d] for d in one.response.dims if d in where})
        panel = _panel(ax)
        for name in in_order(at.estimator.values):
            band(panel, at.sel(estimator=name), name)
        frame_curve(panel, at)
        unit = str(one.lag.attrs.get("units", "1"))
        panel.set_xlabel("lag" if unit in ("1", "") else f"lag [{unit}]")
        panel.set_ylabel(f"response {units_words(one)}".strip())
        panel.set_title(_title(at, where))
        panel.legend(frameon=False)
        return panel

    def map(
        self,
        lag: float,
        perturbation: str | None = None,
        observable: str | None = None,
        *,
        estimator: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Response over space at one lag; colours follow its signed square root.

        Args:
            lag: the nearest saved one is taken.
            perturbation: which kick; default the first one.
            observable: what is watched; default the first one.
            estimator: whose; default the first one that has this lag.
            ax: where to draw; default a new figure.

        Raises:
            UserError: the data hold no responses, or none over two dimensions of space.
        """
        from workflow.figures.maps import draw_map, mark_bar, steps_words
        from workflow.figures.responses import space_of, units_words

        one = self._pick(perturbation, observable)
        space = space_of(one)
        if len(space) != 2:
            raise UserError(
                f"a map needs two dimensions of space; the response has {tuple(one.response.dims)}:"
                " use ds.gfdt.plot.response()"
            )
        one = one.sel(lag=lag, method="nearest").compute()
        names = [str(n) for n in one.estimator.values]
        if estimator is not None and estimator not in names:
            raise UserError(f"estimator='{estimator}'; {nearest(estimator, names)}")
        known = [n for n in names if bool(one.response.sel(estimator=n).notnull().any())]
        chosen = estimator or next(iter(known), names[0])
        values = one.response.sel(estimator=chosen)
        panel = _panel(ax)
        limit = float(np.abs(values).max()) or 1.0
        bar = panel.figure.colorbar(draw_map(panel, values, limit), ax=panel)
        mark_bar(bar, limit, units_words(one))
        panel.set(xlabel=steps_words(space[1]), ylabel=steps_words(space[0]))
        panel.set_title(f"{chosen}, lag {float(one.lag):g}")
        return panel

    def _pick(self, perturbation: str | None, observable: str | None) -> xr.Dataset:
        from workflow.figures.responses import pick

        data = self._data
        if not isinstance(data, xr.Dataset) or "response" not in data or "lag" not in data.dims:
            raise UserError(
                "these data hold no responses; give what ds.gfdt.response(...) or response.zarr has"
            )
        for dim, chosen in (("perturbation", perturbation), ("observable", observable)):
            known = [str(v) for v in np.atleast_1d(data[dim].values)] if dim in data.coords else []
            if chosen is not None and chosen not in known:
                raise UserError(f"{dim}='{chosen}'; {nearest(chosen, known)}")
        return pick(data, perturbation, observable)


def _strongest(one: xr.Dataset) -> dict[str, Any]:
    """Place of the largest response after lag 0, of those that are no displacements."""
    space = [d for d in ("y", "x") if d in one.response.dims]
    if not space:
        return {}
    size = abs(one.response).max([d for d in one.response.dims if d not in space]).fillna(0)
    best = size.argmax(space)
    return {d: one[d].values[int(i)] for d, i in best.items()}


def _panel(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _title(at: xr.Dataset, where: dict[str, Any]) -> str:
    watched, kick = (str(at[d].item()) if d in at.coords else "" for d in OF)
    place = ", ".join(f"{d} = {at[d].item()}" for d in where if d in at.coords and at[d].ndim == 0)
    words = f"{watched or 'response'} after {kick or 'a kick'}"
    return f"{words} ({place})" if place else words
