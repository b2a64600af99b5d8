"""Options that commands share, and how they tell what they found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    """Runs that a half-typed name may mean."""
    from workflow.loading import names_of_runs

    found = names_of_runs(Path(context.params.get("runs") or "runs"))
    return [name for name in found if name.startswith(incomplete)]


def _sources(context: typer.Context, incomplete: str) -> list[str]:
    """Shipped experiments, YAML files and runs that a half-typed name may mean."""
    from workflow.config import EXPERIMENTS

    shipped = [path.stem for path in EXPERIMENTS.glob("*.yaml")]
    files = [str(path) for path in Path().glob(f"{incomplete}*.yaml")]
    found = {*shipped, *files, *_runs(context, incomplete)}
    return sorted(name for name in found if name.startswith(incomplete))


Source = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="shipped experiment, YAML file, or run",
        autocompletion=_sources,
    ),
]
SourceOrData = Annotated[
    str | None,
    typer.Argument(
        metavar="[EXPERIMENT]",
        show_default=False,
        autocompletion=_sources,
        help="shipped experiment, YAML file, or run; or give --data instead",
    ),
]
Name = Annotated[
    str,
    typer.Argument(metavar="RUN", help="name of a run, or its folder", autocompletion=_runs),
]
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="one: its report; several: a page that compares",
        autocompletion=_runs,
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key")
]
Runs = Annotated[Path, typer.Option("--runs", help="where run folders live")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="say more")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="say nothing but errors")]
Force = Annotated[bool, typer.Option("--force", help="whatever the number of files")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only tell what would be done")]
SiteName = Annotated[
    str | None, typer.Option("--site", metavar="NAME|FILE", help="the cluster, as a site file")
]
SlurmDir = Annotated[Path, typer.Option("--slurm-dir", help="folder of job templates and sites/")]
Catalogs = Annotated[
    Path | None,
    typer.Option("--catalogs", help="where catalogs live; default catalogs/ beside the runs"),
]
HERE = Path("runs")

OWN = "Your own data"
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Zarr or NetCDF store, instead of EXPERIMENT", rich_help_panel=OWN),
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--variable", help="name in the store; may be repeated", rich_help_panel=OWN),
]
Given = Annotated[
    list[str] | None,
    typer.Option("--given", help="drives the others, not pushed; repeated", rich_help_panel=OWN),
]
Dims = Annotated[
    str | None,
    typer.Option("--dims", metavar="time=T,member=RUN", help="its names", rich_help_panel=OWN),
]
Homogeneous = Annotated[
    bool,
    typer.Option(
        "--homogeneous", help="statistics do not depend on the place", rich_help_panel=OWN
    ),
]
MaxLag = Annotated[
    str | None,
    typer.Option(
        "--max-lag", help="longest lag, in the data's unit or as 30d", rich_help_panel=OWN
    ),
]
Estimator = Annotated[
    str | None,
    typer.Option("--estimator", help="gaussian, kgmm or neural", rich_help_panel=OWN),
]
RunName = Annotated[str | None, typer.Option("--name", help="of the run", rich_help_panel=OWN)]


def shelf_of(runs: Path, catalogs: Path | None) -> Path:
    """Folder of the catalogs; beside the runs where it was not said."""
    return catalogs if catalogs is not None else runs.parent / "catalogs"


def tell(found: Any, lines: Sequence[str], as_json: bool, quiet: bool) -> None:
    """Print what was found: for programs, for people, or not at all."""
    if as_json:
        lines = [json.dumps(found, indent=2, default=str)]
    elif quiet:
        return
    for line in lines:
        typer.echo(line)
