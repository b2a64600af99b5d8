"""Covariances of a fit: bounded from below, shrunk, and the maps that whitening is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from workflow.interfaces import UserError

SPECTRUM_FLOOR = 1e-10
"""Smallest variance of a mode, relative to the largest, that whitening divides by."""


def diagonal_of(matrices: Tensor) -> Tensor:
    """Real diagonals of Hermitian matrices `(..., n, n)`."""
    return matrices.diagonal(dim1=-2, dim2=-1).real


def maps_of(scale: Tensor, values: Tensor, vectors: Tensor) -> dict[str, Tensor]:
    """Matrices of all maps from D^(1/2) and the eigenvalues and vectors of U, `(..., n, n)`."""

    def power(exponent: float) -> Tensor:
        kept = values.clamp(min=SPECTRUM_FLOOR).pow(exponent)
        return (vectors * kept[..., None, :]) @ vectors.mH

    left, right = scale[..., :, None], scale[..., None, :]
    root, inverse = power(0.5), power(-0.5)
    return {
        "whiten": inverse / right,
        "colour": left * root,
        "score_to_white": root * right,
        "score_from_white": inverse / left,
        "precision": power(-1.0) / (left * right),
    }


def floored(spectrum: Tensor) -> Tensor:
    """Spectrum with the variances of the modes of each field bounded from below."""
    variances = diagonal_of(spectrum.movedim((0, 1), (-2, -1))).movedim(-1, 0)
    largest = variances.flatten(1).max(1).values
    if not bool((largest > 0).all()):
        raise UserError(
            f"field {int((largest <= 0).nonzero()[0])} never varies; leave it out of the data"
        )
    floor = SPECTRUM_FLOOR * largest.reshape(-1, *[1] * (variances.ndim - 1))
    lift = (floor - variances).clamp(min=0)
    one = torch.eye(len(lift), dtype=lift.dtype, device=lift.device)
    return spectrum + torch.einsum("f...,fg->fg...", lift, one)


def shrunk(correlation: Tensor, squares: Tensor, *, samples: int) -> Tensor:
    """Correlations with their off-diagonal part shrunk by the intensity of least expected error."""
    variance_of_entries = (squares - correlation**2) / (samples - 1)
    off = ~torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)
    signal = float((correlation[off] ** 2).sum())
    noise = float(variance_of_entries[off].sum())
    intensity = min(1.0, max(0.0, noise / signal)) if signal > 0 else 0.0
    return torch.where(off, (1 - intensity) * correlation, correlation)
