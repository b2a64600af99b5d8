"""Status: how far a run is, who works on it and what it cost, from its files and Slurm's queue.

Nothing is asked of a driver, so a dead one is no hindrance; blocks are counted by listing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc import jobs, slurm
from hpc.batch import ENDED
from hpc.control import read_state
from hpc.dashboard import address_of
from hpc.errors import CorruptBlock, MachineError
from hpc.lease import holder_of, is_alive
from hpc.ledger import PACKED, SUFFIX, Ledger
from hpc.logs import last_words
from workflow.provenance import wall_times
from workflow.quarantine import quarantined
from workflow.rivals import learned_of, rivals_of
from workflow.runs import Run
from workflow.stages.pipeline import LEDGERS, expected_blocks

SAMPLE = 200
"""Most receipts that are opened for times and costs; others are counted only."""

QUEUE_PATIENCE = 0.0
"""Seconds over which a busy Slurm is asked again: somebody looks on."""


def status(run: Run) -> dict[str, Any]:
    """What is done, running, waiting and broken.

    Returns:
        `stages`: blocks done and expected (for `train` steps, those of the last checkpoint), and
        `train NAME` for every rival; `rivals`: their `training`;
        `groups`: blocks of the ensemble done by each group of members, `group_blocks` of them
        expected; `quarantined`: members left out because they became non-finite; `driver`: who
        works or last worked in the folder; `dashboard`: address of its Dask pages; `jobs`: those in
        the queue, and of each role the last one that ended; `pool`: worker jobs as their driver
        counts them, while it has any, see `hpc.control.PoolState`; `slurm`: why the queue is not
        known; `training`: the last steps and losses;
        `rate`: blocks (steps) per second and seconds left of the stage that is running;
        `core_hours` of finished blocks; `stein`: raw Stein errors of a finished run.
    """
    found = {stage: run.ledger(stage).done() for stage in LEDGERS}
    stages = {
        stage: {"done": len(found[stage]), "blocks": blocks}
        for stage, blocks in expected_blocks(run).items()
    }
    scores = {_stage(name): one for name, one in learned_of(run).items()}
    trainings = {stage: _training(one) for stage, one in scores.items()}
    stages |= {stage: _steps(one) for stage, one in scores.items()}
    stages = dict(sorted(stages.items(), key=lambda one: ORDER.index(one[0].split(" ")[0])))
    page = run.folder / "report" / "index.html"
    report = str(page) if page.is_file() else None
    queue, trouble = _jobs(run)
    driver = _driver(run)
    # A dead one leaves its last word.
    pool = read_state(run.folder) if driver and driver["alive"] else None
    return {
        "name": run.experiment.name,
        "folder": str(run.folder),
        "finished": report is not None and all(s["done"] >= s["blocks"] for s in stages.values()),
        "stages": stages,
        "groups": _groups(run, found["simulate"]),
        "group_blocks": stages["simulate"]["blocks"] // len(run.groups),
        "quarantined": sorted({*run.quarantined, *quarantined(run.ledger("direct"))}),
        "driver": driver,
        "dashboard": address_of(run.folder, driver),
        "jobs": queue,
        "pool": asdict(pool) if pool else None,
        "slurm": trouble,
        "training": trainings.get(TRAIN),
        "rivals": {name: trainings[_stage(name)] for name in run.experiment.score.rivals},
        "rate": _rate(run, stages, trainings),
        "core_hours": _core_hours(run, found, trainings),
        "stein": _stein(run),
        "wall_seconds": wall_times(run),
        "report": report,
    }


TRAIN = "train"
"""Stage of the run's own score; those of rivals have their names besides."""

ORDER = ("simulate", TRAIN, "evaluate", "respond", "checks", "direct")
"""Of the stages; rivals are trained after the run's own score."""


def _stage(estimator: str) -> str:
    return TRAIN if estimator == "neural" else f"{TRAIN} {estimator}"


def _steps(run: Run) -> dict[str, int]:
    """Steps of a training done and to do, in the last checkpoint; it may have stopped early."""
    steps = run.trained_steps if run.is_trained else run.experiment.score.train.steps
    return {"done": run.trained_steps, "blocks": steps}


def _driver(run: Run) -> dict[str, Any] | None:
    """Who works in the folder, or died there; None where the last one left in order."""
    holder = holder_of(run.folder)
    if holder is None:
        return None
    return asdict(holder) | {"alive": is_alive(run.folder, seconds=run.experiment.faults.lease)}


def _groups(run: Run, done: Iterable[str]) -> list[int]:
    counts = [0] * len(run.groups)
    for block in done:
        group = int(block.split("-g", 1)[1][:4]) if "-g" in block else len(counts)
        if group < len(counts):
            counts[group] += 1
    return counts


def _jobs(run: Run) -> tuple[list[dict[str, Any]], str | None]:
    """Jobs worth telling, and why Slurm was not asked or did not answer."""
    recorded = [(run, "", entry) for entry in jobs.read(run.folder)]
    for name, rival in rivals_of(run).items():
        recorded += [(rival, f" {name}", entry) for entry in jobs.read(rival.folder)]
    if not recorded:
        return [], None
    known: dict[str, slurm.Job] = {}
    trouble = None
    try:
        ids = [entry.id for _, _, entry in recorded]
        known = {j.id: j for j in slurm.jobs(ids, patience=QUEUE_PATIENCE)}
    except MachineError as error:
        trouble = str(error)
    live: list[dict[str, Any]] = []
    ended: dict[str, tuple[Path, dict[str, Any]]] = {}
    for one, name, entry in recorded:
        job = known.get(entry.id)
        if job is not None and job.name != jobs.job_name(one.folder, entry.role):
            job = None  # the number is another job's by now
        role = entry.role + name
        told: dict[str, Any] = asdict(entry) | {"role": role, "state": job.state if job else "gone"}
        if job is not None and job.state not in ENDED:
            live.append(told | {"reason": job.reason, "left": job.left})
        elif entry.role != "worker":
            ended[role] = one.folder, told
    for role in {job["role"] for job in live}:
        ended.pop(role, None)
    for folder, told in ended.values():
        log = next(folder.glob(f"logs/*-{told['id']}.log"), None)
        told |= {"log": str(log) if log else None, "said": last_words(tail(log)) if log else None}
    return [*live, *(told for _, told in ended.values())], trouble


def tail(path: Path, size: int = 65536) -> list[str]:
    """Whole lines at the end of a file; none if it is absent."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - size))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    return lines[1 if length > size else 0 : -1]


def _training(run: Run) -> dict[str, Any]:
    """Step and losses from the log of the training, whatever else its lines hold."""
    lines = list(_json_lines(run.folder / "score" / "log.jsonl"))
    speed = list(_json_lines(run.folder / "logs" / "train.log"))
    lines = lines or speed
    losses = [line["loss"] for line in lines if isinstance(line.get("loss"), float)]
    tests = [line["test_loss"] for line in lines if isinstance(line.get("test_loss"), float)]
    return {
        "step": lines[-1]["step"] if lines else 0,
        "losses": losses[-SAMPLE:],
        "test_loss": tests[-1] if tests else None,
        "steps_per_second": _speed(speed),
    }


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in tail(path):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _speed(lines: list[dict[str, Any]]) -> float | None:
    """Steps per second of the last start, by its own clock."""
    last = [line for line in lines if isinstance(line.get("seconds"), (int, float))]
    for number in range(len(last) - 1, 0, -1):
        if last[number]["step"] <= last[number - 1]["step"]:
            last = last[number:]
            break
    if len(last) < 2 or last[-1]["seconds"] <= last[0]["seconds"]:
        return None
    span = last[-1]["seconds"] - last[0]["seconds"]
    return round((last[-1]["step"] - last[0]["step"]) / span, 2)


def _rate(
    run: Run,
    stages: dict[str, dict[str, int]],
    trainings: dict[str, dict[str, Any]],
) -> dict[str, Any] | None:
    """Pace of the first stage that is not finished; None where nothing is known yet."""
    open_ = [s for s in stages if stages[s]["done"] < stages[s]["blocks"]]
    if not open_:
        return None
    stage = open_[0]
    done, blocks = stages[stage]["done"], stages[stage]["blocks"]
    if stage in trainings:
        pace, done = trainings[stage]["steps_per_second"], trainings[stage]["step"]
    else:
        pace = pace_of(run.ledger(stage).folder, now=time.time())
    if not pace:
        return None
    return {"stage": stage, "per_second": pace, "seconds_left": round((blocks - done) / pace)}


def pace_of(folder: Path, *, now: float) -> float | None:
    """Blocks per second of late: receipts that are not packed yet, over the time they took.

    Args:
        folder: of a ledger.
        now: seconds since 1970.
    """
    times = []
    with contextlib.suppress(FileNotFoundError):
        packed = (folder / PACKED).stat().st_mtime
        times.append(packed)
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        loose = [one for one in found if one.name.endswith(SUFFIX) and one.name[0] != "."]
        every = -(-len(loose) // SAMPLE) or 1
        for one in loose[::every]:
            with contextlib.suppress(FileNotFoundError):  # packed meanwhile
                times.append(one.stat().st_mtime)
    if len(times) < 2 or now <= min(times):
        return None
    return round((len(times) - 1) * every / (now - min(times)), 4)


def _core_hours(
    run: Run, found: dict[str, set[str]], trainings: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Core-hours in finished blocks by stage: mean of a few receipts times their number."""
    hours = {}
    spent = {stage: _seconds(run.ledger(stage), sorted(done)) for stage, done in found.items()}
    for name, rival in rivals_of(run).items():
        ledger = rival.ledger("samples")
        spent[f"samples {name}"] = _seconds(ledger, sorted(ledger.done()))
    ranks = run.experiment.score.train.ranks * run.experiment.cluster.train.threads
    for stage, training in trainings.items():
        if training["steps_per_second"]:
            spent[stage] = training["step"] / training["steps_per_second"] * ranks
    for stage, seconds in spent.items():
        if seconds:
            hours[stage] = round(seconds / 3600, 4)
    return hours


def _seconds(ledger: Ledger, names: list[str]) -> float:
    sample = names[:: -(-len(names) // SAMPLE)] if names else []
    spent = []
    for name in sample:
        with contextlib.suppress(CorruptBlock):
            seconds = ledger.load(name).facts.get("seconds")
            if isinstance(seconds, (int, float)):
                spent.append(seconds)
    return sum(spent) / len(spent) * len(names) if spent else 0.0


def _stein(run: Run) -> dict[str, float]:
    try:
        estimators = json.loads((run.folder / "report" / "summary.json").read_text())["estimators"]
        raw = {name: one.get("stein_error_raw") for name, one in estimators.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}
    return {name: value for name, value in raw.items() if isinstance(value, float)}
