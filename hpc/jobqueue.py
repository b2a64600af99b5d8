"""What a user's own dask configuration says about the cluster's jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask

from hpc.errors import LaunchError


@dataclass(frozen=True)
class Place:
    """Where jobs go on a site, whatever their size."""

    queue: str | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()


def place(section: str = "slurm") -> Place:
    """Partition, account, options and prologue of `jobqueue.<section>`; empty if there is none.

    Sizes and walltime are those of a worker and no other job's.

    Raises:
        LaunchError: a value is of another kind.
    """
    found: Any = dask.config.get(f"jobqueue.{section}", {})
    if not isinstance(found, Mapping):
        raise LaunchError(f"jobqueue.{section} in the dask configuration is no section")
    return Place(
        _text(found, "queue"),
        _text(found, "account"),
        _lines(found, section, "job-extra-directives"),
        _lines(found, section, "job-script-prologue"),
    )


def _text(found: Mapping[str, Any], key: str) -> str | None:
    value = found.get(key)
    return None if value is None else str(value)


def _lines(found: Mapping[str, Any], section: str, key: str) -> tuple[str, ...]:
    value = found.get(key) or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(line, str) for line in value):
        raise LaunchError(f"jobqueue.{section}.{key} in the dask configuration: needed is a list")
    return tuple(value)
