"""Recalibration of the response of one field, as arrays; `stein` has it for any channels.

The exact score obeys M = R(lag=0) = -<x s^T> = I. On a translation-invariant field M is circulant
and the repair s <- M^-T s is one division per wavenumber,

    R_k(lag) <- R_k(lag) / M_k,      M_k = sum_r R(0, r) exp(-i k r).

Arrays are `(..., lag, *shape)`, displacements in FFT order.

Source: arXiv:2402.01029 (normalisation at lag 0); identical to the Gaussian estimator for a
linear score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from workflow.interfaces import UserError
from workflow.responses.stein import (
    FLOOR,
    SIGNIFICANCE,
    answers,
    displacements,
    half_spectrum,
    invert,
)

Floats = NDArray[np.floating]
Complexes = NDArray[np.complexfloating]


@dataclass(frozen=True)
class Recalibrated:
    """A response after recalibration, and where there was none.

    Attributes:
        response: R, same shape as was given, `(..., lag, *shape)`.
        unresolved: wavenumbers left as they were, `(..., *shape)`, FFT order.
        refused: True where the whole correction was too large and the identity kept, `(...)`.
    """

    response: Floats
    unresolved: NDArray[np.bool_]
    refused: NDArray[np.bool_]


def stein_spectrum(response: Floats, *, space: int) -> Complexes:
    """Stein matrix per wavenumber, M_k = FFT_r R(0, r); 1 for the exact score.

    Args:
        response: raw R `(..., lag, *shape)`, lag 0 first.
        space: number of space dimensions, 0 to 2.

    Returns:
        M_k `(..., *shape)`, complex, dimensionless.

    Raises:
        ValueError: the array has too few axes for its space.
    """
    if response.ndim < space + 1 or math.prod(response.shape) == 0:
        raise ValueError(
            f"response of shape {response.shape} with space={space}; "
            "needs (..., lag, *shape) and at least one lag"
        )
    lag_zero = response.take(0, axis=-1 - space)
    return np.asarray(fft.fftn(lag_zero, axes=_space(space)) if space else lag_zero + 0j)


def unresolved_modes(per_member: Floats, *, space: int, floor: float = FLOOR) -> NDArray[np.bool_]:
    """Wavenumbers that the score cannot see.

    Those where the member mean of |M_k| is below 4 of its standard errors or below the floor.
    Decide once from all members, and use the answer for every resample.

    Args:
        per_member: raw R per member, `(member, lag, *shape)`.
        space: number of space dimensions.
        floor: smallest |M_k| taken as resolved.

    Returns:
        True where unresolved, `(*shape)`, FFT order.

    Raises:
        UserError: one member has no standard error.
    """
    members = per_member.shape[0]
    if members < 2:
        raise UserError(f"ensemble.members={members}: an error bar needs at least 2 members")
    stein = stein_spectrum(per_member, space=space)
    mean = stein.mean(axis=0)
    error = np.sqrt((np.abs(stein - mean) ** 2).sum(axis=0) / (members * (members - 1)))
    return np.asarray((np.abs(mean) < SIGNIFICANCE * error) | (np.abs(mean) < floor))


def recalibrate(
    response: Floats,
    *,
    space: int,
    unresolved: NDArray[np.bool_] | None = None,
    stein: Complexes | None = None,
) -> Recalibrated:
    """Response with the score repaired so that lag 0 is the identity on all resolved modes.

    Args:
        response: raw R `(..., lag, *shape)`; leading axes (members, resamples) are recalibrated
            each by itself.
        space: number of space dimensions, 0 to 2.
        unresolved: modes to leave alone, `(*shape)`; without it, those with |M_k| below the floor.
        stein: M_k `(..., *shape)` where `response` does not hold lag 0 (a slice of the lags).

    Returns:
        The response, the modes left alone and, per leading index, whether the correction was
        refused because it was too large; then the response is the raw one.

    Raises:
        ValueError: the array has too few axes for its space.
    """
    whole = stein_spectrum(response, space=space) if stein is None else stein
    alone = np.abs(whole) < FLOOR if unresolved is None else unresolved
    alone = np.broadcast_to(alone, whole.shape)
    shape = response.shape[response.ndim - space :]
    half = (..., slice(0, shape[-1] // 2 + 1)) if space else (...,)
    matrices = np.where(alone, 1.0, whole)[half]
    matrices = matrices if space else matrices.real
    one = np.expand_dims(matrices, (-1 - space, -2 - space))
    none = np.zeros((1, *matrices.shape[matrices.ndim - space :]), dtype=bool)
    repair = invert(one, none, space=space)
    spectrum = np.expand_dims(half_spectrum(response, space=space), -1 - space)
    pattern = np.ones((1, 1, *spectrum.shape[spectrum.ndim - space :]))
    found = np.squeeze(answers(spectrum, repair.inverse, pattern), axis=-1 - space)
    return Recalibrated(displacements(found, shape=shape), np.asarray(alone), repair.refused)


def stein_error(response: Floats, *, space: int) -> Floats:
    """Root mean square of the eigenvalues of M - I, ||M - I||_F / sqrt(N).

    Args:
        response: R `(..., lag, *shape)`, raw or recalibrated.
        space: number of space dimensions.

    Returns:
        `(...)`, dimensionless; 0 for the exact score up to sampling noise.
    """
    squared = np.abs(stein_spectrum(response, space=space) - 1.0) ** 2
    mean = squared.mean(axis=_space(space)) if space else squared
    return np.asarray(np.sqrt(mean))


def smoothed_stein(variance: Floats, sigma: float) -> Floats:
    """Stein spectrum of the exact score of Gaussian data noised to sigma, C_k / (C_k + sigma^2).

    Args:
        variance: C_k, variance of each orthonormal mode, units of x squared.
        sigma: noise level at which the score is evaluated, units of x.

    Returns:
        M_k between 0 and 1; a learned score should come close to it, not to 1.
    """
    return np.asarray(variance / (variance + sigma**2))


def _space(space: int) -> tuple[int, ...]:
    """The trailing axes of space."""
    return tuple(range(-space, 0))
