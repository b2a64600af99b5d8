"""One variable under jump noise, exactly: density, score and generalized score by Fourier sums.

Everything follows from the characteristic functions of the data and of the noise, so any amplitude
law will do, and what networks learn can be compared with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from scipy.special import roots_legendre
from torch import Tensor

from workflow.diffusion.amplitudes import AMPLITUDES
from workflow.diffusion.jump import JumpLaw

_NODES = 32
"""Of the quadrature over the time at which a jump happened."""

_ROUND_OFF = 1e-12
"""Of the largest density: below it ratios of Fourier sums mean nothing."""


@dataclass(frozen=True)
class NoisedDensity:
    """Data of one variable at time s of a jump diffusion; see `workflow.diffusion.jump`.

    Attributes:
        law: rate, scale and Gaussian part, plain numbers.
        data: characteristic function of x_0, real or complex, at wavenumbers (float64).
        amplitude: name of the law of a jump.
        half_width: the variable lies within +- this, up to a negligible probability.
        points: of the lattice.
    """

    law: JumpLaw
    data: Callable[[Tensor], Tensor]
    amplitude: str = "laplace"
    half_width: float = 100.0
    points: int = 2**13

    @cached_property
    def x(self) -> Tensor:
        """The lattice, float64."""
        step = 2 * self.half_width / self.points
        return (torch.arange(self.points, dtype=torch.float64) - self.points // 2) * step

    @cached_property
    def _k(self) -> Tensor:
        step = 2 * self.half_width / self.points
        return 2 * math.pi * torch.fft.rfftfreq(self.points, step, dtype=torch.float64)

    def exponent(self, k: Tensor) -> Tensor:
        """psi(k) = g k^2 / 2 + rate (1 - q^(k))."""
        q = AMPLITUDES[self.amplitude].characteristic(self.law.scale * k)
        return self.law.gaussian * k.square() / 2 + self.law.rate * (1 - q)

    def noise(self, k: Tensor, s: float) -> Tensor:
        """Characteristic function of u, exp(-int_0^s psi(k exp(-r / 2)) dr)."""
        nodes, weights = (torch.from_numpy(v) for v in roots_legendre(_NODES))
        total = torch.zeros_like(k)
        for node, weight in zip((nodes + 1) * (s / 2), weights * (s / 2), strict=True):
            total = total + weight * self.exponent(k * torch.exp(-node / 2))
        return (-total).exp()

    def tables(self, s: float) -> tuple[Tensor, Tensor, Tensor]:
        """Density, score and generalized score on the lattice."""
        return _tables(self, s)

    def score(self, x: Tensor, s: float) -> Tensor:
        """grad log p_s at any places."""
        return self._between(self.tables(s)[1], x)

    def generalized(self, x: Tensor, s: float) -> Tensor:
        """G at any places."""
        return self._between(self.tables(s)[2], x)

    def cumulative(self, x: Tensor, s: float) -> Tensor:
        """P(x_s <= x)."""
        density = self.tables(s)[0]
        steps = 0.5 * (density[1:] + density[:-1]) * (self.x[1] - self.x[0])
        below = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        return self._between(below, x)

    def _between(self, table: Tensor, x: Tensor) -> Tensor:
        """Linear interpolation on the lattice; the ends go on."""
        step = self.x[1] - self.x[0]
        place = ((x.double() - self.x[0]) / step).clamp(0, self.points - 1)
        low = place.long().clamp(max=self.points - 2)
        part = place - low
        return (1 - part) * table[low] + part * table[low + 1]


@lru_cache(maxsize=4)
def _tables(density: NoisedDensity, s: float) -> tuple[Tensor, Tensor, Tensor]:
    k, step = density._k, float(density.x[1] - density.x[0])
    # Coefficients of exp(i k x): the conjugate of E exp(i k x).
    transform = (density.data(math.exp(-s / 2) * k) * density.noise(k, s)).conj()
    # psi / k, 0 at k = 0: times i, the gradient of V.
    gradient = torch.where(k == 0, 0, density.exponent(k) / torch.where(k == 0, 1, k))
    p, slope, flux = (
        torch.fft.fftshift(torch.fft.irfft(transform * factor, n=density.points)) / step
        for factor in (torch.ones_like(k), 1j * k, 1j * gradient)
    )
    safe = p.clamp(min=_ROUND_OFF * float(p.max()))
    return p, slope / safe, flux / safe
