"""Workers whose driver died before they came: they leave, and those of a slow driver do not."""

import os
import socket
import subprocess
import sys
import time

from hpc.job_script import LEAVING
from hpc.orphans import refused


def test_a_port_that_nobody_listens_at_is_given_up():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it meanwhile
        assert refused(one.getsockname(), lambda: True, seconds=0.3, pause=0.05)


def test_a_driver_that_never_answers_is_waited_for():
    """A full queue of connections: the port is there, and silent."""
    until = time.monotonic() + 1.0
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(0)
        waiting = iter(lambda: time.monotonic() < until, None)
        assert not refused(one.getsockname(), lambda: next(waiting), seconds=0.2, pause=0.05)


def test_a_worker_leaves_a_dead_driver_soon():
    """The real worker, at a port of nobody; Dask alone would wait for the death timeout."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        host, port = one.getsockname()
        command = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{host}:{port}"]
        command += ["--nanny", "--nthreads", "1", "--death-timeout", "300", *LEAVING]
        worker = subprocess.run(
            command, capture_output=True, text=True, timeout=100, env=os.environ
        )
    assert worker.returncode == 1
    assert "the driver is gone" in worker.stdout + worker.stderr
