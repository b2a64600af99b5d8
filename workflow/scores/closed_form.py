"""Scores with a formula: the exact one of a system, and the Gaussian one of any data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workflow.interfaces import HasExactScore, System, UserError, space_axes

SPECTRUM_FLOOR = 1e-10
"""Smallest mode variance, relative to the largest, that whitening divides by."""


@dataclass(frozen=True)
class ExactScore:
    """grad log p of a system whose stationary density is known."""

    system: System

    def __post_init__(self) -> None:
        if not isinstance(self.system, HasExactScore):
            raise UserError(
                f"{type(self.system).__name__} has no exact score; remove 'exact' from "
                "response.estimators"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x."""
        assert isinstance(self.system, HasExactScore)
        return self.system.exact_score(x)


@dataclass(frozen=True)
class SpectralGaussian:
    """A homogeneous Gaussian: independent Fourier modes, and the whitening that goes with it.

        s = -C^-1 (x - m),     x~ = C^(-1/2) (x - m)

    C is diagonal over wavenumbers. Fields are taken as uncorrelated with each other.

    Attributes:
        mean: mean per field, `(field,)`.
        spectrum: C_k, eigenvalues of the pixel covariance, `(field, *half-spectrum)`.
        shape: space shape.
    """

    mean: Tensor
    spectrum: Tensor
    shape: tuple[int, ...]

    @classmethod
    def fit(cls, x: Tensor) -> SpectralGaussian:
        """Mean and spectrum of homogeneous data `(batch, field, *shape)`.

        The sums run in float64 over batches in order, so the result does not depend on threads.
        """
        shape, axes = tuple(x.shape[2:]), space_axes(x)
        mean = x.mean(dim=(0, *axes), dtype=torch.float64)
        total = torch.zeros(())
        for part in x.split(4096):
            centred = part.double() - mean.reshape(-1, *[1] * len(shape))
            total = total + torch.fft.rfftn(centred, dim=axes).abs().square().sum(0)
        points = float(torch.tensor(shape).prod())
        spectrum = total / (len(x) * points)
        return cls(mean, spectrum.clamp(min=SPECTRUM_FLOOR * float(spectrum.max())), shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Gaussian score `(batch, field, *shape)`, 1 / units of x."""
        return -self.filter(x - self._mean_like(x), -1.0)

    def whiten(self, x: Tensor) -> Tensor:
        """x~ = C^(-1/2) (x - m): unit variance in every mode."""
        return self.filter(x - self._mean_like(x), -0.5)

    def colour(self, x: Tensor) -> Tensor:
        """C^(1/2) x, the inverse of `whiten` but for the mean."""
        return self.filter(x, 0.5)

    def filter(self, x: Tensor, power: float) -> Tensor:
        """C^power x, mode by mode."""
        axes = space_axes(x)
        weight = self.spectrum.pow(power).to(x.dtype)
        return torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * weight, s=self.shape, dim=axes)

    def _mean_like(self, x: Tensor) -> Tensor:
        return self.mean.to(x.dtype).reshape(-1, *[1] * len(self.shape))


@dataclass(frozen=True)
class DenseGaussian:
    """A Gaussian without symmetry: full covariance, shrunk towards its diagonal.

    Attributes:
        mean: `(pixels,)` of the flattened fields.
        precision: C^-1, `(pixels, pixels)`.
    """

    mean: Tensor
    precision: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> DenseGaussian:
        """Mean and shrunk covariance of data `(batch, field, *shape)`.

        Shrinkage towards the diagonal with the intensity of Schaefer and Strimmer (2005) keeps C
        invertible with fewer samples than pixels.

        Raises:
            ValueError: fewer than 3 samples.
        """
        if len(x) < 3:
            raise ValueError(f"{len(x)} samples; a covariance needs at least 3")
        flat = x.reshape(len(x), -1).double()
        mean = flat.mean(0)
        centred = flat - mean
        covariance = centred.T @ centred / (len(x) - 1)
        squares = (centred**2).T @ (centred**2) / len(x)
        variance_of_entries = (squares - covariance**2) / (len(x) - 1)
        off = ~torch.eye(len(mean), dtype=torch.bool)
        signal = float((covariance[off] ** 2).sum())
        noise = float(variance_of_entries[off].sum())
        intensity = min(1.0, max(0.0, noise / signal)) if signal > 0 else 0.0
        shrunk = torch.where(off, (1 - intensity) * covariance, covariance)
        return cls(mean, torch.linalg.inv(shrunk))

    def __call__(self, x: Tensor) -> Tensor:
        """Gaussian score `(batch, field, *shape)`, 1 / units of x."""
        flat = x.reshape(len(x), -1) - self.mean.to(x.dtype)
        return -(flat @ self.precision.to(x.dtype)).reshape(x.shape)
