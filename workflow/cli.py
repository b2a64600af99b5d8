"""The `gfdt` command: parses, calls stages, tells errors in one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpc.errors import TRY_AGAIN, CorruptBlock, MachineError
from hpc.stopping import Stopped, stop_tidily
from workflow import __version__
from workflow.cli_catalog import archive, catalog
from workflow.cli_cluster import cancel, submit
from workflow.cli_forecast import forecast
from workflow.cli_init import init
from workflow.cli_matrix import matrix
from workflow.cli_plan import plan, tell_plan
from workflow.cli_sample import sample
from workflow.cli_scale import scale
from workflow.cli_status import status
from workflow.interfaces import UserError
from workflow.options import (
    HERE,
    Catalogs,
    Data,
    Dims,
    DryRun,
    Estimator,
    Force,
    Given,
    Homogeneous,
    Json,
    MaxLag,
    Name,
    Names,
    Quiet,
    RunName,
    Runs,
    Settings,
    Source,
    SourceOrData,
    Variables,
    Verbose,
    shelf_of,
    tell,
)
from workflow.progress import Progress

if TYPE_CHECKING:
    from hpc.ledger import Problem
    from workflow.runs import Run

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Responses of stochastic systems to small forcings, learned from unperturbed data.

    Example: gfdt run quickstart

    Completion of names in this shell: gfdt --install-completion""",
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"gfdt-workflow {__version__}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    pass


def _go(
    run: Run,
    stages: tuple[str, ...] | None,
    as_json: bool,
    verbose: int,
    quiet: bool,
    shelf: Path,
    force: bool,
) -> None:
    from workflow.stages.pipeline import STAGES as ALL
    from workflow.stages.pipeline import run_stages
    from workflow.stages.plan import refuse_many_files
    from workflow.stages.status import status as status_of

    if quiet or as_json:
        logging.getLogger("workflow").setLevel(logging.ERROR)
    if not force:
        refuse_many_files(run)
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        try:
            run_stages(run, stages or ALL, command=" ".join(sys.argv), notify=progress)
        except CorruptBlock as error:
            cure = f"mend with: gfdt repair {run.folder}"
            raise CorruptBlock(f"{error}; {cure}, then run again") from error
    page = run.folder / "report" / "index.html"
    done = stages is None or "report" in stages
    lines = [f"report: {page.resolve()}" if done else f"run: {run.folder.resolve()}"]
    if run.experiment.data is not None and (stages is None or "respond" in stages):
        lines.insert(0, f"response: {run.response.resolve()}")
    if done:
        lines[-1:-1] = _publish(run.folder, shelf)
    tell(status_of(run) if as_json else None, lines, as_json, quiet)


def _publish(folder: Path, shelf: Path) -> list[str]:
    """Put a finished run on the shelf; where that fails the run is finished all the same."""
    from hpc.catalog import publish

    try:
        return [f"catalog: {publish(folder, shelf).resolve()}"]
    except MachineError as error:
        print(f"gfdt: not published: {error}", file=sys.stderr)
        return []


STAGES = {
    "run": """All stages of an experiment; finished work is skipped, so the same command resumes.

    Example: gfdt run quickstart

    Example: gfdt run my_experiment.yaml --set ensemble.members=64""",
    "simulate": """The ensemble, and nothing else.

    Example: gfdt simulate allen_cahn""",
    "train": """The score, on MPI ranks.

    Example: gfdt train allen_cahn --set score.train.ranks=4""",
    "evaluate": """Every score estimator on the ensemble.

    Example: gfdt evaluate allen_cahn""",
    "respond": """Responses with error bars; with --data, all stages of your own data.

    Example: gfdt respond --data store.zarr --variable T --dims time=t,member=run""",
}
"""Help of the commands that make something; `run` makes all, the others one stage each."""


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        experiment: Source,
        force: Force = False,
        settings: Settings = None,
        runs: Runs = HERE,
        catalogs: Catalogs = None,
        as_json: Json = False,
        verbose: Verbose = 0,
        quiet: Quiet = False,
    ) -> None:
        from workflow.opening import open_run

        run, shelf = open_run(experiment, runs, settings or []), shelf_of(runs, catalogs)
        _go(run, (name,), as_json, verbose, quiet, shelf, force)

    return command


def _data_command(name: str) -> Callable[..., None]:
    """A stage, or all; of an experiment, or of somebody's data and then always all."""
    stages = None if name == "run" else (name,)

    def command(
        experiment: SourceOrData = None,
        data: Data = None,
        variable: Variables = None,
        given: Given = None,
        dims: Dims = None,
        homogeneous: Homogeneous = False,
        max_lag: MaxLag = None,
        estimator: Estimator = None,
        run_name: RunName = None,
        dry_run: DryRun = False,
        force: Force = False,
        settings: Settings = None,
        runs: Runs = HERE,
        catalogs: Catalogs = None,
        as_json: Json = False,
        verbose: Verbose = 0,
        quiet: Quiet = False,
    ) -> None:
        from workflow.opening import open_run
        from workflow.own_data import asked, open_own_data

        options = (variable, given, dims, homogeneous, max_lag, estimator, run_name)
        own, shelf = asked(experiment, data, *options), shelf_of(runs, catalogs)
        if own is None:
            run = open_run(str(experiment), runs, settings or [])
            if dry_run:
                return tell_plan(run, as_json, quiet, source=str(experiment))
            return _go(run, stages, as_json, verbose, quiet, shelf, force)
        run, told = open_own_data(own, runs, settings or [])
        if dry_run:
            return tell_plan(run, as_json, quiet)
        tell(None, [] if as_json else told, False, quiet)
        _go(run, None, as_json, verbose, quiet, shelf, force)

    return command


def report(
    names: Names,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of a comparison; default in --runs")
    ] = None,
    settings: Settings = None,
    runs: Runs = HERE,
    catalogs: Catalogs = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Pictures, index.html and summary.json of a run; or several runs on one page.

    Example: gfdt report quickstart

    Example: gfdt report allen_cahn allen_cahn_paper --out comparison
    """
    from workflow.loading import load_run
    from workflow.opening import open_run
    from workflow.stages.compare import compare

    if len(names) == 1 and out is None:
        run, shelf = open_run(names[0], runs, settings or []), shelf_of(runs, catalogs)
        return _go(run, ("report",), as_json, verbose, quiet, shelf, force=True)
    if len(names) == 1 or settings:
        raise UserError("--out is of a comparison and --set of a single run; give 2 runs, no --set")
    found = [load_run(name, runs) for name in names]
    folder = out or runs / f"comparison-{'-'.join(run.experiment.name for run in found)}"
    page = compare(found, folder)
    tell({"comparison": str(page.resolve())}, [f"comparison: {page.resolve()}"], as_json, quiet)


for _name, _help in STAGES.items():
    _make = _data_command if _name in ("run", "respond") else _stage_command
    app.command(_name, help=_help)(_make(_name))
app.command("report")(report)
app.command("forecast")(forecast)
app.command("matrix")(matrix)
app.command("sample")(sample)
app.command("plan")(plan)
app.command("submit")(submit)
app.command("status")(status)
app.command("cancel")(cancel)
app.command("scale")(scale)
app.command("init")(init)
app.add_typer(catalog, name="catalog")
app.command("archive")(archive)


@app.command()
def verify(
    name: Name,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Check every file of a run, or of an archive, against its checksum.

    Exit code 75 when one is damaged.

    Example: gfdt verify quickstart
    """
    from hpc.archive import RECORD
    from hpc.archive import problems as problems_of_archive
    from workflow.loading import folder_of, load_run
    from workflow.stages.frames import find_experiment
    from workflow.stages.health import verify as verify_run

    folder = folder_of(name, runs)
    if (folder / RECORD).is_file():
        problems = problems_of_archive(folder)
        _tell_problems(problems, [], as_json, quiet)
        if problems:
            raise MachineError(f"{len(problems)} damaged in the archive {folder}; archive it again")
        return
    problems = find_experiment(folder)
    if problems:  # what the run is cannot be trusted
        _tell_problems(problems, [], as_json, quiet)
    else:
        found = load_run(folder, runs)
        problems = verify_run(found)
        _tell_problems(problems, _receipts(found, verbose), as_json, quiet)
    if problems:
        raise MachineError(f"{len(problems)} damaged; mend with: gfdt repair {name}")


@app.command()
def repair(
    name: Name,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Forget damaged blocks, so that the next `gfdt run` makes exactly those again.

    Example: gfdt repair quickstart
    """
    from hpc.lock import run_lock
    from workflow.loading import folder_of, load_run
    from workflow.stages.frames import find_experiment
    from workflow.stages.health import verify as verify_run

    folder = folder_of(name, runs)
    with run_lock(folder):
        problems = find_experiment(folder, repair=True)
        found = load_run(folder, runs)
        problems += verify_run(found, repair=True)
    _tell_problems(problems, _receipts(found, verbose), as_json, quiet)


@app.command()
def doctor(
    mpi: Annotated[bool, typer.Option("--mpi", help="MPI alone")] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Slurm alone, with a test job of two minutes at most")
    ] = False,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Versions, a real MPI test, the filesystem of the runs folder, and Slurm if there is any.

    Example: gfdt doctor --mpi --slurm
    """
    from workflow.stages.health import examine

    found = examine(runs, mpi=mpi, slurm=slurm)
    lines = [f"  {package:14} {version}" for package, version in found["versions"].items()]
    lines.append(f"  {'cores':14} {found['cores']}")
    if verbose:
        lines += [f"  {'python':14} {sys.executable}", f"  {'runs':14} {runs.absolute()}"]
    checks = found["checks"]
    for check, one in checks.items():
        lines.append(f"  {check:14} {'ok' if one['ok'] else 'FAILED'}: {one['message']}")
    tell(found, lines, as_json, quiet)
    failed = [f"{check}: {one['message']}" for check, one in checks.items() if not one["ok"]]
    if failed:
        more = f" (and {len(failed) - 1} more)" if failed[1:] else ""
        raise MachineError(failed[0] + more)


def _receipts(run: Run, verbose: int) -> list[str]:
    from workflow.stages.pipeline import LEDGERS

    return [f"{s}: {len(run.ledger(s).done())} receipts" for s in LEDGERS] if verbose else []


def _tell_problems(problems: list[Problem], lines: list[str], as_json: bool, quiet: bool) -> None:
    lines = lines + [f"{p.block}: {p.path}: {p.what}" for p in problems]
    if not problems:
        lines.append("every file is as it was written")
    found = [{"block": p.block, "path": str(p.path), "what": p.what} for p in problems]
    tell(found, lines, as_json, quiet)


def main() -> None:
    """Entry point; turns errors of the user and of the machine into a line and an exit code."""
    stop_tidily()
    try:
        app(prog_name="gfdt")
    except (UserError, MachineError) as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        _leave(f"{error}; mend that and run the same command again", TRY_AGAIN)
    except Stopped as stopped:
        print(stopped.heard(), file=sys.stderr)
        sys.exit(128 + stopped.number)


def _leave(message: str, code: int) -> None:
    print(f"gfdt: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
