"""Sums of the response matrix: lagged products of all numbers per group and slab of time.

The sums of a slab depend on the slab alone, so a longer run only adds slabs. A worker holds the
sums of one slab, 8 bytes x lags x numbers^2, and a window of the data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import distributed
import numpy as np
import torch
from torch import Tensor

from hpc.errors import LayoutError
from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, read_block, write_block
from workflow.loading import load_run
from workflow.quarantine import rows_of
from workflow.responses.correlation import pair_counts
from workflow.responses.matrix_sums import MatrixSums, add_up
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import read_ensemble, read_scores

STAGE = "matrix"
SLAB_LAGS = 32
"""Longest lags in a slab: neighbours share few pairs, and there are few of them."""
SHORTEST_SLAB = 64
"""Saved times that a slab has at least."""
CHUNK_BYTES = 1 << 24
"""About the size of a chunk of sums, whole lags: what is reduced together."""
WINDOW_NUMBERS = 1 << 24
"""Numbers of a field that a worker reads at once, whole chunks of the ensemble."""


@dataclass(frozen=True)
class Asked:
    """Which matrix of a run.

    Attributes:
        estimator: whose scores.
        lags: longest lag, in saved samples.
    """

    estimator: str
    lags: int

    @property
    def prefix(self) -> str:
        """Beginning of the names of its blocks of sums."""
        return f"sums-{self.estimator}-{self.lags}-"


def sums_of(run: Run) -> Path:
    """Store of the sums per slab and group."""
    return run.folder / "matrix_sums.zarr"


def matrix_of(run: Run) -> Path:
    """Store of the matrix."""
    return run.folder / "matrix.zarr"


def slab_times(run: Run, asked: Asked) -> int:
    """Saved times of a whole slab, whole chunks; the length of the run does not matter."""
    chunk = run.chunk_times
    return math.ceil(max(SLAB_LAGS * asked.lags, SHORTEST_SLAB) / chunk) * chunk


def slabs(run: Run, asked: Asked) -> list[range]:
    """Saved times of every slab."""
    size = slab_times(run, asked)
    return [range(t, min(t + size, run.times)) for t in range(0, run.times, size)]


def window_times(run: Run, asked: Asked) -> int:
    """Saved times of a slab that are read together."""
    chunk = run.chunk_times
    together = max(1, WINDOW_NUMBERS // (len(run.groups[0]) * run.saved.numbers * chunk))
    return min(chunk * together, slab_times(run, asked))


def block_name(run: Run, asked: Asked, group: int, slab: int) -> str:
    """Name of a block; it holds how far the block sees, which a longer run may change."""
    stop = min(slabs(run, asked)[slab].stop + asked.lags, run.times)
    return f"{asked.prefix}g{group:04d}-{slab:05d}-until-{stop}"


def complete_sums(
    run: Run, asked: Asked, client: Callable[[], distributed.Client], notify: Notify
) -> None:
    """Complete `matrix_sums.zarr`; sums of another `Asked` are forgotten.

    Args:
        run: with ensemble and scores.
        asked: which matrix.
        client: gives where to run; called only if there is work.
        notify: told of progress.
    """
    run.renew(STAGE, sums_of(run), matrix_of(run))
    blocks = {
        block_name(run, asked, group, slab): (str(run.folder), asked, group, slab)
        for slab in range(len(slabs(run, asked)))
        for group in range(len(run.groups))
    }
    ledger = run.ledger(STAGE)
    stale = {block for block in ledger.done() if block.startswith("sums-")} - set(blocks)
    if any(not block.startswith(asked.prefix) for block in stale):
        _forget_all(run)
        stale = set()
    for block in sorted(stale):  # they saw the old end of a run that has become longer
        files = ledger.load(block).files
        ledger.drop(block)
        for name in files:
            (run.folder / name).unlink(missing_ok=True)
    try:
        _lay_out(run, asked)
    except LayoutError:
        _forget_all(run)
        _lay_out(run, asked)
    run_blocks(run, client, stage=STAGE, function=matrix_block, blocks=blocks, notify=notify)
    consolidate(sums_of(run))


def _forget_all(run: Run) -> None:
    for folder in (run.ledger(STAGE).folder, sums_of(run), matrix_of(run)):
        run.discard(folder)


def lags_together(run: Run, asked: Asked) -> int:
    """Lags of a chunk of sums."""
    return max(1, min(asked.lags + 1, CHUNK_BYTES // (8 * run.saved.numbers**2)))


def _lay_out(run: Run, asked: Asked) -> None:
    numbers, lags = run.saved.numbers, asked.lags + 1
    head, chunk = ("slab", "group", "lag"), (1, 1, lags_together(run, asked))
    size = (len(slabs(run, asked)), len(run.groups), lags)
    kinds = {
        "products": (("number", "number_kicked"), "sums of products of x(t + lag) and -score(t)"),
        "watched": (("number",), "sums of x(t + lag)"),
        "kicked": (("number_kicked",), "sums of -score(t)"),
    }
    create_store(
        sums_of(run),
        variables=[
            Variable(
                name,
                (*head, *dims),
                (*size, *(numbers for _ in dims)),
                (*chunk, *(numbers for _ in dims)),
                "float64",
                {"long_name": text},
            )
            for name, (dims, text) in kinds.items()
        ],
        coordinates=[
            Coordinate("slab", np.arange(size[0]), {"long_name": "slab of time"}),
            Coordinate("group", np.arange(size[1]), {"long_name": "group of members"}),
            coordinates.lag(run, asked.lags),
        ],
        attrs={
            **run.attributes("sums of lagged products per slab of time and group of members"),
            "estimator": asked.estimator,
            "times_of_a_slab": slab_times(run, asked),
        },
        extendable=("slab",),
    )


def matrix_block(folder: str, asked: Asked, group: int, slab: int) -> Receipt:
    """Sums of one group over one slab of time."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    found = add_up(_windows(run, asked, group, slab), max_lag=asked.lags)
    files: dict[str, str] = {}
    together = lags_together(run, asked)
    for name in ("products", "watched", "kicked"):
        values = getattr(found, name)
        for lag in range(0, asked.lags + 1, together):
            files |= write_block(
                sums_of(run),
                name,
                start={"slab": slab, "group": group, "lag": lag},
                values=values[None, None, lag : lag + together],
            )
    files = {f"{sums_of(run).name}/{key}": crc for key, crc in files.items()}
    return Receipt(block_name(run, asked, group, slab), files, facts_since(started))


def _windows(run: Run, asked: Asked, group: int, slab: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Snapshots and scores of a slab, `(member, time, number)`."""
    members, times, size = run.groups[group], slabs(run, asked)[slab], window_times(run, asked)
    kept = [row for row in range(len(members)) if row not in rows_of(members, run.quarantined)]
    for first in range(times.start, times.stop, size):
        stop = min(first + size, times.stop)
        x = read_ensemble(run, members, range(first, min(stop + asked.lags, run.times)))
        s = read_scores(run, asked.estimator, members, range(first, stop))
        yield torch.from_numpy(x[kept]).flatten(2), torch.from_numpy(s[kept]).flatten(2)


def units(run: Run, asked: Asked, lags: range) -> Iterator[MatrixSums]:
    """Stored sums of every unit at some lags; groups of which no member is left have none."""
    lost = run.quarantined
    members = {g: len(group) - len(rows_of(group, lost)) for g, group in enumerate(run.groups)}
    sound = [group for group, count in members.items() if count]
    for (slab, times), group in product(enumerate(slabs(run, asked)), sound):
        start = {"slab": slab, "group": group, "lag": lags.start}
        size = {"slab": 1, "group": 1, "lag": len(lags)}
        products, watched, kicked = (
            read_block(sums_of(run), name, start=start, size=size)[0, 0]
            for name in ("products", "watched", "kicked")
        )
        counts = pair_counts(times.start, times.stop, length=run.times, max_lag=asked.lags)
        pairs = members[group] * counts[lags.start : lags.stop].astype(np.float64)
        yield MatrixSums(products, watched, kicked, pairs)
