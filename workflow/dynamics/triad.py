"""Slow-fast triad, a caricature of El Nino: two slow variables driven by bursts of a fast one.

    du1  = (-d_u u1 - omega u2 + tau) dt + sigma_u dW1
    du2  = (-d_u u2 + omega u1)       dt + sigma_u dW2
    dtau = -d_tau tau                 dt + sigma_tau (tanh u1 + 1) dW3

The noise of tau grows with u1, so the stationary density is skewed and has no closed form. The
drift is linear, so the mean response to a kick is: exp(M t).

Source: arXiv:2504.13333 (the printed noise; not the sqrt(2) times larger one of its code).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from workflow.dynamics.low_dimensional import LowDimensional
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class Triad(LowDimensional):
    """Sea surface temperature u1, thermocline depth u2 and wind bursts tau."""

    fields: ClassVar[Sequence[SavedField]] = (
        SavedField("u1", "slow variable that the fast one drives", "1"),
        SavedField("u2", "slow variable in quadrature", "1"),
        SavedField("tau", "fast variable", "1"),
    )

    dt: float = Field(0.05, gt=0, description="time step, model time")
    slow_damping: float = Field(0.2, gt=0, description="d_u, 1 / time")
    frequency: float = Field(0.4, description="omega, 1 / time")
    fast_damping: float = Field(2.0, gt=0, description="d_tau, 1 / time")
    sigma_u: float = Field(0.3, gt=0, description="noise of u1 and u2, u / time^(1/2)")
    sigma_tau: float = Field(1.5, gt=0, description="noise of tau at u1 = 0, tau / time^(1/2)")

    def drift(self, x: Tensor) -> Tensor:
        """M x."""
        return x @ self._matrix(x).T

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """Diagonal: sigma_u^2 twice, sigma_tau(u1)^2."""
        slow = self.sigma_u**2 * v[:, :2]
        fast = self.burst_noise(x[:, :1]).square() * v[:, 2:]
        return torch.cat([slow, fast], dim=1)

    def burst_noise(self, u1: Tensor) -> Tensor:
        """sigma_tau(u1) = sigma_tau (tanh u1 + 1), tau / time^(1/2)."""
        return self.sigma_tau * (u1.tanh() + 1)

    def step(self, state: State, normals: Tensor) -> State:
        """Noise of u, noise of tau, flow, noise of tau, noise of u: weak order 2.

        Each part is exact, as the noise of tau depends on u1 only; the order is a palindrome, so
        the error of the splitting is of third order per step.
        """
        u, tau = state["x"][:, :2], state["x"][:, 2:]
        half = (0.5 * self.dt) ** 0.5
        u = u + half * self.sigma_u * normals[:, 0, :2]
        tau = tau + half * self.burst_noise(u[:, :1]) * normals[:, 0, 2:]
        x = torch.cat([u, tau], dim=1) @ _flow(self, tau.dtype, str(tau.device))
        u, tau = x[:, :2], x[:, 2:]
        tau = tau + half * self.burst_noise(u[:, :1]) * normals[:, 1, 2:]
        u = u + half * self.sigma_u * normals[:, 1, :2]
        return {"x": torch.cat([u, tau], dim=1)}

    def exact_response(self, lag: Tensor) -> Tensor:
        """exp(M lag), `(lag, field, field)`: responding variable, kicked variable."""
        return torch.linalg.matrix_exp(lag.reshape(-1, 1, 1) * self._matrix(lag))

    def _matrix(self, like: Tensor) -> Tensor:
        """M, `(field, field)`, 1 / time."""
        d_u, omega, d_tau = self.slow_damping, self.frequency, self.fast_damping
        rows = [[-d_u, -omega, 1.0], [omega, -d_u, 0.0], [0.0, 0.0, -d_tau]]
        return torch.tensor(rows, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=32)
def _flow(system: Triad, dtype: torch.dtype, device: str) -> Tensor:
    """exp(M dt), transposed: it acts on rows."""
    step = torch.tensor([system.dt], dtype=torch.float64)
    return system.exact_response(step)[0].T.to(dtype=dtype, device=device)
