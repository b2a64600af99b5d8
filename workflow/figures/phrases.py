"""Numbers and lists as sentences hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROUNDING = 1e-12
"""What is smaller was not measured: it is how float64 rounds a 0."""

NARROW = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""


def number(value: Any, digits: int = 3) -> str:
    """A number in few digits; a dash for what is missing."""
    if value is None or value != value:
        return "–"
    return "< 1e-12" if 0 < abs(value) < ROUNDING else f"{value:.{digits}g}"


def with_error(value: Any, error: Any) -> str:
    """A number and its standard error, both to the last digit that the error leaves certain."""
    if value is None or value != value:
        return "–"
    if not error or error != error or not 1e-4 < abs(error) < 1e4:
        return number(value) if error is None else f"{number(value)} ± {number(error, 2)}"
    # Two digits of the error where it starts with 1 or 2, else one more would be noise.
    first = f"{error:.1e}"
    decimals = max(0, -int(first.split("e")[1]) + (first[0] in "12"))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def listed(names: Sequence[str]) -> str:
    """Names with an `and` before the last."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def percent(share: float) -> str:
    """A share in per cent, with more digits where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


def count(number: int, word: str) -> str:
    """So many of something."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def off_by(one: Mapping[str, Any]) -> str:
    """Distance from a reference in per cent of it, or what noise allows; empty if not known."""
    value, error = (one.get(f"relative_distance{end}") for end in ("", "_standard_error"))
    if value is not None:
        return f"{with_error(100 * value, None if error is None else 100 * error)}{NARROW}%"
    below = one.get("relative_distance_below")
    return "" if below is None else f"< {100 * below:.2g}{NARROW}%"
