"""Responses from scores that were trained on different kinds of noise, with the same budget.

    python benchmarks/processes.py [--steps 400] > benchmarks/results/processes.md

Ornstein-Uhlenbeck and Allen-Cahn fields on 16 x 16, whose exact scores are known. Every process
that has an ordinary score learns it with the same network, steps and snapshots; errors are on
members held out of training. Responses are recalibrated, and compared with those of the exact
score on the same members.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from workflow.config import ScoreConfig
from workflow.diffusion import PROCESSES, build_process
from workflow.dynamics import build_system
from workflow.dynamics.engines import fastest_engine, stepper
from workflow.dynamics.noise import FORCING
from workflow.responses.correlation import lag_sums, pair_counts
from workflow.responses.recalibration import recalibrate, stein_error
from workflow.scores.closed_form import fit_gaussian
from workflow.scores.neural import NeuralScore, with_parameters
from workflow.scores.settling import settled
from workflow.scores.training import Trainer
from workflow.scores.validation import Best, Validation, validation_batch, validation_sums

SYSTEMS = {
    "Ornstein-Uhlenbeck": {"kind": "ornstein_uhlenbeck", "grid": 16},
    "Allen-Cahn": {
        "kind": "allen_cahn",
        "grid": 16,
        "dt": 0.015625,
        "epsilon": 0.12649110640673518,
    },
}
SPINUP, TIMES, MEMBERS, HELD_OUT = 60, 100, 64, 16
LAGS = (1, 2, 5, 10, 20)
CHOICES, PAIRS = 10, 256
"""Of a training: when it is judged on held-out data, and by how many pairs."""


def ensemble(specification):
    """Saved fields `(member, time, 1, y, x)`, one a time unit."""
    system = build_system(specification)
    every = round(1 / system.dt)
    normals = torch.randn(
        MEMBERS, *system.initial_shape, generator=torch.Generator().manual_seed(3)
    )
    way = stepper(
        fastest_engine(system),
        system,
        system.initial(normals),
        members=range(MEMBERS),
        seed=11,
        stream=FORCING,
    )
    way.advance(0, SPINUP * every)
    saved = []
    for first in range(SPINUP * every, (SPINUP + TIMES) * every, every):
        way.advance(first, every)
        saved.append(way.observe())
    return system, torch.stack(saved, dim=1)


def judged(score, exact, x, whitening):
    """Relative squared score error, Stein error, and the recalibrated response at the lags."""
    with torch.inference_mode():
        flat = x.flatten(0, 1)
        s = torch.cat([score(part) for part in flat.split(256)]).reshape(x.shape)
        off, size = (
            whitening.score_to_white(values.flatten(0, 1).double()).square().mean()
            for values in (s - exact, exact)
        )
    sums = lag_sums(x - x.mean(), s - s.mean(), max_lag=LAGS[-1])[:, :, 0, 0]
    pairs = pair_counts(0, x.shape[1], length=x.shape[1], max_lag=LAGS[-1])
    raw = (-sums / pairs[:, None, None]).mean(0)
    found = recalibrate(raw, space=2).response
    return float(off / size), float(stein_error(raw, space=2)), found[list(LAGS)]


def trained(x, tested, whitening, kind, steps):
    """The learned score, as runs choose it: of the lowest loss on held-out data. And seconds."""
    config = ScoreConfig.model_validate(
        {
            "process": {"kind": kind},
            "network": {"channels": 24, "residual_blocks": 2},
            "train": {"ranks": 1, "steps": steps, "global_batch": 32, "learning_rate": 4e-3},
        }
    )
    trainer, started = Trainer(x, whitening, config=config, seed=1), time.perf_counter()
    some = tested[:: max(1, len(tested) // PAIRS)][:PAIRS]
    batch, best = validation_batch(trainer.model, some, seed=1, pairs=len(some)), Best()
    for step in range(steps + 1):
        if step % (steps // CHOICES) == 0:
            found = Validation.of(validation_sums(trainer.averaged(), batch))
            best.offer(step, found.loss, trainer.average)
        if step < steps:
            trainer.advance()
    model = with_parameters(trainer.model, best.parameters)
    return NeuralScore(settled(model, x)), best.step, time.perf_counter() - started


def kinds():
    """Processes whose default has an ordinary score."""
    for kind in PROCESSES:
        config = ScoreConfig.model_validate({"process": {"kind": kind}})
        if "score" in build_process(config.process).heads:
            yield kind


def table(name, specification, steps):
    system, x = ensemble(specification)
    learned, held = x[:-HELD_OUT].flatten(0, 1), x[-HELD_OUT:]
    whitening = fit_gaussian(learned, homogeneous=True)
    exact = torch.cat([system.exact_score(part) for part in held.flatten(0, 1).split(256)])
    exact = exact.reshape(held.shape)
    truth = judged(lambda part: system.exact_score(part), exact, held, whitening)[2]
    lags = " | ".join(f"lag {lag}" for lag in LAGS)
    print(f"\n## {name}\n\n| score | score error | Stein error | {lags} | step | time [s] |")
    print("|---" * (len(LAGS) + 5) + "|")
    rows = [("gaussian", whitening, 0, 0.0)]
    flat = held.flatten(0, 1)
    rows += [(kind, *trained(learned, flat, whitening, kind, steps)) for kind in kinds()]
    for label, score, chosen, seconds in rows:
        error, stein, found = judged(score, exact, held, whitening)
        distances = [
            np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, truth, strict=True)
        ]
        cells = " | ".join(f"{value:.3f}" for value in distances)
        print(
            f"| {label} | {error:.3f} | {stein:.3f} | {cells} | {chosen} | {seconds:.0f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print("# Responses by kind of noise\n")
    print(
        f"`python benchmarks/processes.py --steps {steps}`: {steps} steps of 32 network calls, "
        f"{MEMBERS - HELD_OUT} members x {TIMES} times to learn from, {HELD_OUT} held out. Score "
        "error: mean squared, whitened, relative to the exact score's square. At each lag: distance"
        " of the recalibrated response from that of the exact score, over all pixels, relative. "
        "Step: whose parameters are used, those of the lowest loss on the held-out members."
    )
    for name, specification in SYSTEMS.items():
        table(name, specification, steps)


if __name__ == "__main__":
    main()
