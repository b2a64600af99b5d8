"""One MPI rank of the training: `python -m mpi4py -m workflow.stages.train_rank RUN_FOLDER`."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import torch

from hpc.comm import RANKS_VARIABLE, Comm, MpiComm, SerialComm, Watchdog, require_world_size
from hpc.errors import TRY_AGAIN, MachineError
from hpc.files import atomic_write_bytes, atomic_write_json, file_crc
from hpc.gradients import FlatGradients
from hpc.ledger import Receipt
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.runs import Run
from workflow.scores.devices import compute_device, is_out_of_memory
from workflow.scores.neural import with_parameters
from workflow.scores.settling import settled
from workflow.scores.training import Trainer
from workflow.scores.validation import Best
from workflow.stages.data import load_snapshots, save_tensors
from workflow.stages.streaming import training_source
from workflow.stages.train_pilot import find_units
from workflow.stages.watching import Watch

STOPPING = (signal.SIGTERM, signal.SIGUSR1)
"""What a batch system sends before it takes the nodes away."""

KEEP = 3
"""Checkpoints kept."""


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
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(
            "gfdt: out of memory; run again with more memory, or with a lower "
            "score.train.micro_batch, or a lower score.train.memory for snapshots",
            flush=True,
        )
        return TRY_AGAIN
    return 0


def train_rank(run: Run, comm: Comm, watchdog: Watchdog) -> None:
    """The training loop of one rank; rank 0 writes checkpoints and the log."""
    config = run.experiment.score.train
    before = FlatGradients(comm)
    _listen(before)
    source = training_source(run)
    whitening = find_units(run, comm, watchdog, before, source)
    if whitening is None:
        return
    gradients = FlatGradients(comm)
    _listen(gradients)
    gradients.asked |= before.asked
    trainer = Trainer(
        source if isinstance(source, torch.Tensor) else source.anew(),
        whitening,
        config=run.experiment.score,
        seed=run.experiment.seed,
        gradients=gradients,
        device=compute_device(comm.rank),
    )
    watch = Watch(run, comm, trainer)
    resume(run, trainer, watch)
    watch.cut()
    comm.barrier()
    watch.begin()
    while trainer.step < config.steps and not (watch.enough or gradients.stopping):
        step = trainer.advance()
        watchdog.beat()
        save = trainer.step == config.steps or trainer.step % config.save_every == 0
        watch.note(step, validate=save)
        if comm.rank == 0 and (save or gradients.stopping):
            save_checkpoint(run, trainer, watch)
    if comm.rank == 0:
        if trainer.step == config.steps or watch.enough:
            save_best(run, trainer, watch.best)
        else:
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


def save_best(run: Run, trainer: Trainer, best: Best) -> None:
    """Write the best parameters, their linear map settled on the training data."""
    seen = load_snapshots(run, run.training, at_most=SETTLING_BYTES)
    model = settled(with_parameters(trainer.model, best.parameters), seen)
    average = {name: value.cpu() for name, value in model.named_parameters()}
    content = {"step": best.step, "loss": best.loss, "average": average}
    if model.network.linear is not None:
        content["linear"] = model.network.linear.weight.cpu()
    save_tensors(run, "neural", "score/neural.pt", content)


SETTLING_BYTES = 256 * 2**20
"""Of snapshots read to settle the linear map."""


def resume(run: Run, trainer: Trainer, watch: Watch) -> None:
    """Go on from the newest checkpoint that is undamaged, if there is any.

    Raises:
        UserError: it is of another experiment.
    """
    ledger = run.ledger("train")
    damaged = {problem.block for problem in ledger.problems()}
    for block in sorted((b for b in ledger.done() if b.startswith("step-")), reverse=True):
        if block not in damaged and int(block[5:]) <= run.experiment.score.train.steps:
            path = run.folder / "score" / f"{block}.pt"
            state = torch.load(path, map_location=trainer.device, weights_only=True)
            if state.get("experiment") != run.key("train"):
                raise UserError(
                    f"{path} is a checkpoint of another experiment or version; remove the folder "
                    f"{path.parent} to train anew"
                )
            trainer.restore(state)
            watch.restore(state["watch"])
            return


def save_checkpoint(run: Run, trainer: Trainer, watch: Watch) -> None:
    """Write a checkpoint, its receipt, `latest.json`; forget the oldest."""
    block = f"step-{trainer.step:08d}"
    buffer = io.BytesIO()
    about = {"experiment": run.key("train"), "watch": watch.state()}
    torch.save(trainer.state() | about, buffer)
    path = run.folder / "score" / f"{block}.pt"
    atomic_write_bytes(path, buffer.getvalue())
    ledger = run.ledger("train")
    ledger.record(Receipt(block, {f"score/{block}.pt": file_crc(path)}))
    latest = {"step": trainer.step, "file": path.name, "crc32c": file_crc(path)}
    atomic_write_json(run.folder / "score" / "latest.json", latest)
    for old in sorted(b for b in ledger.done() if b.startswith("step-"))[:-KEEP]:
        ledger.drop(old)
        (run.folder / "score" / f"{old}.pt").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
