"""One MPI rank of the training: `python -m mpi4py -m workflow.stages.train_rank RUN_FOLDER`."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

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
from workflow.scores.neural import WhitenedScore, with_parameters
from workflow.scores.settling import Moments, moments, settled_by, settling_parts
from workflow.scores.training import Trainer
from workflow.stages.data import load_checked, load_snapshots, save_tensors
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
    except (RuntimeError, MemoryError) as error:
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
    if not isinstance(source, torch.Tensor):
        source = source.anew()  # what the pilot read goes
    gradients = FlatGradients(comm)
    _listen(gradients)
    gradients.asked |= before.asked
    trainer = Trainer(
        source,
        whitening,
        config=run.experiment.score,
        seed=run.experiment.seed,
        gradients=gradients,
        device=compute_device(comm.rank),
    )
    watch = Watch(run, comm, trainer)
    resume(run, comm, trainer, watch)
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
    if trainer.step == config.steps or watch.enough:
        finish(run, trainer, watch, comm, watchdog)
    elif comm.rank == 0:
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


def finish(run: Run, trainer: Trainer, watch: Watch, comm: Comm, watchdog: Watchdog) -> None:
    """Settle the best parameters on the training data, judge them once more, and write them."""
    best = watch.best
    model = with_parameters(trainer.model, best.parameters)
    content: dict[str, Any] = {"step": best.step, "loss": best.loss}
    if model.network.linear is not None:
        model = settle(run, model, comm, watchdog)
        content["settled_loss"] = watch.judge(model).loss
    if comm.rank > 0:
        return
    content["average"] = {name: value.cpu() for name, value in model.named_parameters()}
    if model.network.linear is not None:
        content["linear"] = model.network.linear.weight.cpu()
    save_tensors(run, "neural", "score/neural.pt", content)


def settle(run: Run, model: WhitenedScore, comm: Comm, watchdog: Watchdog) -> WhitenedScore:
    """`settled` on the training data, each rank its share of them."""
    seen = load_snapshots(run, run.training, at_most=SETTLING_BYTES)
    parts, sums = settling_parts(model, seen), Moments.none(model)
    for number in range(comm.rank, len(parts), comm.size):
        sums = sums + moments(model, parts[number], number)
        watchdog.beat()
    numbers = sums.flat()
    comm.allreduce_sum(numbers)
    return settled_by(model, sums.refilled(numbers))


SETTLING_BYTES = 256 * 2**20
"""Of snapshots read to settle the linear map."""


def resume(run: Run, comm: Comm, trainer: Trainer, watch: Watch) -> None:
    """Go on from the newest checkpoint that is undamaged, if there is any.

    Raises:
        UserError: it is of another experiment.
        MachineError: this rank cannot read it.
    """
    # One rank looks for all: listings of a shared folder need not agree.
    block = comm.bcast(_newest(run) if comm.rank == 0 else None)
    if block is None:
        return
    path = run.folder / "score" / f"{block}.pt"
    state = load_checked(run, "train", block, f"score/{block}.pt")
    if state.get("experiment") != _experiment(run):
        raise UserError(
            f"{path} is a checkpoint of another experiment or version; remove the folder "
            f"{path.parent} to train anew"
        )
    trainer.restore(state)
    watch.restore(state["watch"])


def _newest(run: Run) -> str | None:
    """Block of the newest checkpoint that is undamaged."""
    ledger, steps = run.ledger("train"), run.experiment.score.train.steps
    damaged = {problem.block for problem in ledger.problems()}
    blocks = [b for b in ledger.done() - damaged if b.startswith("step-")]
    return max((b for b in blocks if int(b.removeprefix("step-")) <= steps), default=None)


def _experiment(run: Run) -> str:
    """What a checkpoint can be gone on from by."""
    return f"{run.key('train')}-{DRAWS}"


DRAWS = 2
"""Version of the random numbers of a step: a training goes on with those it began with."""


def save_checkpoint(run: Run, trainer: Trainer, watch: Watch) -> None:
    """Write a checkpoint, its receipt, `latest.json`; forget the oldest."""
    block = f"step-{trainer.step:08d}"
    buffer = io.BytesIO()
    about = {"experiment": _experiment(run), "watch": watch.state()}
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
