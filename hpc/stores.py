"""Zarr v3 stores whose chunks are absent, or complete and checksummed.

The layout is laid down once (`create_store`); then any number of processes write blocks of whole
chunks (`write_block`), so that no chunk ever has two writers. Every array ends its chunks in their
crc32c; nothing is compressed. A bare `xr.open_zarr(path)` opens the result.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.errors import ZarrUserWarning

from hpc.errors import CorruptBlock, LayoutError, StoreError
from hpc.files import (
    atomic_write_bytes,
    atomic_write_json,
    collect_orphans,
    file_crc,
    sync_folder,
    telling_disk_errors,
)
from hpc.layout import Coordinate, Variable, create_store, dimension_names

__all__ = [
    "Coordinate",
    "Variable",
    "atomic_write_bytes",
    "atomic_write_json",
    "collect_orphans",
    "consolidate",
    "create_store",
    "is_consolidated",
    "open_store",
    "read_block",
    "telling_damage",
    "write_block",
]


@dataclass(frozen=True)
class _Handle:
    """An open array with what the block arithmetic needs, and its folder."""

    array: zarr.Array = field(repr=False)
    path: Path
    store: str
    name: str
    dims: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.array.chunks


def write_block(
    path: Path | str, variable: str, *, start: Mapping[str, int], values: np.ndarray
) -> dict[str, str]:
    """Write a block of whole chunks of one variable.

    Safe from any number of processes, since every chunk belongs to one block; a kill leaves each
    chunk absent or complete.

    Args:
        path: the store.
        variable: name of the data variable.
        start: first index along each dimension; 0 where not given.
        values: the block, in the order of the variable's dims; its shape is the block's extent.

    Returns:
        Fingerprint (`file_crc`) of each chunk file as it lies on disk, by path inside the store.

    Raises:
        LayoutError: the block does not fit the variable or covers part of a chunk.
        DiskFull: no space or no quota left.
        StoreError: any other failure of the file system.
    """
    handle = _open(Path(path), variable)
    values = np.asarray(values)
    if values.ndim != len(handle.dims):
        raise LayoutError(
            f"block of '{variable}' has shape {values.shape}; {handle.store} needs one axis for "
            f"each of {handle.dims}"
        )
    extent = dict(zip(handle.dims, values.shape, strict=True))
    region = _region(handle, start, extent)
    _refuse_part_of_chunk(handle, region)
    values = values.astype(handle.array.dtype, casting="same_kind", copy=False)
    keys = [_chunk_key(index) for index in _chunks_of(handle, region)]
    with telling_disk_errors(handle.path, values.nbytes):
        handle.array[region] = values
        files = {f"{variable}/{key}": file_crc(handle.path / key, sync=True) for key in keys}
        for folder in {(handle.path / key).parent for key in keys}:
            sync_folder(folder)
    return files


def read_block(
    path: Path | str, variable: str, *, start: Mapping[str, int], size: Mapping[str, int]
) -> np.ndarray:
    """Read any block of one variable, whole along the dimensions not given.

    Args:
        path: the store.
        variable: name of the data variable.
        start: first index along each dimension; 0 where not given.
        size: number of indices along each dimension; to the end where not given.

    Raises:
        CorruptBlock: a chunk of the block is absent or fails its checksum; missing data is never
            returned as numbers.
        LayoutError: the block reaches outside the variable.
        StoreError: the store or the variable does not exist or cannot be read.
    """
    handle = _open(Path(path), variable)
    extent = {
        dim: size.get(dim, length - start.get(dim, 0))
        for dim, length in zip(handle.dims, handle.shape, strict=True)
    } | dict(size)
    region = _region(handle, start, extent)
    for index in _chunks_of(handle, region):
        if not (handle.path / _chunk_key(index)).is_file():
            raise CorruptBlock(_chunk_message(handle, index, "has not been written"))
    try:
        return np.asarray(handle.array[region])
    except OSError as error:
        raise StoreError(f"{handle.path}: {error.strerror or error}") from error
    except Exception as error:
        index = _damaged_chunk(handle, region)
        what = "is damaged, its checksum does not match"
        raise CorruptBlock(_chunk_message(handle, index, what)) from error


def consolidate(path: Path | str) -> None:
    """Gather all metadata in one file, for quick opening; call it when the layout is final."""
    if is_consolidated(path):
        return
    with telling_disk_errors(Path(path), 0), warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(Path(path))


def is_consolidated(path: Path | str) -> bool:
    """Whether the layout of a store is final; growing it makes it not so."""
    return bool(json.loads((Path(path) / "zarr.json").read_text()).get("consolidated_metadata"))


def open_store(path: Path | str) -> xr.Dataset:
    """The store as a lazy dataset, one dask chunk per Zarr chunk.

    Raises:
        StoreError: there is no readable store at `path`.
    """
    with warnings.catch_warnings():
        # The store is also read before it is consolidated; consolidated Zarr v3 is on purpose.
        warnings.filterwarnings("ignore", "Failed to open Zarr store", RuntimeWarning)
        warnings.simplefilter("ignore", ZarrUserWarning)
        try:
            return xr.open_zarr(Path(path), chunks={})
        except (OSError, KeyError, ValueError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(f"cannot open {path}: {line}") from error


@contextlib.contextmanager
def telling_damage(folder: Path) -> Iterator[None]:
    """Turn a failed checksum of lazily read data (`open_store`) into one line.

    Args:
        folder: where the stores are, for the message.

    Raises:
        CorruptBlock: data that was read is not what was written.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Stored and computed checksum do not match"):
            raise
        raise CorruptBlock(
            f"{folder}: data is damaged, the checksum of a chunk does not match"
        ) from error


def _open(path: Path, variable: str) -> _Handle:
    try:
        status = os.stat(path / variable / "zarr.json")
    except OSError as error:
        raise StoreError(f"{path} has no variable '{variable}': {error.strerror}") from error
    # Stamp in the key: a handle kept from before the store was extended is never used again.
    return _open_cached(path, variable, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _open_cached(path: Path, variable: str, stamp: tuple[int, int, int]) -> _Handle:
    folder = path / variable
    try:
        # zarr 3.1 forgets this setting when it opens an array; without it a block of zeros would
        # leave no file, and could not be told from a missing one.
        array = zarr.open_array(folder, mode="r+").with_config({"write_empty_chunks": True})
        dims = dimension_names(array)
        if len(dims) != len(array.shape):
            raise ValueError("dimension names are missing")
    except Exception as error:
        raise CorruptBlock(f"metadata of '{variable}' in {path} is damaged: {error}") from error
    return _Handle(array, folder, path.name, variable, dims)


def _region(
    handle: _Handle, start: Mapping[str, int], extent: Mapping[str, int]
) -> tuple[slice, ...]:
    unknown = sorted((set(start) | set(extent)) - set(handle.dims))
    if unknown:
        raise LayoutError(
            f"'{handle.name}' of {handle.store} has no dimension {unknown}; it has {handle.dims}"
        )
    region = []
    for dim, length in zip(handle.dims, handle.shape, strict=True):
        first = start.get(dim, 0)
        last = first + extent[dim]
        if not 0 <= first < last <= length:
            raise LayoutError(
                f"block {dim}[{first}:{last}] of '{handle.name}' is empty or outside "
                f"{dim}[0:{length}] of {handle.store}"
            )
        region.append(slice(first, last))
    return tuple(region)


def _refuse_part_of_chunk(handle: _Handle, region: tuple[slice, ...]) -> None:
    axes = zip(handle.dims, handle.shape, handle.chunks, region, strict=True)
    for dim, length, chunk, part in axes:
        cut = part.start if part.start % chunk else part.stop
        if part.start % chunk or (part.stop % chunk and part.stop != length):
            first = cut - cut % chunk
            raise LayoutError(
                f"block {dim}[{part.start}:{part.stop}] of '{handle.name}' covers part of chunk "
                f"{dim}[{first}:{min(first + chunk, length)}] of {handle.store}: two workers "
                f"could write it; use blocks of {chunk}"
            )


def _chunks_of(handle: _Handle, region: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(
        *(
            range(part.start // chunk, -(-part.stop // chunk))
            for part, chunk in zip(region, handle.chunks, strict=True)
        )
    )


def _chunk_key(index: tuple[int, ...]) -> str:
    return "/".join(["c", *map(str, index)])


def _chunk_region(handle: _Handle, index: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(i * chunk, min((i + 1) * chunk, length))
        for i, chunk, length in zip(index, handle.chunks, handle.shape, strict=True)
    )


def _chunk_message(handle: _Handle, index: tuple[int, ...], what: str) -> str:
    parts = zip(handle.dims, _chunk_region(handle, index), strict=True)
    where = ", ".join(f"{dim}[{part.start}:{part.stop}]" for dim, part in parts)
    return f"chunk {where} of '{handle.name}' of {handle.store} {what}: {_chunk_key(index)}"


def _damaged_chunk(handle: _Handle, region: tuple[slice, ...]) -> tuple[int, ...]:
    """The first chunk that cannot be read; the first of the block if all can by now."""
    indices = list(_chunks_of(handle, region))
    for index in indices:
        try:
            handle.array[_chunk_region(handle, index)]
        except Exception:
            return index
    return indices[0]
