"""Ensembles and paired perturbed runs of the published systems, stepped on any device."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workflow.dynamics import build_system
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


class Stepper:
    """Members of a system that go on together; on CUDA the steps of a snapshot are one graph.

    Noise is that of the device's generator: fast, repeatable on one device, but not a function of
    (seed, member, step) as in a run.
    """

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.system, self._steps, self._device = build_system(case.system), case.steps, device
        self._members = case.members
        normals = self._normals(self.system.initial_shape)
        self.state = {k: v.clone() for k, v in self.system.initial(normals).items()}
        self._graph = None

    def advance(self) -> None:
        """Go on by the time between two snapshots."""
        if self._device.type != "cuda":
            return self._go()
        if self._graph is None:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                self._go()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._go()
        self._graph.replay()

    def _go(self) -> None:
        state = self.state
        for _ in range(self._steps):
            state = self.system.step(state, self._normals(self.system.noise_shape))
        for name, value in state.items():
            self.state[name].copy_(value)

    def _normals(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(self._members, *shape, device=self._device)


@torch.no_grad()
def simulate(case: Case, device: torch.device, seed: int, folder: Path) -> dict[str, Any]:
    """Write `ensemble.pt` `(member, time, 1, y, x)` and `direct.pt`; returns what it took.

    `direct.pt` holds the mean response of each group of pairs, `(group, lag, y, x)`, at the lags
    of the case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    run = Stepper(case, device, seed)
    for _ in range(round(case.spinup / case.every)):
        run.advance()
    times = round(case.length / case.every)
    shape = (case.members, times, 1, *run.system.shape)
    x = torch.empty(shape, device=device)
    for index in range(times):
        run.advance()
        x[:, index] = run.system.observe(run.state)
    if not bool(torch.isfinite(x).all()):
        raise SystemExit(f"{case.system} blew up")
    _save(x.cpu(), folder / "ensemble.pt")
    took = {"ensemble_seconds": time.perf_counter() - started}
    del x
    started = time.perf_counter()
    _save(_direct(case, run, device), folder / "direct.pt")
    return took | {"direct_seconds": time.perf_counter() - started}


def _direct(case: Case, run: Stepper, device: torch.device) -> torch.Tensor:
    starts = []
    for number in range(case.rounds):
        for _ in range(50 if number else 0):
            run.advance()
        starts.append({name: value.clone() for name, value in run.state.items()})
    # Runs from one member stand together: they fall into one group.
    state = {name: torch.stack([s[name] for s in starts], 1).flatten(0, 1) for name in run.state}
    pairs = case.members * case.rounds
    displacement = torch.zeros(pairs, 1, *run.system.shape, device=device)
    displacement[:, 0, 0, 0] = 1.0
    (found,) = paired_response(
        run.system,
        state,
        normals=lambda step: torch.randn(pairs, *run.system.noise_shape, device=device),
        displacement=displacement,
        amplitude=case.amplitude,
        observe=lambda x: [x[:, 0]],
        max_lag=case.lags[-1],
        steps_per_lag=case.steps,
    )
    groups = found[:, list(case.lags)].unflatten(0, (GROUPS, -1))
    return groups.double().mean(1).cpu()


def _save(value: torch.Tensor, path: Path) -> None:
    """Whole or not at all: another part may wait for the file."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
