"""Noise: the same numbers whatever the grouping, order and precision; standard and uncorrelated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from workflow.dynamics.noise import (
    DIRECT,
    FORCING,
    INITIAL,
    WORD,
    NoiseStream,
    normals,
    philox,
)

torch.set_num_threads(1)


def stream(members, *, seed=7, use=FORCING, shape=(3,), dtype=torch.float64):
    return NoiseStream(seed, members, stream=use, shape=shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_do_not_depend_on_the_group(dtype):
    """Workers may be given any members in any order: each gets the numbers of its name."""
    whole = stream(range(6), dtype=dtype)
    parts = [stream(group, dtype=dtype) for group in ([4], [2, 0], [5, 1, 3])]
    for step in (0, 1, 682, 5000):
        expected = whole.at(step)
        assert expected.shape == (6, 3) and expected.dtype == dtype
        assert torch.equal(parts[0].at(step), expected[[4]])
        assert torch.equal(parts[1].at(step), expected[[2, 0]])
        assert torch.equal(parts[2].at(step), expected[[5, 1, 3]])


def test_normals_do_not_depend_on_the_order_or_the_start_of_stepping():
    """A restart begins anywhere."""
    steps = list(range(1400))
    forward = stream(range(2))
    expected = [forward.at(step).clone() for step in steps]
    anyhow = stream(range(2))
    for step in np.random.default_rng(0).permutation(steps):
        assert torch.equal(anyhow.at(int(step)), expected[step])
    for step in (1, 681, 682, 1399):
        assert torch.equal(stream(range(2)).at(step), expected[step])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([WORD - 1] * 4, [WORD - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_words_are_those_of_philox(counter, key, words):
    """Known answers of Random123 1.14, file kat_vectors, philox4x32 of 10 rounds."""
    found = philox([np.array(c) for c in counter], key[0] + WORD * key[1])
    assert " ".join(f"{int(word):08x}" for word in found) == words


def test_normals_keep_their_values():
    """The numbers are part of every finished run: a change would break its restart in silence."""
    found = normals(7, [3], steps=range(2, 3), stream=1, count=4, dtype=torch.float64)[0, 0]
    words = [int(w) for w in philox([0, 2, 1, 3], 7)]
    for pair in (0, 2):
        radius = math.sqrt(-2 * math.log(((words[pair] >> 1) + 0.5) / 2**31))
        angle = 2 * math.pi * words[pair + 1] / 2**32
        expected = [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(found[pair : pair + 2], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stream_has_the_normals_of_their_definition(dtype):
    """Whichever kernel drew them; groups of members that fill no vector are no exception."""
    seed, members, count = 5 + (3 << 40), [0, 9, 2, 10**9, 7], 91
    drawn = stream(members, seed=seed, shape=(7, 13), use=DIRECT + 4, dtype=dtype)
    for step in (0, 21, 22, 2**31 + 5):
        name = {"steps": range(step, step + 1), "stream": DIRECT + 4, "count": count}
        expected = normals(seed, members, dtype=dtype, **name)[0].reshape(5, 7, 13)
        rounding = {"rtol": 0, "atol": 2e-6 if dtype == torch.float32 else 1e-14}
        np.testing.assert_allclose(drawn.at(step).numpy(), expected, **rounding)


def test_both_precisions_run_the_same_path():
    """So the error of float32 can be measured; near zero a radius has the digits of 1 - u."""
    single, double = (
        stream(range(50), shape=(400,), dtype=dtype).at(3)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=0, atol=4e-4)
    assert (single - double).abs().median() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_standard(dtype):
    """Four moments within 4 standard errors, and the distribution by Kolmogorov and Smirnov."""
    z = stream(range(64), seed=1, shape=(8192,), dtype=dtype).at(1).double().numpy().ravel()
    root = math.sqrt(z.size)
    assert abs(z.mean()) < 4 * 1 / root
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2) / root
    assert abs((z**3).mean()) < 4 * math.sqrt(15) / root
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96) / root
    assert kstest(z, "norm").pvalue > 1e-4


def test_normals_have_their_tails():
    """Counts beyond 3, 4 and 5 of 2e7 draws against the normal law, within 4 standard errors."""
    z = stream(range(640), seed=4, shape=(32768,), dtype=torch.float32).at(0).numpy().ravel()
    for beyond in (3.0, 4.0, 5.0):
        for tail in ((z > beyond).sum(), (z < -beyond).sum()):
            expected = z.size * norm.sf(beyond)
            assert abs(tail - expected) < 4 * math.sqrt(expected)


def test_normals_of_different_names_are_uncorrelated():
    """Seed, member, stream and step each open numbers of their own; so do places in a step."""
    names = [
        (seed, member, use, step)
        for seed in (1, 2, 1 + WORD)
        for member in (0, 1, 2)
        for use in (FORCING, INITIAL, DIRECT, DIRECT + 1)
        for step in (0, 1)
    ]
    drawn = np.stack(
        [
            normals(s, [m], steps=range(t, t + 1), stream=u, count=16384)[0, 0]
            for s, m, u, t in names
        ]
    ).astype(float)
    # 2556 pairs: 5 standard errors keep a false alarm below two in a thousand.
    correlation = np.corrcoef(drawn) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / math.sqrt(drawn.shape[1])
    one = drawn.ravel()
    for shift in (1, 2, 3, 4, 8, 16):
        for power in (1, 2):
            a = one**power - (one**power).mean()
            found = (a[shift:] * a[:-shift]).mean() / a.var()
            assert abs(found) < 4 / math.sqrt(one.size)
