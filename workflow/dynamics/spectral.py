"""What all SPDEs on periodic grids share: an equation is a symbol, a nonlinear term, a noise.

    du/dt = L u + N(u) + noise,    noise covariance of the pixel vector = N^dim Sigma per unit time

Sigma is a function of the wavenumber. The factor N^dim is the Dirac delta on the grid with
respect to the normalised measure dx dy / (2 pi)^2 (arXiv:2402.01029, grid form).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from workflow.dynamics.grid import Grid
from workflow.dynamics.integrators import SCHEMES
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class Parameters(BaseModel):
    """Checked, frozen parameters; an unknown or impossible one is refused with its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SpectralSPDE(Parameters):
    """An SPDE for one field u on a periodic grid; write `linear`, `nonlinear`, `noise_spectrum`.

    The state is the half-spectrum `u_hat` `(member, *half-spectrum)`.
    """

    grid: int = Field(32, ge=4, le=4096, multiple_of=2, description="points along an axis")
    dim: Literal[1, 2] = Field(2, description="space dimensions")

    fields: ClassVar[Sequence[SavedField]] = (SavedField("u", "field", "1"),)
    homogeneous: ClassVar[bool] = True
    dt: float

    @abstractmethod
    def linear(self, grid: Grid) -> Tensor:
        """Symbol L_k of the linear terms, 1 / time."""

    @abstractmethod
    def nonlinear(self, grid: Grid) -> Callable[[Tensor], Tensor] | None:
        """The map from u_hat to the transform of N(u), or None."""

    @abstractmethod
    def noise_spectrum(self, grid: Grid) -> Tensor:
        """Sigma_k, noise variance per unit time of a mode in units of u^2."""

    @abstractmethod
    def integrator(self) -> str:
        """Name in `integrators.SCHEMES`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Space shape of the field."""
        return (self.grid,) * self.dim

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Normals that one step of one member consumes."""
        return (SCHEMES[self.integrator()][1], *self.shape)

    @property
    def initial_shape(self) -> tuple[int, ...]:
        """Normals that the initial state of one member consumes."""
        return self.shape

    def initial(self, normals: Tensor) -> State:
        """White noise of half the unit amplitude: symmetric, so no well is preferred."""
        return {"u_hat": grid_of(self, normals).fft(0.5 * normals)}

    def step(self, state: State, normals: Tensor) -> State:
        """One step of the scheme that the equation names."""
        grid = grid_of(self, normals)
        drift, amplitude = _drift_and_noise(self, grid)
        scheme, _ = SCHEMES[self.integrator()]
        w = grid.fft(normals)
        return {"u_hat": scheme(drift, state["u_hat"], self.dt, amplitude=amplitude, w=w)}

    def observe(self, state: State) -> Tensor:
        """The field, `(member, 1, *shape)`."""
        return grid_of(self, state["u_hat"].real).ifft(state["u_hat"])[:, None]

    def displace(self, state: State, displacement: Tensor) -> State:
        """State moved by `(member, 1, *shape)`."""
        return {"u_hat": state["u_hat"] + grid_of(self, displacement).fft(displacement[:, 0])}

    def drift(self, x: Tensor) -> Tensor:
        """L u + N(u) of pixels `(batch, 1, *shape)`, u / time."""
        grid = grid_of(self, x)
        drift, _ = _drift_and_noise(self, grid)
        return grid.ifft(drift(grid.fft(x)))

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """N^dim Sigma v of pixels `(batch, 1, *shape)`, the same for all x."""
        grid = grid_of(self, v)
        return grid.ifft(grid.points * self.noise_spectrum(grid) * grid.fft(v))


def grid_of(system: SpectralSPDE, like: Tensor) -> Grid:
    """The grid of a system with symbols of the type and device of `like`."""
    return _grid(system.grid, system.dim, like.dtype, str(like.device))


@lru_cache(maxsize=32)
def _grid(n: int, dim: int, dtype: torch.dtype, device: str) -> Grid:
    return Grid(n, dim, dtype, device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept must serve automatic differentiation too
def _drift_and_noise(system: SpectralSPDE, grid: Grid) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Right-hand side without noise, and the amplitude that colours white normals."""
    symbol = system.linear(grid)
    nonlinear = system.nonlinear(grid)
    amplitude = (grid.points * system.noise_spectrum(grid)).sqrt()
    if nonlinear is None:
        return (lambda u_hat: symbol * u_hat), amplitude
    return (lambda u_hat: symbol * u_hat + nonlinear(u_hat)), amplitude
