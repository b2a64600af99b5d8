"""Responses as labelled datasets: observables of one kind together, any other by itself.

Observables of the place have maps of responses, others one number or a row of numbers. Arrays of
different dimensions cannot share a variable: the root holds the maps (or the numbers, where there
are no maps), and each other observable is a group of its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import fft

from workflow.interfaces import SPACE
from workflow.responses.assemble import Estimated
from workflow.responses.channels import Channels
from workflow.responses.observable import Observable
from workflow.responses.pairs import enough
from workflow.responses.probes import group_name
from workflow.responses.sources import Learned, Paired, Source
from workflow.responses.stein import Numbers, answers, displacements, stein_error

Floats = NDArray[np.floating]

VARIABLES = {
    "response": ("value", "response of the observable to a unit perturbation, less its bias"),
    "response_raw": ("raw", "response before recalibration of the score"),
    "standard_error": ("standard_error", "standard error of response, by resampling"),
    "ci_low": ("low", "lower end of the confidence interval"),
    "ci_high": ("high", "upper end of the confidence interval"),
    "bias": ("bias", "bias that was subtracted, by the jackknife"),
}


@dataclass(frozen=True)
class ResponseSet:
    """Everything that is to be labelled.

    Attributes:
        channels: what was correlated.
        sources: by estimator; None where only labels are asked for.
        observables: those asked for.
        found: by observable, estimates by estimator and distances by (estimator, reference).
        lag: times since the kick.
        references: estimators that the others are compared with.
        lag_units: CF units of the lag.
        spread: standard deviation of each field; Stein errors are in these units.
    """

    channels: Channels
    sources: Mapping[str, Source | None]
    observables: Sequence[Observable]
    found: Mapping[str, tuple[dict[str, Estimated], dict[tuple[str, str], dict[str, Floats]]]]
    lag: Floats
    references: Sequence[str]
    lag_units: str
    spread: Sequence[float]


def label_responses(responses: ResponseSet) -> dict[str, xr.Dataset]:
    """Datasets by group, the root under "".

    Variables have dims (estimator, perturbation, observable, lag, ...): the displacement (dy, dx)
    of the responder from the kicked place on homogeneous fields, (y, x) on others. Groups have
    no dimension observable, and (shell) or (bin) for spectra and histograms.
    """
    return _grouped(responses, _stein(responses))


def outline(
    channels: Channels, observables: Sequence[Observable], names: Sequence[str], *, lag_units: str
) -> dict[str, xr.Dataset]:
    """Datasets by group with everything but the numbers: all zero, at a single lag.

    Args:
        channels: what will be correlated.
        observables: those asked for.
        names: of the scores, each a reference of the others.
        lag_units: CF units of the lag.
    """
    saved, lag = channels.saved, np.zeros(1)
    found: dict[str, tuple[dict[str, Estimated], dict]] = {}
    for one in observables:
        trailing = [len(labels[1]) for labels in _trailing(channels, one).values()]
        nothing = np.zeros((len(channels.perturbations), len(lag), *trailing))
        estimates = {name: Estimated(*[nothing] * len(VARIABLES)) for name in names}
        found[one.name] = (estimates, {})
    responses = ResponseSet(
        channels, dict.fromkeys(names), observables, found, lag, names, lag_units, ()
    )
    matrix = (len(saved.fields),) * 2 if saved.maps else (saved.numbers,) * 2
    shape = saved.shape if saved.maps else ()
    whole = (np.zeros((*matrix, *shape)), np.zeros((*matrix[:1], *shape), dtype=bool))
    stein = _label_stein(responses, dict.fromkeys(names, (0.0,) * 3), dict.fromkeys(names, whole))
    return _grouped(responses, stein)


def _grouped(responses: ResponseSet, stein: xr.Dataset) -> dict[str, xr.Dataset]:
    kinds = [_kind(one, responses.channels) for one in responses.observables]
    root = next((kind for kind in ("maps", "numbers") if kind in kinds), kinds[0])
    chosen = [o for o, kind in zip(responses.observables, kinds, strict=True) if kind == root]
    groups = {"": _dataset(responses, chosen).merge(stein)}
    for one in responses.observables:
        if one not in chosen:
            # No dimension of observables: it would have to be that of the root.
            alone = _dataset(responses, [one]).isel(observable=0, drop=True)
            groups[group_name(one.name)] = alone.assign_attrs(observable=one.name)
    return groups


def _kind(one: Observable, channels: Channels) -> str:
    """What shares dimensions; a row of numbers has an axis of its own."""
    if one.of_place and channels.saved.shape:
        return "maps"
    return one.name if one.axis else "numbers"


def _dataset(responses: ResponseSet, observables: Sequence[Observable]) -> xr.Dataset:
    names = list(responses.sources)
    trailing = _trailing(responses.channels, observables[0])
    dims = ("estimator", "perturbation", "observable", "lag", *trailing)
    moved = responses.channels.saved.maps and observables[0].of_place
    axes = tuple(range(-len(trailing), 0)) if moved else ()
    variables: dict[str, tuple] = {}
    for name, (attribute, text) in VARIABLES.items():
        stacked = np.stack(
            [
                np.stack(
                    [getattr(responses.found[o.name][0][n], attribute) for o in observables], axis=1
                )
                for n in names
            ]
        )
        values = fft.fftshift(stacked, axes=axes) if axes else stacked
        variables[name] = (dims, values, {"long_name": text, "units": _units(observables)})
    variables |= _distances(responses, observables) | _pairs(responses, observables)
    coords = {
        "estimator": ("estimator", np.array(names)),
        "perturbation": (
            "perturbation",
            np.array([p.name for p in responses.channels.perturbations]),
        ),
        "observable": ("observable", np.array([o.name for o in observables])),
        "reference": ("reference", np.array(list(responses.references))),
        "lag": (
            "lag",
            responses.lag,
            {"long_name": "time since the kick", "units": responses.lag_units},
        ),
        **trailing,
    }
    return xr.Dataset(variables, coords=coords)


def _units(observables: Sequence[Observable]) -> str:
    """Units of the response per unit of the perturbation, where all observables share them."""
    units = {one.units for one in observables}
    return units.pop() if len(units) == 1 else "1"


def _distances(responses: ResponseSet, observables: Sequence[Observable]) -> dict[str, tuple]:
    dims = ("estimator", "reference", "perturbation", "observable", "lag")
    names, references = list(responses.sources), list(responses.references)
    sizes = (len(names), len(references), len(responses.channels.perturbations))
    keys = ("l2", "linf", "l2_corrected", "l2_squared")
    variables = {}
    for key in [k + end for k in keys for end in ("", "_standard_error")]:
        values = np.full((*sizes, len(observables), len(responses.lag)), np.nan)
        for k, one in enumerate(observables):
            for (name, reference), found in responses.found[one.name][1].items():
                values[names.index(name), references.index(reference), :, k] = found[key]
        variables[key] = (dims, values, {"long_name": f"{key.replace('_', ' ')} from a reference"})
    return variables


def _pairs(responses: ResponseSet, observables: Sequence[Observable]) -> dict[str, tuple]:
    """Of paired runs, how many pairs count and how much they scatter."""
    paired = next((s for s in responses.sources.values() if isinstance(s, Paired)), None)
    if paired is None:
        return {}
    pairs, units = paired.moments.pairs, _units(observables)
    square = "1" if units == "1" else f"({units})^2"
    told = {
        "effective_pairs": (
            paired.effective_pairs,
            {"long_name": "effective number of pairs of the direct response", "units": "1"}
            | {"pairs": pairs, "enough": enough(pairs)},
        ),
        "pair_variance": (
            paired.pair_variance,
            {"long_name": "variance of the response of one pair, summed over the places"}
            | {"units": square},
        ),
    }
    dims = ("perturbation", "observable", "lag")
    variables = {}
    for name, (of, attrs) in told.items():
        known = np.stack([of(one) for one in observables], axis=1)
        values = np.full((*known.shape[:2], len(responses.lag)), np.nan)
        values[..., : known.shape[2]] = known
        variables[name] = (dims, values, attrs)
    return variables


def _trailing(channels: Channels, one: Observable) -> dict[str, tuple]:
    """Coordinates of the axes that an observable adds."""
    saved = channels.saved
    space = SPACE[len(saved.shape)]
    if one.of_place and saved.maps:
        attrs = {"long_name": "grid steps of the responder from the kicked place", "units": "1"}
        return {
            f"d{n}": (f"d{n}", np.arange(size) - size // 2, attrs)
            for n, size in zip(space, saved.shape, strict=True)
        }
    if one.of_place:
        attrs = {"long_name": "grid index", "units": "1"}
        return {n: (n, np.arange(size), attrs) for n, size in zip(space, saved.shape, strict=True)}
    if not one.axis:
        return {}
    return {one.axis: (one.axis, np.array(one.coordinate), {"long_name": one.axis})}


def _stein(responses: ResponseSet) -> xr.Dataset:
    """Raw Stein matrices, unresolved numbers, and Stein errors before and after recalibration."""
    saved = responses.channels.saved
    shape = saved.shape if saved.maps else ()
    learned = {n: s for n, s in responses.sources.items() if isinstance(s, Learned)}
    errors = {n: _errors(s, shape, responses.spread) for n, s in learned.items()}
    whole = {n: _whole(s, shape) for n, s in learned.items() if s.stein is not None}
    return _label_stein(responses, errors, whole)


def _label_stein(
    responses: ResponseSet,
    errors: Mapping[str, tuple[float, float, float]],
    whole: Mapping[str, tuple[Floats, NDArray[np.bool_]]],
) -> xr.Dataset:
    """Of those estimators that have them, by name."""
    saved, names = responses.channels.saved, list(responses.sources)
    shape = saved.shape if saved.maps else ()
    nothing = (np.nan,) * 3
    variables: dict[str, tuple] = {
        key: ("estimator", np.array([errors.get(n, nothing)[i] for n in names]), {"long_name": t})
        for i, (key, t) in enumerate(
            (
                (
                    "stein_error",
                    "root mean square of M - I per row, fields over their spread, raw",
                ),
                ("stein_error_recalibrated", "the same after recalibration"),
                ("stein_error_standard_error", "standard error of stein_error, by resampling"),
            )
        )
    }
    coords: dict[str, tuple] = {"estimator": ("estimator", np.array(names))}
    if not whole:
        return xr.Dataset(variables, coords=coords)
    first = next(iter(whole.values()))
    single = first[0].shape[0] == 1
    dims = () if single else ("number", "kicked_number")
    waves = tuple(f"k{n}" for n in SPACE[len(shape)])
    empty = (np.full(first[0].shape, np.nan), np.zeros(first[1].shape, dtype=bool))
    steins = np.stack([whole.get(n, empty)[0] for n in names])
    unresolved = np.stack([whole.get(n, empty)[1] for n in names])
    if single:
        steins, unresolved = steins[:, 0, 0], unresolved[:, 0]
    text = {"long_name": "raw Stein matrix -<x s^T>, 1 for the exact score"}
    variables["stein"] = (("estimator", *dims, *waves), steins, text)
    variables["unresolved"] = (
        ("estimator", *dims[:1], *waves),
        unresolved,
        {"long_name": "1 where the score does not see the number"},
    )
    for wave, size in zip(waves, shape, strict=True):
        coords[wave] = (wave, np.arange(size) - size // 2, {"long_name": f"wavenumber {wave}"})
    return xr.Dataset(variables, coords=coords)


def _errors(
    source: Learned, shape: tuple[int, ...], spread: Sequence[float]
) -> tuple[float, float, float]:
    """Stein error raw, after recalibration, and the standard error of the raw one."""
    if source.stein is None:
        return np.nan, np.nan, np.nan
    space = len(shape)
    repaired = _repaired(source.stein, source.repair.inverse, space)
    # M_fg has the units of field f over those of g.
    scale = np.repeat(np.asarray(spread), len(source.stein) // len(spread))
    unit = (scale[None, :] / scale[:, None]).reshape(*source.stein.shape[:2], *[1] * space)
    raw, after = (stein_error(m * unit, space=space, shape=shape) for m in (source.stein, repaired))
    draws = [stein_error(m * unit, space=space, shape=shape) for m in source.stein_draws()]
    error = float(np.concatenate(draws).std()) if draws else np.nan
    return float(raw), float(after), error


def _repaired(stein: Numbers, inverse: Numbers, space: int) -> Numbers:
    identity = np.eye(stein.shape[0]).reshape(*stein.shape[:2], *[1] * space)
    patterns = np.broadcast_to(identity, stein.shape)
    return answers(stein, inverse, patterns)


def _whole(source: Learned, shape: tuple[int, ...]) -> tuple[Floats, NDArray[np.bool_]]:
    """Real part of M and the unresolved numbers over all wavenumbers, increasing."""
    assert source.stein is not None
    if not shape:
        return np.asarray(source.stein.real), source.unresolved
    # M(-k) is the conjugate of M(k), so the real part has the symmetry of a real even field.
    axes = tuple(range(-len(shape), 0))
    lag_zero = displacements(source.stein, shape=shape)
    full = fft.fftshift(fft.fftn(lag_zero, axes=axes).real, axes=axes)
    flags = displacements(source.unresolved.astype(np.float64), shape=shape)
    unresolved = fft.fftshift(fft.fftn(flags, axes=axes).real, axes=axes) > 0.5
    return full, unresolved
