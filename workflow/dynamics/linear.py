"""A linear stochastic system of a few variables: Gaussian, everything known exactly.

    dx = -A x dt + Sigma dW

Stationary covariance A C + C A^T = Sigma Sigma^T, score -C^-1 x, response exp(-A t).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.linalg import expm, solve_continuous_lyapunov
from torch import Tensor

from workflow.dynamics.low_dimensional import LowDimensional
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State

Matrix = tuple[tuple[float, ...], ...]

_SMALLEST_VARIANCE = 1e-12
"""Of a direction, relative to the largest: below it the score is not a float64 number."""


class Linear(LowDimensional):
    """Variables that pull at each other; the default is non-normal, so kicks grow first."""

    dt: float = Field(0.1, gt=0, description="time step, model time; any, the transition is exact")
    matrix: Matrix = Field(
        ((0.6, -0.9, 0.0), (0.3, 0.5, -1.2), (0.0, 0.2, 0.8)), description="A, 1 / time"
    )
    noise: Matrix = Field(
        ((0.8, 0.0, 0.0), (0.3, 0.6, 0.0), (0.0, -0.2, 0.5)),
        description="Sigma, x / time^(1/2), one row per variable",
    )

    @model_validator(mode="after")
    def _has_a_stationary_state(self) -> Linear:
        size = len(self.matrix)
        if size == 0 or any(len(row) != size for row in self.matrix):
            raise ValueError("matrix is not square; give as many numbers in a row as rows")
        if len(self.noise) != size or len({len(row) for row in self.noise}) != 1:
            raise ValueError(f"noise has {len(self.noise)} rows; needs {size} of equal length")
        slowest = float(np.linalg.eigvals(np.array(self.matrix)).real.min())
        if slowest <= 0:
            raise ValueError(
                f"matrix has an eigenvalue of real part {slowest:g}; all must be positive, "
                "or there is no stationary state"
            )
        variances = np.linalg.eigvalsh(_covariance(self))
        if variances[0] <= _SMALLEST_VARIANCE * variances[-1]:
            raise ValueError("noise does not reach every direction; the score would be infinite")
        return self

    @property
    def fields(self) -> Sequence[SavedField]:  # type: ignore[override]
        """x1, x2, ..."""
        count = len(self.matrix)
        return tuple(SavedField(f"x{i}", f"variable {i} of {count}") for i in range(1, count + 1))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One set of normals a step: the transition is exact."""
        return (len(self.matrix),)

    def initial(self, normals: Tensor) -> State:
        """A draw of the stationary state itself; no spin-up is needed."""
        return {"x": normals @ _matrices(self, normals.dtype, str(normals.device)).deviation}

    def step(self, state: State, normals: Tensor) -> State:
        """The exact transition over any `dt`: mean exp(-A dt) x, covariance C - E C E^T."""
        known = _matrices(self, normals.dtype, str(normals.device))
        return {"x": state["x"] @ known.propagator + normals @ known.spread}

    def drift(self, x: Tensor) -> Tensor:
        """-A x."""
        return x @ _matrices(self, x.dtype, str(x.device)).drift

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """Sigma Sigma^T v."""
        return v @ _matrices(self, v.dtype, str(v.device)).diffusion

    def covariance(self) -> Tensor:
        """C, stationary covariance `(field, field)`, float64, x^2."""
        return torch.from_numpy(_covariance(self))

    def exact_score(self, x: Tensor) -> Tensor:
        """-C^-1 x, `(batch, field)`, 1 / units of x."""
        return -x @ _matrices(self, x.dtype, str(x.device)).precision

    def exact_response(self, lag: Tensor) -> Tensor:
        """exp(-A lag), `(lag, field, field)`: responding variable, kicked variable."""
        a = torch.tensor(self.matrix, dtype=lag.dtype, device=lag.device)
        response = torch.linalg.matrix_exp(-lag.reshape(-1, 1, 1) * a)
        return response if len(a) > 1 else response.flatten()


class _Matrices(NamedTuple):
    """Matrices that act on rows x `(member, field)` from the right."""

    drift: Tensor
    diffusion: Tensor
    precision: Tensor
    deviation: Tensor
    propagator: Tensor
    spread: Tensor


@lru_cache(maxsize=32)
def _matrices(system: Linear, dtype: torch.dtype, device: str) -> _Matrices:
    a, noise, c = np.array(system.matrix), np.array(system.noise), _covariance(system)
    decay = expm(-a * system.dt)
    rows = (
        -a.T,
        noise @ noise.T,
        np.linalg.inv(c),
        _square_root(c),
        decay.T,
        _square_root(c - decay @ c @ decay.T),
    )
    return _Matrices(*(torch.tensor(row, dtype=dtype, device=device) for row in rows))


def _covariance(system: Linear) -> np.ndarray:
    noise = np.array(system.noise)
    c = solve_continuous_lyapunov(np.array(system.matrix), noise @ noise.T)
    return 0.5 * (c + c.T)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root; eigenvalues that rounding makes negative count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
