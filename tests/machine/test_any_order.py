"""Write, kill, resume, extend, flip, repair in any order: the store is what a model says."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import hpc.ledger
from hpc.errors import CorruptBlock
from hpc.files import collect_orphans
from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Ledger, Receipt
from hpc.stores import consolidate, read_block, write_block

GROUPS, TIMES, WIDTH = 2, 3, 4
"""Groups of two members, saved times in a block, numbers in a snapshot."""
MOST = 6
"""Segments at most."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Thousands of small files: on a disk the test would time its flushes."""

numbers = st.integers(min_value=0, max_value=10**6)


def values_of(block):
    """A block is a function of its name."""
    group, segment = block
    return np.random.default_rng([group, segment]).normal(size=(2, TIMES, WIDTH)).astype("float32")


class Store(RuleBasedStateMachine):
    """The real store and ledger beside two sets: what is done, and what of it is damaged."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY))
        self.path = self.root / "a.zarr"
        self.done, self.damaged = set(), {}
        hpc.ledger.LOOSE = 3  # pack all the time

    def teardown(self):
        shutil.rmtree(self.root)

    @initialize(segments=st.integers(1, 3))
    def begin(self, segments):
        self.segments = 0
        self.extend(segments)

    @property
    def ledger(self):
        """A new one every time, as after a restart."""
        return Ledger(self.root / "ledger", self.path)

    def name(self, block):
        return f"g{block[0]}-s{block[1]}"

    def blocks(self):
        return [(group, segment) for segment in range(self.segments) for group in range(GROUPS)]

    def write(self, block):
        start = {"member": 2 * block[0], "time": TIMES * block[1]}
        return write_block(self.path, "u", start=start, values=values_of(block))

    def record(self, block, files, ledger):
        ledger.record(Receipt(self.name(block), files, {"group": block[0]}))
        self.done.add(block)

    @rule(number=numbers)
    def make(self, number):
        """A worker makes a block that is not done, or that is done: a task may run twice."""
        block = self.blocks()[number % len(self.blocks())]
        self.record(block, self.write(block), self.ledger)
        self.damaged.pop(block, None)

    @rule(number=numbers, length=st.integers(0, 20))
    def kill(self, number, length):
        """A worker is killed at its file, after it, or at its receipt."""
        block = self.blocks()[number % len(self.blocks())]
        chunk = self.path / "u" / "c" / str(block[0]) / str(block[1]) / "0"
        if number % 3 == 0:
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.with_name(f"0.{number}.partial").write_bytes(bytes(length))
            return
        self.write(block)
        if self.damaged.get(block) == "chunk":
            del self.damaged[block]
        if number % 3 == 1:
            self.ledger.folder.mkdir(exist_ok=True)
            (self.ledger.folder / f".{number}.partial").write_bytes(bytes(length))

    @precondition(lambda self: self.segments < MOST)
    @rule(more=st.integers(1, 2))
    def extend(self, more):
        self.segments += more
        times = self.segments * TIMES
        create_store(
            self.path,
            variables=[
                Variable(
                    "u",
                    ("member", "time", "x"),
                    (2 * GROUPS, times, WIDTH),
                    (2, TIMES, WIDTH),
                    "float32",
                )
            ],
            coordinates=[Coordinate("time", np.arange(times))],
            attrs={"times": times},
            extendable=("time",),
        )

    @precondition(lambda self: self.done - set(self.damaged))
    @rule(number=numbers, where=numbers, bit=st.integers(0, 7), cut=st.booleans())
    def damage(self, number, where, bit, cut):
        """A bit of a chunk or of a receipt is flipped, or its end is lost."""
        sound = sorted(self.done - set(self.damaged))
        block = sound[number % len(sound)]
        receipt = self.ledger.path(self.name(block))
        kind = "receipt" if where % 2 and receipt.is_file() else "chunk"
        chunk = self.path / "u" / "c" / str(block[0]) / str(block[1]) / "0"
        path = receipt if kind == "receipt" else chunk
        content = bytearray(path.read_bytes())
        if cut:
            content = content[: where % len(content)]
        else:
            content[where % len(content)] ^= 1 << bit
        path.write_bytes(content)
        self.damaged[block] = kind

    @rule()
    def repair(self):
        """Exactly what is damaged is found and forgotten."""
        found = {problem.block for problem in self.ledger.problems()}
        assert found == {self.name(block) for block in self.damaged}
        self.ledger.drop(*found)
        self.done -= set(self.damaged)
        self.damaged = {}
        assert self.ledger.problems() == []

    @rule()
    def resume(self):
        """A driver mends and makes what is missing, and nothing else."""
        self.repair()
        collect_orphans(self.root)
        assert not list(self.root.rglob("*.partial"))
        before = {p: p.stat().st_mtime_ns for p in (self.path / "u" / "c").rglob("0")}
        kept, ledger = set(self.done), self.ledger
        for block in self.blocks():
            if self.name(block) not in ledger.done():
                self.record(block, self.write(block), ledger)
        consolidate(self.path)
        assert self.done == set(self.blocks())
        for group, segment in kept:
            path = self.path / "u" / "c" / str(group) / str(segment) / "0"
            if path in before and path.is_file():
                assert path.stat().st_mtime_ns == before[path]
        whole = read_block(self.path, "u", start={}, size={})
        for group, segment in self.blocks():
            part = whole[2 * group : 2 * group + 2, TIMES * segment : TIMES * (segment + 1)]
            np.testing.assert_array_equal(part, values_of((group, segment)))

    @invariant()
    def the_ledger_is_the_model(self):
        assert self.ledger.done() == {self.name(block) for block in self.done}

    @invariant()
    def a_block_is_right_or_told(self):
        for block in self.blocks():
            start = {"member": 2 * block[0], "time": TIMES * block[1]}
            try:
                found = read_block(self.path, "u", start=start, size={"member": 2, "time": TIMES})
            except CorruptBlock:
                assert block not in self.done or self.damaged.get(block) == "chunk"
            else:
                np.testing.assert_array_equal(found, values_of(block))
                assert self.damaged.get(block) != "chunk"


@pytest.mark.parametrize("examples", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_order_of_mishaps_leaves_what_the_model_says(examples, monkeypatch):
    monkeypatch.setattr(hpc.ledger, "LOOSE", hpc.ledger.LOOSE)  # put back afterwards
    run_state_machine_as_test(
        Store,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
