"""Simulate: the unperturbed ensemble, in chains of segments that can be killed at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import distributed
import numpy as np
import torch

from hpc.chains import Task, run_chains
from hpc.ledger import Receipt
from hpc.stores import consolidate
from workflow.dynamics.engines import stepper
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.interfaces import DTYPES, State
from workflow.loading import load_run
from workflow.quarantine import SPINUP, fact, forget, lose, merge, refuse_many
from workflow.runs import Notify, Run
from workflow.stages.blocks import facts_since
from workflow.stages.ensemble import lay_out, write_segment
from workflow.stages.restart import block_name, load_state, save_state


def simulate(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `ensemble.zarr`; blocks that have a receipt are not touched.

    Raises:
        UserError: too many members became non-finite.
        MachineError: a disk or a worker failed for good.
    """
    lay_out(run)
    ledger = run.ledger("simulate")
    lost = run.quarantined
    _refuse_many(run, lost)
    chains = [_blocks(run, group) for group in range(len(run.groups))]
    done = ledger.done()
    todo = [
        [
            Task(block_name(group, s), (str(run.folder), group, s))
            for s in chain
            if block_name(group, s) not in done
        ]
        for group, chain in enumerate(chains)
    ]
    total = sum(map(len, chains))
    finished = total - sum(map(len, todo))
    notify("simulate", finished, total)

    def on_receipt(receipt: Receipt) -> None:
        nonlocal finished
        ledger.record(receipt)
        merge(lost, receipt.facts)
        _refuse_many(run, lost)
        finished += 1
        notify("simulate", finished, total)

    if finished < total:
        run_chains(client(), simulate_segment, todo, on_receipt=on_receipt)
    consolidate(run.ensemble)


def _blocks(run: Run, _group: int) -> list[int]:
    return [*range(-run.spinup_segments, 0), *range(run.segments)]


def simulate_segment(folder: str, group: int, segment: int) -> Receipt:
    """Step one group of members through one segment; write its block and its restart state.

    Members that became non-finite, now or before, are left out; the receipt names them.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members = run.groups[group]
    with torch.inference_mode():
        state = _start(run, group, segment)
        state, snapshots = _integrate(run, members, segment, state)
        values = torch.stack(snapshots, dim=1).numpy() if snapshots else np.zeros((len(members), 0))
        first = run.segment_times(segment).start if segment >= 0 else 0
        before = _lost_before(run, group, segment)
        lost = lose(values, state, members, first) | before
        forget(lost, values, state, members, first)
    writing = time.perf_counter()
    files = write_segment(run, group, segment, values) if segment >= 0 else {}
    files |= save_state(run, block_name(group, segment), state)
    facts = facts_since(started) | {"writing": round(time.perf_counter() - writing, 3)}
    return Receipt(block_name(group, segment), files, facts | fact(lost))


def _lost_before(run: Run, group: int, segment: int) -> dict[int, int]:
    lost: dict[int, int] = {}
    if segment > -run.spinup_segments:
        merge(lost, run.ledger("simulate").load(block_name(group, segment - 1)).facts)
    return lost


def _start(run: Run, group: int, segment: int) -> State:
    members = run.groups[group]
    dtype = DTYPES[run.experiment.ensemble.dtype]
    if segment == -run.spinup_segments:
        stream = NoiseStream(
            run.experiment.seed,
            members,
            stream=INITIAL,
            shape=run.system.initial_shape,
            dtype=dtype,
        )
        return run.system.initial(stream.at(0))
    return load_state(run.folder, run.ledger("simulate"), block_name(group, segment - 1))


def _integrate(
    run: Run, members: range, segment: int, state: State
) -> tuple[State, list[torch.Tensor]]:
    e, steps, snapshots = run.experiment, _steps(run, segment), []
    way = stepper(
        e.ensemble.engine, run.system, state, seed=e.seed, members=members, stream=FORCING
    )
    if segment < 0:
        way.advance(steps.start, len(steps))
    for first in steps[:: run.steps_per_save] if segment >= 0 else ():
        way.advance(first, run.steps_per_save)
        snapshots.append(way.observe())
    return way.state(), snapshots


def _steps(run: Run, segment: int) -> range:
    """Time steps of a segment, counted from the start of the spin-up."""
    if segment >= 0:
        times = run.segment_times(segment)
        first = run.spinup_steps + times.start * run.steps_per_save
        return range(first, run.spinup_steps + times.stop * run.steps_per_save)
    length = run.chunk_times * run.steps_per_save
    first = (segment + run.spinup_segments) * length
    return range(first, min(first + length, run.spinup_steps))


def _refuse_many(run: Run, lost: Mapping[int, int]) -> None:
    if not lost:
        return
    first = min(lost.values())
    by, dt = (first + 1) * run.experiment.ensemble.save_every, run.system.dt
    refuse_many(
        lost,
        of=run.experiment.ensemble.members,
        where="in the spin-up" if first == SPINUP else f"by time {by:g}",
        cure=f"system.dt={dt:g} is too long, use {dt / 2:g} and another name",
    )
