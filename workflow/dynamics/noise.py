"""Standard normals that are a function of their name and of nothing else.

A normal is named by (seed, member, step, stream) and its number in the step. Philox 4x32-10
(Salmon et al. 2011) with key = seed and counter = (number // 4, step, stream, member) gives four
words, which two Box-Muller pairs turn into four normals. Batches, workers, segments, restarts and
engines can therefore not change them.

The normals of float32 are those of float64 but for rounding: two precisions run the same path.
No normal is larger than 6.7, which a standard normal exceeds once in 5e10 draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workflow.dynamics.lanes.library import library, unpack
from workflow.interfaces import UserError

FORCING, INITIAL, DIRECT = 0, 1, 2
"""Streams: noise of the ensemble, initial states, and the first of the paired perturbed runs."""

SAMPLES, SAMPLES_UNIFORM = 2**31, 2**31 + 1
"""Streams of samples of a learned density: normals, and uniform numbers."""

WORD = 2**32
"""Members, steps and streams are below it."""

_NUMBERS_AT_ONCE = 2048
"""Normals of a member that are drawn together, where a step needs fewer: opening a draw costs."""

_ROUNDS = 10
_FIRST, _SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint32)


def philox(counter: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Four random words from four counter words, uint32 arrays that broadcast together."""
    words = list(np.broadcast_arrays(*(np.asarray(c, dtype=np.uint32) for c in counter)))
    key = np.array([seed % WORD, seed // WORD], dtype=np.uint32)
    for _ in range(_ROUNDS):
        products = [words[0].astype(np.uint64) * _FIRST, words[2].astype(np.uint64) * _SECOND]
        high = [(p >> np.uint64(32)).astype(np.uint32) for p in products]
        low = [p.astype(np.uint32) for p in products]
        words = [high[1] ^ words[1] ^ key[0], low[1], high[0] ^ words[3] ^ key[1], low[0]]
        key = key + _KEY_STEPS
    return words


def normals(
    seed: int,
    members: Sequence[int],
    *,
    steps: range,
    stream: int,
    count: int,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """The first `count` standard normals of each step: the definition, in array form.

    Args:
        seed: seed of the experiment.
        members: numbers of the members in the ensemble.
        steps: steps of size 1.
        stream: which use of noise this is.
        count: normals of a step.
        dtype: float32 or float64.

    Returns:
        Array `(step, member, count)`.
    """
    groups = np.arange(-(-count // 4))
    step, member = np.array(steps)[:, None, None], np.array(members)[None, :, None]
    words = philox([groups, step, np.array(stream), member], seed)
    real = np.dtype(np.float32 if dtype == torch.float32 else np.float64)
    pairs = []
    for radial, angular in (words[:2], words[2:]):
        u = ((radial >> np.uint32(1)).astype(real) + 0.5) * 2.0**-31  # in (0, 1], of that type
        radius = np.sqrt(-2 * np.log(u.astype(float)))
        angle = angular.view(np.int32) * (2 * math.pi / WORD)
        pairs += [radius * np.cos(angle), radius * np.sin(angle)]
    four = np.stack(pairs, axis=-1).astype(real)
    return four.reshape(*four.shape[:2], -1)[..., :count]


def uniforms(
    seed: int, members: Sequence[int], *, step: int, stream: int, count: int
) -> np.ndarray:
    """Uniform numbers in (0, 1), float64 `(member, count)`, named as the normals are."""
    groups = np.arange(-(-count // 4))
    words = philox([groups, np.array(step), np.array(stream), np.array(members)[:, None]], seed)
    four = (np.stack(words, axis=-1).astype(np.float64) + 0.5) / WORD
    return four.reshape(len(members), -1)[:, :count]


class NoiseStream:
    """Normals of a group of members, step by step; from the compiled kernels where they are.

    What was drawn last is kept; the answer of `at` does not depend on what was asked before.
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
        self._count = math.prod(self._shape)
        self._at_once = max(1, _NUMBERS_AT_ONCE // self._count)
        self._first: int | None = None
        self._values = torch.empty(0)

    def at(self, step: int) -> Tensor:
        """Normals `(member, *shape)` of one step, `step >= 0`."""
        first = step - step % self._at_once
        if first != self._first:
            drawn = self._draw(range(first, first + self._at_once))
            self._values = torch.from_numpy(drawn).unflatten(2, self._shape or (1,))
            self._first = first
        values = self._values[step - first]
        return values if self._shape else values[:, 0]

    def _draw(self, steps: range) -> np.ndarray:
        """Normals `(step, member, count)`."""
        kernels = library()
        name: dict = {"steps": steps, "stream": self._stream, "count": self._count}
        if kernels is None:
            return normals(self._seed, self._members, dtype=self._dtype, **name)
        real = np.dtype(np.float32 if self._dtype == torch.float32 else np.float64)
        members = kernels.pack_members(self._members, real)
        groups = -(-self._count // 4)
        out = kernels.empty((len(members), len(steps), 4 * groups, kernels.lanes(real)), real)
        for block, numbers in enumerate(members):
            where = (self._seed, self._stream, numbers, steps.start, len(steps), groups)
            kernels.call("normals", real, *where, out[block])
        drawn = unpack(out, len(self._members))
        return np.ascontiguousarray(drawn[..., : self._count].swapaxes(0, 1))


def check_steps(steps: int) -> None:
    """Refuse more steps than have names.

    Raises:
        UserError: more than 2^32.
    """
    if steps > WORD:
        raise UserError(
            f"{steps} steps of system.dt in a run; noise has names for {WORD}: use a longer dt or "
            "a shorter ensemble.length"
        )
