"""The test job of `gfdt doctor`: `python -m hpc.check_job FOLDER PORT TOKEN ADDRESS...`."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

from hpc.check_slurm import RESULT
from hpc.choice import choose_launcher, probe_mpi
from hpc.errors import MachineError
from hpc.files import atomic_write_json
from hpc.launchers import Layout

REACH = 3.0
"""Seconds for one address."""


def main() -> None:
    """Call the doctor by every address, start two ranks, and write down what came of it."""
    folder, port, token, *addresses = sys.argv[1:]
    for address in addresses:
        with contextlib.suppress(OSError):
            _call(address, int(port), token)
    works, said = _mpi(Path(folder))
    found = {"host": socket.gethostname(), "mpi_works": works, "mpi": said}
    atomic_write_json(Path(folder) / RESULT, found)


def _call(address: str, port: int, token: str) -> None:
    with socket.create_connection((address, port), timeout=REACH) as line:
        line.sendall(token.encode())
        line.recv(2)


def _mpi(folder: Path) -> tuple[bool, str]:
    try:
        launcher = choose_launcher("auto", Layout(2), folder)
        works, said = probe_mpi(launcher, folder=folder)
    except MachineError as error:
        return False, str(error)
    return works, f"{launcher}: {said.removeprefix('probe: ')}"


if __name__ == "__main__":
    main()
