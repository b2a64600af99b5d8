"""Two-dimensional Navier-Stokes turbulence forced by waves with hidden random phases.

    dzeta/dt = -J(psi, zeta) - A dzeta/dx + D zeta + forcing,     psi = Lap^-1 zeta
    D = -nu_h Lap^-2 - nu Lap^2 - nu_0 (mean)
    forcing = Re ifft2(a m_k exp(i phi_k)),   d phi_k = 2^(1/2) dW_k

m_k is 1 for k^2 <= 112.5 below Nyquist (349 modes); phi_k and phi_-k are independent. The phases
are part of the state: they are carried through restarts and cloned for paired runs.

Two schemes. `paper` is the published one: advection in skew form on the grid, not dealiased.
`dealiased` keeps modes up to N / 3 in the nonlinear term and in the forcing, where all forms of
the advection are the same, and needs half as many transforms; modes beyond only decay.

Source: arXiv:2402.01029 eq. 11-13; Flierl and Souza 2024, J. Fluid Mech. 986 A8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

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

    The state holds the half-spectrum `zeta_hat` `(member, ky, kx)` and, of the forced modes only,
    `phases` `(member, mode)`, in radians. Derivatives vanish at Nyquist.
    """

    homogeneous: ClassVar[bool] = True

    scheme: Literal["paper", "dealiased"] = Field(
        "paper", description="paper: skew form, as published; dealiased: modes up to N / 3"
    )
    grid: int = Field(32, ge=16, le=1024, multiple_of=2, description="points along an axis")
    dt: float = Field(1 / 128, gt=0, description="time step, model time")
    advection: float = Field(math.pi, description="A, speed of the mean flow in +x, length / time")
    hypofriction: float = Field(1e-2, ge=0, description="nu_h, 1 / (length^4 time)")
    hyperviscosity: float = Field(1e-5, ge=0, description="nu, length^4 / time")
    mean_damping: float = Field(1.0, ge=0, description="damping rate of the mean, 1 / time")
    forcing: float = Field(300.0, ge=0, description="amplitude a at N = 128; scaled by (N/128)^2")
    mean_forcing: float = Field(0.1, ge=0, description="factor on the forcing of the mean")
    save_forcing: bool = Field(
        False, description="save the forcing too, for scores that are conditioned on it"
    )

    @property
    def fields(self) -> Sequence[SavedField]:  # type: ignore[override]
        """The vorticity, and the forcing where it is saved; phases follow a law of their own."""
        vorticity = SavedField("vorticity", "vorticity", "1")
        forcing = SavedField("forcing", "forcing of the vorticity", "1", kicked=False)
        return (vorticity, forcing) if self.save_forcing else (vorticity,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Space shape of the vorticity."""
        return (self.grid, self.grid)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Two half steps of every phase."""
        return (2, int(_forced(self).sum()))

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
        phases = 2 * math.pi * torch.special.ndtr(normals[:, 0, _forced(self)])
        kept = self.symbols(normals.dtype, str(normals.device)).kept
        return {"zeta_hat": kept * torch.fft.rfft2(waves + 0.01 * normals[:, 1]), "phases": phases}

    def step(self, state: State, normals: Tensor) -> State:
        """Runge-Kutta 4; the phases move by half a step before stages 2 and 4."""
        symbols = self.symbols(normals.dtype, str(normals.device))
        start = state["phases"]
        middle = start + self.dt**0.5 * normals[:, 0]
        end = middle + self.dt**0.5 * normals[:, 1]
        first, second, last = (self._forcing(phases, symbols) for phases in (start, middle, end))
        stages = iter([first, second, second, last])

        def tendency(zeta_hat: Tensor) -> Tensor:
            advection = self.advected(zeta_hat)
            return symbols.linear * zeta_hat - advection + next(stages)

        return {"zeta_hat": runge_kutta_4(tendency, state["zeta_hat"], self.dt), "phases": end}

    def advected(self, zeta_hat: Tensor) -> Tensor:
        """Transform of u . grad zeta with u = (-d psi/dy, d psi/dx), as the scheme takes it."""
        symbols = self.symbols(zeta_hat.real.dtype, str(zeta_hat.device))
        if self.scheme == "paper":
            return self._skew_form(zeta_hat, symbols)
        return self._momentum_form(zeta_hat, symbols)

    def _skew_form(self, zeta_hat: Tensor, symbols: Symbols) -> Tensor:
        """(u . grad zeta + div (u zeta)) / 2, which conserves enstrophy on the grid."""
        psi_hat = symbols.inverse * zeta_hat
        spectra = [-symbols.d_dy * psi_hat, symbols.d_dx * psi_hat]
        spectra += [zeta_hat, symbols.d_dx * zeta_hat, symbols.d_dy * zeta_hat]
        u, v, zeta, zeta_x, zeta_y = torch.fft.irfft2(torch.stack(spectra), s=self.shape)
        change, flux_x, flux_y = torch.fft.rfft2(
            torch.stack([u * zeta_x + v * zeta_y, u * zeta, v * zeta])
        )
        return 0.5 * (change + symbols.d_dx * flux_x + symbols.d_dy * flux_y)

    def _momentum_form(self, zeta_hat: Tensor, symbols: Symbols) -> Tensor:
        """(d_xx - d_yy) uv - d_xy (u^2 - v^2), the curl of the divergence of the momentum flux.

        Of the kept modes; two transforms each way (Basdevant 1983).
        """
        psi_hat = symbols.kept * symbols.inverse * zeta_hat
        spectra = torch.stack([-symbols.d_dy * psi_hat, symbols.d_dx * psi_hat])
        u, v = torch.fft.irfft2(spectra, s=self.shape)
        square, product = torch.fft.rfft2(torch.stack([u**2 - v**2, u * v]))
        d_dx, d_dy = symbols.d_dx, symbols.d_dy
        return symbols.kept * ((d_dx**2 - d_dy**2) * product - d_dx * d_dy * square)

    def observe(self, state: State) -> Tensor:
        """Vorticity, and the forcing where it is saved, `(member, field, y, x)`."""
        modes = [state["zeta_hat"]]
        if self.save_forcing:
            phases = state["phases"]
            modes.append(self._forcing(phases, self.symbols(phases.dtype, str(phases.device))))
        return torch.fft.irfft2(torch.stack(modes, dim=1), s=self.shape)

    def displace(self, state: State, displacement: Tensor) -> State:
        """Vorticity moved by that of `(member, field, y, x)`, phases unchanged."""
        return {**state, "zeta_hat": state["zeta_hat"] + torch.fft.rfft2(displacement[:, 0])}

    def _forcing(self, phases: Tensor, symbols: Symbols) -> Tensor:
        """Transform of Re ifft2(waves): (c_k + conj c_-k) / 2 of the waves c."""
        waves = torch.polar(torch.full_like(phases, self.amplitude), phases)
        half = 0.5 * (waves[:, symbols.phase] + waves[:, symbols.opposite].conj())
        forcing = half.new_zeros(len(phases), symbols.linear.numel())
        forcing[:, symbols.mode] = half
        forcing[:, 0] *= self.mean_forcing
        return forcing.unflatten(1, symbols.linear.shape)

    @property
    def amplitude(self) -> float:
        """Amplitude of every forced wave on this grid."""
        return self.forcing * (self.grid / 128) ** 2

    @property
    def truncation(self) -> int:
        """Largest wavenumber of the nonlinear term along an axis: quadratic terms do not fold."""
        return (self.grid - 1) // 3 if self.scheme == "dealiased" else self.grid // 2

    def symbols(self, dtype: torch.dtype, device: str = "cpu") -> Symbols:
        """What the equation is made of, as arrays over the half-spectrum."""
        return _symbols(self, dtype, device)


@dataclass(frozen=True)
class Symbols:
    """Arrays over the half-spectrum `(ky, kx)`, and the forced modes in it.

    Attributes:
        linear: symbol of the linear terms, 1 / time.
        inverse: symbol of the inverse Laplacian; 0 for the mean.
        d_dx, d_dy: symbols of the derivatives, 0 at Nyquist.
        kept: 1 for modes of the nonlinear term and of the forcing, else 0.
        mode: forced modes, as flat indices of the half-spectrum.
        phase, opposite: which phase drives mode k of `mode`, and which -k.
    """

    linear: Tensor
    inverse: Tensor
    d_dx: Tensor
    d_dy: Tensor
    kept: Tensor
    mode: Tensor
    phase: Tensor
    opposite: Tensor


@lru_cache(maxsize=8)
def _forced(system: NavierStokes) -> Tensor:
    """Which modes of the full spectrum `(ky, kx)` are forced."""
    k = torch.fft.fftfreq(system.grid, 1 / system.grid)
    inside = (k.abs() <= system.truncation) & (k.abs() < system.grid / 2)
    return (k[:, None] ** 2 + k[None, :] ** 2 <= FORCED_K2) & inside[:, None] & inside[None, :]


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _symbols(system: NavierStokes, dtype: torch.dtype, device: str) -> Symbols:
    n = system.grid
    grid = Grid(n, 2, dtype, device)
    d_dx, d_dy = grid.derivative(-1), grid.derivative(-2)
    # Nyquist wavenumbers are zero in every operator, as published.
    k2 = -(d_dx**2 + d_dy**2).real
    moving = k2 > 0
    inverse = torch.where(moving, -1 / k2.where(moving, torch.ones_like(k2)), torch.zeros_like(k2))
    damping = system.hypofriction * inverse**2 + system.hyperviscosity * k2**2
    damping[0, 0] += system.mean_damping
    kx, ky = (k.abs() <= system.truncation for k in reversed(grid.wavenumbers))
    forced = _forced(system).to(device)
    number = torch.full((n, n), -1, device=device)
    number[forced] = torch.arange(int(forced.sum()), device=device)
    y, x = forced[:, : n // 2 + 1].nonzero(as_tuple=True)
    return Symbols(
        linear=-damping - system.advection * d_dx,
        inverse=inverse,
        d_dx=d_dx,
        d_dy=d_dy,
        kept=(kx & ky).to(dtype),
        mode=y * (n // 2 + 1) + x,
        phase=number[y, x],
        opposite=number[-y % n, -x % n],
    )
