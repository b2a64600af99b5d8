"""The learned score: a denoiser on whitened fields, trained by antithetic score matching."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workflow.config import ScoreConfig, TrainConfig
from workflow.diffusion.gaussian import PROCESSES, antithetic_loss
from workflow.interfaces import ForwardProcess, space_axes
from workflow.scores.closed_form import Gaussian, SpectralGaussian
from workflow.scores.networks import NETWORKS

TRAINING_STREAM = 2**32
"""Philox counter word of training, apart from every stream of the simulations."""


class WhitenedScore(nn.Module):
    """Score of whitened data noised to sigma, `(batch, field, *shape)`."""

    def __init__(self, whitening: Gaussian, config: ScoreConfig) -> None:
        super().__init__()
        self.whitening = whitening
        # Symmetry is a property of the data: their Gaussian has it.
        self.homogeneous = isinstance(whitening, SpectralGaussian) or not whitening.shape
        self.process: ForwardProcess = PROCESSES[config.process.kind](
            config.process.sigma_min, config.process.sigma_max
        )
        self.network = NETWORKS[config.network.kind](
            len(whitening.mean),
            whitening.shape,
            channels=config.network.channels,
            residual_blocks=config.network.residual_blocks,
            homogeneous=self.homogeneous,
        )
        # Per field: fields can have units of any size.
        scale = whitening.pixel_variance.sqrt().float()
        self._scale = scale.reshape(-1, *[1] * len(whitening.shape))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Score at whitened, noised `x` and levels `sigma` `(batch,)` (or one for all)."""
        sigma = sigma.expand(len(x))
        seen, condition = self.process.inputs(x, sigma)
        scale = self._scale.to(x.dtype)
        physical = self.whitening.colour(seen)
        white, local = self.network(seen, physical / scale, condition)
        output = white + self.whitening.score_to_white(local / scale)
        return self.process.score(output, x, sigma)


@dataclass(frozen=True)
class NeuralScore:
    """The learned grad log p at the smallest noise level, on data.

    It is the score of the density smoothed by noise of covariance sigma_min^2 C.
    """

    model: WhitenedScore

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x, from that of the whitened field."""
        return self.at(x, self.model.process.sigma_min)

    def at(self, x: Tensor, sigma: float) -> Tensor:
        """Score of the density smoothed by noise of covariance sigma^2 C, at clean data."""
        whitening = self.model.whitening
        white = whitening.whiten(x).to(next(self.model.parameters()).dtype)
        level = torch.tensor([sigma], dtype=white.dtype)
        return whitening.score_from_white(self.model(white, level).to(x.dtype))


@dataclass(frozen=True)
class Batch:
    """One antithetic batch of this rank: whitened `x`, normals `z`, levels `sigma`."""

    x: Tensor
    z: Tensor
    sigma: Tensor


def draw_batch(
    snapshots: Tensor,
    model: WhitenedScore,
    *,
    config: TrainConfig,
    seed: int,
    step: int,
    rank: int,
    ranks: int,
) -> Batch:
    """This rank's share of the batch of one step.

    The whole batch is a function of (seed, step), so any number of ranks sees the same one, and
    a resumed run the same as an uninterrupted one. Homogeneous fields are rolled at random.

    Args:
        snapshots: training data `(sample, field, *shape)`.
        model: holds whitening and process.
        config: `global_batch` counts network calls, two a pair.
        seed: seed of the experiment.
        step: number of the step.
        rank: which share.
        ranks: number of shares.
    """
    pairs = config.global_batch // 2
    bits = np.random.Philox(key=[seed, step], counter=[0, 0, TRAINING_STREAM, 0])
    generator = np.random.Generator(bits)
    chosen = generator.integers(len(snapshots), size=pairs)
    shape = snapshots.shape[2:]
    rolls = generator.integers(shape, size=(pairs, len(shape)))
    uniform = generator.random(pairs, dtype=np.float32)
    z = generator.standard_normal((pairs, *snapshots.shape[1:]), dtype=np.float32)
    mine = slice(rank * pairs // ranks, (rank + 1) * pairs // ranks)
    x = snapshots[torch.from_numpy(chosen[mine])]
    if model.homogeneous:
        x = roll_each(x, torch.from_numpy(rolls[mine]))
    sigma = model.process.noise_levels(torch.from_numpy(uniform[mine]))
    # Whitened before it is rounded: a large mean would cost float32 digits.
    return Batch(model.whitening.whiten(x).float(), torch.from_numpy(z[mine]), sigma)


def roll_each(x: Tensor, shifts: Tensor) -> Tensor:
    """Each sample `(batch, field, *shape)` rolled by its own shifts `(batch, dim)`."""
    for axis, shift in zip(space_axes(x), shifts.T, strict=True):
        size = x.shape[axis]
        index = (torch.arange(size) - shift[:, None]) % size
        view = index.reshape(len(x), *[size if a == axis else 1 for a in range(1, x.ndim)])
        x = x.gather(axis, view.expand(x.shape))
    return x


def batch_loss(model: WhitenedScore, batch: Batch) -> Tensor:
    """Antithetic score-matching loss of a batch; -1 is the Gaussian score's, lower is better."""
    step = batch.sigma.reshape(-1, *[1] * (batch.x.ndim - 1)) * batch.z
    both = model(torch.cat([batch.x + step, batch.x - step]), batch.sigma.repeat(2))
    plus, minus = both.chunk(2)
    return antithetic_loss(plus, minus, batch.z, batch.sigma)


class Trainer:
    """Adam with a cosine schedule and an exponential moving average of the parameters.

    Its state after a step is a function of (snapshots, config, seed, step) and the number of
    ranks only.
    """

    def __init__(
        self, snapshots: Tensor, whitening: Gaussian, *, config: ScoreConfig, seed: int
    ) -> None:
        torch.manual_seed(seed)  # initial weights only; nothing is drawn from it afterwards
        self.model = WhitenedScore(whitening, config)
        self.step = 0
        self._config, self._seed, self._snapshots = config.train, seed, snapshots
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=config.train.learning_rate)
        self._average = {k: v.detach().clone() for k, v in self.model.named_parameters()}

    def advance(self, *, rank: int, ranks: int, reduce: Callable[[Tensor], None]) -> float:
        """One step; `reduce` averages a flat vector over ranks in place. Returns the mean loss."""
        batch = draw_batch(
            self._snapshots,
            self.model,
            config=self._config,
            seed=self._seed,
            step=self.step,
            rank=rank,
            ranks=ranks,
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(self.model, batch)
        loss.backward()
        parameters = list(self.model.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*[g.flatten() for g in gradients], loss.detach()[None]])
        reduce(flat)
        parts = flat[:-1].split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape)
        self._set_learning_rate()
        self._optimizer.step()
        for name, value in self.model.named_parameters():
            self._average[name].lerp_(value.detach(), 1 - self._config.ema)
        self.step += 1
        return float(flat[-1])

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain numbers."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average = {k: v.clone() for k, v in state["average"].items()}

    def averaged(self) -> WhitenedScore:
        """The model with averaged parameters, for evaluation; shares nothing with training."""
        return with_parameters(self.model, self._average)

    def _set_learning_rate(self) -> None:
        done = self.step / self._config.steps
        rate = self._config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate


def with_parameters(model: WhitenedScore, parameters: Mapping[str, Tensor]) -> WhitenedScore:
    """A copy of the model with other parameters."""
    other = copy.deepcopy(model)
    other.load_state_dict(dict(parameters))
    return other.requires_grad_(False)
