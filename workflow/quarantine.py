"""Members that became non-finite: which they are, and how they stay out of every sum.

A member that blows up is quarantined whole, from its first saved time to its last, whatever group
it was stepped in; the receipt of each of its blocks says so. Its numbers are NaN from there on in
the stores, and no statistic uses any of them. More than a few such members are no accident, and
leaving them out would be a selection: then the run is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpc.ledger import Ledger
from workflow.interfaces import State, UserError

FACT = "quarantined"
"""Fact of a receipt: by member, where it was lost: a saved time, or a round of pairs."""

SPINUP = -1
"""In place of a saved time for a member that was lost in the spin-up."""

ONE_IN = 10
"""One member in so many may be left out; one of a smaller ensemble, if two are left."""


def quarantined(ledger: Ledger) -> dict[int, int]:
    """Members left out by the receipts of a ledger, by number, and where each was lost first."""
    return dict(_read(ledger.folder, ledger.root, ledger.stamp))


@lru_cache(maxsize=8)
def _read(folder: Path, root: Path, _stamp: int) -> Mapping[int, int]:
    found: dict[int, int] = {}
    for receipt in Ledger(folder, root).having(FACT):
        merge(found, receipt.facts)
    return dict(sorted(found.items()))


def merge(found: dict[int, int], facts: Mapping[str, Any]) -> None:
    """Add the members that a receipt's facts leave out."""
    for member, where in facts.get(FACT, {}).items():
        found[int(member)] = min(where, found.get(int(member), where))


def fact(members: Mapping[int, int]) -> dict[str, Any]:
    """The fact of a receipt; none for no members."""
    named = {str(member): where for member, where in sorted(members.items())}
    return {FACT: named} if named else {}


def refuse_many(members: Mapping[int, int], *, of: int, where: str, cure: str) -> None:
    """Refuse a run of which too much would be left out.

    Args:
        members: those to leave out.
        of: members in all.
        where: when the first was lost, in words.
        cure: what to change.

    Raises:
        UserError: more than one in ten, or fewer than two would be left.
    """
    most = max(of // ONE_IN, int(of > 2))
    if len(members) > most:
        some = ", ".join(map(str, sorted(members)[:8])) + (", ..." if len(members) > 8 else "")
        raise UserError(
            f"member {some} became non-finite {where}; {len(members)} of {of} were lost and at "
            f"most {most} may be left out; {cure}"
        )


def lose(values: NDArray[Any], state: State, members: range, first: int) -> dict[int, int]:
    """Members of a block that became non-finite; their numbers are NaN from there on.

    Args:
        values: what is saved `(member, time, ...)`, changed in place.
        state: the state after the last saved time, `(member, ...)` each; changed in place.
        members: of the block.
        first: saved time of the first.

    Returns:
        By member, the first saved time that is not finite; that after the last one where only
        the state is not, and SPINUP where nothing is saved.
    """
    lost: dict[int, int] = {}
    finite = np.isfinite(values).all(axis=tuple(range(2, values.ndim)))
    for row, member in enumerate(members):
        if not finite[row].all():
            lost[member] = first + int(np.argmin(finite[row]))
        elif not all(bool(part[row].isfinite().all()) for part in state.values()):
            lost[member] = first + values.shape[1] if values.shape[1] else SPINUP
    forget(lost, values, state, members, first)
    return lost


def forget(
    lost: Mapping[int, int], values: NDArray[Any], state: State, members: range, first: int
) -> None:
    """Make the numbers of lost members NaN; arguments as `lose`."""
    for row, member in enumerate(members):
        if member in lost:
            values[row, max(0, lost[member] - first) :] = np.nan
            for part in state.values():
                if part.is_floating_point() or part.is_complex():
                    part[row] = float("nan")


def rows_of(members: range, lost: Mapping[int, int]) -> list[int]:
    """Rows of a block of members that are left out."""
    return [row for row, member in enumerate(members) if member in lost]


def stand_in(x: Tensor, rows: list[int]) -> Tensor:
    """The same with a sound row in the place of some rows, so that nothing else notices."""
    if not rows:
        return x
    sound = [row for row in range(len(x)) if row not in rows]
    x = x.clone()
    x[rows] = x[sound[0]].clone() if sound else 0
    return x
