"""Evaluate: every score estimator on every snapshot of the ensemble."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import torch

from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, write_block
from workflow.runs import Notify, Run, load_run
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import load_estimator, load_whitening, read_ensemble

BATCH = 256
"""Snapshots scored together."""


def evaluate(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `scores.zarr`, dims (estimator, member, time, *space)."""
    run.renew("evaluate", run.scores)
    _lay_out(run)
    blocks = {
        f"scores-g{group:04d}-{segment:05d}": (str(run.folder), group, segment)
        for group in range(len(run.groups))
        for segment in range(run.segments)
    }
    run_blocks(run, client, stage="evaluate", function=evaluate_block, blocks=blocks, notify=notify)
    consolidate(run.scores)


def _lay_out(run: Run) -> None:
    config, shape = run.experiment.ensemble, run.system.shape
    group = min(config.group, config.members)
    create_store(
        run.scores,
        variables=[
            Variable(
                f"score_{field.name}",
                ("estimator", "member", "time", *run.space),
                (len(run.learned), config.members, run.times, *shape),
                (1, group, run.chunk_times, *shape),
                config.dtype,
                {"long_name": f"gradient of log density along {field.name}", "units": "1"},
            )
            for field in run.system.fields
        ],
        coordinates=[
            Coordinate("estimator", np.array(run.learned), {"long_name": "score estimator"}),
            Coordinate("member", np.arange(config.members), {"long_name": "ensemble member"}),
            Coordinate(
                "time",
                (np.arange(run.times) + 1) * config.save_every,
                {"long_name": "model time since the end of the spin-up", "units": "1"},
            ),
        ],
        attrs={
            **run.attributes("scores on the ensemble"),
            "test_members": list(run.test_members),
        },
    )


def evaluate_block(folder: str, group: int, segment: int) -> Receipt:
    """Scores of one block; its receipt carries sums for means and errors."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members, times = run.groups[group], run.segment_times(segment)
    block = torch.from_numpy(read_ensemble(run, members, times))
    x = block.flatten(0, 1)
    files: dict[str, str] = {}
    scores: dict[str, torch.Tensor] = {}
    for index, name in enumerate(run.learned):
        estimator = load_estimator(run, name)
        with torch.inference_mode():
            scores[name] = torch.cat([estimator(part) for part in x.split(BATCH)])
        start = {"estimator": index, "member": members.start, "time": times.start}
        for f, field in enumerate(run.system.fields):
            values = scores[name].reshape(block.shape)[:, :, f].numpy()
            written = write_block(
                run.scores,
                f"score_{field.name}",
                start=start,
                values=np.ascontiguousarray(values[None], dtype=run.experiment.ensemble.dtype),
            )
            files |= {f"scores.zarr/{key}": crc for key, crc in written.items()}
    facts = {**facts_since(started), **_sums(run, x, scores, members)}
    return Receipt(f"scores-g{group:04d}-{segment:05d}", files, facts)


def _sums(
    run: Run, x: torch.Tensor, scores: dict[str, torch.Tensor], members: range
) -> dict[str, Any]:
    """Sums over the block: fields, scores, and squared score errors on held-out members.

    Errors are in whitened coordinates, where every mode counts the same.
    """
    facts: dict[str, Any] = {
        "count": x.numel(),
        "x_sum": float(x.double().sum()),
        "s_sum": {name: float(s.double().sum()) for name, s in scores.items()},
    }
    held = [m - members.start for m in members if m in run.test_members]
    if "exact" in scores and held:
        whitening = load_whitening(run)

        def pick(s: torch.Tensor) -> torch.Tensor:
            return s.reshape(len(members), -1, *s.shape[1:])[held].flatten(0, 1)

        exact = pick(scores["exact"])
        facts["exact_square"] = float(whitening.colour(exact).double().square().sum())
        facts["error_square"] = {
            name: float(whitening.colour(pick(s) - exact).double().square().sum())
            for name, s in scores.items()
        }
    return facts
