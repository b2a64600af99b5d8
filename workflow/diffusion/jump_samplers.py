"""From noise to data by the generalized score G_y: probability flow, and the family around it.

    dy = (1 + eta) G_y dr + a^(-1/2) ((eta g)^(1/2) dB + jumps at eta times their rate),    r = -s

has the marginals of the jump diffusion for every eta >= 0: 0 is the flow, 1 Baule's reverse
process. The true reversal in time would need ratios of densities.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from workflow.diffusion.jump import JumpLaw
from workflow.diffusion.jump_process import Jump
from workflow.diffusion.samplers import Problem


def flow(problem: Problem) -> Tensor:
    """The probability flow by Heun's rule, two calls a step but for the last."""
    process, y = cast(Jump, problem.process), _start(problem)
    for level, lower in itertools.pairwise(problem.levels((problem.nfe + 1) // 2)):
        step = _time(process, level) - _time(process, lower)
        slope = _pull(problem, y, level)
        ahead = y + step * slope
        if lower > 0:
            ahead = y + 0.5 * step * (slope + _pull(problem, ahead, lower))
        y = ahead
    return y


def reverse(problem: Problem) -> Tensor:
    """The family with noise by Euler's steps; weak order 1."""
    process, eta, y = cast(Jump, problem.process), problem.eta, _start(problem)
    share = replace(process.law, rate=eta * process.rate, gaussian=eta * process.gaussian)
    for level, lower in itertools.pairwise(problem.levels(problem.nfe)):
        s, t = _time(process, level), _time(process, lower)
        y = y + (1 + eta) * (s - t) * _pull(problem, y, level)
        if eta and lower > 0:
            # The noise of a forward step, grown over the step and from x to y.
            y = y + math.exp(s / 2) * _noise(problem, share, s - t)
    return y


def _start(problem: Problem) -> Tensor:
    """Gaussian data with the noise of the largest level: exact up to what is not Gaussian."""
    process = cast(Jump, problem.process)
    s = _time(process, process.sigma_max)
    return problem.normal() + math.exp(s / 2) * _noise(problem, process.law, s)


def _noise(problem: Problem, law: JumpLaw, time: float) -> Tensor:
    """u after so long, one clock a member."""
    assert problem.uniforms is not None
    z = problem.normal()
    s = torch.full((len(z),), time, dtype=torch.float64, device=z.device)
    w = law.any_clock(time, problem.uniforms(next(problem.draws), 2))
    spread = law.noise_variance(s, w).sqrt().to(z)
    return spread.reshape(-1, *[1] * (z.ndim - 1)) * z


def _pull(problem: Problem, y: Tensor, level: float) -> Tensor:
    process = cast(Jump, problem.process)
    return process.generalized_score(problem.answers, y, y.new_full((len(y),), level))


def _time(process: Jump, level: float) -> float:
    return math.log1p(level**2 / process.variance)
