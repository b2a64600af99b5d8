"""How often intervals of 95 % cover the exact response: replicas of linear systems, exact truth.

    python benchmarks/coverage.py --run runs/quickstart > benchmarks/results/coverage.md

Every system is sampled with its exact transition; every score is wrong by a factor or a matrix,
so that recalibration is what makes the response right, and its noise is part of the error bar.
With `--run`, a finished run of `gfdt run quickstart` (Allen-Cahn, exact score) is cut into parts
of a few members, and each part must cover what all members say.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.linalg import expm, solve_continuous_lyapunov
from scipy.signal import lfilter

from workflow.interfaces import UserError
from workflow.responses.recalibration import recalibrate
from workflow.responses.resampling import Units, ratio, resampling_units
from workflow.responses.statistics import estimate

RELAXATION = np.array([[1.0, 1.2, 0.0], [-0.3, 0.8, 0.9], [0.2, -0.6, 1.1]])
"""A non-normal drift matrix -A, eigenvalues 0.73 +- 0.24i and 1.44, numbers per time."""
NOISE = np.array([[1.0, 0.3, 0.0], [0.0, 0.8, 0.2], [0.4, 0.0, 0.9]])


@dataclass(frozen=True)
class Coverage:
    """Outcome of all replicas of one case.

    Attributes:
        pointwise: share of covered replicas, `(number,)`, one per lag and entry.
        joint: share of replicas with all numbers inside the simultaneous band.
        error_ratio: mean standard error over the true scatter of the values, `(number,)`.
        bias: mean of the values minus the truth, in units of their scatter, `(number,)`.
        removed: bias that the jackknife found and took out, in the same units, `(number,)`.
        freedom: mean degrees of freedom.
        refused: replicas that were refused an error bar.
    """

    pointwise: np.ndarray
    joint: float
    error_ratio: np.ndarray
    bias: np.ndarray
    removed: np.ndarray
    freedom: float
    refused: int


def block_sums(a, b, *, max_lag, block):
    """S `(member, block, lag, A, B)` of sum_t A_a(t + lag) B_b(t), and pairs n `(block, lag)`.

    a `(member, time, A)` and b `(member, time, B)` over the whole run.
    """
    members, length = a.shape[:2]
    blocks = -(-length // block)
    sums = np.empty((members, blocks, max_lag + 1, a.shape[2], b.shape[2]))
    pairs = np.empty((blocks, max_lag + 1))
    for number in range(blocks):
        start, stop = number * block, min((number + 1) * block, length)
        for lag in range(max_lag + 1):
            end = max(start, min(stop, length - lag))
            left = a[:, start + lag : end + lag].swapaxes(1, 2)
            sums[:, number, lag] = left @ b[:, start:end]
            pairs[number, lag] = end - start
    return sums, pairs


def ou_1d(members, length, *, step, rng):
    """Unit-variance, unit-rate OU `(member, time, 1)`; exact response exp(-lag step)."""
    decay = np.exp(-step)
    noise = rng.standard_normal((members, length)) * np.sqrt(1 - decay**2)
    noise[:, 0] /= np.sqrt(1 - decay**2)
    return lfilter([1.0], [1.0, -decay], noise, axis=1)[..., None]


def ou_3d(members, length, *, step, rng):
    """Non-normal linear OU `(member, time, 3)`, its covariance C and propagator over a step."""
    covariance = solve_continuous_lyapunov(RELAXATION, NOISE @ NOISE.T)
    propagator = expm(-RELAXATION * step)
    spread = np.linalg.cholesky(covariance - propagator @ covariance @ propagator.T)
    x = np.empty((members, length, 3))
    x[:, 0] = rng.standard_normal((members, 3)) @ np.linalg.cholesky(covariance).T
    noise = rng.standard_normal((length, members, 3)) @ spread.T
    for time in range(1, length):
        x[:, time] = x[:, time - 1] @ propagator.T + noise[time]
    return x, covariance, propagator


def ou_field(members, length, *, step, rng, size=8):
    """OU SPDE on size x size: field `(member, time, y, x)`, C_k and the factors g_k of a step."""
    k = np.fft.fftfreq(size, 1 / size)
    k2 = k[:, None] ** 2 + k[None, :] ** 2
    # The Nyquist wave cannot travel.
    travel = np.where(np.abs(k) == size // 2, 0.0, k)[None, :] + 0.0 * k[:, None]
    variance = 1 / (1 + 0.1 * k2 * (1 + k2))
    factor = np.exp(-step * ((1 + 0.1 * k2 * (1 + k2)) / (1 + k2) + 0.3j * travel))
    spread = np.sqrt(variance * (1 - np.abs(factor) ** 2))

    def white():
        return np.fft.fft2(rng.standard_normal((members, size, size)), norm="ortho")

    x_hat, run = np.sqrt(variance) * white(), np.empty((members, length, size, size))
    for time in range(length):
        run[:, time] = np.fft.ifft2(x_hat, norm="ortho").real
        x_hat = factor * x_hat + spread * white()
    return run, variance, factor


def field_sums(x, s, *, max_lag, block):
    """S `(member, block, lag, y, x)` of -x(p + r, t + lag) s(p, t), mean over places p."""
    members, length = x.shape[:2]
    x_hat, s_hat = np.fft.fft2(x), np.fft.fft2(s).conj()
    size = x.shape[2] * x.shape[3]
    blocks = -(-length // block)
    sums = np.empty((members, blocks, max_lag + 1, *x.shape[2:]))
    pairs = np.empty((blocks, max_lag + 1))
    for number in range(blocks):
        start, stop = number * block, min((number + 1) * block, length)
        for lag in range(max_lag + 1):
            end = max(start, min(stop, length - lag))
            product = (x_hat[:, start + lag : end + lag] * s_hat[:, start:end]).sum(axis=1)
            sums[:, number, lag] = -np.fft.ifft2(product).real / size
            pairs[number, lag] = end - start
    return sums, pairs


def recalibrated_matrix(response):
    """R(lag) M^-1 of `(sample, lag, A, B)`, without lag 0."""
    return response[:, 1:] @ np.linalg.inv(response[:, :1])


def scalar_case(rng, *, members, length, block, lags, step=0.25, factor=0.6):
    """Score of the wrong variance, -factor x; numbers: R at each lag but 0."""
    x = ou_1d(members, length, step=step, rng=rng)
    sums, pairs = block_sums(x, factor * x, max_lag=lags, block=block)
    return sums, pairs, recalibrated_matrix, np.exp(-step * np.arange(1, lags + 1))


def matrix_case(rng, *, members, length, block, lags, step=0.25):
    """Score of a wrong covariance, -(C W)^-1 x with a matrix W; numbers: all entries of R."""
    x, covariance, propagator = ou_3d(members, length, step=step, rng=rng)
    wrong = np.linalg.inv(covariance) @ (np.eye(3) + 0.4 * NOISE)
    sums, pairs = block_sums(x, x @ wrong, max_lag=lags, block=block)
    truth = [np.linalg.matrix_power(propagator, lag) for lag in range(1, lags + 1)]
    return sums, pairs, recalibrated_matrix, np.stack(truth)


def field_case(rng, *, members, length, block, lags, step=0.25):
    """OU field 8 x 8, score blind to small scales; numbers: R11 and R31 at each lag but 0."""
    x, variance, factor = ou_field(members, length, step=step, rng=rng)
    x_hat = np.fft.fft2(x)
    s = -np.fft.ifft2(x_hat / (variance + 0.05)).real
    sums, pairs = field_sums(x, s, max_lag=lags, block=block)
    resolved = np.zeros(variance.shape, dtype=bool)

    def pixels(response):
        repaired = recalibrate(response, space=2, unresolved=resolved).response
        return repaired[:, 1:, 0, [0, 2]]

    truth = np.stack([np.fft.ifft2(factor**lag).real for lag in range(1, lags + 1)])
    return sums, pairs, pixels, truth[:, 0, [0, 2]]


def cover(case, *, replicas, seed, samples=400, moving=None, **settings):
    """Coverage of one case over independent replicas; `moving` overrides the stretches found."""
    values, errors, inside, joint, biases, freedom, refused = [], [], [], [], [], [], 0
    for replica in range(replicas):
        rng = np.random.default_rng([seed, replica])
        sums, pairs, statistic, truth = case(rng, **settings)
        truth = truth.ravel()

        def flat(response, statistic=statistic):
            return statistic(response).reshape(len(response), -1)

        try:
            units = (
                resampling_units(sums, pairs)
                if moving is None
                else Units(*sums.shape[:2], moving=moving)
            )
        except UserError:
            refused += 1
            continue
        common = {"units": units, "samples": samples, "seed": replica}
        point = estimate(sums, pairs, flat, **common)
        band = estimate(sums, pairs, flat, bands="simultaneous", **common)
        values.append(point.value)
        errors.append(point.standard_error)
        inside.append((point.low <= truth) & (truth <= point.high))
        joint.append(((band.low <= truth) & (truth <= band.high)).all())
        biases.append(point.bias)
        freedom.append(units.degrees_of_freedom)
    scatter = np.std(values, axis=0, ddof=1)
    return Coverage(
        pointwise=np.mean(inside, axis=0),
        joint=float(np.mean(joint)),
        error_ratio=np.mean(errors, axis=0) / scatter,
        bias=(np.mean(values, axis=0) - truth) / scatter,
        removed=np.mean(biases, axis=0) / scatter,
        freedom=float(np.mean(freedom)),
        refused=refused,
    )


def parts_of_run(folder, *, members, lags, block=10, estimator="exact"):
    """Intervals of parts of a run for R11 and R31, by time, against all members.

    The part is in the whole: the variance of their difference is 1 - members / all of its own.

    Returns:
        Mean standard error over the scatter of the parts, share covered, parts refused; the first
        two `(lag, place)`.
    """
    x = xr.open_zarr(folder / "ensemble.zarr").u.values.astype(float)
    scores = xr.open_zarr(folder / "scores.zarr")
    index = list(scores.estimator.values).index(estimator)
    s = scores.score_u.isel(estimator=index).values.astype(float)
    sums, pairs = field_sums(x - x.mean(), s, max_lag=lags, block=block)
    resolved = np.zeros(x.shape[2:], dtype=bool)

    def pixels(response):
        repaired = recalibrate(response, space=2, unresolved=resolved).response
        return repaired[:, 1:, 0, [0, 2]]

    whole = pixels(ratio(sums, pairs)[None])[0]
    shrink = np.sqrt(1 - members / len(x))
    values, errors, inside, refused = [], [], [], 0
    for first in range(0, len(x), members):
        part = sums[first : first + members]
        try:
            units = resampling_units(part, pairs, by="time")
        except UserError:
            refused += 1
            continue
        found = estimate(part, pairs, pixels, units=units, samples=300, seed=first)
        values.append(found.value)
        errors.append(found.standard_error)
        inside.append(np.abs(found.value - whole) <= (found.high - found.value) * shrink)
    return (
        np.mean(errors, axis=0) / np.std(values, axis=0, ddof=1),
        np.mean(inside, axis=0),
        refused,
    )


CASES = {
    "scalar, 32 members": (
        scalar_case,
        {"members": 32, "length": 200, "block": 50, "lags": 8},
    ),
    "scalar, 1 run of 500 tau": (
        scalar_case,
        {"members": 1, "length": 4000, "block": 20, "lags": 8},
    ),
    "scalar, 1 run of 120 tau": (
        scalar_case,
        {"members": 1, "length": 960, "block": 10, "lags": 8},
    ),
    "scalar, 4 members of 125 tau": (
        scalar_case,
        {"members": 4, "length": 1000, "block": 20, "lags": 8},
    ),
    "matrix, 32 members": (
        matrix_case,
        {"members": 32, "length": 200, "block": 50, "lags": 6},
    ),
    "matrix, 1 run": (
        matrix_case,
        {"members": 1, "length": 6000, "block": 20, "lags": 6},
    ),
    "field 8 x 8, 32 members": (
        field_case,
        {"members": 32, "length": 100, "block": 50, "lags": 8},
    ),
    "field 8 x 8, 1 run": (
        field_case,
        {"members": 1, "length": 2000, "block": 20, "lags": 8},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--run", type=Path, help="folder of a finished quickstart run")
    arguments = parser.parse_args()
    replicas = arguments.replicas
    print(HEADER.format(replicas=replicas))
    for seed, (name, (case, settings)) in enumerate(CASES.items(), start=1):
        found = cover(case, replicas=replicas, seed=seed, samples=1000, **settings)
        p, r, b, j = found.pointwise, found.error_ratio, found.bias, found.removed
        print(
            f"| {name} | {p.size} | {p.mean():.3f} | {p.min():.3f} | {p.max():.3f} "
            f"| {found.joint:.3f} | {r.mean():.3f} | {b[np.abs(b).argmax()]:+.2f} "
            f"| {j[np.abs(j).argmax()]:+.2f} | {found.freedom:.0f} | {found.refused} |",
            flush=True,
        )
    if arguments.run is None:
        return
    print(RUN_HEADER)
    for members in (1, 2, 4):
        ratios, share, refused = parts_of_run(arguments.run, members=members, lags=20)
        print(
            f"| {members} | {64 // members} | {share.mean():.3f} | {share.min():.3f} "
            f"| {ratios.mean():.3f} | {ratios.min():.3f} | {ratios.max():.3f} | {refused} |"
        )


HEADER = """# Coverage of 95 % intervals

`python benchmarks/coverage.py --replicas {replicas} --run runs/quickstart`

Share of {replicas} independent replicas whose interval holds the exact response, after
recalibration of a wrong score. One number of {replicas} replicas scatters by
+-0.015 (one standard error) around 0.95. tau = 2 / rate is the integrated autocorrelation time.
all: the simultaneous band holds every number at once. error: standard error over the scatter of
the values. bias: that of the worst number, in units of the scatter, after the jackknife
removed that much of the number where it was largest. dof: degrees of freedom of Student's
interval. refused: runs found too short for an error bar.

| case | numbers | mean | lowest | highest | all | error | bias | removed | dof | refused |
|---|---|---|---|---|---|---|---|---|---|---|"""

RUN_HEADER = """
## Allen-Cahn, parts of the quickstart run against all of it

R11 and R31 at lags 1 to 20, exact score, recalibrated per wavenumber; intervals from stretches of
time of 1, 2 or 4 members of 400 time units. error: standard error over the scatter of the parts.

| members | parts | covered, mean | lowest | error, mean | lowest | highest | refused |
|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
