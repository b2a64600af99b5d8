"""What a score is worth in nats: the path KL of taking noise off data with it.

Noise is that of the training of the learned score, from the largest level down to none; below the
smallest level that level's score serves, as it does in a response. All scores are of whitened
data, and errors count in the coordinates of the noise, J^(-1/2) (`WhitenedScore.equalise`):

    KL(S) = int d(sigma^2) / 2  E|J^(-1/2) (S - grad log p)|^2

Where the noise jumps it is the flow score H that takes it off, and errors cost T / g times as much.

Source: `workflow.diffusion.action`, with exploding noise; `workflow.diffusion.jump_action`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workflow.diffusion.action import Exploding, ScoreAt, noise_nodes
from workflow.diffusion.jump_action import asked, worth
from workflow.diffusion.jump_process import Jump
from workflow.interfaces import space_axes
from workflow.scores.neural import WhitenedScore

PER_E_FOLD = 1.6
"""Nodes for one e-fold of the noise level."""

FEWEST, MOST = 4, 16
"""Nodes between two different levels."""


@dataclass(frozen=True)
class Band:
    """Noise levels and the weights of their integral, `(node,)`.

        int_0^sigma_max d(sigma^2) f(sigma) / 2 = sum weight f(level)

    The first node stands for all noise below the smallest level, with its score.
    """

    levels: tuple[float, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, sigma_min: float, sigma_max: float) -> Band:
        """Of the levels of a training."""
        levels, weights = [sigma_min], [0.5 * sigma_min**2]
        folds = math.log(sigma_max / sigma_min)
        if folds > 0:
            count = min(MOST, max(FEWEST, math.ceil(PER_E_FOLD * folds)))
            nodes = noise_nodes(Exploding(sigma_min, sigma_max), count)
            levels += nodes.times.tolist()
            # g^2 / 2 = sigma
            weights += (nodes.weights * nodes.times).tolist()
        return cls(tuple(levels), tuple(weights))

    @property
    def per_e_fold(self) -> np.ndarray:
        """Factors that make contributions of nodes, but the first, a density in ln sigma."""
        return np.array([s**2 / w for s, w in zip(self.levels, self.weights, strict=True)][1:])


def contributions(
    scores: Mapping[str, ScoreAt],
    model: WhitenedScore,
    x: Tensor,
    z: Tensor,
    band: Band,
    *,
    uniform: Tensor | None = None,
) -> dict[str, Tensor]:
    """What every node adds to the nats of every score, for whitened data.

    Args:
        scores: of whitened noised data, at a level `()`; with `gaussian`, and `exact` where known.
        model: the learned score, for the coordinates of its noise.
        x: whitened data `(batch, field, *shape)`.
        z: standard normals `(node, batch, field, *shape)`.
        band: of noise.
        uniform: in [0, 1), `(node, batch, uniforms of the process)` float64, where it draws any.

    Returns:
        `gain` `(score, node, batch)`: path KL of `gaussian` less that of the score, by the
        difference of their losses with the same noise. `left`: the path KL itself, NaN without
        `exact`. `beyond` `(score, node, field, *shape)`: the same from `gaussian` by mode in FFT
        order, or by place where there is no symmetry, sum over the batch.
    """
    names = list(scores)
    found: dict[str, list[Tensor]] = {"gain": [], "left": [], "beyond": []}
    price = worth(model.process) if isinstance(model.process, Jump) else 1.0
    draws = [None] * len(z) if uniform is None else list(uniform)
    for level, one, normals, drawn in zip(band.levels, band.weights, z, draws, strict=True):
        sigma, weight = torch.tensor(level, dtype=torch.float64), price * one
        step, odd = _noise(model, x, normals, drawn, sigma)
        both = torch.cat([x + step, x - step])
        answers = {n: model.equalise(s(both, sigma)).double() for n, s in scores.items()}
        losses = {n: _antithetic(s, odd.double()) for n, s in answers.items()}
        found["gain"].append(weight * torch.stack([losses["gaussian"] - losses[n] for n in names]))
        truth = answers.get("exact", torch.full_like(both, torch.nan))
        left = [_squares(answers[n] - truth) for n in names]
        found["left"].append(weight * torch.stack(left))
        beyond = [_by_mode(answers[n] - answers["gaussian"], model) for n in names]
        found["beyond"].append(weight * torch.stack(beyond))
    return {key: torch.stack(parts, 1) for key, parts in found.items()}


def _noise(
    model: WhitenedScore, x: Tensor, z: Tensor, uniform: Tensor | None, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Noise added to data, and minus the score asked for there, equalised."""
    if isinstance(model.process, Jump):
        return asked(model.process, x, z, uniform, sigma)
    return model.equalise(float(sigma) * z), z / float(sigma)


def _antithetic(s: Tensor, odd: Tensor) -> Tensor:
    """`gaussian.antithetic_loss`, sum over numbers, of each pair."""
    plus, minus = s.chunk(2)
    return _squares(s) + (odd * (plus - minus)).flatten(1).sum(1)


def _squares(s: Tensor) -> Tensor:
    """|s|^2, mean over the signs of the noise."""
    plus, minus = s.square().flatten(1).sum(1).chunk(2)
    return 0.5 * (plus + minus)


def _by_mode(s: Tensor, model: WhitenedScore) -> Tensor:
    axes = space_axes(s)
    if model.homogeneous and axes:
        s = torch.fft.fftn(s, dim=axes, norm="ortho")
    return 0.5 * s.abs().square().sum(0)  # both signs of the noise
