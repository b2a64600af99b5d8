"""What several stages read: snapshots of the ensemble and the fitted score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hpc.errors import CorruptBlock, MachineError
from hpc.files import file_crc
from hpc.stores import read_block
from workflow.interfaces import ScoreEstimator
from workflow.runs import Run
from workflow.scores.closed_form import ExactScore, SpectralGaussian
from workflow.scores.neural import NeuralScore, WhitenedScore, with_parameters


def load_snapshots(run: Run, members: Sequence[int]) -> Tensor:
    """All saved snapshots of some members, `(member * time, field, *shape)`, member-major.

    Raises:
        CorruptBlock: a block is missing or damaged.
    """
    parts = []
    for group in run.groups:
        chosen = [m - group[0] for m in group if m in members]
        if chosen:
            parts.append(read_ensemble(run, group, range(run.times))[chosen])
    x = torch.from_numpy(np.concatenate(parts))
    return x.flatten(0, 1).float()


def read_ensemble(run: Run, members: range, times: range) -> np.ndarray:
    """Block of the ensemble, `(member, time, field, *shape)`.

    Raises:
        CorruptBlock: a chunk is missing or damaged.
    """
    start = {"member": members.start, "time": times.start}
    size = {"member": len(members), "time": len(times)}
    fields = [
        read_block(run.ensemble, field.name, start=start, size=size) for field in run.system.fields
    ]
    return np.stack(fields, axis=2)


def load_whitening(run: Run) -> SpectralGaussian:
    """The Gaussian fitted to the training members.

    Raises:
        MachineError: not trained yet, or damaged.
    """
    content = _load_checked(run, "whitening", "score/whitening.pt")
    return SpectralGaussian(content["mean"], content["spectrum"], run.system.shape)


def load_estimator(run: Run, name: str) -> ScoreEstimator:
    """A score estimator of the run by name.

    Raises:
        MachineError: not trained yet, or damaged.
    """
    if name == "exact":
        return ExactScore(run.system)
    whitening = load_whitening(run)
    if name == "gaussian":
        return whitening
    step = run.experiment.score.train.steps
    block = f"step-{step:08d}"
    content = _load_checked(run, block, f"score/{block}.pt")
    model = WhitenedScore(whitening, run.experiment.score)
    return NeuralScore(with_parameters(model, content["average"]))


def _load_checked(run: Run, block: str, path: str) -> dict:
    ledger = run.ledger("train")
    if block not in ledger.done():
        raise MachineError(f"{run.folder} has no {path} yet; run: gfdt train")
    if ledger.load(block).files.get(path) != file_crc(run.folder / path):
        raise CorruptBlock(f"{run.folder / path} is damaged")
    content: dict = torch.load(run.folder / path, weights_only=True)
    return content
