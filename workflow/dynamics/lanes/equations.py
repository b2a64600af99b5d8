"""Which systems have kernels, and the symbols that each hands to its kernel.

The system itself is the definition; what stands here is its arrays in the order of the kernels:
column by column of the half-spectrum, ky fastest.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.grid import Grid
from workflow.dynamics.lanes.library import Library, unpack
from workflow.dynamics.navier_stokes import NavierStokes
from workflow.dynamics.noise import check_steps
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.dynamics.spectral import SpectralSPDE
from workflow.interfaces import State, System

_SCHEMES = {"strang": 0, "noise_last": 1, "transition": 2}
"""Numbers of `Scheme` in spde.h."""


@dataclass(frozen=True)
class Kernel:
    """A kernel and what it is made with.

    Attributes:
        name: of the functions in lanes.h.
        spectrum: name of the half-spectrum in the state.
        hidden: names of the other arrays in the state, each `(member, number)`.
        arguments: of `<name>_new`.
    """

    name: str
    spectrum: str
    hidden: tuple[str, ...]
    arguments: tuple


def _columns(symbol: Tensor, grid: Grid, real: np.dtype) -> np.ndarray:
    """A symbol over the half-spectrum `(ky, kx)` or `(kx,)`, column by column."""
    half = (*grid.shape[:-1], grid.n // 2 + 1)
    parts = torch.view_as_real(symbol) if symbol.is_complex() else symbol[..., None]
    full = parts.expand(*half, -1).numpy()
    return np.ascontiguousarray(full if grid.dim == 1 else full.swapaxes(0, 1), dtype=real)


def _spde(system: SpectralSPDE, real: np.dtype) -> Kernel:
    """Additive noise, and the bistable term of Allen-Cahn where there is one."""
    grid = Grid(system.grid, system.dim)
    scheme, linear = system.integrator(), system.linear(grid)
    parts = 2 if scheme == "strang" else 1
    noise = (grid.points * system.noise_spectrum(grid) * (system.dt / parts)).sqrt()
    reaction, refine = None, 1
    if isinstance(system, AllenCahn):
        reaction = _columns(system.reaction_rate(grid), grid, real)
        refine = 2 if system.scheme == "exact" else 1
    if isinstance(system, OrnsteinUhlenbeck) and system.scheme == "exact":
        scheme = "transition"
        linear, noise = system.transition(grid)
    ny = grid.n if grid.dim == 2 else 1
    symbols = (_columns(linear, grid, real), _columns(noise, grid, real), reaction)
    arguments = (grid.n, ny, system.dt, _SCHEMES[scheme], refine, *symbols)
    return Kernel("spde", "u_hat", (), arguments)


def _navier_stokes(system: NavierStokes, real: np.dtype) -> Kernel:
    symbols, grid, n = system.symbols(torch.float64), Grid(system.grid), system.grid
    linear, inverse = (_columns(s, grid, real) for s in (symbols.linear, symbols.inverse))
    dx, dy = (s.imag.flatten().numpy().astype(real) for s in (symbols.d_dx, symbols.d_dy))
    ky, kx = symbols.mode // (n // 2 + 1), symbols.mode % (n // 2 + 1)
    forced = torch.stack([kx * n + ky, symbols.phase, symbols.opposite], dim=1)
    forced = forced[forced[:, 0].argsort()].to(torch.int32)
    truncation = system.truncation if system.scheme == "dealiased" else 0
    arguments = (n, system.dt, truncation, linear, inverse, dx, dy, system.noise_shape[1])
    amplitudes = (system.amplitude, system.mean_forcing)
    return Kernel(
        "navier_stokes",
        "zeta_hat",
        ("phases",),
        (*arguments, len(forced), np.ascontiguousarray(forced.numpy()), *amplitudes),
    )


KERNELS: dict[type, Callable[..., Kernel]] = {
    OrnsteinUhlenbeck: _spde,
    AllenCahn: _spde,
    NavierStokes: _navier_stokes,
}


def refusal(system: System) -> str | None:
    """Why this system has no kernel, in words that follow its name; None where it has one."""
    if type(system) not in KERNELS:
        return "is not one of " + ", ".join(kind.__name__ for kind in KERNELS)
    left = n = system.shape[-1]
    for factor in (2, 3, 5):
        while left % factor == 0:
            left //= factor
    if left > 1 or n % 4:
        return f"has a grid of {n}, which is not a multiple of 4 with factors 2, 3 and 5 only"
    return None


class LaneStepper:
    """A group of members on its way, in the lanes; an `interfaces.Stepper`."""

    def __init__(
        self,
        kernels: Library,
        system: System,
        state: State,
        *,
        seed: int,
        members: Sequence[int],
        stream: int,
    ) -> None:
        self._kernels, self._system = kernels, system
        self._seed, self._stream, self._count = seed, stream, len(members)
        hat = next(value for value in state.values() if value.is_complex())
        self._real = np.dtype(np.float32 if hat.dtype == torch.complex64 else np.float64)
        self._members = kernels.pack_members(members, self._real)
        self._kernel = kernel = KERNELS[type(system)](system, self._real)
        parts = torch.view_as_real(state[kernel.spectrum]).numpy()
        spectrum = parts[:, None] if parts.ndim == 3 else parts
        self._arrays = [kernels.pack(spectrum.swapaxes(1, 2))]
        self._arrays += [kernels.pack(state[name].numpy()) for name in kernel.hidden]
        self._handle = kernels.call(f"{kernel.name}_new", self._real, *kernel.arguments)
        # The finalizer keeps the library, not the stepper.
        weakref.finalize(self, kernels.call, f"{kernel.name}_free", self._real, self._handle)

    def advance(self, first: int, steps: int) -> None:
        """Take the steps numbered `first`, ..., `first + steps - 1`."""
        check_steps(first + steps)
        for block, members in enumerate(self._members):
            arrays = [array[block] for array in self._arrays]
            name = (self._seed, self._stream, members, first, steps)
            self._kernels.call(
                f"{self._kernel.name}_advance", self._real, self._handle, *arrays, *name
            )

    def observe(self) -> Tensor:
        """The saved fields `(member, field, *shape)`."""
        if len(self._system.fields) > 1:
            # The kernels transform the one field that moves; what goes with it is the system's.
            with torch.no_grad():
                return self._system.observe(self.state())
        shape = self._system.shape
        lanes = self._kernels.lanes(self._real)
        fields = self._kernels.empty((len(self._members), math.prod(shape), lanes), self._real)
        for block, field in enumerate(fields):
            u = self._arrays[0][block]
            self._kernels.call(f"{self._kernel.name}_observe", self._real, self._handle, u, field)
        found = np.ascontiguousarray(unpack(fields, self._count))
        return torch.from_numpy(found).reshape(self._count, 1, *shape)

    def state(self) -> State:
        """The state, as the system knows it."""
        spectrum = unpack(self._arrays[0], self._count).swapaxes(1, 2)
        flat = spectrum[:, 0] if len(self._system.shape) == 1 else spectrum
        hat = torch.view_as_complex(torch.from_numpy(np.ascontiguousarray(flat)))
        others = (np.ascontiguousarray(unpack(a, self._count)) for a in self._arrays[1:])
        named = zip(self._kernel.hidden, map(torch.from_numpy, others), strict=True)
        return {self._kernel.spectrum: hat, **dict(named)}
