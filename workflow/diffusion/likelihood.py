"""How likely data are under a score: a bound, the exact density, and what both leave open.

A score makes a model of the data twice: by the reverse diffusion, whose density the action bounds
from below, and by the flow without noise that has the same marginals when the score is right,
whose density is a line integral of the divergence. Densities are of data as given to these
functions; the model is that of p at `schedule.t_min`.

Source: Song et al. 2021 (score SDE); Kingma et al. 2021; Premkumar 2023 (arXiv:2310.04490).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from workflow.diffusion.action import (
    Nodes,
    Schedule,
    ScoreAt,
    denoising_lagrangian,
    divergence,
    noise_range,
)

LOG_TWO_PI = math.log(2 * math.pi)


def elbo(
    score: ScoreAt, x: Tensor, z: Tensor, schedule: Schedule, nodes: Nodes, *, spread: float = 1.0
) -> Tensor:
    """Lower bound of E[log p(y) | x] with y = x noised to t_min, `(batch,)` in nats.

        E log pi(y_T) - int dt E L(y_t)

    Tight at every x where S is the score; otherwise its mean over the data falls short by the path
    KL. The mean over the noise is over `z`: one draw and its negative for each node.

    Args:
        score: S.
        x: data `(batch, ...)`.
        z: standard normals `(node, batch, ...)`.
        schedule: of the noise.
        nodes: of the integral over time, such as `noise_nodes`.
        spread: standard deviation of the data, for the prior N(0, a^2 spread^2 + v).
    """
    draws = iter(z)
    lost = nodes.integrate(lambda t: denoising_lagrangian(score, x, next(draws), t, schedule))
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    square = float(schedule.scale(end)) ** 2 * x.double().square().flatten(1).sum(1)
    noise = float(schedule.variance(end)) * x[0].numel()
    return _normal(square + noise, x[0].numel(), prior_variance(schedule, spread)) - lost.sum(0)


def log_density(
    score: ScoreAt,
    x: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    probes: Tensor | None = None,
    spread: float = 1.0,
    prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """log p of the probability-flow ODE at x, `(batch,)` in nats.

        dy/dt = f y - g^2 S / 2,     log p(x) = log pi(y_T) + int dt div(f y - g^2 S / 2)

    Runge-Kutta of order 4 in ln sigma.

    Args:
        score: S.
        x: states at t_min, `(batch, ...)`.
        schedule: of the noise.
        steps: of the integration; four scores each.
        probes: as in `action.divergence`; without them one derivative for each number of x.
        spread: as in `elbo`.
        prior: log pi of states at t_max, `(batch,)`; by default that of `spread`.
    """
    times = noise_grid(schedule, 2 * steps)
    u, gained = x / float(schedule.scale(times[0])), x.new_zeros(len(x))

    def slopes(u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # In u = y / a the flow is du/dln(sigma) = -v S / a, and -v div S is lost.
        a, v = float(schedule.scale(t)), float(schedule.variance(t))
        s, div = divergence(lambda y: score(y, t), a * u, probes=probes)
        return -v / a * s, -v * div

    sigmas = (schedule.variance(times).sqrt() / schedule.scale(times)).log()
    for step in range(0, 2 * steps, 2):
        first, middle, last = times[step : step + 3]
        h = float(sigmas[step + 2] - sigmas[step])
        k1, l1 = slopes(u, first)
        k2, l2 = slopes(u + h / 2 * k1, middle)
        k3, l3 = slopes(u + h / 2 * k2, middle)
        k4, l4 = slopes(u + h * k3, last)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gained = gained + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
    a, numbers = float(schedule.scale(times[-1])), x[0].numel()
    stretched = numbers * math.log(a / float(schedule.scale(times[0])))
    if prior is None:
        square = (a * u).double().square().flatten(1).sum(1)
        begun = _normal(square, numbers, prior_variance(schedule, spread))
    else:
        begun = prior(a * u)
    return begun + gained.double() + stretched


def reverse(
    score: ScoreAt,
    y: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """States at t_min from states y at t_max, by one of the dynamics with equal marginals.

        dX = [-f X + (1 + eta^2) g^2 S / 2] ds + eta g dW

    eta = 0 is the probability flow, 1 the reverse diffusion, more is more noise. All eta agree
    where S is the score; where it is not they part, and their difference tells without any truth.
    Within a step the denoised state D = (y + v S) / a is what the last two make of its middle, and
    the rest is exact.

    Args:
        score: S.
        y: states `(batch, ...)`.
        schedule: of the noise.
        steps: evenly spaced in ln sigma; one score each.
        eta: >= 0.
        generator: of the noise.
    """
    times = noise_grid(schedule, steps).flip(0)
    squares = (schedule.variance(times) / schedule.scale(times) ** 2).tolist()
    u, before = y / float(schedule.scale(times[0])), None
    for t, square, following in zip(times[:-1], squares[:-1], squares[1:], strict=True):
        a = float(schedule.scale(t))
        now = u + square * a * score(a * u, t)
        denoised, before = now if before is None else 1.5 * now - 0.5 * before, now
        ratio = following / square
        u = denoised + ratio ** (0.5 * (1 + eta**2)) * (u - denoised)
        if eta > 0:
            noise = torch.randn(u.shape, generator=generator, dtype=u.dtype)
            u = u + math.sqrt(following * (1 - ratio ** (eta**2))) * noise.to(u)
    return float(schedule.scale(times[-1])) * u


def prior_variance(schedule: Schedule, spread: float = 1.0) -> float:
    """Variance of the prior: that of noised data of standard deviation `spread`."""
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    return float(schedule.scale(end) ** 2 * spread**2 + schedule.variance(end))


def prior_mismatch(x: Tensor, schedule: Schedule, *, spread: float = 1.0) -> Tensor:
    """Bound of KL(p_T || pi) by convexity, mean over x of KL(p_T(. | x) || pi), `(batch,)` nats.

    KL(p_0 || model) <= path KL + KL(p_T || pi).
    """
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    ratio = float(schedule.variance(end)) / prior_variance(schedule, spread)
    mean = float(schedule.scale(end) ** 2) * x.double().square().flatten(1).sum(1)
    spent = x[0].numel() * (ratio - 1 - math.log(ratio))
    return 0.5 * (mean / prior_variance(schedule, spread) + spent)


def noise_grid(schedule: Schedule, steps: int) -> Tensor:
    """Times evenly spaced in ln sigma, `(steps + 1,)`, from t_min to t_max."""
    low, high = noise_range(schedule)
    times = schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64).exp())
    times[0], times[-1] = schedule.t_min, schedule.t_max
    return times


def _normal(square: Tensor, numbers: int, variance: float) -> Tensor:
    """log of a normal density of `numbers` numbers at squared distance `square`."""
    return -0.5 * (square / variance + numbers * (LOG_TWO_PI + math.log(variance)))
