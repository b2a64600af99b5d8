"""A score extrapolated to vanishing noise.

A learned score is that of the density smoothed by noise of variance sigma^2, so its response is
off by a term of order sigma^2. Two levels take that term out:

    s = 2 s_sigma - s_(2^(1/2) sigma) + O(sigma^4)

The variance of what was learned grows by up to a factor 5 in exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workflow.interfaces import UserError
from workflow.scores.neural import NeuralScore


@dataclass(frozen=True)
class Extrapolated:
    """2 s_sigma - s_(2^(1/2) sigma).

    Attributes:
        score_at: score of the density smoothed to a level, `(x, sigma)` -> like x.
        sigma: lower of the two levels, in the units that `score_at` takes.
    """

    score_at: Callable[[Tensor, float], Tensor]
    sigma: float

    @classmethod
    def of(cls, score: NeuralScore) -> Extrapolated:
        """The learned score, from its smallest level.

        Raises:
            UserError: it was not trained at the second level.
        """
        process = score.model.process
        second = math.sqrt(2) * process.sigma_min
        if process.sigma_max < second:
            raise UserError(
                f"score.process.sigma_max={process.sigma_max:g}: extrapolation needs the score at "
                f"2^(1/2) sigma_min = {second:.3g}; raise sigma_max to {1.5 * process.sigma_min:g}"
            )
        return cls(score.at, process.sigma_min)

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x."""
        return 2 * self.score_at(x, self.sigma) - self.score_at(x, math.sqrt(2) * self.sigma)
