"""Does storage keep up with stepping, and a second worker with the first?

    python benchmarks/storage.py > benchmarks/results/storage.md

Shares come from the receipts of real runs; chunks are compared with plain files on the same disk,
in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hpc.backends import open_client
from hpc.layout import Variable, create_store
from hpc.stores import write_block
from workflow.dynamics.engines import stepper
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.interfaces import DTYPES
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.stages.ensemble import lay_out
from workflow.stages.frames import lay_down
from workflow.stages.simulate import simulate

EXPERIMENT = """
name: {name}
system: {system}
ensemble: {{members: {members}, group: 32, spinup: {segment}, length: {length}, chunk: {chunk}}}
response: {{estimators: [gaussian], max_lag: 4.0}}
cluster: {{simulate: {{workers: {workers}}}}}
"""

SYSTEMS = {
    "Navier-Stokes": "{kind: navier_stokes, grid: 32}",
    "Allen-Cahn": "{kind: allen_cahn, grid: 32}",
    "Ornstein-Uhlenbeck, dt = 1": "{kind: ornstein_uhlenbeck, grid: 32, dt: 1.0}",
}
"""All saved once in a unit of time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        # Where blocks are written: a worker keeps the memory of its arrays.
        with open_client("local", workers=1, log_dir=None) as client:
            disk = client.submit(against_files, Path(name), options.rounds, pure=False).result()
        shares = {
            kind: [whole_run(Path(name), system, options.segments, workers) for workers in (1, 2)]
            for kind, system in SYSTEMS.items()
        }
    print(text(disk, shares, load))


def against_files(folder: Path, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """MB/s of one writer by chunk in MiB: as chunks with checksums, and as plain flushed files."""
    found: dict[int, list[tuple[float, float]]] = {}
    for mib in (1, 8, 16, 32):
        times = mib * 2**20 // (32 * 32 * 32 * 4)
        values = np.random.default_rng(1).standard_normal((32, times, 32, 32), dtype=np.float32)
        shape, store = (32, times * (rounds + 1), 32, 32), folder / f"disk-{mib}.zarr"
        dims = ("member", "time", "y", "x")
        variable = Variable("u", dims, shape, values.shape, "float32", {})
        create_store(store, variables=[variable], coordinates=[], attrs={})
        for turn in range(rounds + 1):
            began = time.perf_counter()
            write_block(store, "u", start={"time": turn * times}, values=values)
            middle = time.perf_counter()
            with (folder / f"plain-{mib}-{turn}").open("wb") as file:
                file.write(memoryview(values).cast("B"))
                file.flush()
                os.fsync(file.fileno())
            end = time.perf_counter()
            if turn:
                pair = (
                    values.nbytes / 1e6 / (middle - began),
                    values.nbytes / 1e6 / (end - middle),
                )
                found.setdefault(mib, []).append(pair)
    return found


def whole_run(folder: Path, system: str, segments: int, workers: int) -> dict[str, float]:
    """Seconds of a run with one group of 32 members a worker, by where they went."""
    name = f"{system.split()[1].strip(',')}-{workers}"
    lines = EXPERIMENT.format(
        name=name,
        system=system,
        members=32 * workers,
        segment=1.0,
        length=128.0 * segments,
        chunk="16MiB",
        workers=workers,
    )
    (folder / f"{name}.yaml").write_text(lines)
    run = open_run(str(folder / f"{name}.yaml"), folder / "runs")
    lay_down(run, command="benchmark")
    with open_client("local", workers=workers, log_dir=None) as client:
        client.wait_for_workers(workers)
        addresses = list(client.scheduler_info()["workers"])
        # Once for the imports, and once for all times.
        for saves in (1, run.times):
            bare = client.gather(
                [
                    client.submit(alone, str(run.folder), group, saves, workers=[where], pure=False)
                    for group, where in enumerate(addresses)
                ]
            )
        lay_out(run)
        began = time.perf_counter()
        simulate(run, lambda: client, lambda *_: None)
        wall = time.perf_counter() - began
    ledger = run.ledger("simulate")
    facts = [ledger.load(block).facts for block in ledger.done()]
    return {
        "wall": wall,
        "busy": sum(fact["seconds"] for fact in facts),
        "writing": sum(fact["writing"] for fact in facts),
        "segments": len(facts) / workers,
        "bare": max(bare),
    }


def alone(folder: str, group: int, saves: int) -> float:
    """Seconds of the same steps and observations in this process, with nothing else."""
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    e, members = run.experiment, run.groups[group]
    shape, dtype = run.system.initial_shape, DTYPES[e.ensemble.dtype]
    start = NoiseStream(e.seed, members, stream=INITIAL, shape=shape, dtype=dtype).at(0)
    state = run.system.initial(start)
    began = time.perf_counter()
    way = stepper(
        e.ensemble.engine, run.system, state, seed=e.seed, members=members, stream=FORCING
    )
    way.advance(0, run.spinup_steps)
    for save in range(saves):
        way.advance(run.spinup_steps + save * run.steps_per_save, run.steps_per_save)
        way.observe()
    return time.perf_counter() - began


def text(
    disk: dict[int, list[tuple[float, float]]],
    shares: dict[str, list[dict[str, float]]],
    load: float,
) -> str:
    """The tables."""
    lines = [
        "# Storage and a second worker",
        "",
        "`python benchmarks/storage.py > benchmarks/results/storage.md`, "
        f"{len(os.sched_getaffinity(0))} cores, load before {load:.1f}.",
        "",
        "## Chunks against plain files by a worker, both flushed, in turn; MB/s, medians",
        "",
        "| chunk, MiB | chunks with crc32c | plain files | share |",
        "|---|---|---|---|",
    ]
    for mib, pairs in disk.items():
        ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
        share = statistics.median(a / b for a, b in pairs)
        lines.append(f"| {mib} | {ours:.0f} | {plain:.0f} | {100 * share:.0f} % |")
    lines += [
        "",
        "## Runs of 32 members of 32 x 32 a worker, saved once a unit of time",
        "",
        "Share of a block's time in writing; time of the driver and of Dask between blocks, over "
        "that of a block; and wall time of the run over that of bare steps in as many processes.",
        "",
        "| system | workers | block, s | writing | between blocks | wall / bare |",
        "|---|---|---|---|---|---|",
    ]
    for kind, runs in shares.items():
        for workers, found in enumerate(runs, 1):
            each = found["busy"] / workers
            lines.append(
                f"| {kind} | {workers} | {each / found['segments']:.2f} "
                f"| {100 * found['writing'] / found['busy']:.1f} % "
                f"| {100 * (found['wall'] - each) / each:.1f} % "
                f"| {found['wall'] / found['bare']:.3f} |"
            )
    lines += [
        "",
        "## A second worker with as much work again: time with one over time with two",
        "",
        "| system | bare steps in processes | run | run over bare |",
        "|---|---|---|---|",
    ]
    for kind, (one, two) in shares.items():
        free, ours = one["bare"] / two["bare"], one["wall"] / two["wall"]
        lines.append(f"| {kind} | {free:.3f} | {ours:.3f} | {100 * ours / free:.0f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
