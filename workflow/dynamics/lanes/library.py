"""The compiled kernels: which build is loaded, and arrays in their layout.

Members come in blocks of as many as a vector has lanes, which is the last axis of every array.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

BUILDS = ("avx512", "avx2", "plain")
"""From the widest vectors to those of any processor; `plain` is built on all of them."""

SUFFIX = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_TYPES = {"f32": ctypes.c_float, "f64": ctypes.c_double}


class Library:
    """One build of the kernels.

    Attributes:
        name: which of `BUILDS`.
        vector_bytes: bytes of a vector.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._functions = ctypes.CDLL(str(path))
        self.vector_bytes = int(self._functions.vector_bytes())
        for suffix, real in _TYPES.items():
            self._declare(suffix, real)

    def _declare(self, suffix: str, real: type) -> None:
        numbers: Any = ctypes.POINTER(real)
        handle = ctypes.c_void_p
        count, word, size = ctypes.c_int, ctypes.c_uint32, ctypes.c_double
        words, key = ctypes.POINTER(word), (ctypes.c_uint64, word, ctypes.POINTER(word))
        signatures: dict[str, tuple] = {
            "spde_new": (handle, count, count, size, count, count, *[numbers] * 3),
            "navier_stokes_new": (
                *(handle, count, size, count, *[numbers] * 4),
                *(count, count, ctypes.POINTER(ctypes.c_int32), size, size),
            ),
            "spde_advance": (None, handle, numbers, *key, word, word),
            "navier_stokes_advance": (None, handle, numbers, numbers, *key, word, word),
            "transform": (None, count, count, numbers, numbers, count),
            "normals": (None, ctypes.c_uint64, word, words, word, count, count, numbers),
        }
        for equation in ("spde", "navier_stokes"):
            signatures[f"{equation}_free"] = (None, handle)
            signatures[f"{equation}_observe"] = (None, handle, numbers, numbers)
        for name, (result, *arguments) in signatures.items():
            function = getattr(self._functions, f"{name}_{suffix}")
            function.restype, function.argtypes = result, arguments

    def lanes(self, dtype: np.dtype) -> int:
        """Members in a block."""
        return self.vector_bytes // dtype.itemsize

    def call(self, name: str, dtype: np.dtype, *arguments: object) -> int | None:
        """Call `name` for that precision; arrays are handed over by their address."""
        function = getattr(self._functions, f"{name}_{SUFFIX[dtype]}")
        given = [
            argument.ctypes.data_as(kind) if isinstance(argument, np.ndarray) else argument
            for argument, kind in zip(arguments, function.argtypes, strict=True)
        ]
        found: int | None = function(*given)
        return found

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array whose vectors start where the processor loads them at once."""
        nbytes = math.prod(shape) * dtype.itemsize
        raw = np.empty(nbytes + self.vector_bytes, dtype=np.uint8)
        skip = -raw.ctypes.data % self.vector_bytes
        return raw[skip : skip + nbytes].view(dtype).reshape(shape)

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Members `(member, ...)` in blocks `(block, ..., lane)`; spare lanes repeat the last."""
        lanes = self.lanes(values.dtype)
        blocks = -(-len(values) // lanes)
        packed = self.empty((blocks, *values.shape[1:], lanes), values.dtype)
        for block in range(blocks):
            part = values[block * lanes : (block + 1) * lanes]
            packed[block, ..., : len(part)] = np.moveaxis(part, 0, -1)
            packed[block, ..., len(part) :] = part[-1][..., None]
        return packed

    def pack_members(self, members: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Numbers of the members in their lanes, `(block, lane)`."""
        lanes = self.lanes(dtype)
        spare = -len(members) % lanes
        return np.array([*members, *[members[-1]] * spare], dtype=np.uint32).reshape(-1, lanes)


def unpack(packed: np.ndarray, members: int) -> np.ndarray:
    """Blocks `(block, ..., lane)` as members `(member, ...)`, the spare lanes left out."""
    apart = np.moveaxis(packed, -1, 1)
    return apart.reshape(-1, *packed.shape[1:-1])[:members]


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The build with the widest vectors that is there and that this processor runs; or None."""
    capability = torch.backends.cpu.get_cpu_capability()
    runs = {"AVX512": BUILDS, "AVX2": BUILDS[1:]}.get(capability, BUILDS[2:])
    for name in runs:
        path = built(name)
        if path is not None:
            return Library(name, path)
    return None


def built(name: str) -> Path | None:
    """The file of a build, if it was built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_{name}{suffix}")
        if path.is_file():
            return path
    return None
