"""The command `gfdt forecast`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from workflow.interfaces import UserError
from workflow.options import HERE, Json, Name, Quiet, Runs, tell

Forcing = Annotated[
    Path, typer.Option("--forcing", help="f(t) or f(t, y, x): NetCDF, Zarr, or CSV 'time,value'")
]
Label = Annotated[str | None, typer.Option(help="label in response.zarr")]
Pattern = Annotated[
    Path | None, typer.Option("--pattern", help="kicks of every pixel per unit of f(t)")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="NetCDF; default forecasts/ in the run's folder")
]
Level = Annotated[float | None, typer.Option("--level", help="coverage of the intervals")]


def forecast(
    name: Name,
    forcing: Forcing,
    perturbation: Label = None,
    observable: Label = None,
    estimator: Label = None,
    pattern: Pattern = None,
    level: Level = None,
    out: Out = None,
    runs: Runs = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change of an observable under any forcing, with error bars, as NetCDF.

    Example: gfdt forecast quickstart --forcing forcing.csv
    """
    from hpc.files import partial_path
    from workflow.loading import load_run
    from workflow.responses.forcing import read_forcing
    from workflow.stages.forecast import forecast as forecast_of
    from workflow.stages.forecast import read_pattern, summary

    run = load_run(name, runs)
    path = out or run.folder / "forecasts" / f"{forcing.stem}.nc"
    if path.suffix != ".nc":
        raise UserError(f"--out {path}: a forecast is written as NetCDF; end the name in .nc")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        answer = forecast_of(
            run,
            read_forcing(forcing),
            perturbation=perturbation,
            observable=observable,
            estimator=estimator,
            pattern=None if pattern is None else read_pattern(pattern, run),
            level=level,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    answer.to_netcdf(partial, engine="netcdf4")
    partial.replace(path)
    told = sorted({str(one.message) for one in caught if one.category is UserWarning})
    lines = [*summary(answer), *(f"warning: {text}" for text in told)]
    found = {"forecast": str(path.resolve()), "summary": summary(answer), "warnings": told}
    tell(found, [*lines, f"forecast: {path.resolve()}"], as_json, quiet)
