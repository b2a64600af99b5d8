"""MPI ranks: sums that repeat, launches that end, nobody left behind."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from hpc import launchers
from hpc.choice import probe_mpi
from hpc.comm import SerialComm, Watchdog, require_world_size
from hpc.errors import LaunchError, MachineError
from hpc.launch import launch_ranks
from hpc.launchers import Layout

RANK = """
import os, sys, time
from mpi4py import MPI

comm = MPI.COMM_WORLD
if sys.argv[1] in ("reduce", "guard", "watchdog"):
    import torch
    from hpc.comm import MpiComm, Watchdog, require_world_size

    comm = MpiComm()

def body(comm, what):
    if what == "reduce":
        torch.manual_seed(0)
        parts = torch.randn(comm.size, 1001)
        flat = parts[comm.rank].clone()
        comm.allreduce_sum(flat)
        assert torch.equal(flat, parts.double().sum(0).float())
        assert comm.bcast({"rank": comm.rank}) == {"rank": 0}
        assert os.environ["OMP_NUM_THREADS"] == "1"
        comm.barrier()
        print(f"rank {comm.rank} agrees\\n", end="", flush=True)
    elif what == "guard":
        require_world_size(comm, comm.size + 1)
    elif what == "watchdog":
        watchdog = Watchdog(1.0)
        if comm.rank == 1:
            time.sleep(60)
        comm.barrier()
    elif comm.rank == 1 and what == "raise":
        raise ArithmeticError("loss is not finite")
    elif comm.rank == 1 and what == "leave":
        os._exit(0)
    elif comm.rank == 1 and what == "kill":
        os.kill(os.getpid(), 9)
    elif what == "wait":
        print(f"pid {os.getpid()}\\n", end="", flush=True)
        time.sleep(60)
    comm.barrier()

try:
    body(comm, sys.argv[1])
except RuntimeError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "rank_program.py").write_text(RANK)

    def start(what, **options):
        launch_ranks(
            "rank_program",
            [what],
            layout=Layout(2),
            log=tmp_path / "logs" / "train.log",
            environment={"PYTHONPATH": str(tmp_path)},
            **options,
        )

    return start


def test_ranks_add_up_in_order_and_share_objects(start, tmp_path):
    lines = []
    start("reduce", echo=lines.append)
    assert sorted(lines) == ["rank 0 agrees", "rank 1 agrees"]
    assert "rank 1 agrees\n" in (tmp_path / "logs" / "train.log").read_text()


def test_a_world_of_the_wrong_size_is_refused_with_advice(start):
    """A launcher of another MPI starts ranks that each believe to be alone."""
    with pytest.raises(LaunchError, match="MPI world has 2 ranks, 3 were asked for: .*pmi2") as e:
        start("guard")
    assert e.value.exit_code == 78


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "rank exited with code 1; last line of log: ArithmeticError: loss is not fin"),
        ("kill", "rank exited with code 9"),
        ("leave", "rank left before its end"),
        ("watchdog", "rank exited with code 75; last line of log: watchdog: no progress for 1 s"),
    ],
)
def test_a_rank_that_fails_ends_the_launch(start, what, message):
    """Under plain `python` the others would wait for ever; one leaving with 0 would look well."""
    began = time.monotonic()
    with pytest.raises(MachineError, match=message) as caught:
        start(what)
    assert caught.value.exit_code == 75
    assert time.monotonic() - began < 15


def test_a_launch_that_takes_too_long_is_stopped(start):
    pids = []
    with pytest.raises(MachineError, match="not finished after 4 s"):
        start(
            "wait",
            timeout=4,
            echo=lambda line: pids.extend(map(int, re.findall(r"^pid (\d+)", line))),
        )
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)


def test_a_launcher_that_hangs_is_stopped(tmp_path, monkeypatch):
    """MPICH's does where a file of it is missing."""
    launcher = tmp_path / "mpiexec"
    launcher.write_text("#!/bin/sh\nexec sleep 600\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(launchers, "find_mpiexec", lambda: str(launcher))
    monkeypatch.setattr("hpc.launch.START", 0.5)
    with pytest.raises(LaunchError, match="no rank began within 0.5 s: launcher and MPI"):
        launch_ranks("alone", [], layout=Layout(2), log=tmp_path / "log")


DRIVER = """
import sys
from pathlib import Path
from hpc.launch import launch_ranks
from hpc.launchers import Layout
log = Path(sys.argv[1]) / "log"
launch_ranks("rank_program", ["wait"], layout=Layout(2), log=log, echo=print)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ranks_die_with_their_driver(start, tmp_path, how):
    driver = subprocess.Popen(
        [sys.executable, "-u", "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        # A suite in the background of a script is started with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert driver.stdout is not None
    pids = [int(driver.stdout.readline().split()[1]) for _ in range(2)]
    family = [psutil.Process(pid) for pid in pids]
    family += psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(how)
    driver.wait(20)
    driver.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []


def test_ranks_die_with_the_part_of_the_launcher_that_started_them(start, tmp_path):
    """Left alone they would go on beside the ranks of the next launch."""
    driver = subprocess.Popen(
        [sys.executable, "-u", "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert driver.stdout is not None
    try:
        ranks = [psutil.Process(int(driver.stdout.readline().split()[1])) for _ in range(2)]
        launcher = {rank.parent() for rank in ranks}
        assert len(launcher) == 1
        launcher.pop().kill()
        _, alive = psutil.wait_procs(ranks, timeout=15)
        assert alive == []
        assert driver.wait(20) != 0
    finally:
        driver.kill()
        driver.stdout.close()


def test_one_rank_needs_no_mpi(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "find_mpiexec", lambda: pytest.fail("asked for mpiexec"))
    (tmp_path / "alone.py").write_text("import os; print(os.environ['GFDT_RANKS'])")
    lines = []
    launch_ranks(
        "alone",
        [],
        layout=Layout(1),
        log=tmp_path / "log",
        environment={"PYTHONPATH": str(tmp_path)},
        echo=lines.append,
    )
    assert lines == ["1"]


def test_a_rank_that_hangs_while_mpi_starts_is_ended_by_the_kernel(tmp_path):
    """As one whose peer is gone: inside a C function that holds the interpreter lock."""
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text("import ctypes\nctypes.PyDLL(None).sleep(600)\n")
    code = "from hpc import rank; rank.START = 0.5; rank.refuse_wrong_world(2)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60)
    assert ended.returncode == -signal.SIGALRM


def test_a_missing_mpiexec_is_told_with_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no mpiexec .* install the extra"):
        launch_ranks("alone", [], layout=Layout(2), log=tmp_path / "log")
    assert probe_mpi()[0] is False


def test_half_precision_and_views_are_refused():
    """bf16 through MPI adds bytes, not numbers, and says nothing."""
    comm = SerialComm()
    with pytest.raises(ValueError, match="cannot reduce torch.bfloat16"):
        comm.allreduce_sum(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="one flat contiguous tensor"):
        comm.allreduce_sum(torch.zeros(4)[::2])
    require_world_size(comm, 1)


def test_the_watchdog_waits_while_there_is_progress():
    aborted = []
    with Watchdog(0.4, abort=lambda: aborted.append(1)) as watchdog:
        for _ in range(8):
            time.sleep(0.1)
            watchdog.beat()
        assert not aborted


def test_the_probe_starts_two_ranks():
    works, said = probe_mpi()
    assert works and "2 ranks add up" in said
