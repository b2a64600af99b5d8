"""The numbers of a finished run as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from workflow.provenance import versions, wall_times
from workflow.quarantine import SPINUP, quarantined
from workflow.runs import Run
from workflow.scores.neural import WhitenedScore
from workflow.stages.budget import budget_of
from workflow.stages.data import load_whitening
from workflow.stages.nats import nats_of
from workflow.stages.overview import REFERENCES, compare, few_pairs, overview, pairs_of
from workflow.stages.quality import quality_of

DIGITS = 6
"""Significant digits of a number in `summary.json`."""


def summarise(
    run: Run,
    dataset: xr.Dataset,
    every: Mapping[str, xr.Dataset] | None = None,
    *,
    tails: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything `summary.json` holds, numbers rounded to six significant digits.

    `estimators` is about one perturbation and one observable, those of `dataset`: the first ones.
    `responses` has those of all in `every`, by observable; see `stages.overview`. `tails` are
    distances of the tails of samples from those of held-out data, by estimator and measure.
    `few_pairs` says in words from which lag on the direct response is not to be trusted.

    Lists over lags follow `lag` (model time), lists over shells follow `wavenumber` (waves per
    side). What is not known, or was measured at no lag, is None.
    """
    e = run.experiment
    errors, spread = score_errors(run)
    found = {
        "name": e.name,
        "system": e.system,
        "data": e.data.store if e.data else None,
        "perturbation": str(dataset.perturbation.values),
        "observable": str(dataset.observable.values),
        "sizes": sizes(run),
        "quarantined": left_out(run),
        "recalibrated": e.response.recalibrate,
        "lag": dataset.lag.values.tolist(),
        "wavenumber": _wavenumbers(dataset),
        "estimators": estimators(run, dataset),
        "responses": overview(every or {}),
        "few_pairs": few_pairs(every or {}),
        "score_error": errors,
        "score_error_standard_error": spread,
        "path_kl": (nats := nats_of(run)),
        "error_budget": budget_of(run, nats),
        "samples": quality_of(run),
        "tails": tails or {},
        "checks": checks(run),
        "wall_seconds": wall_times(run),
        "versions": versions(),
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def left_out(run: Run) -> list[dict[str, Any]]:
    """Members that became non-finite and are part of no number: when, and in which runs."""
    every = run.experiment.ensemble.save_every
    own = [
        {"member": member, "runs": "ensemble", "time": None if at == SPINUP else (at + 1) * every}
        for member, at in run.quarantined.items()
    ]
    paired = quarantined(run.ledger("direct"))
    return own + [{"member": member, "runs": "direct", "time": None} for member in paired]


def sizes(run: Run) -> dict[str, Any]:
    """How much was simulated, learned and stored."""
    e = run.experiment
    paired = "direct" in e.response.estimators
    stores = (run.ensemble, run.perturbed, run.scores, run.correlations, run.response)
    out: dict[str, Any] = {
        "members": e.ensemble.members,
        "length": e.ensemble.length,
        "saved_times": run.times,
        "grid": list(run.saved.shape),
        "pairs": sum(map(len, run.round_blocks)) * e.ensemble.members if paired else 0,
    }
    if "neural" in e.response.estimators:
        model = WhitenedScore(load_whitening(run), e.score)
        out["network_parameters"] = sum(p.numel() for p in model.parameters())
    out["bytes"] = {
        store.name: sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
        for store in stores
        if store.is_dir()
    }
    return out


def score_errors(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Relative squared error of each score on held-out members, whitened, against the exact one.

    Returns:
        It by estimator, and its standard error: the jackknife over blocks of the ensemble.
    """
    held = [receipt.facts for receipt in run.ledger("evaluate").having("exact_square")]
    if not held:
        return {}, {}
    whole = np.array([f["exact_square"] for f in held])
    values, errors = {}, {}
    for name in run.learned:
        parts = np.array([f["error_square"][name] for f in held])
        values[name] = float(parts.sum() / whole.sum())
        if len(held) > 1:
            without = (parts.sum() - parts) / (whole.sum() - whole)
            errors[name] = float(np.sqrt((len(held) - 1) * without.var()))
    return values, errors


def checks(run: Run) -> dict[str, Any]:
    """Lists of what the data and each estimator were tested by; empty where they were not."""
    if not run.experiment.response.checks or not run.checks.is_file():
        return {}
    found: dict[str, Any] = json.loads(run.checks.read_text())
    return found


def estimators(run: Run, dataset: xr.Dataset) -> dict[str, Any]:
    """Stein errors of each estimator, its distances from the references; pairs of `direct`."""
    out: dict[str, Any] = {}
    for name in map(str, dataset.estimator.values):
        numbers: dict[str, Any] = {"against": {}}
        if f"resampled_{name}" in dataset.attrs:
            numbers["resampled"] = dataset.attrs[f"resampled_{name}"]
        if name != "direct":
            numbers |= _stein(dataset.sel(estimator=name))
        else:
            numbers |= pairs_of(dataset)
        for reference in REFERENCES:
            if reference != name and reference in dataset.estimator.values:
                numbers["against"][reference] = compare(dataset, name, reference)
        out[name] = numbers
    return out


def _stein(one: xr.Dataset) -> dict[str, Any]:
    """Errors of the Stein identity, over all modes and by shell of |k|.

    `stein_error_<end>` is the root mean square of |M - 1| over all modes, `..._by_shell` the
    same over the modes of a shell, `stein_mean_by_shell` the mean of raw M_k there.
    """
    numbers: dict[str, Any] = {
        "stein_error_raw": float(one.stein_error),
        "stein_error_recalibrated": float(one.stein_error_recalibrated),
    }
    if "stein_error_standard_error" in one:  # not in responses of earlier versions
        numbers["stein_error_raw_standard_error"] = float(one.stein_error_standard_error)
    if "stein" not in one:
        return numbers
    numbers["unresolved_modes"] = int(one.unresolved.sum())
    if not _waves(one):
        return numbers
    raw = one.stein.values
    repaired = np.where(one.unresolved.values, raw, 1.0)
    shell = _shells(one)
    for end, stein in (("raw", raw), ("recalibrated", repaired)):
        square = _by_shell((stein - 1) ** 2, shell)
        numbers[f"stein_error_{end}_by_shell"] = np.sqrt(square).tolist()
    numbers["stein_mean_by_shell"] = _by_shell(raw, shell).tolist()
    return numbers


def _waves(dataset: xr.Dataset) -> list[str]:
    """Dimensions of wavenumbers of the Stein matrix of a single field."""
    if "stein" not in dataset or "number" in dataset.stein.dims:
        return []
    return [str(d) for d in dataset.stein.dims if d in ("ky", "kx")]


def _wavenumbers(dataset: xr.Dataset) -> list[int]:
    return list(range(int(_shells(dataset).max()) + 1)) if _waves(dataset) else []


def _shells(dataset: xr.Dataset) -> np.ndarray:
    """|k| rounded to whole waves per side, in the order of the Stein matrix."""
    waves = np.meshgrid(*[dataset[k].values for k in _waves(dataset)], indexing="ij")
    return np.asarray(np.rint(np.sqrt(sum(w.astype(float) ** 2 for w in waves))).astype(int))


def _by_shell(values: np.ndarray, shell: np.ndarray) -> np.ndarray:
    """Mean over the modes of every shell, `(shell)`; NaN where a shell has none."""
    total = np.bincount(shell.ravel(), weights=values.ravel())
    count = np.bincount(shell.ravel())
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rounded(value: Any) -> Any:
    """The same with short numbers; NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def as_json(value: Any, indent: str = "") -> str:
    """JSON text with a line for every key, and every list on one line, but for lists of tables."""
    inner = indent + "  "
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rows = [inner + json.dumps(one, allow_nan=False) for one in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    lines = [f"{inner}{json.dumps(str(key))}: {as_json(v, inner)}" for key, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
