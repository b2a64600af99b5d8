"""Where the pages of a driver's Dask scheduler are, told to whoever looks at the run folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import distributed

from hpc.files import atomic_write_json

FILE = "logs/dashboard.json"
"""In the run folder, while there is a scheduler."""


def has_pages() -> bool:
    """Whether a scheduler here can draw its pages."""
    return find_spec("bokeh") is not None


@contextlib.contextmanager
def dashboard(folder: Path, client: distributed.Client) -> Iterator[None]:
    """Tell the address of the pages while the client is in use; nothing without Bokeh."""
    url = str(client.dashboard_link) if has_pages() else ""
    port = urlsplit(url).port if url else None
    if port is None:
        yield
        return
    path = folder / FILE
    atomic_write_json(path, {"url": url, "port": port, "pid": os.getpid()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def address_of(folder: Path, driver: dict[str, Any] | None) -> dict[str, Any] | None:
    """Address of the pages of a living driver, and how to reach them from elsewhere."""
    if driver is None or not driver["alive"]:
        return None
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text())
        if found["pid"] != driver["pid"]:
            return None  # of one that was killed
        port = int(found["port"])
    except (OSError, ValueError, KeyError):
        return None
    tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {driver['host']}"
    return {"url": found["url"], "tunnel": tunnel}
