"""Constants of the correlations: what channels are centred by, and the recalibration of a score.

Both come from the training part of the run. Centring changes no expectation, only the noise, so a
sample serves. The recalibration is needed beforehand only for directions that depend on the state
and for fields too large to kick every number of: error bars then hold it fixed.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import distributed
import torch
from torch import Tensor

from hpc.files import atomic_write_bytes, file_crc
from hpc.ledger import Receipt
from workflow.loading import load_run
from workflow.responses.channels import Channels
from workflow.responses.correlation import one_thread
from workflow.responses.stein import LinearRecalibration, lag_zero_matrix
from workflow.responses.sums import Constants
from workflow.runs import Notify, Run
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import (
    kept,
    load_checked,
    load_estimator,
    load_sample,
    read_ensemble,
    read_places,
    read_scores,
)

STAGE = "constants"
BATCH = 1024
"""Snapshots whose products are summed together."""


def find_constants(
    run: Run, channels: Channels, client: Callable[[], distributed.Client], notify: Notify
) -> None:
    """Complete `constants/`."""
    run.renew(STAGE, run.folder / STAGE)
    ledger = run.ledger(STAGE)
    wanted = [name for name in run.learned if _block(name) not in ledger.done()]
    if channels.versions == 2:
        blocks = {
            f"stein-{name}-g{group:04d}": (str(run.folder), name, group)
            for name in wanted
            for group in range(len(run.groups))
        }
        run_blocks(run, client, stage=STAGE, function=stein_block, blocks=blocks, notify=notify)
    for name in wanted:
        _save(run, _block(name), _constants(run, name, channels))


def load_constants(run: Run, name: str) -> Constants:
    """The constants of one estimator; errors as `load_checked`."""
    return _load(str(run.folder), name, run.ledger(STAGE).stamp, run.saved.shape)


@lru_cache(maxsize=8)
def _load(folder: str, name: str, _stamp: int, shape: tuple[int, ...]) -> Constants:
    content = _content(load_run(folder, Path(".")), _block(name))
    known = {name: content.pop(name) for name in ("inverse", "stein") if name in content}
    repaired = LinearRecalibration(**known, shape=shape) if known else None
    return Constants(**content, recalibration=repaired)


def _content(run: Run, block: str) -> dict[str, Tensor]:
    return load_checked(run, STAGE, block, f"constants/{block}.pt")


def _block(name: str) -> str:
    return f"constants-{name}"


@one_thread()
def _constants(run: Run, name: str, channels: Channels) -> dict[str, Tensor]:
    """Content of a file of constants; on one thread, as the last bits depend on their number."""
    x, places = load_sample(run)
    s = read_places(run, places, partial(read_scores, run, name))
    repair = None
    if channels.versions == 2:
        stein, saved = _stein(run, name), run.saved
        repair = LinearRecalibration.fit(stein, maps=saved.maps, shape=saved.shape)
    score = load_estimator(run, name)
    found = Constants.of(channels, x, s, score, recalibration=repair)
    names = ("totals_a", "totals_b", "maps_a", "maps_b")
    content = {n: getattr(found, n) for n in names}
    return content if repair is None else content | repair.state()


def _stein(run: Run, name: str) -> Tensor:
    """Lag-zero matrix of the training part, from its sums per group."""
    total, count = torch.zeros(()), 0
    for group in range(len(run.groups)):
        content = _content(run, f"stein-{name}-g{group:04d}")
        total, count = total + content["sum"], count + int(content["count"])
    return total / count


def stein_block(folder: str, name: str, group: int) -> Receipt:
    """Lag-zero sums of one group over the training part."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members = run.groups[group]
    sums: Tensor = torch.zeros(())
    count = 0
    mean = load_sample(run)[0].double().mean(0)
    if run.saved.maps:
        mean = mean.mean(tuple(range(1, mean.ndim)), keepdim=True)
    for segment in range(run.segments):
        times = run.segment_times(segment)
        inside = kept(run, run.training, members, times)
        if inside is None:
            continue
        x = torch.from_numpy(read_ensemble(run, members, times))[inside].flatten(0, 1)
        s = torch.from_numpy(read_scores(run, name, members, times))[inside].flatten(0, 1)
        for a, b in zip(x.split(BATCH), s.split(BATCH), strict=True):
            sums = sums + lag_zero_matrix(a.double() - mean, b.double(), maps=run.saved.maps)
            count += len(a)
    block = f"stein-{name}-g{group:04d}"
    files = _write(run, block, {"sum": sums, "count": torch.tensor(count)})
    return Receipt(block, files, facts_since(started))


def _write(run: Run, block: str, content: dict[str, Tensor]) -> dict[str, str]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = run.folder / "constants" / f"{block}.pt"
    atomic_write_bytes(path, buffer.getvalue())
    return {f"constants/{block}.pt": file_crc(path)}


def _save(run: Run, block: str, content: dict[str, Tensor]) -> None:
    run.ledger(STAGE).record(Receipt(block, _write(run, block, content)))
