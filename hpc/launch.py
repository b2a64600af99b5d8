"""Starting MPI ranks on this machine or inside an allocation, and never leaving any behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from hpc.errors import CONFIGURATION, TRY_AGAIN, LaunchError, MachineError
from hpc.files import PARTIAL
from hpc.rank import MARKS_VARIABLE, ONE_THREAD, RANKS_VARIABLE

GRACE = 5.0
"""Seconds between asking ranks to end and killing them."""

BANNER = (
    "=",
    "Abort(",
    "application called MPI_Abort",
    "YOUR APPLICATION",
    "This typically refers",
)
"""How the launcher's own last words begin; what the rank said stands before them."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def launch_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    echo: Callable[[str], None] | None = None,
    timeout: float | None = None,
) -> None:
    """Run `python -m module arguments` as MPI ranks of one thread each, and wait for them.

    The ranks find the number of ranks asked for in the environment (`GFDT_RANKS`) for
    `comm.require_world_size`. They end with this process, however it ends.

    Args:
        module: the module to run; started under `-m mpi4py`, so that one failing rank ends all.
        arguments: its command line.
        ranks: number of ranks; one runs without MPI.
        log: file to which everything they print is appended.
        environment: environment variables in addition to this process's.
        echo: called with each line they print.
        timeout: seconds after which they are stopped.

    Raises:
        LaunchError: there is no `mpiexec`, or a rank ended with code 78.
        MachineError: a rank failed, left early, or took too long; its exit code is the rank's
            where that is 75 or 78.
    """
    command = [*_launcher(ranks), module, *arguments]
    variables = {
        **os.environ,
        **ONE_THREAD,
        "PYTHONUNBUFFERED": "1",
        # Open MPI alone refuses root, as in containers, and more ranks than cores.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        **(environment or {}),
        RANKS_VARIABLE: str(ranks),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    last = ""
    with (
        # Beside the log, where the ranks on every node can write.
        tempfile.TemporaryDirectory(PARTIAL, ".ranks-", log.parent.resolve()) as marks,
        log.open("a") as file,
        _running(command, variables | {MARKS_VARIABLE: marks}, timeout) as (process, expired),
    ):
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            if line.strip() and not line.lstrip().startswith(BANNER):
                last = line.strip()
            if echo is not None:
                echo(line.rstrip("\n"))
        code = process.wait()
        finished = len(os.listdir(marks))
    if expired.is_set():
        raise MachineError(f"{module} stopped: not finished after {timeout:g} s; see {log}")
    if code != 0 or finished != ranks:
        raise _failure(module, code, last, log)


def probe_mpi(timeout: float = 30) -> tuple[bool, str]:
    """Whether two MPI ranks can be started here and add up numbers, and what they said."""
    with tempfile.TemporaryDirectory() as folder:
        lines: list[str] = []
        try:
            launch_ranks(
                "hpc.probe",
                [],
                ranks=2,
                log=Path(folder) / "probe.log",
                echo=lines.append,
                timeout=timeout,
            )
        except MachineError as error:
            return False, str(error).replace(f"; see {folder}/probe.log", "")
        said = [line for line in lines if line.startswith("probe:")]
        return bool(said), said[-1] if said else "the ranks ended without a word"


def find_mpiexec() -> str:
    """Path of the `mpiexec` of this Python environment, else the one on PATH.

    Raises:
        LaunchError: there is none.
    """
    # Another environment's launcher starts ranks that do not see each other.
    own = Path(sys.executable).with_name("mpiexec")
    found = str(own) if os.access(own, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise LaunchError(
            "no mpiexec beside python nor on PATH; install the extra `gfdt-workflow[mpich]`, "
            "load the MPI module of the cluster, or train with score.train.ranks=1"
        )
    return found


def _launcher(ranks: int) -> list[str]:
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: at least 1 rank is needed")
    program = ["hpc.rank"] if ranks == 1 else ["mpi4py", "-m", "hpc.rank"]
    launcher = [] if ranks == 1 else [find_mpiexec(), "-n", str(ranks)]
    return [*launcher, sys.executable, "-m", *program]


def _failure(module: str, code: int, last: str, log: Path) -> MachineError:
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    if code == 0:
        how = "left before its end"
    message = f"{module} stopped: rank {how}; last line of log: {last or 'none'}; see {log}"
    if code == CONFIGURATION:
        return LaunchError(message)
    return MachineError(message, exit_code=TRY_AGAIN)


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], timeout: float | None
) -> Iterator[tuple[subprocess.Popen[str], threading.Event]]:
    """The started process and whether it ran out of time; gone with its children at the end."""
    expired = threading.Event()
    driver = os.getpid()
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C reaches only the driver, which then stops the ranks in order.
        start_new_session=True,
        preexec_fn=lambda: _die_with(driver),
    )

    def expire() -> None:
        expired.set()
        _stop(process)

    timer = threading.Timer(timeout or 0, expire)
    timer.daemon = True
    if timeout is not None:
        timer.start()
    try:
        yield process, expired
    finally:
        timer.cancel()
        _stop(process)
        if process.stdout is not None:
            process.stdout.close()


def _die_with(driver: int) -> None:
    """In the child: have the kernel end it when the driver is gone, even by SIGKILL."""
    if _libc is not None:
        # SIGTERM, which launchers pass on to their ranks.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != driver:
            os._exit(TRY_AGAIN)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and all it started, kindly, then not."""
    if process.poll() is not None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    _, stubborn = psutil.wait_procs(family, timeout=1.0)
    for member in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()
