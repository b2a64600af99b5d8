"""A labelled impulse response taken apart: lags, labels, places, resamples and its tail.

Every answer to a forcing is a linear map of the response along its lags. `estimate` applies one
to the response and to each of its resamples, in pieces of bounded memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import norm
from scipy.stats import t as student

from workflow.interfaces import LAG, UserError
from workflow.responses.quadrature import Floats, LinearMap
from workflow.responses.times import even_step

SAMPLE = "sample"
LABELS = ("estimator", "perturbation", "observable")
"""Dims along which responses differ in kind: each has its own longest lag."""

NUMBERS = 1 << 22
"""Numbers of one piece, 32 MiB in float64; a map holds a few of them at a time."""
FAINT = 1e-3
"""A last lag below this share of the largest response is no truncation worth telling."""


@dataclass(frozen=True)
class Impulse:
    """A response with its axes in order.

    Attributes:
        value: dims (labels, lag, places), displacements last.
        samples: resamples, dims (sample, labels, lag, places), or None; may be lazy.
        labels: dims of LABELS that there are.
        places: the other dims.
        step: between lags.
        lag_units: units of the step, "1" for none.
        units: of the observable per unit kick.
        members: independent members behind the resamples, infinite where not known.
    """

    value: xr.DataArray
    samples: xr.DataArray | None
    labels: tuple[str, ...]
    places: tuple[str, ...]
    step: float
    lag_units: str
    units: str
    members: float

    @property
    def groups(self) -> Iterator[tuple[int, ...]]:
        """Index of every combination of labels."""
        return itertools.product(*(range(self.value.sizes[name]) for name in self.labels))

    def lags(self, group: tuple[int, ...]) -> int:
        """Number of lags before the missing ones at the end (NaN) begin.

        Raises:
            UserError: fewer than 2, or missing ones in between.
        """
        values = self.value[group].values
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        count = int(np.argmin(finite)) if not finite.all() else len(finite)
        if finite[count:].any() or (count == 0 and not np.isnan(values).all()):
            raise UserError(
                f"response has NaN at lag number {count} and numbers after it; fill or cut them"
            )
        if count < 2:
            raise UserError(f"response has {count} lags; an integral needs at least 2")
        return count


def read_impulse(response: xr.DataArray | xr.Dataset, *, members: int | None = None) -> Impulse:
    """Take a labelled response apart and check it.

    Args:
        response: DataArray with dim lag, from 0 in even steps, and perhaps `sample` (then the
            value is the mean of the resamples); or Dataset with `response` and perhaps
            `response_samples`.
        members: independent members or blocks that were resampled; many without.

    Raises:
        UserError: no response, no lags, lags that are uneven or do not start at 0, one resample.
    """
    if isinstance(response, xr.Dataset):
        if "response" not in response:
            raise UserError(
                f"dataset has {sorted(map(str, response.data_vars))}; needs a variable 'response'"
            )
        value, samples = response["response"], response.get("response_samples")
    else:
        sampled = SAMPLE in response.dims
        value = response.mean(SAMPLE, keep_attrs=True) if sampled else response
        samples = response if sampled else None
    if LAG not in value.dims or LAG not in value.coords:
        raise UserError(f"response has dims {value.dims}; needs 'lag' with its coordinate")
    step, lag_units = even_step(value[LAG], name="lags")
    first = value[LAG].values[0]
    if abs(first) > 1e-6 * step if value[LAG].dtype.kind in "iuf" else first.astype(int):
        raise UserError(f"lags start at {first}; an integral needs them from 0")
    labels = tuple(name for name in LABELS if name in value.dims)
    others = [str(name) for name in value.dims if name not in (*labels, LAG)]
    places = tuple(sorted(others, key=lambda name: name in ("dy", "dx")))
    order = (*labels, LAG, *places)
    if samples is not None:
        if set(samples.dims) != {SAMPLE, *order} or samples.sizes[SAMPLE] < 2:
            raise UserError(
                f"resamples have {dict(samples.sizes)}; need those of the response, "
                f"{dict(value.sizes)}, and at least 2 of 'sample'"
            )
        samples = samples.transpose(SAMPLE, *order)
        if samples.shape[1:] != value.transpose(*order).shape:
            raise UserError(f"resamples have {dict(samples.sizes)}, response {dict(value.sizes)}")
    if members is not None and members < 2:
        raise UserError(f"members={members}: an error bar needs at least 2 members")
    return Impulse(
        value=value.transpose(*order).compute(),
        samples=samples,
        labels=labels,
        places=places,
        step=step,
        lag_units=lag_units,
        units=str(value.attrs.get("units", "1")),
        members=np.inf if members is None else float(members),
    )


def estimate(
    impulse: Impulse,
    pieces: Callable[[int], Iterable[tuple[slice, LinearMap]]],
    *,
    shape: tuple[int, ...],
    level: float,
) -> dict[str, Floats]:
    """Push a response and its resamples through a linear map.

    Args:
        impulse: the response.
        pieces: from a number of lags to (rows of the answer, map that gives them), in order.
        shape: of the answer of one group of labels, `(row, *new places)`; rows that no piece
            gives are NaN.
        level: coverage of the interval, between 0 and 1.

    Returns:
        value and, with resamples, standard_error, ci_low, ci_high: value +- t * standard_error
        (Student's t of members - 1), each `(*labels, row, *new places)`.

    Raises:
        UserError: a level that is no probability, missing numbers in the resamples.
    """
    if not 0.0 < level < 1.0:
        raise UserError(f"level={level}: needs to be between 0 and 1, as 0.95")
    labelled = tuple(impulse.value.sizes[name] for name in impulse.labels)
    value = np.full((*labelled, *shape), np.nan)
    error = np.full_like(value, np.nan)
    for group in impulse.groups:
        lags = impulse.lags(group)
        response = impulse.value[group][:lags].values.astype(np.float64)
        for rows, apply in pieces(lags):
            answer = apply(response[None])[0]
            value[group][rows] = answer
            if impulse.samples is not None:
                samples = impulse.samples[(slice(None), *group)][:, :lags]
                error[group][rows] = _spread(samples, apply, answer)
    if impulse.samples is None:
        return {"value": value}
    if np.isnan(error).sum() != np.isnan(value).sum():
        raise UserError(
            "response_samples has NaN where the response has none; drop these resamples"
        )
    half_width = student.ppf(0.5 + level / 2, impulse.members - 1) * error
    return {
        "value": value,
        "standard_error": error,
        "ci_low": value - half_width,
        "ci_high": value + half_width,
    }


def _spread(samples: xr.DataArray, apply: LinearMap, answer: Floats) -> Floats:
    """Standard deviation of the mapped resamples `(sample, lag, *places)`, in running sums."""
    count = len(samples)
    chunk = max(1, NUMBERS // max(samples[0].size, answer.size))
    total, squares = np.zeros_like(answer), np.zeros_like(answer)
    for first in range(0, count, chunk):
        # Deviations from the value: sums of squares of large answers would cancel.
        deviation = apply(samples[first : first + chunk].values.astype(np.float64)) - answer
        total += deviation.sum(axis=0)
        squares += np.einsum("s...,s...->...", deviation, deviation)
    return np.asarray(np.sqrt(np.maximum(squares - total**2 / count, 0.0) / (count - 1)))


def tail(impulse: Impulse, *, until: float = np.inf) -> tuple[xr.DataArray, list[str]]:
    """How much response is left at the last lag, and a line where it is too much.

    Told is a last lag that is above FAINT of the largest response and, where there are
    resamples, somewhere more than 2 standard errors from 0 (for several places: the quantile
    that all of them together exceed as rarely as one exceeds 2).

    Args:
        impulse: the response.
        until: longest lag that the answer asks for; a response as long as that is not cut.

    Returns:
        Largest |R(last lag)| over the largest |R|, dims (labels); and the warnings.
    """
    shares = np.zeros(tuple(impulse.value.sizes[name] for name in impulse.labels))
    warnings = []
    for group in impulse.groups:
        lags = impulse.lags(group)
        values = np.abs(impulse.value[group][:lags].values)
        largest, last = values.max(), values[-1]
        shares[group] = last.max() / largest if largest > 0 else 0.0
        at = impulse.step * (lags - 1)
        if shares[group] <= FAINT or until <= at * (1 + 1e-6):
            continue
        if impulse.samples is not None:
            at_last = impulse.samples[(slice(None), *group)][:, lags - 1].values
            error = at_last.std(axis=0, ddof=1, dtype=np.float64)
            if not (last > norm.isf(norm.sf(2.0) / last.size) * error).any():
                continue
        one = impulse.value[group]
        named = ", ".join(str(one[name].item()) for name in impulse.labels if name in one.coords)
        warnings.append(
            f"response{f' ({named})' if named else ''} at the last lag {at:g} is still "
            f"{shares[group]:.2g} of its largest: what comes later is missing; raise max_lag"
        )
    return xr.DataArray(shares, dims=impulse.labels), warnings
