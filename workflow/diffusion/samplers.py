"""Samplers: from noise to data by a denoiser, on Gaussian noise u = x + sigma z.

Every sampler calls the network at most `nfe` times, and its random numbers are named: draw number
k of a member is the same whatever else is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workflow.diffusion.schedules import GRIDS
from workflow.interfaces import Answers, ForwardProcess


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Problem:
    """Whitened samples that are wanted, and what they are made from.

    Attributes:
        process: forward process of the network.
        answers: the network's answers at states `(member, state * field, *shape)` and levels.
        normals: standard normals `(member, field, *shape)` by number of the draw.
        nfe: calls of the network, at most.
        eta: 0 for the deterministic flow, 1 for the reverse diffusion, more for more noise.
        stop: time at which a bridge is left; by `schedules.stopping_time` where None.
        grid: name in `GRIDS`.
        equalise: J^(1/2) of the covariance J of the noise; nothing for white noise.
        uniforms: uniform numbers in [0, 1), `(member, count)` float64, by number of the draw and
            count; for processes that draw such.
    """

    process: ForwardProcess
    answers: Answers
    normals: Callable[[int], Tensor]
    nfe: int
    eta: float = 0.0
    stop: float | None = None
    grid: str = "karras"
    equalise: Callable[[Tensor], Tensor] = _unchanged
    uniforms: Callable[[int, int], Tensor] | None = None
    draws: itertools.count = field(default_factory=itertools.count)

    def normal(self) -> Tensor:
        """Normals that nothing else uses."""
        return self.equalise(self.normals(next(self.draws)))

    def denoise(self, u: Tensor, sigma: float) -> Tensor:
        """E[x | u] = u + sigma^2 J s(u), one call."""
        score = self.process.score(self.answers, u, u.new_full((len(u),), sigma))
        return u + sigma**2 * self.equalise(self.equalise(score))

    def start(self) -> Tensor:
        """Gaussian data with the largest noise: its density up to what is not Gaussian."""
        data = self.normals(next(self.draws))
        return data + self.process.sigma_max * self.normal()

    def levels(self, count: int) -> list[float]:
        """From the largest noise to the smallest, and then none."""
        process = self.process
        return [*GRIDS[self.grid](process.sigma_max, process.sigma_min, count), 0.0]


def euler(problem: Problem) -> Tensor:
    """Euler's method for the flow, Euler and Maruyama's for eta > 0.

    dx = (1 + eta) (x - D) dsigma / sigma + (2 eta sigma)^(1/2) dW, sigma falling.
    """
    levels, eta, x = problem.levels(problem.nfe), problem.eta, problem.start()
    for sigma, lower in itertools.pairwise(levels):
        d = problem.denoise(x, sigma)
        if lower == 0:
            return d
        x = x + (1 + eta) * (lower / sigma - 1) * (x - d)
        if eta:
            x = x + (eta * (sigma**2 - lower**2)) ** 0.5 * problem.normal()
    return x


def heun(problem: Problem) -> Tensor:
    """Heun's method for the flow, two calls a step but for the last. Source: EDM."""
    x = problem.start()
    for sigma, lower in itertools.pairwise(problem.levels((problem.nfe + 1) // 2)):
        slope = (x - problem.denoise(x, sigma)) / sigma
        ahead = x + (lower - sigma) * slope
        if lower > 0:
            second = (ahead - problem.denoise(ahead, lower)) / lower
            ahead = x + (lower - sigma) * 0.5 * (slope + second)
        x = ahead
    return x


def exponential(problem: Problem) -> Tensor:
    """The step that is exact while the denoiser stands still; DDIM for eta = 0.

    x' = D + (sigma'/sigma)^(1+eta) (x - D) + sigma' (1 - (sigma'/sigma)^(2 eta))^(1/2) z
    """
    levels, eta, x = problem.levels(problem.nfe), problem.eta, problem.start()
    for sigma, lower in itertools.pairwise(levels):
        d, ratio = problem.denoise(x, sigma), lower / sigma
        x = d + ratio ** (1 + eta) * (x - d)
        if eta and lower > 0:
            x = x + lower * (1 - ratio ** (2 * eta)) ** 0.5 * problem.normal()
    return x


def multistep(problem: Problem) -> Tensor:
    """The exponential step of second order in -log sigma, from the last two denoised fields.

    Source: Lu et al. 2022, DPM-Solver++(2M), arXiv:2211.01095.
    """
    levels, x = torch.tensor(problem.levels(problem.nfe), dtype=torch.float64), problem.start()
    steps = (levels[:-1] / levels[1:]).log().tolist()
    before: Tensor | None = None
    for i, (sigma, lower) in enumerate(itertools.pairwise(levels.tolist())):
        now = problem.denoise(x, sigma)
        d = now
        if before is not None and lower > 0:
            d = now + 0.5 * steps[i] / steps[i - 1] * (now - before)
        x, before = d + lower / sigma * (x - d), now
    return x


CORRECTION = 0.16
"""Noise of a corrector's step relative to that of the field. Source: Song et al. 2021."""


def predictor_corrector(problem: Problem) -> Tensor:
    """The exponential step, then one of Langevin's equation at the lower level; two calls.

    x + e s + (2 e)^(1/2) z, e = 2 (0.16 sigma)^2. Source: Song et al. 2021, arXiv:2011.13456.
    """
    x = problem.start()
    for sigma, lower in itertools.pairwise(problem.levels((problem.nfe + 1) // 2)):
        d = problem.denoise(x, sigma)
        x = d + lower / sigma * (x - d)
        if lower > 0:
            step = 2 * CORRECTION**2
            x = x + step * (problem.denoise(x, lower) - x)
            x = x + (2 * step) ** 0.5 * lower * problem.normal()
    return x
