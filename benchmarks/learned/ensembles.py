"""Ensembles and paired perturbed runs of the published systems, stepped on any device."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workflow.dynamics import build_system
from workflow.dynamics.engines import fastest_engine, stepper
from workflow.dynamics.noise import DIRECT, FORCING
from workflow.interfaces import State, Stepper, System
from workflow.responses.direct import paired_response

GROUPS = 64
"""Independent groups of members or pairs; error bars resample them."""


@dataclass(frozen=True)
class Case:
    """One system of the study; times in model time units.

    Attributes:
        system: specification for `build_system`.
        members: independent runs.
        spinup: time left out.
        length: time kept.
        every: time between snapshots.
        rounds: paired runs of the truth that start from each member, 50 snapshots apart.
        amplitude: size of the kick of one pixel.
        lags: lags of the tables, in units of `every`; 0 first.
    """

    system: dict[str, Any]
    members: int
    spinup: float
    length: float
    every: float
    rounds: int
    amplitude: float
    lags: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Steps of the system between snapshots."""
        return round(self.every / build_system(self.system).dt)

    def scaled(self, factor: float, grid: int) -> Case:
        """Less of everything, on a smaller grid with the same statistics of a pixel."""

        system = {**self.system, "grid": grid}
        if "epsilon" in type(build_system(system)).model_fields:
            # Noise per pixel goes with N epsilon.
            system["epsilon"] = build_system(self.system).epsilon * self.system["grid"] / grid
        longest = max(4, 4 * factor * self.lags[-1])
        lags = tuple(lag for lag in self.lags if lag <= longest)
        return replace(
            self,
            system=system,
            members=max(GROUPS, round(self.members * factor) // GROUPS * GROUPS),
            rounds=max(1, round(self.rounds * factor)),
            spinup=self.spinup * min(1, 2 * factor),
            length=max(2 * lags[-1] * self.every, self.length * min(1, factor)),
            lags=lags,
        )


_LONG = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100)

CASES = {
    "allen_cahn": Case(
        {"kind": "allen_cahn", "grid": 32, "scheme": "exact"},
        members=1024,
        spinup=120.0,
        length=200.0,
        every=1.0,
        rounds=4,
        amplitude=0.0625,
        lags=(0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50),
    ),
    "allen_cahn_paper": Case(
        {"kind": "allen_cahn", "grid": 32, "scheme": "paper"},
        members=1280,
        spinup=200.0,
        length=250.0,
        every=1.0,
        rounds=10,
        amplitude=0.0625,
        lags=_LONG,
    ),
    "ornstein_uhlenbeck": Case(
        {"kind": "ornstein_uhlenbeck", "grid": 32},
        members=1024,
        spinup=0.0,
        length=250.0,
        every=1.0,
        rounds=1,
        amplitude=0.0625,
        lags=_LONG,
    ),
    "navier_stokes": Case(
        {"kind": "navier_stokes", "grid": 32},
        members=512,
        spinup=256.0,
        length=48.0,
        every=1 / 32,
        rounds=16,
        amplitude=1 / 64,
        lags=(0, 1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64),
    ),
}


class OnGraphs:
    """Members of a system that go on together on CUDA, the steps of a snapshot as one graph.

    Noise is that of the device's generator: fast, repeatable on one device, but not a function of
    (seed, member, step) as in a run. A `workflow.interfaces.Stepper` of equal strides.
    """

    def __init__(self, system: System, members: int, device: torch.device, state: State) -> None:
        self._system, self._members, self._device = system, members, device
        self._state = {name: value.clone() for name, value in state.items()}
        self._graph = None

    def advance(self, first: int, steps: int) -> None:
        """Go on; always by as many steps as the first time."""
        if self._graph is None:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                self._go(steps)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._go(steps)
        self._graph.replay()

    def observe(self) -> torch.Tensor:
        """The saved fields."""
        return self._system.observe(self._state)

    def state(self) -> State:
        """The state."""
        return self._state

    def _go(self, steps: int) -> None:
        state = self._state
        for _ in range(steps):
            state = self._system.step(state, self._normals())
        for name, value in state.items():
            self._state[name].copy_(value)

    def _normals(self) -> torch.Tensor:
        # More members than noises: runs of one pair share theirs.
        copies = len(next(iter(self._state.values()))) // self._members
        drawn = torch.randn(self._members, *self._system.noise_shape, device=self._device)
        return drawn.repeat(copies, *[1] * (drawn.ndim - 1))


def begin(system: System, state: State, members: range, stream: int, seed: int) -> Stepper:
    """Members on their way, by the engine of runs on the CPU and by graphs on CUDA.

    A state of twice the members holds pairs with common noise.
    """
    first = next(iter(state.values()))
    if first.device.type == "cuda":
        return OnGraphs(system, len(members), first.device, state)
    copies = len(first) // len(members)
    names = [*members] * copies
    engine = fastest_engine(system)
    return stepper(engine, system, state, seed=seed, members=names, stream=stream)


@torch.no_grad()
def simulate(case: Case, device: torch.device, seed: int, folder: Path) -> dict[str, Any]:
    """Write `ensemble.pt` `(member, time, 1, y, x)` and `direct.pt`; returns what it took.

    `direct.pt` holds the mean response of each group of pairs, `(group, lag, y, x)`, at the lags
    of the case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    started = time.perf_counter()
    system, members = build_system(case.system), range(case.members)
    normals = torch.randn(case.members, *system.initial_shape, device=device)
    run = begin(system, system.initial(normals), members, FORCING, seed)
    spinup, times = round(case.spinup / case.every), round(case.length / case.every)
    x = torch.empty((case.members, times, 1, *system.shape), device=device)
    for index in range(-spinup, times):
        run.advance((index + spinup) * case.steps, case.steps)
        if index >= 0:
            x[:, index] = run.observe()
    if not bool(torch.isfinite(x).all()):
        raise SystemExit(f"{case.system} blew up")
    _save(x.cpu(), folder / "ensemble.pt")
    took = {"ensemble_seconds": time.perf_counter() - started}
    del x
    started = time.perf_counter()
    starts = []
    for number in range(case.rounds):
        for index in range(BETWEEN if number else 0):
            gone = spinup + times + (number - 1) * BETWEEN + index
            run.advance(gone * case.steps, case.steps)
        starts.append({name: value.clone() for name, value in run.state().items()})
    _save(_direct(case, system, starts, seed), folder / "direct.pt")
    return took | {"direct_seconds": time.perf_counter() - started}


BETWEEN = 50
"""Snapshots between two rounds of pairs from the same member."""


def _direct(case: Case, system: System, starts: list[State], seed: int) -> torch.Tensor:
    # Runs from one member stand together: they fall into one group.
    state = {name: torch.stack([s[name] for s in starts], 1).flatten(0, 1) for name in starts[0]}
    # A GPU takes all pairs at once.
    parts = 1 if next(iter(state.values())).device.type == "cuda" else GROUPS
    size, means = case.members * case.rounds // parts, []
    for number in range(parts):
        pairs = range(number * size, (number + 1) * size)
        part = {name: value[pairs.start : pairs.stop] for name, value in state.items()}
        displacement = torch.zeros(size, 1, *system.shape, device=next(iter(part.values())).device)
        displacement[:, 0, 0, 0] = 1.0
        (found,) = paired_response(
            system,
            part,
            begin=lambda pair, pairs=pairs: begin(system, pair, pairs, DIRECT, seed),
            displacement=displacement,
            amplitude=case.amplitude,
            observe=lambda x: [x[:, 0]],
            max_lag=case.lags[-1],
            steps_per_lag=case.steps,
        )
        groups = found[:, list(case.lags)].unflatten(0, (GROUPS // parts, -1))
        means.append(groups.double().mean(1).cpu())
    return torch.cat(means)


def _save(value: torch.Tensor, path: Path) -> None:
    """Whole or not at all: another part may wait for the file."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
