"""Training and scoring on one GPU: samples per second, and share of the arithmetic of the device.

    python benchmarks/gpu_training.py > benchmarks/results/gpu_training.md

Only torch, numpy and the science rooms are used. FLOPs are those of convolutions and matrix
products as torch counts them. The peak is measured here with a large matrix product in the same
arithmetic, since data sheets quote numbers that no program reaches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from workflow.config import ScoreConfig
from workflow.scores.batches import draw
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.compilation import compile_network
from workflow.scores.devices import compute_device
from workflow.scores.neural import NeuralScore
from workflow.scores.training import Trainer, batch_loss, make_batch

CASES = [
    (32, 16, 1, 1024),
    (32, 32, 2, 1024),
    (32, 128, 4, 1024),
    (32, 256, 4, 512),
]
"""Grid, channels, residual blocks, network calls of a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    options = parser.parse_args()
    device = compute_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = {precision: peak_of(precision, device) for precision in ("fp32", "bf16")}
    print(
        "# Training on a GPU\n\n"
        "`python benchmarks/gpu_training.py > benchmarks/results/gpu_training.md`\n\n"
        f"{name}, torch {torch.__version__}. Matrix product of 8192 x 8192: fp32 (no TF32) "
        f"{peak['fp32'] / 1e12:.1f}, bf16 {peak['bf16'] / 1e12:.1f} TFLOP/s; shares are of these.\n"
    )
    print(
        "| grid | channels | blocks | parameters | batch | precision | training calls/s |", end=""
    )
    print(" share | scores/s | share | drawing a batch / a step |")
    print("|---" * 11 + "|")
    for case in CASES:
        for precision in ("fp32", "bf16"):
            print(row(*case, precision, device, peak[precision], options.seconds), flush=True)
    if options.compile:
        print(f"\n{compiled(device, options.seconds)}")


def row(grid, channels, blocks, calls, precision, device, peak, seconds) -> str:
    """One line of the table."""
    trainer = a_trainer(grid, channels, blocks, calls, precision, device)
    step = rate(trainer.advance, device, seconds)
    batch = make_batch(trainer.model, trainer._batches.at(trainer.step))
    with FlopCounterMode(display=False) as counted:
        batch_loss(trainer.model, batch).backward()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    score = NeuralScore(trainer.averaged())
    snapshots = torch.randn(4096, 1, grid, grid, device=device)
    with torch.inference_mode():
        scoring = rate(lambda: score(snapshots), device, seconds)
        with FlopCounterMode(display=False) as forward:
            score(snapshots)
    shape = (1, grid, grid)
    drawing = rate(
        lambda: draw(1, 1, pairs=calls // 2, share=range(calls // 2), shape=shape), device, 0.3
    )
    # Scores are always computed in fp32.
    share = f"{forward.get_total_flops() / scoring / peak:.1%}" if precision == "fp32" else ""
    scores = f"{4096 / scoring:.0f}" if precision == "fp32" else ""
    return (
        f"| {grid} | {channels} | {blocks} | {parameters} | {calls} | {precision} "
        f"| {calls / step:.0f} | {counted.get_total_flops() / step / peak:.1%} "
        f"| {scores} | {share} | {drawing / step:.2f} |"
    )


def a_trainer(grid, channels, blocks, calls, precision, device) -> Trainer:
    """On white noise: what is learned does not matter here."""
    x = torch.randn(4096, 1, grid, grid, generator=torch.Generator().manual_seed(1))
    config = ScoreConfig.model_validate(
        {
            "network": {"channels": channels, "residual_blocks": blocks},
            "train": {"ranks": 1, "global_batch": calls, "precision": precision},
        }
    )
    return Trainer(x, SpectralGaussian.fit(x), config=config, seed=1, device=device)


def compiled(device, seconds) -> str:
    """Training steps with a compiled network over those without, in turn."""
    found = []
    for grid, channels, blocks, calls in CASES[1:3]:
        ways = [a_trainer(grid, channels, blocks, calls, "bf16", device) for _ in range(2)]
        compile_network(ways[1].model)
        ways[1].advance()
        times = [[rate(w.advance, device, seconds / 3) for w in ways] for _ in range(3)]
        plain, fast = (statistics.median(t) for t in zip(*times, strict=True))
        found.append(f"{channels} channels {plain / fast:.2f}")
    return f"Speed with torch.compile over that without, bf16: {', '.join(found)}."


def rate(function, device, seconds) -> float:
    """Seconds of one call, median of a few blocks of calls."""

    def block(count):
        synchronise(device)
        began = time.perf_counter()
        for _ in range(count):
            function()
        synchronise(device)
        return (time.perf_counter() - began) / count

    block(2)
    count = max(1, int(seconds / 5 / max(block(2), 1e-6)))
    return statistics.median(block(count) for _ in range(5))


def synchronise(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(precision, device) -> float:
    """FLOP/s of a large matrix product."""
    n = 8192 if device.type == "cuda" else 512
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a = torch.randn(n, n, device=device, dtype=kind)
    return 2 * n**3 / rate(lambda: a @ a, device, 0.5)


if __name__ == "__main__":
    main()
