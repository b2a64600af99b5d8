"""Stepping ensembles of 2-D fields: the lanes against torch, other solvers and the limits.

    pip install -e ".[peers]"
    OMP_NUM_THREADS=1 python -P benchmarks/ensembles.py

measures what results/ensembles.jsonl does not hold yet, and prints its tables. Solvers that are not
there are left out; how pyqg is built is told in results/ensembles.md.

Microseconds of CPU time of one thread per member and step, medians over rounds in which every
engine runs once, so that a busy machine slows all of them. Solvers of others take their own step
of the same cost, with 4 or 5 evaluations of the dealiased nonlinear term and no forcing; ours are
forced. pyqg evaluates once a step: it takes four. `--wall 2` measures two groups of members on two
threads against one on one, in wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from workflow.dynamics import build_system, engines
from workflow.dynamics.engines import stepper
from workflow.dynamics.integrators import runge_kutta_4
from workflow.dynamics.lanes.library import BUILDS, Library, built, library
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.interfaces import Saved
from workflow.responses.channels import Channels
from workflow.responses.direct import moved_to, paired_response, seen_from
from workflow.responses.observables import build_observables
from workflow.responses.pairs import square_norms

KEPT = Path(__file__).parent / "results" / "ensembles.jsonl"
GRIDS, MEMBERS = (32, 64, 128), (16, 64, 1)
SYSTEMS = {
    "Navier-Stokes, dealiased": {"kind": "navier_stokes", "scheme": "dealiased"},
    "Navier-Stokes, paper": {"kind": "navier_stokes"},
    "Allen-Cahn, exact": {"kind": "allen_cahn"},
    "Allen-Cahn, paper": {"kind": "allen_cahn", "scheme": "paper"},
}
OTHERS = "Navier-Stokes, dealiased, against torch-cfd and pyqg"
PAIRED = {
    f"Pairs of runs, {name}": SYSTEMS[name]
    for name in ("Navier-Stokes, dealiased", "Allen-Cahn, exact")
}
"""Half of the members kicked up and half down, with the noise of half as many."""

PAIR_GRIDS, PAIR_MEMBERS = (32, 64), (32, 128)
ROUNDS, SLOT = 5, 0.04
"""Rounds, and CPU seconds that an engine runs in each."""

FEW, PER_SAVE = 4, 128
"""Steps that are always taken together; of pairs, those between saved times."""

ALONE = ("reference: one member, dense noise", "pyqg, 4 steps")
"""Engines that step one member at a time."""

Steps = Callable[[int], object]
"""Takes that many steps of all members."""


@dataclass(frozen=True)
class Row:
    """Median cost of one engine."""

    system: str
    dtype: str
    grid: int
    members: int
    engine: str
    us: float
    least: float


def kept() -> list[Row]:
    """What has been measured so far."""
    lines = KEPT.read_text().splitlines() if KEPT.is_file() else []
    return [Row(**json.loads(line)) for line in lines]


def ours(specification: dict, grid: int, members: int, dtype: torch.dtype) -> Iterator:
    """Our engines, in every build of the kernels that runs here."""
    system = build_system({**specification, "grid": grid})
    shape, group = system.initial_shape, range(members)
    normals = NoiseStream(1, group, stream=INITIAL, shape=shape, dtype=dtype).at(0)
    name = {"seed": 1, "members": group, "stream": FORCING}
    widest = library()
    for build in BUILDS[BUILDS.index(widest.name) :] if widest else ():
        kernels = Library(build, built(build))
        engines.library = lambda kernels=kernels: kernels
        way = stepper("lanes", system, system.initial(normals), **name)
        yield f"lanes, {build}", lambda steps, way=way: way.advance(0, steps)
        if build == widest.name:
            yield "limit: transforms alone", transforms(kernels, specification, grid, group, dtype)
            yield "limit: normals alone", normals_alone(kernels, system, group, dtype)
    engines.library = library
    if members * grid**2 <= 64 * 64**2:
        way = stepper("torch", system, system.initial(normals), **name)
        yield "torch", lambda steps: way.advance(0, steps)


def transforms(
    kernels: Library, specification: dict, grid: int, members: range, dtype: torch.dtype
) -> Steps:
    """The one-dimensional transforms of a step, of data that stay in the nearest cache."""
    real = np.dtype(str(dtype).removeprefix("torch."))
    paper = (
        specification.get("scheme") == "paper" or specification == SYSTEMS["Navier-Stokes, paper"]
    )
    half = grid // 2 + 1
    if specification["kind"] == "navier_stokes":
        kept = half if paper else (grid - 1) // 3 + 1
        # Fields there and back, each with its columns, and complex rows that hold two of them.
        parts = {grid: 4 * (8 * kept + 8 * grid // 2 if paper else 4 * kept + 2 * grid)}
    else:
        fine = grid if paper else 2 * grid
        columns = half if paper else grid // 2
        parts = {fine: 4 * (2 * columns + fine)}
        parts[grid] = parts.get(grid, 0) + (half + grid // 2 if paper else 2 * half + grid)
    blocks = len(kernels.pack_members(members, real))
    data = {n: kernels.empty((n, 2, kernels.lanes(real)), real) for n in parts}
    for x in data.values():
        x[:] = 0

    def run(steps: int) -> None:
        for n, count in parts.items():
            kernels.call("transform", real, n, 1, data[n], data[n], count * steps * blocks)

    return run


def normals_alone(kernels: Library, system, members: range, dtype: torch.dtype) -> Steps:
    """The normals of a step."""
    real = np.dtype(str(dtype).removeprefix("torch."))
    blocks = kernels.pack_members(members, real)
    groups = -(-int(np.prod(system.noise_shape)) // 4)
    out = kernels.empty((4 * groups, kernels.lanes(real)), real)

    def run(steps: int) -> None:
        for step in range(steps):
            for block in blocks:
                kernels.call("normals", real, 1, 0, block, step, 1, groups, out)

    return run


def peers(grid: int, members: int, dtype: torch.dtype) -> Iterator:
    """Solvers of others for the same flow; those that are not installed are left out."""
    try:
        import exponax
        import jax
        import jax_cfd.base.grids as grids
        import jax_cfd.spectral as spectral
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    import jax.numpy as jnp

    dt, viscosity, side = 1 / 128, 1e-3, 2 * np.pi
    white = np.random.default_rng(0).standard_normal((members, 1, grid, grid))
    start = jnp.fft.rfft2(jnp.asarray(white, dtype=str(dtype).removeprefix("torch.")))

    def many(step: Callable, state: object) -> Steps:
        few = jax.jit(lambda s: jax.lax.fori_loop(0, FEW, lambda _, s: jax.vmap(step)(s), s))
        return lambda steps: [jax.block_until_ready(few(state)) for _ in range(-(-steps // FEW))]

    etdrk4 = exponax.stepper.NavierStokesVorticity(
        2, side, grid, dt, diffusivity=viscosity, order=4
    )
    yield "exponax", many(etdrk4.step_fourier, start)
    box = grids.Grid((grid, grid), domain=((0, side), (0, side)))
    flow = spectral.equations.NavierStokes2D(viscosity, box, smooth=True)
    step = spectral.time_stepping.crank_nicolson_rk4(flow, dt)
    yield "jax-cfd", many(step, start[:, 0])


def others(grid: int, members: int, dtype: torch.dtype) -> Iterator:
    """torch-cfd, 5 evaluations a step; pyqg, one member at a time in its only precision."""
    side, dt = 2 * np.pi, 1 / 128
    white = np.random.default_rng(0).standard_normal((members, grid, grid))
    if find_spec("torch_cfd"):
        from torch_cfd.grids import Grid
        from torch_cfd.spectral import NavierStokes2DSpectral, RK4CrankNicolsonStepper

        box = Grid((grid, grid), domain=((0, side), (0, side)))
        flow = NavierStokes2DSpectral(1e-3, box, step_fn=RK4CrankNicolsonStepper()).to(dtype)
        start = torch.fft.rfft2(torch.from_numpy(white).to(dtype))
        yield "torch-cfd", torch.inference_mode()(lambda steps: flow(start, dt, steps=steps))
    if find_spec("pyqg") and dtype == torch.float64:
        import pyqg

        quiet = {"log_level": 0, "taveint": 1e9, "twrite": 1e9, "tmax": 1e9}
        one = pyqg.BTModel(nx=grid, L=side, dt=dt / 4, rek=0.0, ntd=1, **quiet)
        one.set_q(white[:1])
        yield ALONE[1], lambda steps: [one._step_forward() for _ in range(4 * steps)]


def pairs(specification: dict, grid: int, members: int, dtype: torch.dtype) -> Iterator:
    """As many ordinary members, pairs in two halves or side by side, and all of the direct stage.

    The last has what each saved time costs: the observables, and the sums of the pairs.
    """
    system = build_system({**specification, "grid": grid})
    half, shape = members // 2, system.initial_shape
    normals = NoiseStream(1, range(members), stream=INITIAL, shape=shape, dtype=dtype).at(0)
    numbers = {
        "ordinary members": [*range(members)],
        "pairs in two halves": [*range(half)] * 2,
        "pairs side by side": [n for n in range(half) for _ in range(2)],
    }
    for name, group in numbers.items():
        start = system.initial(normals[group])
        way = stepper("lanes", system, start, seed=1, members=group, stream=FORCING)
        yield name, lambda steps, way=way: way.advance(0, steps)
    saved = Saved(tuple(system.fields), system.shape, homogeneous=True)
    channels = Channels.of(saved, build_observables(["field"], saved, None), ())
    kicked = torch.arange(half) % grid**2
    pixel = torch.zeros(1, grid, grid, dtype=dtype)
    pixel[0, 0, 0] = 1

    def observe(x: torch.Tensor) -> list[torch.Tensor]:
        maps = channels.maps_a(x)
        return [channels.observe(x, maps), seen_from(maps, kicked)]

    def direct(steps: int) -> None:
        totals, maps = paired_response(
            system,
            system.initial(normals[:half]),
            begin=lambda pair: stepper(
                "lanes", system, pair, seed=1, members=[*range(half)] * 2, stream=FORCING
            ),
            displacement=moved_to(pixel, kicked),
            amplitude=0.0625,
            observe=observe,
            max_lag=steps // PER_SAVE,
            steps_per_lag=PER_SAVE,
        )
        square = square_norms(channels, totals, maps)
        maps.double().sum(), square.sum(), (square**2).sum()

    yield "pairs of the direct stage", direct


def reference(grid: int, dtype: torch.dtype) -> Iterator:
    """Allen-Cahn as the paper's code does it: one member at a time, noise by a dense factor."""
    system = build_system({"kind": "allen_cahn", "scheme": "paper", "grid": grid})
    x = torch.from_numpy(np.eye(grid**2).reshape(-1, 1, grid, grid))
    covariance = system.noise_covariance(x, x).reshape(grid**2, grid**2).numpy()
    real = np.dtype(str(dtype).removeprefix("torch."))
    factor = np.linalg.cholesky(covariance * system.dt).astype(real)
    state = np.zeros((1, 1, grid, grid), dtype=real)
    generator = np.random.default_rng(0)

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            u = torch.from_numpy(state)
            state = runge_kutta_4(system.drift, u, system.dt).numpy()
            noise = factor @ generator.standard_normal(grid**2, dtype=real)
            state = state + noise.reshape(state.shape)

    yield ALONE[0], run


def measure(dtype: torch.dtype) -> None:
    """All engines on all problems that have not been measured."""
    text = str(dtype).removeprefix("torch.")
    done = {(r.system, r.grid, r.members) for r in kept() if r.dtype == text}
    for members in MEMBERS:
        for grid in GRIDS:
            for system, specification in SYSTEMS.items():
                if (system, grid, members) in done:
                    continue
                ways = list(ours(specification, grid, members, dtype))
                if system == "Navier-Stokes, dealiased":
                    ways += peers(grid, members, dtype)
                if system == "Allen-Cahn, paper" and grid == 32 and members > 1:
                    ways += reference(grid, dtype)
                compare(system, dtype, grid, members, ways)
            rest = list(others(grid, members, dtype)) if grid < 128 else []
            if rest and (OTHERS, grid, members) not in done:
                own = list(ours(SYSTEMS["Navier-Stokes, dealiased"], grid, members, dtype))
                compare(OTHERS, dtype, grid, members, [*own, *rest])
    for system, specification in PAIRED.items():
        for members in PAIR_MEMBERS:
            for grid in PAIR_GRIDS:
                if (system, grid, members) not in done:
                    ways = list(pairs(specification, grid, members, dtype))
                    compare(system, dtype, grid, members, ways, few=PER_SAVE)


def compare(
    system: str, dtype: torch.dtype, grid: int, members: int, ways: list, *, few: int = FEW
) -> None:
    """Rounds in which every engine runs once; what they cost is kept at once."""
    counts, found = {}, {name: [] for name, _ in ways}
    for name, run in ways:
        run(few)  # compile
        started = time.process_time()
        run(few)
        each = max(1e-7, (time.process_time() - started) / few)
        counts[name] = few * max(1, round(SLOT / each / few))
    for _ in range(ROUNDS):
        for name, run in ways:
            started = time.process_time()
            run(counts[name])
            together = 1 if name in ALONE else members
            found[name].append(1e6 * (time.process_time() - started) / counts[name] / together)
    text = str(dtype).removeprefix("torch.")
    rows = [
        Row(system, text, grid, members, name, statistics.median(us), min(us))
        for name, us in found.items()
    ]
    with KEPT.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def wall(threads: int, *, members: int = 64, grid: int = 32, seconds: float = 2.0) -> None:
    """Member-steps per second and thread, on one and on several threads at once."""
    system = build_system({**SYSTEMS["Navier-Stokes, dealiased"], "grid": grid})
    shape, group = system.initial_shape, range(members)
    normals = NoiseStream(1, group, stream=INITIAL, shape=shape, dtype=torch.float32).at(0)

    def work(done: list[int]) -> None:
        name = {"seed": 1, "members": group, "stream": FORCING}
        way = stepper("lanes", system, system.initial(normals), **name)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            way.advance(0, 50)
            done.append(50 * members)

    rates = {1: [], threads: []}
    for _ in range(3):
        for count in rates:
            done: list[list[int]] = [[] for _ in range(count)]
            running = [threading.Thread(target=work, args=(one,)) for one in done]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            rates[count].append(sum(map(sum, done)) / seconds)
    one, several = (statistics.median(r) for r in rates.values())
    print(f"{one:.3g} member-steps/s on 1 thread, {several:.3g} on {threads}: {several / one:.2f}")


def table(rows: list[Row]) -> str:
    """Markdown: a line per problem, cost and how many times ours it is."""
    lines = []
    for system in (*SYSTEMS, OTHERS, *PAIRED):
        names = list(dict.fromkeys(r.engine for r in rows if r.system == system))
        lines += [f"### {system}", "", "| grid | members | type | " + " | ".join(names) + " |"]
        lines += ["|" + "---|" * (3 + len(names))]
        for key in sorted({(r.grid, r.members, r.dtype) for r in rows if r.system == system}):
            cells = {
                r.engine: r.us
                for r in rows
                if r.system == system and (r.grid, r.members, r.dtype) == key
            }
            best = next(iter(cells.values()))
            shown = [f"{cells[n]:.3g} ({cells[n] / best:.2g})" if n in cells else "" for n in names]
            lines.append(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Both precisions, each in a process of its own: JAX has one for all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--wall", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.wall:
        wall(asked.wall)
    elif asked.dtype:
        measure(getattr(torch, asked.dtype))
    else:
        for dtype in ("float32", "float64"):
            os.environ["JAX_ENABLE_X64"] = str(int(dtype == "float64"))
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
            subprocess.run([sys.executable, "-P", __file__, "--dtype", dtype], check=True)
        print(table(kept()))


if __name__ == "__main__":
    main()
