"""Disks that are full, read-only, forbidden or slow: one line, no wrong block, and on it goes."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import yaml

from hpc import stores
from hpc.errors import CorruptBlock, DiskFull, StoreError
from hpc.ledger import Ledger, Receipt
from hpc.stores import Variable, create_store, read_block, write_block
from workflow.loading import load_run
from workflow.stages.health import verify

LENGTH = 4000


def lay_out(path):
    u = Variable("u", ("member", "time", "x"), (4, 13, LENGTH), (2, 5, LENGTH), "float32")
    create_store(path, variables=[u], coordinates=[], attrs={})


def mounted(folder, *options):
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    mounted(folder, "size=256k")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk):
    path = small_disk / "ensemble.zarr"
    lay_out(path)
    values = np.ones((2, 5, 4000), "float32")
    write_block(path, "u", start={}, values=values)
    with pytest.raises(DiskFull, match="no space left, 160000 bytes needed and .* free; free"):
        write_block(path, "u", start={"member": 2}, values=values)
    assert not (path / "u/c/1/0/0").exists()
    with pytest.raises(DiskFull):
        stores.atomic_write_bytes(small_disk / "receipt.json", bytes(200_000))
    assert not (small_disk / "receipt.json").exists()
    assert stores.collect_orphans(small_disk) == 0
    np.testing.assert_array_equal(
        read_block(path, "u", start={}, size={"member": 2, "time": 5}), values
    )


def test_after_space_is_freed_the_rest_is_written(small_disk):
    """And what was there before is neither lost nor made again."""
    path, filler = small_disk / "ensemble.zarr", small_disk / "filler"
    lay_out(path)
    ledger = Ledger(small_disk / "ledger", path)
    filler.write_bytes(bytes(60_000))
    blocks = {"a": {"time": 10}, "b": {"time": 10, "member": 2}, "c": {"time": 0}}
    values = {name: np.full((2, 3 if name < "c" else 5, LENGTH), ord(name)) for name in blocks}

    def write_missing():
        for name, start in blocks.items():
            if name not in ledger.done():
                block = values[name].astype("float32")
                ledger.record(Receipt(name, write_block(path, "u", start=start, values=block)))

    with pytest.raises(DiskFull):
        write_missing()
    first = ledger.done()
    assert first and first < set(blocks) and ledger.problems() == []
    stamps = {name: os.stat(ledger.path(name)).st_mtime_ns for name in first}
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    write_missing()
    assert ledger.done() == set(blocks) and ledger.problems() == []
    assert {name: os.stat(ledger.path(name)).st_mtime_ns for name in first} == stamps


def test_a_read_only_store_is_read_and_told(small_disk):
    path = small_disk / "ensemble.zarr"
    lay_out(path)
    values = np.ones((2, 3, LENGTH), "float32")
    write_block(path, "u", start={"time": 10}, values=values)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for attempt in (
        lambda: write_block(path, "u", start={"time": 10}, values=values),
        lambda: Ledger(small_disk / "ledger", path).record(Receipt("b", {})),
    ):
        with pytest.raises(StoreError, match="Read-only file system"):
            attempt()
    size = {"member": 2, "time": 3}
    np.testing.assert_array_equal(read_block(path, "u", start={"time": 10}, size=size), values)


def test_a_forbidden_folder_is_told(tmp_path, monkeypatch):
    """As root sees it nowhere, the kernel's answer is given here by its error."""
    lay_out(tmp_path / "a.zarr")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuse)
    values = np.ones((2, 3, LENGTH), "float32")
    with pytest.raises(StoreError, match="Permission denied"):
        write_block(tmp_path / "a.zarr", "u", start={"time": 10}, values=values)
    ledger = Ledger(tmp_path / "ledger", tmp_path)
    with pytest.raises(StoreError, match="Permission denied"):
        ledger.record(Receipt("b", {}))
    assert ledger.done() == set() and list((tmp_path / "ledger").iterdir()) == []


def test_on_a_slow_disk_a_reader_sees_the_block_or_none(tmp_path, monkeypatch):
    """Every flush and every rename takes its time."""
    path = tmp_path / "a.zarr"
    lay_out(path)
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **k: (time.sleep(0.05), real(*a, **k)))
    blocks = [{"member": m, "time": 10} for m in (0, 2)]
    values = np.ones((2, 3, LENGTH), "float32")
    ledger = Ledger(tmp_path / "ledger", path)

    def write():
        for number, start in enumerate(blocks):
            ledger.record(Receipt(f"{number}", write_block(path, "u", start=start, values=values)))

    writer = threading.Thread(target=write)
    writer.start()
    absent = 0
    while writer.is_alive():
        recorded = ledger.done()
        for number, start in enumerate(blocks):
            try:
                found = read_block(path, "u", start=start, size={"member": 2, "time": 3})
                assert (found == 1).all()
            except CorruptBlock:
                absent += 1
                assert f"{number}" not in recorded
    writer.join()
    assert absent and ledger.done() == {"0", "1"} and ledger.problems() == []


RUN = {
    "name": "small",
    "system": {"kind": "allen_cahn", "grid": 32},
    "ensemble": {
        "members": 4,
        "group": 2,
        "spinup": 0.5,
        "length": 16.0,
        "save_every": 0.5,
        "chunk": "256KiB",  # one segment
    },
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian"], "max_lag": 2.0},
    "cluster": {"simulate": {"workers": 1}},
}


def test_a_run_on_a_full_disk_stops_in_one_line_and_continues(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RUN))
    disk = tmp_path / "runs"
    mounted(disk, "size=400k")
    try:
        command = [sys.executable, "-m", "workflow.cli", "simulate", "small.yaml", "-q"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 75, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "no space left" in done.stderr
        run = load_run("small", disk)
        assert verify(run) == [] and len(run.ledger("simulate").done()) < 4
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, "")
        assert verify(run) == [] and len(run.ledger("simulate").done()) == 4
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
