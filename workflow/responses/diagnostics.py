"""Identities that a score, a drift and a stationary run must obey, each with its error bar.

    < s > = 0,    -< x_i s_j > = delta_ij,    -< x_i^n s_j > = n < x_i^(n-1) > delta_ij
    < y s_j > = 0 of what the score is conditioned on
    < div F + F . s > = 0,    dR_ij/dt(0+) = < dF_i/dx_j >

Means are taken per unit: a member, or a block of time of one. The scatter between units is the
only error bar that knows the correlation of times and places. `unit_means` makes the means of one
unit (so that a task can), `identity_checks` judges the units together.

Source: integration by parts against exp(log p); arXiv:2402.01029 for the lag-0 identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflow.interfaces import space_axes
from workflow.responses.checks import LIMIT, Check, judge, undecided, worst
from workflow.responses.divergence import (
    Seed,
    divergence,
    sum_components,
    unit_vectors,
)

Floats = NDArray[np.floating]
Numbers = NDArray[Any]

MATRIX_COMPONENTS = 64
"""Largest state without symmetry whose matrices are kept whole; beyond it the diagonal only."""
RESOLVED = 0.3
"""Largest rate times lag step at which a difference of R tells its derivative at lag 0."""
STILL = 1e-9
"""Variance of a wavenumber, relative to the largest of its field, below which it is rounding."""
_DRIFT_SAMPLES = 128
"""Most samples of a unit at which derivatives of the drift are taken."""


def unit_means(
    x: Tensor,
    s: Tensor,
    *,
    mean: Tensor,
    homogeneous: bool,
    drift: Callable[[Tensor], Tensor] | None = None,
    given: Tensor | None = None,
    seed: Seed = 0,
) -> dict[str, Floats]:
    """Means over the samples of one unit that the identities are about.

    Args:
        x: states of the unit, `(sample, field, *shape)`.
        s: scores at them, same shape.
        mean: fixed reference that x is taken about, `(field,)` or `(field, *shape)`; the same for
            all units. The identities hold about any; the mean of the data keeps the noise low.
        homogeneous: average over places, and resolve by wavenumber.
        drift: F(x), `(batch, field, *shape)`, where the equation is known.
        given: what the scores are conditioned on, less a fixed reference of its own,
            `(sample, given, *shape)`.
        seed: of the random probes in div F; name the unit in it.

    Returns:
        Arrays by name, float64; stack them over units for `identity_checks`.
    """
    fields, shape = x.shape[1], x.shape[2:]
    reference = mean.double()
    if reference.ndim == 1:
        reference = reference.reshape(-1, *[1] * len(shape))
    y = x.double() - reference
    s = s.double()
    axes = (0, *space_axes(x)) if homogeneous else (0,)
    means = {"score": s.mean(axes).flatten()}
    for n in (1, 2, 3):
        pair = -(y**n * s).mean(axes), n * (y ** (n - 1)).mean(axes)
        means[f"moment_{n}"] = torch.stack([side.flatten() for side in pair])
    means["stein"] = _stein(y, s, homogeneous=homogeneous)
    if means["stein"].is_complex():
        power = -_stein(y, y, homogeneous=homogeneous).real
        means["power"] = power.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    if given is not None and given.shape[1]:
        products = given.double()[:, :, None] * s[:, None]
        places = range(3, products.ndim) if homogeneous else ()
        means["given"] = products.mean((0, *places)).flatten()
    if drift is not None:
        some = slice(None, None, -(-len(x) // _DRIFT_SAMPLES))
        z = x[some].double()
        div, _ = divergence(drift, z, seed=seed)
        means["production"] = torch.stack([div.mean(), sum_components(drift(z) * s[some]).mean()])
        if homogeneous or fields * math.prod(shape) <= MATRIX_COMPONENTS:
            means["jacobian"], means["jacobian_square"] = _jacobian(
                drift, z, homogeneous=homogeneous, seed=seed
            )
    return {name: value.numpy(force=True) for name, value in means.items()}


def identity_checks(means: Mapping[str, Floats]) -> list[Check]:
    """Checks of the score, and of the drift where it was given, over all units.

    Args:
        means: arrays of `unit_means` stacked over units, `(unit, ...)`.

    Returns:
        One check per identity; of many numbers the worst is told, corrected for their number.

    Raises:
        UserError: fewer than 2 units.
    """
    stein, note = means["stein"], ""
    target = _identity_like(stein)
    if "power" in means:
        # Nothing can be told of what never varies, such as a conserved mean.
        power = means["power"].mean(0)
        varies = power > STILL * power.max(axis=tuple(range(1, power.ndim)), keepdims=True)
        stein, target = stein[:, varies[:, None] & varies], target[varies[:, None] & varies]
        still = np.count_nonzero(~varies)
        note = f"{still} without variance left out" if still else ""
    plural = "wavenumbers" if np.iscomplexobj(stein) else "components"
    checks = [worst("<s> = 0", means["score"], 0.0)]
    first, *higher = (
        worst(name, means[f"moment_{n}"][:, 0], means[f"moment_{n}"][:, 1])
        for n, name in enumerate(("-<x s> = 1", "-<x^2 s> = 2 <x>", "-<x^3 s> = 3 <x^2>"), 1)
    )
    checks += [
        first,
        worst(
            f"-<x s> = 1, worst of the {plural}", _parts(stein), _parts(target[None])[0], note=note
        ),
        _rms(f"-<x s> = 1, root mean square over {plural}", stein, target),
        *higher,
    ]
    if "given" in means:
        checks.append(worst("<y s> = 0 of what is given", means["given"], 0.0))
    if "production" in means:
        pair = means["production"]
        checks.append(worst("<F . s> = -<div F>", pair[:, 1], -pair[:, 0]))
    return checks


def slope_check(
    response: Floats, jacobian: Floats, *, square: Floats, step: float, space: int
) -> Check:
    """dR/dt(0+) = < dF_i/dx_j >: score and dynamics together, at the shortest lags.

        R'(0) = (-3 R_0 + 4 R_1 - R_2) / (2 step) + O(step^2)

    Its distance from the difference of the next order is added to the standard error. Only
    rates that the lag step resolves (rate * step <= 0.3) are compared. A rate is that of the mean
    Jacobian and the scatter of Jacobians about it: a state inside a steep well answers fast,
    however slow the mean is.

    Args:
        response: raw R of pixel kicks per unit, at lags 0 to 3 at least,
            `(unit, lag, responding field, kicked field, *shape)`, displacements in FFT order; or
            `(unit, lag, component, component)` with space=0.
        jacobian: `jacobian` of `unit_means` of the same units.
        square: `jacobian_square` of them.
        step: spacing of the lags, model time.
        space: number of space dimensions of a homogeneous field, else 0.

    Returns:
        The worst entry; undecided where no rate is resolved.

    Raises:
        ValueError: fewer than 4 lags, or other units than those of the Jacobian.
    """
    if response.shape[1] < 4 or len(response) != len(jacobian):
        raise ValueError(
            f"response of shape {response.shape}, jacobian of shape {jacobian.shape}; "
            "needs 4 lags and the same units"
        )
    name = "dR/dt(0+) = <dF/dx>"
    r: Numbers = np.asarray(response[:, :4], dtype=np.float64)
    slopes: Numbers = jacobian
    if space:
        axes = tuple(range(-space, 0))
        r, slopes = np.fft.rfftn(r, axes=axes), np.fft.rfftn(jacobian, axes=axes)
    second = (-3 * r[:, 0] + 4 * r[:, 1] - r[:, 2]) / (2 * step)
    third = (-11 * r[:, 0] + 18 * r[:, 1] - 9 * r[:, 2] + 2 * r[:, 3]) / (6 * step)
    # The fastest rate of each matrix over the fields (or components) must be resolved.
    matrices = np.moveaxis(slopes.mean(0), (0, 1), (-2, -1))
    rates = np.linalg.norm(matrices, ord=2, axis=(-2, -1))
    sizes = (jacobian.mean(0) ** 2).sum(axis=0).reshape(square.shape[1], -1).sum(1)
    rates = rates + math.sqrt(max(0.0, float((square.mean(0) - sizes).max())))
    resolved = rates * step <= RESOLVED
    note = f"lag step {step:g} resolves {np.count_nonzero(resolved)} of {rates.size} rates"
    if not resolved.any():
        needed = RESOLVED / float(rates.min())
        return undecided(
            name, f"{note}; needs a lag step of {needed:.2g}: lower ensemble.save_every"
        )
    second, third, slopes = (a[..., resolved] for a in (second, third, slopes))
    truncation = _parts(third - second).mean(0)
    return worst(name, _parts(second), _parts(slopes), allowance=truncation, note=note)


def stationarity_checks(mean: Floats, square: Floats, *, name: str) -> list[Check]:
    """Whether mean and variance of a field drift over the run, by regression on time.

    With 8 members or more the slopes of the members are compared; with fewer, the scatter of the
    blocks about the line gives the error, widened for the correlation of neighbouring blocks.

    Args:
        mean: mean of the field over each block of time (and over places), `(member, block)`;
            blocks of equal length in order.
        square: mean of its square, same shape.
        name: of the field.

    Returns:
        Change over the run of the mean, in standard deviations, and of the variance, relative to
        it; expected 0. Undecided with fewer than 4 blocks.
    """
    centre = float(mean.mean())
    spread = square - 2 * centre * mean + centre**2
    variance = float(spread.mean())
    answers = []
    for what, series, unit in (
        ("mean", (mean - centre) / (math.sqrt(variance) or 1.0), "standard deviations"),
        ("variance", spread / (variance or 1.0), "of itself"),
    ):
        label = f"no trend of the {what} of {name}"
        if series.shape[1] < 4:
            answers.append(undecided(label, f"{series.shape[1]} blocks of time; needs 4"))
            continue
        change, error, dof = _trend(series)
        note = f"the {what} changes by {change:+.3g} +- {error:.2g} {unit} over the run"
        answers.append(judge(label, change, 0.0, error=error, dof=dof, note=note))
    return answers


def _stein(y: Tensor, s: Tensor, *, homogeneous: bool) -> Tensor:
    """-< x_k s_k* > `(field, field, *half-spectrum)`, or -< x_i s_j > `(component, component)`."""
    if homogeneous and y.ndim > 2:
        axes = space_axes(y)
        a, b = torch.fft.rfftn(y, dim=axes), torch.fft.rfftn(s, dim=axes)
        pixels = math.prod(y.shape[2:])
        return -torch.einsum("nf...,ng...->fg...", a, b.conj()) / (pixels * len(y))
    flat, conjugate = y.flatten(1), s.flatten(1)
    if flat.shape[1] > MATRIX_COMPONENTS:
        return -(flat * conjugate).mean(0)
    return -flat.T @ conjugate / len(flat)


def _identity_like(stein: Floats) -> Floats:
    """What the Stein means of one unit should be."""
    one = stein[0]
    if one.ndim == 1:
        return np.ones(one.shape)
    eye = np.eye(one.shape[0]).reshape(*one.shape[:2], *[1] * (one.ndim - 2))
    return np.broadcast_to(eye, one.shape).astype(one.dtype)


def _jacobian(
    drift: Callable[[Tensor], Tensor], x: Tensor, *, homogeneous: bool, seed: Seed
) -> tuple[Tensor, Tensor]:
    """< dF_i/dx_j > by central differences, and sum_i < (dF_i/dx_j)^2 > of each kicked j.

    Homogeneous: `(field, kicked field, *shape)` over the displacement from the kicked pixel, from
    4 pixels of every sample. Else `(component, component)`.
    """
    h = 1e-4 * (float(x.std(correction=0)) or 1.0)
    shape, axes = tuple(x.shape[2:]), space_axes(x)

    def column(unit: Tensor) -> tuple[Tensor, Tensor]:
        slopes = (drift(x + h * unit) - drift(x - h * unit)) / (2 * h)
        return slopes.mean(0), slopes.square().flatten(1).sum(1).mean()

    if not homogeneous or not shape:
        found = [column(unit) for unit in unit_vectors(x)]
        return torch.stack([c.flatten() for c, _ in found], 1), torch.stack([q for _, q in found])
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    places = generator.integers(shape, size=(4, len(shape)))
    columns, squares = [], []
    for field in range(x.shape[1]):
        total, square = x.new_zeros(x.shape[1:]), x.new_zeros(())
        for place in places.tolist():
            unit = x.new_zeros(x.shape[1:])
            unit[(field, *place)] = 1
            back = [-p for p in place]
            one, size = column(unit)
            total = total + one.roll(back, [axis - 1 for axis in axes])
            square = square + size
        columns.append(total / len(places))
        squares.append(square / len(places))
    return torch.stack(columns, 1), torch.stack(squares)


def _parts(values: Numbers) -> Floats:
    """Real and imaginary parts side by side, `(unit, ...)`."""
    if not np.iscomplexobj(values):
        return values.reshape(len(values), -1)
    flat = values.reshape(len(values), -1)
    return np.concatenate([flat.real, flat.imag], axis=1)


def _rms(name: str, values: Floats, target: Floats) -> Check:
    """Root mean square of the deviations, the part that is sampling noise taken out."""
    units = len(values)
    difference = _parts(values) - _parts(target[None])
    scale = target.size
    # Products of different units are free of their noise: the squared mean less the own squares.
    own = (difference**2).sum(1) / scale

    def unbiased(group: Floats, squares: Floats) -> float:
        n = len(group)
        total = float((group.sum(0) ** 2).sum()) / scale
        return (total - float(squares.sum())) / (n * (n - 1))

    found = unbiased(difference, own)
    if units > 2:
        rest = [unbiased(np.delete(difference, u, axis=0), np.delete(own, u)) for u in range(units)]
        error = math.sqrt((units - 1) * float(np.var(rest)))
    else:
        error = abs(found)
    judged = judge(name, found, 0.0, error=error, dof=units - 1)
    value = math.sqrt(max(found, 0.0))
    step = math.sqrt(value**2 + error) - value
    # One-sided: less scatter than the units suggest is what a score fitted to these data has.
    passed = judged.z <= LIMIT
    return Check(name, value, step, 0.0, max(judged.z, 0.0), passed, "sampling noise taken out")


def _trend(series: Floats) -> tuple[float, float, float]:
    """Change over the run, its standard error, and the degrees of freedom behind that."""
    members, blocks = series.shape
    time = (np.arange(blocks) - (blocks - 1) / 2) / blocks
    slopes = (series - series.mean(1, keepdims=True)) @ time / (time @ time)
    change = float(slopes.mean())
    if members >= 8:
        return change, float(slopes.std(ddof=1)) / math.sqrt(members), members - 1
    residual = series - series.mean(1, keepdims=True) - change * time
    power = float((residual**2).sum())
    if power == 0:
        return change, 0.0, 1.0
    lagged = float((residual[:, 1:] * residual[:, :-1]).sum()) / power
    # A fitted line takes correlation out of the residuals: first-order bias put back. One
    # standard error more, because a false alarm costs more than a trend found late.
    memory = lagged + (2 + 4 * lagged) / blocks + 1 / math.sqrt(members * blocks)
    memory = min(0.9, max(0.0, memory))
    widening = (1 + memory) / (1 - memory)
    dof = max(1.0, members * (blocks / widening - 1) - 1)
    scatter = power / max(members * (blocks - 1) - 1, 1)
    return change, math.sqrt(scatter * widening / (members * (time @ time))), dof
