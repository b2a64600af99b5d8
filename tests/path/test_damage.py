"""Whatever bit of a run is flipped, whatever file is cut: it is found, named and mended."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hpc.files import atomic_write_bytes
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.runs import Run
from workflow.stages.frames import find_experiment
from workflow.stages.health import verify
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.train_rank import save_checkpoint

EXPERIMENT = {
    "name": "decaying",
    "seed": 4,
    "system": {"kind": "allen_cahn", "grid": 8, "dim": 1},
    "ensemble": {
        "members": 8,
        "group": 4,
        "spinup": 0.5,
        "length": 16.0,
        "save_every": 0.5,
        "chunk": "1KiB",  # four segments
    },
    "score": {
        "network": {"channels": 4, "residual_blocks": 1},
        "train": {"ranks": 1, "steps": 30, "save_every": 10, "global_batch": 8},
    },
    "response": {"max_lag": 1.5},
    "direct": {"pairs": 16},
    "report": {"format": ["json"]},
    "cluster": {"simulate": {"workers": 1}, "analyse": {"workers": 1}},
}
KEPT = ("*.zarr", "ledger", "score", "constants", "checks", "restart")
"""What is written once and read for numbers; logs, the report and the catalog are made anew."""
NOT = (".key", "log.jsonl")
SILENT = {"command": "test", "notify": lambda *_: None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, client):
    folder = tmp_path_factory.mktemp("decaying")
    (folder / "decaying.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    run = open_run(str(folder / "decaying.yaml"), folder / "runs")
    run_stages(run, STAGES, client=client, **SILENT)
    assert verify(run) == []
    return run


def kept_files(run):
    folders = [one for pattern in KEPT for one in run.folder.glob(pattern)]
    files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    files += [run.folder / "experiment.yaml", run.folder / "checks.json"]
    return [path for path in files if not path.name.endswith(NOT)]


def damaged(content, dice):
    """A flipped bit, or an end that is missing."""
    if dice.random() < 0.3:
        return content[: dice.randrange(len(content))]
    flipped = bytearray(content)
    flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_damage_is_found_and_named(finished, times):
    dice, files = random.Random(times), kept_files(finished)
    for _ in range(times):
        path = dice.choice(files)
        intact = path.read_bytes()
        path.write_bytes(damaged(intact, dice))
        found = [*find_experiment(finished.folder), *verify(finished)]
        path.write_bytes(intact)
        name = str(path.relative_to(finished.folder))
        assert found, name
        assert {p.path for p in found} <= {name, str(path)}, (name, found)
    assert verify(finished) == []


def test_a_damaged_receipt_of_the_newest_checkpoint_is_the_only_thing_named(finished):
    """`latest.json` names that checkpoint, and is sound."""
    path = max((finished.folder / "ledger" / "train").glob("step-*.json"))
    intact = path.read_bytes()
    try:
        for position in range(0, len(intact), 7):
            flipped = bytearray(intact)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            assert {p.path for p in verify(finished)} == {str(path)}
    finally:
        path.write_bytes(intact)


def test_exactly_what_is_damaged_is_made_again_bit_for_bit(finished, tmp_path, in_process, client):
    """Of every kind one at once: blocks, states, checkpoints, receipts, frames, the experiment."""
    shutil.copytree(finished.folder.parent.parent, tmp_path / "work")
    run = Run(tmp_path / "work" / "runs" / "decaying", finished.experiment)
    before = {path: path.read_bytes() for path in kept_files(run)}
    wanted = (
        "ensemble.zarr/u/c/1/2/0",
        "ensemble.zarr/time/c/0",
        "scores.zarr/score_u/zarr.json",
        "scores.zarr/score_u/c/1/0/1/0",
        "correlations.zarr/zarr.json",
        "response.zarr/estimator/c/0",
        "restart/spinup-g0000-00001.pt",
        "restart/ensemble-g0001-00003.pt",
        "ledger/evaluate/scores-g0000-00001.json",
        "ledger/frames/ensemble%2Ezarr.json",
        "score/step-00000030.pt",
        "score/neural.pt",
        "score/latest.json",
        "constants/constants-neural.pt",
        "checks/states-g0000.pt",
        "experiment.yaml",
    )
    stamps = {p: p.stat().st_mtime_ns for p in before if "/ledger/" in str(p)}
    dice = random.Random(7)
    for name in wanted:
        path = run.folder / name
        path.write_bytes(damaged(before[path], dice))
    for command, code in (("verify", 75), ("repair", 0), ("verify", 0)):
        assert in_process(command, run.folder, "-q").returncode == code, command
        if command == "repair":
            assert (run.folder / "experiment.yaml").read_bytes() == before[
                run.folder / "experiment.yaml"
            ]
    run_stages(run, STAGES, client=client, **SILENT)
    assert verify(run) == []
    after = {path: path.read_bytes() for path in kept_files(run)}
    assert after.keys() == before.keys()
    changed = {p.name for p in before if "/ledger/" not in str(p) and after[p] != before[p]}
    # A checkpoint that was resumed to is pickled otherwise; its numbers are compared.
    assert changed <= {"step-00000030.pt", "latest.json"}
    states = [finished.folder / "score/step-00000030.pt", run.folder / "score/step-00000030.pt"]
    assert_same(*(torch.load(path, weights_only=True) for path in states))
    again = {p.stem for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp}
    assert again == {
        *("ensemble-g0001-00002", "spinup-g0000-00001", "ensemble-g0001-00003"),
        *("scores-g0000-00001", "response", "step-00000030", "constants-neural", "states-g0000"),
        "neural",
        *("ensemble%2Ezarr", "scores%2Ezarr", "correlations%2Ezarr", "response%2Ezarr"),
        "checks",  # judged again from its parts
    }


def test_a_lost_experiment_is_put_back(finished, tmp_path):
    folder = tmp_path / "decaying"
    shutil.copytree(finished.folder, folder)
    intact = (folder / "experiment.yaml").read_bytes()
    (folder / "experiment.yaml").unlink()
    assert [p.path for p in find_experiment(folder, repair=True)] == ["experiment.yaml"]
    assert (folder / "experiment.yaml").read_bytes() == intact
    assert load_run(folder, Path(".")).experiment == finished.experiment


@pytest.mark.parametrize("kills", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_while_a_checkpoint_is_saved_leaves_the_one_before(finished, tmp_path, kills):
    """At any moment; the newest that is sound is at most one older than the last begun."""
    run = Run(tmp_path / "run", finished.experiment)
    dice = random.Random(kills)
    watch, first, text = SimpleNamespace(state=dict), 1, ""
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):  # the suite goes on in the parent alone
                for step in range(first, first + 10_000):
                    state = {"step": step, "x": torch.full((50_000,), float(step))}
                    one = SimpleNamespace(step=step, state=lambda s=state: s)
                    save_checkpoint(run, one, watch)
                    atomic_write_bytes(tmp_path / "saved", str(step).encode())
            os._exit(1)
        time.sleep(dice.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        text = (tmp_path / "saved").read_text() if (tmp_path / "saved").exists() else ""
        ledger = run.ledger("train")
        bad = {problem.block for problem in ledger.problems()}
        sound = sorted(ledger.done() - bad)
        assert bad <= {min(ledger.done(), default="")}  # one on its way out
        if text:
            step = int(sound[-1][5:])
            assert step >= int(text)
            content = torch.load(run.folder / "score" / f"{sound[-1]}.pt", weights_only=True)
            assert content["step"] == step and bool((content["x"] == step).all())
        first = max(first, int(text or 0) + 1)
    assert text
