"""How far samples are from data that training has not seen, each distance with its floor."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpc.files import atomic_write_json, file_crc
from hpc.ledger import Receipt
from workflow.config import digest
from workflow.diffusion.distances import FEWEST, MEASURES, compare
from workflow.interfaces import UserError
from workflow.responses.correlation import one_thread
from workflow.runs import Notify, Run
from workflow.stages.data import load_model, members_left, read_ensemble, read_places
from workflow.stages.samples import Asked, read_samples

QUALITY = "quality"
"""Ledger, and file `quality.json`, of the distances from data."""

RESAMPLES = 100
"""Of the bootstrap of a distance."""


def judge(run: Run, many: tuple[Asked, ...], notify: Notify) -> None:
    """Write `quality.json`: distances of every setting from held-out data, each with its floor."""
    config = run.experiment.sample
    assert config is not None
    ledger, path = run.ledger(QUALITY), run.folder / f"{QUALITY}.json"
    key = digest([run.key("train"), [asdict(one) for one in many], config.members])
    if QUALITY in ledger.done() and ledger.load(QUALITY).facts["key"] == key:
        return
    data, unit = held_out(run, config.members)
    rows = []
    for setting, one in enumerate(many):
        notify(QUALITY, setting, len(many))
        rows.append(asdict(one) | {"distances": _distances(run, setting, data, unit)})
    atomic_write_json(path, {"settings": rows, "data": len(data), "unit": unit})
    ledger.record(Receipt(QUALITY, {path.name: file_crc(path)}, {"key": key}))
    notify(QUALITY, len(many), len(many))


@one_thread()
def _distances(run: Run, setting: int, data: Tensor, unit: int) -> dict[str, dict[str, float]]:
    """Of the samples of one setting, by measure."""
    samples = read_samples(run, run.comparison, setting=setting)
    whitening = load_model(run).whitening
    plain = compare(
        samples, data, {n: MEASURES[n] for n in measures(run)}, unit=unit, resamples=RESAMPLES
    )
    # On raw fields the large scales alone decide a sliced distance.
    white = compare(
        whitening.whiten(samples.double()),
        whitening.whiten(data.double()),
        {SLICED: MEASURES[SLICED]},
        unit=unit,
        resamples=RESAMPLES,
    )
    return {name: found.plain() for name, found in (white | plain).items()}


SLICED = "sliced_wasserstein"


def measures(run: Run) -> tuple[str, ...]:
    """Distances in physical units that suit the shape of the data."""
    return ("pixel_density", "spectrum") if run.saved.shape else ("pixel_density", "energy")


def held_out(run: Run, members: int) -> tuple[Tensor, int]:
    """Snapshots of the held-out part, and how many of them go together.

    Twice as many as there are samples, if there are so many, one half for the floor; evenly
    spaced in time, member by member. With many members each is a unit; of few, stretches of time.

    Raises:
        UserError: too few independent ones are left.
    """
    kept, times = members_left(run, run.held_out), run.held_out.times
    pieces = math.ceil(2 * FEWEST / len(kept))
    each = min(len(times), 2 * members // len(kept)) // pieces * pieces
    if each == 0:
        raise UserError(
            f"{len(kept) * len(times)} held-out snapshots for {members} samples; a distance needs "
            f"{2 * FEWEST} or more of them: raise sample.members or score.split.test"
        )
    picks = torch.linspace(0, len(times) - 1, each).round().long().tolist()
    places = [(member, times[pick]) for member in kept for pick in picks]
    return read_places(run, places, partial(read_ensemble, run)), each // pieces


def quality_of(run: Run) -> dict[str, Any]:
    """What `judge` has found; empty where nothing was compared."""
    path = run.folder / f"{QUALITY}.json"
    if run.experiment.sample is None or QUALITY not in run.ledger(QUALITY).done():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
