"""Learned scores against exact ones and against paired runs, at the published resolution.

    python benchmarks/learned_scores.py simulate allen_cahn --device cuda --work DIR
    python benchmarks/learned_scores.py recipes allen_cahn --device cuda --work DIR --shard 0/1
    python benchmarks/learned_scores.py table allen_cahn --device cuda --work DIR
    python benchmarks/learned_scores.py report --work DIR

`--scale 0.02 --grid 16` makes everything small enough for a quick trial. Each part writes what it
has found as it goes, one JSON line a training, so a part that is stopped leaves what it had, and
recipes go on from there. Only the science rooms are used, no Dask and no Zarr.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from learned.ensembles import CASES, Case, simulate
from learned.measures import (
    Answer,
    evaluated,
    group_responses,
    held_out_loss,
    score_errors,
)
from learned.recipes import CALLS, RECIPES, learn

from workflow.dynamics import build_system
from workflow.interfaces import HasExactScore
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.devices import compute_device

TRAINING_SHARE = 0.75
"""Of the members; the others judge the scores."""
TRAINED = 32768
"""Most snapshots to train on."""
JUDGED = 4096
"""Snapshots that scores are judged on."""
RECIPE_MEMBERS = 256
"""Members whose responses judge a recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["simulate", "recipes", "table", "report"])
    parser.add_argument("case", nargs="?", choices=list(CASES))
    parser.add_argument("--device", default=str(compute_device()))
    parser.add_argument("--work", type=Path, default=Path("learned_scores"))
    parser.add_argument("--scale", type=float, default=1.0, help="of members, pairs and training")
    parser.add_argument("--grid", type=int, default=32, help="points along an axis")
    parser.add_argument("--calls", type=int, help="network calls of a training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th training from the I-th")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which to stop")
    parser.add_argument("--only", nargs="*", help="names of recipes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "report":
        from learned.report import report

        return report(options.work)
    compute_device()
    PARTS[options.part](Study(options))


class Study:
    """One case on one device, with its data where they are needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.name, self.seeds = options.case, options.seeds
        self.device, self.work = torch.device(options.device), options.work
        case = CASES[options.case]
        small = options.scale != 1 or options.grid != case.system["grid"]
        self.case: Case = case.scaled(options.scale, options.grid) if small else case
        self.calls = options.calls or int(CALLS * min(1, options.scale))
        self.folder = options.work / options.case
        self.shard, self.only = options.shard, options.only
        self.system = build_system(self.case.system)
        self._until = time.perf_counter() + options.budget

    def load(self, members: int | None = None) -> None:
        """The ensemble on the device, and what is trained and judged on."""
        x = torch.load(self.folder / "ensemble.pt", mmap=True)
        split = int(TRAINING_SHARE * len(x))
        self.training = _thinned(x[:split], TRAINED).to(self.device)
        self.judging = _thinned(x[split:], JUDGED).to(self.device)
        self.x = (x if members is None else x[-members:]).to(self.device)
        self.gaussian = SpectralGaussian.fit(self.training).with_potential(self.training)

    def answer(self, score: Any, *, recalibrated: bool = True) -> Answer:
        """Response of the loaded members by one score; all of them share the resamples."""
        s = evaluated(score, self.x.flatten(0, 1), self.device).reshape(self.x.shape)
        groups = group_responses(self.x, s, self.case)
        return Answer(groups, seed=1, recalibrated=recalibrated)

    def errors(self, score: Any) -> dict[str, Any]:
        """Of a score on held-out members, from the exact one where there is one."""
        loss = held_out_loss(score, self.judging, self.gaussian)
        if not isinstance(self.system, HasExactScore):
            return loss
        # A formula in float64: its rounding must not count as an error.
        exact = self.system.exact_score(self.judging.double())
        found = evaluated(score, self.judging, self.device)
        return loss | score_errors(found, exact, self.gaussian)

    def record(self, part: str, line: dict[str, Any]) -> None:
        """Add a JSON line to what this part has found."""
        shard = self.shard.replace("/", "of")
        with (self.work / f"{part}-{self.name}-{shard}.jsonl").open("a") as file:
            file.write(json.dumps({"case": self.name, **line}) + "\n")
        brief = {k: v for k, v in line.items() if not isinstance(v, (dict, list))}
        print(part, self.name, json.dumps(brief), flush=True)

    def trained(self) -> set[tuple[int | None, str]]:
        """Seeds and names of the recipes that a run before this one has found."""
        files = self.work.glob(f"recipes-{self.name}-*.jsonl")
        lines = [json.loads(text) for file in files for text in file.read_text().splitlines()]
        return {(line.get("seed"), line["recipe"]) for line in lines}

    def late(self) -> bool:
        """Whether the budget is used up."""
        return time.perf_counter() > self._until


def _thinned(x: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many snapshots, evenly over times, `(snapshot, field, y, x)`."""
    step = max(1, -(-x.shape[0] * x.shape[1] // most))
    return x[:, ::step].flatten(0, 1).contiguous()


def simulate_part(study: Study) -> None:
    """Ensemble and paired runs."""
    took = simulate(study.case, study.device, 1, study.folder)
    study.record("simulate", {"device": str(study.device), **took})


def recipes_part(study: Study) -> None:
    """Every recipe with every seed: errors of its score, distance of its response from exact."""
    study.load(RECIPE_MEMBERS)
    exact = study.answer(study.system.exact_score)
    gaussian = study.answer(study.gaussian)
    number, count = map(int, study.shard.split("/"))
    done = study.trained()
    if number == 0 and (None, "gaussian") not in done:
        line = {"recipe": "gaussian", "l2": gaussian.from_reference(exact)["l2"]}
        study.record("recipes", {**line, **study.errors(study.gaussian)})
    jobs = [(seed, name) for seed in range(study.seeds) for name in study.only or RECIPES]
    for seed, name in jobs[number::count]:
        if (seed, name) in done:
            continue
        if study.late():
            print(f"stopped before {name}, seed {seed}: the budget is used up", flush=True)
            return
        recipe = RECIPES[name]
        score, facts = learn(
            study.training, recipe, calls=study.calls, seed=seed, device=study.device
        )
        answer = study.answer(score)
        distance = answer.from_reference(exact)
        print("trained", name, json.dumps(facts), flush=True)
        line = {
            "recipe": name,
            "seed": seed,
            **facts,
            **study.errors(score),
            "l2_mean": round(sum(distance["l2"][1:]) / len(distance["l2"][1:]), 4),
            "l2": distance["l2"],
            "stein": answer.stein(),
        }
        study.record("recipes", line)


def table_part(study: Study) -> None:
    """The recipe against Gaussian, exact and direct."""
    study.load()
    groups = torch.load(study.folder / "direct.pt").numpy()
    direct = Answer(groups, seed=2, recalibrated=False)
    study.record("table", {"estimator": "direct", "curves": direct.curves()})
    reference: Answer | None = None
    if isinstance(study.system, HasExactScore):
        reference = study.answer(study.system.exact_score)
        study.record("table", _judged(study, "exact", reference, direct, None))
    gaussian = study.answer(study.gaussian)
    line = _judged(study, "gaussian", gaussian, direct, reference)
    study.record("table", {**line, **study.errors(study.gaussian)})
    for name in study.only or ["base"]:
        for seed in range(study.seeds):
            if study.late():
                return
            score, facts = learn(
                study.training, RECIPES[name], calls=study.calls, seed=seed, device=study.device
            )
            learned = study.answer(score)
            line = _judged(study, "neural", learned, direct, reference)
            head = {"recipe": name, "seed": seed, **facts, **study.errors(score)}
            study.record("table", {**line, **head})


def _judged(
    study: Study, name: str, answer: Answer, direct: Answer, reference: Answer | None
) -> dict[str, Any]:
    line = {
        "estimator": name,
        "lag": [study.case.every * lag for lag in study.case.lags],
        "from_direct": answer.from_reference(direct),
        "stein": answer.stein(),
        "curves": answer.curves(),
    }
    if reference is not None and name != "exact":
        line["from_exact"] = answer.from_reference(reference)
    return line


PARTS = {"simulate": simulate_part, "recipes": recipes_part, "table": table_part}

if __name__ == "__main__":
    main()
