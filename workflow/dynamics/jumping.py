"""Jumps added to any system, and the stationary density of one variable that jumps.

    dx = F(x) dt + noise + sum_i a_i phi(. - r_i) delta(t - t_i) dt

Jumps come `rate` times per unit of time, at a place that is drawn evenly, with a size a from a
law of zero mean. On a grid phi is a bump of height 1 and of the shape (1 - Lap)^(-1/2), the colour
of the noise of the fields here; without space there is a jump of its own for every variable. Half
the jumps of a step come before the system's own step and half after it: weak order 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.stats import poisson
from torch import Tensor

from workflow.diffusion.amplitudes import AMPLITUDES
from workflow.dynamics.grid import Grid
from workflow.dynamics.spectral import Parameters
from workflow.dynamics.stationary import stationary_score
from workflow.interfaces import Field as SavedField
from workflow.interfaces import HasDrift, State, System, UserError

_NORMALS = 3
"""For every number in half a step: how often it jumps, and how far."""


class Jumps(Parameters):
    """The section `noise: {jumps: ...}` of a system."""

    rate: float = Field(gt=0, description="jumps per unit of time of a variable, or in a field")
    scale: float = Field(gt=0, description="b, units of the field; a jump has variance 2 b^2")
    amplitude: Literal["laplace", "normal", "cauchy"] = Field(
        "laplace", description="law of the size of a jump"
    )


@dataclass(frozen=True)
class Jumping:
    """A system and the jumps that are added to it; an `interfaces.System`.

    Attributes:
        base: the system itself.
        jumps: what is added.
    """

    base: System
    jumps: Jumps

    @property
    def fields(self) -> Sequence[SavedField]:
        """Those of the system."""
        return self.base.fields

    @property
    def shape(self) -> tuple[int, ...]:
        """Space shape of the system."""
        return self.base.shape

    @property
    def dt(self) -> float:
        """Time step of the system."""
        return self.base.dt

    @property
    def homogeneous(self) -> bool:
        """As the system: jumps come anywhere."""
        return self.base.homogeneous

    @property
    def initial_shape(self) -> tuple[int, ...]:
        """That of the system."""
        return self.base.initial_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The normals of the system, then those of the jumps before and after its step."""
        return (math.prod(self.base.noise_shape) + 2 * _NORMALS * self._numbers,)

    @property
    def heavy(self) -> bool:
        """Whether jumps have no variance."""
        return math.isinf(AMPLITUDES[self.jumps.amplitude].variance)

    def initial(self, normals: Tensor) -> State:
        """As the system without jumps."""
        return self.base.initial(normals)

    def step(self, state: State, normals: Tensor) -> State:
        """Jumps of dt / 2, the step of the system, jumps of dt / 2."""
        own, before, after = normals.split(
            [math.prod(self.base.noise_shape), *[_NORMALS * self._numbers] * 2], dim=1
        )
        state = self._jumped(state, before)
        state = self.base.step(state, own.reshape(-1, *self.base.noise_shape))
        return self._jumped(state, after)

    def observe(self, state: State) -> Tensor:
        """The saved fields of the system."""
        return self.base.observe(state)

    def displace(self, state: State, displacement: Tensor) -> State:
        """As the system."""
        return self.base.displace(state, displacement)

    @property
    def _numbers(self) -> int:
        return len(self.base.fields) * math.prod(self.base.shape)

    def _jumped(self, state: State, normals: Tensor) -> State:
        """The state after the jumps of half a step."""
        count, size, sign = normals.unflatten(1, (_NORMALS, self._numbers)).unbind(1)
        times = torch.searchsorted(self._counts.to(count.device), _uniform(count))
        if not bool(times.any()):
            return state
        total = AMPLITUDES[self.jumps.amplitude].total(times, _uniform(size), sign)
        x = (self.jumps.scale * total).reshape(-1, len(self.base.fields), *self.base.shape)
        return self.base.displace(state, self._spread(x))

    @cached_property
    def _counts(self) -> Tensor:
        """P(at most n jumps of a number in half a step), n = 0, 1, ..., to rounding."""
        mean = self.jumps.rate * self.base.dt / 2 / math.prod(self.base.shape)
        most = int(poisson.isf(1e-15, mean)) + 2
        return torch.from_numpy(poisson.cdf(np.arange(most), mean))

    def _spread(self, x: Tensor) -> Tensor:
        """Jumps at single places made bumps of the same height."""
        if not self.base.shape:
            return x
        grid = Grid(self.base.shape[-1], len(self.base.shape), x.dtype, str(x.device))
        bump = (1 + grid.k2).rsqrt()
        peak = grid.ifft(bump.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64))
        return grid.ifft(bump * grid.fft(x)) / peak.flatten()[0]


@dataclass(frozen=True)
class JumpingDrift(Jumping):
    """A system whose equation is known, and the jumps that are added to it."""

    def drift(self, x: Tensor) -> Tensor:
        """F(x): jumps have no mean."""
        assert isinstance(self.base, HasDrift)
        return self.base.drift(x)

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """D(x) v of the noise without the jumps."""
        assert isinstance(self.base, HasDrift)
        return self.base.noise_covariance(x, v)


@dataclass(frozen=True)
class JumpingVariable(JumpingDrift):
    """One variable with additive noise and jumps: its stationary score is a table."""

    def exact_score(self, x: Tensor) -> Tensor:
        """grad log p, `(batch, 1)`, 1 / units of x; see `stationary.stationary_score`."""
        table = _score_table(self)
        return torch.from_numpy(table(x.double().cpu().numpy())).to(x)


@lru_cache(maxsize=8)
def _score_table(system: JumpingVariable) -> Any:
    assert isinstance(system.base, HasDrift)
    one = torch.ones(1, 1, dtype=torch.float64)
    jumps, base = system.jumps, system.base

    def drift(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = base.drift(torch.from_numpy(x)[:, None])[:, 0].numpy()
        return found

    def hops(k: np.ndarray) -> np.ndarray:
        q = AMPLITUDES[jumps.amplitude].characteristic(torch.from_numpy(jumps.scale * k))
        return jumps.rate * (1 - q.numpy())

    diffusion = float(base.noise_covariance(one, one))
    return stationary_score(drift, diffusion, hops, scale=jumps.scale)


def with_jumps(base: System, jumps: Mapping[str, Any]) -> Jumping:
    """A system with jumps, and with as much known of it as can be.

    Raises:
        UserError: several fields on a grid.
        ValidationError: an impossible parameter.
    """
    made = Jumps(**jumps)
    if base.shape and len(base.fields) > 1:
        raise UserError(
            f"system.noise.jumps: {type(base).__name__} has {len(base.fields)} fields; jumps are "
            "for one field, or for variables without space"
        )
    if not isinstance(base, HasDrift):
        return Jumping(base, made)
    single = not base.shape and len(base.fields) == 1 and made.amplitude != "cauchy"
    return (JumpingVariable if single else JumpingDrift)(base, made)


def _uniform(normals: Tensor) -> Tensor:
    """In (0, 1), float64."""
    return torch.special.ndtr(normals.double().contiguous())
