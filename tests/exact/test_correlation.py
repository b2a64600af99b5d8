"""Lagged sums of channels against double loops, over blocks, and their precision."""

from __future__ import annotations

import numpy as np
import pytest

from workflow.responses.correlation import block_bounds, lag_sums, pair_counts


def brute(a, b, *, max_lag):
    """The definition, term by term."""
    members, times, many_b, *shape = b.shape
    out = np.zeros((members, max_lag + 1, a.shape[2], many_b, *shape))
    axes = tuple(range(1, 1 + len(shape)))
    for lag in range(max_lag + 1):
        for t in range(min(times, a.shape[1] - lag)):
            for r in np.ndindex(*shape):
                moved = np.roll(a[:, t + lag], [-i for i in r], axis=tuple(i + 1 for i in axes))
                products = moved[:, :, None] * b[:, t, None]
                mean = products.mean(axis=tuple(i + 2 for i in axes))
                out[(slice(None), lag, slice(None), slice(None), *r)] += mean
    return out


CHANNELS = [(1, 1), (3, 2), (1, 4), (5, 1), (9, 8)]


@pytest.mark.parametrize("shape", [(), (6,), (5,), (4, 6), (3, 5)])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("extra", [0, 2, 7])
@pytest.mark.parametrize("window", [None, 5])
def test_lag_sums_are_the_double_loop(shape, channels, extra, window):
    """Every path (plain products, spectra, matrix products), at the end of a run and within."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((2, 13 + extra, channels[0], *shape))
    b = rng.standard_normal((2, 13, channels[1], *shape))
    expected = brute(a, b, max_lag=7)
    got = lag_sums(a, b, max_lag=7, window=window)
    assert got.shape == expected.shape
    assert got.dtype == np.float64
    assert np.abs(got - expected).max() < 1e-10


def test_a_block_shorter_than_the_lag_is_the_double_loop():
    rng = np.random.default_rng(2)
    for shape in ((), (4,)):
        a, b = rng.standard_normal((2, 1, 3, 9, *shape))
        for window in (None, 2, 50):
            got = lag_sums(a, b, max_lag=9, window=window)
            assert np.abs(got - brute(a, b, max_lag=9)).max() < 1e-12
            assert (np.abs(got[:, 3:]) < 1e-12).all()


@pytest.mark.parametrize("channels, shape", [((1, 1), (6, 4)), ((3, 2), (5,)), ((40, 30), ())])
def test_sums_over_blocks_are_the_sum_over_the_run(channels, shape):
    """A run extended by new blocks only adds: members and blocks are independent."""
    rng = np.random.default_rng(3)
    length, max_lag = 700, 20
    a = rng.standard_normal((3, length, channels[0], *shape))
    b = rng.standard_normal((3, length, channels[1], *shape))
    whole = lag_sums(a, b, max_lag=max_lag)
    pairs = pair_counts(0, length, length=length, max_lag=max_lag)
    for block in (13, 64, 300):
        sums, counts = 0.0, 0
        for start, stop, end in block_bounds(length, block, max_lag=max_lag):
            sums = sums + lag_sums(a[:, start:end], b[:, start:stop], max_lag=max_lag)
            counts = counts + pair_counts(start, stop, length=length, max_lag=max_lag)
        assert np.abs(sums - whole).max() < 1e-10
        assert (counts == pairs).all()
    alone = lag_sums(a[1:2], b[1:2], max_lag=max_lag)
    assert np.abs(alone - whole[1:2]).max() < 1e-11


def test_many_channels_are_one_matrix_product_per_lag(monkeypatch):
    """Groups of windows and of channels, forced small, leave the sums as they are."""
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((1, 500, 70)), rng.standard_normal((1, 480, 50))
    expected = np.stack([a[0, lag : lag + 480].T @ b[0, : 500 - lag][:480] for lag in range(21)])
    assert np.abs(lag_sums(a, b, max_lag=20)[0] - expected).max() < 1e-10
    monkeypatch.setattr("workflow.responses.correlation._SPECTRUM_NUMBERS", 30_000)
    monkeypatch.setattr("workflow.responses.correlation._PRODUCT_NUMBERS", 50_000)
    assert np.abs(lag_sums(a, b, max_lag=20)[0] - expected).max() < 1e-10


@pytest.mark.parametrize(
    "channels, shape, max_lag",
    [
        ((1, 1), (), 30),
        ((1, 1), (), 1500),
        ((40, 1), (), 30),
        ((40, 40), (), 30),
        ((1, 1), (16, 16), 30),
    ],
)
def test_float32_data_lose_less_than_a_millionth(channels, shape, max_lag):
    """Unit variance: error of sums / pairs where they are of order 1 and where they are 0."""
    rng = np.random.default_rng(5)
    length = 2000
    a = rng.standard_normal((1, length, channels[0], *shape)).astype(np.float32)
    b = rng.standard_normal((1, length, channels[1], *shape)).astype(np.float32)
    b[:, :, 0] = a[:, :, 0]
    got = lag_sums(a, b, max_lag=max_lag)
    exact = lag_sums(a.astype(np.float64), b.astype(np.float64), max_lag=max_lag)
    pairs = pair_counts(0, length, length=length, max_lag=max_lag)
    error = np.abs(got - exact) / pairs.reshape(1, -1, 1, 1, *[1] * len(shape))
    assert error.max() < 1e-6
    assert np.sqrt(np.mean(error**2)) < 1e-7


def test_pairs_are_counted():
    for start, stop in ((0, 10), (3, 7), (8, 10), (5, 5)):
        got = pair_counts(start, stop, length=10, max_lag=9)
        assert got.tolist() == [sum(t + lag < 10 for t in range(start, stop)) for lag in range(10)]


def test_blocks_that_do_not_fit_are_refused():
    a = np.zeros((2, 10, 3, 4))
    with pytest.raises(ValueError, match="a needs those of b and 0 to max_lag=2 after them"):
        lag_sums(a, a[:, :7], max_lag=2)
    with pytest.raises(ValueError, match="a needs those of b and 0 to max_lag=2 after them"):
        lag_sums(a[:, :7], a, max_lag=2)
    for other in (a[:1], a[..., :3], a[..., 0], a[:, :0]):
        with pytest.raises(ValueError, match="with the same members and shape"):
            lag_sums(a, other, max_lag=2)
