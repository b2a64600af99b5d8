"""More and fewer jobs for a run under way by `gfdt scale`, and what `gfdt status` tells of it."""

import os
import threading
import time
from collections import Counter

from hpc import slurm
from hpc.backends import open_client
from hpc.chains import Task, run_chains
from hpc.control import read_state
from hpc.job_script import Jobs
from hpc.jobs import read
from hpc.ledger import Receipt
from hpc.lock import run_lock
from workflow.opening import open_run
from workflow.stages.frames import lay_down
from workflow.stages.status import status
from workflow.status_view import lines, log_line

COUNT = 60


def nap(block):
    time.sleep(0.5)
    return Receipt(block, {}, {"seconds": 0.5, "job": os.environ["SLURM_JOB_ID"]})


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, slurm.jobs()
        time.sleep(0.1)


def test_a_run_pauses_at_no_jobs_and_goes_on_when_told(
    slurm_cluster, in_process, tmp_path, small_yaml
):
    """Paused, it has no job in the queue, makes no block, loses none, and is not given up."""
    (tmp_path / "small.yaml").write_text(small_yaml)
    run, receipts = open_run(str(tmp_path / "small.yaml"), tmp_path / "runs"), []
    lay_down(run, command="test")
    chains = [[Task(f"b{i}", (f"b{i}",))] for i in range(COUNT)]

    def scaled(jobs):
        told = in_process("scale", run.folder, "--max-jobs", jobs)
        assert told.returncode == 0, told.stderr
        return told.stdout

    def running():
        state = read_state(run.folder)
        return state and state.running

    def alive():
        return [j for j in slurm.jobs({e.id for e in read(run.folder)}) if j.state == "RUNNING"]

    with (
        run_lock(run.folder),
        open_client(
            "slurm",
            workers=1,
            jobs=Jobs(max_jobs=2, memory=2**30, walltime=600.0),
            log_dir=run.folder / "logs",
        ) as client,
    ):
        chain = threading.Thread(
            target=run_chains, args=(client, nap, chains), kwargs={"on_receipt": receipts.append}
        )
        chain.start()
        wait_for(lambda: running() == 2 and len(receipts) > 2)
        assert "workers    2 at work, 0 on their way; 0 to 2 allowed" in "\n".join(
            lines(status(run))
        )
        assert "jobs_max=2" in log_line(status(run))
        assert "small: 0 to 0 jobs; " in scaled(0)
        wait_for(lambda: running() == 0 and not alive())
        done = len(receipts)
        assert "workers    paused by gfdt scale" in "\n".join(lines(status(run)))
        time.sleep(5.0)
        assert len(receipts) == done < COUNT and chain.is_alive() and alive() == []
        assert "small: 0 to 3 jobs; " in scaled(3)
        chain.join(timeout=240)
        assert not chain.is_alive()
    assert Counter(r.block for r in receipts) == Counter(f"b{i}" for i in range(COUNT))
    assert read_state(run.folder) is None and status(run)["pool"] is None
