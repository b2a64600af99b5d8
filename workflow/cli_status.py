"""The command `gfdt status`."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from workflow.options import HERE, Json, Name, Quiet, Runs, Verbose, tell

LOOK = 2.0
"""Seconds between looks."""

LOG_SECONDS = 60.0
"""Seconds after which a log gets a line although nothing happened."""

Watch = Annotated[bool, typer.Option("--watch", help="until the run is finished, or Ctrl-C")]


def status(
    name: Name,
    watch: Watch = False,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """How far a run is, who works on it and what it cost; from its files and Slurm's queue.

    Example: gfdt status allen_cahn --watch
    """
    from workflow.status_view import lines

    if watch and not quiet:
        _watch(name, runs, as_json)
        return
    found = _look(name, runs)
    tell(found, lines(found, verbose=verbose), as_json, quiet)


def _look(name: str, runs: Path) -> dict[str, Any]:
    from workflow.loading import load_run
    from workflow.stages.status import status as status_of

    return status_of(load_run(name, runs))


def _watch(name: str, runs: Path, as_json: bool) -> None:
    """Look again and again; Ctrl-C ends the looking, and nothing else."""
    from rich.console import Console
    from rich.live import Live

    from workflow.status_view import log_line, picture

    enough = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: enough.set())
    try:
        found = _look(name, runs)
        if sys.stdout.isatty() and not as_json:
            with Live(picture(found), console=Console(), auto_refresh=False) as live:
                while not found["finished"] and not enough.wait(LOOK):
                    found = _look(name, runs)
                    live.update(picture(found), refresh=True)
            return
        last, told = "", 0.0
        while True:
            line = json.dumps(found, default=str) if as_json else log_line(found)
            if line != last or time.monotonic() - told > LOG_SECONDS:
                typer.echo(line)
                sys.stdout.flush()
                last, told = line, time.monotonic()
            if found["finished"] or enough.wait(LOOK):
                return
            found = _look(name, runs)
    finally:
        signal.signal(signal.SIGINT, before)
