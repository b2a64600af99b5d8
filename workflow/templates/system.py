"""A system of a few numbers: replace the equation by yours; `docs/extending.md` has one with space.

dx = (x - x^3) dt + sigma dW
"""

from workflow.dynamics.integrators import strang
from workflow.dynamics.low_dimensional import LowDimensional
from workflow.interfaces import Field


class DoubleWell(LowDimensional):
    """A number that hops between -1 and 1."""

    fields = (Field("x", "place in a double well", "1"),)  # name, what it is, units

    dt: float = 0.01  # time step, model time
    sigma: float = 1.0  # noise amplitude, x / time^(1/2)

    def drift(self, x):
        """F(x) of states `(batch, field)`, x / time."""
        return x - x**3

    def noise_covariance(self, x, v):
        """sigma^2 v."""
        return self.sigma**2 * v

    def step(self, state, normals):
        """One step from the normals that are handed in: draw none of your own."""
        return {"x": strang(self.drift, state["x"], self.dt, amplitude=self.sigma, w=normals)}

    def exact_score(self, x):
        """2 F / sigma^2, 1 / x; leave it out where the stationary density is not known."""
        return 2 / self.sigma**2 * self.drift(x)
