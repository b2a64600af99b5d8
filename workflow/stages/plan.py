"""Plan: what a run will cost and write, before anything is done."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from hpc import slurm
from hpc.errors import MachineError
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.pilot import seconds_per_member_step, seconds_per_training_step
from workflow.rivals import learned_of, rivals_of
from workflow.runs import Run
from workflow.stages.pipeline import expected_blocks
from workflow.stages.sample import asked_of

PILOT_SECONDS = 0.5
"""How long a step is timed."""


def plan(run: Run) -> dict[str, Any]:
    """Sizes, files, memory and core-hours of a run, the latter from timing some steps here."""
    e, saved = run.experiment, run.saved
    itemsize = np.dtype(e.ensemble.dtype).itemsize
    snapshots = e.ensemble.members * run.times * itemsize
    blocks = expected_blocks(run)
    found: dict[str, Any] = {
        "name": e.name,
        "folder": str(run.folder),
        "system": e.system["kind"] if e.system else e.data.store if e.data else "",
        "blocks": blocks,
        "chunk_files": chunk_files(run),
        "ensemble_bytes": snapshots * saved.all_numbers,
        "scores_bytes": snapshots * saved.numbers * len(run.learned),
        "samples_bytes": _samples(run) * saved.numbers * itemsize,
        "training_steps": {
            n: one.experiment.score.train.steps for n, one in learned_of(run).items()
        },
        **_memory(run),
    }
    training = {name: round(_training_hours(one), 3) for name, one in learned_of(run).items()}
    found["training_core_hours"] = training
    return found | (_cost(run, sum(training.values())) if e.system is not None else {})


MOST_FILES = 200_000
"""Chunks from which on a run needs --force: quotas of scratch systems begin at 10^6 files."""


def chunk_files(run: Run) -> int:
    """Files of data in the stores of a finished run."""
    blocks = expected_blocks(run)
    fields = len(run.saved.all_fields) + len(run.saved.fields) * len(run.learned)
    segments = len(run.groups) * run.segments * fields
    return segments + sum(blocks.get(stage, 0) for stage in ("respond", "direct"))


def _samples(run: Run) -> int:
    """Samples that a run and its rivals draw, those that compare samplers included."""
    return sum(
        one.experiment.sample.members * (1 + len(asked_of(one)[1]))
        for one in (run, *rivals_of(run).values())
        if one.experiment.sample is not None
    )


def refuse_many_files(run: Run) -> None:
    """Refuse to begin, or to extend, a run whose number of files breaks quotas.

    One that was begun with so many goes on: it was asked for.

    Raises:
        UserError: there would be more than `MOST_FILES`.
    """
    told = too_many_files(run)
    if told is None:
        return
    begun = (run.folder / "experiment.yaml").is_file()
    if not begun or chunk_files(load_run(run.folder, run.folder.parent)) < chunk_files(run):
        raise UserError(f"{told}, or give --force")


def too_many_files(run: Run) -> str | None:
    """A line if a run writes more than `MOST_FILES` chunks: how many, and what to change."""
    files, group = chunk_files(run), run.experiment.ensemble.group
    if files <= MOST_FILES:
        return None
    return (
        f"{run.experiment.name} writes {files} chunk files, more than {MOST_FILES}, and quotas "
        f"count files; raise ensemble.chunk={run.chunk // 2**10}KiB or "
        f"ensemble.group={group}"
    )


def _memory(run: Run) -> dict[str, int]:
    """Bytes of the sums, and what one worker, one rank and the driver hold at once, about.

    The sums of a block do not grow with the run, nor does what makes them.
    """
    e, saved = run.experiment, run.saved
    itemsize = np.dtype(e.ensemble.dtype).itemsize
    group = min(e.ensemble.group, e.ensemble.members)
    lags, maps = run.lags + 1, len(e.response.observables) if saved.maps else 0
    kicked = len(saved.fields) * saved.numbers if saved.maps else min(saved.numbers, 64) ** 2
    sums = 8 * lags * kicked * max(1, maps)
    times = min(run.times, run.sums_per_task * run.sum_times + run.lags)
    data = group * times * saved.numbers * itemsize
    units = e.ensemble.members * (1 if run.errors_by == "member" else len(run.sum_blocks))
    # Fields, scores, channels and their spectra in one; snapshots and scores in the other.
    task = 6 * data + group * run.sums_per_task * sums
    snapshots = len(run.training.members) * len(run.training.times) * saved.all_numbers * itemsize
    return {
        "correlations_bytes": len(run.learned) * e.ensemble.members * len(run.sum_blocks) * sums,
        "memory_bytes_per_worker": task,
        "memory_bytes_per_rank": snapshots,
        "memory_bytes_of_driver": 2 * len(run.learned) * units * sums // max(1, maps),
    }


def _training_hours(run: Run) -> float:
    """Core-hours of all steps and of the pilot on one thread; more ranks share them."""
    steps = run.experiment.score.train.steps + run.pilot_steps
    return steps * seconds_per_training_step(run, PILOT_SECONDS) / 3600


def _cost(run: Run, training: float) -> dict[str, float]:
    """Core-hours of stepping, node-hours of that and of training; analysis comes on top."""
    e = run.experiment
    steps = run.spinup_steps + run.times * run.steps_per_save
    pairs = sum(map(len, run.round_blocks)) * e.ensemble.members
    kicks = len(e.response.perturbations) if "direct" in e.response.estimators else 0
    direct_steps = 2 * pairs * run.direct_lags * run.steps_per_save * kicks
    cost = seconds_per_member_step(run, PILOT_SECONDS)
    simulate = cost * steps * e.ensemble.members / 3600
    direct = cost * direct_steps / 3600
    return {
        "microseconds_per_member_step": round(cost * 1e6, 2),
        "simulate_core_hours": round(simulate, 3),
        "direct_core_hours": round(direct, 3),
        "node_hours": round((simulate + direct + training) / node_cores(), 3),
    }


def node_cores() -> int:
    """Cores of a node of the cluster's first partition, or of this machine."""
    if slurm.available():
        with contextlib.suppress(MachineError):
            said = slurm.ask(["sinfo", "--noheader", "--format=%c"], patience=0.0).split()
            numbers = [int(word.rstrip("+")) for word in said if word.rstrip("+").isdigit()]
            if numbers:
                return numbers[0]
    return os.cpu_count() or 1
