"""Whole runs on a GPU: every stage that computes a learned score there. Skipped without one."""

import subprocess
import sys

import pytest
import torch
import yaml

from workflow.loading import load_run
from workflow.stages.data import load_estimator, read_scores, read_snapshots

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

SPECIFICATION = {
    "name": "small",
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {"members": 8, "group": 4, "spinup": 0.5, "length": 8.0, "save_every": 0.5},
    "score": {
        "network": {"channels": 8, "residual_blocks": 1},
        "train": {"steps": 20, "save_every": 10, "global_batch": 8},
    },
    "response": {"estimators": ["neural", "gaussian"], "max_lag": 2.0},
    "cluster": {"simulate": {"workers": 2}, "analyse": {"workers": 2}},
}


def run_all(folder, *overrides):
    """`gfdt run`; what it said."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SPECIFICATION))
    command = [sys.executable, "-m", "workflow.cli", "run", str(folder / "small.yaml")]
    command += ["--runs", str(folder)]
    command += [word for one in overrides for word in ("--set", one)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_trains_and_scores_on_the_gpu(tmp_path, ranks, request):
    """All stages end, twice; the stored scores are those of the CPU to 1e-4."""
    if ranks == 2:
        request.getfixturevalue("two_ranks")
    done = run_all(tmp_path, f"score.train.ranks={ranks}")
    assert done.returncode == 0, done.stderr + done.stdout
    again = run_all(tmp_path, f"score.train.ranks={ranks}")
    assert again.returncode == 0, again.stderr + again.stdout
    assert_scores_are_those_of_the_cpu(tmp_path)


def test_a_conditional_score_trains_on_the_gpu(tmp_path):
    """Vorticity given its forcing, a network that sees the flow, units of noise from a pilot."""
    forced = ["system={kind: navier_stokes, grid: 16, save_forcing: true}"]
    forced += ["score.network.views=[velocity]", "score.train.pilot=0.3"]
    done = run_all(tmp_path, "score.train.ranks=1", "score.train.precision=bf16", *forced)
    assert done.returncode == 0, done.stderr + done.stdout
    assert_scores_are_those_of_the_cpu(tmp_path)


def assert_scores_are_those_of_the_cpu(folder):
    """Those that are stored, of the run in `folder`, to 1e-4."""
    run = load_run(str(folder / "small"), folder)
    members, times = run.groups[0], run.segment_times(0)
    x = torch.from_numpy(read_snapshots(run, members, times)).flatten(0, 1)
    stored = torch.from_numpy(read_scores(run, "neural", members, times)).flatten(0, 1)
    with torch.no_grad():
        found = load_estimator(run, "neural")(x)
    assert (found - stored).square().mean().sqrt() < 1e-4 * found.square().mean().sqrt()


def test_a_generative_run_samples_on_the_gpu(tmp_path):
    """A score for all noise levels, and the error budget of its samples."""
    done = run_all(tmp_path, "score.train.ranks=1", "score.process.kind=ve")
    assert done.returncode == 0, done.stderr + done.stdout
