"""The private Slurm that the other Slurm tests stand on."""

import subprocess
import time

from hpc import slurm


def test_a_job_of_three_nodes_runs_and_is_found(slurm_cluster, tmp_path):
    script = tmp_path / "hello.sh"
    script.write_text("#!/bin/sh\nsrun sh -c 'echo $SLURMD_NODENAME'\n")
    number = slurm.submit(script, ["-N3", f"--output={tmp_path}/out", "--chdir=/tmp"])
    deadline = time.monotonic() + 120
    while {job.state for job in slurm.jobs([number])} != {"COMPLETED"}:
        assert time.monotonic() < deadline, subprocess.getoutput("squeue --states=all")
        time.sleep(0.2)
    assert sorted((tmp_path / "out").read_text().split()) == ["e1", "e2", "e3"]
