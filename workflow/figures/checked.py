"""What failed checks say of a score, or of the data, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from workflow.figures import in_order
from workflow.figures.phrases import count, listed, number, with_error

DATA = "data"
"""Name of the checks that are of the data and not of an estimator."""

STEIN = "-<x s> = 1"
"""How checks begin that recalibration mends."""

NOT_GAUSSIAN = (
    "-<x^2 s>",
    "-<x^3 s>",
    "<F . s>",
    "Langevin keeps the kurtosis",
    "Langevin keeps the q",
)
"""How checks begin that the Gaussian score passes where the data are Gaussian only."""

Numbers = Mapping[str, Any]


def tested(summary: Numbers) -> list[str]:
    """Which scores, or data, fail a check, and what follows from that."""
    found = summary.get("checks") or {}
    told, passed = [], []
    for name in [*(n for n in (DATA,) if n in found), *in_order(set(found) - {DATA})]:
        judged = [one for one in found[name] if one.get("passed") is not None]
        failed = [one for one in judged if not one["passed"]]
        if failed:
            told.append(_failure(name, failed, len(judged), bool(summary.get("recalibrated"))))
        elif judged:
            passed.append(f"the {name}" if name == DATA else name)
    if passed:
        told.append(f"All checks of {listed(passed)} pass, within four standard errors.")
    return told


def failed_checks(summary: Numbers, name: str) -> list[Numbers]:
    """What an estimator, or the data, failed."""
    found = (summary.get("checks") or {}).get(name) or []
    return [one for one in found if one.get("passed") is False]


def _failure(name: str, failed: Sequence[Numbers], judged: int, recalibrated: bool) -> str:
    """What a failed check says of a score, or of the data."""
    worst = max(failed, key=lambda one: math.inf if one.get("z") is None else abs(one["z"]))
    reason, share = _off(worst), f"{len(failed)} of {count(judged, 'check')}"
    if name == DATA:
        return (
            f"Do not trust any of these responses, because the data are not stationary: {reason}. "
            "A longer spin-up, or data without their trend, would be."
        )
    if name == "exact":
        return (
            f"The exact score fails {share}, worst {reason}: the ensemble is not in the stationary "
            "state of the formula; it needs a longer spin-up or a shorter time step."
        )
    if name == "gaussian":
        proofs = [one for one in failed if str(one["name"]).startswith(NOT_GAUSSIAN)]
        if proofs:
            return (
                f"The data are not Gaussian: the Gaussian score fails {share}, such as "
                f"{_off(proofs[0])}. Its response is an approximation."
            )
    if recalibrated and all(str(one["name"]).startswith(STEIN) for one in failed):
        return f"The raw {name} score fails {reason}; recalibration mends that, at lag 0."
    return f"Do not trust {name} blindly, because it fails {share}, worst {reason}."


def _off(check: Numbers) -> str:
    """A failed check in numbers."""
    name, z = check["name"], check.get("z")
    if z is None or check.get("value") is None:
        note = check.get("note")
        return f"{name} ({note})" if note else str(name)
    value = with_error(check["value"], check.get("standard_error"))
    wanted = number(check.get("expected"))
    return f"{name} ({value} instead of {wanted}, {number(abs(z), 2)} standard errors)"
