"""FAULTS of training for `reliability.py`: each tries, and says how often and at what cost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from benchmarks import reliability_launches as launches
    from benchmarks import reliability_training as training
except ImportError:  # run from its own folder
    import reliability_launches as launches
    import reliability_training as training

Figures = dict[str, Any]


def _prepared(steps: int) -> training.Bench:
    return training.Bench.prepared(Path(tempfile.mkdtemp(prefix="reliability-")), steps=steps)


def lost_ranks(kills: int = 20) -> Figures:
    """F10 under srun; the figure is the longest time from a fault to new steps."""
    bench = _prepared(3000)
    faults = ["SIGKILL"] * kills + ["exception", "_exit(0)", "SIGTERM"]
    found = training.lost_ranks(bench, "F10", faults, before=tuple(training.ALLOCATION))
    shutil.rmtree(bench.folder)
    ends = len(found["ends"])
    return {
        "tried": len(faults),
        "survived": ends,
        "figure": round(max(found["restarts"]), 1),
        "unit": f"s from a fault to new steps at most; ranks gone in {max(found['ends']):.1f} s",
    }


def preempted() -> Figures:
    """F12; the figure is the time from the preemption to the checkpoint."""
    bench = _prepared(3000)
    seen = training.preempted(bench)
    shutil.rmtree(bench.folder)
    return {
        "tried": 1,
        "survived": int(seen.same and seen.requeues == 1),
        "figure": round(seen.saved, 1),
        "unit": "s from the preemption to the checkpoint",
    }


def other_ranks() -> Figures:
    """F13; the figure is the largest difference of a parameter."""
    bench = _prepared(300)
    difference = training.other_ranks(bench)
    shutil.rmtree(bench.folder)
    return {
        "tried": 1,
        "survived": int(difference <= 1e-6),
        "figure": difference,
        "unit": "largest difference of a parameter, 2 then 4 then 1 ranks",
    }


def wrong_launches() -> Figures:
    """F14; the figure is the longest time to the error."""
    good, longest = 0, 0.0
    for wrong in launches.MATRIX.values():
        with tempfile.TemporaryDirectory() as folder:
            code, seconds, said = launches.try_wrong(Path(folder), wrong)
        good += code == 78 and wrong.advice in said
        longest = max(longest, seconds)
    return {
        "tried": len(launches.MATRIX),
        "survived": good,
        "figure": round(longest, 1),
        "unit": "s to the error at most",
    }


def clean_exits(tries: int = 100) -> Figures:
    """F17; the figure is the number of aborts."""
    bench = _prepared(300)
    aborts = training.clean_exits(bench, tries)
    shutil.rmtree(bench.folder)
    return {"tried": tries, "survived": tries - aborts, "figure": aborts, "unit": "aborts at exit"}


FAULTS: dict[str, Callable[[], Figures]] = {
    "F10": lost_ranks,
    "F12": preempted,
    "F13": other_ranks,
    "F14": wrong_launches,
    "F17": clean_exits,
}
