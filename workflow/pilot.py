"""A pilot: a few steps timed here, and how long a segment of simulation should be by them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from workflow.dynamics.engines import stepper
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.interfaces import DTYPES
from workflow.responses.correlation import one_thread
from workflow.runs import USUAL_CHUNK, Run
from workflow.scores.closed_form import fit_gaussian
from workflow.scores.training import Trainer

LONGEST = 120.0
"""Seconds of a segment: a worker that dies loses it, and a job must last for some."""

NOISE = 256
"""Snapshots of noise that a step of training is timed on."""

TRIFLE = 1e8
"""Numbers stepped, members times grid times steps, that take no pilot: seconds at most."""


@one_thread()
def seconds_per_member_step(run: Run, patience: float) -> float:
    """Mean time of a step of one member among those of a group, on one thread.

    Args:
        run: of a system; nothing is written.
        patience: seconds to go on for; one step is made in any case, after one that warms up.
    """
    e, members = run.experiment, list(run.groups[0])
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
    return _mean_time(partial(way.advance, 1, 1), patience) / len(members)


@one_thread()
def seconds_per_training_step(run: Run, patience: float) -> float:
    """Time of a step of training with its whole batch on one thread, on white noise.

    Args:
        run: whose score is learned step by step.
        patience: seconds to go on for; one step is made in any case, after one that warms up.
    """
    saved = run.saved
    x = torch.randn(NOISE, len(saved.all_fields), *saved.shape)
    whitening = fit_gaussian(x, homogeneous=saved.homogeneous, given=len(saved.given))
    trainer = Trainer(x, whitening, config=run.experiment.score, seed=run.experiment.seed)
    trainer.advance()
    return _mean_time(trainer.advance, patience)


def _mean_time(step: Callable[[], object], patience: float) -> float:
    started, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - started < patience:
        step()
        steps += 1
    return (time.perf_counter() - started) / steps


def chunk_for(run: Run, patience: float = 0.1) -> int:
    """Bytes of a chunk whose segment lasts at most `LONGEST` seconds here.

    The usual ones wherever they do, else halves of them; a segment is at least one saved interval.
    Larger ones would not be faster: memory of their size is not kept (`hpc.rank.ONE_THREAD`).
    """
    chunk, members = USUAL_CHUNK, len(run.groups[0])
    steps = run.spinup_steps + run.times * run.steps_per_save
    if steps * members * run.saved.numbers < TRIFLE:
        return chunk
    interval = seconds_per_member_step(run, patience) * members * run.steps_per_save
    whole = interval * run.chunk_times_of(chunk)
    while whole > LONGEST and run.chunk_times_of(chunk) > 1:
        chunk, whole = chunk // 2, whole / 2
    return chunk
