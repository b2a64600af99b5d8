"""What a network sees beside the field itself: views that no small stencil can make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workflow.scores.closed_form import Gaussian, SpectralGaussian


class Velocity(nn.Module):
    """The flow whose vorticity a field is, on a periodic plane of square pixels.

        u = (-d psi / dy, d psi / dx),    psi = Lap^-1 zeta

    in units of its own spread. It is what carries the field, and depends on all of it.

    Args:
        whitening: of the fields, which has their spectra.
    """

    symbol: Tensor
    gradient: Tensor
    deviation: Tensor

    def __init__(self, whitening: SpectralGaussian) -> None:
        super().__init__()
        ky, kx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in whitening.shape)
        for k, n in zip((ky, kx), whitening.shape, strict=True):
            k[n // 2 :: n] *= n % 2  # a derivative has no Nyquist wavenumber
        kx = kx[: whitening.shape[1] // 2 + 1]
        square = ky[:, None] ** 2 + kx**2
        inverse = torch.where(square > 0, 1 / square.where(square > 0, torch.ones(())), 0.0)
        symbol = torch.stack([1j * ky[:, None] * inverse, -1j * kx * inverse])
        slope = 2j * math.pi * torch.stack([kx.expand_as(square), ky[:, None].expand_as(square)])
        spread = []
        for field in range(len(whitening.mean)):
            power = whitening.spectrum[field, field].real.cpu() * symbol.abs().square()
            spread.append(torch.fft.irfft2(power, s=whitening.shape)[:, 0, 0].sqrt())
        each = torch.stack(spread)[..., None, None]
        self.register_buffer("symbol", (symbol / each).to(torch.complex64), persistent=False)
        # Components have spreads of their own; those of a product must have one.
        whole = each.square().mean(1, keepdim=True).sqrt()
        gradient = (slope * each / whole).to(torch.complex64)
        self.register_buffer("gradient", gradient, persistent=False)
        deviation = whitening.pixel_variance.cpu().sqrt()[:, None, None].float()
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, field, y, x)` less its mean -> `(batch, 2 * field, y, x)`."""
        return self._filtered(x, self.symbol).flatten(1, 2)

    def advection(self, x: Tensor) -> Tensor:
        """How the flow moves a field less its mean, `(batch, 3 * field, y, x)`.

        Lengths in pixels, velocities in units of their spread, fields in standard deviations.

            a = A(x, x),    b = A(x, a) + A(a, x),    c = A(x, b) + 2 A(a, a) + A(b, x)
            A(x, y) = curl^-1(x) . grad y

        What moves by its own flow, dx/dt = -a, is x - t a + t^2 b / 2 - t^3 c / 6 + ... after a
        time t. Wave k of a is made of pairs of other waves: d a_k / d x_k = 0.
        """
        carry = self._carry
        a = carry(x, x)
        b = carry(x, a) + carry(a, x)
        c = carry(x, b) + 2 * carry(a, a) + carry(b, x)
        return torch.cat([term / self.deviation.to(x.dtype) for term in (a, b, c)], dim=1)

    def _carry(self, x: Tensor, y: Tensor) -> Tensor:
        return (self._filtered(x, self.symbol) * self._filtered(y, self.gradient)).sum(2)

    @staticmethod
    def _filtered(x: Tensor, symbols: Tensor) -> Tensor:
        """`(batch, field, 2, y, x)`."""
        modes = torch.fft.rfft2(x)[:, :, None] * symbols.to(x.dtype.to_complex())
        return torch.fft.irfft2(modes, s=x.shape[2:])


TERMS = 3
"""Fields of `Velocity.advection` for each field."""

VIEWS = {"velocity": Velocity}
"""By name in `score.network.views`."""


def views_of(gaussian: Gaussian, names: Sequence[str]) -> nn.ModuleList:
    """The views of these names, each once, of homogeneous data on a plane."""
    views = nn.ModuleList()
    for name in dict.fromkeys(names):
        assert isinstance(gaussian, SpectralGaussian)
        views.append(VIEWS[name](gaussian))
    return views
