"""A run: its folder, its experiment, its system, and how its work is cut into blocks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpc.files import atomic_write_bytes, atomic_write_json
from hpc.ledger import Ledger
from workflow import __version__
from workflow.config import (
    EXPERIMENTS,
    Experiment,
    digest,
    load_experiment,
    parse_experiment,
    refused_changes,
)
from workflow.dynamics import build_system, parameters_of
from workflow.interfaces import SPACE, HasExactScore, System, UserError

Notify = Callable[[str, int, int], None]
"""Called with (stage, blocks done, blocks in all)."""

ROUNDS_BLOCKS = 8
"""At most that many blocks of paired runs: the store stays small however many pairs there are."""


@dataclass(frozen=True)
class Run:
    """One run folder with the resolved experiment in it."""

    folder: Path
    experiment: Experiment

    @cached_property
    def system(self) -> System:
        """The system, built from its parameters."""
        return build_system(self.experiment.system)

    @property
    def ensemble(self) -> Path:
        """Store of the unperturbed ensemble."""
        return self.folder / "ensemble.zarr"

    @property
    def scores(self) -> Path:
        """Store of scores on the ensemble."""
        return self.folder / "scores.zarr"

    @property
    def perturbed(self) -> Path:
        """Store of responses per member from paired perturbed runs."""
        return self.folder / "perturbed.zarr"

    @property
    def correlations(self) -> Path:
        """Store of raw GFDT responses per member."""
        return self.folder / "correlations.zarr"

    @property
    def response(self) -> Path:
        """Store of responses with error bars."""
        return self.folder / "response.zarr"

    def ledger(self, stage: str) -> Ledger:
        """Receipts of a stage's blocks."""
        return Ledger(self.folder / "ledger" / stage, self.folder)

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the space axes."""
        return SPACE[len(self.system.shape)]

    @property
    def steps_per_save(self) -> int:
        """Time steps between saved snapshots."""
        return round(self.experiment.ensemble.save_every / self.system.dt)

    @property
    def times(self) -> int:
        """Saved snapshots of a member."""
        return round(self.experiment.ensemble.length / self.experiment.ensemble.save_every)

    @property
    def spinup_steps(self) -> int:
        """Time steps before the first saved interval."""
        return round(self.experiment.ensemble.spinup / self.system.dt)

    @property
    def groups(self) -> list[range]:
        """Members stepped together, in fixed groups."""
        members, size = self.experiment.ensemble.members, self.experiment.ensemble.group
        return [range(i, min(i + size, members)) for i in range(0, members, size)]

    @property
    def chunk_times(self) -> int:
        """Saved times in a chunk, which is one segment of simulation."""
        config = self.experiment.ensemble
        snapshot = math.prod(self.system.shape) * np.dtype(config.dtype).itemsize
        return max(1, config.chunk // (snapshot * min(config.group, config.members)))

    @property
    def segments(self) -> int:
        """Segments of saved simulation per group."""
        return math.ceil(self.times / self.chunk_times)

    @property
    def spinup_segments(self) -> int:
        """Segments of spin-up per group; at least one, which makes the initial state."""
        return max(1, math.ceil(self.spinup_steps / (self.chunk_times * self.steps_per_save)))

    def segment_times(self, segment: int) -> range:
        """Indices of the saved times of a segment."""
        first = segment * self.chunk_times
        return range(first, min(first + self.chunk_times, self.times))

    @property
    def test_members(self) -> range:
        """Members held out of training: the last ones."""
        members = self.experiment.ensemble.members
        held = min(members - 1, max(1, round(self.experiment.score.split.test * members)))
        return range(members - held, members)

    @property
    def learned(self) -> list[str]:
        """Estimators that need a score, in the order of the stores."""
        return [e for e in self.experiment.response.estimators if e != "direct"]

    @property
    def lags(self) -> int:
        """Longest lag in saved samples."""
        response = self.experiment.response
        return round(response.max_lag / self.experiment.ensemble.save_every)

    @property
    def direct_lags(self) -> int:
        """Longest lag of the paired runs in saved samples."""
        limit = self.experiment.direct.max_lag
        every = self.experiment.ensemble.save_every
        return self.lags if limit is None else min(self.lags, round(limit / every))

    @property
    def round_blocks(self) -> list[range]:
        """Rounds of paired runs (one pair a member) of each block; pairs are rounded up."""
        rounds = math.ceil(self.experiment.direct.pairs / self.experiment.ensemble.members)
        blocks = min(rounds, ROUNDS_BLOCKS)
        edges = [rounds * b // blocks for b in range(blocks + 1)]
        return [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def key(self, stage: str) -> str:
        """Hash of everything a stage's product depends on."""
        e = self.experiment.model_dump(mode="json")
        content: list[Any] = [e["seed"], e["system"], e["ensemble"]]
        if stage != "direct":
            content.append(e["score"])
        if stage in ("evaluate", "respond"):
            content.append(e["response"]["estimators"])
        if stage == "respond":
            content.append(e["response"]["max_lag"])
        if stage == "response":
            content += [e["response"], e["direct"]]
        if stage == "direct":
            content += [e["direct"], e["response"]["max_lag"]]
        return digest(content)

    def renew(self, stage: str, *products: Path) -> None:
        """Remove a stage's products and receipts if they belong to another state of the run."""
        mark = self.folder / "ledger" / f"{stage}.key"
        key = self.key(stage)
        if mark.is_file() and mark.read_text() == key:
            return
        for path in (mark, self.folder / "ledger" / stage, *products):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        atomic_write_bytes(mark, key.encode())

    def _science(self) -> dict[str, Any]:
        """The experiment without the keys that cannot change a number."""
        return self.experiment.model_dump(mode="json", exclude={"cluster", "report"})

    def attributes(self, title: str) -> dict[str, Any]:
        """CF attributes of a store; no times of day, so that equal runs have equal bytes."""
        return {
            "Conventions": "CF-1.11",
            "title": title,
            "source": f"gfdt-workflow {__version__}",
            "history": f"gfdt-workflow {__version__}: run {self.experiment.name}",
            "references": "arXiv:2402.01029",
            "experiment": json.dumps(self._science(), sort_keys=True),
            "seed_scheme": "Philox key=(seed, member), counter=(0, 0, stream, step // 32)",
        }


def open_run(source: str, runs: Path, settings: Sequence[str] = ()) -> Run:
    """The run of an experiment, new or existing, checked; writes nothing.

    Raises:
        UserError: anything in the experiment that cannot be run, or changed science.
    """
    where = Path(source).resolve().parent if Path(source).suffix else Path.cwd()
    if str(where) not in sys.path:
        sys.path.insert(0, str(where))
    existing = runs / source / "experiment.yaml"
    shipped = EXPERIMENTS / f"{source}.yaml"
    found = existing if existing.is_file() and not shipped.is_file() else None
    experiment = load_experiment(str(found or source), settings)
    system = build_system(experiment.system)
    resolved = {**experiment.model_dump(mode="json")}
    resolved["system"] = parameters_of(system, experiment.system)
    experiment = parse_experiment(resolved)
    run = Run(runs / experiment.name, experiment)
    check(run)
    _refuse_changed_science(run)
    return run


def load_run(name: str | Path, runs: Path) -> Run:
    """An existing run by name or folder.

    Raises:
        UserError: there is none.
    """
    for folder in (runs / str(name), Path(name)):
        if (folder / "experiment.yaml").is_file():
            return _load(folder, (folder / "experiment.yaml").stat().st_mtime_ns)
    raise UserError(f"no run '{name}' in {runs}; start it with: gfdt run {name}")


@lru_cache(maxsize=8)
def _load(folder: Path, _stamp: int) -> Run:
    content = _read(folder / "experiment.yaml", yaml.safe_load)
    provenance = folder / "provenance.json"
    if provenance.is_file():
        for entry in _read(provenance, json.loads).get("python_path", []):
            if entry not in sys.path:
                sys.path.insert(0, entry)
    return Run(folder, parse_experiment(content))


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Content of one of the files that a run itself wrote.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = parse(path.read_text())
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged; remove it and run the experiment's own file again")
    return content


def lay_down(run: Run, *, command: str) -> None:
    """Write the resolved experiment and its provenance into the run folder."""
    import platform

    run.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(run.experiment.model_dump(mode="json"), sort_keys=False)
    path = run.folder / "experiment.yaml"
    if not path.is_file() or path.read_text() != text:
        atomic_write_bytes(path, text.encode())
    atomic_write_json(
        run.folder / "provenance.json",
        {"command": command, "host": platform.node(), "python": platform.python_version()}
        | {"versions": versions(), "python_path": [str(Path.cwd()), *sys.path[:1]]},
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("numpy", "torch", "zarr", "xarray", "dask", "distributed", "mpi4py")
    return {"gfdt-workflow": __version__, **{name: version(name) for name in names}}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wall_times(run: Run) -> dict[str, float]:
    """Seconds spent in each stage so far, over all calls."""
    path = run.folder / "logs" / "wall_times.json"
    found: dict[str, float] = {}
    with contextlib.suppress(ValueError, FileNotFoundError):  # worth no refusal
        found = json.loads(path.read_text())
    return found


def check(run: Run) -> None:
    """Refuse what cannot give an answer.

    Raises:
        UserError: the first such thing, in one line.
    """
    e, system = run.experiment, run.system
    if e.ensemble.members < 2:
        raise UserError(f"ensemble.members={e.ensemble.members}: an error bar needs at least 2")
    if len(system.fields) != 1 or not system.shape or not system.homogeneous:
        raise UserError(
            f"system.kind={e.system['kind']}: responses need one homogeneous field on a grid; "
            f"it has {len(system.fields)} fields of shape {system.shape}"
        )
    _multiple("ensemble.save_every", e.ensemble.save_every, "system.dt", system.dt)
    _multiple("ensemble.spinup", e.ensemble.spinup, "system.dt", system.dt)
    _multiple("ensemble.length", e.ensemble.length, "ensemble.save_every", e.ensemble.save_every)
    _multiple("response.max_lag", e.response.max_lag, "ensemble.save_every", e.ensemble.save_every)
    if run.lags >= run.times:
        raise UserError(
            f"response.max_lag={e.response.max_lag:g} needs more than the {run.times} saved "
            "samples; lower response.max_lag or lengthen ensemble.length"
        )
    wanted = {"exact", e.score.estimator} & {*e.response.estimators, e.score.estimator}
    if "exact" in wanted and not isinstance(system, HasExactScore):
        if "exact" in e.response.estimators or e.score.estimator == "exact":
            raise UserError(
                f"system.kind={e.system['kind']} has no exact score; remove 'exact' from "
                "response.estimators"
            )
    if "neural" in e.response.estimators and e.score.estimator != "neural":
        raise UserError(
            f"response.estimators has 'neural' but score.estimator={e.score.estimator}; "
            "set score.estimator: neural or remove it"
        )


def _multiple(name: str, value: float, unit_name: str, unit: float) -> None:
    count = value / unit
    if abs(count - round(count)) > 1e-6 * max(1.0, count):
        near = max(1, round(count)) * unit
        raise UserError(f"{name}={value:g} is no multiple of {unit_name}={unit:g}; use {near:g}")


def _refuse_changed_science(run: Run) -> None:
    path = run.folder / "experiment.yaml"
    if not path.is_file():
        return
    old = _read(path, yaml.safe_load)
    refused = refused_changes(old, run.experiment.model_dump(mode="json"))
    if refused:
        raise UserError(
            f"{run.folder} holds another experiment: {'; '.join(refused)}; "
            "give the experiment another name or remove the folder"
        )
    if run.ensemble.is_dir():
        _refuse_clipped(run, Run(run.folder, parse_experiment(old)))


def _refuse_clipped(run: Run, old: Run) -> None:
    """A clipped last chunk that is written cannot become a full one."""
    config = old.experiment.ensemble
    for name, was, now, chunk, unit in (
        ("length", old.times, run.times, old.chunk_times, config.save_every),
        ("members", config.members, run.experiment.ensemble.members, config.group, 1),
    ):
        if now > was and was % chunk:
            raise UserError(
                f"ensemble.{name}={was * unit:g} of {run.folder} cannot grow to {now * unit:g}: "
                f"its last chunk is clipped, only multiples of {chunk * unit:g} can grow; "
                "use another run name"
            )
