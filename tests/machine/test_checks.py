"""What `gfdt doctor` looks at, and what it says when that is not as it must be."""

import json
import os
import subprocess
import sys

import pytest

from hpc import checks
from hpc.checks import Check, check_packages, check_space


def test_the_doctor_finds_this_machine_fit(tmp_path):
    """The tests run on it; and looking leaves nothing behind."""
    command = [sys.executable, "-m", "workflow.cli", "doctor", "--json", "--runs", "no/such"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    found = json.loads(done.stdout)
    assert [name for name, one in found["checks"].items() if not one["ok"]] == []
    assert sorted(found["checks"]) == [
        "lock",
        "mpi",
        "mpi library",
        "packages",
        "rate",
        "rename",
        "slurm",
        "space",
    ]
    assert found["cores"] >= 1
    assert "torch" in found["versions"]
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit, words", [("SPACE", "MiB free in"), ("FILES", "more files")])
def test_a_disk_with_too_little_room_is_told_with_advice(limit, words, monkeypatch, tmp_path):
    status = os.statvfs(tmp_path)
    monkeypatch.setattr(checks, limit, 2**63)
    if limit == "FILES" and not status.f_files:
        pytest.skip("this file system has no table of files")
    found = check_space(tmp_path)
    assert not found.ok
    assert words in found.message and "keep runs elsewhere with --runs" in found.message
    assert len(found.message.splitlines()) == 1


@pytest.mark.parametrize("name", checks.FILE_SYSTEM)
def test_a_file_system_that_refuses_is_told_with_advice(name, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    for call in ("atomic_write_bytes", "run_lock"):
        monkeypatch.setattr(checks, call, refuse)
    found = checks._try(name, tmp_path, checks.FILE_SYSTEM[name])
    assert found == Check(
        name,
        False,
        "[Errno 95] Operation not supported; keep runs on another file system with --runs",
    )
    assert list(tmp_path.iterdir()) == []


def test_old_and_missing_packages_are_named(monkeypatch):
    wanted = ["numpy>=999", "no-such-package>=1", "sphinx; extra == 'docs'", "zarr>=2"]
    monkeypatch.setattr(checks.metadata, "requires", lambda _: wanted)
    found = check_packages("any")
    assert not found.ok
    assert "needed numpy>=999; no-such-package none, needed no-such-package>=1; " in found.message
    assert "sphinx" not in found.message and "zarr" not in found.message
