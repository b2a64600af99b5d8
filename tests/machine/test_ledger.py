"""Ledger: a block is done or not."""

import random
import subprocess
import sys
import time

import pytest

from hpc.errors import CorruptBlock, MachineError, RunLocked
from hpc.ledger import Ledger, Receipt, file_crc


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


def receipt_of(number):
    return Receipt(f"m-{number}", {"a": "00"}, {"number": number})


@pytest.fixture
def packing(tmp_path, monkeypatch):
    """A ledger that packs soon, with 25 receipts: three times 8 packed, one not."""
    monkeypatch.setattr("hpc.ledger.LOOSE", 8)
    (tmp_path / "a").write_bytes(b"\0\0\0\0")
    ledger = Ledger(tmp_path / "ledger", tmp_path)
    crc = file_crc(tmp_path / "a")
    for number in range(25):
        ledger.record(Receipt(f"m-{number}", {"a": crc}, {"number": number}))
    return ledger


def test_receipts_are_packed_and_stay_what_they_were(packing):
    """Files cost quota: of 25 receipts one has a file of its own."""
    fresh = Ledger(packing.folder, packing.root)
    assert sorted(path.name for path in packing.folder.iterdir()) == ["m-24.json", "packed"]
    assert fresh.done() == {f"m-{number}" for number in range(25)}
    assert [fresh.load(f"m-{number}").facts["number"] for number in range(25)] == [*range(25)]
    assert fresh.problems() == []


def test_a_packed_receipt_is_dropped_and_replaced(packing):
    fresh = Ledger(packing.folder, packing.root)
    packing.drop("m-3", "m-24", "never there")
    assert packing.done() == fresh.done() == {f"m-{n}" for n in range(24) if n != 3}
    with pytest.raises(CorruptBlock, match="m-3 is absent"):
        fresh.load("m-3")
    packing.record(Receipt("m-5", {}, {"number": 55}))
    assert fresh.load("m-5").facts == {"number": 55}
    for number in range(100, 108):
        packing.record(receipt_of(number))
    assert not packing.path("m-5").exists()
    assert fresh.load("m-5").facts == {"number": 55}


def test_every_flipped_bit_and_truncation_of_a_pack_is_found_by_name(packing):
    """And costs the receipts that it hits, two where a line end is hit; no others."""
    path = packing.folder / "packed"
    intact = path.read_bytes()
    names = {f"m-{number}" for number in range(24)}
    rng = random.Random(5)
    flips = [(rng.randrange(len(intact)), 1 << rng.randrange(8)) for _ in range(300)]
    ends = [i for i, byte in enumerate(intact) if byte == ord("\n")]
    damaged = []
    for position, bit in [*flips, *((end, 1) for end in ends)]:
        flipped = bytearray(intact)
        flipped[position] ^= bit
        damaged.append((bytes(flipped), 2))
    damaged += [(intact[:length], 24) for length in rng.sample(range(len(intact)), 40)]
    for content, most in damaged:
        path.write_bytes(content)
        found = {problem.block for problem in packing.problems()}
        assert found and found <= names | {"receipts"}
        assert len(found - {"receipts"}) <= most
        survivors = packing.done() - found
        packing.drop(*found)
        assert packing.problems() == []
        assert packing.done() == survivors
        for block in survivors:
            assert packing.load(block).facts == {"number": int(block[2:])}


RECORDER = """
import sys
import hpc.ledger
from hpc.ledger import Ledger, Receipt
hpc.ledger.LOOSE = 4
ledger = Ledger(sys.argv[1], ".")
for number in range(int(sys.argv[2]), 100_000):
    ledger.record(Receipt(f"m-{number}", {}, {"number": number}))
    print(number, flush=True)
"""


def test_a_recorder_killed_at_any_moment_loses_no_receipt(tmp_path):
    """Packing goes on all the time; what was recorded stays recorded."""
    folder, first = tmp_path / "ledger", 0
    ledger = Ledger(folder, tmp_path)
    for kill in range(5):
        command = [sys.executable, "-c", RECORDER, str(folder), str(first)]
        recorder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert recorder.stdout is not None
        said = recorder.stdout.readline()
        time.sleep(random.Random(kill).uniform(0.0, 0.3))
        recorder.kill()
        last = int([said, *recorder.stdout.read().splitlines()][-1])
        recorder.wait()
        recorder.stdout.close()
        assert {f"m-{number}" for number in range(last + 1)} <= ledger.done()
        assert len(ledger.done()) <= last + 2
        receipts = [ledger.load(block) for block in ledger.done()]
        assert all(one.block == f"m-{one.facts['number']}" for one in receipts)
        assert ledger.problems() == []
        first = last + 1
