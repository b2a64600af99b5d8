"""The architecture on one page: who hands what to whom, in which shape and unit.

    experiment.yaml -> System -> ensemble.zarr -> ScoreEstimator -> scores.zarr -> response.zarr

Arrays inside the science rooms are torch tensors; the shapes are written with these axes:

    member   independent realisations of the system (and any batch of snapshots)
    field    physical fields of one system, in the order of `System.fields`
    y, x     periodic space, x last (one-dimensional systems have x only)
    time     saved times, model time units
    lag      time between a kick and its response, model time units

Labels (xarray) begin where a user looks: in the stores and in `responses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

MEMBER, TIME, LAG = "member", "time", "lag"
SPACE = {0: (), 1: ("x",), 2: ("y", "x")}
"""Names of the space axes of a field with that many space dimensions."""

State = Mapping[str, Tensor]
"""Everything a system needs to go on, by name, each `(member, ...)`; includes hidden variables."""


class UserError(ValueError):
    """A mistake of the user, told in one line: what was given, what was needed, what to change."""

    exit_code = 78


@dataclass(frozen=True)
class Field:
    """One physical field that a system saves.

    Attributes:
        name: variable name in `ensemble.zarr`.
        long_name: what it is, in words (CF `long_name`).
        units: CF units, "1" when dimensionless.
        kicked: False where no state differs from another in this field alone.
    """

    name: str
    long_name: str
    units: str = "1"
    kicked: bool = True


@dataclass(frozen=True)
class Saved:
    """What every snapshot of a run holds.

    Attributes:
        fields: the physical fields that are watched and kicked, in order.
        shape: space shape of every field; `()` for plain variables.
        homogeneous: True when the statistics do not depend on the place.
        given: fields saved beside them that nothing kicks. Scores are grad log p(fields | given),
            and arrays for them have these fields after the others.
    """

    fields: tuple[Field, ...]
    shape: tuple[int, ...]
    homogeneous: bool
    given: tuple[Field, ...] = ()

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """The fields, then the given ones."""
        return self.fields + self.given

    @property
    def given_names(self) -> str:
        """Names of the given fields, as messages tell them."""
        return ", ".join(field.name for field in self.given)

    @property
    def numbers(self) -> int:
        """Numbers in the fields of a snapshot."""
        return len(self.fields) * math.prod(self.shape)

    @property
    def all_numbers(self) -> int:
        """Numbers in a snapshot with what is given."""
        return len(self.all_fields) * math.prod(self.shape)

    def conditioned(self, names: Sequence[str], *, key: str = "score.given") -> Saved:
        """The same with the fields of these names given, and those that cannot be kicked.

        Messages call the names by `key`.

        Raises:
            UserError: no such field, or none is left.
        """
        known = [field.name for field in self.fields]
        for name in names:
            if name not in known:
                raise UserError(
                    f"{key} has '{name}', which is not saved; choose from {', '.join(known)}"
                )
        given = tuple(f for f in self.fields if f.name in names or not f.kicked)
        fields = tuple(f for f in self.fields if f not in given)
        if not fields:
            raise UserError(
                f"{key}={', '.join(known)}: all fields are given and none is left to kick; "
                "leave one out"
            )
        return Saved(fields, self.shape, self.homogeneous, given)

    @property
    def maps(self) -> bool:
        """True where responses are averaged over the kicked place and are maps around it."""
        return self.homogeneous and bool(self.shape)


@dataclass(frozen=True)
class Part:
    """Some members over some saved times of a run."""

    members: range
    times: range

    def within(self, members: range, times: range) -> tuple[slice, slice] | None:
        """Where this part lies in a block, as slices of the block; None where they do not meet."""
        low, high = max(self.members.start, members.start), min(self.members.stop, members.stop)
        first, last = max(self.times.start, times.start), min(self.times.stop, times.stop)
        if low >= high or first >= last:
            return None
        return (
            slice(low - members.start, high - members.start),
            slice(first - times.start, last - times.start),
        )


@runtime_checkable
class System(Protocol):
    """A stochastic system that can be stepped; an SPDE on a periodic grid or anything smaller.

    Every random number is handed in, so a system is a deterministic function of its arguments
    and results depend on (seed, member, step) only.

    Attributes:
        fields: what is saved, in order.
        shape: space shape of every field, `(ny, nx)`; `()` for scalars.
        dt: time step in model time units.
        noise_shape: shape of the standard normals that one step of one member consumes.
        initial_shape: shape of the standard normals that the initial state of one member consumes.
        homogeneous: True when the statistics do not depend on the place.
    """

    fields: Sequence[Field]
    shape: tuple[int, ...]
    dt: float
    noise_shape: tuple[int, ...]
    initial_shape: tuple[int, ...]
    homogeneous: bool

    def initial(self, normals: Tensor) -> State:
        """State at the start of the spin-up from normals `(member, *initial_shape)`."""
        ...

    def step(self, state: State, normals: Tensor) -> State:
        """State one `dt` later, from normals `(member, *noise_shape)`."""
        ...

    def observe(self, state: State) -> Tensor:
        """The saved fields `(member, field, *shape)` of a state."""
        ...

    def displace(self, state: State, displacement: Tensor) -> State:
        """State whose saved fields are moved by `(member, field, *shape)`, all else unchanged."""
        ...


class Stepper(Protocol):
    """A group of members on its way: a system, a state, and the names of its noise."""

    def advance(self, first: int, steps: int) -> None:
        """Take the steps numbered `first`, ..., `first + steps - 1`."""
        ...

    def observe(self) -> Tensor:
        """The saved fields `(member, field, *shape)`; a member that blew up is not finite."""
        ...

    def state(self) -> State:
        """The state, from which a stepper of any engine goes on."""
        ...


@runtime_checkable
class HasExactScore(Protocol):
    """A system whose stationary density is known up to its normalisation."""

    def exact_score(self, x: Tensor) -> Tensor:
        """grad log p of the pixel vector, `(batch, field, *shape)`, in 1 / units of x."""
        ...


@runtime_checkable
class HasNoisedScore(Protocol):
    """A system whose density and score are known exactly after any normal noise, too."""

    def noised_score(self, x: Tensor, covariance: Tensor) -> Tensor:
        """grad log of the density of x plus noise of a covariance `(number, number)`, like x."""
        ...

    def log_density(self, x: Tensor, covariance: Tensor) -> Tensor:
        """log of that density, `(batch,)` in nats."""
        ...


@runtime_checkable
class HasExactResponse(Protocol):
    """A system whose mean response to a kick of one pixel is known in closed form."""

    def exact_response(self, lag: Tensor) -> Tensor:
        """R(lag, r) of the field r grid steps from the kicked pixel, `(lag, *shape)`.

        A system of several fields has two more axes, `(lag, field, field, *shape)`: the
        responding and the kicked field.
        """
        ...


@runtime_checkable
class HasDrift(Protocol):
    """A system whose saved fields are its whole state, and that can tell its equation.

    dx = F(x) dt + Sigma(x) dW,    D = Sigma Sigma^T
    """

    def drift(self, x: Tensor) -> Tensor:
        """F(x) of the pixel vector, `(batch, field, *shape)`, units of x per unit of time."""
        ...

    def noise_covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """D(x) v of pixel vectors `(batch, field, *shape)`, units of x^2 v per unit of time."""
        ...


@dataclass(frozen=True)
class Noise:
    """What a process makes of data with normals of both signs, and what is to be answered there.

    The states are mean +- shift; the answers asked for there are even -+ odd / scale.

    Attributes:
        mean: `(pair, state * field, *shape)`.
        shift: like `mean`.
        odd: `(pair, head * field, *shape)`.
        scale: `(pair,)`; one number for all answers of a pair.
        even: like `odd`; None for nothing.
        weight: of the squared errors, `(pair, 1 or head * field, *ones)`; a function of the level
            only, or it would move the minimum; None for 1.
    """

    mean: Tensor
    shift: Tensor
    odd: Tensor
    scale: Tensor
    even: Tensor | None = None
    weight: Tensor | None = None


Answers = Callable[[Tensor, Tensor], Tensor]
"""Answers `(batch, head * field, *shape)` at states `(batch, state * field, *shape)` and levels."""


class ForwardProcess(Protocol):
    """A way to noise whitened data: what it draws, what a network learns of it, what that means.

    A level is a positive number that orders the noise, the standard deviation where there is one.
    All arrays are of one kind: states `(batch, state * field, *shape)`, answers
    `(batch, head * field, *shape)`, both with the fields innermost.
    """

    @property
    def states(self) -> int:
        """Fields of a state for one field of the data; 2 where there are velocities."""
        ...

    @property
    def heads(self) -> tuple[str, ...]:
        """What the network answers, the ordinary score first: "score", "generalized_score"."""
        ...

    @property
    def normals(self) -> int:
        """Standard normals drawn for one number of the data."""
        ...

    @property
    def uniforms(self) -> int:
        """Uniform numbers drawn for one snapshot, besides that of the level."""
        ...

    @property
    def narrow(self) -> bool:
        """Whether all noise is small: it and the untrained score follow the local potential."""
        ...

    @property
    def sigma_min(self) -> float:
        """Smallest level; the one at which the score is evaluated on data."""
        ...

    @property
    def sigma_max(self) -> float:
        """Largest level."""
        ...

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Training levels `(batch,)` from uniform numbers in [0, 1)."""
        ...

    def noise(self, x: Tensor, level: Tensor, z: Tensor, uniform: Tensor | None) -> Noise:
        """Noised data and targets of both signs.

        Args:
            x: whitened data `(pair, field, *shape)`.
            level: `(pair,)`.
            z: normals `(pair, normals * field, *shape)`.
            uniform: in [0, 1), `(pair, uniforms)` float64; None where none are drawn.
        """
        ...

    def inputs(self, state: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees: the state in units of order 1, and a condition `(batch,)`."""
        ...

    def interpret(self, output: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """Answers of all heads from the network's output, both `(batch, head * field, *shape)`.

        Zero output is the exact answer for Gaussian data.
        """
        ...

    def score(self, answers: Answers, x: Tensor, level: Tensor) -> Tensor:
        """Score of the density of x, which is data plus the noise of a level, like `x`.

        Raises:
            UserError: the process has no ordinary score.
        """
        ...


@runtime_checkable
class ScoreEstimator(Protocol):
    """grad log p of the stationary density of the data, evaluated on data."""

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)` in 1 / units of x."""
        ...


def space_axes(x: Tensor) -> tuple[int, ...]:
    """Axes of space in an array `(batch, field, *shape)`."""
    return tuple(range(2, x.ndim))


DTYPES = {"float32": torch.float32, "float64": torch.float64}
