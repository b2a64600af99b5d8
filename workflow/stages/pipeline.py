"""All stages in order. Every stage skips what is finished, so the same call resumes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import distributed

from hpc.catalog import Source, write_catalog
from hpc.errors import CorruptBlock, MachineError
from hpc.files import atomic_write_json, collect_orphans
from hpc.lock import run_lock
from hpc.stores import telling_damage
from workflow.config import digest
from workflow.loading import load_run
from workflow.provenance import versions, wall_times
from workflow.rivals import rivals_of
from workflow.runs import Notify, Run
from workflow.stages.correlate import correlate, tasks
from workflow.stages.diagnose import blocks_of, diagnose
from workflow.stages.direct import direct
from workflow.stages.evaluate import evaluate
from workflow.stages.frames import STAGE as FRAMES
from workflow.stages.frames import forget_absent, lay_down, seal
from workflow.stages.ingest import ingest
from workflow.stages.pools import Pools
from workflow.stages.report import report
from workflow.stages.respond import respond
from workflow.stages.sample import sample_stage
from workflow.stages.simulate import simulate
from workflow.stages.train import check_launch, train

STAGES = ("simulate", "train", "sample", "evaluate", "respond", "report")
"""In order; each needs the ones before it, but for `sample`, which few experiments have."""


def run_stages(
    run: Run,
    stages: tuple[str, ...],
    *,
    command: str,
    notify: Notify,
    client: distributed.Client | None = None,
) -> None:
    """Run some stages of a run under its lock.

    Args:
        run: the run, checked.
        stages: names from `STAGES`, in order.
        command: the command line, for the provenance.
        notify: told of progress.
        client: of the caller's own Dask cluster, in place of the run's `cluster` section; it is
            left open. Its workers need this package and see the run folder.

    Raises:
        UserError, MachineError: in one line, what stopped it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with run_lock(run.folder, seconds=run.experiment.faults.lease):
        lay_down(run, command=command)
        collect_orphans(run.folder)
        run = load_run(run.folder, run.folder.parent)
        refuse_missing_files(run)
        if "train" in stages:
            check_launch(run)
        with Pools(run, max(expected_blocks(run).values()), client) as pools:
            for stage in stages:
                if stage == "sample" and run.experiment.sample is None:
                    continue
                require(run, stage)
                started = time.perf_counter()
                with telling_damage(run.folder):
                    ACTIONS[stage](run, pools, notify)
                seal(run, stage)
                _record_wall_time(run, stage, time.perf_counter() - started)
        write_catalog_of(run)


@contextlib.contextmanager
def held_for(run: Run, stage: str) -> Iterator[None]:
    """Hold a run for a stage outside of the pipeline; what it makes is sealed and published.

    Raises:
        CorruptBlock: a file of the run is damaged.
        RunLocked: another process works in it.
    """
    with run_lock(run.folder, seconds=run.experiment.faults.lease), telling_damage(run.folder):
        collect_orphans(run.folder)
        refuse_missing_files(run)
        yield
        seal(run, stage)
        write_catalog_of(run)


def _simulate(run: Run, pools: Pools, notify: Notify) -> None:
    make = simulate if run.experiment.data is None else ingest
    make(run, pools.of("simulate"), notify)


def _train(run: Run, pools: Pools, notify: Notify) -> None:
    pools.release()
    train(run, notify)
    for name, rival in rivals_of(run).items():
        lay_down(rival, command=f"rival {name} of {run.folder}")
        train(load_run(rival.folder, rival.folder.parent), _told(notify, name))


def _told(notify: Notify, name: str) -> Notify:
    """Progress under the name of a rival too."""
    return lambda stage, done, total: notify(f"{stage} {name}", done, total)


def _sample(run: Run, pools: Pools, notify: Notify) -> None:
    sample_stage(run, pools.of("sample"), notify)
    for name, rival in rivals_of(run).items():
        sample_stage(rival, pools.of("sample"), _told(notify, name))
        seal(rival, "sample")


def _evaluate(run: Run, pools: Pools, notify: Notify) -> None:
    evaluate(run, pools.of("evaluate"), notify)


def _respond(run: Run, pools: Pools, notify: Notify) -> None:
    correlate(run, pools.of("respond"), notify)
    if run.experiment.response.checks:
        diagnose(run, pools.of("respond"), notify)
    if "direct" in run.experiment.response.estimators:
        direct(run, pools.of("direct"), notify)
    pools.release()
    respond(run, notify)


def _report(run: Run, pools: Pools, notify: Notify) -> None:
    pools.release()
    report(run, notify)


CATALOG = {
    "ensemble": "unperturbed ensemble",
    "perturbed": "responses per member of paired perturbed runs",
    "scores": "scores on the ensemble",
    "response": "responses with error bars",
    "matrix": "response of every number to a kick of every number",
    "samples": "samples of the learned density",
    "comparison": "samples by several samplers",
}
"""What each published store holds."""

ACTIONS: dict[str, Callable[[Run, Pools, Notify], None]] = {
    "simulate": _simulate,
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "respond": _respond,
    "report": _report,
}


def expected_blocks(run: Run) -> dict[str, int]:
    """Blocks of every ledger when the run is finished."""
    groups = len(run.groups)
    spinup = run.spinup_segments if run.experiment.data is None else 0
    expected = {
        "simulate": groups * (spinup + run.segments),
        "evaluate": groups * run.segments,
        "respond": groups * len(tasks(run)) * len(run.learned) + 1,
        "direct": groups * len(run.round_blocks),
        "checks": len(blocks_of(run)) + 1,
    }
    if not run.experiment.response.checks:
        del expected["checks"]
    if "direct" not in run.experiment.response.estimators:
        del expected["direct"]
    return expected


LEDGERS = (
    *("simulate", "train", "evaluate", "constants", "respond", "direct", "checks", "matrix"),
    *("samples", "comparison", "quality"),
    FRAMES,
)
"""Stages with receipts."""


def refuse_missing_files(run: Run) -> None:
    """Nothing may be built on blocks that are recorded and gone: they would read as NaN.

    Nor in a frame of which a bit is flipped: frames are few and small, and read whole.

    Raises:
        CorruptBlock: names the first one.
    """
    found = []
    for one in (run, *rivals_of(run).values()):
        forget_absent(one)
        found += [p for stage in LEDGERS for p in one.ledger(stage).problems(deep=stage == FRAMES)]
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if found[1:] else ""
        raise CorruptBlock(f"{run.folder}: block {first.block}: {first.path}: {first.what}{more}")


def require(run: Run, stage: str) -> None:
    """Refuse a stage whose earlier stages are not finished.

    Raises:
        MachineError: names the command to run first.
    """
    needed = {
        "train": ("simulate",),
        "sample": ("simulate",),
        "evaluate": ("simulate",),
        "respond": ("simulate", "evaluate"),
        "matrix": ("simulate", "evaluate"),
        "report": ("simulate", "evaluate", "respond", "checks"),
    }.get(stage, ())
    expected = expected_blocks(run)
    for earlier in needed:
        done, all_of_it = len(run.ledger(earlier).done()), expected.get(earlier, 0)
        if done < all_of_it:
            command = "respond" if earlier == "checks" else earlier
            raise MachineError(
                f"{run.folder}: {earlier} has {done} of {all_of_it} blocks; "
                f"run first: gfdt {command} {run.experiment.name}"
            )


def _record_wall_time(run: Run, stage: str, seconds: float) -> None:
    path = run.folder / "logs" / "wall_times.json"
    times = wall_times(run)
    times[stage] = round(times.get(stage, 0.0) + seconds, 1)
    atomic_write_json(path, times)


def write_catalog_of(run: Run) -> None:
    """Write the catalog of the stores that the run has."""
    sources = {
        name: Source(run.folder / f"{name}.zarr", text)
        for name, text in CATALOG.items()
        if (run.folder / f"{name}.zarr" / "zarr.json").is_file()
    }
    write_catalog(run.folder / "catalog.yaml", metadata=_metadata(run), sources=sources)


def _metadata(run: Run) -> dict[str, Any]:
    """What somebody who looks for data wants to know before opening any."""
    e = run.experiment
    kind = str(e.system["kind"]) if e.system else "recorded data"
    places = " x ".join(map(str, run.saved.shape)) or "no space"
    probes = ((e.response.perturbations, "perturbations"), (e.response.observables, "observables"))
    return {
        "name": e.name,
        "description": f"responses of {kind} ({places}), "
        f"{e.ensemble.members} members of {run.times} times",
        "system": kind,
        "estimators": list(e.response.estimators),
        **{word: [_kind(p) for p in some] for some, word in probes},
        "experiment": digest(e.model_dump(mode="json")),
        "software": f"gfdt-workflow {versions()['gfdt-workflow']}",
    }


def _kind(probe: Any) -> str:
    return str(probe if isinstance(probe, str) else probe.get("kind"))
