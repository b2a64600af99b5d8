"""A run folder copied to where nothing is purged, every byte compared; again after a kill.

A copy is a run folder like the first. Zipped, each store is one file, which quotas of files and
tapes like better; `unzip ensemble.zarr.zip -d ensemble.zarr` makes a run folder of it again.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import google_crc32c

from hpc.catalog import Source, read_catalog, write_catalog
from hpc.errors import CorruptBlock, StoreError
from hpc.files import PARTIAL, atomic_write_json, collect_orphans, partial_path, telling_disk_errors
from hpc.ledger import Problem

RECORD = "archive.json"
"""crc32c of every file of an archive."""

PIECE = 1 << 22
"""Bytes read at a time."""

Told = Callable[[str, int, int], None]


def archive(folder: Path, target: Path, *, zipped: bool, notify: Told) -> None:
    """Copy a run folder; files that are there and equal are not written again.

    Args:
        folder: the run, which nobody may write meanwhile: hold its lock.
        target: the copy; made if absent.
        zipped: one zip file for each store.
        notify: told of progress.

    Raises:
        StoreError: the target holds something else, or cannot be written.
        CorruptBlock: what was written does not read back as what was read.
    """
    _refuse_other(folder, target)
    jobs: list[Path] = list(_parts(folder, zipped=zipped))
    known = _recorded(target)
    crcs: dict[str, str] = {}
    with telling_disk_errors(target, 0):
        target.mkdir(parents=True, exist_ok=True)
        collect_orphans(target)
        _record(target, folder.name, known)  # first: the mark of an archive that was begun
        for count, path in enumerate(jobs):
            notify("archive", count, len(jobs))
            name = str(path.relative_to(folder)) + (".zip" if path.is_dir() else "")
            write = _zip if path.is_dir() else _copy
            crcs[name] = write(path, target / name, known.get(name))
            if path.is_dir():  # dear: remember it in case of a kill
                _record(target, folder.name, known | crcs)
    if zipped:
        _catalog(target)
        crcs["catalog.yaml"] = crc_of(target / "catalog.yaml")
    _record(target, folder.name, crcs)
    notify("archive", len(jobs), len(jobs))


def problems(target: Path) -> list[Problem]:
    """Files of an archive that are missing, or are not what was written."""
    found = []
    for name, crc in sorted(_recorded(target).items()):
        path = target / name
        if not path.is_file():
            found.append(Problem("archive", name, "file is missing"))
        elif (now := crc_of(path)) != crc:
            found.append(Problem("archive", name, f"content changed: checksum {now}, not {crc}"))
    return found


def crc_of(path: Path) -> str:
    """crc32c of a file, in hex, read piece by piece."""
    with path.open("rb") as file:
        return _crc(file)


def _crc(file: IO[bytes]) -> str:
    value = 0
    while piece := file.read(PIECE):
        value = google_crc32c.extend(value, piece)
    return f"{value:08x}"


def _parts(folder: Path, *, zipped: bool) -> Iterator[Path]:
    """What is copied: files, and with `zipped` whole stores; nothing hidden, nothing unfinished."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in [n for n in folders if n[0] == "." or n.endswith(PARTIAL)]:
            folders.remove(name)
        stores = [n for n in folders if n.endswith(".zarr")] if zipped else []
        for name in stores:
            folders.remove(name)
            yield Path(parent, name)
        yield from (
            Path(parent, n)
            for n in sorted(files)
            if n[0] != "." and not n.endswith(PARTIAL) and n != RECORD
        )


def _copy(path: Path, copy: Path, _known: str | None) -> str:
    """Copy a file unless the same is there; its crc32c."""
    wanted = crc_of(path)
    if copy.is_file() and copy.stat().st_size == path.stat().st_size and crc_of(copy) == wanted:
        return wanted
    partial = partial_path(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, partial)
    _settle(partial, copy)
    if crc_of(copy) != wanted:
        raise CorruptBlock(f"{copy} does not read back as {path}; copy again, or elsewhere")
    return wanted


def _zip(store: Path, copy: Path, known: str | None) -> str:
    """Put a store into a zip file, uncompressed, and compare each of its files; its crc32c."""
    names = [str(path.relative_to(store)) for path in _parts(store, zipped=False)]
    if not (known and copy.is_file() and crc_of(copy) == known and _same(store, copy, names)):
        partial = partial_path(copy)
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
            for name in names:
                file.write(store / name, name)
        _settle(partial, copy)
        if not _same(store, copy, names):
            raise CorruptBlock(f"{copy} does not read back as {store}; archive again, or elsewhere")
    return crc_of(copy)


def _same(store: Path, copy: Path, names: list[str]) -> bool:
    with zipfile.ZipFile(copy) as file:
        if sorted(file.namelist()) != sorted(names):
            return False
        for name in names:
            with file.open(name) as member:
                if _crc(member) != crc_of(store / name):
                    return False
    return True


def _settle(partial: Path, path: Path) -> None:
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _catalog(target: Path) -> None:
    """The catalog of the zipped stores, in place of that of the run."""
    catalog = read_catalog(target / "catalog.yaml")
    stores = {
        name: Source(target / f"{Path(source.path.name).stem}.zarr.zip", source.description)
        for name, source in catalog.sources.items()
    }
    write_catalog(target / "catalog.yaml", metadata=catalog.metadata, sources=stores)


def _record(target: Path, name: str, crcs: dict[str, str]) -> None:
    atomic_write_json(target / RECORD, {"run": name, "crc32c": crcs})


def _recorded(target: Path) -> dict[str, str]:
    path = target / RECORD
    if not path.is_file():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(path.read_text())["crc32c"].items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise CorruptBlock(f"{path} is damaged: {error!r}; archive the run again") from error


def _refuse_other(folder: Path, target: Path) -> None:
    here, there = folder.resolve(), target.resolve()
    if here == there or here in there.parents:
        raise StoreError(f"{target} is in the run itself; name a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise StoreError(f"{target} is no folder; name another")
    mine, theirs = (path / "experiment.yaml" for path in (folder, target))
    if theirs.is_file() and theirs.read_bytes() != mine.read_bytes():
        raise StoreError(f"{target} holds another experiment; name another folder")
    begun = (target / RECORD).is_file() or theirs.is_file()
    if target.is_dir() and not begun and any(p.name[0] != "." for p in target.iterdir()):
        raise StoreError(f"{target} is not empty and no archive of {folder}; name another")
