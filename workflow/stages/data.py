"""What several stages read: blocks of the ensemble, what was learned and what is asked."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import torch
from torch import Tensor

from hpc.errors import CorruptBlock, MachineError
from hpc.files import atomic_write_bytes, file_crc
from hpc.ledger import Receipt
from hpc.stores import read_block
from workflow.interfaces import Field, Part, ScoreEstimator, UserError
from workflow.loading import load_run
from workflow.quarantine import rows_of
from workflow.responses.channels import Channels
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import build_perturbations
from workflow.responses.probes import Statistics
from workflow.rivals import rivals_of
from workflow.runs import INFORMATION, Run
from workflow.scores.closed_form import Gaussian, gaussian_from
from workflow.scores.conditional import exact_score, gaussian_score
from workflow.scores.devices import compute_device
from workflow.scores.extrapolation import Extrapolated
from workflow.scores.kgmm import KGMM
from workflow.scores.neural import NeuralScore, WhitenedScore, with_parameters

SAMPLE = 512
"""Snapshots from which the constants are taken that channels are centred by."""


def load_snapshots(run: Run, part: Part, *, at_most: int | None = None) -> Tensor:
    """Saved snapshots of a part of the run, `(member * time, field + given, *shape)`.

    Member-major.

    Args:
        run: the run.
        part: members and times.
        at_most: bytes; of larger parts every second, third, ... time is taken.

    Raises:
        CorruptBlock: a block is missing or damaged.
        UserError: no member of the part is left.
    """
    members_left(run, part)
    every = 1 if at_most is None else max(1, math.ceil(part_bytes(run, part) / max(1, at_most)))
    groups = []
    for group in run.groups:
        blocks = []
        for segment in range(run.segments):
            times = run.segment_times(segment)
            inside = kept(run, part, group, times)
            if inside is not None:
                first = -(times.start + inside[1].start - part.times.start) % every
                blocks.append(read_snapshots(run, group, times)[inside][:, first::every])
        if blocks:
            groups.append(np.concatenate(blocks, axis=1).reshape(-1, *blocks[0].shape[2:]))
    return torch.from_numpy(np.concatenate(groups))


def part_bytes(run: Run, part: Part) -> int:
    """Size of the snapshots of a part of the run."""
    number = np.dtype(run.experiment.ensemble.dtype).itemsize
    return len(part.members) * len(part.times) * run.saved.all_numbers * number


def members_left(run: Run, part: Part) -> list[int]:
    """Members of a part that did not become non-finite.

    Raises:
        UserError: there are none.
    """
    members = [member for member in part.members if member not in run.quarantined]
    if not members:
        raise UserError(
            f"all of members {part.members.start} to {part.members.stop - 1} became non-finite; "
            "raise score.split.test or ensemble.members"
        )
    return members


def kept(
    run: Run, part: Part, members: range, times: range
) -> tuple[list[int] | slice, slice] | None:
    """Where a part lies in a block, as `Part.within`, without the members that are left out."""
    inside = part.within(members, times)
    out = rows_of(members, run.quarantined)
    if inside is None or not out:
        return inside
    rows = [row for row in range(*inside[0].indices(len(members))) if row not in out]
    return (rows, inside[1]) if rows else None


def load_sample(run: Run) -> tuple[Tensor, list[tuple[int, int]]]:
    """A few snapshots spread evenly over the training part, and their members and times.

    The training part, so that a longer run has the same sample.
    """
    lost, times = run.quarantined, run.training.times
    members = [member for member in run.training.members if member not in lost]
    count = min(SAMPLE, len(members) * len(times))
    at = np.linspace(0, len(times) - 1, count).round().astype(int)
    places = [(members[i % len(members)], times[int(t)]) for i, t in enumerate(at)]
    return read_places(run, places, partial(read_ensemble, run)), places


def read_places(
    run: Run, places: Sequence[tuple[int, int]], read: Callable[[range, range], np.ndarray]
) -> Tensor:
    """Snapshots `(place, field, *shape)` at some members and times.

    Args:
        run: the run.
        places: (member, time) of each.
        read: block `(member, time, field, *shape)` of the ensemble or of scores.
    """
    size = run.experiment.ensemble.group
    # A chunk is read and checked as a whole: once, not once for every snapshot in it.
    chunks: dict[tuple[int, int], list[int]] = {}
    for index, (member, time) in enumerate(places):
        chunks.setdefault((member // size, time // run.chunk_times), []).append(index)
    found: dict[int, np.ndarray] = {}
    for (group, segment), inside in chunks.items():
        members, times = run.groups[group], run.segment_times(segment)
        block = read(members, times)
        for index in inside:
            member, time = places[index]
            found[index] = block[member - members.start, time - times.start]
    return torch.from_numpy(np.stack([found[index] for index in range(len(places))]))


def read_ensemble(run: Run, members: range, times: range) -> np.ndarray:
    """Block of the fields of the ensemble, `(member, time, field, *shape)`.

    Raises:
        CorruptBlock: a chunk is missing or damaged.
    """
    return _read_fields(run, run.saved.fields, members, times)


def read_snapshots(run: Run, members: range, times: range) -> np.ndarray:
    """The same with what is given, `(member, time, field + given, *shape)`: what a score takes."""
    return _read_fields(run, run.saved.all_fields, members, times)


def _read_fields(run: Run, fields: Sequence[Field], members: range, times: range) -> np.ndarray:
    start = {"member": members.start, "time": times.start}
    size = {"member": len(members), "time": len(times)}
    blocks = [read_block(run.ensemble, field.name, start=start, size=size) for field in fields]
    return np.stack(blocks, axis=2)


def read_scores(run: Run, estimator: str, members: range, times: range) -> np.ndarray:
    """Block of the scores of one estimator, `(member, time, field, *shape)`.

    Raises:
        CorruptBlock: a chunk is missing or damaged.
    """
    index = run.learned.index(estimator)
    start = {"estimator": index, "member": members.start, "time": times.start}
    size = {"estimator": 1, "member": len(members), "time": len(times)}
    names = [f"score_{field.name}" for field in run.saved.fields]
    blocks = [read_block(run.scores, name, start=start, size=size)[0] for name in names]
    return np.stack(blocks, axis=2)


def save_tensors(run: Run, block: str, path: str, content: Any) -> None:
    """Write what training has found, and its receipt."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write_bytes(run.folder / path, buffer.getvalue())
    run.ledger("train").record(Receipt(block, {path: file_crc(run.folder / path)}))


def load_whitening(run: Run) -> Gaussian:
    """The Gaussian fitted to the training part.

    Raises:
        MachineError: not trained yet, or damaged.
    """
    content = load_checked(run, "train", "whitening", "score/whitening.pt")
    if INFORMATION in run.ledger("train").done():
        content |= load_checked(run, "train", INFORMATION, f"score/{INFORMATION}.pt")
    return gaussian_from(content, run.saved.shape)


def load_statistics(run: Run) -> Statistics:
    """Means, moments and ranges of the training part; errors as `load_whitening`."""
    return Statistics(**load_checked(run, "train", "statistics", "score/statistics.pt"))


def load_estimator(run: Run, name: str, *, device: str = "cpu") -> ScoreEstimator:
    """A score estimator of the run by name, kept while its files do not change.

    It takes snapshots with what is given, as `read_snapshots` has them.

    Args:
        run: the run.
        name: of the estimator.
        device: where a learned score computes; the others compute where their data are.

    Raises:
        MachineError: not trained yet, or damaged.
    """
    if name == "exact":
        return exact_score(run.system, run.rows, len(run.saved.fields))
    if name in run.experiment.score.rivals:
        run, name = rivals_of(run)[name], "neural"
    return _load_estimator(str(run.folder), name, device, run.ledger("train").stamp)


@lru_cache(maxsize=8)
def _load_estimator(folder: str, name: str, device: str, _stamp: int) -> ScoreEstimator:
    run = load_run(folder, Path("."))
    whitening = load_whitening(run)
    if name == "gaussian":
        return gaussian_score(whitening)
    block = run.trained_block(name)
    content = load_checked(run, "train", block, f"score/{block}.pt")
    if name == "kgmm":
        return KGMM.from_state(content)
    learned = NeuralScore(_model(run, content).to(device))
    return Extrapolated.of(learned) if run.experiment.score.extrapolate else learned


def scoring_device(run: Run, name: str) -> torch.device:
    """Where this worker computes the score of an estimator: a learned one on its GPU, if any.

    Closed forms cost little, and a user's own system may know no other device than the CPU.
    """
    device = compute_device(_worker_number())
    learned = name == "neural" or name in run.experiment.score.rivals
    return device if learned else torch.device("cpu")


def _worker_number() -> int:
    """Number of this worker among those of a machine, 0 outside of Dask."""
    try:
        name = str(distributed.get_worker().name)
    except ValueError:
        return 0
    return int(name) if name.isdigit() else 0


def load_model(run: Run, *, device: str = "cpu") -> WhitenedScore:
    """The learned score of whitened noised data; errors as `load_whitening`."""
    return _model(run, load_checked(run, "train", "neural", "score/neural.pt")).to(device)


def _model(run: Run, content: Mapping[str, Any]) -> WhitenedScore:
    model = WhitenedScore(load_whitening(run), run.experiment.score)
    return with_parameters(model, content["average"], linear=content.get("linear"))


def load_channels(run: Run) -> Channels:
    """What is watched and kicked; errors as `load_whitening`."""
    response = run.experiment.response
    system = run.system if run.experiment.system is not None else None
    return Channels.of(
        run.saved,
        build_observables(response.observables, run.saved, load_statistics(run)),
        build_perturbations(response.perturbations, run.saved, system=system, where=run.folder),
    )


def load_checked(run: Run, stage: str, block: str, path: str) -> dict[str, Any]:
    """Tensors of a file, if it is what its receipt says; no code in it is executed.

    Raises:
        MachineError: it has not been made.
        CorruptBlock: it is damaged.
    """
    ledger = run.ledger(stage)
    if block not in ledger.done():
        command = "train" if stage == "train" else "respond"
        raise MachineError(f"{run.folder} has no {path} yet; run: gfdt {command}")
    whole, receipt = run.folder / path, ledger.load(block)
    if not whole.is_file() or receipt.files.get(path) != file_crc(whole):
        raise CorruptBlock(f"{whole} is damaged")
    content: dict[str, Any] = load_tensors(whole)
    return content


def load_tensors(path: Path) -> Any:
    """Tensors of a file; what else may be in it is refused, and never executed.

    Raises:
        CorruptBlock: something else is in it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CorruptBlock(f"{path} holds something else than tensors") from error
