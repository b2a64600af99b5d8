"""How many pairs of perturbed runs the direct response rests on, and how much they scatter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from workflow.figures import COLOURS, picture
from workflow.figures.phrases import number
from workflow.figures.responses import LAG


def effective_pairs(response: xr.Dataset, folder: Path) -> tuple[str, str] | None:
    """Effective number of pairs and spread of one pair against lag, of one kick and observable.

    Args:
        response: holds `effective_pairs` and `pair_variance`, dims (lag).
        folder: where the picture goes.

    Returns:
        File name and caption; None where there are no pairs, or nothing is known of them.
    """
    if "effective_pairs" not in response or not bool(response.effective_pairs.notnull().any()):
        return None
    known = response.isel(lag=response.effective_pairs.notnull().values)
    effective, spread = known.effective_pairs, np.sqrt(known.pair_variance)
    pairs, enough = int(effective.attrs["pairs"]), float(effective.attrs["enough"])
    with picture(folder / "direct_pairs.png", 12, 4.6) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(known.lag, effective, color=COLOURS["direct"], lw=2.2, label="effective")
        left.axhline(pairs, color="grey", lw=1.2, label=f"run: {pairs}")
        left.axhline(enough, color="#b00020", lw=1.2, ls="--", label=f"needed: {number(enough)}")
        left.set_yscale("log")
        left.set(title="Pairs that count", xlabel=LAG, ylabel="pairs")
        left.set_ylim(0.8 * min(float(effective.min()), enough), 1.4 * pairs)
        left.legend()
        right.plot(known.lag, spread, color=COLOURS["direct"], lw=2.2, label="spread of a pair")
        right.set(title="Standard deviation of the response of one pair", xlabel=LAG)
        right.set_ylim(0, 1.08 * float(spread.max()) or 1.0)
    return "direct_pairs.png", _caption(effective, pairs)


def _caption(effective: xr.DataArray, pairs: int) -> str:
    least = effective.isel(lag=int(np.argmin(effective.values)))
    return (
        f"Of {pairs} pairs of perturbed runs, weighted by the square of their responses, "
        f"{number(float(effective[0]))} count at lag {number(float(effective.lag[0]))} and "
        f"{number(float(least))} at lag {number(float(least.lag))}, where they are fewest. "
        "Below the dashed line few pairs make the mean, and its error bars are too short."
    )
