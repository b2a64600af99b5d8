"""Two ranks that train and sum arrays in turn, for `benchmarks/training.py`; rank 0 prints JSON."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpc.comm import MpiComm
from hpc.gradients import FlatGradients
from hpc.reduction import Reduction
from workflow.config import ScoreConfig
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.training import Alone, Batch, Trainer, batch_loss

WORLD = MPI.COMM_WORLD
NETWORKS = {
    "small, 32 channels": {"channels": 32, "residual_blocks": 2},
    "large, 256 channels": {"channels": 256, "residual_blocks": 3},
}
SIZES = {"small, 32 channels": (32, 64), "large, 256 channels": (16, 8)}
"""Grid, and network calls of a step."""
ARRAYS = (2**18, 2**20, 2**22)
"""Numbers of the arrays that are summed: 1, 4 and 16 MiB."""


@dataclass(frozen=True)
class Silent(Alone):
    """A rank of two that says nothing: the limit without communication."""

    rank: int = 0
    size: int = 2


class Timed(FlatGradients):
    """Counts the seconds that a step waits for its sums."""

    waited = 0.0

    def mean(self, loss: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        mean = super().mean(loss)
        self.waited += time.perf_counter() - began
        return mean


class Blocking(Timed):
    """Sends nothing before the backward pass has ended."""

    def overlapped(self, loss: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *batch):
        return batch_loss(self.model, Batch(*batch))


class DdpTrainer(Trainer):
    """The same step with gradients averaged by torch."""

    def _accumulate(self, batch):
        if not hasattr(self, "_ddp"):
            self._ddp = DistributedDataParallel(_Loss(self.model), broadcast_buffers=False)
        self._optimizer.zero_grad(set_to_none=False)
        loss = self._ddp(batch.x, batch.z, batch.sigma)
        loss.backward()
        return loss.detach()


def quiet_barrier():
    """Wait for the other rank without taking its core."""
    request = WORLD.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def timed(function, repeats):
    quiet_barrier()
    WORLD.Barrier()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - began) / repeats


def steps(name, rounds, repeats):
    """Seconds per step of every way, in turn; the median over the rounds."""
    grid, calls = SIZES[name]
    x = torch.randn(256, 1, grid, grid, generator=torch.Generator().manual_seed(1))
    settings = {"ranks": 2, "global_batch": calls, "steps": 10**6}
    config = ScoreConfig.model_validate({"network": NETWORKS[name], "train": settings})
    whitening = SpectralGaussian.fit(x)

    def trainer(gradients, kind=Trainer):
        return kind(x, whitening, config=config, seed=1, gradients=gradients)

    comm = MpiComm()
    ways = {
        "1 rank x 2 threads": trainer(Alone()),
        "2 ranks, no communication": trainer(Silent(rank=WORLD.rank)),
        "2 ranks, overlapped": trainer(Timed(comm)),
        "2 ranks, after the backward pass": trainer(Blocking(comm)),
        "2 ranks, torch DDP with gloo": trainer(Silent(rank=WORLD.rank), DdpTrainer),
    }
    seconds = {way: [] for way in ways}
    for round in range(rounds + 1):
        for way, one in ways.items():
            lonely = way.startswith("1 rank")
            torch.set_num_threads(2 if lonely else 1)
            if lonely and WORLD.rank == 1:
                quiet_barrier()
            elif lonely:
                began = time.perf_counter()
                for _ in range(repeats):
                    one.advance()
                seconds[way].append((time.perf_counter() - began) / repeats)
                quiet_barrier()
            else:
                seconds[way].append(timed(one.advance, repeats))
            if round == 0:  # first calls make plans, buffers and connections
                seconds[way].clear()
                for other in (o.gradients for o in ways.values() if isinstance(o.gradients, Timed)):
                    other.waited = 0.0
    torch.set_num_threads(1)
    waited = {w: o.gradients.waited for w, o in ways.items() if isinstance(o.gradients, Timed)}
    parameters = sum(p.numel() for p in ways["2 ranks, overlapped"].model.parameters())
    return {
        "parameters": parameters,
        "calls": calls,
        "grid": grid,
        "seconds": {way: statistics.median(found) for way, found in seconds.items() if found},
        "best": {way: min(found) for way, found in seconds.items() if found},
        "waited": {way: s / sum(seconds[way]) / repeats for way, s in waited.items()},
    }


def sums(numbers, rounds):
    """GB/s of an array summed over two ranks in every way, in turn; the median."""
    flat = torch.ones(numbers)
    worlds = (WORLD.Dup(), WORLD.Dup())
    reduction, array, copy = Reduction(flat, worlds), np.ones(numbers, np.float32), flat.clone()

    def ours():
        reduction.begin()
        reduction.progress(wait=True, second=True)

    ways = {
        "ours, rank order in float64": ours,
        "MPI Allreduce": lambda: WORLD.Allreduce(MPI.IN_PLACE, array),
        "gloo all_reduce": lambda: dist.all_reduce(copy),
        "copy in memory": lambda: copy.copy_(flat),
    }
    seconds = {way: [] for way in ways}
    for round in range(rounds + 1):
        for way, function in ways.items():
            found = timed(function, 5)
            if round:
                seconds[way].append(found)
            array[...], copy[...], flat[...] = 1, 1, 1
    return {way: 4e-9 * numbers / statistics.median(found) for way, found in seconds.items()}


def main():
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = sys.argv[2]
    dist.init_process_group("gloo", rank=WORLD.rank, world_size=WORLD.size)
    found = {
        "steps": {name: steps(name, rounds, repeats=3) for name in NETWORKS},
        "sums": {numbers: sums(numbers, 4 * rounds) for numbers in ARRAYS},
    }
    # gloo aborts at the end of the interpreter unless it is taken apart by hand.
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()
    if WORLD.rank == 0:
        print("found", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
