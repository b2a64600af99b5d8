"""The commands `gfdt catalog ...` and `gfdt archive`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflow.interfaces import UserError
from workflow.options import HERE, Catalogs, Json, Name, Quiet, Runs, shelf_of, tell
from workflow.progress import Progress

if TYPE_CHECKING:
    from hpc.catalog import Catalog

catalog = typer.Typer(no_args_is_help=True, help="Published runs: list, show, add, remove.")

Published = Annotated[str, typer.Argument(metavar="NAME", help="of a catalog; see: ls")]
Force = Annotated[bool, typer.Option("--force", help="replace another run of that name")]


@catalog.command("ls")
def ls(runs: Runs = HERE, catalogs: Catalogs = None, as_json: Json = False) -> None:
    """Every published run, and whether its stores are there.

    Example: gfdt catalog ls
    """
    from hpc.catalog import Shelf
    from hpc.errors import StoreError

    shelf = shelf_of(runs, catalogs)
    found = []
    for name in Shelf(shelf):
        try:
            found.append(_summary(Shelf(shelf)[name]))
        except StoreError as error:
            found.append({"name": name, "description": str(error), "stores": {}, "missing": []})
    width = max((len(one["name"]) for one in found), default=0)
    lines = [f"{one['name']:{width}}  {one['description']}{_lost(one)}" for one in found]
    tell(found, lines or [f"{shelf} has no catalogs; gfdt run publishes one"], as_json, False)


@catalog.command("show")
def show(
    name: Published, runs: Runs = HERE, catalogs: Catalogs = None, as_json: Json = False
) -> None:
    """What a run holds: stores, dimensions, variables, and how to open them.

    Example: gfdt catalog show quickstart
    """
    from hpc.catalog import Shelf

    one = Shelf(shelf_of(runs, catalogs))[name]
    summary = _summary(one)
    lines = [f"{one.name}: {summary['description']}{_lost(summary)}"]
    lines += [f"  {key}: {_listed(value)}" for key, value in _details(one).items()]
    for store, source in one.sources.items():
        lines.append(f"  {store}: {source.description}")
        if store not in summary["missing"]:
            data = one[store]
            sizes = ", ".join(f"{dim} {size}" for dim, size in data.sizes.items())
            lines += [f"    ({sizes})", f"    {', '.join(map(str, data.data_vars))}"]
        lines.append(f"    {source.path}")
    lines.append(f'open: workflow.open_catalog("{one.path}")["{next(iter(one), "response")}"]')
    tell(summary | {"metadata": dict(one.metadata)}, lines, as_json, False)


@catalog.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="RUN", help="a run, or the folder of an archive")],
    force: Force = False,
    runs: Runs = HERE,
    catalogs: Catalogs = None,
    quiet: Quiet = False,
) -> None:
    """Publish a run or an archive; what it has by now.

    Example: gfdt catalog add /archive/quickstart --force
    """
    from hpc.catalog import publish
    from workflow.loading import folder_of

    folder = Path(name) if (Path(name) / "catalog.yaml").is_file() else folder_of(name, runs)
    path = publish(folder, shelf_of(runs, catalogs), force=force)
    tell(None, [f"catalog: {path}"], False, quiet)


@catalog.command("rm")
def rm(name: Published, runs: Runs = HERE, catalogs: Catalogs = None, quiet: Quiet = False) -> None:
    """Take a run off the list; its data stay.

    Example: gfdt catalog rm quickstart
    """
    from hpc.catalog import Shelf

    shelf = Shelf(shelf_of(runs, catalogs))
    path = shelf.folder / f"{name}.yaml"
    if not path.is_file():
        shelf[name]  # says what there is
    path.unlink()
    tell(None, [f"removed {path}; the data stay"], False, quiet)


@catalog.command("esm")
def esm(runs: Runs = HERE, catalogs: Catalogs = None, quiet: Quiet = False) -> None:
    """All published runs as one intake-esm collection, JSON and CSV.

    Example: gfdt catalog esm
    """
    from hpc.esm import write_esm

    path = write_esm(shelf_of(runs, catalogs))
    tell(None, [f"collection: {path}"], False, quiet)


def archive(
    name: Name,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="where archives are kept")],
    zipped: Annotated[bool, typer.Option("--zip", help="one zip file for each store")] = False,
    runs: Runs = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy a run to FOLDER/RUN and compare every byte; the same command continues.

    The run is verified first. `gfdt verify FOLDER/RUN` checks the archive at any later time.

    Example: gfdt archive quickstart /archive --zip
    """
    from hpc.archive import archive as copy
    from hpc.errors import CorruptBlock
    from hpc.lock import run_lock
    from workflow.loading import folder_of, load_run
    from workflow.stages.health import verify

    folder = folder_of(name, runs)
    with run_lock(folder), Progress(quiet=quiet or as_json) as progress:
        if not (folder / "catalog.yaml").is_file():
            raise UserError(f"{folder} has nothing to archive yet; first: gfdt run {name}")
        damaged = verify(load_run(folder, runs))
        if damaged:
            raise CorruptBlock(
                f"{len(damaged)} damaged, such as {damaged[0].path}; first: gfdt repair {name}"
            )
        copy(folder, target / folder.name, zipped=zipped, notify=progress)
    where = (target / folder.name).resolve()
    lines = [
        f"archive: {where}",
        f"to list it in place of the run: gfdt catalog add {where} --force",
    ]
    tell({"archive": str(where)}, lines, as_json, quiet)


def _summary(one: Catalog) -> dict[str, Any]:
    return {
        "name": one.name,
        "description": str(one.metadata.get("description", "")),
        "stores": {name: str(source.path) for name, source in one.sources.items()},
        "missing": [name for name, source in one.sources.items() if not source.path.exists()],
    }


def _lost(summary: dict[str, Any]) -> str:
    return f" [missing: {', '.join(summary['missing'])}]" if summary["missing"] else ""


def _details(one: Catalog) -> dict[str, Any]:
    told = ("system", "estimators", "perturbations", "observables", "software")
    return {key: one.metadata[key] for key in told if key in one.metadata}


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
