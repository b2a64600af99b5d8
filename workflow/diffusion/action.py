"""The action of a score: what it costs, in nats, to undo the noise with it.

Noise is put on by a linear diffusion, and taken off by any S in place of the score:

    dY = f(t) Y dt + g(t) dW,     y_t = a(t) x + v(t)^(1/2) z,     dX = (-f X + g^2 S) ds + g dW

The action of S is the mean over the paths of the noised data of a Lagrangian,

    A[S] = int dt E[ g^2 |S|^2 / 2 + div(g^2 S - f y) ],
    A[S] - A[grad log p] = 1/2 int dt g^2 E|S - grad log p|^2,     A[grad log p] = H(p_0) - H(p_T),

so it is implicit score matching with likelihood weighting, and its excess is the Kullback-Leibler
divergence between the paths of true and of learned denoising (Girsanov): an upper bound, in nats,
of that between the data and what S makes of noise. Per e-fold of sigma = v^(1/2) / a the excess is
v E|S - grad log p|^2, whatever a(t) and the pace of t.

Source: Premkumar 2023 (arXiv:2310.04490); Song, Durkan, Murray, Ermon 2021 (likelihood weighting).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

ScoreAt = Callable[[Tensor, Tensor], Tensor]
"""S(y, t) `(batch, ...)` at noised states `(batch, ...)` and one time for all, a number `()`."""


class Schedule(Protocol):
    """Linear noise, at times t in float64 of any shape.

    Attributes:
        t_min: time at which noising stops on its way to the data; p there is the model's density.
        t_max: time of the prior.
    """

    @property
    def t_min(self) -> float:
        """Smallest time."""
        ...

    @property
    def t_max(self) -> float:
        """Largest time."""
        ...

    def scale(self, t: Tensor) -> Tensor:
        """a(t), factor on the data."""
        ...

    def variance(self, t: Tensor) -> Tensor:
        """v(t), variance of the noise."""
        ...

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = a'(t) / a(t)."""
        ...

    def rate(self, t: Tensor) -> Tensor:
        """g(t)^2 = v'(t) - 2 f(t) v(t)."""
        ...

    def time(self, sigma: Tensor) -> Tensor:
        """Time at which v^(1/2) / a is sigma."""
        ...


@dataclass(frozen=True)
class Exploding:
    """Noise of standard deviation t on the data as they are: a = 1, v = t^2, g^2 = 2 t."""

    t_min: float
    t_max: float

    def scale(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """t^2."""
        return t**2

    def drift(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def rate(self, t: Tensor) -> Tensor:
        """2 t."""
        return 2 * t

    def time(self, sigma: Tensor) -> Tensor:
        """The same number."""
        return sigma


@dataclass(frozen=True)
class Preserving:
    """Ornstein-Uhlenbeck noise with N(0, 1) at rest: f = -beta / 2, g^2 = beta, v = 1 - a^2.

    beta(t) = beta_min + (beta_max - beta_min) t on 0 <= t <= 1.
    """

    beta_min: float = 0.1
    beta_max: float = 16.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def scale(self, t: Tensor) -> Tensor:
        """exp(-int beta / 2)."""
        return (-0.5 * self._integral(t)).exp()

    def variance(self, t: Tensor) -> Tensor:
        """1 - exp(-int beta)."""
        return -torch.expm1(-self._integral(t))

    def drift(self, t: Tensor) -> Tensor:
        """-beta / 2."""
        return -0.5 * self.rate(t)

    def rate(self, t: Tensor) -> Tensor:
        """beta."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def time(self, sigma: Tensor) -> Tensor:
        """Root of int beta = ln(1 + sigma^2), in the form that does not cancel."""
        rise, integral = self.beta_max - self.beta_min, torch.log1p(sigma**2)
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * rise * integral).sqrt())


@dataclass(frozen=True)
class Nodes:
    """Times and weights of an integral over time, `(node,)` float64."""

    times: Tensor
    weights: Tensor

    def integrate(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Contributions `(node, batch)` of the nodes to int dt of(t), `(batch,)`; sum them."""
        pairs = zip(self.times, self.weights, strict=True)
        return torch.stack([weight * of(time).double() for time, weight in pairs])


def noise_range(schedule: Schedule) -> tuple[float, float]:
    """ln sigma at t_min and at t_max."""
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    low, high = (0.5 * (schedule.variance(ends) / schedule.scale(ends) ** 2).log()).tolist()
    return low, high


def noise_nodes(schedule: Schedule, count: int) -> Nodes:
    """Gauss-Legendre nodes in ln sigma: dt = 2 v / g^2 dln(sigma).

    There the excess action is smooth from the smallest structure of the data to the prior.
    """
    low, high = noise_range(schedule)
    points, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(count))
    times = schedule.time((0.5 * (low + high) + 0.5 * (high - low) * points).exp())
    pace = 2 * schedule.variance(times) / schedule.rate(times)
    return Nodes(times, 0.5 * (high - low) * weights * pace)


def noised(schedule: Schedule, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """y_t = a x + v^(1/2) z."""
    return schedule.scale(t).to(x) * x + schedule.variance(t).sqrt().to(x) * z


def lagrangian(
    score: ScoreAt, y: Tensor, t: Tensor, schedule: Schedule, *, probes: Tensor | None = None
) -> Tensor:
    """g^2 |S|^2 / 2 + div(g^2 S - f y) at noised states, `(batch,)`.

    Args:
        score: S.
        y: states `(batch, ...)`.
        t: time `()`.
        schedule: of the noise.
        probes: as in `divergence`.
    """
    s, div = divergence(lambda v: score(v, t), y, probes=probes)
    rate, drift = schedule.rate(t).to(s), schedule.drift(t).to(s)
    return rate * (0.5 * _square(s) + div) - drift * y[0].numel()


def denoising_lagrangian(
    score: ScoreAt, x: Tensor, z: Tensor, t: Tensor, schedule: Schedule
) -> Tensor:
    """The same in the mean over z, without a divergence: both signs of z, averaged, `(batch,)`.

        g^2 |S|^2 / 2 - (g^2 S - f y) . grad log p(y | x),    grad log p(y | x) = -z / v^(1/2)

    Args:
        score: S.
        x: data `(batch, ...)`.
        z: standard normals like x.
        t: time `()`.
        schedule: of the noise.
    """
    plus, minus = (score(noised(schedule, x, n, t), t) for n in (z, -z))
    rate, drift = schedule.rate(t).to(x), schedule.drift(t).to(x)
    spread = schedule.variance(t).sqrt().to(x)
    squares = 0.25 * rate * (_square(plus) + _square(minus))
    pull = 0.5 * rate / spread * _dot(plus - minus, z)
    # f y . z / v^(1/2), odd in z but for the noise in y.
    return squares + pull - drift * _square(z)


def control_cost(difference: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """g^2 |S - S'|^2 / 2, the rate in nats per unit of t at which their paths part, `(batch,)`."""
    return 0.5 * schedule.rate(t).to(difference) * _square(difference)


def path_kl(
    score: ScoreAt, exact: ScoreAt, x: Tensor, z: Tensor, schedule: Schedule, nodes: Nodes
) -> Tensor:
    """Path KL of S from the exact score, contributions `(node, batch)` in nats.

    Args:
        score: S.
        exact: grad log p_t.
        x: data `(batch, ...)`.
        z: standard normals `(node, batch, ...)`.
        schedule: of the noise.
        nodes: of the integral over time.
    """
    draws = iter(z)

    def cost(t: Tensor) -> Tensor:
        y = noised(schedule, x, next(draws), t)
        return control_cost(score(y, t) - exact(y, t), t, schedule)

    return nodes.integrate(cost)


def path_kl_gain(
    score: ScoreAt, other: ScoreAt, x: Tensor, z: Tensor, schedule: Schedule, nodes: Nodes
) -> Tensor:
    """Path KL of another S' less that of S, without knowing the exact score, `(node, batch)`.

    The difference of two denoising Lagrangians with the same noise: nats that S gains on S'.
    Arguments as `path_kl`.
    """
    draws = iter(z)

    def gain(t: Tensor) -> Tensor:
        n = next(draws)
        values = (denoising_lagrangian(s, x, n, t, schedule) for s in (other, score))
        return next(values) - next(values)

    return nodes.integrate(gain)


def divergence(
    field: Callable[[Tensor], Tensor], y: Tensor, *, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A vector field `(batch, ...)` and its divergence `(batch,)`.

    Args:
        field: acts on every state of the batch by itself.
        y: states.
        probes: `(probe, batch, ...)` of mean 0 and covariance 1, for Hutchinson's estimate; by
            default every direction is taken, one derivative for each number of a state.
    """
    exact = probes is None
    if probes is None:
        numbers = y[0].numel()
        one = torch.eye(numbers, dtype=y.dtype, device=y.device)
        probes = one.reshape(numbers, 1, *y.shape[1:]).expand(-1, *y.shape)
    total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for probe in probes:
        value, slope = torch.func.jvp(field, (y,), (probe.contiguous(),))[:2]
        total = total + _dot(slope, probe)
    return value.detach(), total.detach() / (1 if exact else len(probes))


@dataclass(frozen=True)
class Nats:
    """A mean over independent units, and its standard error."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor, *, unit: int = 1) -> Nats:
        """Of values `(batch,)`, `unit` consecutive ones of which go together."""
        means = values.double()[: len(values) // unit * unit].reshape(-1, unit).mean(1)
        error = float(means.std() / math.sqrt(len(means))) if len(means) > 1 else math.nan
        return cls(float(means.mean()), error)


def _square(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1)
