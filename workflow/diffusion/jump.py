"""Jump diffusion: Ornstein-Uhlenbeck drift, Gaussian noise and Laplace jumps, drawn in one shot.

    dx = -x / 2 ds + g^(1/2) dB + dJ

J jumps `rate` times per unit of s, by (2 b^2 E)^(1/2) Z with E ~ Exp(1) and standard normals Z. At
time s, with a = exp(-s),

    x_s = a^(1/2) x_0 + u,    u = W^(1/2) Z,    W = g (1 - a) + 2 b^2 w

where w, the clock, is 0 if no jump has happened. Given the clock the noise is Gaussian, so what is
regressed on has a closed form in any dimension:

    score              grad log p = E[-u / W | x_s]
    generalized score  G = grad V / p = E[-(g / 2 + rate b^2 rho(w)) u / W | x_s]

with Lap V = g / 2 Lap p + rate (q * p - p), q the law of a jump. G drives the probability flow
dx/ds = -x / 2 - G, and is not the score: as s -> 0 it tends to g / 2 grad log p + rate b^2
grad(q * p) / p. Responses need the score, so they need g > 0.

Source: Baule, arXiv:2503.06558 (process, G and its flow); rho and the one-shot draw are derived
from the characteristic function exp(-g k^2 (1 - a) / 2) ((1 + b^2 k^2 a) / (1 + b^2 k^2))^rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincinv
from scipy.stats import nbinom
from torch import Tensor

from workflow.interfaces import UserError


@dataclass(frozen=True)
class JumpLaw:
    """The law of the noise, in internal time s (x decays as exp(-s / 2)).

    For noise of another colour than white, `gaussian` and `scale` are tensors over a basis in
    which both are diagonal, and u is taken in that basis.

    Attributes:
        rate: jumps per unit of s.
        scale: b; a number of a jump has variance 2 b^2.
        gaussian: g, variance of the Gaussian noise per unit of s.
    """

    rate: float
    scale: float | Tensor
    gaussian: float | Tensor

    def clock(self, s: Tensor, uniforms: Tensor) -> Tensor:
        """w at times `s`, from uniform numbers in (0, 1), `(2 rate, *shape of s)`.

        Every possible jump happens with probability 1 - a and then adds Exp(1).

        Raises:
            UserError: a rate that is no whole number.
        """
        rate = self.whole_rate()
        chance, wait = uniforms[:rate], uniforms[rate : 2 * rate]
        return torch.where(chance < -torch.expm1(-s), -wait.log(), 0).sum(0)

    def any_clock(self, s: float, uniforms: Tensor) -> Tensor:
        """w at one time for a rate of any size, from uniform numbers in (0, 1), `(..., 2)`.

        A negative binomial number N of jumps, a Gamma(N).
        """
        if not self.rate:
            return torch.zeros_like(uniforms[..., 0])
        a = math.exp(-s)
        chance, wait = uniforms.double().cpu().numpy().swapaxes(0, -1)
        jumped = chance > a**self.rate
        w = np.zeros_like(chance)
        number = nbinom.ppf(chance[jumped], self.rate, a)
        w[jumped] = a * gammaincinv(number, wait[jumped])
        return torch.from_numpy(w).to(uniforms)

    def noise_variance(self, s: Tensor, w: Tensor) -> Tensor:
        """W, variance of a number of u given the clock."""
        return self.gaussian * -torch.expm1(-s) + 2 * self.scale**2 * w

    def flux(self, s: Tensor, w: Tensor) -> Tensor:
        """g / 2 + rate b^2 rho(w), the factor of -u / W in the target of G."""
        jumps = torch.where(w > 0, self.rate * self.clock_ratio(s, w), 0)
        return self.gaussian / 2 + self.scale**2 * jumps

    def clock_ratio(self, s: Tensor, w: Tensor) -> Tensor:
        """rho(w): density of the clock after one more jump over that of the clock, at w > 0.

            rho = sum_{n=0}^rate B_n w^n / n! / sum_{n=1}^rate B_n w^(n-1) / (n-1)!

        with B_n the probability of n jumps of `rate`; a / (1 - a) + w for rate 1.
        """
        above, below = self._log_sums(s, w)
        return (above - below).exp()

    def log_clock(self, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """log of the density of the clock, and of that after one more jump, at w > 0.

        The clock is 0 with probability exp(-rate s) besides.
        """
        above, below = self._log_sums(s, w)
        return below - w, above - w

    def _log_sums(self, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """log of the sums over numbers of jumps in `clock_ratio`."""
        rate = self.whole_rate()
        n = torch.arange(rate + 1, dtype=s.dtype, device=s.device)
        n = n.reshape(-1, *[1] * max(s.ndim, w.ndim))
        choose = math.lgamma(rate + 1) - torch.lgamma(n + 1) - torch.lgamma(rate - n + 1)
        log_b = choose + n * torch.log(-torch.expm1(-s)) - (rate - n) * s
        log_w = torch.where(w > 0, w, 1).log()
        above = log_b + n * log_w - torch.lgamma(n + 1)
        below = log_b[1:] + (n[1:] - 1) * log_w - torch.lgamma(n[1:])
        return above.logsumexp(0), below.logsumexp(0)

    def whole_rate(self) -> int:
        """The rate as a whole number.

        Raises:
            UserError: it is none.
        """
        if self.rate != round(self.rate) or self.rate < 0:
            raise UserError(
                f"rate={self.rate:g}: what a network learns needs a whole number of jumps per unit "
                f"of time; use {max(1, round(self.rate))} and change the scale"
            )
        return round(self.rate)


def pure_jump_target(law: JumpLaw, u: Tensor, s: Tensor) -> Tensor:
    """E[target of G | u] for jumps alone of rate 1, numbers of a sample in its last axis.

        -u / 2 - b a / (1 - a) K_{d/2}(z) / K_{d/2-1}(z) u / |u|,    z = |u| / b;    0 where u = 0

    It has less variance than the target given the clock, whose 1 / w has no mean square.

    Args:
        law: with g = 0 and rate 1.
        u: noise `(..., d)`.
        s: times `(...)`.
    """
    size = torch.linalg.vector_norm(u, dim=-1)
    ratio = bessel_ratio(u.shape[-1], size.clamp(min=torch.finfo(u.dtype).tiny) / law.scale)
    pull = law.scale / torch.expm1(s) * ratio / size
    return torch.where(size[..., None] > 0, -(0.5 + pull)[..., None] * u, 0)


def bessel_ratio(d: int, z: Tensor) -> Tensor:
    """K_{d/2}(z) / K_{d/2-1}(z) of modified Bessel functions, for d >= 1 and z > 0.

    By the recurrence R_{v+1} = 2 v / z + 1 / R_v, stable upwards.
    """
    if d % 2:
        order, ratio = 0.5, torch.ones_like(z)
    else:
        order = 1.0
        k0 = torch.special.scaled_modified_bessel_k0(z)
        ratio = torch.special.scaled_modified_bessel_k1(z) / k0
    while order < d / 2:
        ratio = 2 * order / z + 1 / ratio
        order += 1
    return ratio
