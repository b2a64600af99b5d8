"""The score of a few variables, from conditional means of noise in the cells of a partition (KGMM).

Noise the standardised data y, x = y + sigma z. The score of the density of x is

    s(x) = -E[z | x] / sigma,      d_i s_i(x) = (E[z_i^2 | x] - 1) / sigma^2 - s_i(x)^2

and E[. | x] is a mean over a small cell around x. A tree of 2-means cuts space into cells of
nearly equal probability; z is drawn afresh over the same tree until the means stand still; a small
network interpolates between the cells.

The papers print -E[z] / sigma^2: a misprint, as the identity above shows. Cells must be smaller
than the scale of the score and hold many points, so it works for up to about six variables.

Source: arXiv:2504.13333 (KGMM), with the settings of its code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workflow.interfaces import UserError
from workflow.scores.partition import FEWEST_PER_CELL, LARGEST_SAMPLE, Partition

MOST_VARIABLES = 8
FEWEST_SAMPLES = 100
_CHUNK = 1 << 18
"""Points that walk down the tree together: bounds the memory of a pass."""


@dataclass(frozen=True)
class Cells:
    """What a partition knows of the score, in standard deviations of the data.

    Attributes:
        centre: E[x | cell], `(cell, d)`.
        score: -E[z | cell] / sigma, `(cell, d)`.
        curvature: d_i s_i, `(cell, d)`; noisier than the score by 1 / sigma.
        count: points that fell into the cell over all passes, `(cell,)`.
        passes: times that the data were noised, `()`.
    """

    centre: Tensor
    score: Tensor
    curvature: Tensor
    count: Tensor
    passes: Tensor


@dataclass(frozen=True)
class KGMM:
    """grad log p of data noised by `sigma` standard deviations, from cells and a small network.

    Attributes:
        mean: of the data, `(d,)`, units of x.
        scale: standard deviation of each variable, `(d,)`, units of x.
        cells: conditional means that the network was fitted to.
        layers: weights and biases of the network, which answers in standard deviations.
    """

    mean: Tensor
    scale: Tensor
    cells: Cells
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def fit(
        cls,
        x: Tensor,
        *,
        sigma: float = 0.05,
        probability: float = 1e-3,
        tolerance: float = 1e-3,
        passes: int = 100,
        hidden: Sequence[int] = (50, 25),
        batch: int = 32,
        steps: int = 5000,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> KGMM:
        """Estimate the score of data `(batch, field, *shape)`; d = all numbers of one sample.

        Args:
            x: samples of the stationary state, in any order; ties to each other do no harm.
            sigma: noise, in standard deviations of each variable; the score is that of the
                density smoothed by it.
            probability: smallest probability of a cell; about 2 / (3 p) cells.
            tolerance: stop when a pass changes the means by less, |dE|^2 / |E|^2.
            passes: most times that the data are noised.
            hidden: widths of the hidden layers.
            batch: cells in one step of the fit.
            steps: steps of Adam.
            learning_rate: of Adam at the start; it falls to zero along a cosine.
            seed: names all random numbers: the same data and seed give the same bits.

        Raises:
            UserError: too many variables, too few samples, a variable that does not vary, data
                that are not finite, or a setting that is not positive.
        """
        settings = {"sigma": sigma, "probability": probability, "passes": passes, "steps": steps}
        _check(x, settings)
        flat = x.detach().reshape(len(x), -1)
        mean, scale = flat.double().mean(0), flat.double().std(0)
        y = ((flat - mean) / scale).float()
        generator = torch.Generator().manual_seed(seed)
        with _one_thread():
            cells = estimate_cells(
                y,
                sigma=sigma,
                probability=probability,
                tolerance=tolerance,
                passes=passes,
                generator=generator,
            )
            layers = fit_network(
                cells,
                hidden=hidden,
                batch=batch,
                steps=steps,
                learning_rate=learning_rate,
                generator=generator,
            )
        return cls(mean, scale, cells, layers)

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x; differentiable."""
        scale = self.scale.to(x.dtype)
        y = (x.reshape(len(x), -1) - self.mean.to(x.dtype)) / scale
        return (_network(self.layers, y) / scale).reshape(x.shape)

    def centres(self) -> Tensor:
        """Where the cells are, `(cell, d)`, units of x."""
        return self.mean + self.scale * self.cells.centre

    def divergence(self) -> Tensor:
        """div s at `centres`, `(cell,)`, 1 / units of x squared, from the variance of the noise."""
        return (self.cells.curvature / self.scale**2).sum(1)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors by name, for `torch.save`."""
        state = {"mean": self.mean, "scale": self.scale}
        state |= {f"cells.{name}": value for name, value in vars(self.cells).items()}
        for number, (weight, bias) in enumerate(self.layers):
            state |= {f"layers.{number}.weight": weight, f"layers.{number}.bias": bias}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> KGMM:
        """The estimator that `state` described."""
        cells = {k.removeprefix("cells."): v for k, v in state.items() if k.startswith("cells.")}
        depth = sum(name.endswith(".weight") for name in state)
        layers = tuple(
            (state[f"layers.{n}.weight"], state[f"layers.{n}.bias"]) for n in range(depth)
        )
        return cls(state["mean"], state["scale"], Cells(**cells), layers)


def estimate_cells(
    y: Tensor,
    *,
    sigma: float,
    probability: float,
    tolerance: float,
    passes: int,
    generator: torch.Generator,
) -> Cells:
    """Conditional means of the noise of standardised data `(point, d)`, float32."""
    order = torch.randperm(len(y), generator=generator)[: _points_of_tree(probability, len(y))]
    cloud = y[order] + sigma * torch.randn(len(order), y.shape[1], generator=generator)
    partition = Partition.build(cloud, probability=probability)
    d = y.shape[1]
    # Columns: x, z, z^2, and 1 for the count.
    sums = torch.zeros(partition.cells, 3 * d + 1, dtype=torch.float64)
    previous, done, change = torch.zeros(partition.cells, d, dtype=torch.float64), 0, math.inf
    while done < passes and change >= tolerance:
        for part in y.split(_CHUNK):
            z = torch.randn(part.shape, generator=generator)
            x = part + sigma * z
            columns = torch.cat([x, z, z.square(), torch.ones(len(x), 1)], dim=1)
            sums.index_add_(0, partition(x), columns.double())
        noise = sums[:, d : 2 * d] / sums[:, -1:].clamp(min=1)
        change = float((noise - previous).square().sum() / noise.square().sum())
        previous, done = noise, done + 1
    means = sums[sums[:, -1] > 0]
    count = means[:, -1]
    x, z, z_squared = (means[:, :-1] / count[:, None]).split(d, dim=1)
    score = -z / sigma
    curvature = (z_squared - 1) / sigma**2 - score.square()
    return Cells(x, score, curvature, count, torch.tensor(done))


def fit_network(
    cells: Cells,
    *,
    hidden: Sequence[int],
    batch: int,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Least squares of the score at the centres, each cell weighted by its count, by Adam.

    Fitting -E[z] / sigma or E[z] is the same least squares; the former is of order 1. At a
    constant rate, as published, the last step decides: -<x s> of a scalar scattered by 3 % between
    fits, and by less than 0.1 % with a rate that falls to zero.
    """
    d = cells.centre.shape[1]
    layers = tuple(_layer(*size, generator) for size in pairwise([d, *hidden, d]))
    parameters = [parameter for layer in layers for parameter in layer]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    x, s = cells.centre.float(), cells.score.float()
    weight = (cells.count / cells.count.mean()).float()[:, None]
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        if len(order) == 0:
            order = torch.randperm(len(x), generator=generator)
        chosen, order = order[:batch], order[batch:]
        error = _network(layers, x[chosen]) - s[chosen]
        loss = (weight[chosen] * error.square()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return tuple((weight.detach(), bias.detach()) for weight, bias in layers)


def _points_of_tree(probability: float, points: int) -> int:
    """At most 100 / p points build the tree, and p is at least 10 / n."""
    return min(points, math.ceil(LARGEST_SAMPLE / max(probability, FEWEST_PER_CELL / points)))


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights and bias, uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
    return weight.requires_grad_(), bias.requires_grad_()


def _network(layers: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Swish between the layers, the last is linear; in the precision of `x` `(batch, d)`."""
    for number, (weight, bias) in enumerate(layers):
        x = torch.nn.functional.silu(x) if number else x
        x = torch.nn.functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
    return x


def refuse_sizes(variables: int, *, samples: int) -> None:
    """Refuse data of too many variables, or of too few samples."""
    if variables > MOST_VARIABLES:
        raise UserError(
            f"the data have {variables} variables a sample; kgmm needs at most {MOST_VARIABLES}: "
            "use score.estimator neural"
        )
    if samples < FEWEST_SAMPLES:
        raise UserError(
            f"{samples} samples; kgmm needs at least {FEWEST_SAMPLES}: raise ensemble.members or "
            "ensemble.length"
        )


def _check(x: Tensor, settings: Mapping[str, float]) -> None:
    """Refuse data and settings that cannot give a score, before any work."""
    for name, value in settings.items():
        if not value > 0:
            raise UserError(f"score.{name}={value}: needs a number above 0")
    refuse_sizes(math.prod(x.shape[1:]), samples=len(x))
    deviation = x.reshape(len(x), -1).double().std(0)
    if not torch.isfinite(deviation).all():
        raise UserError("the data hold numbers that are not finite; kgmm needs finite data")
    if (deviation == 0).any():
        number = int((deviation == 0).nonzero()[0])
        raise UserError(
            f"variable {number} of the data is constant and has no score; leave it out of the data"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, so the same seed gives the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
