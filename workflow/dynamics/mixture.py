"""A few variables that are drawn anew, at random times, from a mixture of normal densities.

In every time step a state is kept with probability exp(-dt / memory), else it is an independent
draw of p(x) = sum_k w_k N(x; m_k, s_k^2 1). So p is stationary exactly, a kick is remembered as
exp(-lag / memory), and the density, the score and the score after any normal noise are known:
a target for samplers and for what they are judged by.

The default is four spots of different size in the plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from workflow.dynamics.spectral import Parameters
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class Mixture(Parameters):
    """Normal spots; between them the density is nearly zero and no Gaussian comes close."""

    shape: ClassVar[tuple[int, ...]] = ()
    homogeneous: ClassVar[bool] = True

    dt: float = Field(1.0, gt=0, description="time step, model time; any, the law is exact")
    memory: float = Field(1.0, gt=0, description="mean time a state is kept, model time")
    weights: tuple[float, ...] = Field(
        (0.3, 0.3, 0.25, 0.15), description="w_k, made to sum to 1", min_length=1
    )
    means: tuple[tuple[float, ...], ...] = Field(
        ((4 / 3, 0.0), (-2 / 3, 1.0), (-2 / 3, -1.0), (0.2, 2 / 15)),
        description="m_k, one row per spot, units of x",
    )
    spreads: tuple[float, ...] = Field(
        (0.1, 1 / 6, 1 / 15, 7 / 30), description="s_k, standard deviations, units of x"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Mixture:
        counts = {len(self.weights), len(self.means), len(self.spreads)}
        if len(counts) != 1 or len({len(row) for row in self.means}) != 1 or not self.means[0]:
            raise ValueError(
                f"{len(self.weights)} weights, {len(self.means)} means and {len(self.spreads)} "
                "spreads; give one of each for every spot, and means of equal length"
            )
        if min(self.weights) < 0 or sum(self.weights) <= 0 or min(self.spreads) <= 0:
            raise ValueError("weights must be >= 0 and not all 0, spreads > 0")
        return self

    @property
    def fields(self) -> Sequence[SavedField]:
        """x1, x2, ..."""
        count = len(self.means[0])
        return tuple(SavedField(f"x{i}", f"variable {i} of {count}") for i in range(1, count + 1))

    @property
    def initial_shape(self) -> tuple[int, ...]:
        """One normal per variable, and one that chooses the spot."""
        return (len(self.means[0]) + 1,)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The same, and one that decides whether the state is kept."""
        return (len(self.means[0]) + 2,)

    def initial(self, normals: Tensor) -> State:
        """A draw of the stationary state itself; no spin-up is needed."""
        known = _spots(self, normals.dtype, str(normals.device))
        chosen = torch.searchsorted(
            known.cumulative, torch.special.ndtr(normals[:, 0].contiguous())
        )
        chosen = chosen.clamp(max=len(self.weights) - 1)
        return {"x": known.means[chosen] + known.spreads[chosen, None] * normals[:, 1:]}

    def step(self, state: State, normals: Tensor) -> State:
        """The state, or a new draw."""
        drawn = self.initial(normals[:, 1:])["x"]
        kept = torch.special.ndtr(normals[:, 0]) < math.exp(-self.dt / self.memory)
        return {"x": torch.where(kept[:, None], state["x"], drawn)}

    def observe(self, state: State) -> Tensor:
        """The variables, `(member, field)`."""
        return state["x"]

    def displace(self, state: State, displacement: Tensor) -> State:
        """State moved by `(member, field)`."""
        return {"x": state["x"] + displacement}

    def exact_score(self, x: Tensor) -> Tensor:
        """grad log p, `(batch, field)`, 1 / units of x."""
        return self.noised_score(x, x.new_zeros(x.shape[1], x.shape[1]))

    def noised_score(self, x: Tensor, covariance: Tensor) -> Tensor:
        """grad log of the density of x plus normal noise of a covariance `(field, field)`."""
        known = _spots(self, torch.float64, str(x.device))
        y = x.double()
        one = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        noised = known.spreads[:, None, None] ** 2 * one + covariance.to(y)
        pulls = torch.linalg.solve(noised, (known.means - y[:, None])[..., None])[..., 0]
        square = ((known.means - y[:, None]) * pulls).sum(-1)
        logs = known.weights.log() - 0.5 * (square + torch.logdet(noised))
        return (logs.softmax(1)[..., None] * pulls).sum(1).to(x)

    def log_density(self, x: Tensor, covariance: Tensor) -> Tensor:
        """log of that density, `(batch,)` in nats, normalised."""
        known = _spots(self, torch.float64, str(x.device))
        y = x.double()
        one = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        noised = known.spreads[:, None, None] ** 2 * one + covariance.to(y)
        spots = torch.distributions.MultivariateNormal(known.means, noised)
        return (known.weights.log() + spots.log_prob(y[:, None])).logsumexp(1)

    def exact_response(self, lag: Tensor) -> Tensor:
        """exp(-lag / memory) 1 at whole steps, `(lag, field, field)`; `(lag,)` for one variable."""
        kept = (-lag / self.memory).exp().reshape(-1, 1, 1)
        count = len(self.means[0])
        response = kept * torch.eye(count, dtype=lag.dtype, device=lag.device)
        return response if count > 1 else response.flatten()


class _Spots(NamedTuple):
    weights: Tensor
    cumulative: Tensor
    means: Tensor
    spreads: Tensor


@lru_cache(maxsize=32)
def _spots(system: Mixture, dtype: torch.dtype, device: str) -> _Spots:
    weights = torch.tensor(system.weights, dtype=torch.float64)
    weights = weights / weights.sum()
    rows = (
        weights,
        weights.cumsum(0),
        torch.tensor(system.means, dtype=torch.float64),
        torch.tensor(system.spreads, dtype=torch.float64),
    )
    return _Spots(*(row.to(device=device, dtype=dtype) for row in rows))
