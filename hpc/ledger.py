"""Which blocks are done: one checksummed receipt per block, written after the block's files.

Every receipt is a file of its own at first, and soon packed with others into one: quotas of files
would be spent on receipts otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from hpc.errors import CorruptBlock
from hpc.files import atomic_write_bytes, file_crc
from hpc.receipts import Pack, Receipt, decode, encode

__all__ = ["Ledger", "Problem", "Receipt", "file_crc"]

SUFFIX = ".json"

PACKED = "packed"
"""File of the packed receipts; a name that no receipt's file can have."""

LOOSE = 256
"""Receipts in files of their own that are packed together, or an eighth of those packed."""

SYNC_EVERY = 1.0
"""Seconds of receipts that a power loss may take; their blocks are then made again."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a block: which, where, and what."""

    block: str
    path: str
    what: str


class Ledger:
    """The receipts of a run's blocks; any number of readers, one writer at a time.

    Args:
        folder: where the receipts are kept.
        root: folder to which the receipts' file paths are relative.
    """

    def __init__(self, folder: Path | str, root: Path | str) -> None:
        self.folder = Path(folder)
        self.root = Path(root)
        self._loose: int | None = None
        self._synced = 0.0

    def record(self, receipt: Receipt) -> None:
        """Declare a block complete; its files must be on disk. Errors as `atomic_write_bytes`."""
        now = time.monotonic()
        sync = now - self._synced >= SYNC_EVERY
        atomic_write_bytes(self.path(receipt.block), encode(receipt), sync_name=sync)
        if sync:
            self._synced = now
        self._loose = len(self._files()) if self._loose is None else self._loose + 1
        if self._loose >= LOOSE:
            self._pack()

    def done(self) -> set[str]:
        """Blocks with a receipt, whatever is in it."""
        # In this order: a receipt is packed before its own file goes.
        loose = {unquote(name.removesuffix(SUFFIX)) for name in self._files()}
        return loose | set(self._packed().names)

    def load(self, block: str) -> Receipt:
        """The receipt of a block.

        Raises:
            CorruptBlock: the receipt is absent or not bit for bit what was recorded.
        """
        path = self.path(block)
        try:
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                raw, path = self._packed().lines[block], self.folder / PACKED
            receipt = decode(raw)
            if receipt.block == block:
                return receipt
        except (OSError, ValueError, KeyError):
            pass
        raise CorruptBlock(f"receipt of block {block} is absent or damaged: {path}")

    def having(self, fact: str) -> Iterator[Receipt]:
        """The intact receipts that state a fact, by name of block."""
        mark = json.dumps(fact).encode()
        loose = {unquote(n.removesuffix(SUFFIX)) for n in self._files() if self._holds(n, mark)}
        packed = {name for name, line in self._packed().lines.items() if mark in line}
        for block in sorted(loose | packed):
            with contextlib.suppress(CorruptBlock):
                receipt = self.load(block)
                if fact in receipt.facts:
                    yield receipt

    def drop(self, *blocks: str) -> None:
        """Forget blocks, so that they are computed again."""
        packed = self._packed()
        if not packed.intact or not set(packed.names).isdisjoint(blocks):
            # First, or the packed receipt would come to light under a newer one.
            self._write(packed.changed(added={}, dropped=blocks))
        for block in blocks:
            self.path(block).unlink(missing_ok=True)
        self._loose = None

    def problems(self, *, deep: bool = True) -> list[Problem]:
        """Everything wrong with the blocks that have receipts.

        Args:
            deep: read every file and compare its fingerprint; otherwise only look for it.

        Returns:
            Damaged receipts, missing files and (deep) changed files, sorted by block.
        """
        _read_pack.cache_clear()  # what is on the disk now
        found = []
        if not self._packed().intact:
            where = str(self.folder / PACKED)
            found.append(Problem("receipts", where, "the list of packed receipts is damaged"))
        for block in sorted(self.done()):
            try:
                receipt = self.load(block)
            except CorruptBlock as error:
                found.append(Problem(block, str(self.path(block)), str(error)))
                continue
            for name, crc in receipt.files.items():
                what = _file_problem(self.root / name, crc, deep=deep)
                if what:
                    found.append(Problem(block, name, what))
        return found

    def path(self, block: str) -> Path:
        """File of a block's receipt while it is not packed."""
        # A leading dot would hide the file from `done`, and means a file being written.
        return self.folder / (quote(block, safe="").replace(".", "%2E") + SUFFIX)

    @property
    def stamp(self) -> int:
        """Changes whenever receipts come or go."""
        try:
            return os.stat(self.folder).st_mtime_ns
        except FileNotFoundError:
            return 0

    def _files(self) -> list[str]:
        """Names of the files of single receipts."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]

    def _holds(self, name: str, mark: bytes) -> bool:
        with contextlib.suppress(FileNotFoundError):  # packed meanwhile, and read there
            return mark in (self.folder / name).read_bytes()
        return False

    def _packed(self) -> Pack:
        path = self.folder / PACKED
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return Pack()
        return _read_pack(path, (status.st_ino, status.st_mtime_ns, status.st_size))

    def _pack(self) -> None:
        """Pack the single receipts, if there are enough of them."""
        packed = self._packed()
        names = self._files()
        self._loose = len(names)
        if len(names) < max(LOOSE, len(packed.names) // 8):
            return
        added = {}
        for name in sorted(names):
            raw, block = (self.folder / name).read_bytes(), unquote(name.removesuffix(SUFFIX))
            try:
                intact = decode(raw).block == block
            except ValueError:
                intact = False
            if intact:  # damaged ones stay, to be found
                added[block] = raw
        self._write(packed.changed(added=added))
        for block in added:
            self.path(block).unlink()
        self._loose -= len(added)

    def _write(self, pack: Pack) -> None:
        atomic_write_bytes(self.folder / PACKED, pack.write())


@lru_cache(maxsize=16)
def _read_pack(path: Path, _stamp: tuple[int, int, int]) -> Pack:
    return Pack.read(path.read_bytes())


def _file_problem(path: Path, crc: str, *, deep: bool) -> str | None:
    if not path.is_file():
        return "file is missing"
    if not deep:
        return None
    try:
        found = file_crc(path)
    except OSError as error:
        return f"file cannot be read: {error.strerror}"
    return None if found == crc else f"content changed: checksum {found}, recorded {crc}"
