"""Runs whose training has a pilot: what it leaves, when it is made again, when there is none."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from hpc.comm import SerialComm, Watchdog
from hpc.gradients import FlatGradients
from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.pilot import seconds_per_member_step, seconds_per_training_step
from workflow.stages import train_rank
from workflow.stages.data import load_model, load_whitening
from workflow.stages.pipeline import run_stages
from workflow.stages.plan import plan
from workflow.stages.train import _fit

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


def trained(folder, client, stages=("simulate", "train")):
    (folder / "piloted.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    run = open_run(str(folder / "piloted.yaml"), folder / "runs")
    run_stages(run, stages, command="test", notify=lambda *_: None, client=client)
    return run


def told(run):
    return [
        line
        for line in (run.folder / "logs" / "train.log").read_text().splitlines()
        if '"pilot"' in line
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, client):
    return trained(tmp_path_factory.mktemp("pilot"), client)


def test_a_pilot_leaves_the_information_that_training_uses(run):
    assert told(run) == ['{"pilot": 6, "of": 6}']
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


@pytest.mark.parametrize(
    "change",
    [
        {"score": {**EXPERIMENT["score"], "process": {"kind": "ve"}}},
        {"system": {"kind": "linear"}, "ensemble": {"members": 8, "spinup": 0.0, "length": 64.0}},
    ],
    ids=["wide", "no space"],
)
def test_a_pilot_that_would_find_nothing_is_refused(tmp_path, change):
    (tmp_path / "piloted.yaml").write_text(yaml.safe_dump({**EXPERIMENT, **change}))
    message = "score.train.pilot=0.3: a pilot finds the units of narrow noise on homogeneous fields"
    with pytest.raises(UserError, match=message):
        open_run(str(tmp_path / "piloted.yaml"), tmp_path / "runs")


class Interrupted(FlatGradients):
    """Is asked to stop before the step of a number."""

    at = 0

    def mean(self, loss):
        Interrupted.at -= 1
        self.asked = Interrupted.at == 0
        return super().mean(loss)


def test_a_stopped_pilot_goes_on_to_the_same_bits(run, tmp_path, client):
    """Stopped after its second step of six, and again in the training."""
    other = trained(tmp_path, client, stages=("simulate",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_rank, "FlatGradients", Interrupted)
        other.renew("train", other.folder / "score")
        _fit(other)
        for steps, left in ((2, "pilot"), (4 + 3, "step-00000003")):
            Interrupted.at = steps
            train_rank.train_rank(other, SerialComm(), Watchdog(60.0))
            assert left in other.ledger("train").done()
        assert "pilot" not in other.ledger("train").done()
        assert not (other.folder / "score" / "pilot.pt").exists()
        Interrupted.at = -1
        train_rank.train_rank(other, SerialComm(), Watchdog(60.0))
    one, two = (torch.load(r.folder / "score" / "information.pt") for r in (run, other))
    assert torch.equal(one["information"], two["information"])
    one, two = (load_model(r) for r in (run, other))
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_information_that_is_lost_is_measured_again(run, client):
    """Of a finished run: the training is then not finished."""
    path, before = run.folder / "score" / "information.pt", load_model(run)
    run.ledger("train").drop("information")
    path.unlink()
    assert not run.is_trained
    run_stages(run, ("train",), command="test", notify=lambda *_: None, client=client)
    assert run.is_trained and path.is_file()
    for ours, theirs in zip(load_model(run).parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("timed", [seconds_per_training_step, seconds_per_member_step])
def test_timing_a_step_gives_the_threads_back(run, timed):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert timed(run, 0.0) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_plan_counts_the_pilot(run, monkeypatch):
    monkeypatch.setattr("workflow.stages.plan.seconds_per_training_step", lambda *_: 360.0)
    assert plan(run)["training_core_hours"] == {"neural": 2.6}
