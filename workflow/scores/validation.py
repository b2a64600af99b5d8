"""What training is watched and stopped by: loss and Stein identity on data held out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workflow.interfaces import space_axes
from workflow.scores.batches import Sample, draw
from workflow.scores.neural import WhitenedScore
from workflow.scores.training import Batch, batch_loss, make_batch

BANDS = 4
"""Bands of |k| on a homogeneous field, of equal width up to N / 2; the last one goes on beyond."""

VALIDATION = 2**40
"""Number of the step whose noise validation uses: beyond all steps of training."""

TOGETHER = 64
"""Pairs that a network sees at once."""


@dataclass(frozen=True)
class Validation:
    """Loss, and raw Stein ratio by band, of a model on held-out data.

        M_b = -< x~ . s~ > over the modes of band b, whitened: 1 for the score of the data,
        1 / (1 + sigma_min^2) for that of the smoothed density

    Attributes:
        loss: score-matching loss per number of the field; lower is better.
        stein: M_b from large scales to small; a single number without homogeneous space.
    """

    loss: float
    stein: tuple[float, ...]

    @classmethod
    def of(cls, sums: Tensor) -> Validation:
        """From `validation_sums`, added up over ranks."""
        pairs, loss, *rest = sums.tolist()
        products, modes = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        stein = (p / m if m else math.nan for p, m in zip(products, modes, strict=True))
        return cls(loss / pairs, tuple(stein))


def validation_batch(
    model: WhitenedScore, x: Tensor, *, seed: int, pairs: int, mine: slice = slice(None)
) -> Batch:
    """Held-out snapshots with noise that is always the same, where the model is.

    Args:
        model: what is judged.
        x: snapshots of `mine`, `(pair, field + given, *shape)`.
        seed: of the experiment.
        pairs: of the whole validation.
        mine: those of this rank.
    """
    process, device = model.process, next(model.parameters()).device
    drawn = draw(
        seed,
        VALIDATION,
        pairs=pairs,
        share=range(pairs),
        shape=(len(model.whitening.mean), *x.shape[2:]),
        normals=process.normals,
        uniforms=process.uniforms,
    )
    every = (drawn.level, drawn.z, drawn.uniform)
    numbers = (torch.from_numpy(values[mine]) for values in every)
    return make_batch(model, Sample(*(v.to(device) for v in (x, *numbers))))


@torch.inference_mode()
def validation_sums(model: WhitenedScore, batch: Batch) -> Tensor:
    """Number of pairs, their losses, and the two parts of every M_b; float64, on the CPU.

    Sums of parts of a batch are the sum of the batch.
    """
    bands = _bands(model, batch.x)
    total = torch.zeros(2 + 2 * (int(bands.max()) + 1), dtype=torch.float64, device=batch.x.device)
    level = batch.sigma.new_tensor([model.process.sigma_min])
    for first in range(0, len(batch.x), TOGETHER):
        part = batch.part(slice(first, first + TOGETHER))
        count = len(part.x)
        # A process without an ordinary score has no Stein identity to be judged by.
        known = "score" in model.process.heads
        s = model(part.x, level, part.given) if known else torch.full_like(part.x, torch.nan)
        products = _products(model, part.x, s).double()
        by_band = torch.zeros_like(total[2:]).reshape(2, -1)
        by_band[0].index_add_(0, bands.flatten(), products.sum((0, 1)).flatten())
        by_band[1].index_add_(0, bands.flatten(), torch.ones_like(bands.flatten()).double())
        by_band[1] *= count * part.x.shape[1]
        total[:2] += total.new_tensor([count, count * float(batch_loss(model, part))])
        total[2:] += by_band.flatten()
    return total.cpu()


def _products(model: WhitenedScore, x: Tensor, s: Tensor) -> Tensor:
    """-x~ s~ by wavenumber, or by place where there is no symmetry, `(batch, field, *shape)`."""
    if not (model.homogeneous and x.ndim > 2):
        return -x * s
    axes = space_axes(x)
    # Unitary: the mean of |x~_k|^2 is 1.
    waves = (torch.fft.fftn(v, dim=axes, norm="ortho") for v in (x, s))
    return -(next(waves) * next(waves).conj()).real


def _bands(model: WhitenedScore, x: Tensor) -> Tensor:
    """Band of every wavenumber, or 0 of every place, `(*shape)`."""
    shape = x.shape[2:]
    if not (model.homogeneous and shape):
        return torch.zeros(shape, dtype=torch.int64, device=x.device)
    square = torch.zeros((), device=x.device)
    for n in shape:
        square = square[..., None] + torch.fft.fftfreq(n, 1 / n, device=x.device).square()
    width = max(shape) / 2 / BANDS
    return (square.sqrt() / width).long().clamp(max=BANDS - 1)


@dataclass
class Best:
    """The parameters of lowest held-out loss so far.

    Attributes:
        step: at which they were met.
        loss: held-out loss.
        parameters: by name.
        waited: validations since.
    """

    step: int = 0
    loss: float = math.inf
    parameters: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0

    def offer(self, step: int, loss: float, parameters: Mapping[str, Tensor]) -> None:
        """Take these if their loss is lower, or if they are the first."""
        loss = math.inf if math.isnan(loss) else loss
        if loss < self.loss or not self.parameters:
            copies = {name: value.detach().cpu().clone() for name, value in parameters.items()}
            self.step, self.loss, self.parameters, self.waited = step, loss, copies, 0
        else:
            self.waited += 1

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Best:
        """The same again."""
        return cls(**state)
