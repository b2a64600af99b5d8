"""Variance of a response with and without control variates, and whether intervals still cover.

    python benchmarks/control_variates.py runs/quickstart > benchmarks/results/control_variates.md

Part one: replicas of the OU SPDE (16 x 16, published parameters), where the answer is known. Part
two: a finished run of `gfdt run quickstart` (Allen-Cahn, 16 x 16), exact and learned score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workflow.dynamics.grid import Grid
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.interfaces import UserError
from workflow.responses.control_variates import control, control_by_stein
from workflow.responses.recalibration import recalibrate
from workflow.responses.resampling import Units, ratio, resampling_units, unit_weights
from workflow.responses.statistics import estimate, jackknife

SYSTEM = OrnsteinUhlenbeck(grid=16, dim=2, dt=1.0)
OU_LAGS = np.array([0, 1, 2, 5, 10, 20, 40])
AC_LAGS = np.array([0, 1, 2, 3, 5, 10, 20])
LONG = {"members": 1, "length": 10000, "block": 100}
RESOLVED = np.zeros((16, 16), dtype=bool)


def spectra(members, length, rng):
    """Orthonormal modes x_k `(member, time, ky, kx)` of the OU SPDE, C_k, and the factors g_k."""
    grid = Grid(16, 2)
    variance = _full(SYSTEM.variance(grid).numpy())
    factor = _full(SYSTEM.linear(grid).exp().numpy())
    spread = np.sqrt(variance * (1 - np.abs(factor) ** 2))

    def white():
        return np.fft.fft2(rng.standard_normal((members, 16, 16)), norm="ortho")

    x, run = np.sqrt(variance) * white(), np.empty((members, length, 16, 16), dtype=complex)
    for time in range(length):
        run[:, time] = x
        x = factor * x + spread * white()
    return run, variance, factor


def _full(half):
    """Whole spectrum of a real field's kernel from its half."""
    return np.fft.fft2(np.fft.irfft2(half, s=(16, 16)))


def sums_of(x_hat, s_hat, *, lags, block):
    """S `(member, block, lag, y, x)` of -x(p + r, t + lag) s(p, t), and pairs `(block, lag)`.

    Modes `(member, time, ky, kx)` are orthonormal.
    """
    members, length = x_hat.shape[:2]
    blocks = -(-length // block)
    sums = np.empty((members, blocks, len(lags), *x_hat.shape[2:]))
    pairs = np.empty((blocks, len(lags)))
    for number in range(blocks):
        start, stop = number * block, min((number + 1) * block, length)
        for i, lag in enumerate(lags):
            end = max(start, min(stop, length - lag))
            product = x_hat[:, start + lag : end + lag] * s_hat[:, start:end].conj()
            sums[:, number, i] = -np.fft.ifft2(product.sum(axis=1)).real
            pairs[number, i] = end - start
    return sums, pairs


def recalibrated(response):
    return recalibrate(response, space=2, unresolved=RESOLVED).response


def ways(sums, pairs, units, extra=None):
    """Name -> (sums, statistic) of the ways to use the lag-0 identity."""
    channels = sums[:, :, :, None, None]
    controlled = control_by_stein(
        channels, pairs, lag_zero=channels[:, :, 0], space=2, units=units
    ).sums
    found = {
        "raw": (sums, None),
        "ratio": (sums, recalibrated),
        "control M": (controlled[:, :, :, 0, 0], None),
    }
    if extra is not None:
        spectrum = np.fft.fft2(sums)
        stein = spectrum[:, :, :1] - pairs[:, :1, None, None]
        controls = np.concatenate([stein, extra], axis=2)
        both = control(spectrum, pairs, controls, units=units).sums
        found["control M, cubic"] = (np.fft.ifft2(both).real, None)
    return found


def ou_part(replicas, *, members, length, block, wrong=0.0):
    """Mean squared error by lag and coverage of R11 and R31, per way, over replicas.

    `wrong`: the score is that of C_k (1 + wrong), as a learned score might be.
    """
    errors, inside, refused = {}, {}, 0
    for replica in range(replicas):
        rng = np.random.default_rng([5, replica])
        x_hat, variance, factor = spectra(members, length, rng)
        truth = np.stack([np.fft.ifft2(factor**lag).real for lag in OU_LAGS])
        s_hat = -x_hat / (variance * (1 + wrong))
        sums, pairs = sums_of(x_hat, s_hat, lags=OU_LAGS, block=block)
        try:
            units = resampling_units(sums, pairs)
        except UserError:
            refused += 1
            continue
        for name, (used, statistic) in ways(sums, pairs, units).items():
            apply = statistic if statistic is not None else (lambda r: r)

            def pixels(response, apply=apply):
                return apply(response)[:, 1:, 0, [0, 2]]

            value = apply(ratio(used, pairs)[None])[0]
            bias = jackknife(used, pairs, statistic, units=units).bias
            e = estimate(used, pairs, pixels, units=units, samples=200, seed=replica)
            exact = truth[1:, 0, [0, 2]]
            off, half = e.value - exact, e.high - e.value
            both = {name: (value, off + e.bias)}
            if statistic is not None:
                both[f"{name} less bias"] = (value - bias, off)
            for label, (found, error) in both.items():
                errors.setdefault(label, []).append(((found - truth) ** 2).sum(axis=(1, 2)))
                inside.setdefault(label, []).append(np.abs(error) <= half)
    mse = {name: np.mean(v, axis=0) for name, v in errors.items()}
    return mse, {name: np.mean(v, axis=0) for name, v in inside.items()}, refused


def ac_part(folder, estimator):
    """Bootstrap variance by lag, summed over pixels, and value, per way."""
    u = xr.open_zarr(folder / "ensemble.zarr").u.values.astype(float)
    scores = xr.open_zarr(folder / "scores.zarr")
    index = list(scores.estimator.values).index(estimator)
    s = scores.score_u.isel(estimator=index).values.astype(float)
    x_hat = np.fft.fft2(u - u.mean(), norm="ortho")
    s_hat = np.fft.fft2(s - s.mean(), norm="ortho")
    length = u.shape[1]
    sums, pairs = sums_of(x_hat, s_hat, lags=AC_LAGS, block=length)
    cubic = np.fft.fft2(u**3, norm="ortho") * np.fft.fft2(s, norm="ortho").conj()
    # E[x^3(p + r) s(p)] = -3 E[x^2] at r = 0 and 0 elsewhere: flat in wavenumber.
    extra = -(cubic.sum(axis=1) + 3 * (u**2).mean(axis=(2, 3)).sum(axis=1)[:, None, None])
    units = Units(len(u), 1, 1)
    weights = unit_weights(units, samples=500, seed=1)
    found = {}
    for name, (used, statistic) in ways(sums, pairs, units, extra[:, None, None]).items():
        apply = statistic if statistic is not None else (lambda r: r)
        value = apply(ratio(used, pairs)[None])[0]
        found[name] = value, apply(ratio(used, pairs, weights))
    return found


def row(name, numbers, form="{:.3f}"):
    return f"| {name} | " + " | ".join(form.format(v) for v in numbers) + " |"


def table(title, lags):
    head = f"\n| {title} | " + " | ".join(f"lag {lag}" for lag in lags) + " |"
    return head + "\n|" + "---|" * (len(lags) + 1)


def print_ou(replicas):
    ensemble = {"members": 32, "length": 400, "block": 400}
    wrong = "32 members x 400, score of a variance 10 % too large"
    for text, number, settings in (
        ("32 members x 400, exact score", replicas, ensemble),
        ("1 run x 10000, exact score", replicas, LONG),
        (wrong, replicas // 4, {**ensemble, "wrong": 0.1}),
    ):
        mse, covered, refused = ou_part(number, **settings)
        print(f"\n## OU SPDE, {text}, {number} replicas, {refused} refused as too short")
        print(table("squared error over that of the ratio less bias", OU_LAGS[1:]))
        for name in mse:
            print(row(name, (mse[name] / mse["ratio less bias"])[1:]))
        print(table("coverage of R11, R31", OU_LAGS[1:]))
        for name, share in covered.items():
            for place, label in enumerate(("R11", "R31")):
                print(row(f"{name}, {label}", share[:, place]), flush=True)


def print_ac(folder):
    exact = ac_part(folder, "exact")
    reference = exact["control M"]
    for estimator in ("exact", "neural"):
        found = exact if estimator == "exact" else ac_part(folder, estimator)
        variance = {n: d.var(axis=0, ddof=1).sum(axis=(1, 2)) for n, (_, d) in found.items()}
        print(f"\n## Allen-Cahn, {estimator} score")
        print(table("variance over that of the ratio", AC_LAGS[1:]))
        for name in found:
            print(row(name, (variance[name] / variance["ratio"])[1:]))
        print(table("R11 (standard error)", AC_LAGS))
        for name, (value, draws) in found.items():
            spread = draws[:, :, 0, 0].std(axis=0, ddof=1)
            cells = [f"{v:.4f} ({e:.4f})" for v, e in zip(value[:, 0, 0], spread, strict=True)]
            print(row(name, cells, "{}"))
        print(
            table("distance from exact score, control M: L2^2 / noise of the difference", AC_LAGS)
        )
        for name, (value, draws) in found.items():
            gap = ((value - reference[0]) ** 2).sum(axis=(1, 2))
            noise = (draws - reference[1]).var(axis=0, ddof=1).sum(axis=(1, 2))
            noise = np.where(noise > 1e-20, noise, np.inf)
            print(row(name, gap / noise, "{:.2f}"), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished quickstart run")
    parser.add_argument("--replicas", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER.format(replicas=arguments.replicas))
    print_ou(arguments.replicas)
    print_ac(arguments.run)


HEADER = """# Control variates

`gfdt run quickstart && python benchmarks/control_variates.py runs/quickstart --replicas {replicas}`

raw: the response as it is. ratio: divided per wavenumber by its Stein matrix M (recalibration);
less bias: less that of the jackknife, as `estimate` does. control M: M - I as a control variate
per wavenumber, coefficients fitted across folds and shrunk. cubic: with E[x^3 s] = -3 E[x^2] as a
second control. Lags are in model time; a share of
{replicas} replicas is known to 0.015."""


if __name__ == "__main__":
    main()
