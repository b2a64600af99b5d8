"""Samples of a finished training, outside of the pipeline."""

from __future__ import annotations

import math

from hpc.errors import MachineError
from hpc.files import collect_orphans
from hpc.lock import run_lock
from hpc.stores import telling_damage
from workflow.runs import Notify, Run
from workflow.stages.frames import seal
from workflow.stages.pipeline import refuse_missing_files, write_catalog_of
from workflow.stages.pools import Pools
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
        with Pools(run, math.ceil(members / group_size(run))) as pools:
            count = complete_samples(run, wanted, pools.of("sample"), notify)
        seal(run, "sample")
        write_catalog_of(run)
    return count
