"""Gradients of several ranks made their mean, while the backward pass goes on.

Gradients live in flat buckets in the order in which the backward pass makes them, last layer
first. A bucket is sent as soon as all its gradients are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc.comm import Comm
from hpc.reduction import Reduction, cuda_aware

BUCKET = 4 * 2**20
"""Bytes of a bucket: smaller ones cost latency, larger ones overlap with nothing."""


@dataclass
class _Bucket:
    """Some gradients in one array.

    Attributes:
        flat: their numbers, padded to a multiple of the number of ranks.
        missing: gradients that the backward pass has still to make.
        size: their number.
        reduction: makes the mean.
    """

    flat: Tensor
    missing: int
    size: int
    reduction: Reduction


class FlatGradients:
    """Means over the ranks, in buckets, overlapped with the backward pass.

    Sums are in rank order and in float64, so they repeat bit for bit; another number of ranks
    changes them by rounding. Every rank must call every method in the same order.

    A wish to stop travels with them: all ranks learn of it in the same step.

    Args:
        comm: the ranks.
        bucket: bytes of a bucket.

    Attributes:
        asked: whether this rank was asked to stop; may be set at any time.
        stopping: whether any rank had been when the last mean was made.
    """

    def __init__(self, comm: Comm, *, bucket: int = BUCKET) -> None:
        self.rank, self.size = comm.rank, comm.size
        self.asked = self.stopping = False
        self._comm, self._bytes = comm, bucket
        self._buckets: list[_Bucket] = []
        self._extra = torch.zeros(2)
        self._begun = 0
        self._open = False

    def attach(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the gradients of the parameters into buckets."""
        parameters = [p for p in parameters if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            # Half precision through MPI adds bytes, not numbers, and says nothing.
            raise ValueError("only gradients in torch.float32 are reduced over ranks")
        if self.size == 1:
            return
        worlds = self._comm.duplicates(2)
        aware = parameters[0].device.type == "cuda" and cuda_aware()
        groups: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(parameters):
            if groups[-1] and sum(p.nbytes for p in groups[-1]) + parameter.nbytes > self._bytes:
                groups.append([])
            groups[-1].append(parameter)
        for group in groups:
            # Two more numbers at the end: in the last bucket they are the loss and the wish.
            numbers = sum(p.numel() for p in group) + 2
            flat = group[0].new_zeros(-(-numbers // self.size) * self.size)
            start = 0
            for parameter in group:
                parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
                parameter.register_post_accumulate_grad_hook(self._hook(len(self._buckets)))
            self._extra = flat[start : start + 2]
            reduction = Reduction(flat, worlds, aware=aware)
            self._buckets.append(_Bucket(flat, len(group), len(group), reduction))

    @contextlib.contextmanager
    def overlapped(self, loss: Tensor) -> Iterator[None]:
        """Around the last backward pass of a step: buckets are sent as they become full."""
        self._put(loss)
        self._open = True
        for bucket in self._buckets:
            bucket.missing = bucket.size
        try:
            yield
        finally:
            self._open = False

    def mean(self, loss: Tensor) -> Tensor:
        """Make every gradient its mean over the ranks; returns the mean of the losses.

        Both stay on their device.
        """
        if self.size == 1:
            self.stopping = self.asked
            return loss
        if self._begun == 0:
            self._put(loss)
        while self._begun < len(self._buckets):
            self._begin()
        self._progress()
        for bucket in self._buckets:
            bucket.reduction.progress(wait=True, second=True)
        self._begun = 0
        self.stopping = bool(self._extra[1] > 0)
        return self._extra[0].clone()

    def _put(self, loss: Tensor) -> None:
        if self.size > 1:
            self._extra[0] = loss
            self._extra[1] = float(self.asked)

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def ready(_: Tensor) -> None:
            if not self._open:
                return
            self._buckets[index].missing -= 1
            while self._begun < len(self._buckets) and not self._buckets[self._begun].missing:
                self._begin()
            self._progress()

        return ready

    def _begin(self) -> None:
        self._buckets[self._begun].reduction.begin()
        self._begun += 1

    def _progress(self) -> None:
        """Let MPI work, each half in the order of the buckets."""
        sent = gathering = True
        for bucket in self._buckets[: self._begun]:
            if not sent:
                return
            bucket.reduction.progress(wait=False, second=gathering)
            sent = bucket.reduction.sent
            gathering = gathering and bucket.reduction.gathering
