"""Samples of a finished training, outside of the pipeline."""

from __future__ import annotations

import math

from hpc.errors import MachineError
from workflow.runs import Notify, Run
from workflow.stages.pipeline import held_for
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
    blocks = math.ceil(members / group_size(run))
    with held_for(run, "sample"), Pools(run, blocks) as pools:
        return complete_samples(run, wanted, pools.of("sample"), notify)
