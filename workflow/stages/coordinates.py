"""Coordinates that the stores of a run share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc.layout import Coordinate
from workflow.recorded import time_unit
from workflow.runs import Run


def member(run: Run) -> Coordinate:
    """Members of the ensemble."""
    members = run.experiment.ensemble.members
    return Coordinate("member", np.arange(members), {"long_name": "ensemble member"})


def time(run: Run) -> Coordinate:
    """Saved times: since the end of the spin-up, or as recorded."""
    every, data = run.experiment.ensemble.save_every, run.experiment.data
    if data is None or data.found is None:
        text = "model time since the end of the spin-up"
        return Coordinate(
            "time", (np.arange(run.times) + 1) * every, {"long_name": text, "units": "1"}
        )
    values = data.found.start + np.arange(run.times) * every
    attrs = {"long_name": "time", "units": data.found.time_units}
    if data.found.calendar:
        attrs["calendar"] = data.found.calendar
    return Coordinate("time", values, attrs)


def space(run: Run) -> list[Coordinate]:
    """Places along the axes of space: of the box of 2 pi, or grid indices of recorded data."""
    found = []
    for name, n in zip(run.space, run.saved.shape, strict=True):
        spacing = 1.0 if run.experiment.system is None else 2 * np.pi / n
        found.append(Coordinate(name, np.arange(n) * spacing, {"long_name": name, "units": "1"}))
    return found


def lag(run: Run, lags: int) -> Coordinate:
    """Lags 0 to `lags`, in saved samples, as times."""
    data = run.experiment.data
    units = "1" if data is None or data.found is None else time_unit(data.found)
    attrs = {"long_name": "time since the kick", "units": units}
    return Coordinate("lag", np.arange(lags + 1) * run.experiment.ensemble.save_every, attrs)


def names(name: str, values: Sequence[str], text: str) -> Coordinate:
    """Labels."""
    return Coordinate(name, np.array(list(values)), {"long_name": text})
