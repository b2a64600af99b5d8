"""Headline numbers of a run, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy import fft

from workflow.responses.recalibration import stein_error
from workflow.runs import Run, versions, wall_times

REFERENCES = ("direct", "exact")
"""What responses are compared with."""


def summarise(run: Run, dataset: xr.Dataset) -> dict[str, Any]:
    """Everything `summary.json` holds."""
    e = run.experiment
    return {
        "name": e.name,
        "system": e.system,
        "members": e.ensemble.members,
        "length": e.ensemble.length,
        "pairs": sum(map(len, run.round_blocks)) * e.ensemble.members,
        "estimators": estimators(run, dataset),
        "score_error": score_errors(run),
        "wall_seconds": wall_times(run),
        "versions": versions(),
    }


def score_errors(run: Run) -> dict[str, float]:
    """Relative squared error of each score on held-out members, whitened, against the exact one."""
    ledger = run.ledger("evaluate")
    facts = [ledger.load(block).facts for block in sorted(ledger.done())]
    held = [f for f in facts if "exact_square" in f]
    total = sum(f["exact_square"] for f in held)
    if not held:
        return {}
    return {n: sum(f["error_square"][n] for f in held) / total for n in run.learned}


def estimators(run: Run, dataset: xr.Dataset) -> dict[str, Any]:
    """Stein errors of each estimator and its distances from the references."""
    space = len(run.space)
    out: dict[str, Any] = {}
    for name in map(str, dataset.estimator.values):
        one = dataset.sel(estimator=name, perturbation="pixel", observable="field")
        numbers: dict[str, Any] = {"against": {}}
        if name != "direct":
            axes = tuple(range(-space, 0))
            raw, final = (
                fft.ifftshift(one[v].values, axes=axes) for v in ("response_raw", "response")
            )
            numbers["stein_error_raw"] = float(stein_error(raw, space=space))
            numbers["stein_error_recalibrated"] = float(stein_error(final, space=space))
            numbers["unresolved_modes"] = int(one.unresolved.sum())
        for reference in REFERENCES:
            if reference != name and reference in dataset.estimator.values:
                numbers["against"][reference] = _compare(dataset, name, reference)
        out[name] = numbers
    return out


def _compare(dataset: xr.Dataset, name: str, reference: str) -> dict[str, Any]:
    """Errors of an estimator, per lag, and summed where the Gaussian one's is significant."""
    one = dataset.sel(estimator=name, reference=reference)
    names = ("l2", "linf", "l2_corrected")
    keys = [name + end for name in names for end in ("", "_standard_error")]
    numbers: dict[str, Any] = {
        key: [None if np.isnan(v) else round(float(v), 6) for v in one[key].values] for key in keys
    }
    if "gaussian" in dataset.estimator.values:
        gaussian = dataset.sel(estimator="gaussian", reference=reference)
        significant = gaussian.l2_squared > 3 * gaussian.l2_squared_standard_error
        significant = significant & (dataset.lag > 0)
        numbers["significant_lags"] = [float(t) for t in dataset.lag[significant].values]
        for key in ("l2", "l2_corrected"):
            numbers[f"summed_{key}"] = float(one[key].where(significant).sum())
            # Errors at neighbouring lags go together: their sum bounds the error of the sum.
            error = one[f"{key}_standard_error"].where(significant).sum()
            numbers[f"summed_{key}_standard_error"] = float(error)
    return numbers
