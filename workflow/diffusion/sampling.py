"""Which sampler goes with which process, and sampling by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workflow.diffusion import bridge_samplers, jump_samplers, samplers
from workflow.diffusion.samplers import Problem
from workflow.interfaces import UserError

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
    """

    run: Callable[[Problem], Tensor]
    kinds: frozenset[str]
    least: int
    noisy: bool = False
    gridded: bool = True


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(samplers.euler, GAUSSIAN, 2, noisy=True),
    "heun": Sampler(samplers.heun, GAUSSIAN, 3),
    "exponential": Sampler(samplers.exponential, GAUSSIAN, 2, noisy=True),
    "multistep": Sampler(samplers.multistep, GAUSSIAN, 2),
    "predictor_corrector": Sampler(samplers.predictor_corrector, GAUSSIAN, 3),
    "bridge": Sampler(bridge_samplers.multistep, BRIDGES, 3, gridded=False),
    "bridge_exponential": Sampler(bridge_samplers.exponential, BRIDGES, 2, gridded=False),
    "bridge_ancestral": Sampler(bridge_samplers.ancestral, BRIDGES, 2, gridded=False),
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
    kind: str, name: str | None, *, nfe: int, eta: float, grid: str | None, sigma_max: float
) -> str:
    """The name of the sampler, if it can be used as asked.

    Args:
        kind: of process.
        name: of the sampler; the usual one of the process where None.
        nfe: calls of the network.
        eta: noise of the way back.
        grid: name in `schedules.GRIDS`; None where not asked for.
        sigma_max: largest noise of the process.

    Raises:
        UserError: what does not go together.
    """
    fit = [other for other, one in SAMPLERS.items() if kind in one.kinds]
    name = name or USUAL.get(kind)
    if name not in fit:
        raise UserError(
            f"sampler '{name}' does not go with score.process.kind={kind}; use {', '.join(fit)}"
        )
    one = SAMPLERS[name]
    if nfe < one.least:
        raise UserError(
            f"nfe={nfe}: sampler '{name}' needs at least {one.least} calls of the network"
        )
    if eta < 0 or (eta > 0 and not one.noisy):
        noisy = [other for other in fit if SAMPLERS[other].noisy]
        hint = f"use 0, or sampler {' or '.join(noisy)} for eta > 0" if noisy else "use 0"
        raise UserError(f"eta={eta:g} does not go with sampler '{name}'; {hint}")
    if grid is not None and not one.gridded:
        raise UserError(f"grid={grid}: sampler '{name}' has times of its own; leave grid out")
    if kind in BRIDGES | JUMPS and sigma_max < LEAST_NOISE:
        raise UserError(
            f"score.process: noise up to {sigma_max:g} hides nothing, so no sample can begin in "
            f"it; sampling needs sigma_max >= {LEAST_NOISE:g}: train with score.process.kind=ve"
        )
    return name


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
