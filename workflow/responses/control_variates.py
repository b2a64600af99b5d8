"""Responses made less noisy by quantities whose expectation is known: control variates.

The exact score obeys E[f s^T] = -E[grad f] for every f. The sample value of such an identity is
pure noise, c_u per unit u with E c_u = 0, and as far as the response shares that noise it can be
subtracted:

    R' = R - beta cbar,      beta = Cov(S_u, c_u) / Var(c_u).

Division by the sample Stein matrix M is the same with beta = R and c = M - I. The best beta is
larger: for a mode that decays as exp(-l) in scaled lag l, beta = (1 + l) exp(-l), and the
variances, with q = exp(-2 l), in units of Var M for a wave and Var M / 2 for a real variable, are

             wave of a field          one real variable
    raw      1                        1 + (1 + 2 l) q
    ratio    1 - (1 + 2 l) q          1 - (1 + 2 l) q
    best     1 - (1 + l)^2 q          1 - (1 + 2 l + 2 l^2) q

so the best one halves the variance of a field at short lags and leaves long ones as they are.

It is wrong for a score that is not exact: then E c_u is the error of the score, and R' is off by
(R - beta) (E M - I). Only beta = R, the recalibration, takes that error out, and it uses up what
the identity knows.

Coefficients are fitted across folds: those used on a unit come from units of other folds, so the
correction has expectation zero exactly, and the scatter of the corrected sums holds the noise of
the coefficients.

Source: S. Asmussen and P. W. Glynn, Stochastic Simulation (2007), chapter V.2;
A. N. Avramidis and J. R. Wilson, Manage. Sci. 39, 449 (1993), split controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from workflow.interfaces import UserError
from workflow.responses.resampling import Units, jackknife_weights, ratio

Numbers = NDArray[Any]
"""Real or complex."""

GROUPS_PER_CONTROL = 8
"""Independent groups of units that one coefficient needs."""


@dataclass(frozen=True)
class Controlled:
    """Sums with the noise of the controls taken out; they go where the plain sums go.

    Attributes:
        sums: S' `(member, block, lag, ...)`, to be used with the pairs of S and any weights.
        coefficients: beta, mean over the folds, `(control, lag, ...)`.
    """

    sums: Numbers
    coefficients: Numbers


def control(
    sums: Numbers, pairs: Numbers, controls: Numbers, *, units: Units, folds: int = 8
) -> Controlled:
    """Sums less their share of the controls' noise.

        S'_u(lag) = S_u(lag) - beta(lag) . c_u n_u(lag) / n_u(0)

    Each beta is shrunk by the part of its squared correlation that chance explains (to zero where
    chance explains all of it), so useless controls cost nothing.

    Args:
        sums: S `(member, block, lag, *places)`, lag 0 first; real, or complex wavenumbers.
        pairs: n `(block, lag)`.
        controls: c `(member, block, control, *places)`, sums over the n_u(0) samples of the block
            of quantities with expectation zero; one for each place, or, with all places of size
            1, for all places.
        units: what is resampled: members or stretches of time. Coefficients are those of their
            sums, so correlation in time is accounted for.
        folds: parts of the units; 2 or more.

    Returns:
        Corrected sums and coefficients.

    Raises:
        UserError: too few independent units for so many controls.
        ValueError: shapes that do not fit.
    """
    members, blocks, lags, *places = sums.shape
    if controls.ndim != sums.ndim or controls.shape[:2] != (members, blocks):
        raise ValueError(
            f"controls {controls.shape} for sums {sums.shape}; "
            "needs (member, block, control, *places)"
        )
    number = controls.shape[2]
    groups = (jackknife_weights(units) == 0).astype(np.float64)
    folds = min(folds, len(groups))
    if len(groups) < GROUPS_PER_CONTROL * number:
        raise UserError(
            f"{number} control variates with {len(groups)} independent units: need "
            f"{GROUPS_PER_CONTROL} a control; use fewer of them, or raise ensemble.members"
        )
    residual = _grouped(sums - ratio(sums, pairs) * _like(pairs, sums, axis=1), groups)
    grouped = _grouped(controls, groups)
    corrected = np.array(sums)
    flat = corrected.reshape(members * blocks, lags, *places)
    share = _like(np.tile(pairs / pairs[:, :1], (members, 1)), flat, axis=0)
    units_of = controls.reshape(len(flat), *controls.shape[2:])
    mean: Numbers = np.zeros((number, lags, *places), dtype=sums.dtype)
    for fold in np.array_split(np.arange(len(groups)), folds):
        others = np.setdiff1d(np.arange(len(groups)), fold)
        beta = _coefficients(residual[others], grouped[others])
        mean += beta * (len(fold) / len(groups))
        inside = groups[fold].sum(axis=0) > 0
        noise = np.einsum("uc...,cl...->ul...", units_of[inside], beta)
        flat[inside] -= noise * share[inside]
    return Controlled(corrected, mean)


def control_by_stein(
    sums: Numbers, pairs: Numbers, *, lag_zero: Numbers, space: int, units: Units
) -> Controlled:
    """Response with the noise of the lag-0 identity of its own score taken out.

        c = M - I per wavenumber,      M_cb = S_cb(lag 0) / n(0) of the fields c kicked in b

    Every response to a kick of field b is controlled by column b of M. For the exact score only:
    the result is not recalibrated, and must not be.

    Args:
        sums: S `(member, block, lag, observable, field, *shape)` of B = -s, displacements in FFT
            order; places of inhomogeneous systems count as fields.
        pairs: n `(block, lag)`, lag 0 first.
        lag_zero: S at lag 0 with the fields as observables, `(member, block, field, field,
            *shape)`.
        space: number of space dimensions, 0 to 2.
        units: what is resampled.

    Returns:
        Corrected sums, real, in displacements; coefficients per wavenumber.

    Raises:
        UserError: fewer than 8 independent units a field.
    """
    axes = tuple(range(-space, 0))
    spectrum = fft.fftn(sums, axes=axes) if space else sums
    stein = fft.fftn(lag_zero, axes=axes) if space else lag_zero
    fields = lag_zero.shape[2]
    identity = np.eye(fields).reshape(fields, fields, *[1] * space)
    stein = stein - _like(pairs[:, 0], stein, axis=1) * identity
    # (member, block, control, observable = 1, kicked field, *shape)
    found = control(spectrum, pairs, stein[:, :, :, None], units=units)
    back = fft.ifftn(found.sums, axes=axes).real if space else found.sums
    return Controlled(back, found.coefficients)


def _grouped(values: Numbers, groups: Numbers) -> Numbers:
    """Sums over the independent groups of units, `(group, ...)`."""
    flat = values.reshape(groups.shape[1], -1)
    return np.asarray((groups @ flat).reshape(len(groups), *values.shape[2:]))


def _coefficients(residual: Numbers, controls: Numbers) -> Numbers:
    """Shrunk beta `(control, lag, *places)` of residuals `(group, lag, ...)` on the controls."""
    groups, number = controls.shape[:2]
    # Places first, so that one small system is solved for each. Means are those of these groups
    # alone: with means of all, the units of a fold would have a say in their own coefficient.
    c = np.moveaxis(controls - controls.mean(axis=0), (0, 1), (-2, -1))
    e = np.moveaxis(residual - residual.mean(axis=0), (0, 1), (-2, -1))
    adjoint = c.conj().swapaxes(-1, -2)
    beta = np.linalg.pinv(adjoint @ c, rcond=1e-10, hermitian=True) @ (adjoint @ e)
    explained = (np.abs(c @ beta) ** 2).sum(axis=-2)
    total = (np.abs(e) ** 2).sum(axis=-2)
    chance = (total - explained) * number / max(1, groups - 1 - number)
    kept = np.clip(1 - chance / np.where(explained > 0, explained, np.inf), 0.0, 1.0)
    return np.moveaxis(beta * kept[..., None, :], (-2, -1), (0, 1))


def _like(pairs: Numbers, sums: Numbers, *, axis: int) -> Numbers:
    """Numbers of pairs made to broadcast against sums, their first axis at this one."""
    return pairs.reshape(*pairs.shape, *[1] * (sums.ndim - axis - pairs.ndim))
