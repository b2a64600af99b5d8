"""Receipts of blocks as bytes: one by one, and many packed in one file.

A packed file is a line with the names of its blocks, then the receipts, a line each with a
checksum of its own. Damage of the file therefore costs the receipts it hits and no others, and
they are known by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

_CRC = '{"crc32c":"'
_HEAD = len(_CRC) + 8  # of the hexadecimal digits
_RECEIPT = '","receipt":{"block":'


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


def encode(receipt: Receipt) -> bytes:
    """A receipt as a line with its checksum."""
    content = {
        "block": receipt.block,
        "files": dict(sorted(receipt.files.items())),
        "facts": dict(receipt.facts),
    }
    return _line("receipt", content)


def decode(raw: bytes) -> Receipt:
    """The receipt of a line.

    Raises:
        ValueError: it is not bit for bit what `encode` gave.
    """
    try:
        content = json.loads(raw)["receipt"]
        receipt = Receipt(content["block"], content["files"], content["facts"])
        # Comparing whole lines also finds damage that leaves the parsed content unchanged.
        intact = encode(receipt) == raw
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    if not intact:
        raise ValueError("checksum does not match")
    return receipt


@dataclass(frozen=True)
class Pack:
    """Content of a packed file, as it was read.

    Attributes:
        names: blocks whose receipts it holds or held.
        lines: the receipts, each by the name that it bears; checked by `decode` only.
        intact: whether the list of names is what was written.
    """

    names: tuple[str, ...] = ()
    lines: Mapping[str, bytes] = field(default_factory=dict)
    intact: bool = True

    @classmethod
    def read(cls, raw: bytes) -> Pack:
        """The content of a file; with a damaged list of names, those of the sound receipts."""
        head, *rest = raw.splitlines(keepends=True) or [b""]
        lines = {name: line for line in rest if (name := _name(line)) is not None}
        try:
            names = json.loads(head)["blocks"]
            if _line("blocks", names) != head:
                raise ValueError("checksum does not match")
        except (ValueError, KeyError, TypeError):
            return cls(tuple(n for n, line in lines.items() if _sound(n, line)), lines, False)
        return cls(tuple(names), lines)

    def changed(self, *, added: Mapping[str, bytes], dropped: Iterable[str] = ()) -> Pack:
        """The same with some receipts more, or in place of older ones, and some less."""
        without = {*dropped, *added}
        names = [name for name in self.names if name not in without]
        kept = set(names)
        lines = {name: line for name, line in self.lines.items() if name in kept}
        return Pack((*names, *added), {**lines, **added})

    def write(self) -> bytes:
        """Content of the file."""
        return _line("blocks", list(self.names)) + b"".join(self.lines.values())


def _line(kind: str, content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":"))
    crc = google_crc32c.value(text.encode())
    return f'{_CRC}{crc:08x}","{kind}":{text}}}\n'.encode()


def _name(line: bytes) -> str | None:
    """The block whose receipt a line says it is."""
    start = _HEAD + len(_RECEIPT)
    try:
        name = json.loads(line[start : line.index(b',"files":', start)])
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _sound(name: str, line: bytes) -> bool:
    try:
        return decode(line).block == name
    except ValueError:
        return False
