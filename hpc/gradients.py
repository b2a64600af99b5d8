"""Gradients of several ranks made their mean."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hpc.comm import Comm


class FlatGradients:
    """All gradients, and the loss, as one flat array that is averaged over the ranks.

    A wish to stop travels with them: all ranks learn of it in the same step.

    Args:
        comm: the ranks.

    Attributes:
        asked: whether this rank was asked to stop; may be set at any time.
        stopping: whether any rank had been when the last mean was made.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.asked = self.stopping = False
        self._parameters: list[nn.Parameter] = []

    def attach(self, parameters: Sequence[nn.Parameter]) -> None:
        """Say whose gradients they are."""
        self._parameters = list(parameters)

    def overlapped(self, loss: Tensor) -> AbstractContextManager[None]:
        """Nothing is sent before the backward pass has ended."""
        return nullcontext()

    def mean(self, loss: Tensor) -> Tensor:
        """Make every gradient its mean over the ranks; returns the mean of the losses."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        asked = loss.new_tensor([float(self.asked)])
        flat = torch.cat([*[g.flatten() for g in gradients], loss[None], asked]).cpu()
        self._comm.allreduce_mean(flat)
        self.stopping = bool(flat[-1] > 0)
        parts = flat[:-2].split([p.numel() for p in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).to(parameter.device)
        return flat[-2].to(loss.device)
