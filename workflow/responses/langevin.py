"""Langevin check: a score that is right keeps its own data, dx = s dt + 2^(1/2) dW.

The identities of `diagnostics` test a score against polynomials; this tests it as a whole, from
data alone. States start as data and are stepped for a few relaxation times of the fast modes;
variance, kurtosis, quantiles and spectrum must stay what they were, state by state, so that slow
modes and rare events cancel in the difference.

    x <- x + tau P s(x) + (2 tau P)^(1/2) (xi_n + xi_(n+1)) / 2

P = < s s^T >^-1 is the covariance for a Gaussian, and the covariance inside a well where there
are several. Averaging the noise of neighbouring steps keeps the density to second order in tau,
and that of a Gaussian exactly.

Source: B. Leimkuhler and C. Matthews, Appl. Math. Res. Express 2013, 34.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflow.interfaces import UserError, space_axes
from workflow.responses.checks import Check, jackknifed, worst
from workflow.responses.diagnostics import STILL
from workflow.responses.divergence import Seed

Floats = NDArray[np.floating]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles that are followed."""
MATRIX_COMPONENTS = 64
"""Largest state without symmetry that is preconditioned by a whole matrix."""


def langevin_checks(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    fields: Sequence[str],
    homogeneous: bool,
    step: float = 0.02,
    steps: int = 150,
    seed: Seed = 0,
) -> list[Check]:
    """Whether the score's own Langevin equation keeps the marginals of the data.

    The cost is `steps` evaluations of the score at all states; a few dozen states of each member
    are enough.

    Args:
        score: grad log p, `(batch, field, *shape)` -> same.
        x: states of the data by unit (member, or block of time), `(unit, sample, field, *shape)`.
        fields: names of the fields.
        homogeneous: statistics do not depend on the place; adds the spectrum.
        step: tau, in relaxation times of the preconditioned equation.
        steps: number of steps; 150 of 0.02 are 3 relaxation times.
        seed: of the noise.

    Returns:
        For every field, checks of variance, kurtosis, quantiles and (homogeneous) spectrum; one
        failed check where the states ran away.

    Raises:
        UserError: fewer than 2 units.
    """
    units, samples = x.shape[:2]
    if units < 2:
        raise UserError(f"{units} member or block of time: an error bar needs at least 2")
    start = x.flatten(0, 1)
    with torch.no_grad():
        end = _integrate(score, start, homogeneous=homogeneous, step=step, steps=steps, seed=seed)
    if end is None:
        return [
            Check(
                "Langevin: the states stay bounded",
                math.inf,
                0.0,
                0.0,
                math.inf,
                False,
                "they ran away: the score has a wrong sign, or no restoring force off the data",
            )
        ]
    checks = []
    for place, name in enumerate(fields):
        before, after = (
            a[:, place].double().reshape(units, samples, *x.shape[3:]) for a in (start, end)
        )
        checks += _compare(before, after, name=name, homogeneous=homogeneous)
    return checks


def _integrate(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    homogeneous: bool,
    step: float,
    steps: int,
    seed: Seed,
) -> Tensor | None:
    """States after the last step, or None where they ran away."""
    push, colour = _preconditioner(x, score(x), homogeneous=homogeneous)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    kind = np.float32 if x.dtype == torch.float32 else np.float64

    def noise() -> Tensor:
        return torch.from_numpy(generator.standard_normal(tuple(x.shape), dtype=kind))

    bound = 100 * float(x.abs().max())
    old = noise()
    for _ in range(steps):
        new = noise()
        x = x + step * push(score(x)) + (0.5 * step) ** 0.5 * colour(old + new)
        old = new
        if not float(x.abs().max()) <= bound:  # also where it is undefined
            return None
    return x


def _preconditioner(
    x: Tensor, s: Tensor, *, homogeneous: bool
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """v -> P v and xi -> P^(1/2) xi with P = < s s^T >^-1, and 0 where the states never vary."""
    shape, axes = tuple(s.shape[2:]), space_axes(s)
    if homogeneous and shape:
        power, variance = (
            torch.fft.rfftn(a.double(), dim=axes).abs().square().mean(0) / math.prod(shape)
            for a in (s, x - x.mean(0))
        )
        largest = variance.flatten(1).max(1).values.reshape(-1, *[1] * len(shape))
        varies = variance > STILL * largest
        symbol = 1 / power.clamp(min=1e-10 * float(power[varies].max()))
        symbol = symbol.where(varies, 0.0)

        def filtered(exponent: float) -> Callable[[Tensor], Tensor]:
            weight = symbol.pow(exponent).to(s.dtype)
            return lambda v: torch.fft.irfftn(
                torch.fft.rfftn(v, dim=axes) * weight, s=shape, dim=axes
            )

        return filtered(1.0), filtered(0.5)
    flat = s.double().flatten(1)
    fisher = flat.T @ flat / len(flat)
    if len(fisher) > MATRIX_COMPONENTS or len(flat) < 10 * len(fisher):
        fisher = torch.diag(fisher.diagonal())
    matrix = torch.linalg.inv(fisher)
    root = torch.linalg.cholesky(matrix)

    def times(factor: Tensor) -> Callable[[Tensor], Tensor]:
        weight = factor.T.to(s.dtype)
        return lambda v: (v.flatten(1) @ weight).reshape(v.shape)

    return times(matrix), times(root)


def _compare(before: Tensor, after: Tensor, *, name: str, homogeneous: bool) -> list[Check]:
    """Checks of one field, `(unit, sample, *shape)` before and after."""
    units, space = len(before), before.ndim - 2
    mean = before.mean()
    flat = [a.reshape(units, -1) - mean for a in (before, after)]
    second = [a.square().mean(1).numpy() for a in flat]
    checks = [
        worst(f"Langevin keeps the variance of {name}", second[1][:, None], second[0][:, None])
    ]
    moments = np.stack([*second, *((a**4).mean(1).numpy() for a in flat)], axis=1)
    checks.append(
        jackknifed(
            f"Langevin keeps the kurtosis of {name}",
            lambda m: float(m[3] / m[1] ** 2 - m[2] / m[0] ** 2),
            moments,
            note=_kurtosis_note(moments.mean(0)),
        )
    )
    edges = np.quantile(flat[0].numpy(), LEVELS)
    below = [np.stack([(a.numpy() < edge).mean(1) for edge in edges], axis=1) for a in flat]
    checks.append(
        worst(f"Langevin keeps the quantiles of {name}", below[1], below[0], note=f"of {LEVELS}")
    )
    if homogeneous and space:
        axes = tuple(range(2, before.ndim))
        power = [
            torch.fft.rfftn(a - mean, dim=axes).abs().square().mean(1).flatten(1).numpy()
            for a in (before, after)
        ]
        # What never varies, such as a conserved mean, is rounding: it cannot be kept.
        varies = power[0].mean(0) > STILL * power[0].mean(0).max()
        ratios = [a[:, varies] / power[0].mean(0)[varies] for a in power]
        label = f"Langevin keeps the spectrum of {name}"
        average = [a.mean(1, keepdims=True) for a in ratios]
        checks += [
            worst(f"{label}, mean over wavenumbers", average[1], average[0]),
            worst(f"{label}, worst of the wavenumbers", ratios[1], ratios[0]),
        ]
    return checks


def _kurtosis_note(moments: Floats) -> str:
    before, after = moments[2] / moments[0] ** 2, moments[3] / moments[1] ** 2
    return f"from {before:.4g} to {after:.4g}"
