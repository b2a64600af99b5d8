"""Scores of whitened noised data that are judged in nats: the learned, the Gaussian, the exact one.

Where the noise jumps it is the flow score H of each (`workflow.diffusion.clock`): what samples are
drawn with. All are functions of states `(batch, field, *shape)` and a level `()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import cumulative_simpson
from scipy.signal import czt
from torch import Tensor

from workflow.diffusion.action import ScoreAt
from workflow.diffusion.clock import Clocks
from workflow.diffusion.jump import JumpLaw
from workflow.diffusion.jump_action import flow_score
from workflow.diffusion.jump_process import Jump
from workflow.diffusion.lattice import NoisedDensity
from workflow.interfaces import (
    ForwardProcess,
    HasExactScore,
    HasNoisedScore,
    Saved,
    System,
)
from workflow.scores.closed_form import Gaussian
from workflow.scores.neural import WhitenedScore

Characteristic = Callable[[Tensor], Tensor]
"""E exp(i k x) by k."""

SMALL = 0.1
"""Largest noise at which the exact score of clean data may stand for that of noised ones."""

NEGLIGIBLE = -30.0
"""log of a density over its largest value where one variable ends."""
STEP = 0.02
"""Of the lattice of one variable, standard deviations; its own density has a finer one."""
POINTS = 2**14
"""Of that density."""


def white_scores(
    model: WhitenedScore, whitening: Gaussian, system: System | None
) -> dict[str, ScoreAt]:
    """`gaussian`, `neural`, and `exact` where it is known.

    Args:
        model: the learned score.
        whitening: of the data.
        system: that made the data; None for recorded ones.
    """
    process = model.process
    found: dict[str, ScoreAt]
    if isinstance(process, Jump):
        found = {"gaussian": _gaussian_jumps(process), "neural": flow_score(process, model.answers)}
    else:
        found = {
            "gaussian": lambda x, sigma: -x / (1 + float(sigma) ** 2),
            "neural": lambda x, sigma: model(x, sigma.to(x).reshape(1)),
        }
    if system is not None and is_known(process, system):
        found["exact"] = _exact(process, whitening, system)
    return found


def is_known(process: ForwardProcess, system: System) -> bool:
    """Whether the score of the data of a system is known after all noise of a process."""
    if isinstance(system, HasNoisedScore):
        return True
    if not isinstance(system, HasExactScore):
        return False
    return _is_one_variable(process, system) or (
        not isinstance(process, Jump) and process.sigma_max <= SMALL
    )


def _is_one_variable(process: ForwardProcess, system: System) -> bool:
    saved = Saved(tuple(system.fields), system.shape, system.homogeneous)
    return saved.numbers == 1 and not process.narrow


def _gaussian_jumps(process: Jump) -> ScoreAt:
    def score(x: Tensor, level: Tensor) -> Tensor:
        clocks = Clocks.of(process, float(level), numbers=x[0].numel())
        return clocks.gaussian_flow_score(x.cpu().double()).to(x)

    return score


def _exact(process: ForwardProcess, whitening: Gaussian, system: System) -> ScoreAt:
    if isinstance(system, HasNoisedScore):
        return _noised(process, whitening, system)
    assert isinstance(system, HasExactScore)
    if _is_one_variable(process, system):
        return _on_a_lattice(process, whitening, system)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        y = whitening.unwhiten(x.cpu().double())
        return whitening.score_to_white(system.exact_score(y)).to(x)

    return score


def _noised(process: ForwardProcess, whitening: Gaussian, system: HasNoisedScore) -> ScoreAt:
    """Of a system that is known after any normal noise."""

    def score(x: Tensor, level: Tensor) -> Tensor:
        y = whitening.unwhiten(x.cpu().double())
        numbers = y[0].numel()
        rows = whitening.colour(torch.eye(numbers, dtype=y.dtype).reshape(-1, *y.shape[1:]))
        flat = rows.reshape(numbers, numbers)
        covariance = flat.T @ flat

        def after(variance: float) -> tuple[Tensor, Tensor]:
            noise = variance * covariance
            s = whitening.score_to_white(system.noised_score(y, noise))
            return system.log_density(y, noise), s

        if not isinstance(process, Jump):
            return after(float(level) ** 2)[1].to(x)
        return Clocks.of(process, float(level), numbers=numbers).flow_score(after).to(x)

    return score


def _on_a_lattice(process: ForwardProcess, whitening: Gaussian, system: HasExactScore) -> ScoreAt:
    """Of one variable, by its characteristic function; normal noise is that of no jumps."""
    law = process.law if isinstance(process, Jump) else JumpLaw(0, 1.0, 1.0)
    total = law.gaussian + 2 * law.rate * law.scale**2
    table, width = one_variable(
        lambda x: whitening.score_to_white(system.exact_score(whitening.unwhiten(x)))
    )
    half = max(width, 40 * max(1.0, float(law.scale)))
    points = 2 ** math.ceil(math.log2(2 * half / STEP))
    density = NoisedDensity(law, table, half_width=half, points=points)

    def score(x: Tensor, level: Tensor) -> Tensor:
        s = math.log1p(float(level) ** 2 / float(total))
        shrink = math.exp(-s / 2)
        found = density.generalized(x.cpu() * shrink, s)
        return (2 * shrink / total * found).to(x)

    return score


def one_variable(score: Callable[[Tensor], Tensor]) -> tuple[Characteristic, float]:
    """Characteristic function of one variable of unit variance, from grad log p.

    Args:
        score: of states `(batch, 1)`, float64.

    Returns:
        The function, of evenly spaced wavenumbers from 0, and a half-width beyond which there is
        nothing.
    """
    half = 8.0
    while True:
        x = np.linspace(-half, half, POINTS + 1)
        slope = score(torch.from_numpy(x)[:, None])[:, 0].numpy()
        log_p = cumulative_simpson(slope, x=x, initial=0)
        log_p -= log_p.max()
        if max(log_p[0], log_p[-1]) < NEGLIGIBLE or half > 500:
            break
        half *= 2
    p = np.exp(log_p)
    p /= p.sum()
    first, step = x[0], x[1] - x[0]

    def characteristic(k: Tensor) -> Tensor:
        waves = k.numpy()
        turn = np.exp(1j * (waves[1] - waves[0]) * step)
        return torch.from_numpy(czt(p, len(waves), turn) * np.exp(1j * waves * first))

    return characteristic, half
