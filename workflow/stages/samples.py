"""Samples of the learned density, in blocks that depend on nothing but their members."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import torch
from torch import Tensor

from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, open_store, write_block
from workflow.checks import refuse_given
from workflow.config import digest
from workflow.diffusion.samplers import Problem
from workflow.diffusion.sampling import check_sampler, sample
from workflow.dynamics.noise import SAMPLES, SAMPLES_UNIFORM, NoiseStream, uniforms
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.runs import Notify, Run
from workflow.scores.neural import WhitenedScore
from workflow.stages import coordinates
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import load_model

NUMBERS = 1 << 18
"""Numbers of the samples of one block."""
MOST_MEMBERS = 1024
"""Samples of a block at most."""


@dataclass(frozen=True)
class Asked:
    """How samples are drawn.

    Attributes:
        sampler: name in `diffusion.sampling.SAMPLERS`.
        nfe: calls of the network for a sample, at most.
        eta: noise of the way back.
        stop: time at which a bridge is left; None for that of `schedules.stopping_time`.
        grid: of noise levels; None for "karras".
    """

    sampler: str
    nfe: int
    eta: float = 0.0
    stop: float | None = None
    grid: str | None = None


def ask(
    run: Run,
    sampler: str | None,
    nfe: int,
    *,
    eta: float = 0.0,
    stop: float | None = None,
    grid: str | None = None,
) -> Asked:
    """What was asked for, checked.

    Raises:
        UserError: nothing to sample from, or what does not go together.
    """
    if "neural" not in run.trained:
        raise UserError(
            f"score.estimator={run.experiment.score.estimator}: only a learned score can be "
            "sampled; set score.estimator: neural"
        )
    refuse_given(run.saved, "a sample")
    process = run.experiment.score.process
    name = check_sampler(process, sampler, nfe=nfe, eta=eta, stop=stop, grid=grid)
    return Asked(name, nfe, eta, stop, grid)


@dataclass(frozen=True)
class Wanted:
    """A store of samples.

    Attributes:
        store: name of the store.
        asked: of one setting for a store without a dimension for them, else of each.
        members: samples of each.
        several: whether the store has a dimension `setting`.
    """

    store: str
    asked: tuple[Asked, ...]
    members: int
    several: bool


def group_size(run: Run) -> int:
    """Samples of a block, fixed by the size of a snapshot."""
    return max(1, min(MOST_MEMBERS, NUMBERS // run.saved.numbers))


def complete_samples(
    run: Run, wanted: Wanted, client: Callable[[], distributed.Client], notify: Notify
) -> int:
    """Complete a store of samples; those of another network or setting are forgotten.

    A store that has more samples than wanted keeps them.

    Args:
        run: with a learned score.
        wanted: which samples.
        client: gives where to run; called only if there is work.
        notify: told of progress.

    Returns:
        Samples of each setting in the store.
    """
    stage = wanted.store.removesuffix(".zarr")
    key = digest([run.key("train"), [asdict(one) for one in wanted.asked]])
    ledger, size = run.ledger(stage), group_size(run)
    kept = [name for name in ledger.done() if name.startswith(f"{key}-")]
    if len(kept) < len(ledger.done()) or not (run.folder / wanted.store).exists():
        ledger.drop(*ledger.done())
        run.discard(run.folder / wanted.store)
        kept = []
    # Names tell how far a block goes: the last one of fewer samples is made again.
    members = max([wanted.members, *(int(name.rsplit("-", 1)[1]) for name in kept)])
    blocks = {}
    for setting in range(len(wanted.asked)):
        for first in range(0, members, size):
            stop = min(first + size, members)
            name = f"{key}-{setting:03d}-{first:07d}-{stop}"
            blocks[name] = (str(run.folder), wanted, name, setting, range(first, stop))
    for name in set(kept) - set(blocks):
        files = ledger.load(name).files
        ledger.drop(name)
        for file in files:  # a chunk that is not full cannot grow
            (run.folder / file).unlink(missing_ok=True)
    if set(blocks) - set(kept):
        run.ledger("frames").drop(wanted.store)  # it may grow
    _lay_out(run, wanted, members, size)
    run_blocks(run, client, stage=stage, function=samples_block, blocks=blocks, notify=notify)
    consolidate(run.folder / wanted.store)
    return members


def samples_block(folder: str, wanted: Wanted, block: str, setting: int, members: range) -> Receipt:
    """Samples of some members; drawn with the whole group, so that the last bits stay."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    group = range(members.start, members.start + group_size(run))
    model = load_model(run)
    white, calls = draw_samples(model, wanted.asked[setting], run.experiment.seed, group)
    values = model.whitening.unwhiten(white.double())[: len(members)]
    files: dict[str, str] = {}
    start = {"member": members.start} | ({"setting": setting} if wanted.several else {})
    for f, field in enumerate(run.saved.fields):
        part = np.ascontiguousarray(values[:, f].numpy(), dtype=run.experiment.ensemble.dtype)
        part = part[None] if wanted.several else part
        written = write_block(run.folder / wanted.store, field.name, start=start, values=part)
        files |= {f"{wanted.store}/{key}": crc for key, crc in written.items()}
    return Receipt(block, files, facts_since(started) | {"calls": calls})


def draw_samples(
    model: WhitenedScore, asked: Asked, seed: int, members: Sequence[int]
) -> tuple[Tensor, int]:
    """Whitened samples `(member, field, *shape)`, and the calls of the network they took.

    A sample is a function of (seed, member) and of how it is drawn.
    """
    shape = (len(model.whitening.mean), *model.whitening.shape)
    dtype = next(model.parameters()).dtype
    stream = NoiseStream(seed, members, stream=SAMPLES, shape=shape, dtype=dtype)

    def uniform(number: int, count: int) -> Tensor:
        drawn = uniforms(seed, members, step=number, stream=SAMPLES_UNIFORM, count=count)
        return torch.from_numpy(drawn)

    problem = Problem(
        model.process,
        model.answers,
        stream.at,
        asked.nfe,
        eta=asked.eta,
        stop=asked.stop,
        grid=asked.grid or "karras",
        equalise=model.equalise,
        uniforms=uniform,
    )
    return sample(asked.sampler, problem)


def read_samples(run: Run, path: Path, **where: int) -> Tensor:
    """Samples of a finished store, `(member, field, *shape)`; of one setting, where it has them."""
    store = open_store(path).isel(where)
    fields = [torch.from_numpy(store[field.name].values) for field in run.saved.fields]
    return torch.stack(fields, dim=1)


def _lay_out(run: Run, wanted: Wanted, members: int, size: int) -> None:
    shape, several = run.saved.shape, wanted.several
    lead = ("setting",) if several else ()
    labels = [f"{one.sampler} {one.nfe}" for one in wanted.asked]
    text = "number of the sample, apart from the members of the ensemble"
    found = [Coordinate("member", np.arange(members), {"long_name": text})]
    if several:
        found.append(coordinates.names("setting", labels, "sampler, and calls of the network"))
    create_store(
        run.folder / wanted.store,
        variables=[
            Variable(
                field.name,
                (*lead, "member", *run.space),
                (*(len(labels) for _ in lead), members, *shape),
                (*(1 for _ in lead), size, *shape),
                run.experiment.ensemble.dtype,
                {"long_name": field.long_name, "units": field.units},
            )
            for field in run.saved.fields
        ],
        coordinates=[*found, *coordinates.space(run)],
        attrs=_attributes(run, wanted),
        extendable=("member",),
    )


def _attributes(run: Run, wanted: Wanted) -> dict[str, Any]:
    every = [asdict(one) for one in wanted.asked]
    scheme = "Philox4x32 key=seed, counter=(number // 4, draw, stream, member)"
    about = {"seed": run.experiment.seed, "seed_scheme": scheme}
    how = {"settings": every} if wanted.several else {k: v for k, v in every[0].items() if v}
    return run.attributes("samples of the learned density") | about | how
