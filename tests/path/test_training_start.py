"""Training that only makes it worse leaves the score that it started from, and says so."""

from __future__ import annotations

import json

import pytest
import torch
import xarray as xr
import yaml

from workflow.opening import open_run
from workflow.stages.pipeline import run_stages

EXPERIMENT = {
    "name": "gaussian",
    "seed": 3,
    # Its score is linear: a network has nothing to add.
    "system": {"kind": "ornstein_uhlenbeck", "grid": 8, "relaxation": 0.3},
    "ensemble": {"members": 8, "group": 8, "spinup": 0.0, "length": 64.0},
    "score": {
        "network": {"channels": 8},
        # Steps far too large.
        "train": {"ranks": 1, "steps": 30, "save_every": 10, "learning_rate": 1.0, "ema": 0.0},
    },
    "response": {"estimators": ["neural", "gaussian"], "max_lag": 4.0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, client):
    folder = tmp_path_factory.mktemp("start")
    (folder / "gaussian.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    run = open_run(str(folder / "gaussian.yaml"), folder / "runs")
    stages = ("simulate", "train", "evaluate", "respond", "report")
    run_stages(run, stages, command="test", notify=lambda *_: None, client=client)
    return run


def log(run):
    lines = (run.folder / "score" / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_start_is_judged_with_the_rest(run):
    tested = {line["step"]: line["test_loss"] for line in log(run) if "test_loss" in line}
    assert list(tested) == [0, 10, 20, 30]
    assert min(tested.values()) == tested[0] == pytest.approx(-1, abs=0.2)
    used = torch.load(run.folder / "score" / "neural.pt")
    assert used["step"] == 0 and used["loss"] == pytest.approx(tested[0], abs=1e-6)


def test_the_learned_score_is_then_a_gaussian_one_but_for_what_512_snapshots_leave_open(run):
    """It also starts from a local potential, fitted to the same few data."""
    scores = xr.open_zarr(run.scores).score_u.load()
    known = scores.sel(estimator="gaussian")
    far = scores.sel(estimator="neural") - known
    assert float((far**2).mean() / (known**2).mean()) < 0.02


def test_the_checks_say_so(run):
    checks = json.loads((run.folder / "checks.json").read_text())
    note = next(c["note"] for c in checks["neural"] if c["name"] == "loss on held-out data")
    assert note.endswith("training did not lower it, so the learned score is what it started from")
