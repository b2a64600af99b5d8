"""Training with two ranks against its limits and against torch DDP; scoring a store against torch.

    python benchmarks/training.py > benchmarks/results/training.md

Two cores. All ways run in turn in the same two processes; medians. Times of a busy machine mean
little, ratios more.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
from gpu_training import a_trainer, rate

from hpc.backends import open_client
from hpc.launch import launch_ranks
from hpc.launchers import Layout
from workflow.interfaces import ScoreEstimator
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.scores.compilation import compile_network
from workflow.stages.data import load_estimator, read_snapshots
from workflow.stages.evaluate import evaluate_block, lay_out
from workflow.stages.frames import lay_down
from workflow.stages.pipeline import run_stages

COMPILED = [(16, 32, 2, 32), (32, 32, 2, 64), (32, 64, 4, 64)]
"""Grid, channels, residual blocks, network calls of a step."""

STORE = """
name: inference
system: {kind: ornstein_uhlenbeck, grid: 32, dt: 0.25}
ensemble: {members: 16, group: 16, spinup: 1.0, length: 1024.0, save_every: 1.0, chunk: 8MiB}
score: {train: {ranks: 1, steps: 2, global_batch: 4}, network: {channels: 32, residual_blocks: 2}}
response: {estimators: [neural], max_lag: 4.0}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    load = os.getloadavg()
    found = trained(options.rounds)
    stored = inference(options.rounds)
    print(text(found, stored, load))
    print(f"\n{compiled(options.rounds)}")


def trained(rounds: int) -> dict:
    """What two ranks have measured."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        launch_ranks(
            "training_rank",
            [str(rounds), port],
            layout=Layout(2),
            log=Path(folder) / "log",
            environment={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), PATH])},
            echo=lines.append,
        )
    return json.loads(next(line[6:] for line in lines if line.startswith("found ")))


PATH = os.environ.get("PYTHONPATH", "")


def inference(rounds: int) -> dict[str, float]:
    """Snapshots per second of two workers that score blocks of a store, and of torch alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inference.yaml").write_text(STORE)
        run = open_run(str(folder / "inference.yaml"), folder / "runs")
        lay_down(run, command="benchmark")
        quiet = ("simulate", "train")
        run_stages(run, quiet, command="benchmark", notify=lambda *_: None)
        lay_out(run)
        blocks = [(str(run.folder), 0, segment) for segment in range(run.segments)]
        seconds: dict[str, list[float]] = {"store": [], "torch": []}
        with open_client("local", workers=2, log_dir=None) as client:
            ways = {"store": evaluate_block, "torch": bare}
            for round in range(rounds + 1):
                for way, function in ways.items():
                    began = time.perf_counter()
                    futures = client.map(function, *zip(*blocks, strict=True), pure=False)
                    client.gather(futures)
                    if round:
                        seconds[way].append(time.perf_counter() - began)
        snapshots = len(run.groups[0]) * run.times
        return {way: snapshots / statistics.median(found) for way, found in seconds.items()}


def bare(folder: str, group: int, segment: int) -> None:
    """The network, which is there, on the numbers of a block that are in memory."""
    torch.set_num_threads(1)
    estimator, block = network(folder), numbers(folder, group, segment)
    with torch.inference_mode():
        for part in block.split(16):
            estimator(part)


@cache
def network(folder: str) -> ScoreEstimator:
    """Of a run, once a worker."""
    return load_estimator(load_run(folder, Path(".")), "neural")


@cache
def numbers(folder: str, group: int, segment: int) -> torch.Tensor:
    """Of a block, once a worker."""
    run = load_run(folder, Path("."))
    block = read_snapshots(run, run.groups[group], run.segment_times(segment))
    return torch.from_numpy(block).flatten(0, 1)


def compiled(rounds: int) -> str:
    """Speed of training steps with a compiled network over that without, in turn, on one thread."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    lines = [
        "## torch.compile, one rank with one thread",
        "",
        "| network | grid | calls a step | speed over that without | to compile, s | pays from |",
        "|---|---|---|---|---|---|",
    ]
    for grid, channels, blocks, calls in COMPILED:
        ways = [a_trainer(grid, channels, blocks, calls, "fp32", device) for _ in range(2)]
        began = time.perf_counter()
        compile_network(ways[1].model)
        ways[1].advance()
        cost = time.perf_counter() - began
        times = [[rate(way.advance, device, 1.0) for way in ways] for _ in range(rounds)]
        plain, fast = (statistics.median(column) for column in zip(*times, strict=True))
        pays = f"step {cost / (plain - fast):.0f}" if fast < plain else "never"
        lines.append(
            f"| {channels} channels, {blocks} blocks | {grid} x {grid} | {calls} "
            f"| {plain / fast:.2f} | {cost:.0f} | {pays} |"
        )
    return "\n".join(lines)


def text(found: dict, stored: dict[str, float], load: tuple[float, ...]) -> str:
    """The page."""
    lines = [
        "# Training and scoring",
        "",
        "`python benchmarks/training.py > benchmarks/results/training.md`",
        "",
        f"{os.cpu_count()} cores, torch {torch.__version__}; load of the machine before it began: "
        f"{load[0]:.1f}. All ways take turns in the same processes; medians (best round).",
    ]
    for name, one in found["steps"].items():
        limit = one["seconds"]["2 ranks, no communication"]
        lines += [
            "",
            f"## {name}: {one['parameters']:,} parameters, {one['grid']} x {one['grid']}, "
            f"{one['calls']} calls a step",
            "",
            "| way | calls/s | best | time of a step over that without communication | waiting |",
            "|---|---|---|---|---|",
        ]
        for way, seconds in one["seconds"].items():
            waited = f"{100 * one['waited'][way]:.1f} %" if way in one["waited"] else ""
            lines.append(
                f"| {way} | {one['calls'] / seconds:.0f} | {one['calls'] / one['best'][way]:.0f} "
                f"| {seconds / limit:.3f} | {waited} |"
            )
    ways = next(iter(found["sums"].values()))
    sizes = [f"{int(numbers) * 4 / 2**20:g} MiB" for numbers in found["sums"]]
    lines += ["", "## Sums over two ranks, GB/s of the array", ""]
    lines += [f"| way | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for way in ways:
        numbers = " | ".join(f"{one[way]:.2f}" for one in found["sums"].values())
        lines.append(f"| {way} | {numbers} |")
    lines += [
        "",
        "## Scoring a store with two workers",
        "",
        f"{stored['store']:.0f} snapshots/s with reading, checksums and writing, "
        f"{stored['torch']:.0f} of the network alone on the same workers: "
        f"{100 * stored['store'] / stored['torch']:.0f} %.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
