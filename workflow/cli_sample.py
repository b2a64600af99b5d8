"""The command `gfdt sample`."""

from __future__ import annotations

from typing import Annotated

import typer

from workflow.interfaces import UserError
from workflow.options import HERE, Json, Name, Quiet, Runs, Verbose, tell
from workflow.progress import Progress

Members = Annotated[int, typer.Option("-n", "--members", help="samples")]
Calls = Annotated[int, typer.Option("--nfe", help="network calls for a sample, at most")]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="default: the usual one of the process")
]
Eta = Annotated[
    float, typer.Option("--eta", help="noise of the way back: 0 none, 1 reverse diffusion")
]
Stop = Annotated[
    float | None, typer.Option("--stop", help="time below 1 at which a bridge is left")
]
GridName = Annotated[str | None, typer.Option("--grid", help="of noise levels; default karras")]


def sample(
    name: Name,
    members: Members = 256,
    nfe: Calls = 10,
    sampler: SamplerName = None,
    eta: Eta = 0.0,
    stop: Stop = None,
    grid: GridName = None,
    runs: Runs = HERE,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """New states of a system from its learned density, as samples.zarr.

    The same command goes on after a kill, and with more -n only adds; another way of sampling
    replaces what is there.

    Example: gfdt sample few_steps -n 1024 --nfe 10
    """
    from workflow.loading import load_run
    from workflow.stages.samples import ask
    from workflow.stages.sampling import make_samples

    if members < 1:
        raise UserError(f"-n {members}: needs 1 sample or more")
    run = load_run(name, runs)
    asked = ask(run, sampler, nfe, eta=eta, stop=stop, grid=grid)
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        count = make_samples(run, asked, members, progress)
    path = str(run.samples.resolve())
    found = {"samples": path, "members": count, "sampler": asked.sampler, "nfe": asked.nfe}
    told = [f"{count} samples by '{asked.sampler}' with at most {asked.nfe} network calls each"]
    tell(found, [*told, f"samples: {path}"], as_json, quiet)
