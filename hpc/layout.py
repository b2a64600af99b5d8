"""Laying down a store: arrays, coordinates and attributes, before any data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from hpc.errors import LayoutError
from hpc.files import atomic_write_bytes, partial_path, sync_folder, telling_disk_errors

COORDINATE_CHUNK = 1024
"""Chunk length of coordinates; fixed, so that a grown store has the bytes of a new one."""


@dataclass(frozen=True)
class Variable:
    """A data variable of a store.

    Attributes:
        name: its name.
        dims: names of its dimensions.
        shape: its full extent, in the order of `dims`.
        chunks: extent of one chunk, the unit of writing.
        dtype: NumPy name of its type, such as "float32".
        attrs: attributes that JSON can hold (CF `long_name`, `units`).
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Coordinate:
    """Labels along the dimension of the same name.

    Attributes:
        name: its name and that of its dimension.
        values: numbers or strings, one-dimensional.
        attrs: attributes that JSON can hold.
    """

    name: str
    values: np.ndarray
    attrs: Mapping[str, Any] = field(default_factory=dict)


def create_store(
    path: Path | str,
    *,
    variables: Sequence[Variable],
    coordinates: Sequence[Coordinate],
    attrs: Mapping[str, Any],
    extendable: tuple[str, ...] = (),
) -> None:
    """Lay down a Zarr v3 store, or check that the one there fits.

    A store of the same layout is left as it is. One that is only shorter along `extendable` is
    lengthened, and its attributes are renewed. Same arguments, same bytes; a kill leaves no store,
    or one that the same call completes. Where only chunks are left (`remove_frame`), they are kept.

    Args:
        path: folder of the store.
        variables: data variables; floats read as NaN where nothing has been written.
        coordinates: labels, written at once.
        attrs: attributes of the store that JSON can hold.
        extendable: dimensions along which an existing store may grow.

    Raises:
        LayoutError: the arguments disagree, or the store at `path` has another layout.
        DiskFull, StoreError: the disk refused.
    """
    path = Path(path)
    _check(path, variables, coordinates)
    with telling_disk_errors(path, sum(c.values.nbytes for c in coordinates)):
        if not (path / "zarr.json").exists():
            known = {v.name for v in variables} | {c.name for c in coordinates}
            if path.exists() and not {one.name for one in path.iterdir()} <= known:
                raise LayoutError(f"{path} exists and is no store; move it away")
            _create(path, variables, coordinates, attrs)
        elif _must_grow(path, variables, coordinates, extendable):
            _extend(path, variables, coordinates, attrs)


def _check(path: Path, variables: Sequence[Variable], coordinates: Sequence[Coordinate]) -> None:
    for name in [*(v.name for v in variables), *(c.name for c in coordinates)]:
        if "/" in name or name.startswith("."):
            raise LayoutError(f"'{name}' of {path.name}: a name has no / and no leading dot")
    lengths = {c.name: np.shape(c.values) for c in coordinates}
    for v in variables:
        if not len(v.dims) == len(v.shape) == len(v.chunks) or min((*v.shape, *v.chunks, 1)) < 1:
            raise LayoutError(
                f"variable '{v.name}' of {path.name}: dims {v.dims}, shape {v.shape} and chunks "
                f"{v.chunks} must have one positive entry per dimension"
            )
        for dim, length in zip(v.dims, v.shape, strict=True):
            if lengths.setdefault(dim, (length,)) != (length,):
                raise LayoutError(
                    f"variable '{v.name}' of {path.name} is {length} long along {dim}; needed "
                    f"{lengths[dim]} as other variables and the coordinate"
                )


def _create(
    path: Path,
    variables: Sequence[Variable],
    coordinates: Sequence[Coordinate],
    attrs: Mapping[str, Any],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        group = zarr.create_group(partial, zarr_format=3, attributes=dict(attrs))
        for c in coordinates:
            values = _plain(c.values)
            array = _add(group, _labels(c, values), values)
            array[...] = values
        for v in variables:
            _add(group, v, np.empty(0, v.dtype))
        if path.exists():
            _put_around_chunks(partial, path)
        else:
            os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_around_chunks(partial: Path, path: Path) -> None:
    files = [one.relative_to(partial) for one in partial.rglob("*") if one.is_file()]
    # That of the group comes last: it makes a store of the folder.
    for name in sorted(files, key=lambda name: (str(name) == "zarr.json", name)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, path / name)


def frame_of(path: Path) -> list[Path]:
    """Files of a store that are no data: metadata and coordinates, of all its groups.

    A coordinate is an array with the name of its only dimension. An array whose metadata cannot
    be read has no coordinates.
    """
    found = []
    for metadata in sorted(path.rglob("zarr.json")):
        found.append(metadata)
        try:
            names = json.loads(metadata.read_bytes()).get("dimension_names")
        except (ValueError, AttributeError):
            continue
        if names == [metadata.parent.name]:
            found += sorted(one for one in (metadata.parent / "c").rglob("*") if one.is_file())
    return found


def _labels(c: Coordinate, values: np.ndarray) -> Variable:
    return Variable(c.name, (c.name,), values.shape, (COORDINATE_CHUNK,), "", c.attrs)


def _add(group: zarr.Group, variable: Variable, like: np.ndarray) -> zarr.Array:
    text = like.dtype.kind in "OUT"
    return group.create_array(
        variable.name,
        shape=variable.shape,
        chunks=variable.chunks,
        # Strings of variable width: the fixed width type is not part of Zarr v3 and warns.
        dtype=str if text else like.dtype,
        fill_value=np.nan if like.dtype.kind in "fc" else "" if text else 0,
        filters=None,
        serializer="auto" if text else BytesCodec(endian="little"),
        compressors=Crc32cCodec(),
        attributes=dict(variable.attrs),
        dimension_names=variable.dims,
        config={"write_empty_chunks": True},
    )


def _plain(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values.astype(object) if values.dtype.kind in "UT" else values


def _must_grow(
    path: Path,
    variables: Sequence[Variable],
    coordinates: Sequence[Coordinate],
    extendable: tuple[str, ...],
) -> bool:
    """Compare the store with what is needed; refuse any difference that growing cannot mend."""
    group = _group(path)
    found = set(group.array_keys())
    needed = {v.name for v in variables} | {c.name for c in coordinates}
    if found != needed:
        raise LayoutError(f"{path} has the variables {sorted(found)}; needed {sorted(needed)}")
    grows = False
    shortest: dict[str, int] = {}
    for v in variables:
        array = _array(group, path, v.name)
        _compare(path, v.name, "dims", dimension_names(array), v.dims)
        _compare(path, v.name, "chunks", array.chunks, v.chunks)
        _compare(path, v.name, "dtype", array.dtype, np.dtype(v.dtype))
        for dim, old, new, chunk in zip(v.dims, array.shape, v.shape, v.chunks, strict=True):
            shortest[dim] = min(old, shortest.get(dim, old))
            if old < new and dim in extendable:
                grows = True
                _refuse_cut_chunk(path, v, dim, old // chunk * chunk, old)
            else:
                _compare(path, v.name, f"length along {dim}", old, new)
    for c in coordinates:
        grows |= _coordinate_grows(group, path, c, shortest.get(c.name), c.name in extendable)
    return grows


def _coordinate_grows(
    group: zarr.Group, path: Path, c: Coordinate, held: int | None, extendable: bool
) -> bool:
    array = _array(group, path, c.name)
    old, new = np.asarray(array[...]), _plain(c.values)
    if len(old) == len(new) and _equal(old, new):
        return False
    # Beyond the shortest variable the labels may be those of an extension that was killed.
    common = min(len(old), len(new), len(old) if held is None else held)
    if not extendable or len(old) > len(new) or not _equal(old[:common], new[:common]):
        differ = min(len(old), len(new))
        _compare(path, c.name, "length", len(old), len(new))
        i = next(i for i in range(differ) if not _equal(old[i : i + 1], new[i : i + 1]))
        _compare(path, c.name, f"value {i}", old[i], new[i])
    return True


def _equal(old: np.ndarray, new: np.ndarray) -> bool:
    if new.dtype.kind == "O":
        return [str(value) for value in old] == [str(value) for value in new]
    return old.dtype == new.dtype and np.array_equal(old, new)


def _compare(path: Path, name: str, what: str, found: Any, needed: Any) -> None:
    if found != needed:
        raise LayoutError(
            f"'{name}' of {path} has another {what}: found {found}, needed {needed}; "
            "use another run name or move the store away"
        )


def _refuse_cut_chunk(path: Path, v: Variable, dim: str, first: int, last: int) -> None:
    """A clipped last chunk that is written would become a full one that is partly empty."""
    axis, chunk = v.dims.index(dim), v.chunks[v.dims.index(dim)]
    if first == last:
        return
    pattern = ["*"] * len(v.dims)
    pattern[axis] = str(first // chunk)
    if any((path / v.name).glob("/".join(["c", *pattern]))):
        raise LayoutError(
            f"'{v.name}' of {path} cannot grow along {dim} from {last}: chunk {dim}[{first}:{last}]"
            f" is written and clipped; lengths that are multiples of {chunk} can grow"
        )


def _extend(
    path: Path,
    variables: Sequence[Variable],
    coordinates: Sequence[Coordinate],
    attrs: Mapping[str, Any],
) -> None:
    # Consolidated metadata would hide the new length, so it goes first. Labels are lengthened
    # before the variables: `_coordinate_grows` relies on it after a kill.
    document = json.loads((path / "zarr.json").read_text())
    document.pop("consolidated_metadata", None)
    document["attributes"] = dict(attrs)
    atomic_write_bytes(path / "zarr.json", json.dumps(document, indent=2).encode())
    group = _group(path)
    for c in coordinates:
        array, values = _array(group, path, c.name), _plain(c.values)
        if array.shape != values.shape:
            array.resize(values.shape)
        array[...] = values
    for v in variables:
        array = _array(group, path, v.name)
        if array.shape != v.shape:
            array.resize(v.shape)


def _group(path: Path) -> zarr.Group:
    try:
        # Its own files, not the consolidated copy, say how long the arrays are.
        return zarr.open_group(path, mode="r+", use_consolidated=False)
    except OSError:
        raise
    except Exception as error:
        raise LayoutError(f"{path} is no readable Zarr v3 store: {error}") from error


def _array(group: zarr.Group, path: Path, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise LayoutError(f"'{name}' of {path} is no array")
    return array


def dimension_names(array: zarr.Array) -> tuple[str, ...]:
    """Names of an array's dimensions; empty where it has none."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    return tuple(str(name) for name in names)
