"""What is told, or refused, before anything is done: numbers of files, scripts of worker jobs."""

import json
import subprocess

import pytest

from hpc.backends import open_client
from hpc.errors import CONFIGURATION
from hpc.jobs import job_name, read
from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.stages.frames import lay_down
from workflow.stages.plan import MOST_FILES, chunk_files, refuse_many_files
from workflow.stages.pools import jobs_of

MANY = ["ensemble.members=40000", "ensemble.group=1", "ensemble.chunk=1KiB"]


@pytest.fixture
def source(tmp_path, monkeypatch, small_yaml):
    (tmp_path / "small.yaml").write_text(small_yaml)
    monkeypatch.chdir(tmp_path)
    return "small.yaml"


def settings(*chosen):
    return [word for one in chosen for word in ("--set", one)]


@pytest.mark.parametrize("command", ["run", "simulate", "submit"])
def test_a_run_of_too_many_files_is_refused_before_anything_is_written(
    in_process, source, tmp_path, command
):
    told = in_process(command, source, *settings(*MANY))
    assert told.returncode == CONFIGURATION
    assert told.stderr.count("\n") == 1 and told.stderr.startswith("gfdt: small writes ")
    assert f"more than {MOST_FILES}" in told.stderr and "or give --force" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_one_that_was_forced_goes_on_without_and_is_not_extended(source, tmp_path):
    run = open_run(source, tmp_path / "runs", MANY)
    with pytest.raises(UserError, match="or give --force"):
        refuse_many_files(run)
    lay_down(run, command="test")
    refuse_many_files(open_run(source, tmp_path / "runs", MANY))
    longer = open_run(source, tmp_path / "runs", [*MANY, "ensemble.length=16"])
    assert chunk_files(longer) > chunk_files(run)
    with pytest.raises(UserError, match="or give --force"):
        refuse_many_files(longer)


def test_the_plan_has_the_script_of_a_worker_as_it_is_submitted(
    slurm_cluster, in_process, source, tmp_path
):
    """Byte for byte, but for what only a running driver knows."""
    chosen = [f"cluster.simulate.{s}" for s in ("kind=slurm", "max_jobs=3", "memory=1GiB")]
    chosen.append("cluster.simulate.prologue=['module load gcc']")
    told = in_process("plan", source, "--json", *settings(*chosen))
    assert told.returncode == 0, told.stderr
    planned = json.loads(told.stdout)["jobs"]["worker of simulate"]
    assert planned in in_process("plan", source, *settings(*chosen)).stdout
    run = open_run(source, tmp_path / "runs", [*chosen, "cluster.simulate.min_jobs=1"])
    jobs = jobs_of(run.experiment.cluster.simulate)
    with open_client("slurm", workers=1, jobs=jobs, log_dir=run.folder / "logs") as client:
        client.wait_for_workers(1, timeout=60)
        ask = ["scontrol", "write", "batch_script", read(run.folder)[0].id, "-"]
        submitted = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        (private,) = run.folder.glob(".tls-*")
        submitted = submitted.replace(client.scheduler.address, "tls://DRIVER:PORT")
        submitted = submitted.replace(private.name, ".tls-XXXX").replace("worker-1 ", "worker-N ")
    command, _, text = planned.partition("\n")
    assert command.startswith(f"# sbatch --job-name={job_name(run.folder, 'worker')} ")
    assert text.strip() == submitted.strip()
