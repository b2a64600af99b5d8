"""Catalogs: one YAML file per run that intake, or nothing but PyYAML and xarray, can open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import xarray as xr
import yaml

from hpc.errors import StoreError
from hpc.files import atomic_write_bytes
from hpc.stores import open_store

FOLDER = "{{ CATALOG_DIR }}"
"""Intake's word for the folder of the catalog file."""


def write_catalog(
    path: Path,
    *,
    name: str,
    description: str,
    sources: Mapping[str, tuple[str, str]],
) -> None:
    """Write an intake catalog (version 1, which people can read) of Zarr stores.

    Args:
        path: the YAML file.
        name: name of the run.
        description: what it holds, in a sentence.
        sources: by name, the path of the store relative to the catalog's folder, and a sentence.
    """
    document = {
        "metadata": {"version": 1, "name": name, "description": description},
        "sources": {
            source: {
                "driver": "zarr",
                "description": about,
                "args": {"urlpath": f"{FOLDER}/{relative}"},
            }
            for source, (relative, about) in sources.items()
        },
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    atomic_write_bytes(path, text.encode())


def read_catalog(path: Path) -> dict[str, Path]:
    """Absolute path of each store of a catalog, by name.

    Raises:
        StoreError: the file is absent or no catalog.
    """
    path = Path(path)
    try:
        sources = yaml.safe_load(path.read_text())["sources"]
        urls = {name: str(source["args"]["urlpath"]) for name, source in sources.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is no readable catalog: {error!r}") from error
    folder = path.resolve().parent
    # Not normalised by hand: a store above the catalog's folder, `..`, is resolved as a path.
    return {
        name: (folder / url.removeprefix(FOLDER).lstrip("/")).resolve()
        if url.startswith(FOLDER)
        else (folder / url).resolve()
        for name, url in urls.items()
    }


def open_source(path: Path, name: str) -> xr.Dataset:
    """One store of a catalog as a lazy dataset.

    Raises:
        StoreError: the catalog has no such source, or its store cannot be opened.
    """
    stores = read_catalog(path)
    if name not in stores:
        raise StoreError(f"{path} has no source '{name}'; it has {', '.join(sorted(stores))}")
    return open_store(stores[name])
