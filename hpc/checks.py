"""What a machine must be able to do before a run is worth starting, each told in one line."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from hpc.errors import MachineError, RunLocked
from hpc.files import PARTIAL, atomic_write_bytes
from hpc.lease import lease
from hpc.lock import LEASE, run_lock

SPACE = 256 * 2**20
"""Bytes that must be free where runs are kept; less does not hold the smallest experiment."""

FILES = 1000
"""Files that must still fit there."""


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what it is.
        ok: whether it is as it must be.
        message: what was found; where `ok` is False, also what to change.
    """

    name: str
    ok: bool
    message: str


def check_machine(folder: Path, *, distribution: str) -> list[Check]:
    """Look at packages and at the file system of a folder.

    Args:
        folder: where runs are kept; it need not exist and is not made.
        distribution: the installed package whose requirements must be met.
    """
    home = existing(folder)
    checks = [check_packages(distribution), check_space(home)]
    return [*checks, *(_try(name, home, look) for name, look in FILE_SYSTEM.items())]


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    home = folder.absolute()
    while not home.is_dir() and home != home.parent:
        home = home.parent
    return home


def check_packages(distribution: str) -> Check:
    """Whether every package that a distribution requires is there, and new enough."""
    try:
        wanted = [Requirement(line) for line in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", False, f"{distribution} is not installed; run: pip install -e .")
    bad = []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not one.specifier.contains(found, prereleases=True):
            bad.append(f"{one.name} {found}, needed {one.name}{one.specifier}")
    if bad:
        return Check("packages", False, f"{'; '.join(bad)}; install them with pip")
    return Check("packages", True, "all that are needed")


def check_space(folder: Path) -> Check:
    """Whether there is room for bytes and files."""
    status = os.statvfs(folder)
    free, files = status.f_bavail * status.f_frsize, status.f_favail
    if free < SPACE:
        return Check(
            "space",
            False,
            f"{free / 2**20:.0f} MiB free in {folder}, needed at least {SPACE >> 20} MiB; "
            "free some space or keep runs elsewhere with --runs",
        )
    # File systems without a table of files report none at all.
    if status.f_files and files < FILES:
        return Check(
            "space",
            False,
            f"{folder} takes {files} more files, needed at least {FILES}; "
            "remove some or keep runs elsewhere with --runs",
        )
    return Check("space", True, f"{free / 2**30:.1f} GiB free in {folder}")


def _rate(folder: Path) -> str:
    block = bytes(RATE_BLOCK)
    started = time.perf_counter()
    atomic_write_bytes(folder / "block", block)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(RATE_FILES):
        atomic_write_bytes(folder / f"receipt-{number}", b"{}")
    small = (time.perf_counter() - started) / RATE_FILES
    return f"{len(block) / 2**20 / seconds:.0f} MiB/s written, {1e3 * small:.1f} ms a small file"


RATE_BLOCK, RATE_FILES = 16 * 2**20, 20
"""Bytes and small files written to see how fast that goes."""


def _rename(folder: Path) -> str:
    path = folder / "block"
    for content in (b"old", b"new"):
        atomic_write_bytes(path, content)
    if path.read_bytes() != b"new" or len(os.listdir(folder)) != 1:
        raise MachineError("a renamed file did not replace the old one")
    return "files are replaced whole"


def _lock(folder: Path) -> str:
    with run_lock(folder):
        try:
            with lease(folder, seconds=LEASE, patience=0.0):
                raise MachineError("a second process could hold the same run")
        except RunLocked:
            return "one process per run"


FILE_SYSTEM: dict[str, Callable[[Path], str]] = {"rename": _rename, "lock": _lock, "rate": _rate}
"""What is tried in a new folder on the file system of the runs."""


def _try(name: str, folder: Path, look: Callable[[Path], str]) -> Check:
    try:
        with tempfile.TemporaryDirectory(PARTIAL, ".doctor-", folder) as new:
            return Check(name, True, look(Path(new)))
    except (MachineError, OSError) as error:
        line = " ".join(str(error).split())
        return Check(name, False, f"{line}; keep runs on another file system with --runs")
