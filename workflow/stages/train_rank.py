"""One MPI rank of the training: `python -m mpi4py -m workflow.stages.train_rank RUN_FOLDER`."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hpc.comm import RANKS_VARIABLE, Comm, MpiComm, SerialComm, Watchdog, require_world_size
from hpc.errors import MachineError
from hpc.files import atomic_write_bytes, atomic_write_json, file_crc
from hpc.gradients import FlatGradients
from hpc.ledger import Receipt
from workflow.interfaces import UserError
from workflow.runs import Run, load_run
from workflow.scores.batches import Batches, Held
from workflow.scores.devices import compute_device
from workflow.scores.training import Batch, Trainer, batch_loss, make_batch
from workflow.stages.data import load_snapshots, load_whitening

WATCHDOG_SECONDS = 600.0
"""A step that takes longer means that a peer is gone."""

KEEP = 3
"""Checkpoints kept."""

LOG_EVERY = 10
"""Steps between lines of score/log.jsonl."""


def main() -> int:
    """Train from the newest valid checkpoint to the last step; returns the exit code."""
    torch.set_num_threads(1)
    try:
        run = load_run(sys.argv[1], Path("."))
        expected = run.experiment.score.train.ranks
        asked = int(os.environ.get(RANKS_VARIABLE, "1"))
        comm: Comm = SerialComm() if expected == asked == 1 else MpiComm()
        require_world_size(comm, expected)
        train_rank(run, comm)
    except (MachineError, UserError) as error:
        print(f"gfdt: {error}", flush=True)
        return error.exit_code
    return 0


def train_rank(run: Run, comm: Comm) -> None:
    """The training loop of one rank; rank 0 writes checkpoints and the log."""
    config = run.experiment.score.train
    trainer = Trainer(
        load_snapshots(run, run.training),
        load_whitening(run),
        config=run.experiment.score,
        seed=run.experiment.seed,
        gradients=FlatGradients(comm),
        device=compute_device(comm.rank),
    )
    resume(run, trainer)
    test = _test_batch(run, trainer) if comm.rank == 0 else None
    if comm.rank == 0:
        _cut_log(run, trainer.step)
    comm.barrier()
    started = time.perf_counter()
    with Watchdog(WATCHDOG_SECONDS) as watchdog:
        while trainer.step < config.steps:
            loss = trainer.advance().loss
            watchdog.beat()
            last = trainer.step == config.steps
            save = last or trainer.step % config.save_every == 0
            if comm.rank == 0 and (save or trainer.step % LOG_EVERY == 0):
                line: dict[str, Any] = {"step": trainer.step, "loss": round(loss, 6)}
                if test is not None and save:
                    line["test_loss"] = round(_test_loss(trainer, test), 6)
                _log(run, line, seconds=time.perf_counter() - started)
            if comm.rank == 0 and save:
                save_checkpoint(run, trainer)
    comm.barrier()


def resume(run: Run, trainer: Trainer) -> None:
    """Go on from the newest checkpoint that is undamaged, if there is any."""
    ledger = run.ledger("train")
    damaged = {problem.block for problem in ledger.problems()}
    for block in sorted((b for b in ledger.done() if b.startswith("step-")), reverse=True):
        if block not in damaged and int(block[5:]) <= run.experiment.score.train.steps:
            path = run.folder / "score" / f"{block}.pt"
            trainer.restore(torch.load(path, map_location=trainer.device, weights_only=True))
            return


def save_checkpoint(run: Run, trainer: Trainer) -> None:
    """Write a checkpoint, its receipt, `latest.json`; forget the oldest."""
    block = f"step-{trainer.step:08d}"
    buffer = io.BytesIO()
    torch.save(trainer.state(), buffer)
    path = run.folder / "score" / f"{block}.pt"
    atomic_write_bytes(path, buffer.getvalue())
    ledger = run.ledger("train")
    ledger.record(Receipt(block, {f"score/{block}.pt": file_crc(path)}))
    latest = {"step": trainer.step, "file": path.name, "crc32c": file_crc(path)}
    atomic_write_json(run.folder / "score" / "latest.json", latest)
    for old in sorted(b for b in ledger.done() if b.startswith("step-"))[:-KEEP]:
        ledger.drop(old)
        (run.folder / "score" / f"{old}.pt").unlink(missing_ok=True)


def _test_batch(run: Run, trainer: Trainer) -> Batch:
    """What the loss is measured on: held-out members and noise, always the same."""
    pairs = run.experiment.score.train.global_batch // 2
    test = Batches(
        Held(load_snapshots(run, run.held_out)),
        seed=run.experiment.seed,
        pairs=pairs,
        share=range(pairs),
        device=trainer.device,
    )
    return make_batch(trainer.model, test.at(2**40))


def _test_loss(trainer: Trainer, test: Batch) -> float:
    """Loss of the averaged model on what was held out."""
    with torch.inference_mode():
        return float(batch_loss(trainer.averaged(), test))


def _log(run: Run, line: dict[str, Any], *, seconds: float) -> None:
    text = json.dumps(line)
    print(json.dumps({**line, "seconds": round(seconds, 1)}), flush=True)
    with (run.folder / "score" / "log.jsonl").open("a") as file:
        file.write(text + "\n")


def _cut_log(run: Run, step: int) -> None:
    """Drop lines beyond the checkpoint: they will be written again, the same."""
    path = run.folder / "score" / "log.jsonl"
    if path.is_file():
        lines = [text for text in path.read_text().splitlines() if text.endswith("}")]
        kept = [text for text in lines if json.loads(text)["step"] <= step]
        atomic_write_bytes(path, "".join(f"{text}\n" for text in kept).encode())


if __name__ == "__main__":
    sys.exit(main())
