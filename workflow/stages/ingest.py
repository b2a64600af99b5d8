"""Ingest: the user's own data as an ensemble store, chunked, checksummed, without gaps.

A copy costs less than one set of scores of the same data; in return every later stage reads
aligned chunks that are known to be complete, whatever the layout and the codecs of the original.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import distributed

from hpc.ledger import Receipt
from hpc.stores import consolidate
from workflow.loading import load_run
from workflow.recorded import read_data
from workflow.runs import Notify, Run
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.ensemble import lay_out, write_segment
from workflow.stages.restart import block_name


def ingest(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `ensemble.zarr` from the user's store.

    Raises:
        UserError: a value that is no number.
    """
    lay_out(run)
    blocks = {
        block_name(group, segment): (str(run.folder), group, segment)
        for group in range(len(run.groups))
        for segment in range(run.segments)
    }
    run_blocks(run, client, stage="simulate", function=ingest_segment, blocks=blocks, notify=notify)
    consolidate(run.ensemble)


def ingest_segment(folder: str, group: int, segment: int) -> Receipt:
    """Copy one block."""
    started = time.perf_counter()
    run = load_run(folder, Path("."))
    assert run.experiment.data is not None
    values = read_data(
        run.experiment.data, members=run.groups[group], times=run.segment_times(segment)
    )
    files = write_segment(run, group, segment, values)
    return Receipt(block_name(group, segment), files, facts_since(started))
