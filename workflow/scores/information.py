"""The Fisher information of data, measured by a learned score: the units of noise and loss.

    J_k = < s~_k s~_k^+ >

Where a density is thin in some directions, J there is large. Noise of a part of the spread is then
wider than the density, and errors of these directions drown those of all others. The local
potential that training starts from may know J (wells far apart), or not (small scales that follow
from large ones); a network that was trained for a short while knows it well enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workflow.scores.neural import WhitenedScore
from workflow.scores.training import Batch

TOGETHER = 256
"""Snapshots scored at once."""


@torch.no_grad()
def information_sums(model: WhitenedScore, batch: Batch) -> Tensor:
    """Sums of s~_k s~_k^+ over the clean snapshots of a batch, and in front their number.

    Sums of parts of a batch are the sum of the batch. Float64, on the CPU, `(1 + numbers,)`.
    """
    level = batch.x.new_tensor([model.process.sigma_min])
    axes = tuple(range(2, batch.x.ndim))
    total: Tensor = torch.zeros(())
    for first in range(0, len(batch.x), TOGETHER):
        part = batch.part(slice(first, first + TOGETHER))
        s = model(part.x, level, part.given)
        modes = torch.fft.rfftn(s.double(), dim=axes, norm="ortho")
        total = total + torch.einsum("bf...,bg...->fg...", modes, modes.conj()).cpu()
    numbers = torch.view_as_real(total).flatten()
    return torch.cat([numbers.new_tensor([len(batch.x)]), numbers])


def information_of(sums: Tensor, model: WhitenedScore) -> Tensor:
    """J, `(field, field, *half-spectrum)`, from `information_sums`; real for one field."""
    fields, shape = len(model.whitening.mean), model.whitening.shape
    half = (*shape[:-1], shape[-1] // 2 + 1)
    mean = (sums[1:] / sums[0]).reshape(fields, fields, *half, 2)
    return mean[..., 0] if fields == 1 else torch.view_as_complex(mean.contiguous())
