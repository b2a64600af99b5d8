"""Which sampler goes with which process, and sampling by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workflow.diffusion import bridge_samplers, build_process, jump_samplers, samplers
from workflow.diffusion.samplers import Problem
from workflow.diffusion.schedules import GRIDS
from workflow.interfaces import UserError
from workflow.processes import ProcessConfig

GAUSSIAN = frozenset({"edm", "ve", "vp"})
BRIDGES = GAUSSIAN | {"phase_bridge"}
JUMPS = frozenset({"jump"})

LEAST_NOISE = 5.0
"""sigma_max from which on Gaussian noise hides the data, of unit variance, well enough."""


@dataclass(frozen=True)
class Sampler:
    """A way to sample.

    Attributes:
        run: makes whitened samples `(member, field, *shape)`.
        kinds: of process that it goes with.
        least: calls of the network that it needs.
        noisy: whether it takes eta > 0.
        gridded: whether it takes another grid.
        stopped: whether it is left at a time before the end.
    """

    run: Callable[[Problem], Tensor]
    kinds: frozenset[str]
    least: int
    noisy: bool = False
    gridded: bool = True
    stopped: bool = False


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(samplers.euler, GAUSSIAN, 2, noisy=True),
    "heun": Sampler(samplers.heun, GAUSSIAN, 3),
    "exponential": Sampler(samplers.exponential, GAUSSIAN, 2, noisy=True),
    "multistep": Sampler(samplers.multistep, GAUSSIAN, 2),
    "predictor_corrector": Sampler(samplers.predictor_corrector, GAUSSIAN, 3),
    "bridge": Sampler(bridge_samplers.multistep, BRIDGES, 3, gridded=False, stopped=True),
    "bridge_exponential": Sampler(
        bridge_samplers.exponential, BRIDGES, 2, gridded=False, stopped=True
    ),
    "bridge_ancestral": Sampler(bridge_samplers.ancestral, BRIDGES, 2, gridded=False, stopped=True),
    "jump_flow": Sampler(jump_samplers.flow, JUMPS, 3),
    "jump_reverse": Sampler(jump_samplers.reverse, JUMPS, 2, noisy=True),
}

USUAL = {
    "edm": "multistep",
    "ve": "multistep",
    "vp": "multistep",
    "phase_bridge": "bridge",
    "jump": "jump_flow",
}
"""Sampler of a process where none is asked for."""


def check_sampler(
    process: ProcessConfig,
    name: str | None,
    *,
    nfe: int,
    eta: float = 0.0,
    stop: float | None = None,
    grid: str | None = None,
) -> str:
    """The name of the sampler, if it can be used as asked.

    Args:
        process: section `score.process`.
        name: of the sampler; the usual one of the process where None.
        nfe: calls of the network.
        eta: noise of the way back.
        stop: time at which a bridge is left; None where not asked for.
        grid: name in `schedules.GRIDS`; None where not asked for.

    Raises:
        UserError: what does not go together.
    """
    kind, name = process.kind, name or USUAL[process.kind]
    fit = [other for other, one in SAMPLERS.items() if kind in one.kinds]
    if name not in fit:
        why = f"does not go with score.process.kind={kind}" if name in SAMPLERS else "is unknown"
        raise UserError(f"sampler '{name}' {why}; use {_listed(fit)}")
    one = SAMPLERS[name]
    if nfe < one.least:
        raise UserError(f"nfe={nfe}: sampler '{name}' needs at least {one.least} network calls")
    if eta < 0 or (eta > 0 and not one.noisy):
        noisy = [other for other in fit if SAMPLERS[other].noisy]
        hint = f"use 0, or sampler {_listed(noisy)} for eta > 0" if noisy else "use 0"
        raise UserError(f"eta={eta:g} does not go with sampler '{name}'; {hint}")
    if grid is not None and (not one.gridded or grid not in GRIDS):
        hint = f"use {_listed(GRIDS)}" if one.gridded else "it has times of its own: leave it out"
        raise UserError(f"grid={grid} does not go with sampler '{name}'; {hint}")
    if stop is not None and (not one.stopped or not 0 < stop < 1):
        hint = "between 0 and 1" if one.stopped else "of a bridge only: leave it out"
        raise UserError(f"stop={stop:g} does not go with sampler '{name}'; it is a time {hint}")
    high = build_process(process).sigma_max
    if kind in GAUSSIAN | JUMPS and high < LEAST_NOISE:
        raise UserError(
            f"score.process.kind={kind} was trained on noise up to {high:.3g}, which hides "
            f"nothing: no sample can begin in it; sampling needs {LEAST_NOISE:g} or more, as "
            "score.process.kind: ve has"
        )
    return name


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


@torch.inference_mode()
def sample(name: str, problem: Problem) -> tuple[Tensor, int]:
    """Whitened samples `(member, field, *shape)`, and the calls of the network they took."""
    calls = 0

    def counted(state: Tensor, level: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.answers(state, level)

    found = SAMPLERS[name].run(replace(problem, answers=counted))
    return found, calls
