"""Catalogs: one YAML file per run that intake, or nothing but PyYAML and xarray, can open.

A catalog names stores relative to its own folder, so a folder that is moved or copied as a whole
still opens. Several catalogs side by side are a shelf.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xarray as xr
import yaml
from zarr.storage import ZipStore

from hpc.errors import StoreError
from hpc.files import atomic_write_bytes, telling_disk_errors

FOLDER = "{{ CATALOG_DIR }}"
"""Intake's word for the folder of the catalog file."""

ZIP = "zip::"
"""What intake wants before the path of a zipped store."""


@dataclass(frozen=True)
class Source:
    """A store of a catalog.

    Attributes:
        path: the store, or the zip file that holds it.
        description: what is in it, in a sentence.
    """

    path: Path
    description: str

    @property
    def store(self) -> Path | ZipStore:
        """What xarray opens; never a URL, which a foreign catalog could send anywhere."""
        return ZipStore(self.path, mode="r") if self.path.suffix == ".zip" else self.path


@dataclass(frozen=True)
class Catalog(Mapping[str, xr.Dataset]):
    """The stores of one run by name, each opened lazily when it is asked for.

    >>> catalog = open_catalog("catalogs/quickstart.yaml")          # doctest: +SKIP
    >>> catalog["response"].response.sel(estimator="neural")        # doctest: +SKIP

    Attributes:
        path: the YAML file.
        metadata: name, description and whatever else was published.
        sources: by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    sources: Mapping[str, Source]

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.metadata.get("name", self.path.stem))

    def __getitem__(self, name: str) -> xr.Dataset:
        """The root of a store; lazy, by Dask where it is installed.

        Raises:
            StoreError: no such source, or its store cannot be opened.
        """
        return _opened(xr.open_zarr, self._source(name), chunks=_chunks())

    def tree(self, name: str) -> xr.DataTree:
        """A store with its groups, such as the spectra in `response`; errors as `[name]`."""
        return _opened(xr.open_datatree, self._source(name), engine="zarr", chunks=_chunks())

    def _source(self, name: str) -> Source:
        if name in self.sources:
            return self.sources[name]
        raise StoreError(f"{self.path} has no source {_nearest(name, self.sources)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __repr__(self) -> str:
        lines = [f"<Catalog {self.name}: {self.metadata.get('description', '')}>"]
        lines += [f"  {n:12} {s.description}: {s.path}" for n, s in self.sources.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Shelf(Mapping[str, Catalog]):
    """All catalogs of a folder, by name of the run."""

    folder: Path

    def __getitem__(self, name: str) -> Catalog:
        """The catalog of a run.

        Raises:
            StoreError: no such catalog, or it cannot be read.
        """
        path = self.folder / f"{name}.yaml"
        if not path.is_file():
            raise StoreError(f"{self.folder} has no catalog {_nearest(name, list(self))}")
        return read_catalog(path)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.yaml")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<Shelf {self.folder}: {', '.join(self) or 'empty'}>"


def open_catalog(source: str | Path = "catalogs") -> Catalog | Shelf:
    """A catalog, or all those of a folder; needs nothing but PyYAML and xarray with zarr.

    Args:
        source: a YAML file; a run or an archive, that is a folder with `catalog.yaml`; a folder of
            catalogs; or the name of one in `./catalogs`.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    path = Path(source)
    if (path / "catalog.yaml").is_file():
        return read_catalog(path / "catalog.yaml")
    if path.is_dir():
        return Shelf(path)
    return read_catalog(path) if path.suffix else Shelf(Path("catalogs"))[str(source)]


def write_catalog(
    path: Path, *, metadata: Mapping[str, Any], sources: Mapping[str, Source]
) -> None:
    """Write an intake catalog (version 1, which people can read) of Zarr stores.

    Args:
        path: the YAML file.
        metadata: `name` of the run, `description` in a sentence, and more.
        sources: by name; the stores are told relative to the folder of `path`.
    """
    document = {
        "metadata": {"version": 1, **metadata},
        "sources": {
            name: {
                "driver": "zarr",
                "description": source.description,
                "args": {"urlpath": _relative(source.path, path.parent)},
            }
            for name, source in sources.items()
        },
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    atomic_write_bytes(path, text.encode())


def read_catalog(path: Path | str) -> Catalog:
    """A catalog file.

    Raises:
        StoreError: the file is absent or no catalog.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text())
        sources = {
            str(name): Source(
                _absolute(str(source["args"]["urlpath"]), path.resolve().parent),
                str(source.get("description", "")),
            )
            for name, source in document["sources"].items()
        }
        metadata = dict(document.get("metadata") or {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"{path} is no readable catalog: {error!r}") from error
    return Catalog(path, metadata, sources)


def publish(folder: Path, shelf: Path, *, force: bool = False) -> Path:
    """Put the catalog of a run, or of an archive, on a shelf.

    Args:
        folder: holds `catalog.yaml`.
        shelf: folder of catalogs, made if absent.
        force: replace the catalog of another folder that has the same name.

    Returns:
        The file on the shelf.

    Raises:
        StoreError: the folder has no catalog, or another one has its name.
    """
    catalog = read_catalog(folder / "catalog.yaml")
    path = shelf / f"{catalog.name}.yaml"
    if path.is_file() and not force:
        holder = home_of(read_catalog(path))
        if holder != folder.resolve() and holder.is_dir():
            raise StoreError(
                f"{path} is the catalog of {holder}; give --force to let {folder} have its name"
            )
    with telling_disk_errors(path, 0):
        shelf.mkdir(parents=True, exist_ok=True)
    write_catalog(path, metadata=catalog.metadata, sources=catalog.sources)
    return path


def home_of(catalog: Catalog) -> Path:
    """Folder in which the stores of a catalog are."""
    return next((source.path.parent for source in catalog.sources.values()), catalog.path.parent)


def _relative(store: Path, folder: Path) -> str:
    # Both resolved: `..` after a link would lead somewhere else.
    path = f"{FOLDER}/{os.path.relpath(store.resolve(), folder.resolve())}"
    return f"{ZIP}{path}" if store.suffix == ".zip" else path


def _absolute(url: str, folder: Path) -> Path:
    url = url.removeprefix(ZIP)
    return (
        folder / url.removeprefix(FOLDER).lstrip("/") if url.startswith(FOLDER) else folder / url
    ).resolve()


def _opened(opener: Any, source: Source, **options: Any) -> Any:
    try:
        return opener(source.store, **options)
    except (OSError, KeyError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"cannot open {source.path}: {line}") from error


def _chunks() -> dict[str, int] | None:
    return {} if find_spec("dask") else None


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"'{name}'; {hint}it has {', '.join(sorted(known)) or 'none'}"
