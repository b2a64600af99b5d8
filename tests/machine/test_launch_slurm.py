"""Starting ranks on a real Slurm: the right launcher is found, every wrong one is told."""

import importlib.util
import json
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
