"""A tree of bisections of a cloud of points: cells of nearly equal probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_SAMPLE = 100
"""Points that build the tree, in units of 1 / probability."""
FEWEST_PER_CELL = 10
"""Points of the data that a cell should hold at least."""
_ITERATIONS = 100
"""Most rounds of one 2-means; it stops as soon as no point changes sides."""


@dataclass(frozen=True)
class Partition:
    """Bisecting 2-means: every inner node holds two centres, every leaf is a cell.

    Attributes:
        normal: from the first centre of a node to the second; 0 for a leaf, `(node, d)`.
        offset: normal . x half-way between the two centres, `(node,)`.
        child: number of the first child, the second is next to it; a leaf is its own, `(node,)`.
        cell: number of the cell of a leaf, -1 for an inner node, `(node,)`.
    """

    normal: Tensor
    offset: Tensor
    child: Tensor
    cell: Tensor

    @classmethod
    def build(cls, x: Tensor, *, probability: float) -> Partition:
        """Split a node while it holds more than floor(2 p n) of the points that build the tree.

        A split starts from the two halves along the axis of largest variance, so the tree is a
        function of the points.

        Args:
            x: points in random order `(point, d)`; at most 100 / p of them are used.
            probability: p, smallest probability that a cell aims at; at least 10 / n is taken.
        """
        probability = max(probability, FEWEST_PER_CELL / len(x))
        x = x[: int(LARGEST_SAMPLE / probability)]
        threshold = int(2 * probability * len(x))
        node = torch.zeros(len(x), dtype=torch.int64)
        normal, offset = [x.new_zeros(1, x.shape[1])], [x.new_zeros(1)]
        child, first, count = [torch.zeros(1, dtype=torch.int64)], 0, 1
        while count:
            # One level at a time: all its nodes are split together.
            inside = (node >= first) & (node < first + count)
            held = torch.bincount(node[inside] - first, minlength=count)
            large = held > threshold
            chosen = inside.clone()
            chosen[inside] = large[node[inside] - first]
            label = (torch.cumsum(large, 0) - 1)[node[chosen] - first]
            split = _Split.of(x[chosen], label, int(large.sum()))
            offspring = first + count + 2 * (torch.cumsum(split.parted, 0) - 1)
            parents = torch.nonzero(large)[:, 0][split.parted]
            child[-1][parents] = offspring[split.parted]
            normal[-1][parents] = split.normal[split.parted]
            offset[-1][parents] = (split.middle * split.normal).sum(1)[split.parted]
            moved = split.parted[label]
            places = torch.nonzero(chosen)[:, 0][moved]
            node[places] = offspring[label[moved]] + split.side[moved]
            first, count = first + count, 2 * int(split.parted.sum())
            normal.append(x.new_zeros(count, x.shape[1]))
            offset.append(x.new_zeros(count))
            child.append(torch.arange(first, first + count))
        children = torch.cat(child)
        leaf = children == torch.arange(len(children))
        cell = torch.where(leaf, torch.cumsum(leaf, 0) - 1, -1)
        return cls(torch.cat(normal), torch.cat(offset), children, cell)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.cell.max()) + 1

    def __call__(self, x: Tensor) -> Tensor:
        """Cell of each point `(point, d)`: down the tree, each time to the nearer centre."""
        node = torch.zeros(len(x), dtype=torch.int64)
        while True:
            beyond = (x * self.normal[node]).sum(1) > self.offset[node]
            below = self.child[node] + beyond
            if torch.equal(below, node):
                return self.cell[node]
            node = below


@dataclass(frozen=True)
class _Split:
    """Many clouds, each cut in two by its own 2-means."""

    middle: Tensor
    normal: Tensor
    side: Tensor
    parted: Tensor

    @classmethod
    def of(cls, x: Tensor, label: Tensor, count: int) -> _Split:
        """Split `count` clouds of points `(point, d)` with labels `(point,)`.

        `parted` is False for a cloud whose points are all the same.
        """
        held = torch.bincount(label, minlength=count).clamp(min=1)[:, None]
        mean = _sums(x, label, count) / held
        variance = _sums((x - mean[label]).square(), label, count) / held
        axis = variance.argmax(1)
        side = (x - mean[label]).gather(1, axis[label][:, None])[:, 0] > 0
        for _ in range(_ITERATIONS):
            centres = _centres(x, label, side, count)
            middle, normal = 0.5 * (centres[0] + centres[1]), centres[1] - centres[0]
            new = ((x - middle[label]) * normal[label]).sum(1) > 0
            if torch.equal(new, side):
                break
            side = new
        second = torch.bincount(label[side], minlength=count)
        parted = (second > 0) & (second < held[:, 0])
        return cls(middle, normal, side, parted)


def _centres(x: Tensor, label: Tensor, side: Tensor, count: int) -> Tensor:
    """Means of the two halves of each cloud, `(2, cloud, d)`."""
    key = label + count * side
    held = torch.bincount(key, minlength=2 * count).clamp(min=1)[:, None]
    return (_sums(x, key, 2 * count) / held).reshape(2, count, x.shape[1])


def _sums(x: Tensor, label: Tensor, count: int) -> Tensor:
    """Sum of x `(point, d)` over the points of each label, `(count, d)`."""
    return x.new_zeros(count, x.shape[1]).index_add_(0, label, x)
