"""Gaussian forward processes on whitened data: x + sigma z with unit-variance x.

Source: Karras et al. 2022 (EDM), with the output scale changed; shared derivation below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workflow.interfaces import Answers, Noise

LOG_NORMAL = (-1.2, 1.2)
"""Mean and spread of log sigma in the training of EDM."""


@dataclass(frozen=True)
class _Gaussian:
    """Noise of standard deviation sigma on data of unit variance.

    The zero network is the Gaussian score, -x / (1 + sigma^2).
    """

    states: ClassVar[int] = 1
    heads: ClassVar[tuple[str, ...]] = ("score",)
    normals: ClassVar[int] = 1
    uniforms: ClassVar[int] = 0

    def inputs(self, state: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-variance input, and log(sigma) / 4 as the condition. Source: EDM."""
        return state / along(1 + level**2, state).sqrt(), level.log() / 4

    def score(self, answers: Answers, x: Tensor, level: Tensor) -> Tensor:
        """The answer itself."""
        return answers(x, level)

    def noise(self, x: Tensor, level: Tensor, z: Tensor, uniform: Tensor | None) -> Noise:
        """x +- sigma z, and the targets -+ z / sigma."""
        weight = self._weight(level)
        wide = None if weight is None else along(weight, x)
        return Noise(x, along(level, x) * z, z, level, weight=wide)

    def _weight(self, level: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class EDM(_Gaussian):
    """The least noise that a response needs; the error of the score counts the same everywhere.

        s(x; sigma) = (D(x; sigma) - x) / sigma^2 = -x / (1 + sigma^2) + F / sqrt(1 + sigma^2)

    EDM's own output scale would make F a difference of order sigma at small sigma; a response
    needs the score at vanishing noise, and there F is the non-Gaussian part of the score itself,
    of order one.
    """

    sigma_min: float
    sigma_max: float
    narrow: ClassVar[bool] = True

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Log-uniform between sigma_min and sigma_max."""
        return log_uniform(self.sigma_min, self.sigma_max, uniform)

    def interpret(self, output: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """Score of the noised whitened density from the network's output F."""
        total = along(1 + level**2, state)
        return -state / total + output / total.sqrt()


@dataclass(frozen=True)
class _Wide(_Gaussian):
    """Noise of all sizes.

        s(x; sigma) = (D(x; sigma) - x) / sigma^2 = (F - x) / (1 + sigma^2)

    F is the non-Gaussian part of the score at small noise, and that of D at large noise: of order
    one or less throughout.
    """

    narrow: ClassVar[bool] = False

    def interpret(self, output: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """Score of the noised whitened density from the network's output F."""
        return (output - state) / along(1 + level**2, state)


@dataclass(frozen=True)
class VE(_Wide):
    """Noise up to a density that is Gaussian to the eye: samples can be drawn from it.

    Attributes:
        density: of the levels, `processes.Density`.
        weighting: of the errors, `WEIGHTINGS`.
    """

    sigma_min: float
    sigma_max: float
    density: str = "log_uniform"
    weighting: str = "output"

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """From sigma_min to sigma_max, as `density` says."""
        if self.density == "log_normal":
            mean, spread = LOG_NORMAL
            level = (mean + spread * torch.special.ndtri(uniform)).exp()
            return level.clamp(self.sigma_min, self.sigma_max)
        return log_uniform(self.sigma_min, self.sigma_max, uniform)

    def _weight(self, level: Tensor) -> Tensor:
        return weighting(self.weighting, level)


@dataclass(frozen=True)
class VP(_Wide):
    """Variance-preserving noise, in the coordinates u = x_t / a in which it is VE noise.

        x_t = a x + (1 - a^2)^(1/2) z,    a = exp(-b/2),    sigma = (exp(b) - 1)^(1/2),
        b(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    The score of x_t is that of u divided by a. Times are uniform in training.

    Attributes:
        beta_min: at time 0, per unit of time.
        beta_max: at time 1.
        t_min: smallest time.
        weighting: of the errors, `WEIGHTINGS`.
    """

    beta_min: float
    beta_max: float
    t_min: float
    weighting: str = "output"

    @property
    def sigma_min(self) -> float:
        """Level at t_min."""
        return math.sqrt(math.expm1(self._slope(self.t_min) * self.t_min))

    @property
    def sigma_max(self) -> float:
        """Level at time 1."""
        return math.sqrt(math.expm1(self._slope(1.0)))

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Of uniform times between t_min and 1."""
        time = self.t_min + (1 - self.t_min) * uniform
        return torch.expm1((self.beta_min + 0.5 * self._rise * time) * time).sqrt()

    def time(self, level: Tensor) -> Tensor:
        """The time of a level: the inverse of `noise_levels`."""
        integral = torch.log1p(level**2)
        root = (self.beta_min**2 + 2 * self._rise * integral).sqrt()
        return 2 * integral / (self.beta_min + root)  # no cancellation, and no rise needed

    @property
    def _rise(self) -> float:
        return self.beta_max - self.beta_min

    def _slope(self, time: float) -> float:
        """Mean of beta from time 0."""
        return self.beta_min + 0.5 * self._rise * time

    def _weight(self, level: Tensor) -> Tensor:
        return weighting(self.weighting, level)


def log_uniform(low: float, high: float, uniform: Tensor) -> Tensor:
    """Numbers evenly spread in the logarithm from uniform ones in [0, 1)."""
    return low * (high / low) ** uniform


def weighting(name: str, level: Tensor) -> Tensor:
    """Factor on the squared error of the score at a level.

    "output" counts errors of the network's output alike, "likelihood" makes the loss a bound on
    the likelihood, "edm" counts errors of the output that EDM's network has alike.
    """
    square = level**2
    return {
        "output": (1 + square) ** 2,
        "likelihood": square,
        "edm": square * (1 + square),
    }[name]


def antithetic_loss(
    plus: Tensor,
    minus: Tensor,
    z: Tensor,
    sigma: Tensor,
    *,
    even: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Denoising score matching with each noise used with both signs, per pixel, less a constant.

        L = (|s+|^2 + |s-|^2) / 2 + z . (s+ - s-) / sigma,   s+- = s(x +- sigma z; sigma)

    It equals mean |s+- +- z / sigma|^2 - |z|^2 / sigma^2, term by term; its variance stays finite
    as sigma -> 0, where plain denoising score matching's grows as 1 / sigma^2. With targets
    e -+ z / sigma it is mean |s+- - e +- z / sigma|^2 - |e|^2 - |z|^2 / sigma^2 likewise.

    Args:
        plus: scores, or other answers, at x + sigma z, `(batch, ...)`.
        minus: scores at x - sigma z.
        z: the normals.
        sigma: noise levels `(batch,)`.
        even: e, the part of the targets that does not change sign.
        weight: of the terms, broadcasts against them.
    """
    squares = 0.5 * (plus.square() + minus.square())
    terms = squares + z * (plus - minus) / along(sigma, z)
    if even is not None:
        terms = terms - even * (plus + minus)
    return terms.mean() if weight is None else (weight * terms).mean()


def denoising_loss(score: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """Plain denoising score matching, sigma^2 |s + z / sigma|^2 per pixel; 1 for a zero score."""
    return (along(sigma, z) * score + z).square().mean()


def split_denoising_loss(score: Tensor, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The same loss as a part of the space mean and a part of the deviations from it."""
    residual = along(sigma, z) * score + z
    axes = tuple(range(2, residual.ndim))
    mean = residual.mean(axes, keepdim=True)
    return mean.square().mean(), (residual - mean).square().mean()


def along(values: Tensor, x: Tensor) -> Tensor:
    """Values `(batch,)`, or one for all, so that they broadcast against `(batch, ...)`."""
    if values.ndim == 0 or math.prod(values.shape) == 1:
        return values.reshape([1] * x.ndim)
    return torch.reshape(values, (-1, *[1] * (x.ndim - 1)))
