"""Matrix: how every number of a snapshot answers a kick of every number.

Made of the sums of `matrix_sums`, a few lags at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import distributed
import numpy as np

from hpc.backends import open_client
from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, open_store, write_block
from workflow.config import digest
from workflow.interfaces import UserError
from workflow.provenance import cores
from workflow.responses.matrix import MATRIX_LIMIT, matrix_bytes
from workflow.responses.matrix_sums import (
    ENOUGH_UNITS,
    LagZero,
    MatrixLags,
    MatrixSums,
    lag_zero,
    reduce_lags,
)
from workflow.responses.probes import nearest
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.matrix_sums import (
    CHUNK_BYTES,
    STAGE,
    Asked,
    complete_sums,
    lags_together,
    matrix_of,
    slabs,
    units,
    window_times,
)
from workflow.stages.pipeline import held_for, require
from workflow.stages.pools import jobs_of

_ARRAYS_OF_DATA = 6
"""Copies of a window that a worker holds: read, stacked and centred, of x and s."""
_ARRAYS_OF_LAG = 24
"""Matrices that the reduction and a singular value decomposition hold."""


def choose(run: Run, estimator: str | None, max_lag: float | None) -> Asked:
    """What was asked for, checked.

    Args:
        run: the run.
        estimator: label; that of `score.estimator`, or else the first, by default.
        max_lag: longest lag in the run's unit of time; `response.max_lag` by default.

    Raises:
        UserError: an estimator without scores, or a lag that no pair of samples spans.
    """
    known, every = run.learned, run.experiment.ensemble.save_every
    if not known:
        raise UserError(f"{run.folder} has no scores; add an estimator to response.estimators")
    if estimator is None:
        usual = run.experiment.score.estimator
        estimator = usual if usual in known else known[0]
    if estimator not in known:
        raise UserError(
            f"estimator '{estimator}' has no scores in this run; {nearest(estimator, known)}"
        )
    lags = run.lags if max_lag is None else round(max_lag / every)
    if not 0 <= lags < run.times or (max_lag is not None and max_lag < 0):
        raise UserError(
            f"--max-lag {max_lag if max_lag is not None else lags * every:g} needs 0 or more and "
            f"less than {run.times * every:g}, the length of the run; lower it"
        )
    return Asked(estimator, lags)


def make_matrix(run: Run, asked: Asked, notify: Notify, *, memory: int = MATRIX_LIMIT) -> None:
    """Complete `matrix_sums.zarr` and `matrix.zarr`; replaces those of another `Asked`.

    Args:
        run: with ensemble and scores.
        asked: which matrix.
        notify: told of progress.
        memory: bytes that all workers may use together, and then the reduction.

    Raises:
        UserError: more numbers than the memory allows, missing values.
        MachineError: no scores yet, damaged files.
    """
    require(run, STAGE)
    workers = _workers(run, asked, memory)
    with held_for(run, STAGE):
        with ExitStack() as stack:
            pool = run.experiment.cluster.analyse
            jobs = jobs_of(pool)
            if pool.kind == "local" or jobs.memory is None:
                jobs = replace(jobs, memory=memory // workers)

            def client() -> distributed.Client:
                opened = open_client(
                    pool.kind, workers=workers, jobs=jobs, log_dir=run.folder / "logs"
                )
                return stack.enter_context(opened)

            complete_sums(run, asked, client, notify)
        _reduce(run, asked, notify)


def bytes_needed(run: Run, asked: Asked) -> int:
    """Memory in bytes of one worker, or of the reduction if that needs more."""
    numbers, group = run.saved.numbers, len(run.groups[0])
    item = np.dtype(run.experiment.ensemble.dtype).itemsize
    window = _ARRAYS_OF_DATA * item * group * numbers * (window_times(run, asked) + asked.lags)
    worker = matrix_bytes(numbers, asked.lags + 1, recalibrate=False) + window
    return max(worker, _ARRAYS_OF_LAG * max(8 * numbers**2, CHUNK_BYTES))


def _workers(run: Run, asked: Asked, memory: int) -> int:
    """As many workers as there is work, cores and memory for."""
    needed = bytes_needed(run, asked)
    if needed > memory:
        raise UserError(
            f"response matrix of {run.saved.numbers} numbers and {asked.lags + 1} lags needs "
            f"{needed / 2**30:.1f} GiB, limit {memory / 2**30:.1f} GiB; lower --max-lag, raise "
            "--memory or save a coarser field"
        )
    wanted = run.experiment.cluster.analyse.workers or cores()
    return min(wanted, memory // needed, len(run.groups) * len(slabs(run, asked)))


def _reduce(run: Run, asked: Asked, notify: Notify) -> None:
    """Write `matrix.zarr` from the sums, unless it is that already."""
    ledger = run.ledger(STAGE)
    key = digest([run.key(STAGE), run.times, asked.estimator, asked.lags])
    count, together = asked.lags + 1, lags_together(run, asked)
    if STAGE in ledger.done() and ledger.load(STAGE).facts.get("key") == key:
        return notify("reduce", count, count)
    ledger.drop(STAGE)
    run.discard(matrix_of(run))

    def read(lags: range) -> Iterator[MatrixSums]:
        return units(run, asked, lags)

    zero = lag_zero(read)
    files: dict[str, str] = {}
    for first in range(0, count, together):
        notify("reduce", first, count)
        lags = range(first, min(first + together, count))
        files |= _write(run, asked, zero, lags, reduce_lags(read, zero, lags=lags))
    consolidate(matrix_of(run))
    ledger.record(Receipt(STAGE, files, {"key": key}))
    notify("reduce", count, count)


def _write(run: Run, asked: Asked, zero: LagZero, lags: range, found: MatrixLags) -> dict[str, str]:
    """Some lags of every variable, in the store that the first ones lay out."""
    values = {"response": found.response, "response_raw": found.raw}
    if found.standard_error is not None:
        values["standard_error"] = found.standard_error
    axes = places(run)
    shape = tuple(len(axis.values) for axis in axes)
    if lags.start == 0:
        _lay_out_matrix(run, asked, zero, axes, list(values))
    files: dict[str, str] = {}
    for name, part in values.items():
        block = part.reshape(len(lags), *shape, *shape)
        written = write_block(matrix_of(run), name, start={"lag": lags.start}, values=block)
        files |= {f"{matrix_of(run).name}/{chunk}": crc for chunk, crc in written.items()}
    return files


def places(run: Run) -> list[Coordinate]:
    """Axes of space of a single field; else labels of all numbers."""
    names, shape = [field.name for field in run.saved.fields], run.saved.shape
    if shape and len(names) == 1:
        return coordinates.space(run)
    at = [f"[{','.join(map(str, place))}]" if shape else "" for place in np.ndindex(shape)]
    labels = [f"{name}{place}" for name in names for place in at]
    return [coordinates.names("number", labels, "field and grid index, y first")]


def _lay_out_matrix(
    run: Run, asked: Asked, zero: LagZero, axes: list[Coordinate], names: list[str]
) -> None:
    shape = tuple(len(axis.values) for axis in axes)
    dims = [axis.name for axis in axes]
    kicked = [Coordinate(f"{a.name}_kicked", a.values, a.attrs) for a in axes]
    unit = "1" if len({field.units for field in run.saved.fields}) == 1 else "of number / kicked"
    texts = {
        "response": "response to a kick of one number",
        "response_raw": "response before recalibration of the score",
        "standard_error": "standard error of response, by leaving out one unit",
    }
    create_store(
        matrix_of(run),
        variables=[
            Variable(
                name,
                ("lag", *dims, *(axis.name for axis in kicked)),
                (asked.lags + 1, *shape, *shape),
                (lags_together(run, asked), *shape, *shape),
                "float64",
                {"long_name": texts[name], "units": unit},
            )
            for name in names
        ],
        coordinates=[coordinates.lag(run, asked.lags), *axes, *kicked],
        attrs={
            **run.attributes("response of every number to a kick of every number"),
            "estimator": asked.estimator,
            "stein_error": zero.stein_error,
            "unresolved": zero.unresolved,
            "recalibrated": int(zero.recalibrated),
            "units_of_error": len(run.groups) * len(slabs(run, asked)),
        },
    )


def summary(run: Run) -> list[str]:
    """What the matrix says of the score, and of its errors."""
    attrs = open_store(matrix_of(run)).attrs
    size, count = run.saved.numbers, attrs["units_of_error"]
    lines = [
        f"{attrs['estimator']}: Stein error {attrs['stein_error']:.3g}, {attrs['unresolved']} of "
        f"{size} directions unresolved, {'' if attrs['recalibrated'] else 'not '}recalibrated"
    ]
    if count < ENOUGH_UNITS:
        lines.append(f"no standard errors: {count} slabs of groups, needs {ENOUGH_UNITS}")
    return lines
