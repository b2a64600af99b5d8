"""From noise to data by the generalized score G: probability flow, and the family around it.

    dx = (x / 2 + (1 + eta) G) dr + (eta g)^(1/2) dB + jumps at rate eta lambda,    r = -s

has the marginals of the jump diffusion for every eta >= 0: 0 is the flow, 1 Baule's reverse
process. The true reversal in time would need ratios of densities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from workflow.diffusion.jump import JumpLaw

Drift = Callable[[Tensor, float], Tensor]
"""G(x, s) of states `(batch, ...)` at one time."""


def quadratic_times(last: float, first: float, steps: int) -> list[float]:
    """`steps + 1` times from `last` down to `first`, dense near the data."""
    roots = torch.linspace(math.sqrt(last), math.sqrt(first), steps + 1, dtype=torch.float64)
    return roots.square().tolist()


def flow(generalized: Drift, x: Tensor, times: list[float]) -> Tensor:
    """The probability flow backwards through falling times, by Heun's rule.

    Two calls of G a step but the last, which has one: 2 len(times) - 3 in all.
    """
    for step, (s, t) in enumerate(zip(times[:-1], times[1:], strict=True)):
        slope = x / 2 + generalized(x, s)
        moved = x + (s - t) * slope
        if step < len(times) - 2:
            moved = x + (s - t) / 2 * (slope + moved / 2 + generalized(moved, t))
        x = moved
    return x


def reverse(
    generalized: Drift,
    x: Tensor,
    times: list[float],
    *,
    law: JumpLaw,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """The family with noise, by exponential Euler steps, one call of G each; weak order 1."""
    share = replace(law, rate=eta * law.rate, gaussian=eta * law.gaussian)
    for s, t in zip(times[:-1], times[1:], strict=True):
        grow = math.exp((s - t) / 2)
        x = grow * x + 2 * (grow - 1) * (1 + eta) * generalized(x, s)
        x = x + grow * _noise(share, s - t, x, generator)
    return x


def _noise(law: JumpLaw, time: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """The noise that a forward step of this length adds, one clock for each of the batch.

    Times the growth over the step it is that of a step backwards, where x grows.
    """
    s = torch.full((len(like),), time, dtype=like.dtype)
    w = law.any_clock(s, generator) if law.rate else torch.zeros_like(s)
    variance = law.noise_variance(s, w).reshape(-1, *[1] * (like.ndim - 1))
    return variance.sqrt() * torch.randn(like.shape, dtype=like.dtype, generator=generator)
