"""The `gfdt` command: parses, calls stages, tells errors in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hpc.errors import TRY_AGAIN, MachineError
from workflow.interfaces import UserError
from workflow.progress import Progress

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Responses of stochastic systems to small forcings, learned from unperturbed data.",
)

Source = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="shipped experiment, YAML file, or run")
]
Name = Annotated[str, typer.Argument(metavar="RUN", help="name of a run, or its folder")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key")
]
Runs = Annotated[Path, typer.Option("--runs", help="where run folders live")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="say more")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="say nothing but errors")]
HERE = Path("runs")


def _go(
    source: str,
    stages: tuple[str, ...] | None,
    settings: list[str] | None,
    runs: Path,
    as_json: bool,
    verbose: int,
    quiet: bool,
) -> None:
    from workflow.runs import open_run
    from workflow.stages.health import status as status_of
    from workflow.stages.pipeline import STAGES, run_stages

    run = open_run(source, runs, settings or [])
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        run_stages(run, stages or STAGES, command=" ".join(sys.argv), notify=progress)
    if as_json:
        _print(status_of(run))
    elif not quiet:
        page = run.folder / "report" / "index.html"
        done = "report" in (stages or STAGES)
        typer.echo(f"report: {page.resolve()}" if done else f"run: {run.folder.resolve()}")


@app.command()
def run(
    experiment: Source,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """All stages of an experiment; finished work is skipped, so the same command resumes."""
    _go(experiment, None, settings, runs, as_json, verbose, quiet)


@app.command()
def simulate(
    experiment: Source,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """The ensemble, and the paired perturbed runs."""
    _go(experiment, ("simulate",), settings, runs, as_json, verbose, quiet)


@app.command()
def train(
    experiment: Source,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """The score, on MPI ranks."""
    _go(experiment, ("train",), settings, runs, as_json, verbose, quiet)


@app.command()
def evaluate(
    experiment: Source,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Every score estimator on the ensemble."""
    _go(experiment, ("evaluate",), settings, runs, as_json, verbose, quiet)


@app.command()
def respond(
    experiment: Source,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Responses with error bars."""
    _go(experiment, ("respond",), settings, runs, as_json, verbose, quiet)


@app.command()
def report(
    experiment: Source,
    settings: Settings = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Pictures, index.html and summary.json."""
    _go(experiment, ("report",), settings, runs, as_json, verbose, quiet)


@app.command()
def plan(
    experiment: Source, settings: Settings = None, runs: Runs = HERE, as_json: Json = False
) -> None:
    """Sizes, files and core-hours; writes nothing."""
    from workflow.runs import open_run
    from workflow.stages.plan import plan as plan_of

    found = plan_of(open_run(experiment, runs, settings or []))
    if as_json:
        _print(found)
        return
    for key, value in found.items():
        text = f"{value / 2**20:.1f} MiB" if "bytes" in key else str(value)
        typer.echo(f"{key.replace('_', ' '):32} {text}")


@app.command()
def status(name: Name, runs: Runs = HERE, as_json: Json = False) -> None:
    """How far a run is, from its files."""
    from workflow.runs import load_run
    from workflow.stages.health import status as status_of

    found = status_of(load_run(name, runs))
    if as_json:
        _print(found)
        return
    typer.echo(f"{found['name']} in {found['folder']}")
    for stage, one in found["stages"].items():
        typer.echo(f"  {stage:10} {one['done']:>8} of {one['blocks']}")
    typer.echo(f"  report     {found['report'] or 'not yet'}")


@app.command()
def verify(name: Name, runs: Runs = HERE, as_json: Json = False) -> None:
    """Check every file of a run against its checksum; exit code 75 when one is damaged."""
    from workflow.runs import load_run
    from workflow.stages.health import verify as verify_run

    problems = verify_run(load_run(name, runs))
    _tell(problems, as_json)
    if problems:
        raise MachineError(f"{len(problems)} damaged; mend with: gfdt repair {name}")


@app.command()
def repair(name: Name, runs: Runs = HERE, as_json: Json = False) -> None:
    """Forget damaged blocks, so that the next `gfdt run` makes exactly those again."""
    from hpc.lock import run_lock
    from workflow.runs import load_run
    from workflow.stages.health import verify as verify_run

    found = load_run(name, runs)
    with run_lock(found.folder):
        _tell(verify_run(found, repair=True), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, a real MPI test, and the filesystem."""
    from hpc.launch import probe_mpi
    from workflow.runs import cores, versions

    ok, text = probe_mpi()
    found = {"versions": versions(), "cores": cores(), "mpi": {"ok": ok, "message": text}}
    if as_json:
        _print(found)
    else:
        for package, version in versions().items():
            typer.echo(f"  {package:14} {version}")
        typer.echo(f"  cores          {cores()}")
        typer.echo(f"  mpi            {'ok' if ok else 'FAILED'}: {text}")
    if not ok:
        raise MachineError(f"MPI: {text}")


def _tell(problems: list[Any], as_json: bool) -> None:
    if as_json:
        _print([{"block": p.block, "path": str(p.path), "what": p.what} for p in problems])
        return
    for p in problems:
        typer.echo(f"{p.block}: {p.path}: {p.what}")
    if not problems:
        typer.echo("every file is as it was written")


def _print(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, default=str))


def main() -> None:
    """Entry point; turns errors of the user and of the machine into a line and an exit code."""
    try:
        app()
    except (UserError, MachineError) as error:
        print(f"gfdt: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"gfdt: {error}; mend that and run the same command again", file=sys.stderr)
        sys.exit(TRY_AGAIN)
    except KeyboardInterrupt:
        print("gfdt: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
