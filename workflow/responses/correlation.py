"""Lagged products of two sets of channels: the kernel of every response estimator.

    sums(lag, i, j, r) = sum_t mean_p a_i(p + r, t + lag) b_j(p, t),      p places, t in the block

Responses are such sums over a run divided by their numbers of pairs (`pair_counts`): sums over
blocks of time add up to the sums over the run, so a longer run only adds blocks.

The time axis is cut into short windows, each zero-padded to hold all its lags (overlap-save), so
no lag wraps around: a run taken as periodic in time, or divided by its length whatever the lag,
loses the share lag / length of the answer. Per window and wavenumber k of space

    sums_k(lag) = sum_t a_k(t + lag) conj(b_k(t)) / N,      N places,

is one product per frequency in time. Without space and with many channels, that product is one
matrix product per frequency with the windows as its inner dimension, all lags at once.

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

# One window of all spectra should stay in a core's second-level cache (2**16 complex64 = 0.5 MiB).
_WINDOW_NUMBERS = 1 << 16
# Windows are summed in the precision of the data; so few of them cost less than one of its digits.
_WINDOWS_PER_SUM = 16
# Transforms of many channels held at once: 256 MiB in float32 for each of their two factors.
_SPECTRUM_NUMBERS = 1 << 26
# Products of many channels held at once: 128 MiB in float32; fewer make thin, slow matrices.
_PRODUCT_NUMBERS = 1 << 25
# Lags times the fewer channels up to which plain products in time are faster than transforms.
_DIRECT_PRODUCTS = 1024
# Pairs of channels up to which one product per pair is faster than a matrix product.
_SPECTRAL_PAIRS = 64
# Samples per plain product, summed in the precision of the data.
_DIRECT_SAMPLES = 1024


def lag_sums(
    a: ArrayLike | Tensor,
    b: ArrayLike | Tensor,
    *,
    max_lag: int,
    window: int | None = None,
) -> NDArray[np.float64]:
    """Sums over one block of time of the lagged products of all pairs of channels.

        sums[m, l, i, j, r] = sum_t mean_p a_i(p + r, t + l) b_j(p, t),    t, t + l in the block
                              of b and a

    Products run in the precision of the data on one thread, sums over windows in float64. With
    float32 data of unit variance the error of sums / pairs, measured, is 1e-8, at most 1.3e-7.
    Working memory is bounded: windows of time, groups of members and of channels.

    Args:
        a: responding channels `(member, time + extra, A, *shape)`, from the start of the block to
            `extra` samples beyond its end: as many as the run has, up to `max_lag`.
        b: conjugate channels `(member, time, B, *shape)`; no sign is applied.
        max_lag: longest lag, in saved samples.
        window: samples of b that are transformed in time together; chosen for speed if None.

    Returns:
        `(member, lag, A, B, *shape)` float64, units of a times units of b; lags 0 to `max_lag`,
        displacement r of a from b in FFT order.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    a, b = _as_floats(a), _as_floats(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    _check_shapes(tuple(a.shape), tuple(b.shape), max_lag=max_lag)
    channels = a.shape[2], b.shape[2]
    with one_thread():
        if a.ndim > 3:
            sums = _spectral_sums(a, b, max_lag=max_lag, window=window)
        elif window is None and (max_lag + 1) * min(channels) <= _DIRECT_PRODUCTS:
            some = zip(a, b, strict=True)
            sums = torch.stack([_direct_sums(x, y, max_lag=max_lag) for x, y in some])
        elif math.prod(channels) <= _SPECTRAL_PAIRS:
            point = a.unsqueeze(-1), b.unsqueeze(-1)
            sums = _spectral_sums(*point, max_lag=max_lag, window=window).squeeze(-1)
        else:
            sums = a.new_zeros((len(a), max_lag + 1, *channels), dtype=torch.float64)
            for one, x, y in zip(sums, a.split(1), b.split(1), strict=True):
                add_pooled_sums(one, x, y, max_lag=max_lag, window=window)
    return np.asarray(sums.cpu().numpy())


def pair_counts(start: int, stop: int, *, length: int, max_lag: int) -> NDArray[np.int64]:
    """Number of samples t in [start, stop) with t + lag < length, for each lag.

    Args:
        start: first sample of the block.
        stop: end of the block.
        length: saved samples of the whole run.
        max_lag: longest lag, in saved samples.

    Returns:
        `(lag,)`, what `lag_sums` of the block are divided by.
    """
    last = np.minimum(stop, length - np.arange(max_lag + 1))
    return np.asarray(np.maximum(last - start, 0))


def block_bounds(length: int, block: int, *, max_lag: int) -> Iterator[tuple[int, int, int]]:
    """Time blocks to feed to `lag_sums`, in order.

    Args:
        length: saved samples of the run.
        block: samples of the conjugate per block; several times `max_lag` avoids reading twice.
        max_lag: longest lag, in saved samples.

    Yields:
        (start, stop, stop_lagged): feed a[start:stop_lagged] with b[start:stop].

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


def add_pooled_sums(
    sums: Tensor, a: Tensor, b: Tensor, *, max_lag: int, window: int | None = None
) -> None:
    """Add `lag_sums` of many channels without space, summed over members.

    One real matrix product per frequency stands for three quarters of a complex one: with
    P1 = Re a Re b, P2 = Im a Im b and P3 = (Re a + Im a)(Re b - Im b), the inverse transform of
    a conj(b) is a fixed linear map of P1, P2 and P3, and only the wanted lags are computed.

    Args:
        sums: `(lag, A, B)` float64, added to.
        a: responding channels `(member, time + extra, A)`.
        b: conjugate channels `(member, time, B)`, same dtype.
        max_lag: longest lag, in saved samples.
        window: samples of b that are transformed in time together; chosen for speed if None.
    """
    channels_a, channels_b = a.shape[2], b.shape[2]
    if window is None:
        window = _product_window(b.shape[0] * b.shape[1], max(channels_a, channels_b), max_lag)
    padded = window + max_lag
    many = 3 * (padded // 2 + 1)
    back = _inverse_map(padded, max_lag).to(a)
    inner = _inner(padded, max(channels_a, channels_b))
    rows = min(channels_a, max(1, _PRODUCT_NUMBERS // (many * channels_b)))
    # Fresh memory for every product was measured to cost as much as the product.
    buffer = torch.empty(many * rows * channels_b, dtype=a.dtype, device=a.device)
    starts_of_all = [(m, t) for m in range(len(b)) for t in range(0, b.shape[1], window)]
    for number in range(0, len(starts_of_all), inner):
        starts = starts_of_all[number : number + inner]
        right = _parts(_windows(b, starts, window), padded, sign=-1.0)
        lagged = _windows(a, starts, padded)
        for first in range(0, channels_a, rows):
            some = slice(first, first + rows)
            left = _parts(lagged[:, :, some], padded, sign=1.0)
            size = (many, left.shape[2], channels_b)
            product = buffer[: math.prod(size)].view(size)
            torch.bmm(left.transpose(1, 2), right, out=product)
            sums[:, some] += (back @ product.flatten(1)).unflatten(1, product.shape[1:])


def _spectral_sums(a: Tensor, b: Tensor, *, max_lag: int, window: int | None) -> Tensor:
    """`lag_sums` of fields: one product per pair of channels, wavenumber and frequency."""
    shape, channels = tuple(b.shape[3:]), (a.shape[2], b.shape[2])
    half = (*shape[:-1], shape[-1] // 2 + 1)
    padded = _padded(max_lag, b.shape[1]) if window is None else window + max_lag
    group = max(1, _WINDOW_NUMBERS // (padded * math.prod(half) * max(channels)))
    size = (a.shape[0], max_lag + 1, *channels, *half)
    sums = torch.zeros(size, dtype=torch.complex128, device=a.device)
    for first in range(0, len(a), group):
        members = slice(first, first + group)
        _add_windows(sums[members], a[members], b[members], padded=padded)
    space = tuple(range(4, sums.ndim))
    found: Tensor = torch.fft.irfftn(sums / math.prod(shape), s=shape, dim=space)
    return found


def _add_windows(sums: Tensor, a: Tensor, b: Tensor, *, padded: int) -> None:
    """Add a_k(t + lag) conj(b_k(t)) over all windows to `(member, lag, A, B, *half)`."""
    lags = sums.shape[1]
    window = padded - lags + 1
    space = tuple(range(3, b.ndim))
    single = a.shape[2] == b.shape[2] == 1
    partial: Tensor | float = 0.0
    starts = range(0, b.shape[1], window)
    for number, start in enumerate(starts, start=1):
        b_hat = torch.fft.rfftn(b[:, start : start + window], dim=space)
        a_hat = torch.fft.rfftn(a[:, start : start + padded], dim=space)
        b_hat = torch.fft.fft(b_hat, n=padded, dim=1).conj_physical_().unsqueeze(2)
        a_hat = torch.fft.fft(a_hat, n=padded, dim=1).unsqueeze(3)
        product = a_hat.mul_(b_hat) if single else a_hat * b_hat
        partial = product.add_(partial)
        if number % _WINDOWS_PER_SUM == 0 or number == len(starts):
            sums += torch.fft.ifft(partial, dim=1)[:, :lags]
            partial = 0.0


def _direct_sums(a: Tensor, b: Tensor, *, max_lag: int) -> Tensor:
    """`(lag, A, B)` of few channels `(time, channel)` of one member, as products in time."""
    lags, (many_a, many_b) = max_lag + 1, (a.shape[1], b.shape[1])
    extra = a.shape[0] - b.shape[0]
    if many_a <= many_b:
        lagged = _lagged(torch.nn.functional.pad(a, (0, 0, 0, max_lag - extra)), lags)
        sums = torch.zeros((lags * many_a, many_b), dtype=torch.float64, device=a.device)
        for start in range(0, b.shape[0], _DIRECT_SAMPLES):
            some = slice(start, start + _DIRECT_SAMPLES)
            sums += lagged[some].flatten(1).T @ b[some]
        return sums.unflatten(0, (lags, many_a))
    # b at t - max_lag + l' in front of a at t: lags in reverse.
    lagged = _lagged(torch.nn.functional.pad(b, (0, 0, max_lag, extra)), lags)
    sums = torch.zeros((many_a, lags * many_b), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[0], _DIRECT_SAMPLES):
        some = slice(start, start + _DIRECT_SAMPLES)
        sums += a[some].T @ lagged[some].flatten(1)
    return sums.unflatten(1, (lags, many_b)).flip(1).transpose(0, 1)


def _lagged(x: Tensor, lags: int) -> Tensor:
    """View `(time - lags + 1, lag, channel)` of x(t + lag)."""
    x = x.contiguous()
    step = x.stride(0)
    return x.as_strided((x.shape[0] - lags + 1, lags, x.shape[1]), (step, step, 1))


def _padded(max_lag: int, length: int) -> int:
    """Length of a window with its lags."""
    # Powers of two of at least four times the lag are fastest: little padding, still in cache.
    return int(min(1 << max(4 * max_lag - 1, 63).bit_length(), next_fast_len(length + max_lag)))


def _product_window(samples: int, channels: int, max_lag: int) -> int:
    """Window of `add_pooled_sums` with the fewest operations, its padded length a power of two."""

    def operations(padded: int) -> float:
        windows = math.ceil(samples / (padded - max_lag))
        return padded * (windows + (max_lag + 1) * math.ceil(windows / _inner(padded, channels)))

    lengths = (
        1 << k for k in range((2 * max_lag + 1).bit_length(), (8 * max_lag + 64).bit_length())
    )
    return min(lengths, key=operations) - max_lag


def _inner(padded: int, channels: int) -> int:
    """Windows whose transforms are held at once."""
    return max(1, _SPECTRUM_NUMBERS // (3 * (padded // 2 + 1) * channels))


def _windows(x: Tensor, starts: list[tuple[int, int]], size: int) -> Tensor:
    """Samples of each window `(window, size, channel)`, zero beyond the end of x."""
    out = torch.empty((len(starts), size, x.shape[2]), dtype=x.dtype, device=x.device)
    for row, (member, start) in zip(out, starts, strict=True):
        found = x[member, start : start + size]
        row[: len(found)] = found
        row[len(found) :] = 0
    return out


def _parts(windows: Tensor, padded: int, *, sign: float) -> Tensor:
    """Re, Im and Re + sign Im of the transforms in time, `(3 frequency, window, channel)`."""
    spectrum = torch.fft.rfft(windows, n=padded, dim=1).transpose(0, 1)
    size = spectrum.shape[0]
    out = torch.empty((3 * size, *spectrum.shape[1:]), dtype=windows.dtype, device=windows.device)
    out[:size], out[size : 2 * size] = spectrum.real, spectrum.imag
    torch.add(out[:size], out[size : 2 * size], alpha=sign, out=out[2 * size :])
    return out


def _inverse_map(padded: int, max_lag: int) -> Tensor:
    """Map `(lag, 3 frequency)` from the three products of `add_pooled_sums` to lags."""
    frequency = torch.arange(padded // 2 + 1, dtype=torch.float64)
    lag = torch.arange(max_lag + 1, dtype=torch.float64)
    angle = 2 * math.pi / padded * torch.remainder(lag[:, None] * frequency, padded)
    alone = (frequency == 0) | (2 * frequency == padded)
    twice = (2 - alone.to(frequency)) / padded
    cos, sin = torch.cos(angle) * twice, torch.sin(angle) * twice
    # Re = P1 + P2 and Im = P3 - P1 + P2 of a conj(b).
    return torch.cat([cos + sin, cos - sin, -sin], dim=1)


@contextmanager
def one_thread() -> Iterator[None]:
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


def _check_shapes(a: tuple[int, ...], b: tuple[int, ...], *, max_lag: int) -> None:
    """Refuse blocks that do not fit each other, before anything is summed."""
    if len(b) < 3 or len(a) != len(b) or a[3:] != b[3:] or a[0] != b[0] or 0 in b:
        raise ValueError(
            f"a has shape {a}, b has {b}; needs (member, time + extra, A, *shape) "
            "and (member, time, B, *shape) with the same members and shape"
        )
    if max_lag < 0 or not 0 <= a[1] - b[1] <= max_lag:
        raise ValueError(
            f"a has {a[1]} samples, b has {b[1]}; a needs those of b and 0 to "
            f"max_lag={max_lag} after them"
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
