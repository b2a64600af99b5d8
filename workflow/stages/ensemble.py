"""The store of the ensemble: its layout, and one block of it."""

from __future__ import annotations

import numpy as np

from hpc.layout import Variable, create_store
from hpc.stores import write_block
from workflow.runs import Run
from workflow.stages import coordinates
from workflow.stages.growth import forget_partly_filled


def lay_out(run: Run) -> None:
    """Lay down the empty store, or lengthen the one there."""
    config, saved = run.experiment.ensemble, run.saved
    forget_partly_filled(
        run,
        run.ensemble,
        run.ledger("simulate"),
        variable=saved.fields[0].name,
        blocks="spinup-g",
    )
    create_store(
        run.ensemble,
        variables=[
            Variable(
                field.name,
                ("member", "time", *run.space),
                (config.members, run.times, *saved.shape),
                (min(config.group, config.members), run.chunk_times, *saved.shape),
                config.dtype,
                {"long_name": field.long_name, "units": field.units},
            )
            for field in saved.all_fields
        ],
        coordinates=[coordinates.member(run), coordinates.time(run), *coordinates.space(run)],
        attrs=run.attributes("unperturbed ensemble"),
        extendable=("member", "time"),
    )


def write_segment(run: Run, group: int, segment: int, values: np.ndarray) -> dict[str, str]:
    """Write one block `(member, time, field, *shape)`; returns its files and fingerprints.

    Its fields stand as the system, or the data, have them.
    """
    start = {"member": run.groups[group].start, "time": run.segment_times(segment).start}
    files: dict[str, str] = {}
    for index, field in zip(run.rows, run.saved.all_fields, strict=True):
        one = np.ascontiguousarray(values[:, :, index], dtype=run.experiment.ensemble.dtype)
        written = write_block(run.ensemble, field.name, start=start, values=one)
        files |= {f"ensemble.zarr/{name}": crc for name, crc in written.items()}
    return files
