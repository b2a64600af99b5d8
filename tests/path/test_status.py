"""What `gfdt status` tells from files alone, of runs that are finished, running, dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from hpc.ledger import Ledger, Receipt
from hpc.lock import run_lock
from hpc.receipts import encode
from workflow.opening import open_run
from workflow.stages.frames import lay_down
from workflow.stages.status import SAMPLE, pace_of, status
from workflow.status_view import duration, lines, log_line, sparkline

SMALL = {
    "name": "small",
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {"members": 8, "group": 4, "spinup": 1.0, "length": 64.0, "chunk": "8KiB"},
    "score": {"train": {"steps": 100, "ranks": 2}},
    "response": {"estimators": ["neural", "gaussian"], "max_lag": 4.0},
}
HOLD = """
import sys, time
from hpc.lock import run_lock
from hpc.receipts import encode
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    found = open_run("small.yaml", tmp_path / "runs")
    lay_down(found, command="test")
    return found


def finish(run, stage, count, seconds=1.0):
    for number in range(count):
        block = f"ensemble-g{number % 2:04d}-{number // 2:05d}"
        path = run.ledger(stage).path(block)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Receipt(block, {}, {"seconds": seconds})))


def test_a_driver_that_was_killed_is_told_dead(run):
    with run_lock(run.folder):
        assert status(run)["driver"]["alive"]
        assert f"works: pid {os.getpid()} on " in "\n".join(lines(status(run)))
    assert status(run)["driver"] is None
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert status(run)["driver"]["pid"] == holder.pid
    finally:
        holder.kill()
        holder.wait()
    found = status(run)
    assert found["driver"]["alive"] is False
    told = "\n".join(lines(found))
    assert f"died: pid {holder.pid} on " in told
    assert "nobody works on it; continue with: gfdt run small" in told
    assert "driver=none" in log_line(found)


def test_blocks_members_and_cost_are_those_of_the_receipts(run):
    finish(run, "simulate", 7, seconds=36.0)
    found = status(run)
    assert found["stages"]["simulate"] == {"done": 7, "blocks": 2 * found["group_blocks"]}
    assert found["groups"] == [4, 3]
    assert found["core_hours"]["simulate"] == pytest.approx(7 * 36 / 3600)
    assert not found["finished"] and found["jobs"] == [] and found["slurm"] is None


def test_few_receipts_are_opened_however_many_there_are(run, monkeypatch):
    many, opened = 3000, []
    finish(run, "simulate", many, seconds=3.6)
    load = Ledger.load
    monkeypatch.setattr(Ledger, "load", lambda self, name: opened.append(name) or load(self, name))
    found = status(run)
    assert found["stages"]["simulate"]["done"] == many
    assert 0 < len(opened) <= SAMPLE + 1  # and that of the experiment
    assert found["core_hours"]["simulate"] == pytest.approx(many * 3.6 / 3600)


def test_pace_is_of_the_latest_blocks(tmp_path):
    """Ten blocks, one every two seconds, the last a moment ago."""
    assert pace_of(tmp_path / "none", now=0.0) is None
    ledger, now = Ledger(tmp_path / "ledger", tmp_path), time.time()
    for number in range(10):
        ledger.record(Receipt(f"b{number}", {}))
        os.utime(ledger.path(f"b{number}"), (now - 2 * number, now - 2 * number))
    assert pace_of(ledger.folder, now=now) == pytest.approx(9 / 18)
    assert pace_of(ledger.folder, now=now + 18) == pytest.approx(9 / 36)


def test_training_is_told_from_whatever_log_there_is(run):
    assert status(run)["training"]["step"] == 0
    steps = [{"step": s, "loss": 1.0 / s, "seconds": s / 5} for s in range(10, 60, 10)]
    earlier = [{"step": 10, "loss": 2.0, "seconds": 99.0}]
    log = run.folder / "logs" / "train.log"
    log.parent.mkdir(exist_ok=True)
    torn = '{"step": 60, "lo'
    log.write_text("".join(f"{json.dumps(s)}\n" for s in earlier + steps) + "words\n" + torn)
    found = status(run)["training"]
    assert found["step"] == 50
    assert found["losses"] == [2.0, *(s["loss"] for s in steps)]
    assert found["steps_per_second"] == pytest.approx(5.0)
    (run.folder / "score").mkdir(exist_ok=True)
    kept = {"step": 40, "loss": 0.5, "test_loss": 0.7, "skipped": 1}
    (run.folder / "score" / "log.jsonl").write_text(f"{json.dumps(kept)}\n")
    found = status(run)["training"]
    assert (found["step"], found["losses"], found["test_loss"]) == (40, [0.5], 0.7)


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0.0, 1.0, 7.0]) == "▁▂█"
    assert sparkline([float(i) for i in range(400)], width=8) == "▁▂▃▄▅▆▇█"


def test_durations_have_two_units_at_most():
    assert [duration(s) for s in (5, 65, 3725)] == ["5 s", "1 min 5 s", "1 h 2 min"]


def test_watching_ends_with_ctrl_c_and_leaves_everything_alone(run):
    before = sorted(str(p) for p in run.folder.rglob("*"))
    command = [sys.executable, "-m", "workflow.cli", "status", "small", "--watch"]
    watching = subprocess.Popen(
        command,
        cwd=run.folder.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, complaints = watching.communicate(timeout=60)
    finally:
        watching.kill()
    assert first.startswith("simulate done=0 of=")
    assert watching.returncode == 0 and complaints == ""
    assert sorted(str(p) for p in run.folder.rglob("*")) == before
