"""One variable in a quartic potential, exact score known.

    dx = (F + a x + b x^2 - c x^3) dt + sigma dW

Its stationary density is p(x) ~ exp(2 / sigma^2 (F x + a x^2 / 2 + b x^3 / 3 - c x^4 / 4)).

The defaults are the skewed scalar model of arXiv:2504.13333 (section 3.1); F = 0, a = 1, b = 0,
c = 1, sigma = sqrt(2) is the symmetric double well of arXiv:2509.19660.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from workflow.dynamics.integrators import strang
from workflow.dynamics.low_dimensional import LowDimensional
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class Scalar(LowDimensional):
    """A number with a long tail on one side: its Gaussian approximation misses skewness."""

    fields: ClassVar[Sequence[SavedField]] = (SavedField("x", "scalar in a quartic well", "1"),)

    dt: float = Field(0.05, gt=0, description="time step, model time")
    forcing: float = Field(0.6, description="F, x / time")
    linear: float = Field(-0.0222, description="a, 1 / time")
    quadratic: float = Field(-0.2, description="b, 1 / (x time)")
    cubic: float = Field(0.0494, gt=0, description="c, 1 / (x^2 time)")
    sigma: float = Field(0.7071, gt=0, description="noise amplitude, x / time^(1/2)")

    def drift(self, x: Tensor) -> Tensor:
        """F + a x + b x^2 - c x^3."""
        return self.forcing + x * (self.linear + x * (self.quadratic - self.cubic * x))

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """sigma^2 v."""
        return self.sigma**2 * v

    def step(self, state: State, normals: Tensor) -> State:
        """Half the noise on either side of the flow: weak order 2."""
        return {"x": strang(self.drift, state["x"], self.dt, amplitude=self.sigma, w=normals)}

    def exact_score(self, x: Tensor) -> Tensor:
        """2 F(x) / sigma^2, 1 / units of x: in one dimension there is no current."""
        return (2 / self.sigma**2) * self.drift(x)
