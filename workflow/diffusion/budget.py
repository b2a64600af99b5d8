"""What the distance between samples and data is made of, term by term.

Samples of a learned score are off because the score is (at every noise level), because the prior
is not quite what noise makes of the data, because noise is not taken off to the end, and because
there were only so many data. Each term is a bound, or a first-order one, of the sliced Wasserstein
distance that can be computed without sampling; the distance itself is measured beside them.

The first-order terms follow the derivative of a sample by the states it comes from. A worst-case
(Lipschitz) bound would be true and say nothing: it grows as exp(int |grad S|).

Source: Mimikos-Stamatopoulos, Zhang, Katsoulakis 2024 (arXiv:2405.15754) for the terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workflow.diffusion.action import Nats, Schedule, ScoreAt
from workflow.diffusion.likelihood import noise_grid


@dataclass(frozen=True)
class Moved:
    """How far samples move along a unit direction by errors on their way, to first order.

    Attributes:
        start: root mean square of the shift for a unit shift of the state they start from.
        score: mean |shift| by the error of the score at all steps; None without the exact one.
            It bounds the sliced Wasserstein distance of the samples from exact ones.
    """

    start: float
    score: float | None


def moved(
    score: ScoreAt,
    y: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    eta: float,
    generator: torch.Generator,
    exact: ScoreAt | None = None,
) -> Moved:
    """Derivatives of samples along random unit directions, by one backward pass.

        w . (X_0 - X_0') = sum_i (dX_0 / dX_i)^T w . (shift of X_i by S - grad log p in step i)

    The dynamics are those of `likelihood.reverse`, first order in the step; noise is common.

    Args:
        score: S, differentiable.
        y: states at t_max, `(batch, ...)`.
        schedule: of the noise.
        steps: evenly spaced in ln sigma.
        eta: as in `reverse`.
        generator: of the noise and the directions.
        exact: grad log p_t.
    """
    times = noise_grid(schedule, steps).flip(0)
    scales = schedule.scale(times).tolist()
    squares = (schedule.variance(times) / schedule.scale(times) ** 2).tolist()
    u = (y / scales[0]).requires_grad_()
    states, shifts = [u], []
    for step, t in enumerate(times[:-1]):
        square, following, a = squares[step], squares[step + 1], scales[step]
        s = score(a * u, t)
        ratio = following / square
        kept = ratio ** (0.5 * (1 + eta**2))
        if exact is not None:
            error = (s - exact(a * u, t)).detach()
            shifts.append((1 - kept) * square * a * error)
        u = u + (1 - kept) * square * a * s
        if eta > 0:
            noise = torch.randn(u.shape, generator=generator, dtype=u.dtype)
            u = u + math.sqrt(following * (1 - ratio ** (eta**2))) * noise.to(u)
        states.append(u)
    along = torch.randn(u.shape, generator=generator, dtype=u.dtype).to(u).flatten(1)
    along = along / along.norm(dim=1, keepdim=True)
    slopes = torch.autograd.grad((u.flatten(1) * along).sum(), states)
    start = slopes[0].double().square().flatten(1).sum(1).mean().sqrt()
    total = sum((g * d).flatten(1).sum(1) for g, d in zip(slopes[1:], shifts, strict=False))
    found = float(total.abs().double().mean()) * scales[-1] if isinstance(total, Tensor) else None
    return Moved(float(start) * scales[-1] / scales[0], found)


def early_stopping(x: Tensor, schedule: Schedule, *, unit: int = 1) -> Nats:
    """Bound of the sliced W1 between the data and their density at t_min, in the unit of x.

    E|w . (y - x)| <= ((1 - a)^2 E(w . x)^2 + v)^(1/2), w a unit direction; mean over directions.
    """
    t = torch.tensor(schedule.t_min, dtype=torch.float64)
    faded = (1 - float(schedule.scale(t))) ** 2
    square = x.double().square().flatten(1).mean(1)
    return Nats.of((faded * square + float(schedule.variance(t))).sqrt(), unit=unit)


def total_variation_bound(nats: float) -> float:
    """TV <= (KL / 2)^(1/2), and never above 1 (Pinsker)."""
    return min(1.0, math.sqrt(max(0.0, nats) / 2))
