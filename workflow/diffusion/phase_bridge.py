"""The phase-space bridge: data reached as the position of a particle that has a velocity.

Time runs from 0, where position and velocity m = (x, v) are plain Gaussian, to 1, where x is the
data x1; tau = 1 - t. Each number of the data has a pair of its own:

    dx = v dt,    dv = (4 / tau) ((x1 - x) / tau - v) dt + p tau dW

Given x1 the state is Gaussian, m = c x1 + N(0, Sigma), in closed form. Both components are x1 with
noise, so one linear combination u of them says all there is to know,

    u = (w . m) / (w . c) = x1 + sigma_eff(t) eps,    w = Sigma^-1 c,    sigma_eff^-2 = c . w

and E[x1 | m] is the denoiser of u: any denoiser drives the bridge, and any bridge has a score.

Source: Chen et al. 2024 (AGM), arXiv:2310.07805; the closed forms, u and sigma_eff derived here
and checked in tests/exact/test_phase_bridge.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from workflow.diffusion.gaussian import along, weighting
from workflow.interfaces import Answers, Noise

_TABLE = 4096
_ENDS = 14.0
"""Largest |log(t / (1 - t))| of the table of times: from t = 8e-7 to 1 - t = 8e-7."""
_LIFT = 20240
"""Seed of the one field of normals that turns a noised field into states."""


@dataclass(frozen=True)
class Moments:
    """State given the data at some times, float64: mean c x1 and covariance Sigma, each `(time,)`.

    Attributes:
        cx, cv: mean of position and velocity per unit of x1.
        xx, xv, vv: covariance.
    """

    cx: Tensor
    cv: Tensor
    xx: Tensor
    xv: Tensor
    vv: Tensor

    @cached_property
    def det(self) -> Tensor:
        """Determinant of Sigma."""
        return self.xx * self.vv - self.xv**2

    @cached_property
    def combination(self) -> tuple[Tensor, Tensor]:
        """Factors of x and v in u."""
        wx = self.cx * self.vv - self.cv * self.xv
        wv = self.cv * self.xx - self.cx * self.xv
        q = wx * self.cx + wv * self.cv
        return wx / q, wv / q

    @cached_property
    def sigma(self) -> Tensor:
        """sigma_eff, the noise of u."""
        wx = self.cx * self.vv - self.cv * self.xv
        wv = self.cv * self.xx - self.cx * self.xv
        return (self.det / (wx * self.cx + wv * self.cv)).sqrt()

    @cached_property
    def root(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cholesky factor of Sigma: xx, vx, vv."""
        xx = self.xx.sqrt()
        vx = self.xv / xx
        return xx, vx, (self.vv - vx**2).sqrt()

    @cached_property
    def rest(self) -> tuple[Tensor, Tensor]:
        """Spread of x and v, with sign, given u: m = c u + rest e with one normal e."""
        x = (self.xx - (self.cx * self.sigma) ** 2).clamp(min=0).sqrt()
        v = (self.vv - (self.cv * self.sigma) ** 2).clamp(min=0).sqrt()
        return x, v * torch.sign(self.xv - self.cx * self.cv * self.sigma**2)


@dataclass(frozen=True)
class Bridge:
    """Closed forms of the bridge; times are float64 tensors of any shape.

    Attributes:
        p: strength of the noise; the acceleration has noise p (1 - t) dW.
        k: position and velocity begin with correlation -k.
        var_x: variance of the positions at the beginning.
        var_v: the same of the velocities.
    """

    p: float = 3.0
    k: float = 0.2
    var_x: float = 1.0
    var_v: float = 1.0

    @property
    def prior(self) -> tuple[float, float, float]:
        """Covariance xx, xv, vv of the state at time 0."""
        return self.var_x, -self.k * math.sqrt(self.var_x * self.var_v), self.var_v

    def moments(self, t: Tensor) -> Moments:
        """State at times t given the data."""
        tau = 1 - t
        xx, xv, vx, vv = _propagator(tau, torch.ones_like(tau))
        sx, sxv, sv = self.prior
        log = tau.log()
        noise = self.p**2 / 27
        nxx = noise * (tau**2 - tau**8 + 6 * tau**5 * log)
        nxv = noise * (-tau - 3 * tau**4 + 4 * tau**7 - 15 * tau**4 * log)
        nvv = noise * (1 + 15 * tau**3 - 16 * tau**6 + 24 * tau**3 * log)
        return Moments(
            1 - xx,
            -vx,
            xx * xx * sx + 2 * xx * xv * sxv + xv * xv * sv + nxx,
            xx * vx * sx + (xx * vv + xv * vx) * sxv + xv * vv * sv + nxv,
            vx * vx * sx + 2 * vx * vv * sxv + vv * vv * sv + nvv,
        )

    def transition(self, t: Tensor, later: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """From t to a later time: m' = (x1, 0) + Phi (m - (x1, 0)) + N(0, Q).

        Returns:
            Phi as xx, xv, vx, vv; Q as xx, xv, vv.
        """
        tau, end = 1 - t, 1 - later
        r = end / tau
        log, cubes, noise = r.log(), tau**3 - end**3, self.p**2 / 9
        qxx = end**2 * cubes / 3 + 2 * end**5 * log + (end**5 - end**8 / tau**3) / 3
        qxv = -5 * end**4 * log - end * cubes / 3 - 4 * (end**4 - end**7 / tau**3) / 3
        qvv = cubes / 3 + 8 * end**3 * log + 16 * (end**3 - end**6 / tau**3) / 3
        return _propagator(r, tau), (noise * qxx, noise * qxv, noise * qvv)

    def force(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Acceleration a x + b v + e x1 of the flow without noise with the same densities.

        That of the bridge less half the noise's intensity times the velocity part of the score of
        m given x1; with E[x1 | m] for x1 it is that of all data.
        """
        m, tau = self.moments(t), 1 - t
        h = (self.p * tau) ** 2 / (2 * m.det)
        return (
            -4 / tau**2 - h * m.xv,
            -4 / tau + h * m.xx,
            4 / tau**2 + h * (m.xv * m.cx - m.xx * m.cv),
        )

    def spread(self, t: Tensor) -> Tensor:
        """Standard deviation of `force` given the data: the unit of the force."""
        m, tau = self.moments(t), 1 - t
        xx, vx, vv = m.root
        first = (4 / tau) * (xx / tau + vx)
        second = (4 / tau) * vv - 0.5 * (self.p * tau) ** 2 / vv
        return (first**2 + second**2).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which sigma_eff has a value, float64."""
        position, logs = self._table
        target = sigma.double().log().flatten()
        right = torch.searchsorted(-logs, -target).clamp(1, len(logs) - 1)
        slope = (logs[right] - logs[right - 1]) / (position[right] - position[right - 1])
        y = position[right] + (target - logs[right]) / slope
        for _ in range(2):
            y = y - (self.moments(torch.sigmoid(y)).sigma.log() - target) / slope
        return torch.sigmoid(y).reshape(sigma.shape)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """log(t / (1 - t)), and log sigma_eff, which falls with it."""
        position = torch.linspace(-_ENDS, _ENDS, _TABLE, dtype=torch.float64)
        return position, self.moments(torch.sigmoid(position)).sigma.log()


@dataclass(frozen=True)
class PhaseBridge:
    """A network that learns from position and velocity; its level is sigma_eff.

        s(m) = (E[x1 | m] - u) / sigma_eff^2 = (F - u) / (1 + sigma^2)

    The score of a field u noised to sigma is the mean of s over the states m = c u + rest e.

    Attributes:
        sigma_min: smallest level, of the last time of training.
        sigma_max: largest level, of the first time.
        weighting: of the errors of s, `gaussian.weighting`, or "force": of the acceleration in its
            unit, divided by 1 - t, as published.
        p, k, var_x, var_v: as for `Bridge`.
    """

    sigma_min: float
    sigma_max: float
    weighting: str = "output"
    p: float = 3.0
    k: float = 0.2
    var_x: float = 1.0
    var_v: float = 1.0

    states: ClassVar[int] = 2
    heads: ClassVar[tuple[str, ...]] = ("score",)
    normals: ClassVar[int] = 2
    uniforms: ClassVar[int] = 0
    narrow: ClassVar[bool] = False

    @cached_property
    def bridge(self) -> Bridge:
        """Its closed forms."""
        return Bridge(self.p, self.k, self.var_x, self.var_v)

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Of times drawn evenly."""
        ends = torch.tensor([self.sigma_max, self.sigma_min], dtype=torch.float64)
        first, last = self.bridge.time(ends).tolist()
        t = first + (last - first) * uniform.double()
        return self.bridge.moments(t).sigma.to(uniform)

    def noise(self, x: Tensor, level: Tensor, z: Tensor, uniform: Tensor | None) -> Noise:
        """States c (x +- sigma eps) + rest e, targets -+ eps / sigma.

        Both signs have the same e, or what a network makes of e would be a noise of order
        1 / sigma in the loss.
        """
        m, (eps, e) = self.moments(level), z.chunk(2, dim=1)
        means, shifts = [], []
        for c, rest in zip((m.cx, m.cv), m.rest, strict=True):
            means.append(along(c.to(x), x) * x + along(rest.to(x), x) * e)
            shifts.append(along((c * m.sigma).to(x), x) * eps)
        weight = along(self._weight(level), x)
        return Noise(torch.cat(means, 1), torch.cat(shifts, 1), eps, level, weight=weight)

    def inputs(self, state: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """u in standard deviations of Gaussian data, e, and log(sigma_eff) / 4.

        As much as x and v say: m = c u + rest e. In x and v a network would have to learn a
        combination that turns with time, and does so badly (docs/generative.md).
        """
        m, (x, _), u = self.moments(level), state.chunk(2, dim=1), self.combine(state, level)
        e = (x - along(m.cx.to(x), x) * u) / along(m.rest[0].to(x), x)
        return torch.cat([u / along(1 + level**2, x).sqrt(), e], dim=1), level.log() / 4

    def interpret(self, output: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """Score of u from the network's output F."""
        return (output - self.combine(state, level)) / along(1 + level**2, state)

    def score(self, answers: Answers, x: Tensor, level: Tensor) -> Tensor:
        """Mean of the answers at two opposite states of x, the same e for all of the batch."""
        m = self.moments(level)
        shape = (1, *x.shape[1:])
        e = torch.randn(shape, generator=torch.Generator().manual_seed(_LIFT)).to(x)
        mean = torch.cat([along(m.cx.to(x), x) * x, along(m.cv.to(x), x) * x], dim=1)
        spread = torch.cat([along(part.to(x), x) * e.expand_as(x) for part in m.rest], dim=1)
        both = answers(torch.cat([mean + spread, mean - spread]), level.repeat(2))
        plus, minus = both.chunk(2)
        return 0.5 * (plus + minus)

    def combine(self, state: Tensor, level: Tensor) -> Tensor:
        """u `(batch, field, *shape)` of states `(batch, 2 * field, *shape)`."""
        x, v = state.chunk(2, dim=1)
        ax, av = self.moments(level).combination
        return along(ax.to(x), x) * x + along(av.to(x), x) * v

    def moments(self, level: Tensor) -> Moments:
        """Of the times of some levels; float64, on the CPU where the table is."""
        return self.bridge.moments(self.bridge.time(level.cpu()))

    def _weight(self, level: Tensor) -> Tensor:
        if self.weighting != "force":
            return weighting(self.weighting, level)
        t = self.bridge.time(level.cpu())
        unit, tau = self.bridge.spread(t) / (1 - t), 1 - t
        change = self.bridge.force(t)[2] * self.bridge.moments(t).sigma ** 2
        return ((change / unit).square() / tau).to(level)


def _propagator(r: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Phi of x - x1 and v from remaining time tau to r tau, as xx, xv, vx, vv."""
    return (
        (4 * r - r**4) / 3,
        tau * (r - r**4) / 3,
        -4 * (1 - r**3) / (3 * tau),
        (4 * r**3 - 1) / 3,
    )
