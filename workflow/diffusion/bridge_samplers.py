"""Samplers along the phase-space bridge, by a network of its own or by any denoiser.

All end with the network's estimate of the data at a time before 1: position and velocity together
know the data long before the position has arrived.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from workflow.diffusion.phase_bridge import Bridge, PhaseBridge
from workflow.diffusion.samplers import Problem
from workflow.diffusion.schedules import quadratic_times, stopping_time

Predict = Callable[[Tensor, Tensor, float], Tensor]
"""E[x1 | x, v] at a time, one call."""

_NODES = 64
"""Points of Gauss and Legendre between two times."""
_SUBSTEPS = 64
"""Steps of Runge and Kutta's method between two times, of 2 x 2 matrices."""


def multistep(problem: Problem) -> Tensor:
    """The flow without noise, its force in its own unit a polynomial through the last three calls.

    Source: Chen et al. 2024 (AGM), after Zhang et al. 2023 (gDDIM).
    """
    bridge, predict, times, (x, v) = _begin(problem)
    grid = torch.tensor(times, dtype=torch.float64)
    unit = (bridge.spread(grid) / (1 - grid)).tolist()
    known: list[Tensor] = []
    for i, (t, later) in enumerate(itertools.pairwise(times)):
        force = _force(bridge, t, x, v, predict(x, v, t))
        known = [force / unit[i], *known[:2]]
        for_x, for_v = _integrals(bridge, times[i::-1][: len(known)], t, later)
        x = x + (later - t) * v + sum(w * f for w, f in zip(for_x, known, strict=True))
        v = v + sum(w * f for w, f in zip(for_v, known, strict=True))
    return predict(x, v, times[-1])


def exponential(problem: Problem) -> Tensor:
    """The same flow, its linear part exact, the estimate of the data linear in time."""
    bridge, predict, times, (x, v) = _begin(problem)
    before: Tensor | None = None
    for i, (t, later) in enumerate(itertools.pairwise(times)):
        now = predict(x, v, t)
        slope = torch.zeros_like(now)
        if before is not None:
            slope = (now - before) / (t - times[i - 1])
        (xx, xv, x0, x1), (vx, vv, v0, v1) = _flow(bridge, t, later)
        x, v = (
            xx * x + xv * v + x0 * now + x1 * slope,
            vx * x + vv * v + v0 * now + v1 * slope,
        )
        before = now
    return predict(x, v, times[-1])


def ancestral(problem: Problem) -> Tensor:
    """The bridge itself, noise included, to the estimate of the data; exact in every step."""
    bridge, predict, times, (x, v) = _begin(problem)
    for t, later in itertools.pairwise(times):
        data = predict(x, v, t)
        ends = torch.tensor([t, later], dtype=torch.float64)
        phi, noise = bridge.transition(ends[0], ends[1])
        xx, xv, vx, vv = (float(part) for part in phi)
        qxx, qxv, qvv = (float(part) for part in noise)
        first, second = problem.normal(), problem.normal()
        root = qxx**0.5
        shift = root * first
        kick = qxv / root * first + max(qvv - qxv**2 / qxx, 0.0) ** 0.5 * second
        off = x - data
        x, v = data + xx * off + xv * v + shift, vx * off + vv * v + kick
    return predict(x, v, times[-1])


def _begin(problem: Problem) -> tuple[Bridge, Predict, list[float], tuple[Tensor, Tensor]]:
    """The bridge, what predicts its end, the times, and Gaussian data's state at the first."""
    process = problem.process
    own = process if isinstance(process, PhaseBridge) else None
    bridge = own.bridge if own else Bridge()
    stop = stopping_time(problem.nfe) if problem.stop is None else problem.stop
    ends = torch.tensor([process.sigma_max, process.sigma_min], dtype=torch.float64)
    first, last = bridge.time(ends).tolist()
    times = quadratic_times(first, min(stop, last), problem.nfe)

    def predict(x: Tensor, v: Tensor, t: float) -> Tensor:
        m = bridge.moments(torch.tensor(t, dtype=torch.float64))
        ax, av = (float(part) for part in m.combination)
        u, sigma = ax * x + av * v, float(m.sigma)
        if own is None:
            return problem.denoise(u, sigma)
        level = u.new_full((len(u),), sigma)
        return u + sigma**2 * problem.answers(torch.cat([x, v], dim=1), level)

    m = bridge.moments(torch.tensor(first, dtype=torch.float64))
    xx, vx, vv = (float(part) for part in m.root)
    data, e0, e1 = problem.normals(next(problem.draws)), problem.normal(), problem.normal()
    state = float(m.cx) * data + xx * e0, float(m.cv) * data + vx * e0 + vv * e1
    return bridge, predict, times, state


def _force(bridge: Bridge, t: float, x: Tensor, v: Tensor, data: Tensor) -> Tensor:
    a, b, c = (float(part) for part in bridge.force(torch.tensor(t, dtype=torch.float64)))
    return a * x + b * v + c * data


def _integrals(
    bridge: Bridge, nodes: list[float], t: float, later: float
) -> tuple[list[float], list[float]]:
    """Of the unit times each Lagrange polynomial, with and without the factor (later - s)."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    s = t + 0.5 * (later - t) * (points + 1)
    weights = 0.5 * (later - t) * weights
    unit = (bridge.spread(torch.from_numpy(s)) / (1 - torch.from_numpy(s))).numpy()
    for_x, for_v = [], []
    for j, node in enumerate(nodes):
        others = [n for i, n in enumerate(nodes) if i != j]
        basis = np.prod([(s - n) / (node - n) for n in others], axis=0) * unit * weights
        for_v.append(float(basis.sum()))
        for_x.append(float(((later - s) * basis).sum()))
    return for_x, for_v


def _flow(bridge: Bridge, t: float, later: float) -> tuple[list[float], list[float]]:
    """Factors of x, v, the data and their rate of change in x and in v at the later time."""
    h = (later - t) / _SUBSTEPS
    times = torch.linspace(t, later, 2 * _SUBSTEPS + 1, dtype=torch.float64)
    a, b, c = (part.numpy() for part in bridge.force(times))
    since = times.numpy() - t
    # Columns: from x, from v, from the data, from the data's slope.
    y = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])

    def rate(y: np.ndarray, i: int) -> np.ndarray:
        source = np.array([0, 0, c[i], c[i] * since[i]])
        return np.stack([y[1], a[i] * y[0] + b[i] * y[1] + source])

    for step in range(_SUBSTEPS):
        i = 2 * step
        k1 = rate(y, i)
        k2 = rate(y + 0.5 * h * k1, i + 1)
        k3 = rate(y + 0.5 * h * k2, i + 1)
        k4 = rate(y + h * k3, i + 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y[0].tolist(), y[1].tolist()
