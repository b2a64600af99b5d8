"""Training of the learned score by antithetic score matching."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from workflow.config import ScoreConfig
from workflow.diffusion.gaussian import antithetic_loss
from workflow.interfaces import UserError
from workflow.scores.batches import Batches, Held, Sample, Source
from workflow.scores.closed_form import Gaussian
from workflow.scores.compilation import compile_network, refuse_what_cannot_be_compiled
from workflow.scores.conditional import split
from workflow.scores.devices import is_out_of_memory
from workflow.scores.neural import WhitenedScore, with_parameters

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
"""Type in which the network computes; parameters, gradients and sums over ranks stay float32."""


MOST_SKIPPED = 10
"""Steps without a finite gradient, one after the other, after which training has failed."""


@dataclass(frozen=True)
class Batch:
    """One antithetic batch: whitened `x`, normals `z`, levels `sigma`, further draws `uniform`.

    `given` is what the score of x is conditioned on, in its own units.
    """

    x: Tensor
    z: Tensor
    sigma: Tensor
    uniform: Tensor | None = None
    given: Tensor | None = None

    def part(self, pairs: slice) -> Batch:
        """Some of the pairs."""
        uniform, given = (None if v is None else v[pairs] for v in (self.uniform, self.given))
        return Batch(self.x[pairs], self.z[pairs], self.sigma[pairs], uniform, given)


def make_batch(model: WhitenedScore, sample: Sample) -> Batch:
    """Whiten, choose noise levels. Networks of homogeneous fields see no difference of rolls."""
    x, given = split(model.whitening, sample.x)
    # Whitened before it is rounded: a large mean would cost float32 digits.
    white, level = model.whitening.whiten(x).float(), model.process.noise_levels(sample.level)
    return Batch(white, sample.z, level, sample.uniform, given)


def batch_loss(model: WhitenedScore, batch: Batch) -> Tensor:
    """Antithetic loss of a batch: squared errors of all answers, less a constant.

    With narrow noise it is taken in coordinates where all modes count the same: noise and scores
    go through `equalise`, J^(-1/2). The minimum stays where it was, but no mode with a large
    Fisher information is drowned by the noise or drowns the others. Where J is that of the score
    that training starts from, -1 is the loss of this; lower is better.
    """
    noise = model.process.noise(batch.x, batch.sigma, batch.z, batch.uniform)
    shift = model.equalise(noise.shift)
    states = torch.cat([noise.mean + shift, noise.mean - shift])
    both = model.answers(states, batch.sigma.repeat(2), batch.given)
    plus, minus = model.equalise(both).chunk(2)
    return antithetic_loss(
        plus, minus, noise.odd, noise.scale, even=noise.even, weight=noise.weight
    )


class Gradients(Protocol):
    """The ranks of a training, as far as their gradients go."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def attach(self, parameters: Sequence[nn.Parameter]) -> None:
        """Say whose gradients they are; before the first step."""
        ...

    def overlapped(self, loss: Tensor) -> AbstractContextManager[None]:
        """Around the last backward pass of a step: gradients may be sent as they become ready."""
        ...

    def mean(self, loss: Tensor) -> Tensor:
        """Make every gradient its mean over the ranks; returns the mean of the losses."""
        ...


class Alone:
    """One rank: nothing to average."""

    rank = 0
    size = 1

    def attach(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing to prepare."""

    def overlapped(self, loss: Tensor) -> AbstractContextManager[None]:
        """Nothing to send."""
        return nullcontext()

    def mean(self, loss: Tensor) -> Tensor:
        """The loss itself."""
        return loss


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        loss: mean loss over the whole batch, before the step.
        norm: norm of the mean gradient, before it is clipped.
        skipped: True where either was not finite and the parameters were left alone.
    """

    loss: float
    norm: float
    skipped: bool


class Trainer:
    """Adam with a cosine schedule and an exponential moving average of the parameters.

    Its state after a step is a function of (snapshots, config, seed, step) and the number of
    ranks only; these, the micro-batch, the device and compilation change it by rounding.

    Args:
        snapshots: training data `(sample, field + given, *shape)`, or where to take them from.
        whitening: Gaussian fitted to them.
        config: of the score.
        seed: seed of the experiment.
        gradients: the ranks; default this one alone.
        device: where to train.

    Attributes:
        model: the network in training.
        average: averaged parameters by name.
        step: steps done.
        skipped: of these, steps that changed nothing because they were not finite.
        gradients: the ranks.
        device: where it trains.
    """

    def __init__(
        self,
        snapshots: Tensor | Source,
        whitening: Gaussian,
        *,
        config: ScoreConfig,
        seed: int,
        gradients: Gradients | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.gradients = gradients or Alone()
        self.device = torch.device(device)
        torch.manual_seed(seed)  # initial weights only; nothing is drawn from it afterwards
        self.model = WhitenedScore(whitening, config).to(self.device)
        self.model.compute = PRECISIONS[config.train.precision]
        if config.train.compile:
            compile_network(self.model)
        self.step = self.skipped = self._skipped_in_row = 0
        self._config = config.train
        parameters = list(self.model.parameters())
        self.gradients.attach(parameters)
        self._fused = self.device.type == "cuda"
        self._optimizer = torch.optim.Adam(
            parameters, lr=config.train.learning_rate, fused=self._fused
        )
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        if isinstance(snapshots, Tensor):
            snapshots = Held(_on_device(snapshots, self.device))
        pairs, rank, ranks = self.pairs, self.gradients.rank, self.gradients.size
        share = range(rank * pairs // ranks, (rank + 1) * pairs // ranks)
        process = self.model.process
        self._batches = Batches(
            snapshots,
            seed=seed,
            pairs=pairs,
            share=share,
            device=self.device,
            fields=len(whitening.mean),
            normals=process.normals,
            uniforms=process.uniforms,
        )
        self._micro = min(len(share), (config.train.micro_batch or config.train.global_batch) // 2)
        self._fits = False

    def advance(self) -> Step:
        """One step.

        Raises:
            UserError: not even one pair fits into memory, too many steps were skipped in a row, or
                the network cannot be compiled.
        """
        batch = self.batch(self.step)
        loss = self._backward(batch)
        parameters = list(self.model.parameters())
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value, norm = torch.stack([loss, total]).tolist()
        skipped = not (math.isfinite(value) and math.isfinite(norm))
        self._count(skipped)
        if not skipped:
            if self._config.clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, self._config.clip, total)
            self._set_learning_rate()
            self._optimizer.step()
            # Young averages forget faster, or a short training would remember its start.
            move = get_ema_multi_avg_fn(min(self._config.ema, (1 + self.step) / (10 + self.step)))
            move(list(self.average.values()), [p.detach() for p in parameters], self.step)
        self.step += 1
        return Step(value, norm, skipped)

    @property
    def pairs(self) -> int:
        """Pairs of a step, of all ranks."""
        return self._config.global_batch // 2

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of a step, which must not be before one asked for."""
        return make_batch(self.model, self._batches.at(step))

    @property
    def micro_batch(self) -> int:
        """Network calls of this rank at a time; halved when out of memory."""
        return 2 * self._micro

    def _count(self, skipped: bool) -> None:
        self.skipped += skipped
        self._skipped_in_row = self._skipped_in_row + 1 if skipped else 0
        if self._skipped_in_row == MOST_SKIPPED:
            raise UserError(
                f"loss or gradient not finite in {MOST_SKIPPED} steps running up to step "
                f"{self.step + 1}; lower score.train.learning_rate={self._config.learning_rate:g}"
            )

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients and mean loss of the whole batch."""
        while True:
            try:
                return self.gradients.mean(self._accumulate(batch))
            except RuntimeError as error:
                refuse_what_cannot_be_compiled(error)
                # Sums over ranks may have begun once a step has gone well.
                if self._fits or not is_out_of_memory(error):
                    raise
            if self._micro == 1:
                raise UserError("out of memory with one pair of snapshots; use a smaller network")
            self._micro = -(-self._micro // 2)

    def _accumulate(self, batch: Batch) -> Tensor:
        """Gradients and loss of this rank's share, a micro-batch at a time."""
        self._optimizer.zero_grad(set_to_none=False)
        count = len(batch.x)
        total = torch.zeros((), device=self.device)
        for first in range(0, count, self._micro):
            part = batch.part(slice(first, first + self._micro))
            loss = batch_loss(self.model, part) * (len(part.x) / count)
            total += loss.detach()
            last = first + self._micro >= count
            with self.gradients.overlapped(total) if last and self._fits else nullcontext():
                loss.backward()
        self._fits = True
        return total

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain numbers."""
        return {
            "step": self.step,
            "skipped": (self.skipped, self._skipped_in_row),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.step = state["step"]
        self.skipped, self._skipped_in_row = state["skipped"]
        self.model.load_state_dict(state["model"])
        # Written on another device it would bring that device's way of stepping along.
        groups = [group | {"fused": self._fused} for group in state["optimizer"]["param_groups"]]
        self._optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.average = {k: v.to(self.device, copy=True) for k, v in state["average"].items()}

    def averaged(self) -> WhitenedScore:
        """The model with averaged parameters, for evaluation; shares nothing with training."""
        return with_parameters(self.model, self.average)

    def _set_learning_rate(self) -> None:
        done = self.step / self._config.steps
        rate = self._config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate


def _on_device(snapshots: Tensor, device: torch.device) -> Tensor:
    """The snapshots where they are used most, if half of the free memory there holds them."""
    if device.type != "cuda":
        return snapshots
    free, _ = torch.cuda.mem_get_info(device)
    return snapshots.to(device) if 2 * snapshots.nbytes < free else snapshots
