"""Samples of a finished training, outside of the pipeline."""

from __future__ import annotations

import math
from contextlib import ExitStack

import distributed

from hpc.backends import open_client
from hpc.errors import MachineError
from hpc.files import collect_orphans
from hpc.lock import run_lock
from hpc.stores import telling_damage
from workflow.provenance import cores
from workflow.runs import Notify, Run
from workflow.stages.frames import seal
from workflow.stages.pipeline import refuse_missing_files, write_catalog_of
from workflow.stages.pools import jobs_of
from workflow.stages.samples import Asked, Wanted, complete_samples, group_size


def make_samples(run: Run, asked: Asked, members: int, notify: Notify) -> int:
    """Complete `samples.zarr` of a finished training; replaces those of another `Asked`.

    Args:
        run: with a learned score.
        asked: how.
        members: how many; a store that has more keeps them.
        notify: told of progress.

    Returns:
        Samples in the store.

    Raises:
        MachineError: nothing learned yet, or damaged files.
    """
    if not run.is_trained:
        raise MachineError(
            f"{run.folder} has no learned score yet; run first: gfdt train {run.experiment.name}"
        )
    wanted = Wanted(run.samples.name, (asked,), members, several=False)
    with run_lock(run.folder, seconds=run.experiment.faults.lease), telling_damage(run.folder):
        collect_orphans(run.folder)
        refuse_missing_files(run)
        with ExitStack() as stack:
            pool = run.experiment.cluster.analyse
            blocks = math.ceil(members / group_size(run))

            def client() -> distributed.Client:
                opened = open_client(
                    pool.kind,
                    workers=pool.workers or min(cores(), blocks),
                    jobs=jobs_of(pool),
                    log_dir=run.folder / "logs",
                )
                return stack.enter_context(opened)

            count = complete_samples(run, wanted, client, notify)
        seal(run, "sample")
        write_catalog_of(run)
    return count
