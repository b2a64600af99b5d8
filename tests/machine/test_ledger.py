"""Ledger and lock: a block is done or not, a run has one driver."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from hpc.errors import CorruptBlock, MachineError, RunLocked
from hpc.ledger import Ledger, Receipt, file_crc
from hpc.lock import run_lock


@pytest.fixture
def ledger(tmp_path):
    (tmp_path / "a").write_bytes(b"some data of a block")
    ledger = Ledger(tmp_path / "ledger", tmp_path)
    receipt = Receipt("ensemble/member-0.time-5", {"a": file_crc(tmp_path / "a")}, {"seconds": 0.1})
    ledger.record(receipt)
    return ledger


def test_what_is_recorded_is_done_until_dropped(ledger):
    block = "ensemble/member-0.time-5"
    assert ledger.done() == {block}
    assert ledger.load(block).facts == {"seconds": 0.1}
    assert ledger.problems() == []
    ledger.drop(block)
    ledger.drop(block)
    assert ledger.done() == set()
    with pytest.raises(CorruptBlock, match="absent"):
        ledger.load(block)


def test_a_receipt_being_written_does_not_count(ledger):
    (ledger.folder / ".x.json.1.partial").write_bytes(b"{")
    assert len(ledger.done()) == 1


def test_every_flipped_bit_of_a_receipt_is_found(ledger):
    """Also those that leave the parsed content the same."""
    path = ledger.path("ensemble/member-0.time-5")
    intact = path.read_bytes()
    for position in range(8 * len(intact)):
        flipped = bytearray(intact)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert len(ledger.problems()) == 1
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        assert len(ledger.problems()) == 1
    path.write_bytes(intact)
    path.rename(ledger.path("another"))
    assert [problem.block for problem in ledger.problems()] == ["another"]


def test_missing_and_changed_files_are_found(ledger):
    path = ledger.root / "a"
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 4
    path.write_bytes(content)
    assert ledger.problems(deep=False) == []
    assert "content changed" in ledger.problems()[0].what
    path.unlink()
    assert ledger.problems(deep=False)[0].what == "file is missing"


def test_errors_carry_their_exit_code_through_pickling():
    """They cross from workers to the driver."""
    import pickle

    error = pickle.loads(pickle.dumps(MachineError("m", exit_code=9)))
    assert (str(error), error.exit_code, RunLocked("x").exit_code) == ("m", 9, 75)


HOLDER = """
import os, sys, time
from hpc.lock import run_lock
with run_lock(sys.argv[1]):
    if os.fork() == 0:  # a child that outlives its parent
        os.close(1)
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_and_a_killed_one_frees_the_run(tmp_path):
    """The lock of a killed driver is free at once, even if its children live on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    try:
        began = time.monotonic()
        message = f"{tmp_path} is in use by pid {holder.pid} on host .* since .*; wait for it"
        with pytest.raises(RunLocked, match=message), run_lock(tmp_path):
            pass
        assert time.monotonic() - began < 2
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
        holder.kill()
        holder.wait()
        with run_lock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with run_lock(tmp_path):
            pass
    finally:
        holder.stdout.close()
        os.killpg(holder.pid, signal.SIGKILL)
