"""Workers that are Slurm jobs: lost, replaced, counted, refused."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import distributed
import pytest

from hpc import control, slurm
from hpc.backends import open_client
from hpc.chains import Task, run_chains
from hpc.control import Order
from hpc.errors import LaunchError, MachineError
from hpc.job_script import Jobs
from hpc.jobs import job_name, read
from hpc.ledger import Receipt

SMALL = Jobs(max_jobs=2, memory=2**29, walltime=600.0)


def nap(block, seconds):
    time.sleep(seconds)
    facts = {"seconds": seconds, "job": os.environ["SLURM_JOB_ID"]}
    return Receipt(block, {}, facts)


def naps(count, seconds):
    return [[Task(f"b{i}", (f"b{i}", seconds))] for i in range(count)]


@pytest.fixture
def folder(slurm_cluster, tmp_path):
    folder = tmp_path / "a run"  # a blank in the path, as users have them
    yield folder
    wait_for(lambda: not jobs_of(folder))
    assert not list(folder.glob(".tls-*"))
    assert not (folder / control.STATE).exists()


def opened(folder, jobs=SMALL):
    return open_client("slurm", workers=1, jobs=jobs, log_dir=folder / "logs")


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, subprocess.getoutput("squeue --states=all")
        time.sleep(0.1)


def jobs_of(folder):
    mine = [job for job in slurm.jobs() if job.name == job_name(folder, "worker")]
    return [job.id for job in mine if job.state != "COMPLETING"]


def test_jobs_come_as_there_is_work_and_a_lost_one_is_replaced(folder):
    receipts, lost, replaced = [], [], []

    def lose_one():
        wait_for(lambda: len({r.facts["job"] for r in receipts}) == 2)
        lost.append(receipts[0].facts["job"])
        since = time.monotonic()
        slurm.cancel(lost, signal="KILL")
        wait_for(lambda: len({r.facts["job"] for r in receipts}) == 3)
        replaced.append(time.monotonic() - since)

    with opened(folder) as client:
        thread = threading.Thread(target=lose_one)
        thread.start()
        run_chains(client, nap, naps(60, 0.5), on_receipt=receipts.append)
        thread.join()
    assert Counter(r.block for r in receipts) == Counter(f"b{i}" for i in range(60))
    used = {r.facts["job"] for r in receipts}
    assert len(used) == 3 and set(lost) < used
    assert {(entry.id, entry.role) for entry in read(folder)} == {(job, "worker") for job in used}
    print(f"replaced after {replaced[0]:.1f} s")


def test_strangers_are_refused_and_credentials_are_private(folder):
    """Another user of the same network knows the address, and nothing else."""
    with opened(folder, replace(SMALL, min_jobs=1, max_jobs=1)) as client:
        client.wait_for_workers(1, timeout=60)
        address = client.scheduler.address
        assert address.startswith("tls://")
        for path in folder.glob(".tls-*/*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        others = distributed.Security.temporary()
        for security in (others, None):
            where = address if security else address.replace("tls:", "tcp:")
            with pytest.raises(OSError):
                distributed.Client(where, security=security, timeout=3)
        command = [sys.executable, "-m", "distributed.cli.dask_worker", "--death-timeout", "3"]
        stray = subprocess.run(
            [*command, "--no-nanny", address.replace("tls:", "tcp:")],
            cwd=folder,
            capture_output=True,
            timeout=60,
        )
        assert stray.returncode != 0
        assert len(client.nthreads()) == 1
        host = address.removeprefix("tls://").split(":")[0]
        pages = [client.scheduler_info()["services"]["dashboard"]]
        pages += client.run(lambda dask_worker: dask_worker.http_server.port).values()
        for port in pages:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, port), timeout=10)


class Enough(Exception):
    """Ends a test that has seen what it waited for."""


def test_more_and_fewer_jobs_while_it_runs(folder):
    """No block is lost or made twice, and who is let go ends its block first."""
    receipts, states = [], []

    def order():
        try:
            wait_for(lambda: len(receipts) > 2)
            for jobs in (3, 1):
                control.scale(folder, Order(max_jobs=jobs))
                wait_for(lambda: control.read_state(folder).running == jobs, 120)  # noqa: B023
                states.append(control.read_state(folder))
        finally:
            seen.set()

    def collect(receipt):
        receipts.append(receipt)
        if seen.is_set():
            raise Enough

    seen = threading.Event()
    with opened(folder, Jobs(max_jobs=1, memory=2**29, walltime=600.0)) as client:
        thread = threading.Thread(target=order)
        thread.start()
        with pytest.raises(Enough):
            run_chains(client, nap, naps(5000, 0.2), on_receipt=collect)
        thread.join()
    assert [(s.max_jobs, s.running) for s in states] == [(3, 3), (1, 1)]
    # Handed out in order; the last few were under way.
    made = sorted(int(r.block[1:]) for r in receipts)
    assert len(set(made)) == len(made) and made[: len(made) - 10] == list(range(len(made) - 10))
    assert len({r.facts["job"] for r in receipts}) == 3


def test_a_pool_without_driver_cannot_be_scaled(tmp_path):
    with pytest.raises(MachineError, match="no driver has Slurm jobs for"):
        control.scale(tmp_path, Order(max_jobs=2))


def test_what_sbatch_refuses_is_told_at_once_with_its_reason(folder):
    with (
        opened(folder, Jobs(queue="nowhere")) as client,
        pytest.raises(LaunchError, match="sbatch refused: .*invalid partition.*nowhere"),
    ):
        run_chains(client, nap, naps(2, 0.0), on_receipt=print)


def test_jobs_that_can_never_start_are_told_within_a_minute(folder):
    subprocess.run(["scontrol", "update", "PartitionName=low", "MaxTime=5"], check=True)
    try:
        started = time.monotonic()
        with (
            opened(folder, Jobs(queue="low", memory=2**29, walltime=3600.0)) as client,
            pytest.raises(LaunchError, match=r"Slurm will never start .*PartitionTimeLimit"),
        ):
            run_chains(client, nap, naps(2, 0.0), on_receipt=print)
        assert time.monotonic() - started < 60
    finally:
        subprocess.run(["scontrol", "update", "PartitionName=low", "MaxTime=INFINITE"], check=True)


def test_jobs_that_all_die_at_once_end_the_run_with_their_last_words(folder):
    dying = Jobs(memory=2**29, max_jobs=3, prologue=("echo no such module >&2", "exit 1"))
    started = time.monotonic()
    with (
        opened(folder, dying) as client,
        pytest.raises(MachineError, match="3 jobs in a row ended .*: no such module"),
    ):
        run_chains(client, nap, naps(3, 0.0), on_receipt=print)
    assert time.monotonic() - started < 60


def hasty(block):
    """Done in no time, and says that it took for ever."""
    time.sleep(0.2)
    return Receipt(block, {}, {"seconds": 1000.0, "job": os.environ["SLURM_JOB_ID"]})


def test_a_worker_with_too_little_time_left_hands_over_to_another_job(folder):
    receipts = []
    with opened(folder, Jobs(max_jobs=1, memory=2**29, walltime=600.0)) as client:
        chains = [[Task(f"b{i}", (f"b{i}",))] for i in range(4)]
        run_chains(client, hasty, chains, on_receipt=receipts.append)
    assert Counter(r.block for r in receipts) == Counter(f"b{i}" for i in range(4))
    assert len({r.facts["job"] for r in receipts}) >= 2


@pytest.mark.soak
def test_blocks_longer_than_a_job_end_the_run_with_advice(folder):
    with (
        opened(folder, Jobs(max_jobs=1, memory=2**29, walltime=20.0)) as client,
        pytest.raises(
            MachineError, match="no block was done within the 16 s .* raise the walltime"
        ),
    ):
        run_chains(client, nap, naps(2, 300.0), on_receipt=print)


FAILING = """#!/bin/sh
n=$(cat {count} 2>/dev/null || echo 0)
echo $((n + 1)) > {count}
if [ $n -lt 4 ]; then
    echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
    exit 1
fi
exec {sbatch} "$@"
"""


def test_a_failing_sbatch_is_tried_again(folder, tmp_path, monkeypatch):
    wrapper, count = tmp_path / "bin" / "sbatch", tmp_path / "count"
    wrapper.parent.mkdir()
    wrapper.write_text(FAILING.format(count=count, sbatch=shutil.which("sbatch")))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    receipts = []
    with opened(folder) as client:
        run_chains(client, nap, naps(4, 0.2), on_receipt=receipts.append)
    assert len(receipts) == 4
    assert 5 <= int(count.read_text()) <= 6


def test_jobs_of_a_killed_driver_are_cancelled_by_the_next(folder, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout.readline() == "ready\n"
    (old,) = jobs_of(folder)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    with opened(folder):
        wait_for(lambda: old not in jobs_of(folder))
    assert read(folder)[0].id == old


DRIVER = """
import sys, time
from pathlib import Path
from hpc.backends import open_client
from hpc.job_script import Jobs

if __name__ == "__main__":
    jobs = Jobs(min_jobs=1, memory=2**29)
    with open_client("slurm", workers=1, jobs=jobs, log_dir=Path(sys.argv[1]) / "logs") as client:
        client.wait_for_workers(1, timeout=60)
        print("ready", flush=True)
        time.sleep(600)
"""
