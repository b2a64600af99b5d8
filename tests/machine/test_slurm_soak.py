"""Faults of `benchmarks/faults_slurm.py`: every run ends with the store of an undisturbed one."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "faults_slurm.py"
SPEC = importlib.util.spec_from_file_location("faults_slurm", PATH)
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", BENCHMARK.FAULTS)
def test_a_run_survives(slurm_cluster, work, name):
    found = BENCHMARK.FAULTS[name](work, seed=2)
    assert found["survived"] == found["tried"] > 0, (work / "driver.log").read_text()[-2000:]
