"""Entropy made while data are noised: how far they are from Gaussian, in nats, mode by mode.

Data of unit variance, noised, would have the score of p_eq = N(0, a^2 + v) if they were Gaussian.
What their score has beyond it makes entropy (Premkumar 2024, arXiv:2409.03817):

    int dt g^2 / 2 E|S - grad log p_eq|^2 = KL(p_tmin || p_eq) - KL(p_tmax || p_eq)

On whitened data this is their negentropy, and S - grad log p_eq at vanishing noise is everything
by which a response differs from the one of the Gaussian (quasi-linear) theorem: a mode that makes
no entropy gains nothing from a learned score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workflow.diffusion.action import Nodes, Schedule, ScoreAt, control_cost, noised
from workflow.interfaces import space_axes


def entropy_production(
    score: ScoreAt, x: Tensor, z: Tensor, schedule: Schedule, nodes: Nodes
) -> Tensor:
    """Contributions `(node, batch)` to the entropy made from t_min to t_max, in nats.

    Args:
        score: S.
        x: data of unit variance `(batch, ...)`.
        z: standard normals `(node, batch, ...)`.
        schedule: of the noise.
        nodes: of the integral over time.
    """
    draws = iter(z)

    def made(t: Tensor) -> Tensor:
        return control_cost(_beyond(score, x, next(draws), t, schedule), t, schedule)

    return nodes.integrate(made)


def entropy_by_mode(
    score: ScoreAt, x: Tensor, z: Tensor, schedule: Schedule, nodes: Nodes
) -> Tensor:
    """The same for every field and mode, mean over the batch, `(node, field, *shape)`.

    Modes are in FFT order, all of them, so their sum is the total; a mode and its conjugate share
    what they make. Without space, for every field. Arguments as `entropy_production`, data
    `(batch, field, *shape)`.
    """
    draws = iter(z)

    def made(t: Tensor) -> Tensor:
        beyond = _beyond(score, x, next(draws), t, schedule)
        axes = space_axes(beyond)
        if axes:
            beyond = torch.fft.fftn(beyond, dim=axes, norm="ortho")
        return 0.5 * schedule.rate(t).to(x) * beyond.abs().square().mean(0)

    return nodes.integrate(made)


def _beyond(score: ScoreAt, x: Tensor, z: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """S - grad log p_eq at noised data."""
    y = noised(schedule, x, z, t)
    return score(y, t) + y / float(schedule.scale(t) ** 2 + schedule.variance(t))
