"""One line of a report that can fail, judged by the scatter between independent units.

A deviation is told in standard errors of a normal variable: with few units (Student), or for the
worst of many numbers (Bonferroni), it is the normal deviate of the same false-alarm rate, so that
the same limit means the same for all checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from workflow.interfaces import UserError

Floats = NDArray[np.floating]

LIMIT = 4.0
"""Largest deviation that passes, in standard errors."""
NOT_FINITE = "some values are not finite"


@dataclass(frozen=True)
class Check:
    """One line of a report: what was found, what should be, and how far off it is.

    Attributes:
        name: the identity, in words or symbols.
        value: what the data say.
        standard_error: of value - expected, from the scatter between units.
        expected: what the identity says; from the data where it is a mean itself.
        z: deviation as a normal deviate; smaller than the plain ratio with few units, or for the
            worst of many numbers. Infinite where the values are not finite.
        passed: |z| <= 4; None where the data cannot tell, and `note` says why.
        note: what else a reader needs, in one line.
    """

    name: str
    value: float
    standard_error: float
    expected: float
    z: float
    passed: bool | None
    note: str = ""


def plain(check: Check) -> dict[str, Any]:
    """A check as plain data for JSON, which has neither NaN nor infinity: those become None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(check).items()
    }


def worst(
    name: str,
    values: Floats,
    expected: Floats | float,
    *,
    allowance: Floats | float = 0.0,
    note: str = "",
) -> Check:
    """The entry with the largest deviation from what is expected, judged as the worst of all.

    Means of units are taken as normal, so a unit should span several correlation times: means of
    squares over a single one are skewed, and raise a false alarm in a percent of cases.

    Args:
        name: of the check.
        values: per unit, `(unit, ...)`.
        expected: known, broadcast against one unit; or per unit, of the shape of `values`.
        allowance: known inaccuracy of the values, added in squares to the standard error.
        note: for the reader.

    Raises:
        UserError: fewer than 2 units.
    """
    units = len(values)
    if units < 2:
        raise UserError(f"{units} member or block of time: an error bar needs at least 2")
    values = values.reshape(units, -1)
    target = np.asarray(expected, dtype=np.float64)
    target = np.broadcast_to(
        target.reshape(units, -1) if target.size == values.size else target.reshape(1, -1),
        values.shape,
    )
    difference = values - target
    if not np.isfinite(difference).all():
        return Check(name, math.nan, math.nan, math.nan, math.inf, False, NOT_FINITE)
    deviation = difference.mean(0)
    error = np.sqrt(difference.var(0, ddof=1) / units + np.square(allowance).reshape(-1))
    # Without scatter there is no error bar. Such an entry is fixed by symmetry, to the rounding of
    # float32 data, and says nothing; or it is plainly wrong (a score that is zero).
    scale = max(float(np.abs(values).max()), float(np.abs(target).max()), 1e-300)
    known = error > 1e-7 * scale
    plain = np.where(np.abs(deviation) > 1e-5 * scale, math.inf, 0.0)
    ratio = np.where(known, np.abs(deviation) / np.where(known, error, 1.0), plain)
    at = int(ratio.argmax())
    return judge(
        name,
        float(values[:, at].mean()),
        float(target[:, at].mean()),
        error=float(error[at]) if known[at] else 0.0,
        dof=units - 1,
        tests=max(1, int(np.count_nonzero(known))),
        note=note,
    )


def jackknifed(
    name: str, statistic: Callable[[Floats], float], values: Floats, *, note: str = ""
) -> Check:
    """A function of unit means that should be zero, with the jackknife's error bar.

    Args:
        name: of the check.
        statistic: of means over units `(...)`.
        values: per unit, `(unit, ...)`.
        note: for the reader.
    """
    units = len(values)
    if not np.isfinite(values).all():
        return Check(name, math.nan, math.nan, 0.0, math.inf, False, NOT_FINITE)
    total = values.sum(0)
    left = np.array([statistic((total - value) / (units - 1)) for value in values])
    error = math.sqrt((units - 1) * float(left.var()))
    return judge(name, statistic(total / units), 0.0, error=error, dof=units - 1, note=note)


def judge(
    name: str,
    value: float,
    expected: float,
    *,
    error: float,
    dof: float,
    tests: int = 1,
    note: str = "",
) -> Check:
    """A value against what is expected of it.

    Args:
        name: of the check.
        value: found.
        expected: should be.
        error: standard error of the difference.
        dof: degrees of freedom behind the error.
        tests: of how many independent numbers this is the worst.
        note: for the reader.
    """
    deviation = value - expected
    if error > 0:
        chance = min(1.0, max(1e-300, 2 * tests * float(student.sf(abs(deviation) / error, dof))))
        z = math.copysign(float(norm.isf(chance / 2)), deviation)
    else:
        z = 0.0 if abs(deviation) <= 1e-9 * max(1.0, abs(expected)) else math.inf
    return Check(name, value, error, expected, z, abs(z) <= LIMIT, note)


def undecided(name: str, note: str) -> Check:
    """A check that these data cannot make, and why."""
    return Check(name, math.nan, math.nan, math.nan, math.nan, None, note)
