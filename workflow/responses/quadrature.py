"""Integrals over the lag as weights, second-order in the step: array kernels of `forecast`.

All of them are linear in the response, so a matrix of weights, made once, serves the estimate and
every resample. A response between its lags is its linear interpolant and zero beyond the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft, sparse

Floats = NDArray[np.floating]
Complexes = NDArray[np.complexfloating]
LinearMap = Callable[[Floats], Floats]
"""`(sample, lag, *places)` -> `(sample, row, *new places)`, linear in each sample."""

_SNAP = 1e-6
"""Steps whose ratio is this close to a whole number have that ratio."""


def fourier_weights(frequencies: Floats, *, step: float, lags: int) -> Complexes:
    """Weights w of the one-sided Fourier integral of the linear interpolant, exact for it.

        sum_l w(omega, l) R_l = integral_0^T R(t) exp(i omega t) dt

    Inner lags weigh step sinc(theta/2)^2 exp(i omega t_l), theta = omega step; the ends have half
    hats. The error is O(step^2) at every frequency, and far beyond the Nyquist frequency the
    answer still tends to i R(0) / omega; that of the trapezoid rule is periodic there.

    Args:
        frequencies: omega `(frequency)`, radians per unit of the step.
        step: between lags.
        lags: number of lags, at least 2.

    Returns:
        `(frequency, lag)`, units of the step.

    Source: L. N. G. Filon (1928), with linear instead of quadratic pieces.
    """
    theta = np.asarray(frequencies, dtype=np.float64)[:, None] * step
    hat = np.sinc(theta / (2 * np.pi)) ** 2
    small = np.abs(theta) < 0.5
    safe = np.where(small, 1.0, theta)
    # theta - sin(theta) loses all digits near 0; the series is exact to 1e-13 at 0.5.
    square = theta**2
    series = theta / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    half = hat / 2 + 1j * np.where(small, series, (safe - np.sin(safe)) / safe**2)
    weights = hat * np.exp(1j * theta * np.arange(lags))
    weights[:, :1] = half
    weights[:, -1:] = half.conj() * np.exp(1j * theta * (lags - 1))
    return np.asarray(step * weights)


@dataclass(frozen=True)
class Convolution:
    """Trapezoid rule of integral_0^t R(t - t') f(t') dt' for one pair of steps.

    The forcing keeps its own step. The integral is taken on the step of the forcing divided by
    the smallest whole number that makes it no longer than the step of the lags; both are read
    there from their linear interpolants. Where the two steps are equal nothing is interpolated.
    Both end points of every integral have half weight, so the error is O(step^2).

    Attributes:
        lags: number of lags of the response.
        history: `(lag, past)`, weight of the forcing that many of its steps ago.
        start: `(time, lag)`, what the first value of the forcing weighs too much in `history`,
            for the times that the response still remembers it.
    """

    lags: int
    history: sparse.csr_array
    start: sparse.csr_array

    @classmethod
    def of(cls, *, lags: int, lag_step: float, times: int, time_step: float) -> Convolution:
        """Weights for a response of `lags` lags and a forcing of `times` times.

        Args:
            lags: at least 2.
            lag_step: same units as the step of the times.
            times: at least 2.
            time_step: of the forcing.
        """
        ratio = time_step / lag_step
        parts = max(1, math.ceil(ratio * (1 - _SNAP)))
        ratio = _snapped(ratio / parts)
        # No more than the forcing lasts: a fine forcing must not refine lags that it never reaches.
        reach = (lags - 1) / ratio
        last = min(math.floor(reach + _SNAP), parts * (times - 1))
        read = _interpolation(ratio * np.arange(last + 1), lags)
        step = ratio * lag_step
        full = np.full(last + 1, step)
        full[[0, -1]] = step / 2
        too_much = np.full(last + 1, step / 2)
        too_much[-1] = 0.0
        # From the last whole step to the last lag; one interval, so the forcing may stay put.
        rest = max(0.0, min(1.0, reach - last)) * step / 2
        end = sparse.csr_array(([rest], ([last], [lags - 1])), shape=(last + 1, lags))
        end = end + sparse.diags_array(_at_last(rest, last + 1)) @ read
        weights = sparse.diags_array(full) @ read + end
        surplus = sparse.diags_array(too_much) @ read + end
        now, before = _hats(last + 1, parts)
        whole = sparse.csr_array(now == 1.0).astype(np.float64)
        history = now @ weights + before @ weights
        start = whole @ surplus + (now - whole) @ weights
        return cls(lags, sparse.csr_array(history.T), sparse.csr_array(start))

    def weights(self, forcing: NDArray, rows: slice) -> NDArray:
        """Weights of the lags in the answer at some times.

        Args:
            forcing: f `(time)`, real or complex (one wavenumber); zero before its first value.
            rows: times of the answer.

        Returns:
            `(row, lag)`, units of the forcing times its time.
        """
        past = self.history.shape[1]
        padded = np.concatenate([np.zeros(past - 1, forcing.dtype), forcing])
        windows = sliding_window_view(padded, past)[rows, ::-1]
        weights = (self.history @ np.ascontiguousarray(windows.T)).T
        first, stop = rows.start, min(rows.stop, self.start.shape[0])
        if first < stop:
            weights[: stop - first] -= forcing[0] * self.start[first:stop].toarray()
        return np.asarray(weights)


def kick_pattern(pattern: Floats, zero: list[int]) -> LinearMap:
    """Periodic convolution of R over displacements with phi(y, x)."""
    axes = tuple(range(-pattern.ndim, 0))
    spectrum = fft.rfftn(np.roll(pattern, [-z for z in zero], axis=axes))

    def spread(samples: Floats) -> Floats:
        product = fft.rfftn(samples, axes=axes) * spectrum
        return np.asarray(fft.irfftn(product, s=pattern.shape, axes=axes))

    return spread


def forcing_spectra(series: Floats, zero: list[int]) -> np.ndarray:
    """Half-spectra of f(t, y, x), shifted so that R may keep its order of displacements."""
    axes = tuple(range(1, series.ndim))
    return np.asarray(fft.rfftn(np.roll(series, [-z for z in zero], axis=axes), axes=axes))


def weigh_lags(weights: Floats) -> LinearMap:
    """Weights `(row, lag)` applied to every place."""

    def apply(samples: Floats) -> Floats:
        return np.moveaxis(np.tensordot(weights, samples, axes=(1, 1)), 0, 1)

    return apply


def in_turn(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """The map outer(inner(R))."""
    return lambda samples: outer(inner(samples))


def weigh_waves(
    rule: Convolution, spectra: np.ndarray, rows: slice, *, shape: list[int]
) -> LinearMap:
    """Convolution in time with f(t, y, x), wavenumber by wavenumber."""
    axes = tuple(range(-len(shape), 0))
    space, half = -len(shape), spectra.shape[1:]

    def apply(samples: Floats) -> Floats:
        # Wavenumbers first: one matrix product each, on numbers that lie together.
        waves = np.moveaxis(fft.rfftn(samples, axes=axes), axes, range(len(shape))).copy()
        size = (*half, len(samples), rows.stop - rows.start, *samples.shape[2:space])
        answer = np.empty(size, dtype=np.complex128)
        for wave in np.ndindex(*half):
            weights = rule.weights(spectra[(slice(None), *wave)], rows)
            answer[wave] = weigh_lags(weights)(waves[wave])
        answer = np.moveaxis(answer, range(len(shape)), axes)
        return np.asarray(fft.irfftn(answer, s=shape, axes=axes))

    return apply


def _snapped(ratio: float) -> float:
    """The ratio, or the whole number (or one over it) that rounding took it from."""
    for near in (round(ratio), 1 / round(1 / ratio)):
        if near and abs(ratio / near - 1) < _SNAP:
            return float(near)
    return ratio


def _at_last(value: float, size: int) -> Floats:
    """Zeros with one value at the end."""
    values = np.zeros(size)
    values[-1] = value
    return values


def _interpolation(positions: Floats, lags: int) -> sparse.csr_array:
    """Linear interpolation `(position, lag)` to positions in lag steps."""
    below = np.clip(np.floor(positions + _SNAP).astype(int), 0, lags - 2)
    share = np.clip(positions - below, 0.0, 1.0)
    share = np.where(np.abs(share - np.round(share)) < _SNAP, np.round(share), share)
    rows = np.arange(len(positions))
    places = np.tile(rows, 2), np.concatenate([below, below + 1])
    entries = np.concatenate([1 - share, share])
    return sparse.csr_array((entries, places), shape=(len(positions), lags))


def _hats(fine: int, parts: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Linear interpolation of the forcing at fine steps in the past, `(past, fine)` each.

    Fine step a parts + b ago lies between a (share 1 - b / parts) and a + 1 steps ago.

    Returns:
        Shares of the later and of the earlier neighbour.
    """
    ago, part = np.divmod(np.arange(fine), parts)
    past = int(ago[-1]) + 2
    share, columns = part / parts, np.arange(fine)
    now = sparse.csr_array((1 - share, (ago, columns)), shape=(past, fine))
    return now, sparse.csr_array((share, (ago + 1, columns)), shape=(past, fine))
