"""One MPI rank of the training: `python -m mpi4py -m workflow.stages.train_rank RUN_FOLDER`."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
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

STOPPING = (signal.SIGTERM, signal.SIGUSR1)
"""What a batch system sends before it takes the nodes away."""

KEEP = 3
"""Checkpoints kept."""

LOG_EVERY = 10
"""Steps between lines of score/log.jsonl."""


def main() -> int:
    """Train from the newest valid checkpoint to the last step; returns the exit code.

    Asked to stop by a signal, all ranks stop after the same step, rank 0 saves it, and the code is
    0 as well: what is missing is seen in the ledger.
    """
    try:
        run = load_run(sys.argv[1], Path("."))
        torch.set_num_threads(run.experiment.cluster.train.threads)
        expected = run.experiment.score.train.ranks
        asked = int(os.environ.get(RANKS_VARIABLE, "1"))
        comm: Comm = SerialComm() if expected == asked == 1 else MpiComm()
        require_world_size(comm, expected)
        # A peer may be gone, or a file system stuck, at any time from here on.
        with Watchdog(run.experiment.faults.watchdog) as watchdog:
            train_rank(run, comm, watchdog)
    except (MachineError, UserError) as error:
        print(f"gfdt: {error}", flush=True)
        return error.exit_code
    return 0


def train_rank(run: Run, comm: Comm, watchdog: Watchdog) -> None:
    """The training loop of one rank; rank 0 writes checkpoints and the log."""
    config = run.experiment.score.train
    gradients = FlatGradients(comm)
    _listen(gradients)
    trainer = Trainer(
        load_snapshots(run, run.training),
        load_whitening(run),
        config=run.experiment.score,
        seed=run.experiment.seed,
        gradients=gradients,
        device=compute_device(comm.rank),
    )
    resume(run, trainer)
    test = _test_batch(run, trainer) if comm.rank == 0 else None
    if comm.rank == 0:
        _cut_log(run, trainer.step)
    comm.barrier()
    started = time.perf_counter()
    while trainer.step < config.steps and not gradients.stopping:
        loss = trainer.advance().loss
        watchdog.beat()
        save = trainer.step == config.steps or trainer.step % config.save_every == 0
        if comm.rank == 0 and (save or trainer.step % LOG_EVERY == 0):
            line: dict[str, Any] = {"step": trainer.step, "loss": round(loss, 6)}
            if test is not None and save:
                line["test_loss"] = round(_test_loss(trainer, test), 6)
            _log(run, line, seconds=time.perf_counter() - started)
        if comm.rank == 0 and (save or gradients.stopping):
            save_checkpoint(run, trainer)
    if gradients.stopping and comm.rank == 0:
        print(f"asked to stop: saved at step {trainer.step}", flush=True)
    comm.barrier()


def _listen(gradients: FlatGradients) -> None:
    """Turn a signal into a wish that all ranks hear of after the next step.

    Nothing is saved in a handler: it may have interrupted the optimizer.
    """

    def ask(_number: int, _frame: FrameType | None) -> None:
        gradients.asked = True

    for number in STOPPING:
        signal.signal(number, ask)


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
