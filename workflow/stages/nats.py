"""Nats: the path KL of the learned score on held-out data, and of what it is compared with.

Parts of the snapshots are judged by themselves and lie in `checks/`; `nats_of` puts them together
for `summary.json`, with error bars from the scatter of independent units of the snapshots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc.ledger import Receipt
from workflow.diffusion import build_process, jump_action, likelihood
from workflow.diffusion.action import Exploding, Nats
from workflow.diffusion.jump_process import Jump
from workflow.interfaces import ForwardProcess, Part
from workflow.loading import load_run
from workflow.runs import Run
from workflow.scores.devices import compute_device
from workflow.scores.nats import Band, contributions
from workflow.scores.references import is_known, white_scores
from workflow.stages.data import (
    load_model,
    load_whitening,
    members_left,
    read_ensemble,
    read_places,
)
from workflow.stages.states import load_part, save_part

NUMBERS = 1 << 19
"""Numbers of all snapshots together: 512 of 32 x 32."""
SNAPSHOTS = (64, 4096)
"""Fewest and most snapshots, whatever their size."""
UNITS = 16
"""Units wanted at least."""
PARTS = 8
"""Parts that are judged by themselves."""
TOGETHER = 1 << 14
"""Numbers of the snapshots that a network sees at once."""
STREAM = 2**33
"""Philox counter word of this noise, apart from those of training and simulation."""
JUMPS = STREAM + 1
"""That of its clocks."""


def nats_blocks(run: Run) -> dict[str, tuple]:
    """Arguments of every part; none where no score was learned, or of jumps alone, or given some.

    A score given other fields knows densities only from one of their states to the next.
    """
    if "neural" not in run.learned or "score" not in _process(run).heads or run.saved.given:
        return {}
    return {f"nats-{part:04d}": (part,) for part in range(PARTS)}


def _process(run: Run) -> ForwardProcess:
    return build_process(run.experiment.score.process)


def spread_places(
    run: Run, part: Part, wanted: int, *, units: int
) -> tuple[list[tuple[int, int]], int]:
    """Snapshots of a part by (member, time), member-major, and how many in a row make a unit.

    Members are units; where there are fewer than wanted, each is cut in time.
    """
    everyone, times = members_left(run, part), part.times
    chosen = np.linspace(0, len(everyone) - 1, min(len(everyone), wanted)).round().astype(int)
    members = [everyone[i] for i in np.unique(chosen)]
    cuts = math.ceil(units / len(members))
    unit = max(1, min(len(times), wanted // len(members)) // cuts)
    each = min(len(times), unit * cuts)
    return [(m, times[i * len(times) // each]) for m in members for i in range(each)], unit


def _places(run: Run) -> tuple[list[tuple[int, int]], int]:
    """Held-out snapshots that are judged."""
    fewest, most = SNAPSHOTS
    wanted = min(most, max(fewest, NUMBERS // run.saved.numbers))
    return spread_places(run, run.held_out, wanted, units=UNITS)


def nats_block(folder: str, part: int) -> Receipt:
    """What every noise level adds for the snapshots of one part."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    places, _ = _places(run)
    mine = range(part * len(places) // PARTS, (part + 1) * len(places) // PARTS)
    device = compute_device()
    model = load_model(run, device=str(device))
    process, whitening = model.process, load_whitening(run)
    band = Band.of(process.sigma_min, process.sigma_max)
    system = None if run.experiment.data else run.system
    scores = white_scores(model, whitening, system)
    found: dict[str, list[Tensor]] = {}
    for batch in _batches(mine, max(1, TOGETHER // run.saved.numbers)):
        x = read_places(run, [places[i] for i in batch], partial(read_ensemble, run))
        white = whitening.whiten(x).float()
        z = torch.stack([_normals(run, i, (len(band.levels), *x.shape[1:])) for i in batch], 1)
        drawn = [_uniforms(run, i, (len(band.levels), process.uniforms)) for i in batch]
        uniform = torch.stack(drawn, 1).to(device) if process.uniforms else None
        with torch.no_grad():
            parts = contributions(
                scores, model, white.to(device), z.to(device), band, uniform=uniform
            )
        for key, values in parts.items():
            found.setdefault(key, []).append(values.cpu())
        found.setdefault("mismatch", []).append(_prior_mismatch(white, process))
    content = {key: torch.cat(values, -1) for key, values in found.items() if key != "beyond"}
    content["beyond"] = torch.stack(found["beyond"]).sum(0)
    return save_part(run, f"nats-{part:04d}", content, started)


def _batches(places: range, size: int) -> Iterator[range]:
    for first in range(places.start, places.stop, size):
        yield range(first, min(first + size, places.stop))


def _normals(run: Run, place: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of one snapshot at every level: a function of the seed and its place."""
    drawn = _generator(run, place, STREAM).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(drawn)


def _uniforms(run: Run, place: int, shape: tuple[int, ...]) -> Tensor:
    """The same for the clocks of jumps."""
    return torch.from_numpy(_generator(run, place, JUMPS).random(shape))


def _generator(run: Run, place: int, stream: int) -> np.random.Generator:
    key = [run.experiment.seed, place]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, 0]))


def _prior_mismatch(white: Tensor, process: ForwardProcess) -> Tensor:
    if isinstance(process, Jump):
        return jump_action.prior_mismatch(white, process)
    return likelihood.prior_mismatch(white, Exploding(process.sigma_min, process.sigma_max))


def _names(run: Run) -> list[str]:
    """Scores in the order of `white_scores`."""
    known = run.experiment.data is None and is_known(_process(run), run.system)
    return ["gaussian", "neural", *(["exact"] if known else [])]


def nats_of(run: Run) -> dict[str, Any]:
    """Path KL in nats a snapshot on held-out data, for `summary.json`; empty where none is known.

    It is that `of` the score, or of the generalized score where noise jumps. Each number is a value
    and its standard error. `gain` is the path KL of the Gaussian score less that
    of another, `left` the path KL from the exact score, where that is known. `curve` has the same
    per e-fold of noise at the levels `sigma`; `beyond_gaussian` is the entropy that a score makes
    in every mode, by `wavenumber`, or by variable.
    """
    blocks = nats_blocks(run)
    if not blocks or not set(blocks) <= run.ledger("checks").done():
        return {}
    process = _process(run)
    band = Band.of(process.sigma_min, process.sigma_max)
    places, unit = _places(run)
    parts = [load_part(run, block) for block in blocks]
    gain, left, mismatch = (
        torch.cat([part[key] for part in parts], -1) for key in ("gain", "left", "mismatch")
    )
    beyond = torch.stack([part["beyond"] for part in parts]).sum(0) / len(places)
    found: dict[str, Any] = {
        "band": [0.0, process.sigma_max],
        "of": process.heads[-1].replace("_", " "),
        "noise_in": "scale of variation of the score" if process.narrow else "standard deviations",
        "snapshots": len(places),
        "independent": len(places) // unit,
        "numbers": run.saved.numbers,
        "variables": [field.name for field in run.saved.fields],
        "estimators": {},
        "curve": {"sigma": list(band.levels[1:])},
        "beyond_gaussian": {},
    }
    if process.sigma_max > 1:  # else there is no prior to begin from
        found |= _number("prior_mismatch", Nats.of(mismatch, unit=unit))
    shells = _shells(run)
    for index, name in enumerate(_names(run)[: len(gain)]):  # parts of an older version have two
        one: dict[str, Any] = {}
        curve: dict[str, Any] = {}
        for key, values in (("gain", gain[index]), ("left", left[index])):
            if (key, name) in (("gain", "gaussian"), ("left", "exact")) or values.isnan().any():
                continue
            one |= _number(key, Nats.of(values.sum(0), unit=unit))
            density = values[1:] * torch.from_numpy(band.per_e_fold)[:, None]
            nodes = [Nats.of(node, unit=unit) for node in density]
            curve[key] = [n.value for n in nodes]
            curve[f"{key}_standard_error"] = [n.standard_error for n in nodes]
        found["estimators"][name], found["curve"][name] = one, curve
        if name != "gaussian":
            modes = beyond[index].sum(0).reshape(len(run.saved.fields), -1).numpy()
            by = np.stack([np.bincount(shells, weights=m) for m in modes])
            found["beyond_gaussian"][name] = by.tolist()
    found["beyond_gaussian"]["modes"] = np.bincount(shells).tolist()
    return found


def _number(key: str, found: Nats) -> dict[str, float]:
    return {key: found.value, f"{key}_standard_error": found.standard_error}


def _shells(run: Run) -> np.ndarray:
    """|k| of every mode, rounded; 0 for variables without homogeneous space."""
    if not run.saved.maps:
        return np.zeros(run.saved.numbers // len(run.saved.fields), dtype=int)
    waves = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in run.saved.shape], indexing="ij")
    return np.asarray(np.rint(np.sqrt(sum(w**2 for w in waves))).astype(int)).ravel()
