"""States that a run is tested on: an even sample of the ensemble, cut into independent units."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc.errors import CorruptBlock
from hpc.files import atomic_write_bytes, file_crc
from hpc.ledger import Receipt
from workflow.loading import load_run
from workflow.quarantine import rows_of
from workflow.runs import Run
from workflow.stages.blocks import facts_since
from workflow.stages.data import load_tensors, load_whitening, read_snapshots

STAGE = "checks"

UNITS = 16
"""Units wanted at least: with fewer members each is cut in time, as far as it is long enough."""
MOST_UNITS = 128
"""Units at most; members are left out beyond it."""
NUMBERS = 1 << 21
"""Numbers of all states together: 2048 states of 32 x 32."""
STATES = (64, 8192)
"""Fewest and most states, whatever their size."""
TREND_BLOCKS = (8, 32)
"""Fewest and most blocks of time among which a trend is looked for."""


@dataclass(frozen=True)
class Unit:
    """A stretch of one member, several correlation times long.

    Attributes:
        member: of the ensemble.
        blocks: blocks of sums that it holds (`Run.sum_blocks`).
        times: saved times of the states, evenly spaced in it.
    """

    member: int
    blocks: range
    times: tuple[int, ...]


def units_of(run: Run) -> list[Unit]:
    """The units of a run, by member and time, with the same number of states each."""
    lost = run.quarantined
    sound = np.array([m for m in range(run.experiment.ensemble.members) if m not in lost])
    count = len(sound)
    picked = np.linspace(0, count - 1, min(count, MOST_UNITS)).round().astype(int)
    members = sound[np.unique(picked)]
    blocks = run.sum_blocks
    # A short block at the end is no unit of its own.
    whole = max(1, sum(len(block) == run.sum_times for block in blocks))
    cuts = min(whole, math.ceil(UNITS / len(members)))
    edges = [whole * cut // cuts for cut in range(cuts)] + [len(blocks)]
    stretches = [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    fewest, most = STATES
    states = min(most, max(fewest, NUMBERS // run.saved.all_numbers))
    spans = [range(blocks[s[0]].start, blocks[s[-1]].stop) for s in stretches]
    each = max(1, min(states // (len(members) * cuts), *map(len, spans), run.times))
    return [
        Unit(int(member), stretch, tuple(span[i * len(span) // each] for i in range(each)))
        for member in members
        for stretch, span in zip(stretches, spans, strict=True)
    ]


def units_in(run: Run, group: int) -> dict[int, Unit]:
    """Units of the members of one group, by their place among all."""
    return {u: one for u, one in enumerate(units_of(run)) if one.member in run.groups[group]}


def states_block(folder: str, group: int) -> Receipt:
    """States of the units of one group, and means over blocks of time of all its members.

    `states` `(unit, state, field + given, *shape)`; `mean` and `square`
    `(member, block, field + given)` are of the deviation from the mean of the training part, over
    blocks of equal length.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members, units = run.groups[group], units_in(run, group)
    few, many = TREND_BLOCKS
    count = min(run.times, max(few, min(many, len(run.sum_blocks))))
    length = run.times // count
    out = rows_of(members, run.quarantined)
    sound = [row for row in range(len(members)) if row not in out]
    sums = torch.zeros(2, len(sound), count, len(run.saved.all_fields), dtype=torch.float64)
    found: dict[int, list[Tensor]] = {u: [] for u in units}
    for segment in range(run.segments):
        times = run.segment_times(segment)
        x = torch.from_numpy(read_snapshots(run, members, times))
        for u, unit in units.items():
            picked = [t - times.start for t in unit.times if t in times]
            found[u].append(x[unit.member - members.start, picked])
        kept = torch.arange(times.start, times.stop)[: max(0, count * length - times.start)]
        sums.index_add_(2, kept // length, _moments(run, x[sound, : len(kept)]))
    content = {"mean": sums[0] / length, "square": sums[1] / length}
    if units:
        content["states"] = torch.stack([torch.cat(parts) for parts in found.values()])
    return save_part(run, f"states-g{group:04d}", content, started)


def _moments(run: Run, x: Tensor) -> Tensor:
    """Deviation from the mean and its square, mean over places, `(2, member, time, field)`."""
    whitening = load_whitening(run)
    mean = (whitening.joint or whitening).mean
    if mean.ndim == 1:
        mean = mean.reshape(-1, *[1] * len(run.saved.shape))
    y = x.double() - mean
    return torch.stack([part.flatten(3).mean(3) for part in (y[..., None], y[..., None].square())])


def save_part(run: Run, block: str, content: dict[str, Tensor], started: float) -> Receipt:
    """Write a part of the checks; its receipt."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    name = f"checks/{block}.pt"
    atomic_write_bytes(run.folder / name, buffer.getvalue())
    return Receipt(block, {name: file_crc(run.folder / name)}, facts_since(started))


def load_part(run: Run, block: str) -> dict[str, Tensor]:
    """A part of the checks.

    Raises:
        CorruptBlock: it is damaged.
    """
    path = run.folder / "checks" / f"{block}.pt"
    if run.ledger(STAGE).load(block).files.get(f"checks/{block}.pt") != file_crc(path):
        raise CorruptBlock(f"block {block} is damaged: {path}")
    return dict(_load(str(path), path.stat().st_mtime_ns))


@lru_cache(maxsize=2)
def _load(path: str, _stamp: int) -> dict[str, Any]:
    content: dict[str, Any] = load_tensors(Path(path))
    return content


def load_states(run: Run) -> Tensor:
    """States of all units, `(unit, state, field + given, *shape)`."""
    parts = [load_part(run, f"states-g{group:04d}") for group in range(len(run.groups))]
    return torch.cat([part["states"] for part in parts if "states" in part])
