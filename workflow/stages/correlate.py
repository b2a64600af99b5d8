"""Correlate: lagged products of every channel, summed per member and block of time.

The sums of a block depend on the block alone, so a longer run only adds blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import distributed
import numpy as np
import torch

from hpc.errors import LayoutError
from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, write_block
from workflow.loading import load_run
from workflow.quarantine import rows_of, stand_in
from workflow.responses.channels import Channels
from workflow.responses.sums import block_sums
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.constants import find_constants, load_constants
from workflow.stages.data import load_channels, load_estimator, read_ensemble, read_scores

STAGE = "respond"


def correlate(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `correlations.zarr`: sums of lagged products per member, block and estimator."""
    run.renew(STAGE, run.correlations, run.response)
    if not run.learned:
        return
    channels = load_channels(run)
    find_constants(run, channels, client, notify)
    blocks = {
        block_name(run, name, group, task): (str(run.folder), name, group, task)
        for name in run.learned
        for task in range(len(tasks(run)))
        for group in range(len(run.groups))
    }
    _forget_stale(run, set(blocks))
    try:
        _lay_out(run, channels)
    except LayoutError:
        # Sums of a run that has changed shape; nothing in them cannot be made again.
        run.discard(run.correlations)
        run.discard(run.ledger(STAGE).folder)
        _lay_out(run, channels)
    run_blocks(run, client, stage=STAGE, function=correlate_block, blocks=blocks, notify=notify)
    consolidate(run.correlations)


def tasks(run: Run) -> list[list[range]]:
    """Blocks of sums, as many together as one task makes."""
    size, blocks = run.sums_per_task, run.sum_blocks
    return [blocks[i : i + size] for i in range(0, len(blocks), size)]


def block_name(run: Run, estimator: str, group: int, task: int) -> str:
    """Name of a block; it holds how far the block sees, which a longer run may change."""
    stop = min(tasks(run)[task][-1].stop + run.lags, run.times)
    return f"sums-{estimator}-g{group:04d}-{task:05d}-until-{stop}"


def _forget_stale(run: Run, expected: set[str]) -> None:
    """Remove the sums at the old end of a run that has become longer."""
    ledger = run.ledger(STAGE)
    stale = {block for block in ledger.done() if block.startswith("sums-")} - expected
    for block in sorted(stale):
        files = ledger.load(block).files
        ledger.drop(block)
        for name in files:
            (run.folder / name).unlink(missing_ok=True)


def _lay_out(run: Run, channels: Channels) -> None:
    config, saved = run.experiment.ensemble, run.saved
    blocks, lags = len(run.sum_blocks), run.lags + 1
    group, together = min(config.group, config.members), run.sums_per_task
    head = ("estimator", "member", "block", "lag")
    sizes = (len(run.learned), config.members, blocks, lags)
    chunk = (1, group, together, lags)
    watched, kicks = channels.totals_a, channels.totals_b * channels.versions
    variables = [
        Variable(
            "totals",
            (*head, "watched", "kick"),
            (*sizes, watched, kicks),
            (*chunk, watched, kicks),
            "float64",
            {"long_name": "sums of lagged products of totals"},
        )
    ]
    if saved.maps:
        fields, maps = len(saved.fields), len(channels.of_place)
        variables.append(
            Variable(
                "maps",
                (*head, "observable", "field", *(f"d{n}" for n in run.space)),
                (*sizes, maps, fields, *saved.shape),
                # One observable a chunk: error bars are made one observable at a time.
                (*chunk, 1, fields, *saved.shape),
                "float64",
                {"long_name": "sums of lagged products, mean over the kicked place"},
            )
        )
    create_store(
        run.correlations,
        variables=variables,
        coordinates=[
            coordinates.names("estimator", run.learned, "score estimator"),
            coordinates.member(run),
            Coordinate("block", np.arange(blocks), {"long_name": "block of time"}),
            coordinates.lag(run, run.lags),
        ],
        attrs={
            **run.attributes("sums of lagged products per member and block"),
            "times_of_a_block": run.sum_times,
            "displacement_order": "as of an FFT: 0, 1, ..., -1",
        },
        extendable=("member", "block"),
    )


def correlate_block(folder: str, name: str, group: int, task: int) -> Receipt:
    """Lagged products of one estimator and group over the blocks of one task."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members, blocks = run.groups[group], tasks(run)[task]
    channels, constants = load_channels(run), load_constants(run, name)
    first, last = blocks[0].start, blocks[-1].stop
    x = torch.from_numpy(read_ensemble(run, members, range(first, min(last + run.lags, run.times))))
    s = torch.from_numpy(read_scores(run, name, members, range(first, last)))
    out = rows_of(members, run.quarantined)
    found = block_sums(
        channels,
        constants,
        stand_in(x, out),
        stand_in(s, out),
        load_estimator(run, name),
        blocks=blocks,
        max_lag=run.lags,
        seed=(run.experiment.seed, members.start, first),
    )
    files: dict[str, str] = {}
    at = {
        "estimator": run.learned.index(name),
        "member": members.start,
        "block": blocks[0].start // run.sum_times,
    }
    for variable, sums in found.items():
        sums[out] = np.nan
        files |= write_block(run.correlations, variable, start=at, values=sums[None])
    files = {f"correlations.zarr/{key}": crc for key, crc in files.items()}
    return Receipt(block_name(run, name, group, task), files, facts_since(started))
