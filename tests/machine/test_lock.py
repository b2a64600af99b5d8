"""Lock and lease: a run has one driver, on one host and on many."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc.errors import MachineError, RunLocked
from hpc.lease import PREFIX, holder_of
from hpc.lock import run_lock

HOLDER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from hpc.errors import MachineError
from hpc.lock import run_lock
folder, host, seconds, fork = sys.argv[1:]
if host:  # another host: its kernel knows nothing of the locks here
    import fcntl, socket
    socket.gethostname = lambda: host
    fcntl.flock = lambda *_: None
try:
    with run_lock(folder, seconds=float(seconds)):
        if fork and os.fork() == 0:  # a child that outlives its parent
            os.close(1)
            time.sleep(20)
            os._exit(0)
        print("held", flush=True)
        time.sleep(60)
except MachineError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def start(folder, *, host="", seconds=60.0, fork=""):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), host, str(seconds), fork],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"SLURM_JOB_ID": "4711" if host else ""},
    )


@pytest.fixture
def holders():
    """Processes that are gone after the test."""
    started = []

    def begin(folder, **options):
        process = start(folder, **options)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def said(process):
    return process.stdout.readline().strip()


def test_a_second_driver_is_refused_and_a_killed_one_frees_the_run(tmp_path, holders):
    """The lock of a killed driver is free at once, even if its children live on."""
    holder = holders(tmp_path, fork="yes")
    assert said(holder) == "held"
    try:
        began = time.monotonic()
        message = f"{tmp_path} is in use by pid {holder.pid} on host .* since .*; wait for it"
        with pytest.raises(RunLocked, match=message), run_lock(tmp_path):
            pass
        assert time.monotonic() - began < 2
        holder.kill()
        holder.wait()
        for _ in range(2):
            with run_lock(tmp_path):
                assert holder_of(tmp_path).pid == os.getpid()
        assert holder_of(tmp_path) is None
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_driver_on_another_host_is_named_with_its_job(tmp_path, holders):
    """No lock of this kernel tells of it."""
    holder = holders(tmp_path, host="node7")
    assert said(holder) == "held"
    began = time.monotonic()
    message = f"in use by pid {holder.pid} on host node7 \\(Slurm job 4711\\) since .*; wait for it"
    with pytest.raises(RunLocked, match=message) as told, run_lock(tmp_path):
        pass
    assert time.monotonic() - began < 2
    assert told.value.exit_code == 75


def test_a_living_holder_keeps_its_lease_for_longer_than_the_lease(tmp_path, holders):
    holder = holders(tmp_path, host="node7", seconds=1.0)
    assert said(holder) == "held"
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        # Judged by a longer lease: this machine may be too busy for a renewal in time.
        with pytest.raises(RunLocked), run_lock(tmp_path, seconds=20.0):
            pass
    written = next(tmp_path.glob(f"{PREFIX}*")).stat().st_mtime
    assert time.time() - written < 20.0
    assert holder.poll() is None


def test_the_lease_of_a_holder_that_died_elsewhere_is_taken_over_when_stale(tmp_path, holders):
    holder = holders(tmp_path, host="node7")
    assert said(holder) == "held"
    holder.kill()
    holder.wait()
    with pytest.raises(RunLocked), run_lock(tmp_path):
        pass
    (path,) = tmp_path.glob(f"{PREFIX}*")
    os.utime(path, (time.time() - 61, time.time() - 61))
    with run_lock(tmp_path):
        assert holder_of(tmp_path).host == socket.gethostname()
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1


def test_a_holder_that_slept_through_its_lease_stops_in_one_line(tmp_path, holders):
    sleeper = holders(tmp_path, host="node7", seconds=0.8)
    assert said(sleeper) == "held"
    os.kill(sleeper.pid, signal.SIGSTOP)
    time.sleep(1.0)
    heir = holders(tmp_path, host="node8", seconds=0.8)
    assert said(heir) == "held"
    os.kill(sleeper.pid, signal.SIGCONT)
    line = said(sleeper)
    assert line.startswith(f"{tmp_path}: this process lost its lease to pid {heir.pid} on host ")
    assert line.endswith("; finished blocks are kept")
    assert sleeper.wait(timeout=30) == 75
    assert heir.poll() is None


def test_of_many_that_see_a_stale_lease_one_takes_it(tmp_path, holders):
    """Six processes, each on a host of its own."""
    first = holders(tmp_path, host="node0")
    assert said(first) == "held"
    first.kill()
    first.wait()
    (path,) = tmp_path.glob(f"{PREFIX}*")
    os.utime(path, (0, 0))
    rivals = [holders(tmp_path, host=f"node{n}") for n in range(1, 7)]
    lines = [said(process) for process in rivals]
    assert lines.count("held") == 1
    winner = rivals[lines.index("held")]
    refused = [line for line in lines if line != "held"]
    assert all(f"in use by pid {winner.pid} " in line for line in refused), refused


def test_a_pid_that_is_used_again_does_not_keep_the_run(tmp_path, holders):
    holder = holders(tmp_path)
    assert said(holder) == "held"
    (path,) = tmp_path.glob(f"{PREFIX}*")
    as_if = path.read_text().replace(f'"pid": {holder.pid}', f'"pid": {os.getpid()}')
    holder.kill()
    holder.wait()
    path.write_text(as_if)
    with run_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_kept_by_the_lease_alone(tmp_path, monkeypatch, holders):
    import fcntl

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    holder = holders(tmp_path)
    assert said(holder) == "held"
    with pytest.raises(RunLocked, match=f"in use by pid {holder.pid} on host"), run_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineError, match=f"cannot lock {tmp_path}: Permission denied; give"):
        with run_lock(Path(tmp_path)):
            pass
