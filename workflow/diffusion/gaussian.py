"""Gaussian forward process on whitened data: x + sigma z with unit-variance x.

Source: Karras et al. 2022 (EDM), with the output scale changed; shared derivation below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EDM:
    """Variance-exploding noise with EDM's skip and input scales for sigma_data = 1.

        s(x; sigma) = (D(x; sigma) - x) / sigma^2 = -x / (1 + sigma^2) + F / sqrt(1 + sigma^2)

    So the zero network is the Gaussian score. EDM's own output scale would make F a difference of
    order sigma at small sigma; a response needs the score at vanishing noise, and there F is the
    non-Gaussian part of the score itself, of order one.
    """

    sigma_min: float
    sigma_max: float

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Log-uniform between sigma_min and sigma_max."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** uniform

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-variance input, and log(sigma) / 4 as the condition."""
        return x / _like(1 + sigma**2, x).sqrt(), sigma.log() / 4

    def score(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Score of the noised whitened density from the network's output F."""
        total = _like(1 + sigma**2, x)
        return -x / total + output / total.sqrt()


PROCESSES = {"edm": EDM}


def antithetic_loss(plus: Tensor, minus: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """Denoising score matching with each noise used with both signs, per pixel, less a constant.

        L = (|s+|^2 + |s-|^2) / 2 + z . (s+ - s-) / sigma,   s+- = s(x +- sigma z; sigma)

    It equals mean |s+- +- z / sigma|^2 - |z|^2 / sigma^2, term by term; its variance stays finite
    as sigma -> 0, where plain denoising score matching's grows as 1 / sigma^2.

    Args:
        plus: scores at x + sigma z, `(batch, ...)`.
        minus: scores at x - sigma z.
        z: the normals.
        sigma: noise levels `(batch,)`.
    """
    squares = 0.5 * (plus.square() + minus.square())
    return (squares + z * (plus - minus) / _like(sigma, z)).mean()


def denoising_loss(score: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """Plain denoising score matching, sigma^2 |s + z / sigma|^2 per pixel; 1 for a zero score."""
    return (_like(sigma, z) * score + z).square().mean()


def split_denoising_loss(score: Tensor, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The same loss as a part of the space mean and a part of the deviations from it."""
    residual = _like(sigma, z) * score + z
    axes = tuple(range(2, residual.ndim))
    mean = residual.mean(axes, keepdim=True)
    return mean.square().mean(), (residual - mean).square().mean()


def _like(values: Tensor, x: Tensor) -> Tensor:
    if values.ndim == 0 or math.prod(values.shape) == 1:
        return values.reshape([1] * x.ndim)
    return torch.reshape(values, (-1, *[1] * (x.ndim - 1)))
