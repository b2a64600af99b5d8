"""The Ornstein-Uhlenbeck SPDE: linear, Gaussian, everything known exactly.

    du/dt = -lambda Sigma u + kappa Lap u - A du/dx + epsilon Sigma^(1/2) xi,  Sigma = (1 - Lap)^-1

Source: arXiv:2402.01029 eq. 6 and 8, with the sign of the advection that its Figure 1 shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from workflow.dynamics.grid import Grid
from workflow.dynamics.spectral import SpectralSPDE, grid_of
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class OrnsteinUhlenbeck(SpectralSPDE):
    """A field whose modes relax at their own rates while they are carried in +x.

    Rate r_k = lambda / (1 + k^2) + kappa k^2 + i A k_x, covariance of the pixels
    C_k = N^dim epsilon^2 / (2 (lambda + kappa k^2 (1 + k^2))), response exp(-r_k t).
    """

    fields: ClassVar[Sequence[SavedField]] = (
        SavedField("u", "field of the Ornstein-Uhlenbeck SPDE", "1"),
    )

    dt: float = Field(1.0, gt=0, description="time step, model time; any for scheme exact")
    scheme: Literal["exact", "paper"] = Field(
        "exact", description="exact: transition in Fourier space; paper: Runge-Kutta, noise last"
    )
    relaxation: float = Field(4e-2, gt=0, description="lambda, 1 / time")
    kappa: float = Field(2.5e-4, ge=0, description="diffusivity, (2 pi box)^2 / time")
    advection: float = Field(2e-2, description="A, speed in +x, length / time")
    epsilon: float = Field(2 * 10**-1.5, gt=0, description="noise amplitude, u / time^(1/2)")

    def linear(self, grid: Grid) -> Tensor:
        """-r_k."""
        damping = self.relaxation / (1 + grid.k2) + self.kappa * grid.k2
        return -damping - self.advection * grid.derivative(-1)

    def nonlinear(self, grid: Grid) -> None:
        """There is none."""
        return

    def noise_spectrum(self, grid: Grid) -> Tensor:
        """epsilon^2 / (1 + k^2)."""
        return self.epsilon**2 / (1 + grid.k2)

    def integrator(self) -> str:
        """One set of normals a step, for both schemes."""
        return "noise_last"

    def initial(self, normals: Tensor) -> State:
        """A draw of the stationary state itself; no spin-up is needed."""
        grid = grid_of(self, normals)
        return {"u_hat": self.variance(grid).sqrt() * grid.fft(normals)}

    def step(self, state: State, normals: Tensor) -> State:
        """The exact transition over any `dt`, or the published scheme."""
        if self.scheme == "paper":
            return super().step(state, normals)
        grid = grid_of(self, normals)
        decay, spread = self.transition(grid)
        return {"u_hat": decay * state["u_hat"] + spread * grid.fft(normals[:, 0])}

    def transition(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Factors of a mode over `dt`: on itself, and on the transform of white normals."""
        decay = (self.linear(grid) * self.dt).exp()
        return decay, (self.variance(grid) * (1 - decay.abs() ** 2)).sqrt()

    def variance(self, grid: Grid) -> Tensor:
        """C_k, eigenvalues of the stationary covariance of the pixels, u^2."""
        k2 = grid.k2
        return grid.points * self.epsilon**2 / (2 * (self.relaxation + self.kappa * k2 * (1 + k2)))

    def exact_score(self, x: Tensor) -> Tensor:
        """-C^-1 x of pixels `(batch, 1, *shape)`, 1 / u."""
        grid = grid_of(self, x)
        return -grid.ifft(grid.fft(x) / self.variance(grid))

    def exact_response(self, lag: Tensor) -> Tensor:
        """R(lag, r) = inverse transform of exp(-r_k lag), `(lag, *shape)`."""
        grid = grid_of(self, lag)
        decay = lag.reshape(-1, *[1] * self.dim) * self.linear(grid)
        return grid.ifft(decay.exp())
