"""Train: fit the whitening, then let MPI ranks learn the score; both can be killed at any time."""

from __future__ import annotations

import io
import json

import torch

from hpc.files import atomic_write_bytes, file_crc
from hpc.launch import launch_ranks
from hpc.ledger import Receipt
from workflow.runs import Notify, Run
from workflow.scores.closed_form import SpectralGaussian
from workflow.stages.data import load_snapshots


def train(run: Run, notify: Notify) -> None:
    """Complete `score/`: the Gaussian fit, and the learned score where asked for.

    Raises:
        LaunchError: MPI ranks could not be started as asked.
        MachineError: they failed; run again to continue from the last checkpoint.
    """
    run.renew("train", run.folder / "score")
    ledger = run.ledger("train")
    if "whitening" not in ledger.done():
        snapshots = load_snapshots(run, range(run.test_members.start))
        ledger.record(_save_whitening(run, SpectralGaussian.fit(snapshots)))
    steps = run.experiment.score.train.steps
    if run.experiment.score.estimator != "neural":
        notify("train", 1, 1)
        return
    notify("train", 0, steps)
    if f"step-{steps:08d}" in ledger.done():
        notify("train", steps, steps)
        return

    def echo(line: str) -> None:
        if line.startswith("{"):
            notify("train", json.loads(line)["step"], steps)

    launch_ranks(
        "workflow.stages.train_rank",
        [str(run.folder.resolve())],
        ranks=run.experiment.score.train.ranks,
        log=run.folder / "logs" / "train.log",
        echo=echo,
    )
    notify("train", steps, steps)


def _save_whitening(run: Run, whitening: SpectralGaussian) -> Receipt:
    buffer = io.BytesIO()
    torch.save({"mean": whitening.mean, "spectrum": whitening.spectrum}, buffer)
    path = run.folder / "score" / "whitening.pt"
    atomic_write_bytes(path, buffer.getvalue())
    return Receipt("whitening", {"score/whitening.pt": file_crc(path)})
