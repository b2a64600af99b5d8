"""Diagnose: identities that the scores and the data of a run must obey, each with its error bar.

The parts lie in `checks/`; `checks.json` has the verdicts, of the data and of every estimator.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import torch
from torch import Tensor

from hpc.files import atomic_write_bytes, file_crc
from hpc.ledger import Receipt
from hpc.stores import read_block
from workflow.interfaces import HasDrift
from workflow.loading import load_run
from workflow.responses.channels import Channels
from workflow.responses.checks import Check, plain, undecided, worst
from workflow.responses.correlation import pair_counts
from workflow.responses.diagnostics import (
    identity_checks,
    slope_check,
    stationarity_checks,
    unit_means,
)
from workflow.responses.langevin import langevin_checks
from workflow.runs import Notify, Run
from workflow.scores.conditional import centred_given
from workflow.stages.blocks import run_blocks
from workflow.stages.budget import budget_block, budget_blocks
from workflow.stages.data import (
    load_channels,
    load_checked,
    load_estimator,
    load_whitening,
    scoring_device,
)
from workflow.stages.nats import nats_block, nats_blocks
from workflow.stages.states import (
    STAGE,
    load_part,
    load_states,
    save_part,
    states_block,
    units_in,
    units_of,
)

DATA = "data"
"""Name of the checks that no estimator is part of."""
LANGEVIN_NUMBERS = 1 << 18
"""Numbers of all states of a Langevin check: 256 states of 32 x 32."""
LANGEVIN_STATES = (64, 512)
"""Fewest and most states of a Langevin check."""
BATCH = 64
"""Snapshots scored together."""
SLOPE_LAGS = 4
"""Lags that the slope at lag 0 is taken from."""


def diagnose(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Write `checks.json`, unless it is that already; a trend of recorded data is told."""
    run.renew(STAGE, run.folder / STAGE, run.checks)
    ledger, folder = run.ledger(STAGE), str(run.folder)
    if {*blocks_of(run), STAGE} <= ledger.done():
        notify(STAGE, 1, 1)
        return
    for function, blocks in (
        (states_block, _states(run)),
        (identities_block, _identities(run)),
        (langevin_block, _langevin(run)),
        (nats_block, nats_blocks(run)),
        (budget_block, budget_blocks(run)),
    ):
        made = {name: (folder, *arguments) for name, arguments in blocks.items()}
        run_blocks(run, client, stage=STAGE, function=function, blocks=made, notify=notify)
    found = judged(run)
    _warn_of_trends(run, found[DATA])
    content = {name: [plain(check) for check in checks] for name, checks in found.items()}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(run.checks, f"{text}\n".encode())
    ledger.record(Receipt(STAGE, {run.checks.name: file_crc(run.checks)}))


def blocks_of(run: Run) -> list[str]:
    """Names of all parts."""
    tests = (_states, _identities, _langevin, nats_blocks, budget_blocks)
    return [name for blocks in tests for name in blocks(run)]


def _states(run: Run) -> dict[str, tuple]:
    return {f"states-g{group:04d}": (group,) for group in range(len(run.groups))}


def _identities(run: Run) -> dict[str, tuple]:
    groups = sorted({unit.member // run.experiment.ensemble.group for unit in units_of(run)})
    return {
        f"identities-{name}-g{group:04d}": (name, group) for name in run.learned for group in groups
    }


def _langevin(run: Run) -> dict[str, tuple]:
    # Given fields would have to move along with the states, by a law that scores do not tell.
    return {} if run.saved.given else {f"langevin-{name}": (name,) for name in run.learned}


def identities_block(folder: str, name: str, group: int) -> Receipt:
    """Means over the units of one group that the identities of one estimator are about."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    units, channels, fields = units_in(run, group), load_channels(run), len(run.saved.fields)
    score, whitening, drift = _score(run, name), load_whitening(run), _drift(run)
    parts: list[dict[str, Any]] = []
    for u, states in zip(units, load_part(run, f"states-g{group:04d}")["states"], strict=True):
        with torch.no_grad():
            s = score(states)
        x = states[:, :fields]
        part: dict[str, Any] = unit_means(
            x,
            s,
            mean=whitening.mean,
            homogeneous=run.saved.maps,
            drift=drift,
            given=centred_given(whitening, states),
            seed=(run.experiment.seed, u),
        )
        for index, one in enumerate(channels.driven):
            assert one.conjugate is not None
            b = one.conjugate(x, score, seed=(run.experiment.seed, u, index))
            part[f"driven_{index}"] = b.double().mean().numpy()
        parts.append(part)
    content = {key: torch.from_numpy(np.stack([p[key] for p in parts])) for key in parts[0]}
    if "jacobian" in content and channels.every_number_kicked and run.lags >= SLOPE_LAGS - 1:
        content["response"] = torch.from_numpy(_first_responses(run, channels, name, group))
    return save_part(run, f"identities-{name}-g{group:04d}", content, started)


def _score(run: Run, name: str) -> Callable[[Tensor], Tensor]:
    """The score of an estimator, a micro-batch at a time."""
    score = load_estimator(run, name, device=str(scoring_device(run, name)))
    return lambda x: torch.cat([score(part) for part in x.split(BATCH)])


def _drift(run: Run) -> Callable[[Tensor], Tensor] | None:
    """F(x), where the equation is known and the fields are the whole state."""
    if run.experiment.data is not None or run.saved.given or not isinstance(run.system, HasDrift):
        return None
    return run.system.drift


def _first_responses(run: Run, channels: Channels, name: str, group: int) -> np.ndarray:
    """Raw response of the fields to kicks of pixels, of every unit of a group, first lags only.

    `(unit, lag, field, kicked field, *shape)`, displacements in FFT order, or
    `(unit, lag, component, kicked component)`.
    """
    members, fields = run.groups[group], len(run.saved.fields)
    start = {"estimator": run.learned.index(name), "member": members.start}
    size = {"estimator": 1, "member": len(members), "lag": SLOPE_LAGS}
    if run.saved.maps:
        # The fields are the first observables.
        sums = read_block(
            run.correlations, "maps", start=start, size={**size, "observable": fields}
        )[0]
    else:
        width = channels.kicks
        size |= {"watched": width, "kick": width}
        sums = read_block(run.correlations, "totals", start=start, size=size)[0]
    pairs = [
        pair_counts(b.start, b.stop, length=run.times, max_lag=run.lags)[:SLOPE_LAGS]
        for b in run.sum_blocks
    ]
    responses = []
    for unit in units_in(run, group).values():
        total = sums[unit.member - members.start, unit.blocks.start : unit.blocks.stop].sum(0)
        count = np.sum(pairs[unit.blocks.start : unit.blocks.stop], axis=0)
        responses.append(total / count.reshape(-1, *[1] * (total.ndim - 1)))
    return np.stack(responses)


def langevin_block(folder: str, name: str) -> Receipt:
    """Whether the score of one estimator keeps its own data; the checks as text."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    x = load_states(run)
    fewest, most = LANGEVIN_STATES
    states = min(most, max(fewest, LANGEVIN_NUMBERS // run.saved.numbers))
    each = max(1, min(x.shape[1], states // len(x)))
    picked = [i * x.shape[1] // each for i in range(each)]
    label = "Langevin keeps the data"
    try:
        checks = langevin_checks(
            _score(run, name),
            x[:, picked],
            fields=[field.name for field in run.saved.fields],
            homogeneous=run.saved.maps,
            seed=(run.experiment.seed, len(x)),
        )
    except torch.linalg.LinAlgError:
        checks = [undecided(label, "the matrix <s s> of the score cannot be inverted")]
    content = [tuple(vars(check).values()) for check in checks]
    text = json.dumps(content)  # NaN and infinity are read again as they are
    return save_part(run, f"langevin-{name}", {"checks": _as_tensor(text)}, started)


def _as_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def judged(run: Run) -> dict[str, list[Check]]:
    """All checks from their parts: of the data, and by estimator."""
    found = {DATA: _stationarity(run)}
    channels = load_channels(run) if run.learned else None
    for name in run.learned:
        assert channels is not None
        parts = [
            load_part(run, block)
            for block, (estimator, _) in _identities(run).items()
            if estimator == name
        ]
        means = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        checks = identity_checks(means)
        checks += [
            worst(f"<B> = 0 of {one.name}", means[f"driven_{index}"], 0.0)
            for index, one in enumerate(channels.driven)
        ]
        checks += _slope(run, means)
        if _langevin(run):
            content = bytes(load_part(run, f"langevin-{name}")["checks"].tolist())
            checks += [Check(*values) for values in json.loads(content)]
        found[name] = checks + (_held_out(run) if name == "neural" else [])
    return found


def _slope(run: Run, means: dict[str, Any]) -> list[Check]:
    if "jacobian" not in means:
        return []
    if "response" not in means:
        note = f"{run.lags + 1} lags; needs {SLOPE_LAGS}: raise response.max_lag"
        return [undecided("dR/dt(0+) = <dF/dx>", note)]
    step = run.experiment.ensemble.save_every
    space = len(run.saved.shape) if run.saved.maps else 0
    square = means["jacobian_square"]
    return [
        slope_check(means["response"], means["jacobian"], square=square, step=step, space=space)
    ]


def _stationarity(run: Run) -> list[Check]:
    parts = [load_part(run, block) for block in _states(run)]
    mean, square = (torch.cat([part[key] for part in parts]).numpy() for key in ("mean", "square"))
    return [
        check
        for index, field in enumerate(run.saved.all_fields)
        for check in stationarity_checks(mean[..., index], square[..., index], name=field.name)
    ]


def _held_out(run: Run) -> list[Check]:
    """The loss on what was held out: a number to compare, without an error bar."""
    path = run.folder / "score" / "log.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
    tested = [line for line in lines if line.get("test_loss") is not None]
    if not tested:
        return []
    last, best = tested[-1], min(tested, key=lambda line: float(line["test_loss"]))
    note = (
        f"at step {best['step']}, whose parameters are used; {last['test_loss']:g} at the last "
        f"step {last['step']}"
    )
    if tested[0]["step"] == 0:
        start = float(tested[0]["test_loss"])
        note += f"; {start:g} is the loss of the score that training starts from"
    used = load_checked(run, "train", "neural", "score/neural.pt") if run.is_trained else {}
    if "settled_loss" in used:
        note += f"; {used['settled_loss']:g} once its linear map was solved for"
    if best["step"] == 0:
        note += "; training did not lower it, so the learned score is what it started from"
    loss = float(best["test_loss"])
    return [Check("loss on held-out data", loss, math.nan, math.nan, math.nan, None, note)]


def _warn_of_trends(run: Run, checks: list[Check]) -> None:
    """One line for recorded data that are not stationary: their response would be of the trend."""
    trends = [check for check in checks if check.passed is False]
    if run.experiment.data is None or not trends:
        return
    told = "; ".join(f"{c.name}: {c.note} ({abs(c.z):.2g} standard errors)" for c in trends)
    print(
        f"WARNING: {run.experiment.data.store} is not stationary: {told}; responses assume that "
        "it is: remove the trend, or cut out a part without one",
        file=sys.stderr,
        flush=True,
    )
