"""Two-dimensional Navier-Stokes turbulence forced by waves with hidden random phases.

    dzeta/dt = -J(psi, zeta) - A dzeta/dx + D zeta + forcing,     psi = Lap^-1 zeta
    D = -nu_h Lap^-2 - nu Lap^2 - nu_0 (mean)
    forcing = Re ifft2(a m_k exp(i phi_k)),   d phi_k = 2^(1/2) dW_k

m_k is 1 for k^2 <= 112.5 below Nyquist (349 modes); phi_k and phi_-k are independent. The phases
are part of the state: they are carried through restarts and cloned for paired runs.

Source: arXiv:2402.01029 eq. 11-13; Flierl and Souza 2024, J. Fluid Mech. 986 A8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from workflow.dynamics.grid import Grid
from workflow.dynamics.integrators import runge_kutta_4
from workflow.dynamics.spectral import Parameters
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State

FORCED_K2 = 2 * 7.5**2
"""Largest forced wavenumber squared, whatever the grid."""


class NavierStokes(Parameters):
    """Vorticity stirred at all scales above a few pixels and carried in +x.

    The state holds `vorticity` `(member, y, x)` and `phases` `(member, ky, kx)`, in radians.
    Advection is in skew form, -(u . grad zeta + div (u zeta)) / 2, which conserves enstrophy on
    the grid; derivatives vanish at Nyquist.
    """

    fields: ClassVar[Sequence[SavedField]] = (SavedField("vorticity", "vorticity", "1"),)
    homogeneous: ClassVar[bool] = True

    grid: int = Field(32, ge=16, le=1024, multiple_of=2, description="points along an axis")
    dt: float = Field(1 / 128, gt=0, description="time step, model time")
    advection: float = Field(math.pi, description="A, speed of the mean flow in +x, length / time")
    hypofriction: float = Field(1e-2, ge=0, description="nu_h, 1 / (length^4 time)")
    hyperviscosity: float = Field(1e-5, ge=0, description="nu, length^4 / time")
    mean_damping: float = Field(1.0, ge=0, description="damping rate of the mean, 1 / time")
    forcing: float = Field(300.0, ge=0, description="amplitude a at N = 128; scaled by (N/128)^2")
    mean_forcing: float = Field(0.1, ge=0, description="factor on the forcing of the mean")

    @property
    def shape(self) -> tuple[int, ...]:
        """Space shape of the vorticity."""
        return (self.grid, self.grid)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Two half steps of every phase."""
        return (2, *self.shape)

    @property
    def initial_shape(self) -> tuple[int, ...]:
        """Phases, and a disturbance that makes members differ from the start."""
        return (2, *self.shape)

    def initial(self, normals: Tensor) -> State:
        """sin 3x sin 3y with one percent of white noise; phases uniform on the circle."""
        x = torch.arange(self.grid, dtype=normals.dtype, device=normals.device) * (
            2 * math.pi / self.grid
        )
        waves = (3 * x).sin()[:, None] * (3 * x).sin()[None, :]
        phases = 2 * math.pi * torch.special.ndtr(normals[:, 0])
        return {"vorticity": waves + 0.01 * normals[:, 1], "phases": phases}

    def step(self, state: State, normals: Tensor) -> State:
        """Runge-Kutta 4; the phases move by half a step before stages 2 and 4."""
        symbols = _symbols(self, normals.dtype, str(normals.device))
        start = state["phases"]
        middle = start + self.dt**0.5 * normals[:, 0]
        end = middle + self.dt**0.5 * normals[:, 1]
        forcing = iter([self._forcing(phase, symbols) for phase in (start, middle, end)])
        first, second, last = forcing
        stages = iter([first, second, second, last])
        vorticity = runge_kutta_4(
            lambda zeta: self.tendency(zeta) + next(stages), state["vorticity"], self.dt
        )
        return {"vorticity": vorticity, "phases": end}

    def tendency(self, vorticity: Tensor) -> Tensor:
        """All terms but the forcing, `(member, y, x)`, vorticity / time."""
        symbols = _symbols(self, vorticity.dtype, str(vorticity.device))
        zeta_hat = torch.fft.rfft2(vorticity)
        return torch.fft.irfft2(symbols.linear * zeta_hat, s=self.shape) - self.skew_advection(
            vorticity
        )

    def skew_advection(self, vorticity: Tensor) -> Tensor:
        """(u . grad zeta + div (u zeta)) / 2 with u = (-d psi/dy, d psi/dx)."""
        symbols = _symbols(self, vorticity.dtype, str(vorticity.device))
        zeta_hat = torch.fft.rfft2(vorticity)
        spectra = torch.stack(
            [symbols.to_u * zeta_hat, symbols.to_v * zeta_hat]
            + [symbols.d_dx * zeta_hat, symbols.d_dy * zeta_hat]
        )
        u, v, zeta_x, zeta_y = torch.fft.irfft2(spectra, s=self.shape)
        fluxes = torch.fft.rfft2(torch.stack([u * vorticity, v * vorticity]))
        divergence = torch.fft.irfft2(
            symbols.d_dx * fluxes[0] + symbols.d_dy * fluxes[1], s=self.shape
        )
        return 0.5 * (u * zeta_x + v * zeta_y + divergence)

    def observe(self, state: State) -> Tensor:
        """Vorticity `(member, 1, y, x)`; the phases stay hidden."""
        return state["vorticity"][:, None]

    def displace(self, state: State, displacement: Tensor) -> State:
        """Vorticity moved by `(member, 1, y, x)`, phases unchanged."""
        return {**state, "vorticity": state["vorticity"] + displacement[:, 0]}

    def _forcing(self, phases: Tensor, symbols: _Symbols) -> Tensor:
        waves = torch.polar(symbols.forced.expand_as(phases), phases)
        curl = torch.fft.ifft2(waves).real
        return curl - (1 - self.mean_forcing) * curl.mean((-2, -1), keepdim=True)


@dataclass(frozen=True)
class _Symbols:
    """Arrays over wavenumbers: `forced` over the full spectrum, the others over half of it."""

    linear: Tensor
    d_dx: Tensor
    d_dy: Tensor
    to_u: Tensor
    to_v: Tensor
    forced: Tensor


@lru_cache(maxsize=8)
def _symbols(system: NavierStokes, dtype: torch.dtype, device: str) -> _Symbols:
    grid = Grid(system.grid, 2, dtype, device)
    d_dx, d_dy = grid.derivative(-1), grid.derivative(-2)
    # Nyquist wavenumbers are zero in every operator, as published.
    k2 = -(d_dx**2 + d_dy**2).real
    moving = k2 > 0
    inverse = torch.where(moving, -1 / k2.where(moving, torch.ones_like(k2)), torch.zeros_like(k2))
    damping = system.hypofriction * inverse**2 + system.hyperviscosity * k2**2
    damping[0, 0] += system.mean_damping
    full = torch.fft.fftfreq(system.grid, 1 / system.grid, dtype=dtype, device=device)
    waves = full[:, None] ** 2 + full[None, :] ** 2
    inside = (full.abs() < system.grid / 2).to(dtype)
    mask = (waves <= FORCED_K2).to(dtype) * inside[:, None] * inside[None, :]
    return _Symbols(
        linear=-damping - system.advection * d_dx,
        d_dx=d_dx,
        d_dy=d_dy,
        to_u=-d_dy * inverse,
        to_v=d_dx * inverse,
        forced=system.forcing * (system.grid / 128) ** 2 * mask,
    )
