"""Faults of training for `reliability.py`."""

import tempfile
from pathlib import Path

import lost_training as training
import wrong_launches as launches


def _prepared(work, steps):
    return training.Bench.prepared(
        Path(tempfile.mkdtemp(prefix="training-", dir=work)), steps=steps
    )


def lost_ranks(work, seed, kills=20):
    """F10 under srun; the figure is the longest time from a fault to new steps."""
    bench = _prepared(work, 3000)
    faults = ["SIGKILL"] * kills + ["exception", "_exit(0)", "SIGTERM"]
    found = training.lost_ranks(bench, "F10", faults, before=tuple(training.ALLOCATION), seed=seed)
    ends = len(found["ends"])
    return {
        "tried": len(faults),
        "survived": ends,
        "figure": round(max(found["restarts"]), 1),
        "unit": f"s from a fault to new steps at most; ranks gone in {max(found['ends']):.1f} s",
    }


def preempted(work, seed):
    """F12; the figure is the time from the preemption to the checkpoint."""
    bench = _prepared(work, 3000)
    seen = training.preempted(bench)
    return {
        "tried": 1,
        "survived": int(seen.same and seen.requeues == 1),
        "figure": round(seen.saved, 1),
        "unit": "s from the preemption to the checkpoint",
    }


def other_ranks(work, seed):
    """F13; the figure is the largest difference of a parameter."""
    bench = _prepared(work, 300)
    difference = training.other_ranks(bench)
    return {
        "tried": 1,
        "survived": int(difference <= 1e-6),
        "figure": round(difference, 9),
        "unit": "largest difference of a parameter, 2 then 4 then 1 ranks",
    }


def wrong_launches(work, seed):
    """F14; the figure is the longest time to the error."""
    good, longest = 0, 0.0
    for wrong in launches.MATRIX.values():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            code, seconds, said = launches.try_wrong(Path(folder), wrong)
        good += code == 78 and wrong.advice in said
        longest = max(longest, seconds)
    return {
        "tried": len(launches.MATRIX),
        "survived": good,
        "figure": round(longest, 1),
        "unit": "s to the error at most",
    }


def clean_exits(work, seed, tries=100):
    """F17; the figure is the number of aborts."""
    bench = _prepared(work, 300)
    aborts = training.clean_exits(bench, tries)
    return {"tried": tries, "survived": tries - aborts, "figure": aborts, "unit": "aborts at exit"}


FAULTS = {
    "F10 training ranks lost": lost_ranks,
    "F12 training preempted": preempted,
    "F13 other numbers of ranks": other_ranks,
    "F14 ranks started wrongly": wrong_launches,
    "F17 trainings that end": clean_exits,
}
