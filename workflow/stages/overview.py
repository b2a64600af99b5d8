"""How far responses are from the references, and from the Gaussian ones, in few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import norm as standard_normal

from workflow.responses.pairs import few_from

REFERENCES = ("direct", "exact")
"""What responses are compared with."""

SIGNIFICANT = 3.0
"""Standard errors beyond which a squared distance is taken as real."""

FALSE_ALARM = 0.01
"""Chance that equal responses are called different somewhere, by `differs_from_gaussian`."""

PAIRS = 48
"""Most pairs of a perturbation and an observable, so that `summary.json` stays readable."""


def overview(every: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Every perturbation and observable in a few numbers for each estimator.

    Args:
        every: by observable, dims (estimator, perturbation, lag, ...).

    Returns:
        By perturbation, observable and estimator: `against` each reference `l2` and `linf`, as
        [sum over lags, its standard error] by the rule of `compare`, `relative_distance`, and
        `lags` as [significantly different, compared]; `differs_from_gaussian`, as `gaussian_lags`;
        and for an observable without place or axis `sensitivity`, the integral of the response over
        the lags at which it is known, until `until`.
    """
    found: dict[str, Any] = {}
    count = 0
    for observable, data in every.items():
        for kick in map(str, data.perturbation.values):
            count += 1
            if count > PAIRS:
                continue
            one = data.sel(perturbation=kick)
            numbers = {str(n): _short(one, str(n)) for n in one.estimator.values}
            found.setdefault(kick, {})[observable] = numbers
    return found | ({"left_out": count - PAIRS} if count > PAIRS else {})


def _short(one: xr.Dataset, name: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {"against": {}}
    for reference in REFERENCES:
        if reference == name or reference not in one.estimator.values:
            continue
        full = compare(one, name, reference)
        numbers["against"][reference] = {
            key: [full[f"summed_{key}"], full[f"summed_{key}_standard_error"]]
            for key in ("l2", "linf")
        } | {
            "relative_distance": full["relative_distance"],
            "lags": [len(full["different_lags"]), full["compared_lags"]],
        }
    if name not in ("gaussian", "direct") and "gaussian" in one.estimator.values:
        numbers["differs_from_gaussian"] = gaussian_lags(one, name)
    if set(one.response.dims) == {"estimator", "lag"}:
        curve = one.response.sel(estimator=name)
        known = curve.isel(lag=curve.notnull().values)
        if known.sizes["lag"] > 1:
            numbers["sensitivity"] = float(np.trapezoid(known.values, known.lag.values))
            numbers["until"] = float(known.lag[-1])
    if name == "direct" and (told := pairs_of(one)):
        numbers["few_pairs_from"] = told["few_pairs_from"]
    return numbers


def pairs_of(one: xr.Dataset) -> dict[str, Any]:
    """How many pairs the direct response to one kick rests on; empty where it is not known.

    Returns:
        `pairs` that were run, the `enough` of them; by lag `effective_pairs` and `pair_variance`;
        `few_pairs_from`, the lag from which on fewer than enough count, or None.
    """
    if "effective_pairs" not in one:  # not in responses of earlier versions
        return {}
    effective, told = one.effective_pairs, one.effective_pairs.attrs
    pairs = int(told["pairs"])
    return {
        "pairs": pairs,
        "enough": float(told["enough"]),
        "effective_pairs": effective.values.tolist(),
        "pair_variance": one.pair_variance.values.tolist(),
        "few_pairs_from": few_from(effective.values, one.lag.values, pairs),
    }


def few_pairs(every: Mapping[str, xr.Dataset]) -> str | None:
    """From which lag on the direct response is not to be trusted; None where it is.

    Args:
        every: as `overview`.
    """
    found, count = [], 0
    for observable, data in every.items():
        for kick in map(str, data.perturbation.values):
            told = pairs_of(data.sel(perturbation=kick))
            count += bool(told)
            if told and told["few_pairs_from"] is not None:
                least = np.nanmin(told["effective_pairs"])
                words = f"{observable} after {kick}"
                found.append((told["few_pairs_from"], words, least, told["pairs"], told["enough"]))
    if not found:
        return None
    first, words, least, pairs, needed = min(found)
    more = f" (the first of {len(found)} such responses of {count})" if count > 1 else ""
    return (
        f"Do not trust the direct response of {words} or its error bars from lag {first:.4g} on"
        f"{more}: few pairs make it, effectively {least:.3g} of {pairs} at the worst, and "
        f"{needed:.3g} are needed; raise direct.pairs or lower direct.max_lag."
    )


def gaussian_lags(one: xr.Dataset, name: str) -> list[int]:
    """[lags after 0 at which a response differs from the Gaussian one, lags known to both].

    A lag counts where the difference of any number exceeds z standard errors, z such that equal
    responses are called different at some lag with probability FALSE_ALARM at most (Bonferroni).
    The errors are added as if independent. Both scores see the same data, so their errors mostly
    go together and the true error of the difference is smaller: what is called different is.
    """
    first, second = one.sel(estimator=name), one.sel(estimator="gaussian")
    later = one.lag > 0
    gap = abs(first.response - second.response).where(later, drop=True)
    error = np.sqrt(first.standard_error**2 + second.standard_error**2).where(later, drop=True)
    known = gap.notnull() & (error > 0)
    z = standard_normal.isf(0.5 * FALSE_ALARM / max(1, int(known.sum())))
    rest = [d for d in gap.dims if d != "lag"]
    different = (known & (gap > z * error)).any(rest)
    return [int(different.sum()), int(known.any(rest).sum())]


def compare(dataset: xr.Dataset, name: str, reference: str) -> dict[str, Any]:
    """Distances of an estimator from a reference, per lag and summed.

    Sums run over `summed_lags`: the lags after 0 at which the Gaussian estimator's distance from
    the reference is significant and this one's is known. A sum over no lag is None, as 0 would
    read as agreement; without a Gaussian estimator there is no sum.

    Args:
        dataset: `response.zarr`.
        name: the estimator.
        reference: what it is compared with.

    Returns:
        Lists per lag: `l2`, `linf`, `l2_corrected` with `_standard_error`, and `reference_norm`,
        the L2 norm of the reference without its noise. `compared_lags`: number of lags after 0
        where both are known, the direct one from enough pairs; `different_lags`: those where the
        distance is significant.
        `summed_<l2|linf|l2_corrected>` with a bound on the standard error. Without the noise of
        both, as a share of the reference: `relative_distance` = sqrt(sum of l2_squared / sum of
        reference_norm^2) with its standard error, both None where the sum is not significant,
        and `relative_distance_below`, its one-sided 95 % bound.
    """
    one = dataset.sel(estimator=name, reference=reference)
    numbers: dict[str, Any] = {}
    for key in ("l2", "linf", "l2_corrected"):
        for end in ("", "_standard_error"):
            numbers[key + end] = one[key + end].values.tolist()
    norm = _norm(dataset.sel(estimator=reference))
    numbers["reference_norm"] = norm.values.tolist()
    known = one.l2.notnull() & (dataset.lag > 0)
    if reference == "direct":
        known &= _enough_pairs(dataset)
    numbers["compared_lags"] = int(known.sum())
    numbers["different_lags"] = dataset.lag[known & _significant(one)].values.tolist()
    summed = xr.zeros_like(known)
    if "gaussian" in dataset.estimator.values:
        summed = known & _significant(dataset.sel(estimator="gaussian", reference=reference))
    numbers["summed_lags"] = dataset.lag[summed].values.tolist()
    for key in ("l2", "linf", "l2_corrected"):
        for end in ("", "_standard_error"):
            # Errors at neighbouring lags go together: their sum bounds the error of the sum.
            total = float(one[key + end].where(summed).sum()) if bool(summed.any()) else None
            numbers[f"summed_{key}{end}"] = total
    return numbers | _relative(one.where(summed), norm.where(summed))


def _relative(one: xr.Dataset, norm: xr.DataArray) -> dict[str, float | None]:
    """Distance and bound of `compare`; NaN at the lags that are not summed."""
    square, error = float(one.l2_squared.sum()), float(one.l2_squared_standard_error.sum())
    size, known = float((norm**2).sum()), bool(one.l2_squared.notnull().any())
    found: dict[str, float | None] = dict.fromkeys(
        ("relative_distance", "relative_distance_standard_error", "relative_distance_below")
    )
    if known and size > 0:
        bound = max(0.0, square) + standard_normal.isf(0.05) * error
        found["relative_distance_below"] = float(np.sqrt(bound / size))
        if square > SIGNIFICANT * error:
            found["relative_distance"] = float(np.sqrt(square / size))
            found["relative_distance_standard_error"] = error / float(2 * np.sqrt(square * size))
    return found


def _enough_pairs(one: xr.Dataset) -> xr.DataArray:
    """Lags at which the direct response to one kick is to be trusted."""
    first = pairs_of(one).get("few_pairs_from")
    return xr.ones_like(one.lag, dtype=bool) if first is None else one.lag < first


def _significant(one: xr.Dataset) -> xr.DataArray:
    return one.l2_squared > SIGNIFICANT * one.l2_squared_standard_error


def _norm(one: xr.Dataset) -> xr.DataArray:
    """L2 norm over space of a response at each lag; the variance of its noise is taken out."""
    space = [d for d in one.response.dims if d != "lag"]
    square = (one.response**2 - one.standard_error**2).sum(space, skipna=False)
    return np.sqrt(square.clip(min=0))
