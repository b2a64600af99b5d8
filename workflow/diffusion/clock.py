"""Averages over the clock of jump noise: from what is known after normal noise to jumps.

Given the clock w the noise of y is normal, of variance v(w) = W / a. So the density of noised data
and their flow score H, which is G_y in units of T / (2 a), are integrals over one number:

    p(y) = int f(w) p_v(y) dw,    H(y) p(y) = int [g / T f + (1 - g / T) f_1](w) grad p_v(y) dw

p_v is the density after normal noise of variance v, f the law of the clock, f_1 that of the clock
after one more jump. Without jumps H is the score.

Source: E[flux(w) / a  grad log p_v | y] = G_y with flux f = g / 2 f + rate b^2 f_1, see `jump`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workflow.diffusion.gaussian import along
from workflow.diffusion.jump_process import Jump

LEAST, BEYOND = 1e-9, 45.0
"""Smallest clock of a jump, and how far the largest one is beyond the number of jumps."""
SPACING = 0.25
"""Of nodes in ln w, at most."""

AfterNoise = Callable[[float], tuple[Tensor, Tensor]]
"""log p_v `(batch,)` and grad log p_v `(batch, ...)` at some places, by the variance v."""


@dataclass(frozen=True)
class Clocks:
    """Nodes of an integral over the clock at one level, `(node,)` float64.

    Attributes:
        variance: v of y.
        log_share: log of the probability of a node; the first has no jump.
        log_pull: log of its weight in H, g / T f + (1 - g / T) f_1.
    """

    variance: Tensor
    log_share: Tensor
    log_pull: Tensor

    @classmethod
    def of(cls, process: Jump, level: float, *, numbers: int) -> Clocks:
        """Trapezoids in ln w, where all that is integrated is smooth and vanishes at both ends.

        Args:
            process: the noise.
            level: of it.
            numbers: of a snapshot; p_v of many is a narrow function of w.
        """
        s = process.time(torch.tensor(level, dtype=torch.float64))
        law, still = process.law, process.gaussian / process.variance
        none = torch.zeros(0, dtype=torch.float64)
        log_w, log_f, log_f1 = none, none, none
        if process.rate:
            low, high = math.log(LEAST), math.log(process.rate + BEYOND)
            count = math.ceil((high - low) / min(SPACING, math.sqrt(2 / numbers)))
            log_w = torch.linspace(low, high, count + 1, dtype=torch.float64)
            width = log_w + math.log((high - low) / count)  # dw = w dln(w)
            log_f, log_f1 = (one + width for one in law.log_clock(s, log_w.exp()))
        atom = -process.rate * s[None]
        w = torch.cat([torch.zeros_like(atom), log_w.exp()])
        log_still, log_more = (
            math.log(part) if part > 0 else -math.inf for part in (still, 1 - still)
        )
        share = torch.cat([atom, log_f])
        more = torch.cat([torch.full_like(atom, -math.inf), log_f1])
        pull = torch.logaddexp(log_still + share, log_more + more)
        return cls(s.exp() * law.noise_variance(s, w), share - share.logsumexp(0), pull)

    def flow_score(self, after: AfterNoise) -> Tensor:
        """H of data that are known after normal noise of any variance, `(batch, ...)`."""
        logs, scores = zip(*map(after, self.variance.tolist()), strict=True)
        parts = zip(self._weights(torch.stack(logs)), scores, strict=True)
        return torch.stack([along(weight, s) * s for weight, s in parts]).sum(0)

    def gaussian_flow_score(self, y: Tensor) -> Tensor:
        """H of Gaussian data of unit variance, `(batch, ...)`: a function of |y| times y."""
        weights = self._weights(self._gaussian(y))
        return along(-(weights / (1 + self.variance[:, None])).sum(0), y).to(y.dtype) * y

    def gaussian_log_density(self, y: Tensor) -> Tensor:
        """log p of such data, noised, `(batch,)` in nats."""
        norm = 0.5 * y[0].numel() * math.log(2 * math.pi)
        return (self.log_share[:, None] + self._gaussian(y)).logsumexp(0) - norm

    def _weights(self, logs: Tensor) -> Tensor:
        total = (self.log_share[:, None] + logs).logsumexp(0)
        return (self.log_pull[:, None] + logs - total).exp()

    def _gaussian(self, y: Tensor) -> Tensor:
        """log p_v of Gaussian data but for (2 pi)^(1/2), `(node, batch)`."""
        total = 1 + self.variance[:, None]
        square = y.double().square().flatten(1).sum(1)
        return -0.5 * (square / total + y[0].numel() * total.log())
