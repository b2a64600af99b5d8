"""Direct: the truth to compare with, from paired runs kicked up and down with common noise.

Of all pairs of a block the store keeps the mean response of each member, and the means of its
square and fourth norm: how much the pairs scatter, and whether few of them make the mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import distributed
import numpy as np
import torch
from torch import Tensor

from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, write_block
from workflow.dynamics.engines import stepper
from workflow.dynamics.noise import DIRECT
from workflow.interfaces import State, Stepper
from workflow.loading import load_run
from workflow.quarantine import fact, quarantined, refuse_many, rows_of
from workflow.responses.channels import Channels
from workflow.responses.direct import BlownUp, mean_everywhere, moved_to, paired_response, seen_from
from workflow.responses.pairs import square_norms
from workflow.responses.perturbations import Perturbation
from workflow.runs import Notify, Run
from workflow.stages import coordinates
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import load_channels
from workflow.stages.restart import block_name, load_state

MOMENTS = {"square": 2, "fourth": 4}
"""Variables of the store that hold powers of the norm of a pair's response."""


def direct(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `perturbed.zarr`: response per member, averaged over the pairs of a block.

    A round is one pair for every member and perturbation, started from one of the restart states
    of the ensemble, kicked at a place of its own, with noise of its own.
    """
    run.renew("direct", run.perturbed)
    channels = load_channels(run)
    _lay_out(run, channels)
    blocks = {
        f"direct-g{group:04d}-{block:04d}": (str(run.folder), group, block)
        for block in range(len(run.round_blocks))
        for group in range(len(run.groups))
    }
    run_blocks(run, client, stage="direct", function=direct_block, blocks=blocks, notify=notify)
    refuse_many(
        quarantined(run.ledger("direct")) | run.quarantined,
        of=run.experiment.ensemble.members,
        where="in paired runs or before",
        cure="lower direct.amplitude or system.dt",
    )
    consolidate(run.perturbed)


def _variables(run: Run, channels: Channels) -> list[Variable]:
    config, shape, rounds = run.experiment.ensemble, run.saved.shape, run.round_blocks
    lags, kicks = run.direct_lags + 1, len(channels.perturbations)
    group = min(config.group, config.members)
    head = ("block", "member", "lag", "perturbation")
    sizes = (len(rounds), config.members, lags, kicks)
    chunk = (1, group, lags, kicks)
    variables = [
        Variable(
            "totals",
            (*head, "watched"),
            (*sizes, channels.totals_a),
            (*chunk, channels.totals_a),
            "float32",
            {"long_name": "response per member, mean over the pairs of a block"},
        )
    ]
    if run.saved.maps:
        variables.append(
            Variable(
                "response",
                (*head, "observable", *(f"d{n}" for n in run.space)),
                (*sizes, len(channels.of_place), *shape),
                (*chunk, 1, *shape),
                "float32",
                {"long_name": "response per member, mean over the pairs of a block"},
            )
        )
    for name, power in MOMENTS.items():
        variables.append(
            Variable(
                name,
                (*head, "watched_observable"),
                (*sizes, len(channels.observables)),
                (*chunk, len(channels.observables)),
                "float64",
                {"long_name": f"|R|^{power} of a pair per member, mean over the pairs of a block"},
            )
        )
    return variables


def _lay_out(run: Run, channels: Channels) -> None:
    rounds = run.round_blocks
    names = [one.name for one in channels.perturbations]
    create_store(
        run.perturbed,
        variables=_variables(run, channels),
        coordinates=[
            Coordinate("block", np.arange(len(rounds)), {"long_name": "block of pairs"}),
            coordinates.member(run),
            coordinates.lag(run, run.direct_lags),
            coordinates.names("perturbation", names, "perturbation"),
            coordinates.names(
                "watched_observable",
                [one.name for one in channels.observables],
                "observable whose norm is taken, over its places, shells or bins",
            ),
        ],
        attrs={
            **run.attributes("responses of paired perturbed runs"),
            "rounds_per_block": [len(r) for r in rounds],
            "displacement_order": "as of an FFT: 0, 1, ..., -1",
        },
    )


def direct_block(folder: str, group: int, block: int) -> Receipt:
    """Paired runs of one group through the rounds of one block."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    channels, rounds = load_channels(run), run.round_blocks[block]
    members = run.groups[group]
    out, lost = rows_of(members, run.quarantined), dict[int, int]()
    variables = {v.name: v for v in _variables(run, channels)}
    sums = {
        name: torch.zeros((len(members), *v.shape[2:]), dtype=torch.float64)
        for name, v in variables.items()
    }
    for number in rounds:
        known = len(out)
        for name, values in _round(run, channels, group, number, out).items():
            sums[name] += values.double()
        lost |= {members[row]: number for row in out[known:]}
    start = {"block": block, "member": members.start}
    files: dict[str, str] = {}
    for name, total in sums.items():
        mean = (total / len(rounds)).numpy()[None].astype(variables[name].dtype)
        mean[:, out] = np.nan
        written = write_block(run.perturbed, name, start=start, values=mean)
        files |= {f"perturbed.zarr/{key}": crc for key, crc in written.items()}
    facts = facts_since(started) | fact(lost)
    return Receipt(f"direct-g{group:04d}-{block:04d}", files, facts)


def _round(
    run: Run, channels: Channels, group: int, number: int, out: list[int]
) -> dict[str, Tensor]:
    """Responses per member of one round, by variable of the store.

    Rows `out` are left out, to which those are added that blow up; their numbers mean nothing.
    Without any row there are no responses.
    """
    parts = [_kicked(run, channels, one, group, number, out) for one in channels.perturbations]
    if len(out) == len(run.groups[group]):
        return {}
    # (member, lag, ...) -> (member, lag, perturbation, ...)
    found = {name: torch.stack([part[name] for part in parts], dim=2) for name in parts[0]}
    square = square_norms(channels, found["totals"], found.get("response"))
    return found | {"square": square, "fourth": square**2}


def _kicked(
    run: Run, channels: Channels, one: Perturbation, group: int, number: int, out: list[int]
) -> dict[str, Tensor]:
    """The same of one perturbation; NaN where no displacement of the state is the same."""
    members = run.groups[group]
    while len(out) < len(members):
        rows = [row for row in range(len(members)) if row not in out]
        try:
            found = _paired(run, channels, one, group, number, rows)
        except BlownUp as error:
            out += [rows[place] for place in error.members]
            continue
        whole = {n: v.new_full((len(members), *v.shape[1:]), torch.nan) for n, v in found}
        for name, values in found:
            whole[name][rows] = values
        return whole
    return {}


def _paired(
    run: Run, channels: Channels, one: Perturbation, group: int, number: int, rows: list[int]
) -> list[tuple[str, Tensor]]:
    """Responses of some rows of a group, by variable of the store."""
    members, e = [run.groups[group][row] for row in rows], run.experiment
    starts = [block_name(group, s) for s in range(-1, run.segments)]
    whole = load_state(run.folder, run.ledger("simulate"), starts[-1 - number % len(starts)])
    state: State = {name: part[rows] for name, part in whole.items()}
    places, rows_kicked = math.prod(run.saved.shape), run.rows[: len(run.saved.fields)]
    kicked = torch.tensor([_place(e.seed, member, number, places) for member in members])
    with torch.no_grad():
        x = run.system.observe(state)[:, rows_kicked]
        u = one.displacement(x)
    if u is not None and one.pattern is not None and run.saved.maps:
        u = moved_to(one.pattern.to(x.dtype), kicked)

    def observe(everything: Tensor) -> list[Tensor]:
        x = everything[:, rows_kicked]
        if not run.saved.maps:
            return [channels.observe(x)]
        maps = channels.maps_a(x)
        # Placed kicks: what is seen from the kicked place. Others have no place: their response
        # is the mean over all, as that of scores is.
        seen = seen_from(maps, kicked) if one.pattern is not None else mean_everywhere(maps)
        return [channels.observe(x, maps), seen]

    names = ["totals", "response"] if run.saved.maps else ["totals"]
    if u is None:
        lags = run.direct_lags + 1
        shapes = [values.shape[1:] for values in observe(_in_place(x, run))]
        unknown = [torch.full((len(members), lags, *shape), torch.nan) for shape in shapes]
        return list(zip(names, unknown, strict=True))

    def begin(pair: State) -> Stepper:
        name: dict = {"seed": e.seed, "members": [*members, *members], "stream": DIRECT + number}
        return stepper(e.ensemble.engine, run.system, pair, **name)

    responses = paired_response(
        run.system,
        state,
        begin=begin,
        displacement=_in_place(u, run),
        amplitude=e.direct.amplitude,
        observe=observe,
        max_lag=run.direct_lags,
        steps_per_lag=run.steps_per_save,
    )
    return list(zip(names, responses, strict=True))


def _in_place(x: Tensor, run: Run) -> Tensor:
    """Fields `(member, field, *shape)` among all that the system saves, zero where given."""
    everything = x.new_zeros((len(x), len(run.rows), *x.shape[2:]))
    everything[:, run.rows[: x.shape[1]]] = x
    return everything


def _place(seed: int, member: int, number: int, places: int) -> int:
    bits = np.random.Philox(key=[seed, member], counter=[0, 0, DIRECT + number, 2**40])
    return int(np.random.Generator(bits).integers(places))
