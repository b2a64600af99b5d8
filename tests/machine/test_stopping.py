"""Ctrl-C from the first moment of a command: one line and an exit code, never a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from hpc.stopping import STOPPING

ROOT = Path(__file__).parents[2]
PATIENCE = 120
LINE = "gfdt: stopped by {}; the same command continues\n"


def started(code, *arguments, cwd):
    """A command as a shell starts one, with nothing blocked or ignored."""

    def as_shells_do():
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, preexec_fn=as_shells_do, **pipes)


def wait_until_it_hears(process):
    """Nobody but we ever catches SIGTERM; before, the interpreter itself is still starting."""
    status, deadline = Path(f"/proc/{process.pid}/status"), time.monotonic() + PATIENCE
    if not status.exists():
        pytest.skip("which signals a process hears is seen in /proc")
    while True:
        caught = next(line for line in status.read_text().splitlines() if line[:7] == "SigCgt:")
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


def entry_point():
    """What the console script runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["gfdt"].partition(":")
    return f"from {module} import {function}; {function}()"


@pytest.mark.parametrize("delay", [0, 0.2, 0.5, 1, 2, 3])
def test_ctrl_c_while_a_command_is_imported_is_one_line(delay, tmp_path):
    """From the moment that our code runs until the run has begun, or some seconds into it."""
    process = started(entry_point(), "run", "quickstart", "-q", cwd=tmp_path)
    try:
        wait_until_it_hears(process)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert told == ("", LINE.format("SIGINT"))
    assert process.returncode == 128 + signal.SIGINT


SLOW = """
import time
print("begun", flush=True)
try:
    time.sleep({seconds})
except BaseException as error:
    print("broken by", type(error).__name__)
print("ended", flush=True)
"""

COMMAND = """
import sys
from hpc.stopping import Stopped, stop_tidily
stop_tidily()
try:
    import slow
    while True:
        pass
except Stopped as stopped:
    print(stopped.heard(), file=sys.stderr)
    sys.exit(128 + stopped.number)
"""


@pytest.mark.parametrize("number", STOPPING, ids=lambda n: n.name)
def test_a_signal_waits_for_the_end_of_an_import(number, tmp_path):
    """Extension modules make other errors of what is raised while they are imported."""
    (tmp_path / "slow.py").write_text(SLOW.format(seconds=0.5))
    process = started(COMMAND, cwd=tmp_path)
    try:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        told = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert told == ("ended\n", LINE.format(number.name))
    assert process.returncode == 128 + number


MOMENT = """
import os, signal, sys, time
from hpc.stopping import Stopped, stop_tidily, unbroken
{before}
stop_tidily()
try:
    {moment}
    time.sleep({patience})
except Stopped as stopped:
    print(stopped.heard(), file=sys.stderr)
    sys.exit(128 + stopped.number)
"""

IN_A_FINALISER = (
    """
class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
""",
    "Finalised()",
)

IN_AN_EXTENSION = (
    """
def kind(_value):
    os.kill(os.getpid(), signal.{number})
""",
    """
    try:
        kind(1)
    except BaseException:
        pass  # as compiled code does
""",
)

IN_A_VALIDATION = (
    """
import pydantic
from typing import Annotated

def kind(_value):
    os.kill(os.getpid(), signal.{number})
    return "a"

Both = Annotated[
    Annotated[int, pydantic.Tag("a")] | Annotated[str, pydantic.Tag("b")],
    pydantic.Discriminator(kind),
]

class Model(pydantic.BaseModel):
    it: Both

value = Model.model_construct(it=1)
""",
    "print(value.model_dump())",
)

WHOLE = (
    "",
    """
    with unbroken():
        os.kill(os.getpid(), signal.{number})
        time.sleep(0.5)
        print("whole")
""",
)

BAD_MOMENTS = [
    (IN_A_FINALISER, ""),
    (IN_AN_EXTENSION, ""),
    (IN_A_VALIDATION, "{'it': 1}\n"),
    (WHOLE, "whole\n"),
]


@pytest.mark.parametrize("number", STOPPING, ids=lambda n: n.name)
@pytest.mark.parametrize(("code", "said"), BAD_MOMENTS)
def test_a_signal_at_a_bad_moment_is_heard_after_it(code, said, number, tmp_path):
    """Finalisers and extensions drop what is raised in them, and some things are done whole."""
    before, moment = (part.format(number=number.name) for part in code)
    script = MOMENT.format(before=before, moment=moment, patience=PATIENCE)
    process = started(script, cwd=tmp_path)
    try:
        told = process.communicate(timeout=PATIENCE / 2)
    finally:
        process.kill()
    assert told == (said, LINE.format(number.name))
    assert process.returncode == 128 + number


SLOW_TO_TIDY = """
import signal, time
from hpc.stopping import stop_tidily
stop_tidily()
try:
    print("working", flush=True)
    time.sleep({patience})
finally:
    print("tidying", flush=True)
    time.sleep({patience})
"""


@pytest.mark.parametrize("number", STOPPING, ids=lambda n: n.name)
def test_a_second_signal_does_not_wait_for_tidiness(number, tmp_path):
    process = started(SLOW_TO_TIDY.format(patience=PATIENCE), cwd=tmp_path)
    try:
        for line in ("working\n", "tidying\n"):
            assert process.stdout.readline() == line
            process.send_signal(number)
        process.wait(PATIENCE / 2)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -number
