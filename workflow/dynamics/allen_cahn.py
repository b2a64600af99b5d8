"""The modified stochastic Allen-Cahn equation: bistable, far from Gaussian, exact score known.

    du/dt = kappa Lap u - A du/dx + alpha Sigma [u (1 - u^2)] + epsilon Sigma^(1/2) xi

with Sigma = (1 - Lap)^-1. Its stationary density is exp(-V) with, over the pixel mean < >,

    V = < alpha / (2 eps^2) (1 - u^2)^2 + kappa / eps^2 (|grad u|^2 + (Lap u)^2) >

Source: arXiv:2402.01029 eq. 9 and 10.

Two schemes. `paper` is the published discretisation: the cubic is collocated, so the advection
does not quite conserve exp(-V), and the noise follows a Runge-Kutta step of 1/32, so the large
scales are too warm. `exact` truncates the reaction below Nyquist and takes the cube on a doubled
grid, in the drift and in the score alike; then advection conserves V to rounding, and half the
noise is put on either side of the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from workflow.dynamics.grid import Grid, padded
from workflow.dynamics.spectral import SpectralSPDE, grid_of
from workflow.interfaces import Field as SavedField

DEFAULT_DT = {"exact": 1 / 128, "paper": 1 / 32}


class AllenCahn(SpectralSPDE):
    """A field that sits near +1 or -1, is carried in +x, and flips between its wells."""

    fields: ClassVar[Sequence[SavedField]] = (
        SavedField("u", "order parameter of the Allen-Cahn equation", "1"),
    )

    scheme: Literal["exact", "paper"] = Field(
        "exact", description="exact: padded cubic, noise on both sides; paper: as published"
    )
    dt: float = Field(gt=0, description="time step; default 1/128 (exact) or 1/32 (paper)")
    alpha: float = Field(16.0, gt=0, description="reaction rate, 1 / time")
    kappa: float = Field(2.5e-4, ge=0, description="diffusivity, (2 pi box)^2 / time")
    advection: float = Field(2e-2, description="A, speed in +x, length / time")
    epsilon: float = Field(2 * 10**-1.5, gt=0, description="noise amplitude, u / time^(1/2)")

    @model_validator(mode="before")
    @classmethod
    def _dt_of_scheme(cls, values: Any) -> Any:
        if isinstance(values, dict) and "dt" not in values:
            return {**values, "dt": DEFAULT_DT.get(values.get("scheme", "exact"), 1 / 128)}
        return values

    def linear(self, grid: Grid) -> Tensor:
        """kappa Lap - A d/dx."""
        return -self.kappa * grid.k2 - self.advection * grid.derivative(-1)

    def nonlinear(self, grid: Grid) -> Callable[[Tensor], Tensor]:
        """alpha Sigma [u (1 - u^2)].

        The growing part stays inside: as a symbol it would amplify the part of the half-spectrum
        that no real field has, which rounding creates.
        """
        factor = self.reaction_rate(grid)
        return lambda u_hat: factor * self._reaction(u_hat, grid)

    def reaction_rate(self, grid: Grid) -> Tensor:
        """alpha Sigma, what multiplies the transform of u - u^3, 1 / time."""
        return self.alpha / (1 + grid.k2)

    def noise_spectrum(self, grid: Grid) -> Tensor:
        """epsilon^2 / (1 + k^2)."""
        return self.epsilon**2 / (1 + grid.k2)

    def integrator(self) -> str:
        """Noise on both sides for `exact`, after the flow for `paper`."""
        return "strang" if self.scheme == "exact" else "noise_last"

    def exact_score(self, x: Tensor) -> Tensor:
        """-grad V of pixels `(batch, 1, *shape)`, 1 / u.

            s = 2 / (N^dim eps^2) (alpha P [u - (P u)^3] + kappa (Lap - Lap^2) u)

        P drops Nyquist for scheme `exact` and is the identity for `paper`.
        """
        grid = grid_of(self, x)
        u_hat = grid.fft(x)
        reaction = self.alpha * self._reaction(u_hat, grid)
        gradient = self.kappa * grid.k2 * (1 + grid.k2) * u_hat
        return grid.ifft(reaction - gradient) * (2 / (grid.points * self.epsilon**2))

    def potential(self, x: Tensor) -> Tensor:
        """V per sample `(batch,)`, of which `exact_score` is minus the gradient."""
        grid = grid_of(self, x)
        u_hat = grid.fft(x)
        axes = tuple(range(1, x.ndim))
        bending = grid.ifft((grid.k2 * (1 + grid.k2)).sqrt() * u_hat).square().mean(axes)
        u = self._fine(u_hat, grid)
        wells = (0.5 * self.alpha) * (1 - u.square()).square().mean(axes)
        return (wells + self.kappa * bending) / self.epsilon**2

    def _reaction(self, u_hat: Tensor, grid: Grid) -> Tensor:
        """Transform of u - u^3."""
        if self.scheme == "exact":
            return padded(_double_well, u_hat, grid)
        return grid.fft(_double_well(grid.ifft(u_hat)))

    def _fine(self, u_hat: Tensor, grid: Grid) -> Tensor:
        """The field on the grid where the quartic of V is averaged."""
        if self.scheme == "paper":
            return grid.ifft(u_hat)
        full = torch.fft.fftn(grid.ifft(u_hat * grid.below_nyquist), dim=tuple(range(-self.dim, 0)))
        for axis in range(-self.dim, 0):
            low, high = full.split([grid.n // 2, grid.n // 2], dim=axis)
            gap = torch.zeros_like(full)
            full = torch.cat([low, gap, high], dim=axis)
        fine = torch.fft.ifftn(full, dim=tuple(range(-self.dim, 0))).real
        return fine * 2**self.dim


def _double_well(u: Tensor) -> Tensor:
    return u - u**3
