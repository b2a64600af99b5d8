"""One big allocation: a worker on every task, the driver inside."""

import json
import subprocess
import sys
import time

import pytest

from hpc import slurm
from hpc.backends import open_client
from hpc.errors import LaunchError

DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from hpc.backends import open_client
from hpc.chains import Task, run_chains
from hpc.ledger import Receipt

def nap(block):
    time.sleep(0.3)
    facts = {"seconds": 0.3, "task": os.environ["SLURM_PROCID"], "parent": os.getppid()}
    return Receipt(block, {}, facts)

if __name__ == "__main__":
    receipts, killed = [], []

    def record(receipt):
        receipts.append(receipt)
        tasks = {r.facts["task"] for r in receipts}
        if len(tasks) == 3 and not killed:
            killed.append(receipt.facts["parent"])
            os.kill(killed[0], signal.SIGKILL)  # the nanny: its task starts another

    with open_client("allocation", workers=1, log_dir=Path(sys.argv[1]) / "logs") as client:
        chains = [[Task(f"b{i}", (f"b{i}",))] for i in range(40)]
        run_chains(client, nap, chains, on_receipt=record)
        client.wait_for_workers(3, timeout=60)
        pids = set(client.run(os.getppid, nanny=False).values())
        address = client.scheduler.address
    print(json.dumps({
        "blocks": len(receipts), "tasks": len({r.facts["task"] for r in receipts}),
        "killed": len(killed), "gone": killed[0] not in pids, "address": address,
    }))
"""


def test_a_worker_on_every_task_and_a_killed_one_comes_back(slurm_cluster, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} driver.py run\n")
    out = tmp_path / "out"
    # One task to a node, as long as all three have room.
    options = ["-n3", "-N3", "--mem=3G", f"--chdir={tmp_path}", f"--output={out}"]
    number = slurm.submit(script, options)
    deadline = time.monotonic() + 120
    while {job.state for job in slurm.jobs([number])} & {"PENDING", "RUNNING", "COMPLETING"}:
        assert time.monotonic() < deadline, out.read_text() + subprocess.getoutput("squeue")
        time.sleep(0.3)
    found = json.loads(out.read_text().splitlines()[-1])
    address = found.pop("address")
    assert found == {"blocks": 40, "tasks": 3, "killed": 1, "gone": True}
    assert address.startswith("tls://")


def test_outside_an_allocation_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with (
        pytest.raises(LaunchError, match="kind 'allocation' is for use inside a Slurm job"),
        open_client("allocation", workers=1, log_dir=tmp_path / "logs"),
    ):
        pass
