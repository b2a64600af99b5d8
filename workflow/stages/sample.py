"""Sample: ensembles drawn from the learned density, and how good each way of drawing them is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import distributed
import torch
from torch import Tensor

from hpc.files import atomic_write_json, file_crc
from hpc.ledger import Receipt
from hpc.stores import open_store
from workflow.config import digest
from workflow.diffusion.distances import FEWEST, MEASURES, compare
from workflow.interfaces import UserError
from workflow.responses.correlation import one_thread
from workflow.runs import Notify, Run
from workflow.stages.data import load_model, load_snapshots
from workflow.stages.samples import Asked, Wanted, ask, complete_samples

QUALITY = "quality"
"""Ledger, and file `quality.json`, of the distances from data."""

Client = Callable[[], distributed.Client]


def sample_stage(run: Run, client: Client, notify: Notify) -> None:
    """Complete what the section `sample` asks for: samples, and the comparison of samplers.

    Raises:
        UserError: a sampler that does not go with the process.
    """
    config = run.experiment.sample
    if config is None:
        return
    one, many = asked_of(run)
    wanted = Wanted(run.samples.name, (one,), config.members, several=False)
    complete_samples(run, wanted, client, notify)
    if many:
        wanted = Wanted(run.comparison.name, many, config.members, several=True)
        complete_samples(run, wanted, client, notify)
        judge(run, many, notify)


def asked_of(run: Run) -> tuple[Asked, tuple[Asked, ...]]:
    """The samples that an experiment asks for: those to keep, and those to compare.

    Raises:
        UserError: as `samples.ask`.
    """
    config = run.experiment.sample
    assert config is not None
    how = config.model_dump(include={"eta", "stop", "grid"})
    one = ask(run, config.sampler, config.nfe, **how)
    if config.compare is None:
        return one, ()
    pairs = [(s, n) for s in config.compare.samplers for n in config.compare.nfe]
    return one, tuple(ask(run, sampler, nfe) for sampler, nfe in pairs)


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
    store = open_store(run.comparison).isel(setting=setting)
    fields = [torch.from_numpy(store[field.name].values) for field in run.saved.fields]
    samples = torch.stack(fields, dim=1)
    whitening = load_model(run).whitening
    plain = compare(samples, data, {n: MEASURES[n] for n in measures(run)}, unit=unit)
    # On raw fields the large scales alone decide a sliced distance.
    white = compare(
        whitening.whiten(samples.double()),
        whitening.whiten(data.double()),
        {SLICED: MEASURES[SLICED]},
        unit=unit,
    )
    return {name: found.plain() for name, found in (white | plain).items()}


SLICED = "sliced_wasserstein"


def measures(run: Run) -> tuple[str, ...]:
    """Distances in physical units that suit the shape of the data."""
    return ("pixel_density", "spectrum") if run.saved.shape else ("pixel_density", "energy")


def held_out(run: Run, members: int) -> tuple[Tensor, int]:
    """Snapshots of the held-out part, and how many of them go together.

    Twice as many as there are samples, if there are so many, one half for the floor; evenly
    spaced in time, member by member.

    Raises:
        UserError: too few independent ones.
    """
    x = load_snapshots(run, run.held_out)
    kept = [m for m in run.held_out.members if m not in run.quarantined]
    rows = len(x) // len(kept)
    every = max(1, len(x) // (2 * members))
    x = x.unflatten(0, (len(kept), rows))[:, ::every].flatten(0, 1)
    # With many members each is a unit; of few, stretches of time.
    pieces = 1 if len(kept) >= 2 * FEWEST else math.ceil(2 * FEWEST / len(kept))
    unit = len(x) // len(kept) // pieces
    if unit < 1:
        raise UserError(
            f"{len(x)} held-out snapshots to compare samples with; needs {2 * FEWEST} or more: "
            "lengthen ensemble.length or raise score.split.test"
        )
    return x, unit


def quality_of(run: Run) -> dict:
    """What `judge` has found; empty where nothing was compared."""
    path = run.folder / f"{QUALITY}.json"
    if run.experiment.sample is None or QUALITY not in run.ledger(QUALITY).done():
        return {}
    found: dict = json.loads(path.read_text())
    return found
