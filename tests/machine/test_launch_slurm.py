"""Starting ranks on a real Slurm: the right launcher is found, every wrong one is told."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "wrong_launches.py"
SPEC = importlib.util.spec_from_file_location("wrong_launches", PATH)
LAUNCHES = importlib.util.module_from_spec(SPEC)
sys.modules["wrong_launches"] = LAUNCHES
SPEC.loader.exec_module(LAUNCHES)


@pytest.mark.parametrize("cell", LAUNCHES.MATRIX)
def test_a_wrong_launch_ends_with_advice(cell, tmp_path, slurm_cluster):
    """F14: most of them would otherwise train apart, in silence, and end with 0."""
    wrong = LAUNCHES.MATRIX[cell]
    code, _, said = LAUNCHES.try_wrong(tmp_path, wrong)
    assert code == 78, said
    assert wrong.advice in said and len(said.splitlines()) == 1


DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a rank inside MPI, which runs no handler
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
LAUNCH = """
import sys
from pathlib import Path
from hpc.errors import MachineError
from hpc.launch import launch_ranks
from hpc.launchers import Layout
log = Path(sys.argv[1]) / "log"
try:
    launch_ranks("deaf", [], layout=Layout(2), log=log, launcher="srun-pmi2")
except MachineError as error:
    print(error)
"""


def test_ranks_that_wait_for_a_lost_one_are_not_asked_to_end_but_killed(tmp_path, slurm_cluster):
    """Slurm asks, and then waits for its KillWait, 30 s by default: training would stand still."""
    (tmp_path / "deaf.py").write_text(DEAF)
    job = ["salloc", "--quiet", "--ntasks=2", "--nodes=2", "--mem=1G", "--time=5"]
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*job, sys.executable, "-c", LAUNCH, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "deaf stopped: rank exited with code 137" in done.stdout, done.stderr
    said = (tmp_path / "log").read_text()
    assert said.count(": Killed") == 2 and " Terminating StepId=" not in said


def test_the_doctor_has_a_job_call_back_and_its_ranks_meet(tmp_path, slurm_cluster):
    command = [sys.executable, "-m", "workflow.cli", "doctor", "--slurm", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == 0, checks
    assert list(checks) == ["slurm", "slurm job", "connect back", "slurm mpi"]
    assert "srun-pmi2: 2 ranks add up" in checks["slurm mpi"]["message"]
    assert "batch, low, high" in checks["slurm"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_misses_slurm_only_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    from hpc.check_slurm import check_slurm

    assert check_slurm(needed=False).ok
    assert not check_slurm(needed=True).ok
