"""Standard normals that are a function of their name and of nothing else.

A normal is named by (seed, member, step, stream) and its place in the step. The numbers come
from Philox counters (Salmon et al. 2011) keyed by (seed, member); steps are drawn in fixed blocks
so that the cost of opening a generator is shared. Batches, workers, segments and restarts can
therefore not change a single bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STEPS_PER_BLOCK, NUMBERS_PER_BLOCK = 32, 2048
"""Steps drawn from one counter block, or more where they are few numbers. Part of the definition
of the numbers: never change them."""

FORCING, INITIAL, DIRECT = 0, 1, 2
"""Streams: noise of the ensemble, initial states, and the first of the paired perturbed runs."""


def steps_per_block(shape: tuple[int, ...]) -> int:
    """Steps that one counter block serves, from the shape of the normals of one step.

    Opening a generator costs as much as a thousand normals: for a system of a few numbers that
    would be most of the run.
    """
    return max(STEPS_PER_BLOCK, NUMBERS_PER_BLOCK // math.prod(shape))


def normals(
    seed: int,
    member: int,
    *,
    block: int,
    stream: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Standard normals of a block of `steps_per_block(shape)` steps of one member.

    Args:
        seed: seed of the experiment.
        member: number of the member in the ensemble.
        block: number of the block of steps.
        stream: which use of noise this is.
        shape: shape of the normals of one step.
        dtype: float32 or float64; the two give different numbers.

    Returns:
        Array `(steps_per_block(shape), *shape)`.
    """
    bits = np.random.Philox(key=[seed, member], counter=[0, 0, stream, block])
    generator = np.random.Generator(bits)
    size = (steps_per_block(shape), *shape)
    if dtype == torch.float32:
        return generator.standard_normal(size, dtype=np.float32)
    return generator.standard_normal(size, dtype=np.float64)


class NoiseStream:
    """Normals of a group of members, step by step.

    The current block is kept, so that stepping through time draws each number once; the answer
    of `at` does not depend on what was asked before.
    """

    def __init__(
        self,
        seed: int,
        members: Sequence[int],
        *,
        stream: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self._seed, self._members, self._stream = seed, tuple(members), stream
        self._shape, self._dtype = tuple(shape), dtype
        self._block: int | None = None
        self._values = torch.empty(0)

    def at(self, step: int) -> Tensor:
        """Normals `(member, *shape)` of one step, `step >= 0`."""
        block, offset = divmod(step, steps_per_block(self._shape))
        if block != self._block:
            drawn = [
                normals(
                    self._seed,
                    member,
                    block=block,
                    stream=self._stream,
                    shape=self._shape,
                    dtype=self._dtype,
                )
                for member in self._members
            ]
            self._values = torch.from_numpy(np.stack(drawn, axis=1))
            self._block = block
        return self._values[offset]
