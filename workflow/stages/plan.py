"""Plan: what a run will cost and write, before anything is done."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.interfaces import DTYPES
from workflow.runs import Run
from workflow.stages.pipeline import expected_blocks

PILOT_SECONDS = 0.5
"""How long a step is timed."""


def plan(run: Run) -> dict[str, Any]:
    """Sizes, files and core-hours of a run, the latter from timing a few steps here."""
    e, system = run.experiment, run.system
    snapshot = math.prod(system.shape) * np.dtype(e.ensemble.dtype).itemsize
    ensemble = e.ensemble.members * run.times * snapshot
    steps = run.spinup_steps + run.times * run.steps_per_save
    pairs = sum(map(len, run.round_blocks)) * e.ensemble.members
    direct_steps = 2 * pairs * run.direct_lags * run.steps_per_save
    if "direct" not in e.response.estimators:
        direct_steps = 0
    cost = _seconds_per_member_step(run)
    blocks = expected_blocks(run)
    files = len(run.groups) * run.segments * (1 + len(run.learned)) + blocks.get("direct", 0)
    return {
        "name": e.name,
        "folder": str(run.folder),
        "system": e.system["kind"] if e.system else e.data.store if e.data else "",
        "blocks": blocks,
        "chunk_files": files,
        "ensemble_bytes": ensemble,
        "scores_bytes": ensemble * len(run.learned),
        "training_memory_bytes_per_rank": ensemble,
        "microseconds_per_member_step": round(cost * 1e6, 2),
        "simulate_core_hours": round(cost * steps * e.ensemble.members / 3600, 3),
        "direct_core_hours": round(cost * direct_steps / 3600, 3),
    }


def _seconds_per_member_step(run: Run) -> float:
    members = list(run.groups[0])
    dtype = DTYPES[run.experiment.ensemble.dtype]
    torch.set_num_threads(1)
    initial = NoiseStream(0, members, stream=INITIAL, shape=run.system.initial_shape, dtype=dtype)
    noise = NoiseStream(0, members, stream=FORCING, shape=run.system.noise_shape, dtype=dtype)
    with torch.inference_mode():
        state = run.system.step(run.system.initial(initial.at(0)), noise.at(0))
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < PILOT_SECONDS:
            state = run.system.step(state, noise.at(steps))
            steps += 1
        return (time.perf_counter() - started) / steps / len(members)
