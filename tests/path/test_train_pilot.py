"""Runs whose training has a pilot: what it leaves, when it is made again, when there is none."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from workflow.opening import open_run
from workflow.stages.data import load_model, load_whitening
from workflow.stages.pipeline import run_stages
from workflow.stages.plan import plan

EXPERIMENT = {
    "name": "piloted",
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {"members": 8, "group": 8, "spinup": 4.0, "length": 64.0},
    "score": {
        "network": {"channels": 4, "residual_blocks": 1},
        "train": {"ranks": 1, "steps": 20, "save_every": 10, "pilot": 0.3},
    },
    "response": {"estimators": ["neural"], "max_lag": 4.0},
}


def trained(folder, client, **score):
    content = {**EXPERIMENT, "score": {**EXPERIMENT["score"], **score}}
    (folder / "piloted.yaml").write_text(yaml.safe_dump(content))
    run = open_run(str(folder / "piloted.yaml"), folder / "runs")
    stages = ("simulate", "train")
    run_stages(run, stages, command="test", notify=lambda *_: None, client=client)
    return run


def told(run):
    return [
        line
        for line in (run.folder / "logs" / "train.log").read_text().splitlines()
        if line.startswith("pilot")
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, client):
    return trained(tmp_path_factory.mktemp("pilot"), client)


def test_a_pilot_leaves_the_information_that_training_uses(run):
    assert told(run) == ["pilot: step 6 of 6"]
    found = torch.load(run.folder / "score" / "information.pt")["information"]
    assert torch.equal(load_whitening(run).information, found)
    assert torch.equal(load_model(run).whitening.information, found)
    assert float(found.min()) > 0
    lines = (run.folder / "score" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [0, 10, 20]


def test_a_finished_pilot_is_not_made_again(run, client):
    """Of a training that goes on; a damaged one is refused."""
    path = run.folder / "score" / "information.pt"
    before = path.read_bytes()
    for block in ("neural", "step-00000020"):
        run.ledger("train").drop(block)
        (run.folder / "score" / f"{block}.pt").unlink()
    (run.folder / "logs" / "train.log").unlink()
    run_stages(run, ("train",), command="test", notify=lambda *_: None, client=client)
    assert told(run) == []
    assert path.read_bytes() == before
    assert run.is_trained


def test_another_share_is_another_training(run):
    changed = run.experiment.model_copy(deep=True)
    object.__setattr__(changed.score.train, "pilot", 0.0)
    assert type(run)(run.folder, changed).key("train") != run.key("train")


def test_noise_of_all_sizes_has_no_units_to_find(tmp_path, client):
    run = trained(tmp_path, client, process={"kind": "ve"})
    assert told(run) == []
    assert not (run.folder / "score" / "information.pt").exists()
    assert run.is_trained


def test_a_plan_counts_the_pilot(run, monkeypatch):
    monkeypatch.setattr("workflow.stages.plan.seconds_per_training_step", lambda *_: 360.0)
    assert plan(run)["training_core_hours"] == {"neural": 2.6}
