"""One flat array on its way to its mean over the ranks, while the rank does other work.

    all-to-all: every rank gets its slice of everybody's array -> sum in rank order, in float64
    all-gather: every rank gets everybody's slice

No algorithm of the MPI library decides the order of the sum, so it repeats bit for bit.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mpi4py import MPI


def cuda_aware() -> bool:
    """Whether the MPI library says that it takes buffers on CUDA devices."""
    from mpi4py import MPI

    # Both MPICH and Open MPI have this function; older ones, and others, do not.
    query = getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", None)
    return query is not None and bool(query())


def ordered_mean(parts: Tensor) -> Tensor:
    """Mean of `(rank, n)` over the ranks: a float64 sum in rank order, in the type of the parts."""
    total = parts[0].double()
    for part in parts[1:]:
        total += part
    return (total / len(parts)).to(parts.dtype)


class Reduction:
    """A flat array that is replaced by its mean over the ranks.

    MPI moves it only while it is asked to: call `progress` now and then. All ranks must begin
    their reductions in the same order, and one may reach its second half only after the one
    before it; the two halves use communicators of their own, so that neither holds up the other.

    Args:
        flat: float32 `(n,)`, n a multiple of the number of ranks; its numbers may change at once.
        worlds: the communicators of the two halves.
        aware: the library takes buffers on `flat`'s device; else it goes through the host.
    """

    def __init__(
        self, flat: Tensor, worlds: tuple[MPI.Comm, MPI.Comm], *, aware: bool = False
    ) -> None:
        self._flat, (self._scatter, self._gather) = flat, worlds
        staged = flat.device.type == "cuda" and not aware
        place = {"device": "cpu", "pin_memory": True} if staged else {"device": flat.device}
        self._sent: Tensor = torch.empty(flat.shape, **place) if staged else flat
        self._got = torch.empty(len(flat), **place).reshape(self._scatter.Get_size(), -1)
        self._mean = torch.empty(0)
        self._request: Any = None
        self._ready: torch.cuda.Event | None = None
        self.halves = 2

    def begin(self) -> None:
        """The numbers are there: send them as soon as they have left the device."""
        self.halves = 0
        if self._flat.device.type == "cuda":
            if self._sent is not self._flat:
                self._sent.copy_(self._flat, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(self._flat.device))

    def progress(self, *, wait: bool, second: bool) -> None:
        """Go on as far as possible, or to the end.

        Args:
            wait: return only when there is nothing left to do that is allowed.
            second: the second half may begin.
        """
        if self.halves == 0 and self._request is None and self._has_left(wait):
            self._request = self._scatter.Ialltoall(_buffer(self._sent), _buffer(self._got))
        if self.halves == 0 and self._done(wait):
            self._mean, self.halves = ordered_mean(self._got), 1
        if self.halves == 1 and second and self._request is None:
            if self._mean.device.type == "cuda":
                torch.cuda.current_stream(self._mean.device).synchronize()
            self._request = self._gather.Iallgather(_buffer(self._mean), _buffer(self._sent))
        if self.halves == 1 and self._done(wait):
            self.halves = 2
            if self._sent is not self._flat:
                self._flat.copy_(self._sent, non_blocking=True)

    @property
    def sent(self) -> bool:
        """Whether the first half has begun, so that the next reduction may begin its own."""
        return self.halves > 0 or self._request is not None

    @property
    def gathering(self) -> bool:
        """Whether the second half has begun."""
        return self.halves == 2 or (self.halves == 1 and self._request is not None)

    def _has_left(self, wait: bool) -> bool:
        if self._ready is not None and wait:
            self._ready.synchronize()
        return self._ready is None or self._ready.query()

    def _done(self, wait: bool) -> bool:
        if self._request is None:
            return False
        if wait:
            self._request.Wait()
        elif not self._request.Test():
            return False
        self._request = None
        return True


def _buffer(values: Tensor) -> Any:
    return values.numpy() if values.device.type == "cpu" else values
