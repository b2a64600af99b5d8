"""A run as Slurm jobs, on a real Slurm: the same numbers, whatever is killed, and nobody else's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hpc import jobs, slurm
from hpc.errors import CONFIGURATION, TRY_AGAIN, LaunchError, MachineError
from hpc.lease import holder_of
from hpc.lock import run_lock
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.stages import submit as submitting
from workflow.stages.jobs import plan_jobs
from workflow.stages.status import status
from workflow.status_view import lines

EXPERIMENT = {
    "name": "tiny",
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {"members": 8, "group": 4, "spinup": 1.0, "length": 40.0, "chunk": "8KiB"},
    "score": {
        "network": {"channels": 8},
        "train": {"steps": 20, "save_every": 10, "ranks": 2, "global_batch": 16},
    },
    "response": {"estimators": ["neural", "gaussian"], "max_lag": 4.0, "checks": False},
    "cluster": {"simulate": {"workers": 1}, "analyse": {"workers": 1}},
}
PATIENCE = 240
LATER = "cluster.driver.extra=['--begin=now+1hour']"

pytestmark = pytest.mark.usefixtures("slurm_cluster")


def until(happened, what):
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.2)
    return found


def states(ids):
    known = {job.id: job.state for job in slurm.jobs(ids)}
    return [known.get(job) for job in ids]


def logs(folder):
    return lambda: "\n".join(f"{p}: {p.read_text()}" for p in (folder / "logs").glob("*.log"))


def response(folder):
    files = [p for p in (folder / "response.zarr").rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in tmp_path.glob("*/tiny/experiment.yaml"):
        submitting.cancel(load_run(path.parent, tmp_path))


@pytest.fixture
def gfdt(work, in_process):
    """A command in the folder of the experiment."""
    return in_process


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Response of the same experiment without Slurm."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    command = [sys.executable, "-m", "workflow.cli", "run", "tiny.yaml", "-q"]
    subprocess.run(command, cwd=folder, check=True, timeout=PATIENCE)
    return response(folder / "runs" / "tiny")


def submitted(work, *settings, driver="chain"):
    """The run and the ids of its jobs, submitted from this process."""
    run = open_run(str(work / "tiny.yaml"), work / "runs", settings)
    planned = plan_jobs(run, driver=driver, where=[work])
    return run, submitting.submit(run, planned, command="test")


def test_a_chain_of_jobs_makes_what_one_machine_makes(work, gfdt, local):
    told = gfdt("submit", "tiny.yaml", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)["jobs"]
    assert [job["role"] for job in found] == ["stage:simulate", "stage:train", "stage:analyse"]
    folder, ids = work / "runs" / "tiny", [job["id"] for job in found]
    assert [entry.id for entry in jobs.read(folder)] == ids
    until(lambda: set(states(ids)) <= {"COMPLETED", "FAILED", "CANCELLED"}, logs(folder))
    assert states(ids) == ["COMPLETED"] * 3, logs(folder)()
    assert response(folder) == local
    assert status(load_run("tiny", work / "runs"))["finished"]


def test_a_chain_whose_jobs_have_worker_jobs_makes_the_same(work, local):
    """Drivers on one node, workers on others."""
    pool = ("kind=slurm", "max_jobs=2", "memory=1GiB", "walltime=10m")
    wide = [f"cluster.{part}.{one}" for part in ("simulate", "analyse") for one in pool]
    run, ids = submitted(work, *wide)
    until(lambda: set(states(ids)) <= {"COMPLETED", "FAILED", "CANCELLED"}, logs(run.folder))
    assert states(ids) == ["COMPLETED"] * 3, logs(run.folder)()
    assert response(run.folder) == local
    workers = [entry.id for entry in jobs.read(run.folder) if entry.role == "worker"]
    assert len(workers) >= 3
    until(lambda: not {"PENDING", "RUNNING"} & set(states(workers)), "workers are left")


def test_a_driver_goes_on_after_its_walltime_and_after_a_kill(work, local):
    """The end of the walltime is told by the signal that Slurm sends before it."""
    run, [job] = submitted(work, driver="job")
    ledger = run.ledger("simulate")
    until(lambda: len(ledger.done()) > 2, logs(run.folder))
    node = slurm.jobs([job])[0].reason
    slurm.ask(["scancel", "--batch", "--signal=USR1", job])
    until(lambda: states([job]) == ["PENDING"], logs(run.folder))
    before = {block: ledger.load(block) for block in ledger.done()}
    assert not status(run)["driver"]
    # Slurm waits two minutes, for a node does not take a job again at once; another one does.
    slurm.ask(["scontrol", "update", f"JobId={job}", f"ExcNodeList={node}", "StartTime=now"])
    until(lambda: holder_of(run.folder), logs(run.folder))
    os.kill(holder_of(run.folder).pid, signal.SIGKILL)
    until(lambda: states([job]) not in (["PENDING"], ["RUNNING"]), logs(run.folder))
    assert states([job]) in (["COMPLETED"], ["COMPLETING"]), logs(run.folder)()
    assert response(run.folder) == local
    assert {block: ledger.load(block) for block in before} == before
    said = (run.folder / "logs" / f"driver-{job}.log").read_text()
    assert "requeued, 1 of 20" in said
    assert "ended with code 137, attempt 1 of 5" in said


def test_a_failed_stage_leaves_the_later_ones_unstarted_and_status_says_so(work):
    run, ids = submitted(work, "cluster.simulate.prologue=['echo gfdt: no disk; exit 3']")
    until(lambda: states(ids)[1:] == ["CANCELLED"] * 2, logs(run.folder))
    assert states(ids)[0] == "FAILED"
    told = "\n".join(lines(status(run)))
    assert re.search(rf"job {ids[0]} +simulate FAILED: no disk\n", told)
    assert re.search(rf"job {ids[2]} +analyse CANCELLED, never started\n", told)
    assert "nobody works on it; continue with: gfdt submit tiny" in told


def test_a_refused_job_leaves_nothing_submitted(work, gfdt):
    before = {job.id for job in slurm.jobs()}
    told = gfdt("submit", "tiny.yaml", "--set", "cluster.train.queue=nowhere")
    assert told.returncode == CONFIGURATION
    assert told.stderr.count("\n") == 1 and told.stdout == ""
    assert told.stderr.startswith("gfdt: sbatch refused: ")
    assert "invalid partition" in told.stderr and "job train" in told.stderr
    assert "nothing was submitted" in told.stderr
    until(lambda: {job.id for job in slurm.jobs()} <= before, "jobs are left")


def test_cancelling_takes_the_own_jobs_and_no_others(work, gfdt, tmp_path):
    """Also not one that has the number of an old job of this run by now."""
    script = tmp_path / "other.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --begin=now+1hour\nsleep 1\n")
    other = slurm.submit(script)
    try:
        run, ids = submitted(work, LATER, f"cluster.simulate.extra={LATER.split('=', 1)[1]}")
        jobs.record(run.folder, other, "stage:train")
        with pytest.raises(MachineError, match=f"has jobs already: {ids[0]} .*gfdt cancel tiny"):
            submitted(work)
        assert [job.id for _, job in submitting.cancel(run, dry_run=True)] == ids
        assert states(ids) == ["PENDING"] * 3
        told = gfdt("cancel", "tiny")
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("cancelled job") == 3
        assert states(ids) == ["CANCELLED"] * 3
        assert submitting.cancel(run) == []
        assert states([other]) == ["PENDING"]
        again = submitted(work, LATER)[1]
        assert not set(again) & set(ids)
    finally:
        slurm.cancel([other])


def test_a_run_somebody_works_on_is_not_submitted(work, gfdt):
    run = open_run(str(work / "tiny.yaml"), work / "runs")
    with run_lock(run.folder):
        told = gfdt("submit", "tiny.yaml")
    assert told.returncode == TRY_AGAIN
    assert "is in use by pid" in told.stderr and told.stderr.count("\n") == 1
    assert jobs.read(run.folder) == []


def test_the_scripts_are_kept_and_a_dry_run_prints_them(work, gfdt):
    told = gfdt("submit", "tiny.yaml", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert sorted(os.listdir(work)) == ["tiny.yaml"]
    run, _ = submitted(work, LATER, f"cluster.simulate.extra={LATER.split('=', 1)[1]}")
    for name in ("train", "analyse"):
        kept = (run.folder / "jobs" / f"{name}.sbatch").read_text()
        if name == "train":
            assert kept in told.stdout
        assert kept.startswith("#!/bin/bash\n") and str(Path(sys.executable)) in kept


def test_where_there_is_no_slurm_a_line_says_so(work, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    run = open_run(str(work / "tiny.yaml"), work / "runs")
    with pytest.raises(LaunchError, match="no sbatch on this machine"):
        submitting.submit(run, [], command="test")
    assert not run.folder.exists()
