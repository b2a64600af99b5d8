"""At which noise levels, or times, a sampler calls the network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Grid = Callable[[float, float, int], list[float]]
"""Levels from the largest to the smallest, as many as asked for."""


def karras(high: float, low: float, count: int, *, rho: float = 7.0) -> list[float]:
    """Evenly spaced in sigma^(1/rho). Source: Karras et al. 2022 (EDM), rho = 7."""
    return [v**rho for v in np.linspace(high ** (1 / rho), low ** (1 / rho), count).tolist()]


def geometric(high: float, low: float, count: int) -> list[float]:
    """Evenly spaced in log sigma."""
    levels: list[float] = np.geomspace(high, low, count).tolist()
    return levels


def preserving(high: float, low: float, count: int) -> list[float]:
    """Evenly spaced in the time of variance-preserving noise whose beta rises from 0.

    sigma^2 = exp(b) - 1 with b^(1/2) evenly spaced.
    """
    root = np.linspace(np.log1p(high**2) ** 0.5, np.log1p(low**2) ** 0.5, count)
    levels: list[float] = np.sqrt(np.expm1(root**2)).tolist()
    return levels


GRIDS: dict[str, Grid] = {"karras": karras, "geometric": geometric, "preserving": preserving}


def quadratic_times(first: float, last: float, count: int) -> list[float]:
    """Times from first to last, evenly spaced in t^(1/2), for phase-space bridges."""
    return [v**2 for v in np.linspace(first**0.5, last**0.5, count).tolist()]


def stopping_time(nfe: int) -> float:
    """Where a bridge is left for its estimate of the data: later with more calls.

    0.5 with 5 calls, 0.17 later for every factor 2, at most 0.9: where samples of a mixture are
    best with its exact denoiser (docs/generative.md).
    """
    return float(np.clip(0.5 + 0.17 * np.log2(nfe / 5), 0.4, 0.9))
