"""From sources to responses with error bars: one observable and some lags at a time.

Standard errors, bands, bias and distances between estimators are the same for scores and for
paired runs. Arrays are `(perturbation, lag, *trailing)`; the trailing axes are those of the
observable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workflow.responses.observable import Observable
from workflow.responses.resampling import Units
from workflow.responses.sources import Floats, Source
from workflow.responses.statistics import critical_value, distance, with_interval

CHUNK_NUMBERS = 1 << 24
"""Numbers of the resamples of one estimator held at once: 128 MiB in float64."""

MEASURES = ("l2", "linf", "l2_corrected", "l2_squared")
"""Distances between two responses, each with a standard error; see `statistics.Distance`."""


@dataclass(frozen=True)
class Estimated:
    """Responses of one estimator to one observable, `(perturbation, lag, *trailing)`.

    Attributes:
        raw: before recalibration.
        value: after it, less its bias.
        standard_error: from the resamples.
        low: lower end of the interval.
        high: upper end of the interval.
        bias: what was subtracted, by the jackknife.
    """

    raw: Floats
    value: Floats
    standard_error: Floats
    low: Floats
    high: Floats
    bias: Floats


@dataclass(frozen=True)
class ErrorBars:
    """How error bars are made; as `response.error` of an experiment."""

    samples: int = 500
    level: float = 0.95
    bands: str = "pointwise"
    seed: int = 0


def assemble(
    sources: Mapping[str, Source],
    one: Observable,
    *,
    lags: int,
    references: Sequence[str],
    bars: ErrorBars,
    weights: Mapping[str, Floats],
) -> tuple[dict[str, Estimated], dict[tuple[str, str], dict[str, Floats]]]:
    """Responses of one observable from every source, and how far they are apart.

    Args:
        sources: by estimator.
        one: the observable.
        lags: longest lag, in saved samples.
        references: estimators that the others are compared with.
        bars: how error bars are made.
        weights: of the resamples, by estimator; those of one ensemble are the same array, so that
            their common noise cancels in differences.

    Returns:
        Estimates by estimator; and by (estimator, reference) the measures and their standard
        errors, each `(perturbation, lag)`.
    """
    trial = next(iter(sources.values())).answer(one, slice(0, 1), None, raw=True)
    chunk = max(1, CHUNK_NUMBERS // max(1, bars.samples * trial.size))
    parts: dict[str, list[Estimated]] = {name: [] for name in sources}
    apart: dict[tuple[str, str], list[dict[str, Floats]]] = {}
    largest: dict[str, Floats] = {}
    for first in range(0, lags + 1, chunk):
        at = slice(first, min(first + chunk, lags + 1))
        draws = {n: s.answer(one, at, weights[n], raw=False) for n, s in sources.items()}
        for name, source in sources.items():
            part, extreme = _estimate(source, one, at, draws[name], bars)
            parts[name].append(part)
            largest[name] = np.maximum(largest.get(name, extreme), extreme)
        for name in sources:
            for reference in references:
                if reference in sources and reference != name:
                    pair = (name, reference)
                    values = (parts[name][-1].value, parts[reference][-1].value)
                    found = _apart(*values, draws[name], draws[reference])
                    apart.setdefault(pair, []).append(found)
    whole = {}
    for name, source in sources.items():
        whole[name] = _joined(parts[name])
        if bars.bands == "simultaneous":
            whole[name] = _simultaneous(whole[name], largest[name], source.units, bars)
    distances = {
        pair: {key: np.concatenate([f[key] for f in found], axis=1) for key in found[0]}
        for pair, found in apart.items()
    }
    return whole, distances


def _estimate(
    source: Source, one: Observable, at: slice, draws: Floats, bars: ErrorBars
) -> tuple[Estimated, Floats]:
    """Estimate at some lags, and the largest standardised deviation `(sample, perturbation)`."""
    raw, value = (source.answer(one, at, None, raw=r) for r in (True, False))
    error = draws.std(axis=0, ddof=1)
    freedom = source.units.degrees_of_freedom
    groups = len(source.left_out)
    left_out = source.answer(one, at, source.left_out, raw=False)
    # Of a ratio per wavenumber: small in each, but on a pixel biases add up and errors do not.
    bias = (groups - 1) * (left_out.mean(axis=0) - value)
    interval = with_interval(value, error, bias=bias, freedom=freedom, level=bars.level)
    # What is fixed by construction (lag 0 of a recalibrated response) has rounding for an error.
    scale = np.abs(np.nan_to_num(value)).max(initial=0.0)
    safe = np.where(error > 1e-9 * scale, error, np.inf)
    deviation = np.abs(np.nan_to_num(draws - value)) / safe
    extreme = deviation.reshape(*deviation.shape[:2], -1).max(axis=2)
    return Estimated(raw, interval.value, error, interval.low, interval.high, bias), extreme


def _apart(value: Floats, reference: Floats, draws: Floats, others: Floats) -> dict[str, Floats]:
    """Measures of the distance at some lags, each `(perturbation, lag)`."""
    found: dict[str, list[Floats]] = {n + e: [] for n in MEASURES for e in ("", "_standard_error")}
    for p in range(len(value)):
        measured = distance(
            value[p], reference[p], estimate_samples=draws[:, p], reference_samples=others[:, p]
        )
        for key, values in found.items():
            values.append(getattr(measured, key))
    return {key: np.stack(values) for key, values in found.items()}


def _joined(parts: Sequence[Estimated]) -> Estimated:
    names = ("raw", "value", "standard_error", "low", "high", "bias")
    return Estimated(*(np.concatenate([getattr(p, n) for p in parts], axis=1) for n in names))


def _simultaneous(one: Estimated, largest: Floats, units: Units, bars: ErrorBars) -> Estimated:
    """The same with bands that hold at all lags and places together, per perturbation."""
    freedom = units.degrees_of_freedom
    widths = [critical_value(column, freedom=freedom, level=bars.level) for column in largest.T]
    half = one.standard_error * np.reshape(widths, (-1, *[1] * (one.value.ndim - 1)))
    return Estimated(
        one.raw, one.value, one.standard_error, one.value - half, one.value + half, one.bias
    )
