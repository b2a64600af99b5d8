"""Evaluate: every score estimator on every snapshot of the ensemble."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import torch

from hpc.errors import MachineError
from hpc.layout import Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, write_block
from workflow.interfaces import ScoreEstimator
from workflow.loading import load_run
from workflow.quarantine import rows_of, stand_in
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import (
    kept,
    load_estimator,
    load_whitening,
    read_snapshots,
    scoring_device,
)
from workflow.stages.growth import forget_partly_filled

LOGGER = logging.getLogger("workflow.evaluate")

TOGETHER = {"cpu": 2**14, "cuda": 2**22}
"""Numbers of the snapshots that are scored together: on a CPU their activations should stay in the
caches, a GPU should not wait for small batches (halved when out of memory)."""


def evaluate(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `scores.zarr`, dims (estimator, member, time, *space)."""
    run.renew("evaluate", run.scores)
    lay_out(run)
    blocks = {
        f"scores-g{group:04d}-{segment:05d}": (str(run.folder), group, segment)
        for group in range(len(run.groups))
        for segment in range(run.segments)
    }
    run_blocks(run, client, stage="evaluate", function=evaluate_block, blocks=blocks, notify=notify)
    consolidate(run.scores)


def lay_out(run: Run) -> None:
    """Create the empty store, or extend it."""
    config, shape = run.experiment.ensemble, run.saved.shape
    group = min(config.group, config.members)
    variable = f"score_{run.saved.fields[0].name}"
    forget_partly_filled(
        run, run.scores, run.ledger("evaluate"), variable=variable, blocks="scores-g"
    )
    create_store(
        run.scores,
        variables=[
            Variable(
                f"score_{field.name}",
                ("estimator", "member", "time", *run.space),
                (len(run.learned), config.members, run.times, *shape),
                (1, group, run.chunk_times, *shape),
                config.dtype,
                {
                    "long_name": f"score of {field.long_name}",
                    "units": "1" if field.units in ("1", "") else f"({field.units})-1",
                },
            )
            for field in run.saved.fields
        ],
        coordinates=[
            coordinates.names("estimator", run.learned, "score estimator"),
            coordinates.member(run),
            coordinates.time(run),
        ],
        attrs={
            **run.attributes("scores on the ensemble"),
            # What the scores have not seen in training.
            "test_members": list(run.held_out.members),
            "test_times": [run.held_out.times.start, run.held_out.times.stop],
        },
        extendable=("member", "time"),
    )


def evaluate_block(folder: str, group: int, segment: int) -> Receipt:
    """Scores of one block; its receipt carries sums for errors on what was held out."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members, times = run.groups[group], run.segment_times(segment)
    block = torch.from_numpy(read_snapshots(run, members, times))
    fields = len(run.saved.fields)
    out = rows_of(members, run.quarantined)
    x = stand_in(block, out).flatten(0, 1)
    files: dict[str, str] = {}
    scores: dict[str, torch.Tensor] = {}
    for index, name in enumerate(run.learned):
        device = scoring_device(run, name)
        estimator = load_estimator(run, name, device=str(device))
        scores[name] = _score(estimator, x, device).reshape(block[:, :, :fields].shape)
        with torch.inference_mode():
            scores[name][out] = torch.nan
        start = {"estimator": index, "member": members.start, "time": times.start}
        for f, field in enumerate(run.saved.fields):
            values = scores[name][:, :, f].numpy()
            written = write_block(
                run.scores,
                f"score_{field.name}",
                start=start,
                values=np.ascontiguousarray(values[None], dtype=run.experiment.ensemble.dtype),
            )
            files |= {f"scores.zarr/{key}": crc for key, crc in written.items()}
    inside = kept(run, run.held_out, members, times)
    facts = facts_since(started)
    if inside is not None:
        facts |= _errors(run, {name: s[inside].flatten(0, 1) for name, s in scores.items()})
    return Receipt(f"scores-g{group:04d}-{segment:05d}", files, facts)


def _score(estimator: ScoreEstimator, x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Scores of snapshots `(batch, field, *shape)`, a micro-batch at a time.

    Args:
        estimator: of the score.
        x: snapshots with what is given, on the CPU.
        device: where the estimator computes.
    """
    batch = max(1, TOGETHER[device.type] // x[0].numel())
    while True:
        try:
            with torch.no_grad():
                return torch.cat([estimator(part) for part in x.split(batch)])
        except torch.OutOfMemoryError:
            if batch == 1:
                raise MachineError("out of memory on the GPU with one snapshot") from None
            LOGGER.warning("out of memory: %d snapshots at a time instead of %d", batch // 2, batch)
            batch //= 2


def _errors(run: Run, scores: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Sums of squares of the exact score and of each one's distance from it, whitened.

    In whitened coordinates every mode counts the same.
    """
    if "exact" not in scores:
        return {}
    whitening = load_whitening(run)

    def square(s: torch.Tensor) -> float:
        return float(whitening.score_to_white(s).double().square().sum())

    return {
        "exact_square": square(scores["exact"]),
        "error_square": {name: square(s - scores["exact"]) for name, s in scores.items()},
    }
