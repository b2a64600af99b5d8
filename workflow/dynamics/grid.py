"""Periodic grids on [0, 2 pi)^dim and their wavenumbers in the half-spectrum of a real FFT.

Fields are `(..., *shape)` with x last; their transforms `u_hat = rfftn(u)` are unnormalised, so
`E |u_hat_k|^2 = N^dim C_k` with C_k the eigenvalue of the covariance matrix of the pixels.
What is kept is made outside of inference mode, so that it serves automatic differentiation too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A periodic grid of `n` points along each of `dim` axes of length 2 pi.

    Attributes:
        n: points along an axis.
        dim: number of space axes, 1 (x) or 2 (y, x).
        dtype: real type of the symbols.
        device: where the symbols live.
    """

    n: int
    dim: int = 2
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a field."""
        return (self.n,) * self.dim

    @property
    def points(self) -> int:
        """Number of pixels N^dim."""
        return self.n**self.dim

    @cached_property
    @torch.inference_mode(False)
    def wavenumbers(self) -> tuple[Tensor, ...]:
        """Integer wavenumbers per axis, broadcastable to the half-spectrum; Nyquist is N/2."""
        full = torch.fft.fftfreq(self.n, 1 / self.n, dtype=self.dtype, device=self.device).abs()
        sign = torch.fft.fftfreq(self.n, 1 / self.n, dtype=self.dtype, device=self.device).sign()
        half = torch.fft.rfftfreq(self.n, 1 / self.n, dtype=self.dtype, device=self.device)
        if self.dim == 1:
            return (half,)
        return ((full * sign)[:, None], half[None, :])

    @cached_property
    @torch.inference_mode(False)
    def k2(self) -> Tensor:
        """|k|^2, the true one at Nyquist too: minus the symbol of the Laplacian."""
        return sum((k**2 for k in self.wavenumbers), torch.zeros((), dtype=self.dtype))

    def derivative(self, axis: int) -> Tensor:
        """Symbol i k of the derivative along `axis` (-1 is x).

        It is zero at Nyquist, where the derivative of a real field is not representable.
        """
        k = self.wavenumbers[axis]
        return 1j * torch.where(k.abs() == self.n / 2, torch.zeros_like(k), k)

    @cached_property
    @torch.inference_mode(False)
    def below_nyquist(self) -> Tensor:
        """1 where every wavenumber is below Nyquist, else 0."""
        keep = torch.ones((), dtype=torch.bool, device=self.device)
        for k in self.wavenumbers:
            keep = keep & (k.abs() < self.n / 2)
        return keep.to(self.dtype)

    def fft(self, u: Tensor) -> Tensor:
        """Half-spectrum of real fields `(..., *shape)`."""
        return torch.fft.rfftn(u, dim=tuple(range(-self.dim, 0)))

    def ifft(self, u_hat: Tensor) -> Tensor:
        """Real fields of a half-spectrum."""
        return torch.fft.irfftn(u_hat, s=self.shape, dim=tuple(range(-self.dim, 0)))


def padded(function: Callable[[Tensor], Tensor], u_hat: Tensor, grid: Grid) -> Tensor:
    """Transform of P f(P u) without aliasing; P drops the Nyquist row and column.

    f is taken on a grid of 2 N points, which holds every product of three modes below N/2 that
    falls back below N/2 (Orszag 1971), so a cubic polynomial is exact. Rows that are zero are
    not transformed.

    Args:
        function: pointwise f, a polynomial of degree 3 at most.
        u_hat: half-spectrum `(..., ky, kx)` or `(..., kx)`.
        grid: grid of `u_hat`.

    Returns:
        Half-spectrum of the same shape, zero at Nyquist.
    """
    n, half, fine = grid.n, grid.n // 2, 2 * grid.n
    if grid.dim == 1:
        u = torch.fft.irfft(u_hat[..., :half], n=fine) * 2
        f_hat = torch.fft.rfft(function(u))[..., :half] / 2
        return torch.nn.functional.pad(f_hat, (0, 1))
    rows = u_hat.new_zeros((*u_hat.shape[:-2], fine, half))
    rows[..., :half, :] = u_hat[..., :half, :half]
    rows[..., fine - half + 1 :, :] = u_hat[..., n - half + 1 :, :half]
    u = torch.fft.irfft(torch.fft.ifft(rows, dim=-2), n=fine) * 4
    f_rows = torch.fft.fft(torch.fft.rfft(function(u))[..., :half], dim=-2) / 4
    f_hat = torch.zeros_like(u_hat)
    f_hat[..., :half, :half] = f_rows[..., :half, :]
    f_hat[..., n - half + 1 :, :half] = f_rows[..., fine - half + 1 :, :]
    return f_hat
