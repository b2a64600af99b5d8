"""Resamples of an ensemble or of one long run, as weights over (member, block of time).

Lagged products are summed per unit u = (member, block), S_u(lag), with their number of pairs
n_u(lag), and R = sum_u S_u / sum_u n_u. A resample b is a row of weights over the units,

    R_b = (w_b @ S) / (w_b @ n),

so everything nonlinear (recalibration, distances, forecasts) is applied to R_b, and estimators
that share the weights share the draws.

Drawn are stretches of `moving` consecutive blocks, at every start with equal chance; a stretch
that passes the end of its member goes on at its beginning, so no block is drawn less than another.
A stretch as long as the member is the member itself: resampling members is the special case. With
K = members * blocks / moving stretches in the run, a resample draws floor(K - 1) of them and its
deviation from equal weights is multiplied by sqrt(floor(K - 1) / (K - 1)): the variance of a mean
is then unbiased but for the correlation between stretches, also with few of them.

That last bias is -1 / 6 of the variance at three integrated autocorrelation times (exponential
decay) and falls as 1 / moving. Stretches are therefore as long as the run allows with 20 of them,
where a Student interval is only 4 % wider than a Gaussian one, and the rest of the bias is taken
out by the same multiplication.

Source: H. R. Kuensch, Ann. Statist. 17, 1217 (1989); D. N. Politis and J. P. Romano (1992),
circular blocks; P. J. McCarthy and C. B. Snowden (1985), draws; J. N. K. Rao and C. F. J. Wu,
J. Am. Stat. Assoc. 83, 231 (1988), rescaling; B. Schmeiser, Oper. Res. 30, 556 (1982), 10 to 30
batches; A. Sokal, Monte Carlo Methods in Statistical Mechanics (1997), windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import brentq

from workflow.interfaces import UserError

Floats = NDArray[np.floating]

ENOUGH_MEMBERS = 8
"""From this many members on, whole members are resampled."""
TIMES_PER_BLOCK = 3.0
"""Integrated autocorrelation times that a stretch must hold at least."""
ENOUGH_BLOCKS = 20
"""Stretches of a run beyond which longer ones serve coverage better than more of them."""
FEWEST_BLOCKS = 8
"""Stretches of a run below which its error bar would be a guess."""

_WINDOW = 2.5
"""Sokal's window in units of tau = 1 + 2 sum rho, five times one half of it."""
_CHUNK_NUMBERS = 1 << 23
"""Numbers of one chunk of temporary arrays: 64 MiB in float64."""


@dataclass(frozen=True)
class Units:
    """What is drawn in a resample: stretches of blocks, or whole members.

    Attributes:
        members: independent members.
        blocks: blocks of time of each member.
        moving: consecutive blocks of one stretch; all of them when members are drawn.
        inflation: factor on deviations for the correlation between stretches, 1 or a little more.
    """

    members: int
    blocks: int
    moving: int
    inflation: float = 1.0

    def __post_init__(self) -> None:
        if not (self.members >= 1 and 1 <= self.moving <= self.blocks):
            raise ValueError(
                f"{self.members} members of {self.blocks} blocks, {self.moving} a stretch: "
                "needs at least 1 member, and stretches no longer than it"
            )
        if self.independent < 2:
            raise UserError(
                f"ensemble.members={self.members} with {self.blocks} blocks of time in stretches "
                f"of {self.moving}: an error bar needs at least 2 of them, as 2 members have"
            )

    @property
    def by(self) -> Literal["member", "time"]:
        """What the stretches are."""
        return "member" if self.moving == self.blocks else "time"

    @property
    def independent(self) -> float:
        """K, stretches that do not overlap."""
        return self.members * self.blocks / self.moving

    @property
    def degrees_of_freedom(self) -> float:
        """Of the variance of a mean, for Student's intervals.

        The variance is a quadratic form in the blocks with eigenvalues l_f, the squared transfer
        function of a stretch, and (sum l)^2 / sum l^2 degrees of freedom: members - 1 for whole
        members, about 1.5 (K - 1) for long overlapping stretches.
        """
        stretch = np.zeros(self.blocks)
        stretch[: self.moving] = 1 / self.moving
        transfer = np.abs(np.fft.fft(stretch)) ** 2
        # The grand mean is estimated: one of the `members` constant modes is lost.
        total = self.members * transfer.sum() - 1.0
        return float(total**2 / (self.members * (transfer**2).sum() - 1.0))


def resampling_units(
    sums: Floats, pairs: Floats, *, by: Literal["auto", "member", "time"] = "auto"
) -> Units:
    """What to resample in these sums.

    Args:
        sums: S `(member, block, lag, ...)`.
        pairs: n `(block, lag)`, the same for every member.
        by: member: whole members; time: stretches of blocks within members, for few members;
            auto: members where there are 8, else time, else the few members there are.

    Returns:
        The units, to be used for every estimator of one ensemble.

    Raises:
        UserError: one member resampled by member, or a run too short for its correlations.
    """
    members, blocks = sums.shape[:2]
    whole = by == "member" or (by == "auto" and members >= ENOUGH_MEMBERS)
    if whole or (by == "auto" and blocks == 1):
        if members < 2:
            raise UserError(
                f"ensemble.members={members}: resampling members needs at least 2; "
                "set response.error.by to time, or raise ensemble.members"
            )
        return Units(members, blocks, blocks)
    try:
        return _time_units(sums, pairs)
    except UserError:
        if by == "time" or members < 2:
            raise
        return Units(members, blocks, blocks)


def unit_weights(units: Units, *, samples: int, seed: int) -> Floats:
    """Weights of the units in each resample.

    The same arguments give the same draws: use them for every estimator of one ensemble. Use
    another seed for another ensemble.

    Args:
        units: what is drawn, from `resampling_units`.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        `(sample, member * block)`, block fastest; every row sums to 1. With `inflation` above 1
        a weight can be a little below 0.

    Raises:
        UserError: fewer than 2 resamples.
    """
    if samples < 2:
        raise UserError(f"response.error.samples={samples}: an error bar needs at least 2")
    # 1e-9: K - 1 of a whole number of stretches must not be rounded down.
    draws = math.floor(units.independent - 1 + 1e-9)
    scale = units.inflation * math.sqrt(draws / (units.independent - 1))
    generator = np.random.Generator(np.random.Philox(seed))
    size = units.members * units.blocks
    if units.by == "member":
        counts = generator.multinomial(draws, np.full(units.members, 1 / units.members), samples)
        counts = np.repeat(counts, units.blocks, axis=1)
    else:
        starts = generator.multinomial(draws, np.full(size, 1 / size), samples)
        counts = _stretched(starts.reshape(samples, units.members, units.blocks), units.moving)
    weights = counts.reshape(samples, size) / (draws * units.moving)
    return np.asarray(1 / size + scale * (weights - 1 / size))


def jackknife_weights(units: Units) -> Floats:
    """Weights with one independent group of units left out in each row.

    Returns:
        `(group, member * block)`: whole members, or stretches that do not overlap, near-equal in
        size and within one member each; every row sums to 1.
    """
    groups = units.blocks // units.moving
    edges = np.linspace(0, units.blocks, groups + 1).round().astype(int)
    group = np.repeat(np.arange(groups), np.diff(edges))
    label = (np.arange(units.members)[:, None] * groups + group).ravel()
    kept = (label != np.arange(units.members * groups)[:, None]).astype(np.float64)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True))


def ratio(sums: NDArray[Any], pairs: Floats, weights: Floats | None = None) -> NDArray[Any]:
    """Response of every resample, or of the whole ensemble.

        R_b(lag) = (w_b @ S)(lag) / (w_b @ n)(lag)

    Args:
        sums: S `(member, block, lag, ...)`, real or complex.
        pairs: n `(block, lag)`, the same for every member.
        weights: `(sample, member * block)`, or any slice of its rows; None for equal weights.
            Pass slices of rows, or of lags, to bound the memory.

    Returns:
        `(sample, lag, ...)`, or `(lag, ...)` without weights, in double precision.

    Raises:
        UserError: a lag of which a resample holds no pair of samples.
        ValueError: shapes that do not fit.
    """
    members, blocks = sums.shape[:2]
    if pairs.shape != (blocks, sums.shape[2]):
        raise ValueError(
            f"pairs {pairs.shape} for sums {sums.shape}; needs (block, lag) = "
            f"({blocks}, {sums.shape[2]})"
        )
    rows = np.full((1, members * blocks), 1.0) if weights is None else weights
    if rows.shape[1] != members * blocks:
        raise ValueError(
            f"{members} members of {blocks} blocks with weights for {rows.shape[1]} units; "
            "draw the weights for this ensemble"
        )
    number = rows.reshape(len(rows), members, blocks).sum(axis=1) @ pairs
    if not (number > 0).all():
        lag = int(np.argmax((number <= 0).any(axis=0)))
        raise UserError(
            f"lag {lag} has no pair of samples in some resamples; "
            "lower response.max_lag or lengthen ensemble.length"
        )
    flat = sums.reshape(members * blocks, *sums.shape[2:])
    flat = flat.astype(np.result_type(flat, np.float64), copy=False)
    total = (rows @ flat.reshape(len(flat), -1)).reshape(len(rows), *sums.shape[2:])
    total /= number.reshape(*number.shape, *[1] * (sums.ndim - 3))
    return total[0] if weights is None else total


def autocorrelation_time(series: Floats) -> Floats:
    """Integrated autocorrelation time, tau = 1 + 2 sum_{t=1}^{W} rho(t).

    A mean over N samples has the variance of a mean over N / tau independent ones. The window W
    is the first with W >= 2.5 tau(W); the estimate is corrected for the estimated mean.

    Args:
        series: `(member, time, ...)`; members share one mean and one correlation.

    Returns:
        `(...)`, in samples, 1 for white noise; 1 where the series does not vary. It is a lower
        bound, and of no use, where it comes near the length of the series.

    Source: A. Sokal (1997); U. Wolff, Comput. Phys. Commun. 156, 143 (2004), equation 49.
    """
    correlation = _autocorrelation(series)
    return _windowed(correlation, samples=series.shape[0] * series.shape[1])


def moving_blocks(sums: Floats, pairs: Floats) -> int:
    """Consecutive blocks that one stretch of a resample needs.

    The correlation is that of the products themselves, not of their factors: products can be
    correlated for longer than each factor (regimes of different variance) or for much less.
    tau of the blocks, pooled over members and places for each lag, is read off the residuals
    S_u - R n_u; sums over blocks hide part of the correlation, and an exponential decay with
    rate a per block has

        tau = a / (a - 1 + exp(-a)),   integrated autocorrelation time = 2 / a blocks.

    The longest over the lags counts, so noise in it errs on the side of long stretches.

    Args:
        sums: S `(member, block, lag, ...)`.
        pairs: n `(block, lag)`.

    Returns:
        At least 3 integrated autocorrelation times, and as many as leave 20 stretches.

    Raises:
        UserError: fewer than 8 stretches of 3 integrated autocorrelation times in the run.
    """
    return _time_units(sums, pairs).moving


def _time_units(sums: Floats, pairs: Floats) -> Units:
    """Stretches of time as `moving_blocks` has them, with the correlation left between them."""
    members, blocks = sums.shape[:2]
    rate = _decay_per_block(sums, pairs)
    needed = math.ceil(2 * TIMES_PER_BLOCK / rate)
    if needed > blocks or members * blocks < FEWEST_BLOCKS * needed:
        samples = float(pairs[:, 0].mean())
        length = needed * samples * max(FEWEST_BLOCKS / members, 1.0)
        raise UserError(
            f"{members} x {samples * blocks:.0f} saved samples, products correlated over "
            f"{2 / rate * samples:.3g} samples: an error bar needs {FEWEST_BLOCKS} stretches of "
            f"{TIMES_PER_BLOCK:g} times that; raise ensemble.length to {math.ceil(length)} samples "
            f"or ensemble.members to {ENOUGH_MEMBERS}"
        )
    moving = min(blocks, max(needed, members * blocks // ENOUGH_BLOCKS))
    # Var(sum over a stretch) misses this share of its limit, for the exponential decay.
    missed = -math.expm1(-rate * moving) / (rate * moving)
    # Whole members are independent, whatever their correlation in time.
    return Units(members, blocks, moving, 1.0 if moving == blocks else (1 - missed) ** -0.5)


def _stretched(starts: NDArray[np.int64], moving: int) -> NDArray[np.int64]:
    """How often each block is covered by the stretches that start at given blocks, circular."""
    blocks = starts.shape[-1]
    # The stretches that cover block b start at b - moving + 1 ... b.
    wrapped = np.concatenate([starts[..., blocks - moving :], starts], axis=-1)
    total = np.cumsum(wrapped, axis=-1)
    return total[..., moving:] - total[..., :blocks]


def _decay_per_block(sums: Floats, pairs: Floats) -> float:
    """Slowest decay rate of the products' correlation over the lags, per block, at most 100."""
    members, blocks, lags = sums.shape[:3]
    if blocks < 2:
        return 1.0
    whole = ratio(sums, pairs)
    chunk = max(1, _CHUNK_NUMBERS // max(1, sums[:, :, 0].size))
    longest = 1.0
    for first in range(0, lags, chunk):
        part = slice(first, first + chunk)
        n = pairs[:, part].reshape(blocks, -1, *[1] * (sums.ndim - 3))
        residual = sums[:, :, part] - whole[part] * n
        correlation = _autocorrelation(residual.reshape(members, blocks, n.shape[1], -1))
        varies = correlation[0] > 0
        number = np.maximum(1, varies.sum(axis=-1))
        pooled = np.where(varies, correlation, 0.0).sum(axis=-1) / number
        times = _windowed(pooled, samples=members * blocks)
        longest = max(longest, float(times.max()))
    return _rate_per_block(longest)


def _autocorrelation(series: Floats) -> Floats:
    """rho(t) `(time, ...)` about the mean of all members; all 0 where the series is constant."""
    members, length = series.shape[:2]
    centred = series - series.mean(axis=(0, 1), dtype=np.float64, keepdims=True)
    padded = fft.next_fast_len(2 * length, real=True)
    power = (np.abs(fft.rfft(centred, n=padded, axis=1)) ** 2).sum(axis=0)
    covariance = fft.irfft(power, n=padded, axis=0)[:length]
    left = members * (length - np.arange(length)).reshape(-1, *[1] * (series.ndim - 2))
    covariance = covariance / left
    scale = (np.abs(series) ** 2).mean(axis=(0, 1), dtype=np.float64)
    varies = covariance[0] > 1e-20 * scale
    return np.where(varies, covariance / np.where(varies, covariance[0], 1.0), 0.0)


def _windowed(correlation: Floats, *, samples: int) -> Floats:
    """tau at Sokal's window, `(...)`."""
    length = len(correlation)
    tau = 1 + 2 * (np.cumsum(correlation, axis=0) - correlation[0])
    window = np.arange(length).reshape(-1, *[1] * (correlation.ndim - 1))
    reached = window >= _WINDOW * tau
    # Not reached within half the run: the estimate at that half, which is a lower bound.
    reached[max(1, length // 2) :] = True
    first = reached.argmax(axis=0)
    at = np.take_along_axis(tau, first[None], axis=0)[0]
    corrected = at * (1 + (2 * first + 1) / samples)
    return np.where(correlation[0] > 0, np.maximum(1.0, corrected), 1.0)


def _rate_per_block(tau: float) -> float:
    """a with a / (a - 1 + exp(-a)) = tau, at most 100: blocks without correlation."""
    fastest = 100.0
    if tau <= fastest / (fastest - 1):
        return fastest
    return float(brentq(lambda a: a - tau * (a + math.expm1(-a)), 1e-6, fastest))
