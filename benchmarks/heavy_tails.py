"""Heavy tails: what is learned of them by Gaussian noise and by jumps, and where jumps do not help.

    OMP_NUM_THREADS=1 python -P benchmarks/heavy_tails.py [--seeds 3] [--steps 1000]

Three densities of the plane, 32,000 samples each: isotropic alpha-stable 1.7 (Baule's test, JMP-8),
Student with 3 degrees of freedom, and four Gaussian spots, which have no tails. The same network,
batches and steps for all; noise in standard deviations of the data, its variance 1 for all. Results
are appended to results/heavy_tails.jsonl, one line for a training; `--table` makes the table.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import levy_stable

from workflow.config import ScoreConfig
from workflow.diffusion.distances import MEASURES, compare
from workflow.diffusion.samplers import Problem
from workflow.diffusion.sampling import USUAL, sample
from workflow.dynamics.mixture import Mixture
from workflow.scores.closed_form import DenseGaussian
from workflow.scores.neural import NeuralScore
from workflow.scores.training import Trainer

RESULTS = Path(__file__).parent / "results"
TRAINING, SAMPLES, NFE = 32_000, 20_000, 99
ALPHA, NU = 1.7, 3.0
SHELLS = ((0.0, 0.9), (0.9, 0.99), (0.99, 0.999))
"""Of the radius, in probability: where the error of the score is told."""

WIDE = {"kind": "jump", "sigma_min": 0.02, "sigma_max": 100.0}
MODELS = {
    "Gaussian": {**WIDE, "rate": 0, "gaussian": 1.0},
    "jumps and Gaussian": {**WIDE, "rate": 1, "scale": 0.5, "gaussian": 0.5},
    "jumps": {**WIDE, "rate": 1, "scale": math.sqrt(0.5), "gaussian": 0.0},
    "EDM, 0.02 only": {"kind": "edm", "sigma_min": 0.02, "sigma_max": 0.02},
}


def stable(count, rng):
    """sqrt(.05) sqrt(A) Z with A one-sided alpha/2-stable: coordinates of infinite variance."""
    scale = math.cos(math.pi * ALPHA / 4) ** (2 / ALPHA)
    a = levy_stable.rvs(ALPHA / 2, 1.0, scale=2 * scale, size=count, random_state=rng)
    return math.sqrt(0.05) * np.sqrt(a)[:, None] * rng.standard_normal((count, 2))


def student(count, rng):
    """Two-dimensional Student density."""
    return rng.standard_normal((count, 2)) / np.sqrt(rng.chisquare(NU, count) / NU)[:, None]


def spots(count, rng):
    """The default of `kind: mixture`."""
    return Mixture().initial(torch.from_numpy(rng.standard_normal((count, 3))))["x"].numpy()


def student_score(x):
    return -(NU + 2) * x / (NU + x.square().sum(1, keepdim=True))


DENSITIES = {
    "stable": (stable, None),
    "student": (student, student_score),
    "spots": (spots, Mixture().exact_score),
}


def draw(density, count, seed):
    return torch.from_numpy(DENSITIES[density][0](count, np.random.default_rng(seed)))


def measure(density, model, seed, *, steps):
    """Train one model on one density; its numbers."""
    data = draw(density, TRAINING, 1)
    config = ScoreConfig(
        process=MODELS[model],
        network={"channels": 64, "residual_blocks": 2},
        train={"ranks": 1, "steps": steps, "global_batch": 256, "learning_rate": 2e-3},
    )
    whitening = DenseGaussian.fit(data)
    trainer = Trainer(data, whitening, config=config, seed=seed)
    for _ in range(steps):
        trainer.advance()
    learned = trainer.averaged()
    row = {"density": density, "model": model, "seed": seed, "steps": steps}
    exact = DENSITIES[density][1]
    if exact is not None and "score" in learned.process.heads:
        row["score_error"] = score_errors(NeuralScore(learned), exact, draw(density, 200_000, 2))
    if learned.process.sigma_max > 1:
        row |= tails(learned, config.process.kind, density, seed)
    return row


def score_errors(learned, exact, x):
    """Relative root mean square error of the score by shell of the radius."""
    radius = x.norm(dim=1)
    edges = torch.quantile(radius, torch.tensor(SHELLS, dtype=x.dtype).flatten()).reshape(-1, 2)
    found = []
    for low, high in edges:
        y = x[(radius >= low) & (radius < high)]
        wrong = torch.cat([learned(part) for part in y.split(4096)]) - exact(y)
        found.append(float((wrong.square().sum() / exact(y).square().sum()).sqrt()))
    return found


def tails(learned, kind, density, seed):
    """MSLE of the tails of |x|, with its floor, and the quantiles at 99 and 99.9 %."""
    generator = torch.Generator().manual_seed(100 + seed)
    problem = Problem(
        learned.process,
        learned.answers,
        lambda _: torch.randn(SAMPLES, 2, generator=generator),
        NFE,
        uniforms=lambda _, n: torch.rand(SAMPLES, n, dtype=torch.float64, generator=generator),
    )
    white, _ = sample(USUAL[kind], problem)
    drawn = learned.whitening.unwhiten(white.double()).abs()
    data = draw(density, 2 * SAMPLES, 3).abs()
    names = ("tail_error", "quantile_0.99", "quantile_0.999")
    found = compare(drawn, data, {name: MEASURES[name] for name in names}, seed=seed)
    return {name: [one.value, one.low, one.high, one.floor] for name, one in found.items()}


def main():
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--densities", nargs="*", default=list(DENSITIES))
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    asked = parser.parse_args()
    path = RESULTS / "heavy_tails.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if asked.table:
        print(table(rows))
        return
    done = {(r["density"], r["model"], r["seed"], r["steps"]) for r in rows}
    for seed in range(1, asked.seeds + 1):
        for density in asked.densities:
            for model in MODELS:
                if (density, model, seed, asked.steps) in done:
                    continue
                if density == "stable" and "EDM" in model:
                    continue
                row = measure(density, model, seed, steps=asked.steps)
                print(json.dumps(row), flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def table(rows):
    """A line for each density and model: median of the seeds, and their range."""
    lines = [
        "| density | noise | MSLE | of data | ln Q99 | ln Q99.9 | score: 90 % | to 99 % | tail |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    columns = [("tail_error", 0), ("tail_error", 3), ("quantile_0.99", 0), ("quantile_0.999", 0)]
    columns += [("score_error", shell) for shell in range(3)]
    for density in DENSITIES:
        for model in MODELS:
            mine = [r for r in rows if (r["density"], r["model"]) == (density, model)]
            if mine:
                cells = [every(mine, name, place) for name, place in columns]
                lines.append(" | ".join([f"| {density} | {model}", *cells]) + " |")
    return "\n".join(lines)


def every(rows, name, place):
    """Median of one number over the seeds, and its range; nothing where it was not measured."""
    values = sorted(r[name][place] for r in rows if name in r)
    if not values:
        return ""
    middle = f"{np.median(values):.2g}"
    return middle if values[0] == values[-1] else f"{middle} ({values[0]:.2g}–{values[-1]:.2g})"


if __name__ == "__main__":
    main()
