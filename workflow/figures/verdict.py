"""Which response of a run to use, and how far to trust it: the box at the top of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workflow.figures import in_order
from workflow.figures.checked import DATA, NOT_GAUSSIAN, STEIN, failed_checks
from workflow.figures.phrases import off_by
from workflow.figures.words import REFERENCES

LEARNED = ("neural", "kgmm")

SMALL = 0.1
"""Share of the response up to which a significant distance is called small."""

CHANCE = 0.1
"""Share of the lags that may be off by more than three standard errors: some are, by chance."""

LEVELS = ("high", "fair", "low", "none")
"""Of trust, the best first."""


@dataclass(frozen=True)
class Verdict:
    """What to use and why.

    Attributes:
        estimator: whose response.
        level: one of `LEVELS`.
        reasons: sentences, the most important first.
    """

    estimator: str
    level: str
    reasons: tuple[str, ...]


def verdict(summary: Mapping[str, Any]) -> Verdict | None:
    """The best response of a run by what it was tested with; None where there is none.

    A learned score comes before the Gaussian one. High trust needs agreement with an independent
    reference and all checks passed; low is what fails by more than a small share; none, data that
    are not stationary.
    """
    estimators = summary.get("estimators") or {}
    candidates = [n for n in in_order(estimators) if n in LEARNED]
    candidates = candidates or [n for n in ("exact", "gaussian") if n in estimators]
    if not candidates:
        return None
    judged = [_judge(name, summary) for name in candidates]
    return min(judged, key=lambda one: LEVELS.index(one.level))


def _judge(name: str, summary: Mapping[str, Any]) -> Verdict:
    trend = failed_checks(summary, DATA)
    if trend:
        reason = f"The data are not stationary: {len(trend)} of their checks fail."
        return Verdict(name, "none", (reason, "A longer spin-up, or data without trend, may help."))
    against = summary["estimators"][name].get("against") or {}
    reference = next((r for r in REFERENCES if (against.get(r) or {}).get("compared_lags")), None)
    agrees, reasons = _compared(name, against, reference, summary)
    failed = _serious(name, summary)
    tested = any(one.get("passed") is not None for one in _checks(name, summary))
    if failed:
        reasons.append(f"It fails {len(failed)} of its checks, such as {failed[0]['name']}.")
    elif tested:
        reasons.append("It passes all checks of its score.")
    else:
        reasons.append("Its score was not tested.")
    if reference is None:
        level = "low" if failed else "fair"
    elif agrees:
        level = "fair" if failed or not tested else "high"
    else:
        far = against[reference].get("relative_distance")
        small = far is None or far < SMALL  # None: too small to be told from noise
        level = "fair" if small and not failed else "low"
    return Verdict(name, level, tuple(reasons))


def _compared(
    name: str, against: Mapping[str, Any], reference: str | None, summary: Mapping[str, Any]
) -> tuple[bool, list[str]]:
    """Whether a response agrees with the most independent reference, and how that is said."""
    if reference is None:
        return False, ["There is nothing independent to compare it with: no paired runs."]
    one = against[reference]
    compared, different = one["compared_lags"], len(one.get("different_lags") or [])
    agrees = different <= CHANCE * compared
    how = "agrees with" if agrees else "differs from"
    where = f"{'within' if agrees else 'by more than'} three standard errors"
    count = compared - different if agrees else different
    text = f"It {how} {REFERENCES[reference]}, {where} at {count} of {compared} lags"
    off = off_by(one)
    reasons = [f"{text}{f'; the distance is {off} of the response' if off else ''}."]
    gaussian = summary["estimators"].get("gaussian") or {}
    other = off_by((gaussian.get("against") or {}).get(reference) or {})
    if other and name != "gaussian":
        reasons.append(f"The Gaussian response is off by {other}.")
    finer = against.get("exact") or {}
    if reference != "exact" and agrees and finer.get("different_lags") and off_by(finer):
        reasons.append(f"From the exact score's response, known better, it is {off_by(finer)} off.")
    return agrees, reasons


def _checks(name: str, summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((summary.get("checks") or {}).get(name) or [])


def _serious(name: str, summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Failed checks that recalibration does not mend; those of a Gaussian score that matter."""
    failed = failed_checks(summary, name)
    if name == "gaussian":
        return [one for one in failed if str(one["name"]).startswith(NOT_GAUSSIAN)]
    if summary.get("recalibrated"):
        return [one for one in failed if not str(one["name"]).startswith(STEIN)]
    return failed
