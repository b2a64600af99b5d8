"""A shelf of catalogs as one intake-esm collection, for those who search by columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hpc.catalog import Shelf
from hpc.errors import StoreError
from hpc.files import atomic_write_bytes, atomic_write_json

COLUMNS = ("run", "system", "store", "description", "path")

GROUP_BY = ("run", "store")
"""Two at least: intake-esm takes the key of a single one apart into letters."""


def write_esm(shelf: Path) -> Path:
    """Write `gfdt-esm.json` and `gfdt-esm.csv` about all stores of a shelf.

    Paths in it are absolute `file://` URLs, as intake-esm refuses plain ones; zipped stores are
    left out, as it cannot open them.

    Returns:
        The JSON file, for `intake.open_esm_datastore`.

    Raises:
        StoreError: the shelf is empty, or a catalog cannot be read.
    """
    rows = [
        (catalog.name, str(catalog.metadata.get("system", "")), name, source.description, source)
        for catalog in Shelf(shelf).values()
        for name, source in catalog.sources.items()
        if source.path.suffix != ".zip"
    ]
    if not rows:
        raise StoreError(f"{shelf} has no catalog of an unzipped run; first: gfdt catalog add RUN")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((*row[:-1], row[-1].path.as_uri()) for row in rows)
    atomic_write_bytes(shelf / "gfdt-esm.csv", text.getvalue().encode())
    path = shelf / "gfdt-esm.json"
    atomic_write_json(
        path,
        {
            "esmcat_version": "0.1.0",
            "id": "gfdt",
            "description": "stores of gfdt runs",
            "catalog_file": "gfdt-esm.csv",
            "attributes": [{"column_name": name} for name in COLUMNS[:3]],
            "assets": {"column_name": "path", "format": "zarr"},
            "aggregation_control": {
                "variable_column_name": "store",
                "groupby_attrs": list(GROUP_BY),
                "aggregations": [],
            },
        },
    )
    return path
