"""Which blocks are done: one checksummed receipt per block, written after the block's files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import google_crc32c

from hpc.errors import CorruptBlock
from hpc.files import atomic_write_bytes, file_crc

__all__ = ["Ledger", "Problem", "Receipt", "file_crc"]

SUFFIX = ".json"


@dataclass(frozen=True)
class Receipt:
    """Proof that a block is complete.

    Attributes:
        block: name of the block, unique in its ledger.
        files: fingerprint (`file_crc`) of each file of the block, by path relative to the root.
        facts: anything JSON can hold: seconds, host, pid, bytes.
    """

    block: str
    files: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a block: which, where, and what."""

    block: str
    path: str
    what: str


class Ledger:
    """The receipts of a run's blocks.

    Args:
        folder: where the receipts are kept, one JSON file per block.
        root: folder to which the receipts' file paths are relative.
    """

    def __init__(self, folder: Path | str, root: Path | str) -> None:
        self.folder = Path(folder)
        self.root = Path(root)

    def record(self, receipt: Receipt) -> None:
        """Declare a block complete; its files must be on disk. Errors as `atomic_write_bytes`."""
        atomic_write_bytes(self.path(receipt.block), _encode(receipt))

    def done(self) -> set[str]:
        """Blocks with a receipt, from the folder listing alone."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        return {
            unquote(name.removesuffix(SUFFIX))
            for name in names
            if name.endswith(SUFFIX) and not name.startswith(".")
        }

    def load(self, block: str) -> Receipt:
        """The receipt of a block.

        Raises:
            CorruptBlock: the receipt is absent or not bit for bit what was recorded.
        """
        path = self.path(block)
        try:
            raw = path.read_bytes()
            content = json.loads(raw)["receipt"]
            receipt = Receipt(content["block"], content["files"], content["facts"])
            # Comparing whole files also finds damage that leaves the parsed content unchanged.
            intact = _encode(receipt) == raw and receipt.block == block
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            raise CorruptBlock(f"receipt of block {block} is absent or damaged: {path}")
        return receipt

    def drop(self, block: str) -> None:
        """Forget a block, so that it is computed again."""
        self.path(block).unlink(missing_ok=True)

    def problems(self, *, deep: bool = True) -> list[Problem]:
        """Everything wrong with the blocks that have receipts.

        Args:
            deep: read every file and compare its fingerprint; otherwise only look for it.

        Returns:
            Damaged receipts, missing files and (deep) changed files, sorted by block.
        """
        found = []
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
        """File of a block's receipt."""
        # A leading dot would hide the file from `done`, and means a file being written.
        return self.folder / (quote(block, safe="").replace(".", "%2E") + SUFFIX)


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


def _encode(receipt: Receipt) -> bytes:
    content = {
        "block": receipt.block,
        "files": dict(sorted(receipt.files.items())),
        "facts": dict(receipt.facts),
    }
    text = json.dumps(content, separators=(",", ":"))
    crc = google_crc32c.value(text.encode())
    return f'{{"crc32c":"{crc:08x}","receipt":{text}}}\n'.encode()
