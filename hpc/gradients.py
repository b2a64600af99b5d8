"""Gradients of several ranks made their mean."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hpc.comm import Comm


class FlatGradients:
    """All gradients, and the loss, as one flat array that is averaged over the ranks.

    Args:
        comm: the ranks.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
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
        flat = torch.cat([*[g.flatten() for g in gradients], loss[None]]).cpu()
        self._comm.allreduce_mean(flat)
        parts = flat[:-1].split([p.numel() for p in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).to(parameter.device)
        return flat[-1].to(loss.device)
