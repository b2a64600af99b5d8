"""Batches of training: a function of (seed, step), whatever the device and the number of ranks.

The pairs of a step are cut into at most `LANES` lanes of nearly equal size. Every lane draws from
a Philox counter of its own, so a rank draws only the lanes that its share meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

TRAINING_STREAM = 2**32
"""Philox counter word of training, apart from every stream of the simulations."""

LANES = 16
"""Part of the definition of the numbers: never change it."""

DRAWING = 4
"""Threads that draw for a GPU; NumPy lets go of the interpreter lock while it draws."""


@dataclass(frozen=True)
class Draws:
    """Random numbers of some pairs of a step, on the CPU.

    Attributes:
        place: which snapshot, uniform in [0, 1), `(pair,)` float64.
        level: uniform in [0, 1), from which the noise level is made, `(pair,)`.
        z: standard normals `(pair, normals * field, *shape)`.
        uniform: in [0, 1), whatever else the process draws, `(pair, uniforms)` float64.
    """

    place: np.ndarray
    level: np.ndarray
    z: np.ndarray
    uniform: np.ndarray


def lane_edges(pairs: int) -> list[int]:
    """First pair of every lane, and the number of pairs."""
    lanes = min(LANES, pairs)
    return [lane * pairs // lanes for lane in range(lanes + 1)]


def lanes_of(share: range, pairs: int) -> Iterator[tuple[int, slice]]:
    """Lanes that a share of the pairs meets, and which of their pairs it takes."""
    edges = lane_edges(pairs)
    for lane, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        low, high = max(first, share.start), min(last, share.stop)
        if low < high:
            yield lane, slice(low - first, high - first)


def draw(
    seed: int,
    step: int,
    *,
    pairs: int,
    share: range,
    shape: tuple[int, ...],
    normals: int = 1,
    uniforms: int = 0,
    threads: ThreadPoolExecutor | None = None,
) -> Draws:
    """Random numbers of a share of the pairs of a step.

    Args:
        seed: seed of the experiment.
        step: number of the step.
        pairs: antithetic pairs of the whole step.
        share: which of them.
        shape: fields that noise is for, and space.
        normals: normals for one number of them.
        uniforms: further uniform numbers of a pair.
        threads: draw several lanes at once.
    """
    edges = lane_edges(pairs)

    def lane(which: tuple[int, slice]) -> list[np.ndarray]:
        number, inside = which
        bits = np.random.Philox(key=[seed, step], counter=[0, 0, TRAINING_STREAM, number])
        generator, count = np.random.Generator(bits), edges[number + 1] - edges[number]
        place = generator.random(count)
        level = generator.random(count, dtype=np.float32)
        z = generator.standard_normal((count, normals * shape[0], *shape[1:]), dtype=np.float32)
        uniform = generator.random((count, uniforms))
        return [values[inside] for values in (place, level, z, uniform)]

    run = map if threads is None else threads.map
    parts = list(run(lane, lanes_of(share, pairs)))
    return Draws(*(np.concatenate(values) for values in zip(*parts, strict=True)))


class Source(Protocol):
    """Where snapshots come from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Fields and space of a snapshot."""
        ...

    def take(self, step: int, share: range, pairs: int, place: np.ndarray) -> Tensor:
        """Snapshots `(pair, field, *shape)` at uniform places `(pair,)` in [0, 1)."""
        ...


@dataclass(frozen=True)
class Held:
    """Snapshots in memory, `(sample, field, *shape)`, each equally likely in every step."""

    snapshots: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Fields and space of a snapshot."""
        return tuple(self.snapshots.shape[1:])

    def take(self, step: int, share: range, pairs: int, place: np.ndarray) -> Tensor:
        """Snapshots at places `(pair,)`."""
        index = torch.from_numpy((place * len(self.snapshots)).astype(np.int64))
        return self.snapshots[index.to(self.snapshots.device)]


@dataclass(frozen=True)
class Sample:
    """What a step sees, on the device: snapshots, and numbers as in `Draws`."""

    x: Tensor
    level: Tensor
    z: Tensor
    uniform: Tensor | None = None


class Batches:
    """This rank's share of every step, made a step ahead by a thread of its own.

    Args:
        source: the snapshots.
        seed: seed of the experiment.
        pairs: antithetic pairs of a whole step.
        share: those of this rank.
        device: where the samples go.
        fields: that noise is for, the first ones of a snapshot; default all.
        normals: as for `draw`.
        uniforms: as for `draw`.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        pairs: int,
        share: range,
        device: torch.device,
        fields: int | None = None,
        normals: int = 1,
        uniforms: int = 0,
    ) -> None:
        self._source, self._seed, self._pairs, self._share = source, seed, pairs, share
        self._numbers = {"normals": normals, "uniforms": uniforms}
        self._shape = (fields or source.shape[0], *source.shape[1:])
        self._device = device
        self._thread = ThreadPoolExecutor(1, "batches")
        # A GPU takes a batch faster than one core draws its normals.
        self._more = ThreadPoolExecutor(DRAWING, "draws") if device.type == "cuda" else None
        self._ahead: tuple[int, Future[Sample]] | None = None

    def at(self, step: int) -> Sample:
        """The share of a step; begins that of the next one."""
        ahead, self._ahead = self._ahead, None
        mine = ahead[1] if ahead is not None and ahead[0] == step else self._begin(step)
        sample = mine.result()
        self._ahead = (step + 1, self._begin(step + 1))
        return sample

    def _begin(self, step: int) -> Future[Sample]:
        return self._thread.submit(self._make, step)

    def _make(self, step: int) -> Sample:
        drawn = draw(
            self._seed,
            step,
            pairs=self._pairs,
            share=self._share,
            shape=self._shape,
            threads=self._more,
            **self._numbers,
        )
        x = self._source.take(step, self._share, self._pairs, drawn.place)
        numbers = map(torch.from_numpy, (drawn.level, drawn.z, drawn.uniform))
        return Sample(*(to_device(values, self._device) for values in (x, *numbers)))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The same on the device; from pinned memory, so that a GPU does not wait for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        with torch.cuda.device(device):
            return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
