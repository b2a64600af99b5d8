"""Ledger: a block is done or not."""

import random

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
