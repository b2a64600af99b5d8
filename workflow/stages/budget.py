"""The error budget: what samples of the learned score are off by, beside the distance measured.

Only for a score that was learned up to noise beyond the data, from which samples can be drawn. All
distances are sliced Wasserstein of whitened snapshots, in standard deviations.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc.ledger import Receipt
from workflow.diffusion.action import Exploding, Nats, ScoreAt, noise_nodes, noised
from workflow.diffusion.budget import early_stopping, moved, total_variation_bound
from workflow.diffusion.distances import FEWEST, compare, pixel_density, sliced_wasserstein
from workflow.diffusion.likelihood import (
    LOG_TWO_PI,
    elbo,
    log_density,
    prior_variance,
    reverse,
)
from workflow.loading import load_run
from workflow.runs import Run
from workflow.scores.neural import WhitenedScore
from workflow.scores.references import white_scores
from workflow.stages.data import load_model, read_ensemble, read_places
from workflow.stages.nats import TOGETHER, nats_blocks, spread_places
from workflow.stages.states import load_part, save_part

BLOCK = "budget-0000"
"""Name of the part."""
NUMBERS = 1 << 17
"""Numbers of all samples together: 128 of 32 x 32."""
SAMPLES = (128, 2048)
"""Fewest and most samples, whatever their size."""
STEPS = 40
"""Calls of the score for a sample: errors of the time step are then below all others."""
FOLLOWED = (8, 512)
"""Fewest and most samples whose derivative is taken: all steps of them are held in memory."""
FOLLOWED_NUMBERS = 1 << 13
"""Numbers of these samples together."""
DYNAMICS = {"reverse diffusion": 1.0, "probability flow": 0.0}
"""Members of the family with equal marginals, by their eta."""
NODES = 16
"""Noise levels of the likelihood bound."""
DIRECTIONS = 64
"""Most numbers of a snapshot for which a divergence is taken in every direction."""
LARGE = 3.0
"""Least largest noise, in standard deviations, that hides the data well enough to start from."""


def budget_blocks(run: Run) -> dict[str, tuple]:
    """Arguments of the one part; none where the learned score makes no samples."""
    process = run.experiment.score.process
    wide = getattr(process, "sigma_max", math.inf) >= LARGE and process.kind in ("ve", "vp")
    # Two halves of the held-out data are compared.
    enough = len(run.held_out.members) * len(run.held_out.times) >= 4 * FEWEST
    return {BLOCK: ()} if wide and enough and nats_blocks(run) else {}


def budget_block(folder: str) -> Receipt:
    """Every term that needs no exact score, and the distances."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    fewest, most = SAMPLES
    wanted = min(most, max(fewest, NUMBERS // run.saved.numbers))
    model = load_model(run)
    schedule = Exploding(model.process.sigma_min, model.process.sigma_max)
    held, unit = _white(run, model, run.held_out, 2 * wanted)
    trained, trained_unit = _white(run, model, run.training, 2 * wanted)
    generator = torch.Generator().manual_seed(run.experiment.seed)
    count = min(wanted, len(held) // 2)
    start = math.sqrt(prior_variance(schedule)) * torch.randn(
        (count, *held.shape[1:]), generator=generator
    )
    score = partial(_score, model)
    found: dict[str, Any] = {"samples": count, "steps": STEPS, "measured": {}}
    measures = {"sliced_wasserstein": sliced_wasserstein, "pixel_density": pixel_density}
    for name, eta in DYNAMICS.items():
        with torch.no_grad():
            parts = [
                reverse(score, part, schedule, steps=STEPS, eta=eta, generator=generator)
                for part in start.split(max(1, TOGETHER // run.saved.numbers))
            ]
        distances = compare(torch.cat(parts), held, measures, unit=unit)
        found["measured"][name] = {key: one.plain() for key, one in distances.items()}
    finite = compare(held[:count], trained, {"w": sliced_wasserstein}, unit=trained_unit)["w"]
    found["finite_sample"] = finite.plain()
    stop = early_stopping(held, schedule, unit=unit)
    found["early_stopping"] = stop.value
    system = None if run.experiment.data else run.system
    exact = white_scores(model, model.whitening, system).get("exact")
    few, many = FOLLOWED
    first = start[: min(many, max(few, FOLLOWED_NUMBERS // run.saved.numbers))]
    followed = moved(score, first, schedule, steps=STEPS, eta=1.0, generator=generator, exact=exact)
    found["score"] = followed.score
    found["prior"] = followed.start * _prior_distance(held, schedule, unit, generator)
    found["likelihood"] = _likelihood(score, held, schedule, unit, generator)
    text = torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)
    return save_part(run, BLOCK, {"text": text}, started)


def _white(run: Run, model: WhitenedScore, part: Any, wanted: int) -> tuple[Tensor, int]:
    """Whitened snapshots of a part of the run, and how many in a row depend on each other."""
    places, unit = spread_places(run, part, wanted, units=4 * FEWEST)
    x = read_places(run, places, partial(read_ensemble, run))
    return model.whitening.whiten(x).float(), unit


def _score(model: WhitenedScore, y: Tensor, t: Tensor) -> Tensor:
    return model(y, t.to(y).reshape(1))


def _likelihood(
    score: ScoreAt, x: Tensor, schedule: Exploding, unit: int, generator: torch.Generator
) -> dict[str, Any]:
    """Log density of held-out data under the two models of a score, nats a number.

    `bound` of the reverse diffusion from below, `flow` of the probability flow, each a value and
    its standard error, and what Gaussian data have.
    """
    numbers = x[0].numel()
    few, many = FOLLOWED
    every = -(-len(x) // min(many, max(few, FOLLOWED_NUMBERS // numbers)))
    some, unit = x[::every], max(1, unit // every)
    nodes = noise_nodes(schedule, NODES)
    z = torch.randn((NODES, *some.shape), generator=generator)
    probes = None
    if numbers > DIRECTIONS:
        probes = torch.randn((1, *some.shape), generator=generator).sign()
    with torch.no_grad():
        bound = elbo(score, some, z, schedule, nodes)
        flow = log_density(score, some, schedule, steps=STEPS // 2, probes=probes)
    models = {"bound": bound, "flow": flow}
    found = {name: Nats.of(values / numbers, unit=unit) for name, values in models.items()}
    told = {name: [one.value, one.standard_error] for name, one in found.items()}
    return told | {"gaussian": -0.5 * (LOG_TWO_PI + 1), "snapshots": len(some)}


def _prior_distance(x: Tensor, schedule: Exploding, unit: int, generator: torch.Generator) -> float:
    """Sliced W1 of noised data from the prior, beyond its floor."""
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    y = noised(schedule, x, torch.randn(x.shape, generator=generator), end)
    prior = math.sqrt(prior_variance(schedule)) * torch.randn(
        (len(x) // 2, *x.shape[1:]), generator=generator
    )
    found = compare(prior, y, {"w": sliced_wasserstein}, unit=unit)["w"]
    return max(0.0, found.value - found.floor)


def budget_of(run: Run, nats: dict[str, Any]) -> dict[str, Any]:
    """The budget for `summary.json`; empty where there is none.

    `terms` are bounds, to first order, of the sliced Wasserstein distance, that of the score None
    where the exact one is not known; `measured` has the distance by dynamics. `total_variation` is
    Pinsker's bound from the path KL.

    Args:
        run: the run.
        nats: its path KL, from `nats.nats_of`.
    """
    if not nats or not budget_blocks(run) or BLOCK not in run.ledger("checks").done():
        return {}
    found = json.loads(bytes(load_part(run, BLOCK)["text"].tolist()))
    terms = {key: found.pop(key) for key in ("score", "prior", "early_stopping")}
    left = nats["estimators"]["neural"].get("left")
    if left is not None:
        found["total_variation"] = total_variation_bound(left + nats["prior_mismatch"])
    return {"terms": terms, **found}
