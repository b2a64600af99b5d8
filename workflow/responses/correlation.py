"""Streaming, unbiased lag correlations of long runs: the kernel of every response estimator.

For a field `x` and its conjugate `s` (the score) of a translation-invariant system

    R(lag, r) = - < x(p + r, t + lag) s(p, t) >,      p, t averaged over space and time,

and with the transforms over space X_k, S_k this is one correlation in time per wavenumber,

    R_k(lag) = - < X_k(t + lag) conj(S_k(t)) > / N,   N points.

The time axis is cut into short windows. Each is zero-padded to hold all its lags (overlap-save),
so no lag wraps around, and lag l is divided by its own number of pairs, length - l: a run taken as
periodic in time, or divided by its length, loses the share l / length of the answer.

Source: arXiv:2402.01029, equation 3, with the normalisation of the unbiased estimator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from workflow.interfaces import UserError

# One window of both spectra should stay in a core's second-level cache (2**16 complex64 = 0.5 MiB).
_WINDOW_NUMBERS = 1 << 16
# Windows are summed in the precision of the data; so few of them cost less than one of its digits.
_WINDOWS_PER_SUM = 16


def block_bounds(length: int, block: int, *, max_lag: int) -> Iterator[tuple[int, int, int]]:
    """Time blocks to feed to `LagCorrelation.add`, in order.

    Args:
        length: saved samples of the run.
        block: samples of the conjugate per block; several times `max_lag` avoids reading twice.
        max_lag: longest lag, in saved samples.

    Yields:
        (start, stop, stop_lagged): feed x[start:stop_lagged] with s[start:stop].

    Raises:
        UserError: `max_lag` leaves no pair of samples to correlate.
        ValueError: `block` is not positive.
    """
    _check_lag(max_lag, length)
    if block < 1:
        raise ValueError(f"block={block} saved samples: a time block needs at least 1")
    for start in range(0, length, block):
        stop = min(start + block, length)
        yield start, stop, min(stop + max_lag, length)


class LagCorrelation:
    """Sums of lagged products of one group of members, fed with consecutive blocks of time.

    Transforms run in the precision of the data on one thread, sums over windows in float64. With
    float32 data the error of R, measured, is 2e-8 where R is 1 and 2e-9 where R is 0.
    Memory is one block and `(member, max_lag + 1, *shape)`: it does not grow with the run.

    Groups of members are independent: give each its own instance and concatenate the results.

    Attributes:
        shape: space shape of the field, `()`, `(nx,)` or `(ny, nx)`.
        max_lag: longest lag, in saved samples.
        length: saved samples of the whole run.
        window: samples of the conjugate that are transformed in time together.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        max_lag: int,
        length: int,
        x_mean: float = 0.0,
        s_mean: float = 0.0,
    ) -> None:
        """Prepare the sums.

        Args:
            shape: space shape of the field.
            max_lag: longest lag, in saved samples.
            length: saved samples of the whole run.
            x_mean: subtracted from x, in its units; leaves R unchanged but less noisy.
            s_mean: subtracted from s; zero in expectation, its sample value is noise.

        Raises:
            UserError: `max_lag` leaves no pair of samples to correlate.
        """
        _check_lag(max_lag, length)
        self.shape = tuple(shape)
        self.max_lag = max_lag
        self.length = length
        self._means = float(x_mean), float(s_mean)
        # Powers of two of at least four times the lag are fastest: little padding, still in cache.
        padded = 1 << max(4 * max_lag - 1, 63).bit_length()
        self._padded = int(min(padded, next_fast_len(length + max_lag)))
        self.window = self._padded - max_lag
        self._fed = 0
        self._sums: Tensor | None = None

    def add(self, x: ArrayLike | Tensor, s: ArrayLike | Tensor) -> None:
        """Add one block of time, next in order.

        Args:
            x: field `(member, time, *shape)` from the start of the block to `max_lag` samples
                beyond its end, or to the end of the run (see `block_bounds`).
            s: conjugate `(member, time, *shape)` over the block.

        Raises:
            ValueError: shapes that do not fit each other, or samples beyond the length.
        """
        x, s = _as_floats(x), _as_floats(s)
        self._check_block(tuple(x.shape), tuple(s.shape))
        if self._sums is None:
            size = (x.shape[0], self.max_lag + 1, *_half(self.shape))
            self._sums = torch.zeros(size, dtype=torch.complex128, device=s.device)
        group = max(1, _WINDOW_NUMBERS // (self._padded * math.prod(_half(self.shape))))
        with _one_thread():
            for first in range(0, x.shape[0], group):
                members = slice(first, first + group)
                self._sums[members] += self._block_sums(x[members], s[members])
        self._fed += s.shape[1]

    def result(self) -> NDArray[np.float64]:
        """Response per member.

        Returns:
            R `(member, lag, *shape)`, float64, units of x times units of s; displacement of the
            responder from the kicked pixel in FFT order (index 0 is the kicked pixel).

        Raises:
            ValueError: part of the run has not been fed.
        """
        if self._sums is None or self._fed != self.length:
            raise ValueError(
                f"{self._fed} of {self.length} saved samples were fed; feed all blocks first"
            )
        pairs = self.length - torch.arange(self.max_lag + 1, dtype=torch.float64)
        pairs = pairs.to(self._sums.device).reshape(-1, *[1] * len(self.shape))
        spectrum = self._sums / (-pairs * math.prod(self.shape))
        if self.shape:
            space = tuple(range(2, spectrum.ndim))
            response = torch.fft.irfftn(spectrum, s=self.shape, dim=space)
        else:
            response = spectrum.real
        return np.asarray(response.cpu().numpy())

    def _block_sums(self, x: Tensor, s: Tensor) -> Tensor:
        """Sum of X_k(t + lag) conj(S_k(t)) over the block, `(member, lag, *half)`."""
        size = (s.shape[0], self.max_lag + 1, *_half(self.shape))
        sums = torch.zeros(size, dtype=torch.complex128, device=s.device)
        partial: Tensor | float = 0.0
        starts = range(0, s.shape[1], self.window)
        for number, start in enumerate(starts, start=1):
            s_hat = _spectrum(s[:, start : start + self.window], self._means[1])
            x_hat = _spectrum(x[:, start : start + self._padded], self._means[0])
            s_hat = torch.fft.fft(s_hat, n=self._padded, dim=1)
            x_hat = torch.fft.fft(x_hat, n=self._padded, dim=1)
            partial = x_hat.mul_(s_hat.conj_physical_()).add_(partial)
            if number % _WINDOWS_PER_SUM == 0 or number == len(starts):
                sums += torch.fft.ifft(partial, dim=1)[:, : self.max_lag + 1]
                partial = 0.0
        return sums

    def _check_block(self, x_shape: tuple[int, ...], s_shape: tuple[int, ...]) -> None:
        """Refuse blocks that do not fit the run, before anything is summed."""
        for name, got in (("x", x_shape), ("s", s_shape)):
            if len(got) < 2 or got[2:] != self.shape:
                raise ValueError(
                    f"{name} has shape {got}; needs (member, time, *shape), shape={self.shape}"
                )
        stop = self._fed + s_shape[1]
        needed = min(stop + self.max_lag, self.length) - self._fed
        members = s_shape[0] if self._sums is None else self._sums.shape[0]
        if stop > self.length or s_shape[1] == 0:
            raise ValueError(
                f"{s_shape[1]} samples after {self._fed} of {self.length}; feed the run just once"
            )
        if x_shape[:2] != (members, needed) or s_shape[0] != members:
            raise ValueError(
                f"x has (member, time)={x_shape[:2]}, s has {s_shape[:2]}; x needs "
                f"({members}, {needed}): the block and the max_lag={self.max_lag} samples after it"
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for the many small transforms of a block.

    OpenMP threads wait for each other busily: on cores that are shared with other work, two of
    them were measured 300 times slower than one here, and idle cores gain little.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_lag(max_lag: int, length: int) -> None:
    """Refuse lags that no pair of samples spans."""
    if max_lag < 0:
        raise UserError(f"max_lag={max_lag} is negative; raise response.max_lag to 0 or more")
    if max_lag >= length:
        raise UserError(
            f"max_lag={max_lag} needs more than the {length} saved samples; "
            "lower response.max_lag or lengthen ensemble.length"
        )


def _as_floats(values: ArrayLike | Tensor) -> Tensor:
    """Tensor of float32 or float64, sharing memory where it can."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float64)
        # torch has no read-only tensors and warns; blocks read from a store can be read-only.
        plain = array.flags.writeable and min(array.strides, default=0) >= 0
        values = torch.from_numpy(array if plain else array.copy())
    values = values.detach()
    return values if values.dtype in (torch.float32, torch.float64) else values.to(torch.float64)


def _spectrum(block: Tensor, mean: float) -> Tensor:
    """Half-spectrum over space of `(member, time, *shape)` less its mean, complex."""
    # Before the transform: a large mean would cost float32 digits of every wavenumber.
    block = block - mean if mean else block
    if block.ndim == 2:
        return block.to(torch.complex64 if block.dtype == torch.float32 else torch.complex128)
    spectrum: Tensor = torch.fft.rfftn(block, dim=tuple(range(2, block.ndim)))
    return spectrum


def _half(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the half-spectrum of a real field."""
    return (*shape[:-1], shape[-1] // 2 + 1) if shape else ()
