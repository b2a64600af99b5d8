"""Why the kernels are C++: one transform across lanes, in C++ and in numba.

    pip install -e ".[peers]"
    OMP_NUM_THREADS=1 python -P benchmarks/lane_transforms.py  # -P: numba looks for coverage

Stockham passes with members innermost; nanoseconds of CPU time per member and complex transform,
medians of interleaved rounds. Numba takes passes of 4, where a lane is the index of an inner loop
that LLVM turns into vectors. At 16 points ours takes the same two passes, beyond it has those of
8; twiddle factors are multiplied where they are 1 in numba only.
"""

from __future__ import annotations

import statistics
import time

import numba
import numpy as np

from workflow.dynamics.lanes.library import library


@numba.njit(fastmath=True, boundscheck=False, error_model="numpy")
def pass_4(x, y, before, after, w):  # noqa: D103
    lanes = x.shape[2]
    for p in range(after):
        for q in range(before):
            i0, i1 = q + before * p, q + before * (p + after)
            i2, i3 = q + before * (p + 2 * after), q + before * (p + 3 * after)
            to = q + before * 4 * p
            for lane in range(lanes):
                sr, si = x[i0, 0, lane] + x[i2, 0, lane], x[i0, 1, lane] + x[i2, 1, lane]
                dr, di = x[i0, 0, lane] - x[i2, 0, lane], x[i0, 1, lane] - x[i2, 1, lane]
                tr, ti = x[i1, 0, lane] + x[i3, 0, lane], x[i1, 1, lane] + x[i3, 1, lane]
                er, ei = x[i1, 1, lane] - x[i3, 1, lane], x[i3, 0, lane] - x[i1, 0, lane]
                y[to, 0, lane] = sr + tr
                y[to, 1, lane] = si + ti
                ar, ai = dr + er, di + ei
                y[to + before, 0, lane] = w[p, 1, 0] * ar - w[p, 1, 1] * ai
                y[to + before, 1, lane] = w[p, 1, 0] * ai + w[p, 1, 1] * ar
                ar, ai = sr - tr, si - ti
                y[to + 2 * before, 0, lane] = w[p, 2, 0] * ar - w[p, 2, 1] * ai
                y[to + 2 * before, 1, lane] = w[p, 2, 0] * ai + w[p, 2, 1] * ar
                ar, ai = dr - er, di - ei
                y[to + 3 * before, 0, lane] = w[p, 3, 0] * ar - w[p, 3, 1] * ai
                y[to + 3 * before, 1, lane] = w[p, 3, 0] * ai + w[p, 3, 1] * ar


@numba.njit(fastmath=True, boundscheck=False, error_model="numpy")
def transform(x, y, scratch, radices, twiddles, count):  # noqa: D103
    n = x.shape[0]
    for _ in range(count):
        before, after, a = 1, n, x
        for i in range(len(radices)):
            after //= 4
            b = y if i + 1 == len(radices) else scratch[i % 2]
            pass_4(a, b, before, after, twiddles[i])
            before *= 4
            a = b


def main() -> None:
    """Time both at powers of 4."""
    kernels = library()
    for dtype in map(np.dtype, (np.float32, np.float64)):
        for n in (16, 64, 256):
            lanes = kernels.lanes(dtype)
            x, y = (kernels.empty((n, 2, lanes), dtype) for _ in range(2))
            x[:] = np.random.default_rng(0).standard_normal(x.shape)
            scratch = kernels.empty((2, n, 2, lanes), dtype)
            radices = np.full(round(np.log(n) / np.log(4)), 4)
            tables, left = [], n
            for _ in radices:
                left //= 4
                p, k = np.arange(n // 4), np.arange(4)
                angle = -2 * np.pi * p[:, None] * k / (4 * left)
                tables.append(np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(dtype))
            twiddles = np.stack(tables)
            transform(x, y, scratch, radices, twiddles, 1)
            ours = kernels.empty(x.shape, dtype)
            kernels.call("transform", dtype, n, -1, x, ours, 1)
            np.testing.assert_allclose(y, ours, rtol=0, atol=1e-4)
            ways = {
                "C++": lambda count, n=n, x=x, y=ours: kernels.call(
                    "transform", x.dtype, n, -1, x, y, count
                ),
                "numba": lambda count, a=(x, y, scratch, radices, twiddles): transform(*a, count),
            }
            count, found = 400_000 // n, {name: [] for name in ways}
            for _ in range(7):
                for name, run in ways.items():
                    started = time.process_time()
                    run(count)
                    spent = time.process_time() - started
                    found[name].append(1e9 * spent / count / lanes)
            cpp, other = (statistics.median(found[name]) for name in ways)
            print(f"{dtype} n={n}: C++ {cpp:.1f} ns, numba {other:.1f} ns, {other / cpp:.2f} times")


if __name__ == "__main__":
    main()
