"""Two ways to step a system: its own array form in torch, or kernels with members in the lanes.

Both take the same steps with the same normals, so they differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workflow.dynamics.lanes.equations import LaneStepper, refusal
from workflow.dynamics.lanes.library import library
from workflow.dynamics.noise import NoiseStream
from workflow.interfaces import State, Stepper, System, UserError


class TorchStepper:
    """The definition: `system.step` with the normals of each step. An `interfaces.Stepper`."""

    def __init__(self, system: System, state: State, normals: Callable[[int], Tensor]) -> None:
        self._system, self._state, self._normals = system, state, normals

    def advance(self, first: int, steps: int) -> None:
        """Take the steps numbered `first`, ..., `first + steps - 1`."""
        with torch.no_grad():
            for step in range(first, first + steps):
                self._state = self._system.step(self._state, self._normals(step))

    def observe(self) -> Tensor:
        """The saved fields `(member, field, *shape)`."""
        with torch.no_grad():
            return self._system.observe(self._state)

    def state(self) -> State:
        """The state."""
        return self._state


def stepper(
    engine: str, system: System, state: State, *, seed: int, members: Sequence[int], stream: int
) -> Stepper:
    """Members of an ensemble, ready to be stepped by `torch` or `lanes`.

    Args:
        engine: `torch` or `lanes`.
        system: what is stepped.
        state: where it starts, each `(member, ...)`; not changed.
        seed: seed of the experiment.
        members: numbers of the members, which name their noise; equal numbers share it.
        stream: which use of noise this is.

    Raises:
        UserError: the engine has no kernel for this system, or is not built here.
    """
    if engine == "torch":
        dtype = next(iter(state.values())).real.dtype
        noise = NoiseStream(seed, members, stream=stream, shape=system.noise_shape, dtype=dtype)
        return TorchStepper(system, state, noise.at)
    check_engine(engine, system)
    kernels = library()
    assert kernels is not None
    return LaneStepper(kernels, system, state, seed=seed, members=members, stream=stream)


def fastest_engine(system: System) -> str:
    """The engine that `auto` stands for: `lanes` where there is a kernel, else `torch`."""
    return "lanes" if refusal(system) is None and library() is not None else "torch"


def check_engine(engine: str, system: System) -> None:
    """Refuse an engine that cannot step this system here.

    Raises:
        UserError: no kernel for this system, or no kernels at all.
    """
    if engine == "torch":
        return
    reason = refusal(system)
    if reason is not None:
        name = type(system).__name__
        raise UserError(f"ensemble.engine=lanes: {name} {reason}; use ensemble.engine=torch")
    if library() is None:
        raise UserError(
            "ensemble.engine=lanes: its kernels are not built here; install a C++ compiler and "
            "reinstall gfdt-workflow, or use another name and ensemble.engine=torch"
        )
