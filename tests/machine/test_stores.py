"""Stores: what is read is what was written, or an error."""

import contextlib
import hashlib
import os
import random
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from hpc import stores
from hpc.errors import CorruptBlock, LayoutError, StoreError
from hpc.ledger import Ledger, Receipt
from hpc.stores import Coordinate, Variable, create_store, read_block, write_block


def layout(n_time=13, **changes):
    u = {"shape": (4, n_time, 6), "chunks": (2, 5, 6), "dtype": "float32"} | changes
    return {
        "variables": [Variable("u", ("member", "time", "x"), attrs={"units": "1"}, **u)],
        "coordinates": [
            Coordinate("member", np.arange(4)),
            Coordinate("time", 0.5 * np.arange(n_time), {"units": "1"}),
            Coordinate("estimator", np.array(["exact", "neural"])),
        ],
        "attrs": {"title": "test"},
    }


def block(seed=0, n_time=5):
    return np.random.default_rng(seed).normal(size=(2, n_time, 6)).astype("float32")


def bytes_of(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "ensemble.zarr"
    create_store(path, **layout())
    return path


def test_a_block_that_covers_part_of_a_chunk_is_refused(store):
    """Two writers of one chunk lose each other's rows."""
    message = (
        r"block time\[3:6\] of 'u' covers part of chunk time\[0:5\] of ensemble.zarr: "
        "two workers could write it; use blocks of 5"
    )
    with pytest.raises(LayoutError, match=message):
        write_block(store, "u", start={"time": 3}, values=block(n_time=3))
    with pytest.raises(LayoutError, match=r"block time\[5:12\] .* chunk time\[10:13\]"):
        write_block(store, "u", start={"time": 5}, values=block(n_time=7))
    with pytest.raises(LayoutError, match="outside"):
        write_block(store, "u", start={"time": 10}, values=block(n_time=5))
    with pytest.raises(LayoutError, match="no dimension"):
        write_block(store, "u", start={"tme": 0}, values=block())
    assert not (store / "u" / "c").exists()


def test_what_was_written_is_read_back_and_opens_without_us(store):
    """Also the clipped last chunk, and strings, in a bare `xr.open_zarr` without warnings."""
    values = block(n_time=13)
    files = write_block(store, "u", start={"member": 2}, values=values)
    assert sorted(files) == ["u/c/1/0/0", "u/c/1/1/0", "u/c/1/2/0"]
    assert len(set(files.values())) == 3
    part = read_block(store, "u", start={"member": 3, "time": 4}, size={"member": 1, "time": 8})
    np.testing.assert_array_equal(part, values[1:2, 4:12])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stores.consolidate(store)
        bare = xr.open_zarr(store)
        np.testing.assert_array_equal(bare.u[2:].values, values)
        assert np.isnan(bare.u[:2].values).all()
        assert bare.u.chunksizes["time"] == (5, 5, 3)
        assert [str(name) for name in bare.estimator.values] == ["exact", "neural"]
        assert float(bare.time[3]) == 1.5 and bare.u.attrs == {"units": "1"}
        assert stores.open_store(store).equals(bare)


def test_blocks_of_zeros_and_nan_leave_files(store):
    """Otherwise an empty chunk could not be told from one never written."""
    for value in (0.0, np.nan):
        files = write_block(store, "u", start={}, values=np.full((2, 5, 6), value))
        assert all((store / name).is_file() for name in files)


def test_a_missing_chunk_is_never_read_as_numbers(store):
    write_block(store, "u", start={}, values=block())
    with pytest.raises(CorruptBlock, match=r"member\[0:2\], time\[5:10\].* of 'u' of ensemble"):
        read_block(store, "u", start={"member": 0}, size={"member": 1})
    with pytest.raises(StoreError, match="no variable 'v'"):
        read_block(store, "v", start={}, size={})


def test_creating_again_changes_no_byte_and_is_reproducible(store, tmp_path):
    write_block(store, "u", start={}, values=block())
    before = bytes_of(store)
    create_store(store, **layout())
    assert bytes_of(store) == before
    create_store(tmp_path / "twin.zarr", **layout())
    write_block(tmp_path / "twin.zarr", "u", start={}, values=block())
    assert bytes_of(tmp_path / "twin.zarr") == before


def test_a_store_grows_and_keeps_its_blocks(tmp_path):
    """Handles opened before must see the new length; grown and new stores are the same bytes."""
    path, new = tmp_path / "a.zarr", tmp_path / "b.zarr"
    create_store(path, **layout(10))
    write_block(path, "u", start={"time": 5}, values=block())
    stores.consolidate(path)
    with pytest.raises(LayoutError, match="length along time: found 10, needed 20"):
        create_store(path, **layout(20))
    create_store(path, **layout(20), extendable=("time",))
    write_block(path, "u", start={"time": 15}, values=block(1))
    assert stores.open_store(path).sizes["time"] == 20
    np.testing.assert_array_equal(
        read_block(path, "u", start={"time": 5}, size={"member": 2, "time": 5}), block()
    )
    create_store(new, **layout(20))
    for start, seed in ((5, 0), (15, 1)):
        write_block(new, "u", start={"time": start}, values=block(seed))
    assert bytes_of(path) == bytes_of(new)


def test_an_extension_that_was_killed_is_completed(tmp_path):
    """Labels are lengthened first, so the store may be left with longer labels than data."""
    path = tmp_path / "a.zarr"
    create_store(path, **layout(10))
    import zarr

    zarr.open_array(path / "time").resize((20,))
    create_store(path, **layout(20), extendable=("time",))
    assert stores.open_store(path).time.values[-1] == 9.5


def test_another_layout_is_refused_by_name(store):
    for changes, message in (
        ({"chunks": (2, 4, 6)}, r"'u' of .* another chunks: found \(2, 5, 6\), needed \(2, 4, 6\)"),
        ({"dtype": "float64"}, "another dtype: found float32, needed float64"),
        ({"n_time": 12}, "another length along time: found 13, needed 12"),
    ):
        with pytest.raises(LayoutError, match=message):
            create_store(store, **layout(**changes), extendable=("time",))
    shifted = layout()
    shifted["coordinates"][1] = Coordinate("time", 0.5 + 0.5 * np.arange(13))
    with pytest.raises(LayoutError, match="'time' of .* value 0: found 0.0, needed 0.5"):
        create_store(store, **shifted)
    write_block(store, "u", start={"time": 10}, values=block(n_time=3))
    with pytest.raises(LayoutError, match=r"cannot grow along time from 13: chunk time\[10:13\]"):
        create_store(store, **layout(20), extendable=("time",))


def test_every_flipped_bit_and_truncation_is_found(store):
    """Both by the reader and by the ledger, which needs no array to look."""
    files = write_block(store, "u", start={}, values=block())
    ledger = Ledger(store.parent / "ledger", store)
    ledger.record(Receipt("b", files))
    path = store / "u/c/0/0/0"
    intact = path.read_bytes()
    rng = random.Random(1)
    damaged = []
    for _ in range(200):
        flipped = bytearray(intact)
        flipped[rng.randrange(len(intact))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [intact[: rng.randrange(len(intact))] for _ in range(20)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CorruptBlock, match=r"member\[0:2\], time\[0:5\], x\[0:6\] of 'u'"):
            read_block(store, "u", start={}, size={"member": 2, "time": 5})
        assert [problem.block for problem in ledger.problems()] == ["b"]
    path.write_bytes(intact)
    assert ledger.problems() == []


def test_a_valid_chunk_in_the_place_of_another_is_found(store):
    """A crc32c of a file that ends in its crc32c would be the same for all chunks."""
    files = write_block(store, "u", start={}, values=block(n_time=13))
    ledger = Ledger(store.parent / "ledger", store)
    ledger.record(Receipt("b", files))
    (store / "u/c/0/0/0").write_bytes((store / "u/c/0/1/0").read_bytes())
    assert [problem.path for problem in ledger.problems()] == ["u/c/0/0/0"]


def test_damaged_metadata_is_told_in_one_line(store):
    (store / "u" / "zarr.json").write_text("{")
    with pytest.raises(CorruptBlock, match="metadata of 'u'"):
        read_block(store, "u", start={}, size={})


def write_for_ever(root, ledger, first):
    for i in range(first, first + 100_000):
        start = {"member": 2 * (i % 2), "time": 5 * (i // 2 % 2)}
        values = np.full((2, 5, 2000), float(i % 7), "float32")
        files = write_block(root / "a.zarr", "u", start=start, values=values)
        ledger.record(Receipt(f"m{start['member']}t{start['time']}", files, {"value": i % 7}))


@pytest.mark.parametrize("kills", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_moment_leaves_no_wrong_block(tmp_path, kills):
    """Each chunk is absent or complete, and what a kill leaves over is removed."""
    path = tmp_path / "a.zarr"
    create_store(path, **layout(10, shape=(4, 10, 2000), chunks=(2, 5, 2000)))
    ledger, dice, left = Ledger(tmp_path / "ledger", path), random.Random(kills), 0
    for kill in range(kills):
        writer = os.fork()
        if writer == 0:
            write_for_ever(tmp_path, ledger, kill)
        time.sleep(dice.uniform(0.0, 0.12))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        left += len(list(tmp_path.rglob("*.partial")))
        for start in ({"member": m, "time": t} for m in (0, 2) for t in (0, 5)):
            with contextlib.suppress(CorruptBlock):
                values = read_block(path, "u", start=start, size={"member": 2, "time": 5})
                assert (values == values[0, 0, 0]).all()
        bad = {problem.block for problem in ledger.problems()}
        # A block written again, killed before its new receipt: known as wrong, not accepted.
        assert all(problem.what.startswith("content changed") for problem in ledger.problems())
        for block in ledger.done() - bad:
            start = {"member": int(block[1]), "time": int(block[3])}
            values = read_block(path, "u", start=start, size={"member": 2, "time": 5})
            assert (values == ledger.load(block).facts["value"]).all()
        ledger.drop(*bad)
        stores.collect_orphans(tmp_path)
        assert not list(tmp_path.rglob("*.partial"))
    assert ledger.done() and left


def test_leftovers_are_removed_and_nothing_else(store):
    (store / "u" / "0.12.partial").write_bytes(b"x")
    (store.parent / ".b.zarr.12.partial").mkdir()
    (store.parent / ".b.zarr.12.partial" / "zarr.json").write_bytes(b"x")
    before = bytes_of(store)
    assert stores.collect_orphans(store.parent) == 2
    assert len(bytes_of(store)) == len(before) - 1
    assert [path.name for path in store.parent.iterdir()] == ["ensemble.zarr"]
