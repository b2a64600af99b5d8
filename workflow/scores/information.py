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

from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.conditional import split
from workflow.scores.neural import WhitenedScore

TOGETHER = 256
"""Snapshots scored at once."""


def has_units(model: WhitenedScore) -> bool:
    """Whether noise and loss are measured in units of J: narrow noise, homogeneous fields."""
    return model.process.narrow and isinstance(model.whitening, SpectralGaussian)


def measured_information(model: WhitenedScore, x: Tensor) -> Tensor:
    """J of whitened data, `(field, field, *half-spectrum)`, float64 on the CPU.

    Args:
        model: a score that has been trained, of homogeneous fields.
        x: snapshots `(batch, field + given, *shape)`.
    """
    parameter = next(model.parameters())
    level = parameter.new_tensor([model.process.sigma_min])
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for part in x.split(TOGETHER):
            fields, given = split(model.whitening, part.to(parameter.device))
            s = model(model.whitening.whiten(fields).to(parameter.dtype), level, given)
            axes = tuple(range(2, s.ndim))
            modes = torch.fft.rfftn(s.double(), dim=axes, norm="ortho")
            total = total + torch.einsum("bf...,bg...->fg...", modes, modes.conj()).cpu()
    information = total / len(x)
    return information.real if len(information) == 1 else information
