"""Barotropic flow over topography in a channel, cut to six modes, with noise.

    dx1 = [ g~1 x3 - C (x1 - x1*) ] dt                              + sigma dW1
    dx2 = [ -(a1 x1 - b1) x3 - C x2 - d1 x4 x6 ] dt                 + sigma dW2
    dx3 = [  (a1 x1 - b1) x2 - g1 x1 - C x3 + d1 x4 x5 ] dt         + sigma dW3
    dx4 = [ g~2 x6 - C (x4 - x4*) + e (x2 x6 - x3 x5) ] dt          + sigma dW4
    dx5 = [ -(a2 x1 - b2) x6 - C x5 - d2 x4 x3 ] dt                 + sigma dW5
    dx6 = [  (a2 x1 - b2) x5 - g2 x4 - C x6 + d2 x4 x2 ] dt         + sigma dW6

x1 and x4 are the zonal modes (0, 1) and (0, 2); (x2, x3) and (x5, x6) the waves (1, 1) and (1, 2).
With B the aspect ratio, beta the gradient of planetary vorticity and gamma the topography,

    a_m  = 8 sqrt(2) / pi  m^2 / (4 m^2 - 1)  (B^2 + m^2 - 1) / (B^2 + m^2)
    b_m  = beta B^2 / (B^2 + m^2)
    d_m  = 64 sqrt(2) / (15 pi)  (B^2 - m^2 + 1) / (B^2 + m^2)
    g~_m = gamma  4 m / (4 m^2 - 1)  sqrt(2) B / pi
    g_m  = gamma  4 m^3 / (4 m^2 - 1)  sqrt(2) B / (pi (B^2 + m^2))
    e    = 16 sqrt(2) / (5 pi)

The energy sum k_i^2 x_i^2 / 2, k^2 = (1, 1 + B^2, 1 + B^2, 4, 4 + B^2, 4 + B^2), feels damping,
forcing and noise only; the quadratic terms conserve the enstrophy sum k_i^4 x_i^2 / 2 as well.

Source: Charney and DeVore (1979), De Swart (1988); numbers and noise as printed in
arXiv:2504.13333 eq. 28 (its code has sqrt(2) times the noise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from workflow.dynamics.integrators import strang
from workflow.dynamics.low_dimensional import LowDimensional
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class Barotropic(LowDimensional):
    """Zonal and blocked regimes of the mid-latitude flow, and chaotic passages between them."""

    fields: ClassVar[Sequence[SavedField]] = (
        SavedField("x1", "zonal mode (0, 1)", "1"),
        SavedField("x2", "wave (1, 1), cosine", "1"),
        SavedField("x3", "wave (1, 1), sine", "1"),
        SavedField("x4", "zonal mode (0, 2)", "1"),
        SavedField("x5", "wave (1, 2), cosine", "1"),
        SavedField("x6", "wave (1, 2), sine", "1"),
    )

    dt: float = Field(0.25, gt=0, description="time step, model time")
    aspect: float = Field(1.6, gt=0, description="B, twice the width of the channel by its length")
    beta: float = Field(1.25, description="gradient of planetary vorticity, 1 / time")
    topography: float = Field(0.2, description="gamma, height of the topography, 1 / time")
    damping: float = Field(0.1, gt=0, description="C, 1 / time")
    zonal_1: float = Field(0.95, description="x1*, the zonal forcing of x1")
    zonal_2: float = Field(-0.76095, description="x4*, the zonal forcing of x4")
    sigma: float = Field(0.01, gt=0, description="noise amplitude, x / time^(1/2)")

    def drift(self, x: Tensor) -> Tensor:
        """The brackets above, `(batch, 6)`."""
        k = _coefficients(self, x.dtype, str(x.device))
        zonal, cosine, sine = x.unflatten(1, (2, 3)).unbind(-1)
        turn = k.advection * x[:, :1] - k.beta
        exchange = k.exchange * x[:, 3:4]
        pump = x[:, 1:2] * x[:, 5:6] - x[:, 2:3] * x[:, 4:5]
        parts = (
            k.rise * sine + k.pump * pump - self.damping * (zonal - k.forcing),
            -turn * sine - self.damping * cosine - exchange * sine.flip(1),
            turn * cosine - k.drag * zonal - self.damping * sine + exchange * cosine.flip(1),
        )
        return torch.stack(parts, dim=-1).flatten(1)

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """sigma^2 v."""
        return self.sigma**2 * v

    def initial(self, normals: Tensor) -> State:
        """Near the zonal forcing, spread over a tenth."""
        rest = normals.new_tensor([self.zonal_1, 0, 0, self.zonal_2, 0, 0])
        return {"x": rest + 0.1 * normals}

    def step(self, state: State, normals: Tensor) -> State:
        """Half the noise on either side of the flow: weak order 2."""
        return {"x": strang(self.drift, state["x"], self.dt, amplitude=self.sigma, w=normals)}

    def wavenumbers(self) -> Tensor:
        """k_i^2, `(6,)`, float64: weights of the energy."""
        b2 = self.aspect**2
        return torch.tensor([1, 1 + b2, 1 + b2, 4, 4 + b2, 4 + b2], dtype=torch.float64)


class _Coefficients(NamedTuple):
    """One number per meridional mode m = 1, 2."""

    advection: Tensor
    beta: Tensor
    exchange: Tensor
    rise: Tensor
    drag: Tensor
    pump: Tensor
    forcing: Tensor


@lru_cache(maxsize=32)
def _coefficients(system: Barotropic, dtype: torch.dtype, device: str) -> _Coefficients:
    m = torch.tensor([1.0, 2.0], dtype=torch.float64)
    b2, root = system.aspect**2, math.sqrt(2) / math.pi
    k2, odd = b2 + m**2, 4 * m**2 - 1
    values = _Coefficients(
        advection=8 * root * m**2 / odd * (k2 - 1) / k2,
        beta=system.beta * b2 / k2,
        exchange=64 / 15 * root * (b2 - m**2 + 1) / k2,
        rise=system.topography * 4 * m / odd * root * system.aspect,
        drag=system.topography * 4 * m**3 / odd * root * system.aspect / k2,
        pump=torch.tensor([0.0, 16 / 5 * math.sqrt(2) / math.pi], dtype=torch.float64),
        forcing=torch.tensor([system.zonal_1, system.zonal_2], dtype=torch.float64),
    )
    return _Coefficients(*(value.to(dtype=dtype, device=device) for value in values))
