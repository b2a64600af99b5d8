"""Ensembles on a GPU: steps of many members at once, eager and as a CUDA graph.

Prints a page for `benchmarks/results/gpu_ensembles.md`. The limit is memory traffic: a step must at
least read the state, read its normals and write the state. Normals are drawn beforehand, and their
drawing on the device is timed by itself.
"""

from __future__ import annotations

import argparse

import torch
from gpu_training import rate

from workflow.dynamics import build_system

SYSTEMS = ("allen_cahn", "navier_stokes")
GRIDS = (32, 64, 128)
MEMBERS = (16, 64, 1024, 16384)
POINTS = 2**24
"""Most points of one batch; larger ones fill the device long since."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--toy", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    copied = bandwidth(device, 2**20 if options.toy else 2**28)
    print(
        "# Ensembles on a GPU\n\n"
        "`python benchmarks/gpu_ensembles.py > benchmarks/results/gpu_ensembles.md`\n\n"
        f"{name}, torch {torch.__version__}, float32. A copy moves {copied / 1e9:.0f} GB/s, bytes\n"
        "read and written; the share is of a step that moves state, normals and state once.\n\n"
        "| system | grid | members | member-steps/s | as a CUDA graph | share of bandwidth "
        "| normals/step |"
    )
    print("|---" * 7 + "|")
    for system in SYSTEMS:
        for grid in GRIDS[:1] if options.toy else GRIDS:
            for members in MEMBERS[:1] if options.toy else MEMBERS:
                if members * grid**2 <= POINTS:
                    print(row(system, grid, members, device, copied, options.seconds), flush=True)


@torch.inference_mode()
def row(kind, grid, members, device, copied, seconds) -> str:
    """One line of the table."""
    system = build_system({"kind": kind, "grid": grid})
    draws = torch.Generator(device).manual_seed(1)

    def normals(shape):
        return torch.randn(members, *shape, generator=draws, device=device)

    state = system.initial(normals(system.initial_shape))
    noise = normals(system.noise_shape)
    for _ in range(3):
        state = system.step(state, noise)

    def eager() -> None:
        system.step(state, noise)

    plain = rate(eager, device, seconds)
    best = plain
    graphed = ""
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            after = system.step(state, noise)
            for key, value in after.items():
                state[key].copy_(value)
        best = min(plain, replayed := rate(graph.replay, device, seconds))
        graphed = f"{members / replayed:.3g}"
    drawing = rate(lambda: normals(system.noise_shape), device, seconds / 4)
    moved = noise.nbytes + 2 * sum(value.nbytes for value in state.values())
    return (
        f"| {kind} | {grid} | {members} | {members / plain:.3g} | {graphed} "
        f"| {moved / best / copied:.1%} | {drawing / best:.2f} |"
    )


def bandwidth(device, size) -> float:
    """Bytes a second that a copy reads and writes."""
    a = torch.zeros(size, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / rate(lambda: b.copy_(a), device, 0.2)


if __name__ == "__main__":
    main()
