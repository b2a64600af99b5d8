"""Error bars from independent members, and distances between responses that know their noise.

Members are the only independent units of an ensemble (times of one run are correlated), so they
are what is resampled. A resample is a row of weights over the members: the weighted mean of any
per-member array is one matrix product, and estimators that share the weights share the draws,
so their difference is paired.

A resample draws members - 1 members, not all of them: its variance of a mean is then
sum (x - mean)^2 / (m (m - 1)), the unbiased one, also with few members. Intervals are
value +- t_{m-1} * standard error (Student), because with few members the error bar is itself
uncertain; they need only running sums over the resamples, so memory does not grow with their
number, as percentiles would.

Source: B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982);
P. J. McCarthy and C. B. Snowden, The Bootstrap and Finite Population Sampling (1985).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from workflow.interfaces import UserError

Floats = NDArray[np.floating]

_CHUNK_NUMBERS = 1 << 23
"""Numbers of one chunk of resampled means: 64 MiB in float64."""


@dataclass(frozen=True)
class Estimate:
    """A value with its error bar, all of one shape.

    Attributes:
        value: statistic of the mean over all members.
        standard_error: its standard deviation under resampling of the members.
        low: lower end of the confidence interval.
        high: upper end of the confidence interval.
    """

    value: Floats
    standard_error: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Distance:
    """How far a response is from a reference at each lag, `(lag)`, with its noise taken out.

    Attributes:
        l2: Euclidean norm over all pixels and fields, sqrt(sum_r |R - R_ref|^2); biased upward
            by the sampling noise of both.
        l2_standard_error: its standard error.
        linf: largest absolute difference of a pixel; biased upward likewise.
        linf_standard_error: its standard error.
        noise: sum over pixels of the estimation variance of R - R_ref; what l2^2 is in
            expectation when both have the same limit.
        l2_squared: l2^2 - noise, unbiased for the squared distance of the limits; may be negative.
        l2_squared_standard_error: its standard error.
        l2_corrected: sqrt(max(0, l2_squared)).
        l2_corrected_standard_error: one step of the standard error of l2_squared upward.
    """

    l2: Floats
    l2_standard_error: Floats
    linf: Floats
    linf_standard_error: Floats
    noise: Floats
    l2_squared: Floats
    l2_squared_standard_error: Floats
    l2_corrected: Floats
    l2_corrected_standard_error: Floats


def member_weights(members: int, *, samples: int, seed: int) -> Floats:
    """Weights of the members in each bootstrap resample.

    The same arguments give the same draws: use them for every estimator of one ensemble. Use
    another seed for another ensemble.

    Args:
        members: independent members.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        Multinomial counts over members - 1 draws, divided by members - 1,
        `(sample, member)`; every row sums to 1.

    Raises:
        UserError: fewer than 2 members or resamples.
    """
    _check_members(members)
    if samples < 2:
        raise UserError(f"response.error.samples={samples}: an error bar needs at least 2")
    draws = members - 1
    generator = np.random.Generator(np.random.Philox(seed))
    counts = generator.multinomial(draws, np.full(members, 1 / members), size=samples)
    return counts / draws


def resampled_means(per_member: Floats, weights: Floats) -> Floats:
    """Mean over the members of every resample, as one matrix product.

    Args:
        per_member: `(member, ...)`.
        weights: `(sample, member)` from `member_weights`, or any slice of its rows.

    Returns:
        `(sample, ...)`, float64.

    Raises:
        ValueError: another number of members than the weights have.
    """
    if weights.shape[-1] != per_member.shape[0]:
        raise ValueError(
            f"{per_member.shape[0]} members with weights for {weights.shape[-1]}; "
            "draw the weights for this ensemble"
        )
    flat = np.asarray(per_member, dtype=np.float64).reshape(per_member.shape[0], -1)
    return (weights @ flat).reshape(len(weights), *per_member.shape[1:])


def bootstrap(
    per_member: Floats,
    statistic: Callable[[Floats], Floats] | None = None,
    *,
    samples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Statistic of the member mean, with its standard error and confidence interval.

    Args:
        per_member: `(member, ...)`, members independent.
        statistic: maps means `(sample, ...)` to numbers `(sample, ...)`, each sample by itself
            (recalibration, a ratio, a norm); the mean itself by default.
        samples: number of resamples.
        level: coverage of the interval, between 0 and 1.
        seed: of the draws; equal seeds and members give equal draws.

    Returns:
        The estimate in the shape and units of the statistic.

    Raises:
        UserError: fewer than 2 members, or a level that is no probability.
    """
    members = per_member.shape[0]
    weights = member_weights(members, samples=samples, seed=seed)
    apply = statistic if statistic is not None else _itself
    value = np.asarray(apply(per_member.mean(axis=0, dtype=np.float64)[None])[0])
    chunk = max(1, _CHUNK_NUMBERS // max(1, per_member[0].size))
    total, squares = np.zeros_like(value), np.zeros_like(value)
    for first in range(0, samples, chunk):
        # Deviations from the value: sums of squares of large means would cancel.
        deviation = apply(resampled_means(per_member, weights[first : first + chunk])) - value
        total += deviation.sum(axis=0)
        squares += (deviation**2).sum(axis=0)
    variance = (squares - total**2 / samples) / (samples - 1)
    error = np.sqrt(np.maximum(variance, 0.0))
    return with_interval(value, error, members=members, level=level)


def with_interval(value: Floats, standard_error: Floats, *, members: int, level: float) -> Estimate:
    """Student interval around a value, value +- t_{members-1} * standard_error.

    Args:
        value: any shape.
        standard_error: same shape.
        members: independent members behind the standard error.
        level: coverage of the interval, between 0 and 1.

    Returns:
        The estimate with both ends.

    Raises:
        UserError: fewer than 2 members, or a level that is no probability.
    """
    _check_members(members)
    if not 0.0 < level < 1.0:
        raise UserError(f"response.error.level={level}: needs to be between 0 and 1, as 0.95")
    half_width = student.ppf(0.5 + level / 2, members - 1) * standard_error
    return Estimate(value, standard_error, value - half_width, value + half_width)


def distance(
    estimate: Floats,
    reference: Floats,
    *,
    estimate_samples: Floats,
    reference_samples: Floats | None = None,
) -> Distance:
    """Distance of two responses at each lag, with its standard error and without its noise.

        E |R - R_ref|^2 = |lim R - lim R_ref|^2 + sum_r Var(R - R_ref)

    The variance is that of the paired difference of the resamples, so: two estimators of one
    ensemble must share the weights (their common noise cancels), two ensembles must not.
    Lags are independent; pass slices of them to bound the memory.

    Args:
        estimate: R `(lag, ...)`.
        reference: R_ref, same shape.
        estimate_samples: resamples of R, `(sample, lag, ...)`.
        reference_samples: resamples of R_ref, same shape; None when it is known exactly.

    Returns:
        L2 and Linf over everything but the lag.

    Raises:
        ValueError: shapes that do not fit.
    """
    resampled = () if reference_samples is None else (reference_samples,)
    shapes = {reference.shape, *(a.shape[1:] for a in (estimate_samples, *resampled))}
    counts = {len(a) for a in (estimate_samples, *resampled)}
    if shapes != {estimate.shape} or len(counts) != 1:
        raise ValueError(
            f"estimate {estimate.shape}, reference {reference.shape}, resamples of shapes "
            f"{sorted(shapes)} and numbers {sorted(counts)}; all need the same lags and places"
        )
    lags = len(estimate)
    difference = (estimate - reference).reshape(lags, -1).astype(np.float64)
    draws = estimate_samples - (reference if reference_samples is None else reference_samples)
    draws = draws.reshape(len(draws), lags, -1)
    noise = draws.var(axis=0, ddof=1).sum(axis=-1)
    draws_squared = (draws**2).sum(axis=-1)
    squared = (difference**2).sum(axis=-1)
    unbiased, squared_error = squared - noise, draws_squared.std(axis=0, ddof=1)
    corrected = np.sqrt(np.maximum(unbiased, 0.0))
    return Distance(
        l2=np.sqrt(squared),
        l2_standard_error=np.sqrt(draws_squared).std(axis=0, ddof=1),
        linf=np.abs(difference).max(axis=-1),
        linf_standard_error=np.abs(draws).max(axis=-1).std(axis=0, ddof=1),
        noise=noise,
        l2_squared=unbiased,
        l2_squared_standard_error=squared_error,
        l2_corrected=corrected,
        # The square root has no slope at 0; the step stays finite and is e / (2 L2) far from it.
        l2_corrected_standard_error=np.sqrt(corrected**2 + squared_error) - corrected,
    )


def _itself(means: Floats) -> Floats:
    return means


def _check_members(members: int) -> None:
    """Refuse error bars without independent members."""
    if members < 2:
        raise UserError(f"ensemble.members={members}: an error bar needs at least 2 members")
