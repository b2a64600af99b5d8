"""Training that is killed, warned, continued: ranks of this machine, of an allocation, of a job."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc.errors import LaunchError, MachineError
from hpc.notice import Notice
from hpc.restarts import keep_trying

PATH = Path(__file__).parents[2] / "benchmarks" / "lost_training.py"
SPEC = importlib.util.spec_from_file_location("lost_training", PATH)
TRAINING = importlib.util.module_from_spec(SPEC)
sys.modules["lost_training"] = TRAINING
SPEC.loader.exec_module(TRAINING)
JOB = "cluster.train.kind=slurm", "cluster.train.memory=2GiB", "cluster.train.walltime=00:10:00"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A simulated run, and the same trained without a fault."""
    return TRAINING.Bench.prepared(tmp_path_factory.mktemp("bench"))


def test_ranks_of_mpiexec_are_started_again_and_no_bit_changes(bench):
    """F10."""
    TRAINING.lost_ranks(bench, "mpiexec", ["SIGKILL", "SIGTERM"])


def test_ranks_of_srun_are_started_again_and_no_bit_changes(bench, slurm_cluster):
    """F10: without care the other ranks of srun wait for ever for one that is gone."""
    TRAINING.lost_ranks(bench, "srun", ["exception", "_exit(0)"], before=TRAINING.ALLOCATION)


@pytest.mark.soak
def test_a_stuck_rank_is_left_after_the_time_of_the_watchdog(bench):
    """F10: nobody else would notice it."""
    TRAINING.lost_ranks(bench, "stuck", ["SIGSTOP"], "faults.watchdog=15")


def test_other_numbers_of_ranks_go_on_with_the_same_batches(bench):
    """F13: 2, then 4, then 1."""
    assert TRAINING.other_ranks(bench) < 1e-6


def test_trainings_end_without_an_abort(bench):
    """F17: some communication libraries abort one time in ten as Python ends."""
    assert TRAINING.clean_exits(bench, 2) == 0


def test_a_training_job_outlives_its_driver_and_goes_on_after_a_warning(bench, slurm_cluster):
    """The warning is what Slurm sends before the walltime ends."""
    run = bench.copy("job")
    driver = bench.start("train", "job", *JOB)
    TRAINING.wait_for(lambda: TRAINING.steps(run))
    driver.kill()
    driver.communicate()
    (job,) = job_ids(run)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    bench.gfdt("train", "job", *JOB)
    assert job_ids(run) == [job]
    log = (run / "logs" / "train.log").read_text()
    assert re.search(r"^asked to stop: saved at step \d+$", log, re.MULTILINE)
    assert "requeued, 1 of" in (run / "logs" / f"train-{job}.log").read_text()
    assert bench.same(run)


def test_a_training_job_that_cannot_work_is_told_in_one_line(bench, slurm_cluster):
    bench.copy("refused")
    for setting, words in {
        "cluster.train.queue=none": "sbatch refused: .*nvalid partition",
        "cluster.train.launcher=srun-pmix": r"training job \d+ ended FAILED, exit code 78 at step 0"
        " of 300; last line of log: .*no rank began: launcher and MPI library do not belong",
    }.items():
        with pytest.raises(subprocess.CalledProcessError) as caught:
            bench.gfdt("train", "refused", *JOB, setting)
        assert caught.value.returncode == 78
        said = caught.value.stderr.splitlines()
        assert re.search(words, said[-1]), said
        assert "Traceback" not in caught.value.stderr


@pytest.mark.soak
def test_ranks_lost_twenty_times_change_no_bit(tmp_path, slurm_cluster):
    """F10."""
    bench = TRAINING.Bench.prepared(tmp_path, steps=3000)
    found = TRAINING.lost_ranks(bench, "many", ["SIGKILL"] * 20, before=TRAINING.ALLOCATION)
    assert len(found["restarts"]) == 20


@pytest.mark.soak
def test_a_preempted_job_goes_on_where_it_was(tmp_path, slurm_cluster):
    """F12."""
    bench = TRAINING.Bench.prepared(tmp_path, steps=3000)
    seen = TRAINING.preempted(bench)
    assert seen.same and seen.requeues == 1


@pytest.mark.soak
def test_a_hundred_trainings_end_without_an_abort(bench):
    """F17."""
    assert TRAINING.clean_exits(bench, 100) == 0


def job_ids(run):
    lines = filter(None, (run / "jobs.jsonl").read_text().splitlines())
    return [json.loads(line)["id"] for line in lines]


def failing(saves):
    """Work that saves so much at each try and then fails; how far it came, how often it began."""
    state = {"saved": 0, "tries": 0}

    def work():
        state["saved"] += saves[state["tries"]]
        state["tries"] += 1
        raise MachineError("lost a rank")

    return work, state


@pytest.mark.parametrize(
    ("saves", "restarts", "tries", "code"),
    [
        ([0, 0, 0, 1], 9, 3, 78),  # comes back until something is changed
        ([0, 0, 1, 0, 0, 0, 1], 9, 6, 78),
        ([1, 1, 1, 1], 2, 3, 75),
        ([0], 0, 1, 75),
    ],
)
def test_work_is_tried_again_as_long_as_it_gets_further(saves, restarts, tries, code, monkeypatch):
    monkeypatch.setattr("hpc.restarts.PAUSE", 0.0)
    work, state = failing(saves)
    told = []
    with pytest.raises(MachineError, match="lost a rank") as caught:
        keep_trying(
            work,
            lambda: state["saved"],
            restarts=restarts,
            notice=Notice(),
            tell=told.append,
        )
    assert (state["tries"], caught.value.exit_code) == (tries, code)
    assert len(told) == tries - 1


def test_nothing_is_started_again_after_a_notice_or_a_wrong_launch():
    with Notice() as notice:
        signal.raise_signal(signal.SIGUSR1)
        work, state = failing([1, 1])
        with pytest.raises(MachineError):
            keep_trying(work, lambda: state["saved"], restarts=1, notice=notice, tell=pytest.fail)

    def refuse():
        raise LaunchError("no mpiexec")

    with pytest.raises(LaunchError):
        keep_trying(refuse, lambda: 0, restarts=5, notice=Notice(), tell=pytest.fail)


def test_a_notice_is_passed_on_while_there_is_work():
    heard = []
    with Notice() as notice, notice.passed_on(lambda: heard.append(time.monotonic())):
        signal.raise_signal(signal.SIGUSR1)
    assert notice.given and len(heard) == 1
