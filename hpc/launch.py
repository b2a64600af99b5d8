"""Starting MPI ranks on this machine or inside an allocation, and never leaving any behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hpc import slurm
from hpc.errors import CONFIGURATION, TRY_AGAIN, LaunchError, MachineError
from hpc.files import PARTIAL
from hpc.kin import end_with
from hpc.launchers import Layout, command
from hpc.logs import OWN
from hpc.notice import Notice
from hpc.rank import ADVICE, BEGAN, ENDED, MARKS_VARIABLE, ONE_THREAD, RANKS_VARIABLE
from hpc.stopping import unbroken

GRACE = 5.0
"""Seconds between asking ranks to end and killing them."""

START = 120.0
"""Seconds in which a first rank must begin: launchers can hang before."""

MARKS_PATIENCE = 3.0
"""Seconds in which a network file system shows the marks that ranks on other nodes left."""

BANNER = (
    "=",
    "---",
    "srun: ",
    "slurmstepd",
    "Abort(",
    "application called MPI_Abort",
    "YOUR APPLICATION",
    "This typically refers",
)
"""How the launcher's own last words begin; what the rank said stands before them."""


def launch_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    layout: Layout,
    log: Path,
    launcher: str = "mpiexec",
    environment: Mapping[str, str] | None = None,
    echo: Callable[[str], None] | None = None,
    timeout: float | None = None,
    notice: Notice | None = None,
) -> None:
    """Run `python -m module arguments` as MPI ranks, and wait for them.

    The ranks find the number of ranks asked for in the environment (`GFDT_RANKS`) and refuse a
    world of another size before the module begins. They end with this process, however it ends.

    Args:
        module: the module to run; started under `-m mpi4py`, so that one failing rank ends all.
        arguments: its command line.
        layout: how many ranks; one runs without MPI.
        log: file to which everything they print is appended.
        launcher: a name of `launchers.LAUNCHERS`.
        environment: environment variables in addition to this process's.
        echo: called with each line they print.
        timeout: seconds after which they are stopped.
        notice: passed on to the ranks, as SIGUSR1, when it comes.

    Raises:
        LaunchError: the launcher is missing or could not start them, or a rank ended with code 78.
        MachineError: a rank failed, left early, or took too long.
    """
    program = ["hpc.rank"] if layout.ranks == 1 else ["mpi4py", "-m", "hpc.rank"]
    line = [*command(launcher, layout), sys.executable, "-m", *program, module, *arguments]
    threads = {name: str(layout.threads) for name in ONE_THREAD if name.endswith("NUM_THREADS")}
    variables = {
        **os.environ,
        **ONE_THREAD,
        **threads,
        "PYTHONUNBUFFERED": "1",
        # Open MPI alone refuses root, as in containers, and more ranks than cores.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        **(environment or {}),
        RANKS_VARIABLE: str(layout.ranks),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    said = _Said()
    with (
        # Beside the log, where the ranks on every node can write.
        tempfile.TemporaryDirectory(PARTIAL, ".ranks-", log.parent.resolve()) as marks,
        log.open("a") as file,
        _running(
            line,
            variables | {MARKS_VARIABLE: marks},
            [(timeout, lambda: True), (START, lambda: not _began(Path(marks)))],
        ) as (process, expired),
        (notice or Notice()).passed_on(lambda: process.send_signal(signal.SIGUSR1)),
    ):
        for text in process.stdout or ():
            file.write(text)
            file.flush()
            said.hear(text)
            if LOST.match(text):
                _end_step(Path(marks))
            if echo is not None:
                echo(text.rstrip("\n"))
        code = process.wait()
        outcome = _Outcome.read(Path(marks), layout.ranks, code)
    if expired and outcome.began == 0:
        raise LaunchError(f"{module}: no rank began within {expired[0]:g} s: {ADVICE}; see {log}")
    if expired:
        raise MachineError(f"{module} stopped: not finished after {timeout:g} s; see {log}")
    # Whatever a launcher says of ranks that all came to their end.
    if outcome.codes != [0] * layout.ranks:
        raise outcome.failure(module, said.last, log)


LOST = re.compile(r"^srun: error: \S+: tasks? \d[\d,-]*: ")
"""What Slurm's launcher says of ranks that were killed or failed."""


def _end_step(marks: Path) -> None:
    """Kill the ranks that wait for a lost one: inside MPI they cannot hear anything kinder.

    Slurm would first ask them, and then wait for its `KillWait`, usually 30 s.
    """
    step = next((mark.read_text() for mark in marks.glob(f"{BEGAN}-*")), "")
    if step:
        with contextlib.suppress(MachineError):  # Slurm does it later
            slurm.ask(["scancel", "--quiet", "--signal=KILL", step], patience=0.0)


class _Said:
    """The last line that says something: one of ours, else a rank's, else the launcher's."""

    def __init__(self) -> None:
        self._own, self._rank, self._launcher = "", "", ""

    def hear(self, text: str) -> None:
        if not text.strip():
            return
        if text.startswith(OWN):
            self._own = text.removeprefix(OWN).strip()
        elif text.lstrip().startswith(BANNER):
            self._launcher = text.strip() if ": error: " in text else self._launcher
        else:
            self._rank = text.strip()

    @property
    def last(self) -> str:
        return self._own or self._rank or self._launcher or "none"


@dataclass(frozen=True)
class _Outcome:
    """How a launch ended: the launcher's code, how many ranks began, the codes they left with."""

    code: int
    ranks: int
    began: int
    codes: list[int]

    @classmethod
    def read(cls, marks: Path, ranks: int, code: int) -> _Outcome:
        patience = time.monotonic() + MARKS_PATIENCE
        while True:
            names = os.listdir(marks)
            codes = sorted(int(n.split("-")[1]) for n in names if n.startswith(ENDED))
            if code != 0 or len(codes) >= ranks or time.monotonic() > patience:
                return cls(code, ranks, _began(marks), codes)
            time.sleep(0.2)

    def failure(self, module: str, last: str, log: Path) -> MachineError:
        """The error to raise."""
        # What a rank says of itself goes before what became of it.
        own = [code for code in self.codes if code]
        code = CONFIGURATION if CONFIGURATION in own else max(own, default=self.code)
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        if code == 0:
            how = "left before its end"
        where = f"last line of log: {last}; see {log}"
        if code == CONFIGURATION:
            return LaunchError(f"{module} stopped: rank {how}; {where}")
        # A signal may come at any time, also before the beginning.
        if self.began == 0 and self.ranks > 1 and 0 < code < 128 and code not in SIGNALS:
            return LaunchError(f"{module}: no rank began: {ADVICE}; {where}")
        return MachineError(f"{module} stopped: rank {how}; {where}", exit_code=TRY_AGAIN)


def _began(marks: Path) -> int:
    return sum(name.startswith(BEGAN) for name in os.listdir(marks))


SIGNALS = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
"""As exit codes of a launcher: what ended the first rank."""


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    limits: Sequence[tuple[float | None, Callable[[], bool]]],
) -> Iterator[tuple[subprocess.Popen[str], list[float]]]:
    """The started process and the limit that ended it; gone with its children at the end.

    A limit is a number of seconds, and whether to end the process when they are over.
    """
    expired: list[float] = []
    driver = os.getpid()
    with unbroken():  # an exception in the middle of a fork is dropped
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
            # SIGTERM, which launchers pass on to their ranks.
            preexec_fn=lambda: end_with(driver, signal.SIGTERM),
        )

    def expire(seconds: float, over: Callable[[], bool]) -> None:
        if over():
            expired.append(seconds)
            _stop(process)

    timers = [threading.Timer(s, expire, [s, over]) for s, over in limits if s is not None]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield process, expired
    finally:
        for timer in timers:
            timer.cancel()
        _stop(process)
        # What a launcher that was killed itself has left; the next launch may follow at once.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and all it started, kindly, then not."""
    if process.poll() is not None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    # The notice first: ranks that listen save their work. Slurm's launcher kills on SIGTERM.
    for each in (signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(each)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            break
    _, stubborn = psutil.wait_procs(family, timeout=1.0)
    for member in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()
