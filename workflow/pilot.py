"""A pilot: a few steps timed here, and how long a segment of simulation should be by them."""

from __future__ import annotations

import time

import torch

from workflow.dynamics.engines import stepper
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.interfaces import DTYPES
from workflow.runs import USUAL_CHUNK, Run

LARGEST_CHUNK = 4 * USUAL_CHUNK
"""Bytes: what a worker or a rank still reads at once without thinking."""

SHORTEST, LONGEST = 2.0, 120.0
"""Seconds of a segment: what handing it out costs is 20 ms, and a worker that dies loses it."""

TRIFLE = 1e8
"""Numbers stepped, members times grid times steps, that take no pilot: seconds at most."""


def seconds_per_member_step(run: Run, patience: float) -> float:
    """Mean time of a step of one member among those of a group, on one thread.

    Args:
        run: of a system; nothing is written.
        patience: seconds to go on for; one step is made in any case, after one that warms up.
    """
    e, members = run.experiment, list(run.groups[0])
    torch.set_num_threads(1)
    shape, dtype = run.system.initial_shape, DTYPES[e.ensemble.dtype]
    start = NoiseStream(e.seed, members, stream=INITIAL, shape=shape, dtype=dtype).at(0)
    way = stepper(
        e.ensemble.engine,
        run.system,
        run.system.initial(start),
        seed=e.seed,
        members=members,
        stream=FORCING,
    )
    way.advance(0, 1)
    started, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - started < patience:
        way.advance(steps, 1)
        steps += 1
    return (time.perf_counter() - started) / steps / len(members)


def chunk_for(run: Run, patience: float = 0.1) -> int:
    """Bytes of a chunk whose segment lasts between `SHORTEST` and `LONGEST` seconds here.

    Powers of two times the usual 16 MiB, which stay wherever they can; at most 64 MiB, and a
    segment is at least one saved interval.
    """
    chunk, members = USUAL_CHUNK, len(run.groups[0])
    steps = run.spinup_steps + run.times * run.steps_per_save
    if steps * members * run.saved.numbers < TRIFLE:
        return chunk
    interval = seconds_per_member_step(run, patience) * members * run.steps_per_save
    whole = interval * run.chunk_times_of(chunk)
    while whole > LONGEST and run.chunk_times_of(chunk) > 1:
        chunk, whole = chunk // 2, whole / 2
    while whole < SHORTEST and chunk < LARGEST_CHUNK:
        chunk, whole = chunk * 2, whole * 2
    return chunk
