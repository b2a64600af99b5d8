"""Files that are either absent or complete: atomic writes, fingerprints, leftovers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c

from hpc.errors import DiskFull, StoreError

PARTIAL = ".partial"
"""Suffix of everything that is still being written; zarr uses the same."""

CRC_BYTES = 4


@contextlib.contextmanager
def telling_disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into one line that names the path.

    Args:
        path: what is being read or written.
        needed: bytes about to be written, for the message.

    Raises:
        DiskFull: no space or no quota left.
        StoreError: any other OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path}: {error.strerror or error}") from error
        limit = "quota reached" if error.errno == errno.EDQUOT else "no space left"
        raise DiskFull(
            f"{path}: {limit}, {needed} bytes needed and {_free_bytes(path)} free; "
            "free some space and run the same command again"
        ) from error


def _free_bytes(path: Path) -> int:
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def partial_path(path: Path) -> Path:
    """A sibling of `path` to build it in; `collect_orphans` removes it if it is left behind."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path | str, data: bytes, *, sync_name: bool = True) -> None:
    """Write a file so that a reader, a kill or a power loss sees the old one or the new one.

    Args:
        path: the file; its folder is made if absent.
        data: its content.
        sync_name: make sure that a power loss right afterwards leaves the new one; half the cost.

    Raises:
        DiskFull: no space or no quota left; the old file is untouched.
        StoreError: any other failure of the file system.
    """
    path = Path(path)
    partial = partial_path(path)
    with telling_disk_errors(path, len(data)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            if sync_name:
                sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def atomic_write_json(path: Path | str, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically; errors as `atomic_write_bytes`."""
    atomic_write_bytes(path, (json.dumps(obj, indent=2) + "\n").encode())


def file_crc(path: Path | str, *, sync: bool = False) -> str:
    """Fingerprint of a file's bytes: crc32c of all but the last four, then those four, in hex.

    The crc32c of bytes that end in their own crc32c is one constant for every content, and so
    ends every chunk of our stores; keeping the two apart also tells two valid chunks apart.

    Args:
        path: the file.
        sync: flush it to the disk first, so that the fingerprint outlives a power loss.

    Raises:
        OSError: the file is absent or unreadable.
    """
    with Path(path).open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        data = file.read()
    return f"{google_crc32c.value(data[:-CRC_BYTES]):08x}{data[-CRC_BYTES:].hex()}"


def collect_orphans(folder: Path | str) -> int:
    """Remove what killed writers left unfinished under `folder`.

    Only safe while nobody writes there: hold the run lock.

    Returns:
        Number of files and folders removed.
    """
    removed = 0
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if name.endswith(PARTIAL)]:
            folders.remove(name)
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
            removed += 1
        for name in files:
            if name.endswith(PARTIAL):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, name))
                removed += 1
    return removed
