"""Temporary TLS credentials of one pool: who does not have them is no client and no worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import distributed

PREFIX = ".tls-"

FILES = ("ca_file", "cert", "key")
"""Each in a file `<name>.pem`."""


@dataclass(frozen=True)
class Credentials:
    """Credentials in memory, and in files that only this user can read.

    Attributes:
        security: for scheduler and client.
        options: of the command `dask worker`.
    """

    security: distributed.Security
    options: tuple[str, ...]


@contextlib.contextmanager
def temporary_credentials(folder: Path) -> Iterator[Credentials]:
    """New credentials in a hidden folder of `folder`, which all nodes see; removed at the end.

    Files that a killed driver left there are removed first.
    """
    forget_credentials(folder)
    folder.mkdir(parents=True, exist_ok=True)
    security = distributed.Security.temporary()
    private = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder.resolve()))  # mode 0700
    try:
        for key in FILES:
            path = private / f"{key}.pem"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(security.get_tls_config_for_role("worker")[key])
        yield Credentials(security, tls_options(private))
    finally:
        shutil.rmtree(private, ignore_errors=True)


def tls_options(private: Path) -> tuple[str, ...]:
    """Options of the command `dask worker` for the files in a folder of credentials."""
    pairs = ((f"--tls-{key.replace('_', '-')}", str(private / f"{key}.pem")) for key in FILES)
    return tuple(word for pair in pairs for word in pair)


def forget_credentials(folder: Path) -> None:
    """Remove what a killed driver left; nobody else may be at work in the folder."""
    for path in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
