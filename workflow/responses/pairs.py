"""How many of the paired runs a direct response really rests on.

Where neighbouring states part exponentially, each pair at a rate of its own, few pairs outgrow the
others and make the mean at long lags. Resampling knows only the pairs that were drawn: without the
rare large ones it makes error bars that are too short. Pair i counts by the square norm |R_i|^2 of
its response, and

    n_eff(lag) = ( sum_i |R_i|^2 )^2 / sum_i |R_i|^4,      1 <= n_eff <= pairs,

is the number of pairs where all answer alike and 1 where one outweighs them all. 1/n_eff - 1/pairs
is the relative variance of sum |R|^2, so a standard error is itself known to 1 / (2 sqrt(n_eff)).

Source: the effective sample size of Kish (Survey Sampling, 1965), with weights |R|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflow.responses.channels import Channels

Floats = NDArray[np.floating]

ENOUGH = 30
"""Effective pairs from which on error bars are taken to be right: to a tenth of themselves."""

SHARE = 8
"""Of fewer than ENOUGH * SHARE pairs, one in so many: normal responses of one number have 1 in 3,
and a few dozen of them seldom less than 1 in 8."""


@dataclass(frozen=True)
class PairMoments:
    """Moments of the size of a pair's response, `(lag, perturbation, observable)`.

    Attributes:
        pairs: that were run, without those of members that are left out.
        square: mean of |R|^2 over the pairs.
        fourth: mean of |R|^4.
    """

    pairs: int
    square: Floats
    fourth: Floats

    @classmethod
    def of(cls, square: Floats, fourth: Floats, rounds: Floats) -> PairMoments:
        """Of all blocks and members together.

        Args:
            square: mean over the pairs of a block and member, `(block, member, ...)`.
            fourth: the same.
            rounds: pairs a member in each block, `(block,)`.
        """
        share = rounds / rounds.sum() / square.shape[1]
        means = [np.einsum("b,bm...->...", share, one) for one in (square, fourth)]
        return cls(round(rounds.sum()) * square.shape[1], *means)

    def effective(self) -> Floats:
        """n_eff; NaN where no pair answers."""
        known = self.fourth > 0
        found = self.pairs * self.square**2 / np.where(known, self.fourth, 1.0)
        return np.where(known, found, np.nan)


def square_norms(channels: Channels, totals: Tensor, maps: Tensor | None) -> Tensor:
    """|R|^2 of every observable, summed over its places, shells or bins.

    Args:
        channels: what was watched.
        totals: `(..., watched)`, one pair in each row.
        maps: `(..., observable of the place, *shape)`, on homogeneous fields.

    Returns:
        `(..., observable)` in float64: of float32 the fourth power may be infinite.
    """
    found = []
    for one in channels.observables:
        if maps is not None and one.of_place:
            rest = totals.ndim - 1
            values = maps.select(rest, channels.of_place.index(one)).flatten(rest)
        else:
            values = totals[..., channels.columns(one)]
        found.append(values.double().square().sum(-1))
    return torch.stack(found, dim=-1)


def enough(pairs: int) -> float:
    """Effective pairs that a response of so many needs."""
    return min(float(ENOUGH), pairs / SHARE)


def few_from(effective: Floats, lag: Floats, pairs: int) -> float | None:
    """The first lag at which too few pairs count; None where there are enough at all.

    Args:
        effective: n_eff `(lag,)`, NaN where it is not known.
        lag: times since the kick.
        pairs: that were run.
    """
    few = np.flatnonzero(effective < enough(pairs))  # NaN is not less
    return float(lag[few[0]]) if len(few) else None
