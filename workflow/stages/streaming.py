"""Snapshots of training that are read from the store as they are needed.

The pairs of a step are cut into lanes (`scores.batches`). A lane draws uniformly from one block
of the store, (group of members) x (chunk of times), for as many draws as the block holds
snapshots; then it goes on to its next one. An epoch is a random permutation of all blocks, a
function of (seed, epoch), and lane l takes the blocks l, l + L, l + 2L, ... of all epochs in a
row. So batches do not depend on the number of ranks, a rank reads only what its lanes need, and
holds two blocks a lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workflow.runs import Run
from workflow.scores.batches import TRAINING_STREAM, lane_edges, lanes_of
from workflow.stages.data import kept, load_snapshots, part_bytes, read_snapshots

SHUFFLE_STREAM = TRAINING_STREAM + 1
"""Philox counter word of the order of blocks."""


@dataclass
class _Lane:
    """Where a lane stands: its block is used until step `until`, `ahead` is being read."""

    turns: Iterator[tuple[int, int]]
    until: int
    snapshots: Tensor
    following: tuple[int, int]
    ahead: Future[Tensor]


class Streamed:
    """Snapshots `(sample, field, *shape)` in blocks, two blocks a lane in memory.

    Args:
        sizes: snapshots in each block.
        read: a block by its number, `(snapshot, field, *shape)`.
        shape: fields and space of a snapshot.
        seed: seed of the experiment.
    """

    def __init__(
        self,
        sizes: list[int],
        read: Callable[[int], Tensor],
        *,
        shape: tuple[int, ...],
        seed: int,
    ) -> None:
        self.shape = shape
        self._sizes, self._read, self._seed = sizes, read, seed
        self._reader = ThreadPoolExecutor(1, "blocks")
        self._lanes: dict[int, _Lane] = {}

    def anew(self) -> Streamed:
        """The same from the first step on."""
        return Streamed(self._sizes, self._read, shape=self.shape, seed=self._seed)

    def take(self, step: int, share: range, pairs: int, place: np.ndarray) -> Tensor:
        """Snapshots of a step at uniform places `(pair,)` in [0, 1) of their lanes' blocks.

        Steps must be asked for in ascending order.
        """
        edges, parts, first = lane_edges(pairs), [], 0
        for number, inside in lanes_of(share, pairs):
            count = inside.stop - inside.start
            draws = edges[number + 1] - edges[number]
            block = self._block(step, number, len(edges) - 1, draws)
            index = (place[first : first + count] * len(block)).astype(np.int64)
            parts.append(block[torch.from_numpy(index)])
            first += count
        return torch.cat(parts)

    def _block(self, step: int, number: int, lanes: int, draws: int) -> Tensor:
        """The block of a lane at a step, and the next one on its way."""
        if number not in self._lanes:
            turns = self._turns(number, lanes, draws)
            block, until = next(turn for turn in turns if turn[1] > step)
            following = next(turns)
            snapshots = self._reader.submit(self._read, block)
            ahead = self._reader.submit(self._read, following[0])
            self._lanes[number] = _Lane(turns, until, snapshots.result(), following, ahead)
        lane = self._lanes[number]
        while step >= lane.until:
            lane.snapshots, lane.until = lane.ahead.result(), lane.following[1]
            lane.following = next(lane.turns)
            lane.ahead = self._reader.submit(self._read, lane.following[0])
        return lane.snapshots

    def _turns(self, number: int, lanes: int, draws: int) -> Iterator[tuple[int, int]]:
        """Blocks of a lane in order, each with the first step after it."""
        until, position, epoch, order = 0, number, -1, np.empty(0, np.int64)
        while True:
            if position // len(self._sizes) != epoch:
                epoch = position // len(self._sizes)
                order = self._order(epoch)
            block = int(order[position % len(self._sizes)])
            until += math.ceil(self._sizes[block] / draws)
            yield block, until
            position += lanes

    def _order(self, epoch: int) -> np.ndarray:
        bits = np.random.Philox(key=[self._seed, epoch], counter=[0, 0, SHUFFLE_STREAM, 0])
        return np.random.Generator(bits).permutation(len(self._sizes))


def training_source(run: Run) -> Tensor | Streamed:
    """Snapshots of the training part: in memory up to `score.train.memory`, else streamed."""
    part = run.training
    if part_bytes(run, part) <= run.experiment.score.train.memory:
        return load_snapshots(run, part)
    blocks = []
    for members in run.groups:
        for times in map(run.segment_times, range(run.segments)):
            inside = kept(run, part, members, times)
            if inside is not None:
                blocks.append((members, times, inside))

    def read(number: int) -> Tensor:
        members, times, inside = blocks[number]
        block = read_snapshots(run, members, times)[inside]
        return torch.from_numpy(block.reshape(-1, *block.shape[2:]))

    sizes = [_snapshots(rows, when) for _, _, (rows, when) in blocks]
    shape = (len(run.saved.all_fields), *run.saved.shape)
    return Streamed(sizes, read, shape=shape, seed=run.experiment.seed)


def _snapshots(rows: list[int] | slice, times: slice) -> int:
    members = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    return int(members * (times.stop - times.start))
