"""Which Slurm jobs belong to a run folder: one line each in `jobs.jsonl`, and their names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hpc.files import telling_disk_errors

FILE = "jobs.jsonl"
"""In the run folder: {"id", "role", "submitted"} of every job that was ever started for it."""


@dataclass(frozen=True)
class Entry:
    """One job that was submitted for a run.

    Attributes:
        id: Slurm's number.
        role: what it does: "worker", "train", "driver" or "stage:<name>".
        submitted: when, ISO 8601 with the offset from UTC.
    """

    id: str
    role: str
    submitted: str


def job_name(folder: Path | str, role: str) -> str:
    """Name of a run's jobs: `gfdt-RUN-HASH-ROLE`, the hash of the run folder's path.

    Slurm uses job ids again; a job with a recorded id and another name is somebody else's.
    """
    folder = Path(folder).resolve()
    mark = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    run, role = (re.sub(r"[^A-Za-z0-9_.-]", "_", word) for word in (folder.name, role))
    return f"gfdt-{run[:40]}-{mark}-{role}"


def record(folder: Path | str, job_id: str, role: str) -> None:
    """Append a job to a run folder; one write, so that many may record at once.

    Raises:
        StoreError: the file cannot be written.
    """
    path = Path(folder) / FILE
    entry = Entry(job_id, role, datetime.now(UTC).isoformat(timespec="seconds"))
    # Begins a line as well as ending one: a line torn by a full disk spoils no other.
    line = f"\n{json.dumps(asdict(entry))}\n".encode()
    with telling_disk_errors(path, len(line)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)


def read(folder: Path | str) -> list[Entry]:
    """Jobs of a run folder in the order of their submission; torn lines are passed over."""
    try:
        text = (Path(folder) / FILE).read_text(errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
            found.append(Entry(str(content["id"]), str(content["role"]), content["submitted"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
