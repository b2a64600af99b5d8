"""What all systems of a few numbers share: no space, one saved field per variable.

    dx = F(x) dt + Sigma(x) dW (Ito),     x of a few components

The state is the vector itself, `{"x": (member, field)}`. A step is cheap next to the calls it
takes, so step thousands of members together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from workflow.dynamics.spectral import Parameters
from workflow.interfaces import Field as SavedField
from workflow.interfaces import State


class LowDimensional(Parameters):
    """A few coupled stochastic equations; write `fields`, `drift`, `noise_covariance`, `step`."""

    fields: ClassVar[Sequence[SavedField]]
    shape: ClassVar[tuple[int, ...]] = ()
    homogeneous: ClassVar[bool] = True
    dt: float

    @abstractmethod
    def drift(self, x: Tensor) -> Tensor:
        """F(x), `(batch, field)`, units of x per unit of time."""

    @abstractmethod
    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """Sigma Sigma^T v, `(batch, field)`, units of x^2 v per unit of time."""

    @abstractmethod
    def step(self, state: State, normals: Tensor) -> State:
        """State one `dt` later, from normals `(member, *noise_shape)`."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Two sets of normals a step: half the noise on either side of the flow."""
        return (2, len(self.fields))

    @property
    def initial_shape(self) -> tuple[int, ...]:
        """One normal per variable."""
        return (len(self.fields),)

    def initial(self, normals: Tensor) -> State:
        """Unit normals; the spin-up brings them to the stationary state."""
        return {"x": normals}

    def observe(self, state: State) -> Tensor:
        """The variables, `(member, field)`."""
        return state["x"]

    def displace(self, state: State, displacement: Tensor) -> State:
        """State moved by `(member, field)`."""
        return {"x": state["x"] + displacement}
