"""The command `gfdt matrix`."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from workflow.interfaces import UserError
from workflow.options import HERE, Json, Name, Quiet, Runs, Verbose, tell
from workflow.progress import Progress

Label = Annotated[str | None, typer.Option(help="whose scores; default score.estimator")]
Longest = Annotated[
    float | None, typer.Option("--max-lag", help="in the run's time; default response.max_lag")
]
Memory = Annotated[str, typer.Option("--memory", help="that all workers together may use")]


def matrix(
    name: Name,
    estimator: Label = None,
    max_lag: Longest = None,
    memory: Memory = "8GiB",
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Response of every number to a kick of every number; a longer run only adds to its sums.

    Another --estimator or --max-lag replaces the matrix.

    Example: gfdt matrix quickstart --max-lag 10
    """
    from workflow.loading import load_run
    from workflow.schema import parse_bytes
    from workflow.stages.matrix import choose, make_matrix, summary
    from workflow.stages.matrix_sums import matrix_of

    try:
        limit = parse_bytes(memory)
    except ValueError as error:
        raise UserError(f"--memory {error}") from None
    run = load_run(name, runs)
    asked = choose(run, estimator, max_lag)
    with (
        Progress(quiet=quiet or as_json, verbose=verbose) as progress,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", UserWarning)
        make_matrix(run, asked, progress, memory=limit)
    told = sorted({str(one.message) for one in caught if one.category is UserWarning})
    path = str(matrix_of(run).resolve())
    lines = [*summary(run), *(f"warning: {text}" for text in told), f"matrix: {path}"]
    tell({"matrix": path, "summary": summary(run), "warnings": told}, lines, as_json, quiet)
