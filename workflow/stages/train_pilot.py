"""The pilot of a training: a short one that finds in which units noise and loss are measured."""

from __future__ import annotations

import numpy as np

from hpc.comm import Comm, Watchdog
from hpc.gradients import FlatGradients
from workflow.runs import Run
from workflow.scores.devices import compute_device
from workflow.scores.information import has_units, measured_information
from workflow.scores.training import Trainer
from workflow.stages.data import INFORMATION, load_snapshots, load_whitening, save_tensors
from workflow.stages.streaming import training_source

MEASURED = 2048
"""Snapshots that the Fisher information is measured on: to 2 % of each mode."""

TOLD = 100
"""Steps between lines of the log."""


def run_pilot(run: Run, comm: Comm, watchdog: Watchdog, gradients: FlatGradients) -> bool:
    """Train for a while from the start and save the information found; False when asked to stop.

    What was learned is forgotten, as its units were wrong. A pilot that was killed begins again.
    """
    steps = run.pilot_steps
    if not steps or INFORMATION in run.ledger("train").done():
        return True
    score = run.experiment.score
    train = score.train.model_copy(update={"steps": steps})
    trainer = Trainer(
        training_source(run),
        load_whitening(run),
        config=score.model_copy(update={"train": train}),
        seed=run.experiment.seed,
        gradients=gradients,
        device=compute_device(comm.rank),
    )
    if not has_units(trainer.model):
        return True
    while trainer.step < steps:
        trainer.advance()
        watchdog.beat()
        if gradients.stopping:
            return False
        if comm.rank == 0 and (trainer.step % TOLD == 0 or trainer.step == steps):
            print(f"pilot: step {trainer.step} of {steps}", flush=True)
    comm.barrier()
    if comm.rank == 0:
        x = load_snapshots(run, run.training, at_most=MEASURED * _snapshot_bytes(run))
        found = measured_information(trainer.averaged(), x)
        save_tensors(run, INFORMATION, f"score/{INFORMATION}.pt", {"information": found})
    comm.barrier()
    return True


def _snapshot_bytes(run: Run) -> int:
    return run.saved.all_numbers * np.dtype(run.experiment.ensemble.dtype).itemsize
