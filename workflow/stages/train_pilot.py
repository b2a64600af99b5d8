"""The pilot of a training: a short one that finds in which units noise and loss are measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import torch
from torch import Tensor

from hpc.comm import Comm, Watchdog
from hpc.gradients import FlatGradients
from workflow.runs import INFORMATION, Run
from workflow.scores.closed_form import Gaussian, SpectralGaussian
from workflow.scores.devices import compute_device
from workflow.scores.information import information_of, information_sums
from workflow.scores.training import Trainer
from workflow.stages.data import load_checked, load_whitening, save_tensors
from workflow.stages.streaming import Streamed

MEASURED = 2048
"""Snapshots that the Fisher information is measured on: to 2 % of each mode."""

TOLD = 100
"""Steps between lines of the log."""

CHECKPOINT = "pilot"
"""Block, and file in `score/`, of a pilot that was asked to stop."""


def find_units(
    run: Run,
    comm: Comm,
    watchdog: Watchdog,
    gradients: FlatGradients,
    source: Tensor | Streamed,
) -> Gaussian | None:
    """The whitening with its units of noise, measured where a pilot is asked for.

    What the pilot has learned is forgotten, as its units were wrong.

    Args:
        run: the run.
        comm: the ranks.
        watchdog: told of every step.
        gradients: of the pilot.
        source: training snapshots, none of which has been asked for yet.

    Returns:
        The same on all ranks; None when asked to stop: the same command goes on.
    """
    whitening = load_whitening(run)
    if not run.pilot_steps:
        return whitening
    assert isinstance(whitening, SpectralGaussian)
    # One rank looks for all: listings of a shared folder need not agree.
    information = comm.bcast(whitening.information)
    if information is None:
        whitening = replace(whitening, information=None)
        trainer = _trainer(run, comm, whitening, gradients, source)
        if comm.bcast(CHECKPOINT in run.ledger("train").done()):
            trainer.restore(load_checked(run, "train", CHECKPOINT, f"score/{CHECKPOINT}.pt"))
        if not _trained(run, trainer, comm, watchdog):
            if comm.rank == 0:
                save_tensors(run, CHECKPOINT, f"score/{CHECKPOINT}.pt", trainer.state())
                print(f"asked to stop: pilot saved at step {trainer.step}", flush=True)
            comm.barrier()
            return None
        information = _measured(trainer, comm, watchdog)
        if comm.rank == 0:
            content = {"information": information}
            save_tensors(run, INFORMATION, f"score/{INFORMATION}.pt", content)
        comm.barrier()
        if trainer.device.type == "cuda":
            del trainer
            torch.cuda.empty_cache()  # the training asks how much is free
    if comm.rank == 0:  # also what a pilot that was killed here has left
        run.ledger("train").drop(CHECKPOINT)
        (run.folder / "score" / f"{CHECKPOINT}.pt").unlink(missing_ok=True)
    return replace(whitening, information=information)


def _trainer(
    run: Run,
    comm: Comm,
    whitening: SpectralGaussian,
    gradients: FlatGradients,
    source: Tensor | Streamed,
) -> Trainer:
    score = run.experiment.score
    train = score.train.model_copy(update={"steps": run.pilot_steps})
    return Trainer(
        source,
        whitening,
        config=score.model_copy(update={"train": train}),
        seed=run.experiment.seed,
        gradients=gradients,
        device=compute_device(comm.rank),
    )


def _trained(run: Run, trainer: Trainer, comm: Comm, watchdog: Watchdog) -> bool:
    """Take the steps that are left; False when asked to stop."""
    steps, gradients = run.pilot_steps, trainer.gradients
    assert isinstance(gradients, FlatGradients)
    while trainer.step < steps:
        trainer.advance()
        watchdog.beat()
        if comm.rank == 0 and (trainer.step % TOLD == 0 or trainer.step == steps):
            print(json.dumps({"pilot": trainer.step, "of": steps}), flush=True)
        if gradients.stopping and trainer.step < steps:
            return False
    return True


def _measured(trainer: Trainer, comm: Comm, watchdog: Watchdog) -> Tensor:
    """J from the batches that would come next, each rank its share of them."""
    model, sums = trainer.averaged(), torch.zeros(())
    for step in range(trainer.step, trainer.step + math.ceil(MEASURED / trainer.pairs)):
        sums = sums + information_sums(model, trainer.batch(step))
        watchdog.beat()
    comm.allreduce_sum(sums)
    return information_of(sums, model)
