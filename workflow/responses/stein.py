"""The Stein identity of a score, and its repair by a linear map.

The exact score obeys M = R(lag=0) = -<x s^T> = I. A learned score does not quite; the linear map
s <- M^-T s restores the identity and turns every response into R(lag) M^-1. On a homogeneous
field that is one matrix over the fields per wavenumber; a constant direction phi is then a
convolution,

    R_phi,k(lag) = R_k(lag) M_k^-1 phi_k.

Where the score does not see a number at all, M is noise there; such numbers are called unresolved
and left as they are. Arrays hold half-spectra `(..., *half)` of the displacements in FFT order; a
system without space has none.

Source: arXiv:2402.01029 (normalisation at lag 0, the right-hand one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

Floats = NDArray[np.floating]
Numbers = NDArray[np.inexact]
Flags = NDArray[np.bool_]

SIGNIFICANCE = 4.0
"""Standard errors that |M_k| must be away from zero."""

FLOOR = 0.1
"""Smallest |M_k| that is divided by; below it recalibration multiplies errors more than tenfold."""

LARGEST_CORRECTION = 10.0
"""Largest root mean square of the entries of M^-1 - I, per row, that a score is repaired by.

An entry e_fg has the units of field f over those of g, so |e_fg e_gf| stands for its square: of
entries alike in size it is the square, and the choice of units does not matter.
"""


@dataclass(frozen=True)
class Repair:
    """Inverses of Stein matrices.

    Attributes:
        inverse: M^-1, `(..., F, F, *half)`; the identity for unresolved numbers.
        refused: True where the correction was too large and the identity is kept, `(...)`.
    """

    inverse: Numbers
    refused: Flags


def half_spectrum(values: Floats, *, space: int) -> Numbers:
    """Transform over the last `space` axes of displacements."""
    if not space:
        return values
    return np.asarray(fft.rfftn(values, axes=tuple(range(-space, 0))))


def displacements(spectrum: Numbers, *, shape: tuple[int, ...]) -> Floats:
    """The inverse of `half_spectrum`."""
    if not shape:
        return np.asarray(spectrum.real)
    return np.asarray(fft.irfftn(spectrum, s=shape, axes=tuple(range(-len(shape), 0))))


def unresolved_numbers(stein: Numbers, standard_error: Floats, *, space: int) -> Flags:
    """Numbers, per wavenumber, that the score cannot see.

    Decide once from all the data and use the answer for every resample: a number must not come
    and go between the draws of one error bar.

    Args:
        stein: M `(F, F, *half)`.
        standard_error: of |M|, same shape.
        space: number of space dimensions.

    Returns:
        True where the diagonal of M is within 4 standard errors of zero or below the floor,
        `(F, *half)`.
    """
    diagonal = np.abs(_diagonal(stein, space))
    error = _diagonal(standard_error, space)
    return np.asarray((diagonal < SIGNIFICANCE * error) | (diagonal < FLOOR))


def invert(stein: Numbers, unresolved: Flags, *, space: int) -> Repair:
    """M^-1 per wavenumber, with unresolved numbers left alone.

    Args:
        stein: M `(..., F, F, *half)`; leading axes (resamples) are inverted each by itself.
        unresolved: `(F, *half)`.
        space: number of space dimensions.

    Returns:
        The inverses, and where they were refused as too large; they are never infinite.
    """
    size = stein.shape[-1 - space]
    one = np.eye(size)
    matrices = np.moveaxis(stein, (-2 - space, -1 - space), (-2, -1))
    alone = np.moveaxis(unresolved, 0, -1)
    matrices = np.where(alone[..., :, None] | alone[..., None, :], one, matrices)
    with np.errstate(all="ignore"):
        try:
            inverse = 1 / matrices if size == 1 else np.linalg.inv(matrices)
        except np.linalg.LinAlgError:
            inverse = np.full_like(matrices, np.nan)
        excess = np.abs(inverse - one)
        squares = (excess * np.swapaxes(excess, -2, -1)).sum((-2, -1)) / size
        rms = np.sqrt(squares.mean(axis=tuple(range(-space, 0))) if space else squares)
        # Written so that an infinite or undefined correction is refused too.
        refused = np.asarray(~(rms <= LARGEST_CORRECTION))
    keep = refused.reshape(*refused.shape, *[1] * (space + 2))
    inverse = np.where(keep, one, inverse)
    return Repair(np.moveaxis(inverse, (-2, -1), (-2 - space, -1 - space)), refused)


def answers(spectrum: Numbers, inverse: Numbers | None, patterns: Numbers) -> Numbers:
    """Responses to constant directions from those to single kicks.

    Args:
        spectrum: R_k `(..., lag, F, *half)`, or plain `(..., lag, F)`.
        inverse: M_k^-1 `(..., F, F, *half)`; None for the raw response.
        patterns: phi_k `(F, P, *half)`.

    Returns:
        `(..., lag, P, *half)`.
    """
    space = patterns.ndim - 2
    factor = patterns if inverse is None else _matmul(inverse, patterns, space)
    return _products(spectrum, factor, space)


def stein_error(stein: Numbers, *, space: int, shape: tuple[int, ...]) -> Floats:
    """Root mean square of the entries of M - I per row, over all wavenumbers, `(...)`.

    ||M - I||_F / sqrt(numbers); 0 for the exact score up to sampling noise.
    """
    size = stein.shape[-1 - space]
    one = np.eye(size).reshape(size, size, *[1] * space)
    axes = tuple(range(-2 - space, 0))
    squares = np.abs(stein - one) ** 2 * half_weights(shape)
    return np.asarray(np.sqrt(squares.sum(axis=axes) / (size * float(np.prod(shape)))))


def half_weights(shape: tuple[int, ...]) -> Floats:
    """How often each entry of the half-spectrum stands in the whole one, along the last axis."""
    if not shape:
        return np.ones(())
    n = shape[-1]
    weights = np.full(n // 2 + 1, 2.0)
    weights[0] = 1.0
    if n % 2 == 0:
        weights[-1] = 1.0
    return weights


def lag_zero_matrix(x: Tensor, s: Tensor, *, maps: bool) -> Tensor:
    """Sum over snapshots of -x s^T.

    Args:
        x: centred snapshots `(batch, field, *shape)`, float64.
        s: their scores.
        maps: True for homogeneous fields.

    Returns:
        `(field, field, *half)` as mean over the places, or `(numbers, numbers)`.
    """
    if not maps:
        return -x.flatten(1).T @ s.flatten(1)
    axes = tuple(range(2, x.ndim))
    x_hat, s_hat = torch.fft.rfftn(x, dim=axes), torch.fft.rfftn(s, dim=axes)
    products = torch.einsum("bf...,bg...->fg...", x_hat, s_hat.conj())
    return -products / x[0, 0].numel()


@dataclass(frozen=True)
class LinearRecalibration:
    """s <- M^-T s, as a map of scores `(batch, field, *shape)`.

    Attributes:
        inverse: M^-1, `(field, field, *half)` on homogeneous fields, else `(numbers, numbers)`.
        stein: M, same shape.
        shape: space shape.
    """

    inverse: Tensor
    stein: Tensor
    shape: tuple[int, ...]

    @classmethod
    def fit(cls, stein: Tensor, *, maps: bool, shape: tuple[int, ...]) -> LinearRecalibration:
        """The repair of a Stein matrix, `lag_zero_matrix` over the number of snapshots."""
        space = len(shape) if maps else 0
        matrix = stein.numpy()
        small = unresolved_numbers(matrix, np.zeros(matrix.shape), space=space)
        inverse = torch.from_numpy(invert(matrix, small, space=space).inverse)
        return cls(inverse, stein, shape)

    def state(self) -> dict[str, Tensor]:
        """Tensors from which, with the shape, it can be made again."""
        return {"inverse": self.inverse, "stein": self.stein}

    def __call__(self, s: Tensor) -> Tensor:
        """Repaired scores."""
        if self.inverse.ndim == 2 and not torch.is_complex(self.inverse):
            return (s.flatten(1) @ self.inverse.to(s.dtype)).reshape(s.shape)
        axes = tuple(range(2, s.ndim))
        modes = torch.fft.rfftn(s, dim=axes)
        inverse = self.inverse.conj().to(modes.dtype)
        modes = torch.einsum("gf...,bg...->bf...", inverse, modes)
        return torch.fft.irfftn(modes, s=self.shape, dim=axes)


def _diagonal(matrices: Numbers, space: int) -> Numbers:
    moved = np.moveaxis(matrices, (-2 - space, -1 - space), (-2, -1))
    return np.moveaxis(np.diagonal(moved, axis1=-2, axis2=-1), -1, -1 - space)


_AXES = "yx"


def _matmul(a: Numbers, b: Numbers, space: int) -> Numbers:
    k = _AXES[:space]
    return np.einsum(f"...fg{k},gp{k}->...fp{k}", a, b)


def _products(spectrum: Numbers, factor: Numbers, space: int) -> Numbers:
    k = _AXES[:space]
    return np.einsum(f"...lf{k},...fp{k}->...lp{k}", spectrum, factor)
