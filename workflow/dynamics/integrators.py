"""Time steps of stochastic equations with additive noise, in Fourier space or of plain numbers.

Each takes the drift `f(u)`, the state and the noise of the step, and returns the state one `dt`
later. Noise is `amplitude * sqrt(dt) * w` with `w` white normals, or the transform of white
normals where the state is one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Drift = Callable[[Tensor], Tensor]


def runge_kutta_4(drift: Drift, u: Tensor, dt: float) -> Tensor:
    """Classical fourth-order Runge-Kutta step of du/dt = drift(u)."""
    k1 = drift(u)
    k2 = drift(u + (0.5 * dt) * k1)
    k3 = drift(u + (0.5 * dt) * k2)
    k4 = drift(u + dt * k3)
    return u + (dt / 6) * (k1 + 2 * (k2 + k3) + k4)


def noise_last(
    drift: Drift, u: Tensor, dt: float, *, amplitude: Tensor | float, w: Tensor
) -> Tensor:
    """Flow for dt, then the noise of dt: weak order 1.

    The stationary variance of a mode with rate r is inflated by 2 r dt / (1 - exp(-2 r dt)), so
    use it with r dt << 1, or to reproduce published runs.

    Args:
        drift: right-hand side without noise.
        u: state, `(member, ...)`.
        dt: step.
        amplitude: noise amplitude per mode or variable.
        w: white normals or their transform, `(member, 1, ...)`.
    """
    return runge_kutta_4(drift, u, dt) + (dt**0.5 * amplitude) * w[:, 0]


def strang(drift: Drift, u: Tensor, dt: float, *, amplitude: Tensor | float, w: Tensor) -> Tensor:
    """Half the noise, flow for dt, half the noise: weak order 2.

    The stationary variance of a mode with rate r is r dt coth(r dt) times the exact one. The two
    halves are independent: sharing one draw would cost the second order for nonlinear drifts.

    Args:
        drift: right-hand side without noise.
        u: state, `(member, ...)`.
        dt: step.
        amplitude: noise amplitude per mode or variable.
        w: two independent sets of white normals or their transforms, `(member, 2, ...)`.
    """
    half = (0.5 * dt) ** 0.5 * amplitude
    return runge_kutta_4(drift, u + half * w[:, 0], dt) + half * w[:, 1]


SCHEMES = {"strang": (strang, 2), "noise_last": (noise_last, 1)}
"""Name -> (step, number of sets of normals it consumes)."""
