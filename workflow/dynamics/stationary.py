"""The stationary density of one variable with additive noise and jumps, on a lattice.

Where a single variable is at rest nothing flows, so

    -F(x) p + D / 2 p' + J p = 0,    (J p)_k = i psi_k / k p_k

with psi_k = rate (1 - q^(k)) of the jumps. Fourier collocation makes this a dense linear system;
for smooth p the error falls faster than any power of the number of points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline

Function = Callable[[np.ndarray], np.ndarray]

_POINTS = (512, 1024, 2048, 4096)
_BELOW = 1e-12
"""Of the largest density: what is below it at the ends of the lattice is taken as nothing."""
_RESOLVED = 1e-9
"""Of the largest Fourier coefficient: the smallest scale must be below it."""


def stationary_density(
    drift: Function, diffusion: float, hops: Function, *, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice and density p, normalised.

    Args:
        drift: F(x).
        diffusion: D, per unit of time.
        hops: psi(k) of the jumps.
        scale: b of the jumps, where the search for a wide enough lattice begins.

    Raises:
        ArithmeticError: no lattice is both wide and fine enough.
    """
    half = 16.0 * max(scale, diffusion**0.5)
    for points in _POINTS:
        for _ in range(3):
            x, p = _solve(drift, diffusion, hops, half, points)
            if max(abs(p[:4]).max(), abs(p[-4:]).max()) < _BELOW * p.max():
                break
            half *= 1.5
        coefficients = abs(np.fft.rfft(p))
        if coefficients[-points // 16 :].max() < _RESOLVED * coefficients.max():
            return x, p
    raise ArithmeticError("the stationary density is too narrow and too wide for a lattice")


def _solve(
    drift: Function, diffusion: float, hops: Function, half: float, points: int
) -> tuple[np.ndarray, np.ndarray]:
    step = 2 * half / points
    x = (np.arange(points) - points // 2) * step
    k = 2 * np.pi * np.fft.fftfreq(points, step)
    k[points // 2] = 0.0
    pull = np.divide(hops(k), k, out=np.zeros_like(k), where=k != 0)
    kernel = np.fft.ifft(1j * (diffusion / 2 * k + pull)).real
    # A convolution as a matrix: row i, column j holds the kernel at i - j.
    index = np.arange(points)
    flux = kernel[(index[:, None] - index) % points]
    pulls = drift(x)
    flux[index, index] -= pulls
    # Balanced, or rounding where the drift is large would drown the tails.
    weight = 1 / (1 + abs(pulls))
    flux *= weight
    flux /= abs(flux).max(1, keepdims=True)
    # One more equation, sum p = 1 / step, added to every row.
    return x, weight * np.linalg.solve(flux + weight / points, np.full(points, 1 / (points * step)))


def stationary_score(
    drift: Function, diffusion: float, hops: Function, *, scale: float
) -> Function:
    """p' / p as a function; constant beyond where p is below rounding, as for Laplace jumps.

    Arguments as `stationary_density`.
    """
    x, p = stationary_density(drift, diffusion, hops, scale=scale)
    known = np.flatnonzero(p > _BELOW * p.max())
    inside = slice(known[0], known[-1] + 1)
    slope = np.fft.irfft(1j * 2 * np.pi * np.fft.rfftfreq(len(x), x[1] - x[0]) * np.fft.rfft(p))
    table = CubicSpline(x[inside], slope[inside] / p[inside])
    ends = x[inside][0], x[inside][-1]
    return lambda at: table(np.clip(at, *ends))
