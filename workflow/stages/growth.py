"""A run that has become longer, or has more members: what of it must be made again.

A chunk at the old end that was only partly filled would become a full one with a gap. Its block is
forgotten before the store grows, and made again from what precedes it: the restart state of the
segment before, or the user's data.
"""

from __future__ import annotations

import json
from pathlib import Path

from hpc.errors import CorruptBlock
from hpc.ledger import Ledger
from workflow.runs import Run


def forget_partly_filled(
    run: Run, store: Path, ledger: Ledger, *, variable: str, blocks: str
) -> None:
    """Forget the blocks of a store whose chunk at the old end is not full and must be.

    Args:
        run: the run, at its new size.
        store: a store with the dimensions member and time.
        ledger: its receipts.
        variable: one of its variables; all have the same chunks.
        blocks: beginning of the names of the blocks that have no chunk in the store but belong to
            the group of members named next (`spinup-g`), if any.
    """
    path = store / variable / "zarr.json"
    if not path.is_file():
        return
    layout = json.loads(path.read_text())
    dims, shape = layout["dimension_names"], layout["shape"]
    chunk = layout["chunk_grid"]["configuration"]["chunk_shape"]
    new = {"member": run.experiment.ensemble.members, "time": run.times}
    partial: dict[int, int] = {}
    for axis, dim in enumerate(dims):
        if dim in new and shape[axis] < new[dim] and shape[axis] % chunk[axis]:
            partial[axis] = shape[axis] // chunk[axis]
    if not partial:
        return
    group = partial.get(dims.index("member"))
    for block in sorted(ledger.done()):
        try:
            files = list(ledger.load(block).files)
        except CorruptBlock:
            files = []
        inside = [name for name in files if name.startswith(f"{store.name}/")]
        places = [name.split("/c/")[1].split("/") for name in inside]
        at_end = any(int(p[axis]) == index for p in places for axis, index in partial.items())
        if at_end or (group is not None and block.startswith(f"{blocks}{group:04d}")):
            ledger.drop(block)
            for name in inside:
                (run.folder / name).unlink(missing_ok=True)
