"""Response matrix from sums per unit (group of members, slab of time), one lag after another.

    R(lag)_ij = sum_u S_u(lag)_ij / sum_u n_u(lag),      S_u = sum_t (x_i(t + lag) - <x_i>) b_j(t)

with b = -(s - <s>). Sums are kept about zero beside those of x and b alone, so that a longer run,
whose means are others, only adds units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflow.interfaces import UserError
from workflow.responses.correlation import add_pooled_sums, one_thread, pair_counts
from workflow.responses.matrix import recalibrated_matrix
from workflow.responses.recalibration import FLOOR

Floats = NDArray[np.float64]

ENOUGH_UNITS = 4
"""Units from which on there is a standard error."""


@dataclass(frozen=True)
class MatrixSums:
    """Sums over the pairs (t, t + lag) of a unit, b = -s; float64.

    Attributes:
        products: sums of x_i(t + lag) b_j(t), `(lag, number, kicked)`.
        watched: sums of x_i(t + lag), `(lag, number)`.
        kicked: sums of b_j(t), `(lag, kicked)`.
        pairs: their number, `(lag,)`.
    """

    products: Floats
    watched: Floats
    kicked: Floats
    pairs: Floats


@dataclass(frozen=True)
class LagZero:
    """What all lags need of the matrix at lag 0.

    Attributes:
        x_mean: mean of the responders, `(number,)`.
        b_mean: mean of -s, `(kicked,)`.
        raw: M, `(number, kicked)`.
        pairs: number of snapshots.
        factor: G of `matrix.recalibrated_matrix`; the identity where not recalibrated.
        inverse: the part of G that inverts M, whose change with M is -P dM P; zero where not
            recalibrated.
        unresolved: directions left as they were.
        recalibrated: False where it was refused.
    """

    x_mean: Floats
    b_mean: Floats
    raw: Floats
    pairs: float
    factor: Floats
    inverse: Floats
    unresolved: int
    recalibrated: bool

    @property
    def stein_error(self) -> float:
        """Root mean square eigenvalue of M - I."""
        size = len(self.raw)
        return float(np.linalg.norm(self.raw - np.eye(size)) / np.sqrt(size))


@dataclass(frozen=True)
class MatrixLags:
    """The answer at some lags, each `(lag, number, kicked)`; no error from too few units."""

    response: Floats
    raw: Floats
    standard_error: Floats | None


def add_up(windows: Iterable[tuple[Tensor, Tensor]], *, max_lag: int) -> MatrixSums:
    """Sums of a unit, window after window of time.

    Products are taken about the mean of the first window, in the precision of the data, and
    moved to zero in float64: of a field far from zero no digits are lost.

    Args:
        windows: pairs of x `(member, time + extra, number)`, to `max_lag` samples beyond the
            window or to the end of the run, and its score `(member, time, number)`.
        max_lag: longest lag, in saved samples.
    """
    sums = watched = kicked = centre_x = centre_b = torch.zeros(0, dtype=torch.float64)
    pairs = np.zeros(max_lag + 1)
    for x, s in windows:
        dtype = torch.promote_types(x.dtype, s.dtype)
        x, b = x.to(dtype), -s.to(dtype)
        if not len(centre_x):
            centre_x = x[:, : b.shape[1]].double().mean((0, 1)).to(dtype).double()
            centre_b = b.double().mean((0, 1)).to(dtype).double()
            lags, size = max_lag + 1, len(centre_x)
            sums = torch.zeros((lags, size, size), dtype=torch.float64)
            watched, kicked = sums.new_zeros((lags, size)), sums.new_zeros((lags, size))
        x, b = x - centre_x.to(dtype), b - centre_b.to(dtype)
        with one_thread():
            add_pooled_sums(sums, x, b, max_lag=max_lag)
        available, length = x.shape[1], b.shape[1]
        counts = pair_counts(0, length, length=available, max_lag=max_lag)
        lag, count = torch.arange(max_lag + 1), torch.from_numpy(counts)
        first = lag.clamp(max=available)
        running = _running(x)
        watched += running[first + count] - running[first]
        kicked += _running(b)[count]
        pairs += len(x) * counts
    for number in range(max_lag + 1):
        sums[number].addr_(centre_x, kicked[number] + pairs[number] * centre_b)
        sums[number].addr_(watched[number], centre_b)
    count = torch.from_numpy(pairs)[:, None]
    watched, kicked = watched + count * centre_x, kicked + count * centre_b
    return MatrixSums(sums.numpy(), watched.numpy(), kicked.numpy(), pairs)


def _running(x: Tensor) -> Tensor:
    """Sums over members and over the first 0, 1, ... times, `(time + 1, number)`."""
    total = x.sum(0, dtype=torch.float64)
    return torch.cat([total.new_zeros((1, total.shape[1])), total.cumsum(0)])


Read = Callable[[range], Iterator[MatrixSums]]
"""Gives the sums of every unit at some lags, one unit after another."""


def lag_zero(read: Read) -> LagZero:
    """Means, the matrix at lag 0 and its repair, as `matrix.recalibrated_matrix`, which warns.

    Raises:
        UserError: missing or infinite values.
    """
    total = _total(read(range(1)))
    pairs = float(total.pairs[0])
    x_mean, b_mean = total.watched[0] / pairs, total.kicked[0] / pairs
    raw = total.products[0] / pairs - np.outer(x_mean, b_mean)
    if not np.isfinite(raw).all():
        raise UserError("data or scores have missing or infinite values; leave out those times")
    identity = np.eye(len(raw))
    # Applied to the identity, the repair is its own factor.
    repaired = recalibrated_matrix(np.stack([raw, identity]))
    inverse = np.zeros_like(raw)
    if not repaired.refused:
        inverse = np.linalg.pinv(raw, rcond=FLOOR / np.linalg.norm(raw, 2))
    return LagZero(
        x_mean,
        b_mean,
        raw,
        pairs,
        repaired.response[1],
        inverse,
        repaired.unresolved,
        not repaired.refused,
    )


def reduce_lags(read: Read, zero: LagZero, *, lags: range) -> MatrixLags:
    """Response and standard error at some lags; holds a few arrays of them, whatever the units.

    The error is that of leaving out one unit at a time, to first order in its share: with
    w_u = n_u / n and R_u, M_u the matrices of a unit alone,

        I_u = w_u (R_u - R) G - R P w_u (M_u - M) P,     se^2 = sum_u I_u^2 / (1 - sum_u w_u^2)

    where the second part is how the unit moves the recalibration; units of any length.
    """
    total = _total(read(lags))
    pairs = total.pairs[:, None, None]
    raw = _centred(total, zero) / pairs
    response = raw @ zero.factor
    squares, shares, units = np.zeros_like(raw), np.zeros(len(raw)), 0
    through = raw @ zero.inverse
    for unit, start in zip(read(lags), read(range(1)), strict=True):
        units += 1
        shares += (unit.pairs / total.pairs) ** 2
        own = (_centred(unit, zero) - unit.pairs[:, None, None] * raw) / pairs
        moved = (_centred(start, zero)[0] - start.pairs[0] * zero.raw) / zero.pairs
        squares += (own @ zero.factor - through @ (moved @ zero.inverse)) ** 2
    if units < ENOUGH_UNITS:
        return MatrixLags(response, raw, None)
    return MatrixLags(response, raw, np.sqrt(squares / (1 - shares)[:, None, None]))


def _total(units: Iterator[MatrixSums]) -> MatrixSums:
    first = next(units)
    parts = [part.copy() for part in (first.products, first.watched, first.kicked, first.pairs)]
    for unit in units:
        for part, more in zip(
            parts, (unit.products, unit.watched, unit.kicked, unit.pairs), strict=True
        ):
            part += more
    return MatrixSums(*parts)


def _centred(sums: MatrixSums, zero: LagZero) -> Floats:
    """Products about the means over the whole run."""
    about = sums.products - zero.x_mean[:, None] * sums.kicked[:, None, :]
    about -= (sums.watched - sums.pairs[:, None] * zero.x_mean)[:, :, None] * zero.b_mean
    return np.asarray(about)
