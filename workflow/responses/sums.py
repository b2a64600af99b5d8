"""Sums of lagged products of all channels over blocks of time: what responses are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflow.responses.channels import Channels
from workflow.responses.correlation import lag_sums
from workflow.responses.divergence import Seed
from workflow.responses.stein import LinearRecalibration

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Constants:
    """Constants of one estimator: what channels are centred by, and the repair of its score.

    Centring changes no expectation, only the noise, so means over a sample of snapshots serve.
    The repair is needed beforehand only where there are two versions of B (`Channels.versions`).

    Attributes:
        totals_a: mean of the totals of A, `(total,)`.
        totals_b: mean of the totals of B, raw and, with two versions, recalibrated.
        maps_a: mean of the observables of the place, `(observable,)`; empty without maps.
        maps_b: mean of -s, `(field,)`; empty without maps.
        recalibration: the repair.
    """

    totals_a: Tensor
    totals_b: Tensor
    maps_a: Tensor
    maps_b: Tensor
    recalibration: LinearRecalibration | None = None

    @classmethod
    def of(
        cls,
        channels: Channels,
        x: Tensor,
        s: Tensor,
        score: Score,
        *,
        recalibration: LinearRecalibration | None = None,
    ) -> Constants:
        """Means over snapshots `(batch, field, *shape)` with scores `s`."""
        maps = channels.maps_a(x) if channels.saved.maps else None
        nothing = torch.zeros(0, dtype=torch.float64)
        return cls(
            totals_a=channels.observe(x, maps).double().mean(0),
            totals_b=_conjugates(channels, x, s, score, recalibration).double().mean(0),
            maps_a=nothing if maps is None else _mean(maps),
            maps_b=nothing if maps is None else -_mean(s),
            recalibration=recalibration,
        )


def _mean(values: Tensor) -> Tensor:
    """Mean per channel of `(batch, channel, *shape)`."""
    return values.double().transpose(0, 1).flatten(1).mean(1)


def _conjugates(
    channels: Channels,
    x: Tensor,
    s: Tensor,
    score: Score,
    repair: LinearRecalibration | None,
    *,
    seed: Seed = 0,
) -> Tensor:
    """Totals of B, one version or two, `(batch, total)`."""
    versions = [channels.conjugates(x, s, score, seed=seed)]
    if channels.versions == 2:
        if repair is None:
            raise ValueError("two versions of B need the recalibration of the score")
        known = repair
        versions.append(channels.conjugates(x, known(s), lambda y: known(score(y)), seed=seed))
    return torch.cat(versions, dim=1)


def block_sums(
    channels: Channels,
    constants: Constants,
    x: Tensor,
    s: Tensor,
    score: Score,
    *,
    blocks: Sequence[range],
    max_lag: int,
    seed: Seed = 0,
) -> dict[str, NDArray[np.float64]]:
    """Sums over consecutive blocks of time.

    Args:
        channels: what is correlated.
        constants: of this estimator.
        x: snapshots `(member, time, field, *shape)` from the start of the first block to
            `max_lag` samples beyond the last, as far as the run goes.
        s: their scores, over the blocks.
        score: the score function, for directions that need it.
        blocks: times of each block, counted from the start of the run.
        max_lag: longest lag, in saved samples.
        seed: of the random probes of divergences; another one for every call.

    Returns:
        `totals` `(member, block, lag, watched, kick)` and, on homogeneous fields, `maps`
        `(member, block, lag, observable, field, *shape)`.
    """
    watched, kicks = _centred(channels, constants, x, s, score, seed)
    first = blocks[0].start

    def sums(a: Tensor, b: Tensor) -> NDArray[np.float64]:
        parts = [
            lag_sums(
                a[:, block.start - first : block.stop - first + max_lag],
                b[:, block.start - first : block.stop - first],
                max_lag=max_lag,
            )
            for block in blocks
        ]
        return np.stack(parts, axis=1)

    return {name: sums(a, kicks[name]) for name, a in watched.items()}


def _centred(
    channels: Channels, constants: Constants, x: Tensor, s: Tensor, score: Score, seed: Seed
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A and B less their means, `(member, time, channel[, *shape])`, by kind."""
    flat = x.flatten(0, 1)
    maps = channels.maps_a(flat) if channels.saved.maps else None
    totals = channels.observe(flat, maps) - constants.totals_a.to(x.dtype)
    past, scores = x[:, : s.shape[1]].flatten(0, 1), s.flatten(0, 1)
    b = _conjugates(channels, past, scores, score, constants.recalibration, seed=seed)
    b = b - constants.totals_b.to(x.dtype)
    watched = {"totals": totals.unflatten(0, x.shape[:2])}
    kicks = {"totals": b.unflatten(0, s.shape[:2])}
    if maps is not None:
        watched["maps"] = (maps - _like(constants.maps_a, x)).unflatten(0, x.shape[:2])
        kicks["maps"] = -s - _like(constants.maps_b, x)
    return watched, kicks


def _like(per_channel: Tensor, x: Tensor) -> Tensor:
    """Numbers per channel, made to broadcast over space."""
    return per_channel.to(x.dtype).reshape(-1, *[1] * (x.ndim - 3))
