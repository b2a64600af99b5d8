"""Direct: the truth to compare with, from paired runs kicked up and down with common noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import distributed
import numpy as np
import torch

from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, write_block
from workflow.dynamics.noise import DIRECT, NoiseStream
from workflow.interfaces import DTYPES
from workflow.responses.direct import paired_response
from workflow.runs import Notify, Run, load_run
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.restart import block_name, load_state


def direct(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `perturbed.zarr`: response per member, averaged over the pairs of a block.

    A round is one pair for every member, started from one of the restart states of the ensemble,
    kicked at a pixel of its own, with noise of its own.
    """
    run.renew("direct", run.perturbed)
    _lay_out(run)
    blocks = {
        f"direct-g{group:04d}-{block:04d}": (str(run.folder), group, block)
        for block in range(len(run.round_blocks))
        for group in range(len(run.groups))
    }
    run_blocks(run, client, stage="direct", function=direct_block, blocks=blocks, notify=notify)
    consolidate(run.perturbed)


def _lay_out(run: Run) -> None:
    config, shape = run.experiment.ensemble, run.system.shape
    lags, rounds = run.direct_lags + 1, run.round_blocks
    create_store(
        run.perturbed,
        variables=[
            Variable(
                "response",
                ("block", "member", "lag", *(f"d{n}" for n in run.space)),
                (len(rounds), config.members, lags, *shape),
                (1, min(config.group, config.members), lags, *shape),
                "float32",
                {"long_name": "response per member, mean over the pairs of a block", "units": "1"},
            )
        ],
        coordinates=[
            Coordinate("block", np.arange(len(rounds)), {"long_name": "block of pairs"}),
            Coordinate("member", np.arange(config.members), {"long_name": "ensemble member"}),
            Coordinate("lag", np.arange(lags) * config.save_every, {"long_name": "lag"}),
        ],
        attrs={
            **run.attributes("responses of paired perturbed runs"),
            "rounds_per_block": [len(r) for r in rounds],
            "displacement_order": "as of an FFT: 0, 1, ..., -1",
        },
    )


def direct_block(folder: str, group: int, block: int) -> Receipt:
    """Paired runs of one group through the rounds of one block."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    rounds = run.round_blocks[block]
    total = torch.zeros(())
    with torch.inference_mode():
        for number in rounds:
            total = total + _round(run, group, number).double()
    values = (total / len(rounds)).float().numpy()[None]
    start = {"block": block, "member": run.groups[group].start}
    written = write_block(run.perturbed, "response", start=start, values=values)
    files = {f"perturbed.zarr/{name}": crc for name, crc in written.items()}
    return Receipt(f"direct-g{group:04d}-{block:04d}", files, facts_since(started))


def _round(run: Run, group: int, number: int) -> torch.Tensor:
    """Response per member of one round, `(member, lag, *shape)`."""
    members, e = run.groups[group], run.experiment
    starts = [block_name(group, s) for s in range(-1, run.segments)]
    state = load_state(run.folder, run.ledger("simulate"), starts[-1 - number % len(starts)])
    noise = NoiseStream(
        e.seed,
        members,
        stream=DIRECT + number,
        shape=run.system.noise_shape,
        dtype=DTYPES[e.ensemble.dtype],
    )
    pixels = math.prod(run.system.shape)
    kicked = [_pixel(e.seed, member, number, pixels) for member in members]
    response = paired_response(
        run.system,
        state,
        normals=noise.at,
        amplitude=e.direct.amplitude,
        kicked=torch.tensor(kicked),
        max_lag=run.direct_lags,
        steps_per_lag=run.steps_per_save,
    )
    return response[:, :, 0]


def _pixel(seed: int, member: int, number: int, pixels: int) -> int:
    bits = np.random.Philox(key=[seed, member], counter=[0, 0, DIRECT + number, 2**40])
    return int(np.random.Generator(bits).integers(pixels))
