"""Runs of a user's own data without an experiment file: options in, an experiment out.

What is not said is chosen from the data, and told in a line each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from workflow.checks import KGMM_NUMBERS
from workflow.config import DataConfig, apply_setting, parse_experiment
from workflow.interfaces import MEMBER, SPACE, TIME, Saved, UserError
from workflow.loading import read_own
from workflow.opening import open_experiment
from workflow.recorded import arrange, block_of, find, open_data, saved_of, time_unit
from workflow.responses.perturbations import usual_perturbation
from workflow.responses.resampling import autocorrelation_time
from workflow.responses.times import SECONDS
from workflow.runs import ENOUGH_MEMBERS, Run

CORRELATION_TIMES = 5.0
"""Longest lag by default, in correlation times: exp(-5) = 0.7 % is left of an exponential decay."""

FEWEST_LAGS = 4
"""Saved samples of the longest lag, at least."""

PART_NUMBERS = 1 << 22
"""Numbers of data that the correlation time is measured from: 32 MiB."""

PART_MEMBERS = 8
"""Members that it is measured from."""

PART_PLACES = 256
"""Places that it is measured from, spread over the field."""


@dataclass(frozen=True)
class OwnData:
    """Data of a user, and what is asked about them; None is for what the data decide.

    Attributes:
        store: Zarr or NetCDF, relative to the working folder.
        variables: names in the store; all that have a time where empty.
        given: of these, what nothing pushes: scores are conditioned on it.
        dims: ours by theirs, `{"time": "t", "member": "run"}`.
        homogeneous: statistics do not depend on the place.
        max_lag: longest lag, a number in the units of the time, or with a unit, "30d".
        estimator: of the score.
        name: of the run.
    """

    store: Path
    variables: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    dims: tuple[tuple[str, str], ...] = ()
    homogeneous: bool = False
    max_lag: str | None = None
    estimator: str | None = None
    name: str | None = None


def asked(
    experiment: str | None,
    store: Path | None,
    variables: Sequence[str] | None,
    given: Sequence[str] | None,
    dims: str | None,
    homogeneous: bool,
    max_lag: str | None,
    estimator: str | None,
    name: str | None,
) -> OwnData | None:
    """The data that a command line asks about; None where it names an experiment.

    Raises:
        UserError: both, neither, or options of data for an experiment.
    """
    if (experiment is None) == (store is None):
        found = "neither EXPERIMENT nor --data" if store is None else "both EXPERIMENT and --data"
        raise UserError(f"{found} given; needs exactly one of them")
    if store is not None:
        told = tuple(given or ())
        # Whoever names the variables need not name these twice.
        names = tuple(dict.fromkeys((*variables, *told))) if variables else ()
        return OwnData(store, names, told, parse_dims(dims), homogeneous, max_lag, estimator, name)
    given_options = {
        "--variable": variables,
        "--given": given,
        "--dims": dims,
        "--homogeneous": homogeneous,
        "--max-lag": max_lag,
        "--estimator": estimator,
        "--name": name,
    }
    wrong = [option for option, value in given_options.items() if value]
    if wrong:
        raise UserError(f"{wrong[0]} goes with --data; for an experiment use --set KEY=VALUE")
    return None


def open_own_data(own: OwnData, runs: Path, settings: Sequence[str] = ()) -> tuple[Run, list[str]]:
    """The run of somebody's data, new or existing, checked; writes nothing.

    Args:
        own: the data.
        runs: folder of run folders.
        settings: `a.b=c`, on top of everything else.

    Returns:
        The run, and lines that tell how the data were read and what was chosen.

    Raises:
        UserError: as `workflow.opening.open_run`.
    """
    content: dict[str, Any] = {
        "name": own.name or run_name(own.store),
        "data": {
            "store": str(own.store.absolute()),
            "variables": list(own.variables),
            "dims": dict(own.dims),
            "homogeneous": own.homogeneous,
        },
        "score": {"given": list(own.given)} if own.given else {},
        "response": {},
    }
    if own.estimator is not None:
        content["score"]["estimator"] = own.estimator
    for setting in settings:
        apply_setting(content, setting)
    # Mistakes in settings are told before the data are looked at.
    experiment = parse_experiment(content)
    assert experiment.data is not None
    data, decided = find(experiment.data, Path.cwd())
    saved = saved_of(data).conditioned(experiment.score.given)
    told = [_description(data, decided, saved)]
    before = runs / experiment.name / "experiment.yaml"
    old = read_own(before, yaml.safe_load) if before.is_file() else {}
    if "estimator" not in content["score"]:
        told.append(_choose_estimator(content, saved, old))
    if own.max_lag is not None:
        content["response"]["max_lag"] = _length(own.max_lag, data)
    elif "max_lag" not in content["response"]:
        told.append(_choose_lag(content, data, decided, old, saved))
    if "perturbations" not in content["response"] and saved.shape:
        told.append(_told_perturbation(saved))
    return open_experiment(parse_experiment(content), runs, Path.cwd()), told


def run_name(store: Path) -> str:
    """Name of a run from that of its data."""
    stem = Path(store).absolute().stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_.-") or "data"


def parse_dims(text: str | None) -> tuple[tuple[str, str], ...]:
    """Names of dimensions, "time=t,member=run".

    Raises:
        UserError: not of that form.
    """
    pairs = []
    for part in filter(None, (text or "").split(",")):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or ours not in (MEMBER, TIME, "y", "x") or not theirs:
            raise UserError(
                f"--dims {text}: needed OURS=THEIRS with member, time, y or x, as time=t,member=run"
            )
        pairs.append((ours, theirs))
    return tuple(pairs)


def correlation_time(data: xr.Dataset, saved: Saved) -> float:
    """Integrated correlation time of the data, in saved samples.

        T = max( int rho dt, 2 int rho_2 dt )

    rho is the autocorrelation of a field and rho_2 of its squared deviation, both mean over the
    places: where rho oscillates its integral is small although the memory is long, that of
    rho_2, which is rho^2 of a Gaussian, is not. Both are T for an exponential decay.

    Args:
        data: arranged, `(member, time, *space)`; the beginning is looked at.
        saved: its fields, of which the slowest counts.
    """
    members = range(min(PART_MEMBERS, data.sizes[MEMBER]))
    most = PART_NUMBERS // (saved.numbers * len(members))
    times = range(min(data.sizes[TIME], max(64, most)))
    names = [field.name for field in saved.fields]
    block = block_of(data, names, members=members, times=times)
    flat = block.reshape(*block.shape[:2], len(saved.fields), -1).astype(np.float64)
    flat = flat[..., :: max(1, flat.shape[-1] // PART_PLACES)]
    deviation = flat - flat.mean(axis=(0, 1))
    longest = 0.0
    for series, factor in ((deviation, 1.0), (deviation**2, 2.0)):
        # tau counts both directions of time, and white noise as 1.
        tau = autocorrelation_time(series).mean(axis=-1)
        longest = max(longest, factor * float(tau.max()) / 2)
    return longest


def _description(data: DataConfig, decided: dict[str, Any], saved: Saved) -> str:
    """How the data were read."""
    found, every = data.found, decided["save_every"]
    assert found is not None
    times = round(decided["length"] / every)
    unit = time_unit(found)
    step = f"{every:g}" + ("" if unit == "1" else f" {unit}")
    parts = [f"{times} times ('{data.dims['time']}'), {step} apart"]
    member = data.dims.get("member")
    parts.insert(0, f"{decided['members']} members ('{member}')" if member else "1 member")
    axes = SPACE[len(found.shape)]
    named: dict[Any, str] = dict(data.dims)
    sizes = [f"{n} '{named[a]}'" for a, n in zip(axes, found.shape, strict=True)]
    parts.append(f"places {' x '.join(sizes)}" if sizes else "no space")
    names = ", ".join(field.name for field in saved.fields)
    told = f", given {saved.given_names}" if saved.given else ""
    return f"data: {names}{told}: {'; '.join(parts)}"


def _choose_estimator(content: dict[str, Any], saved: Saved, old: dict[str, Any]) -> str:
    clusters = saved.numbers <= KGMM_NUMBERS and not saved.given
    chosen = old.get("score", {}).get("estimator")
    chosen = chosen or ("kgmm" if clusters else "gaussian")
    content["score"]["estimator"] = chosen
    other = (
        "; --estimator neural learns what a Gaussian cannot know" if chosen == "gaussian" else ""
    )
    return f"score: {chosen}{other}"


def _choose_lag(
    content: dict[str, Any],
    data: DataConfig,
    decided: dict[str, Any],
    old: dict[str, Any],
    saved: Saved,
) -> str:
    """Lag of an existing run, else some correlation times, as far as the data go."""
    every, found = float(decided["save_every"]), data.found
    assert found is not None
    unit = "" if time_unit(found) == "1" else f" {time_unit(found)}"
    known = old.get("response", {}).get("max_lag")
    if known is not None:
        content["response"]["max_lag"] = known
        return f"max lag: {known:g}{unit}, as before"
    with open_data(Path(data.store)) as raw:
        memory = correlation_time(arrange(raw, data), saved)
    times = round(float(decided["length"]) / every)
    # Error bars of few members need 8 stretches of 4 times the lag; those of many, some pairs.
    most = max(1, times // (32 if decided["members"] < ENOUGH_MEMBERS else 4))
    wanted = max(FEWEST_LAGS, int(np.ceil(CORRELATION_TIMES * memory)))
    lags = min(wanted, most)
    content["response"]["max_lag"] = float(f"{lags * every:.12g}")
    why = f"{CORRELATION_TIMES:g} correlation times of {memory * every:.3g}{unit}"
    if lags < wanted:
        why = f"as far as {times} times allow; {why} would be {wanted * every:g}{unit}"
    return f"max lag: {lags * every:g}{unit}, {why}; change with --max-lag"


def _told_perturbation(saved: Saved) -> str:
    kind = usual_perturbation(saved)
    if kind == "pixel":
        return (
            "perturbation: a pixel, mean over all places; change with --set response.perturbations"
        )
    return (
        f"perturbation: {kind}, as places differ; change with --set response.perturbations, or say "
        "--homogeneous if they do not"
    )


def _length(text: str, data: DataConfig) -> float:
    """A lag in units of the data's times: "50", or "30d" where these have a known unit."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*([A-Za-z]*)\s*", text)
    try:
        value = float(match[1]) if match else np.nan
    except ValueError:
        value = np.nan
    if match is None or not value > 0:
        raise UserError(f"--max-lag {text}: needs a positive number, perhaps with a unit, as 30d")
    if not match[2]:
        return value
    assert data.found is not None
    unit = time_unit(data.found)
    if match[2] not in SECONDS or unit not in SECONDS:
        units = f"in '{unit}'" if unit != "1" else "without a unit"
        raise UserError(f"--max-lag {text}: the times of the data are {units}; give a number")
    return float(f"{value * SECONDS[match[2]] / SECONDS[unit]:.12g}")
