"""Responses of labelled data, in memory or lazy, without a run folder.

The same channels, sums and error bars as a run; for data that one process can read through. Use
an experiment with `data:` where there is more, or where a learned score is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from workflow.config import DataConfig
from workflow.deferred import deferred
from workflow.interfaces import System, UserError
from workflow.reading import Reader, ScoreLike, check_score
from workflow.recorded import arrange, describe, time_unit
from workflow.reduction import By, Reduction
from workflow.responses.assemble import ErrorBars
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import build_perturbations, refuse_driven, usual_perturbation
from workflow.responses.probes import nearest
from workflow.responses.times import SECONDS


def responses_of(
    data: xr.Dataset | xr.DataArray,
    *,
    max_lag: float | timedelta | np.timedelta64,
    score: ScoreLike | Mapping[str, ScoreLike] = "gaussian",
    observables: Sequence[str | Mapping[str, Any]] = ("field",),
    perturbations: Sequence[str | Mapping[str, Any]] | None = None,
    dims: Mapping[str, str] | None = None,
    given: str | Sequence[str] = (),
    homogeneous: bool = False,
    system: System | None = None,
    recalibrate: bool = True,
    by: By = "auto",
    samples: int = 500,
    level: float = 0.95,
    bands: Literal["pointwise", "simultaneous"] = "pointwise",
    seed: int = 1,
) -> xr.Dataset | xr.DataTree:
    """Responses to small perturbations, from unperturbed data alone, with error bars.

        R(lag) = < A(x(t + lag)) B(x(t)) >,      B = -div u - u . s,      s = grad log p

    Args:
        data: one or several variables of the same dims: a time, perhaps members, up to two of
            space. Dask data give an answer of Dask arrays: its one task reads them in blocks, in
            bounded memory, when numbers of it are first wanted in a process.
        max_lag: longest lag, a timedelta or a number in units of the time coordinate; for dates
            those of the answer's lag: days, hours or seconds, whichever fits the time step.
        score: "gaussian", "kgmm" (up to 8 numbers a snapshot), "exact" (with `system`), a
            function of torch tensors `(batch, field, *shape)`, or a Dataset of scores with the
            variables, but for given ones, and dims of the data; several by name to compare them.
        observables: as `response.observables` of an experiment. The bins of a histogram without
            a `range` depend on the data, so Dask data are read once for them at once.
        perturbations: as `response.perturbations` of an experiment; by default a pixel, or
            everything at once where places differ.
        dims: what our dimensions are called in the data, as {"time": "t", "member": "run"}.
        given: variables that drive the others and are not kicked: scores are conditioned on
            them, and functions get them after the others, `(batch, field + given, *shape)`.
        homogeneous: True where the statistics do not depend on the place: then kicks are averaged
            over it, on a periodic grid.
        system: for the exact score and for changes of its parameters.
        recalibrate: repair the score so that lag 0 is the identity; raw responses are kept too.
        by: what error bars resample; auto: members from 8 on, else stretches of time.
        samples: resamples.
        level: coverage of the intervals.
        bands: pointwise, or simultaneous over all lags and places.
        seed: of the resamples and of KGMM.

    Returns:
        A Dataset with dims (estimator, perturbation, observable, lag, ...) as `response.zarr`;
        a DataTree where the observables have different dims, one node for each kind.

    Raises:
        UserError: in one line, what the data or the arguments lack.
    """
    raw = data.to_dataset(name=data.name or "x") if isinstance(data, xr.DataArray) else data
    bars = _bars(samples, level, bands, seed, by)
    config = DataConfig(store="data", dims=dict(dims or {}), homogeneous=homogeneous)
    config, decided = describe(raw, config, "the data", read=False)
    told = (given,) if isinstance(given, str) else given
    reader, scores = Reader(arrange(raw, config), config, told), _named(score)
    step = float(decided["save_every"])
    lags = _lags(max_lag, step, time_unit(reader.found), reader.times)
    if not scores or not build_observables(observables, reader.saved, None):
        raise UserError("no score or no observable is given; leave both out for the usual ones")
    kicked = build_perturbations(
        perturbations or (usual_perturbation(reader.saved),),
        reader.saved,
        system=system,
        where=Path.cwd(),
    )
    refuse_driven(kicked, reader.saved, key="perturbations")
    for one in scores.values():
        check_score(one, reader, system=system)
    asked = Reduction(
        reader, scores, observables, kicked, system, lags, step, by, bars, recalibrate
    )
    asked.refuse_short()
    title = {"title": "responses with error bars", "level": level, "Conventions": "CF-1.11"}
    lazy = any(_lazy(one) for one in (reader.data, *scores.values()))
    found = deferred(asked) if lazy else asked.answer()
    groups = {name: one.assign_attrs(title) for name, one in found.items()}
    if len(groups) == 1:
        return groups[""]
    return xr.DataTree.from_dict({f"/{name}": one for name, one in groups.items()})


def _lazy(one: object) -> bool:
    return isinstance(one, xr.Dataset) and any(v.chunks for v in one.data_vars.values())


def _bars(samples: int, level: float, bands: str, seed: int, by: str) -> ErrorBars:
    """How error bars are made, refused where they cannot be made so."""
    for name, given, known in (
        ("by", by, get_args(By)),
        ("bands", bands, ("pointwise", "simultaneous")),
    ):
        if given not in known:
            raise UserError(f"{name}={given!r}; {nearest(str(given), known)}")
    if not (0 < level < 1):
        raise UserError(f"level={level}: needs a probability between 0 and 1, as 0.95")
    if samples < 2:
        raise UserError(f"samples={samples}: an error bar needs at least 2 resamples")
    return ErrorBars(samples, level, bands, seed)


def _named(score: Any) -> dict[str, Any]:
    """Scores by name. A Dataset is a mapping too, of its variables: it is one score."""
    if isinstance(score, Mapping) and not isinstance(score, xr.Dataset):
        return dict(score)
    if isinstance(score, str):
        return {score: score}
    name = "given" if isinstance(score, xr.Dataset) else getattr(score, "__name__", "score")
    return {name: score}


def _lags(max_lag: float | timedelta | np.timedelta64, step: float, units: str, times: int) -> int:
    if isinstance(max_lag, timedelta | np.timedelta64):
        if units not in SECONDS:
            raise UserError(f"max_lag={max_lag}: the times of the data are numbers; give a number")
        seconds = np.timedelta64(max_lag) / np.timedelta64(1, "s")
        lags = round(float(seconds) / SECONDS[units] / step)
    else:
        try:
            lags = round(float(max_lag) / step)
        except (TypeError, ValueError, OverflowError):  # no number, NaN, infinity
            raise UserError(f"max_lag={max_lag!r}: needs a number or a timedelta") from None
    if not 1 <= lags < times:
        raise UserError(
            f"max_lag={max_lag} is {lags} saved samples; needs 1 to {times - 1}: the data have "
            f"{times} times, {step:g} apart"
        )
    return lags
