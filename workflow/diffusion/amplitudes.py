"""Laws of the size of a jump: characteristic function, and sums of jumps from plain numbers.

Sizes are in units of the scale b. All laws with a variance have the same one, 2, so that they can
be exchanged for each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from scipy import special
from torch import Tensor


class Amplitude(ABC):
    """The law of a single jump.

    Attributes:
        variance: of a jump, in units of b^2; infinite where there is none.
    """

    variance: float = 2.0

    @abstractmethod
    def characteristic(self, k: Tensor) -> Tensor:
        """E exp(i k A), real for symmetric jumps."""

    @abstractmethod
    def total(self, count: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sum of `count` jumps, from a uniform number in (0, 1) and a standard normal each."""


class Laplace(Amplitude):
    """(2 E)^(1/2) Z, density exp(-|A|) / 2."""

    def characteristic(self, k: Tensor) -> Tensor:
        """1 / (1 + k^2)."""
        return 1 / (1 + k.square())

    def total(self, count: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """(2 w)^(1/2) Z with w ~ Gamma(count)."""
        jumped = count > 0
        # scipy alone inverts the incomplete gamma function; most numbers did not jump.
        pair = (v[jumped].double().cpu().numpy() for v in (count, uniform))
        w = torch.zeros_like(normal)
        w[jumped] = torch.from_numpy(special.gammaincinv(*pair)).to(normal)
        return (2 * w).sqrt() * normal


class Normal(Amplitude):
    """2^(1/2) Z."""

    def characteristic(self, k: Tensor) -> Tensor:
        """exp(-k^2)."""
        return (-k.square()).exp()

    def total(self, count: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """(2 count)^(1/2) Z."""
        return (2 * count).sqrt() * normal


class Cauchy(Amplitude):
    """Density 1 / (pi (1 + A^2)): no moments."""

    variance = math.inf

    def characteristic(self, k: Tensor) -> Tensor:
        """exp(-|k|)."""
        return (-k.abs()).exp()

    def total(self, count: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """count tan(pi (U - 1/2))."""
        return count * torch.tan(math.pi * (uniform - 0.5)).to(normal)


AMPLITUDES: dict[str, Amplitude] = {"laplace": Laplace(), "normal": Normal(), "cauchy": Cauchy()}
