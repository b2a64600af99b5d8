"""Frames: fingerprints of what no block holds, metadata and coordinates of stores, the experiment.

Each changes only in the stage that writes its store, and only after the experiment has changed,
which forgets them all; a store that is discarded is forgotten with it. So whatever differs from
its record is damaged.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import yaml

from hpc.files import atomic_write_bytes, atomic_write_json, file_crc
from hpc.layout import frame_of
from hpc.ledger import Ledger, Problem, Receipt
from hpc.stores import is_consolidated
from workflow.provenance import versions
from workflow.runs import Run

STAGE = "frames"

EXPERIMENT = "experiment"

WHOLE = {"response.zarr": ("respond", "response"), "matrix.zarr": ("matrix", "matrix")}
"""Stores that are one block of a ledger, and made again as a whole."""


STORES = {
    "simulate": ("ensemble.zarr",),
    "evaluate": ("scores.zarr",),
    "respond": ("correlations.zarr", "perturbed.zarr", "response.zarr"),
    "matrix": ("matrix_sums.zarr", "matrix.zarr"),
    "sample": ("samples.zarr", "comparison.zarr"),
}
"""Stores by the stage that writes them; no other stage changes their frames."""


def lay_down(run: Run, *, command: str) -> None:
    """Write the resolved experiment and its provenance into the run folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(run.experiment.model_dump(mode="json"), sort_keys=False)
    path, ledger = run.folder / "experiment.yaml", run.ledger(STAGE)
    if not path.is_file() or path.read_text() != text:
        ledger.drop(*ledger.done())  # stages may now make their stores longer
        atomic_write_bytes(path, text.encode())
    if EXPERIMENT not in ledger.done():
        ledger.record(Receipt(EXPERIMENT, {path.name: file_crc(path)}, {"text": text}))
    atomic_write_json(
        run.folder / "provenance.json",
        {"command": command, "host": platform.node(), "python": platform.python_version()}
        | {"versions": versions(), "python_path": [str(Path.cwd()), *sys.path[:1]]},
    )


def seal(run: Run, stage: str) -> None:
    """Record the frames of the stores that a stage has finished, of those that have no record."""
    ledger = run.ledger(STAGE)
    done = ledger.done()
    for name in STORES.get(stage, ()):
        store = run.folder / name
        # A store that is not consolidated is still to be changed.
        if name in done or not (store / "zarr.json").is_file() or not is_consolidated(store):
            continue
        files = {str(one.relative_to(run.folder)): file_crc(one) for one in frame_of(store)}
        ledger.record(Receipt(name, files))


def forget_absent(run: Run) -> None:
    """Forget the frames of stores that are gone: what was in them is missed by its own blocks."""
    ledger = run.ledger(STAGE)
    gone = [s for s in ledger.done() if s.endswith(".zarr") and not (run.folder / s).exists()]
    if gone:
        ledger.drop(*gone)


def mend(run: Run, store: str) -> None:
    """Remove a damaged frame, so that its stage lays it down anew around the chunks."""
    if store in WHOLE:
        stage, block = WHOLE[store]
        run.ledger(stage).drop(block)
    else:
        for path in [run.folder / store / "zarr.json", *frame_of(run.folder / store)]:
            path.unlink(missing_ok=True)
    run.ledger(STAGE).drop(store)


def find_experiment(folder: Path, *, repair: bool = False) -> list[Problem]:
    """Whether experiment.yaml is missing or damaged, which must be known before a run is loaded.

    Args:
        folder: of the run.
        repair: put it back from its record.
    """
    ledger, path = Ledger(folder / "ledger" / STAGE, folder), folder / "experiment.yaml"
    found = [problem for problem in ledger.problems() if problem.path == path.name]
    if found and repair:
        atomic_write_bytes(path, ledger.load(EXPERIMENT).facts["text"].encode())
    return found
