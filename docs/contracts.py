"""The import contracts of pyproject.toml as a picture and a table, with what the code does."""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch


def write_contracts(root: Path, folder: Path) -> None:
    """Write `contracts.md` and `rooms.svg`."""
    folder.mkdir(exist_ok=True)
    content = tomllib.loads((root / "pyproject.toml").read_text())
    contracts = content["tool"]["importlinter"]["contracts"]
    graph = grimp.build_graph("workflow", "hpc", cache_dir=None)
    layers = next(c for c in contracts if c["type"] == "layers")["layers"]
    _draw(layers, graph, folder / "rooms.svg")
    rows = [f"| {c['name']} | {c['type']} | {_about(c)} |" for c in contracts]
    lines = [
        "![Rooms, each importing those below it](_generated/rooms.svg)",
        "",
        "| contract | kind | about |",
        "|---|---|---|",
        *rows,
        "",
        f"{len(graph.modules)} modules, {graph.count_imports()} imports between them; "
        "`lint-imports` checks all contracts.",
    ]
    (folder / "contracts.md").write_text("\n".join(lines) + "\n")


def _about(contract: dict) -> str:
    if contract["type"] == "layers":
        return "see the picture"
    if contract["type"] == "forbidden":
        sources = ", ".join(f"`{name}`" for name in contract["source_modules"])
        return (
            f"{sources} never import {', '.join(f'`{n}`' for n in contract['forbidden_modules'])}"
        )
    return ", ".join(f"`{name}`" for name in contract["modules"])


def _draw(layers: list[str], graph: grimp.ImportGraph, path: Path) -> None:
    """A row of boxes for each layer; the number in a box is that of its modules."""
    figure = Figure(figsize=(9, 0.62 * (len(layers) + 1)), layout="constrained")
    panel = figure.subplots()
    panel.set_axis_off()
    panel.set(xlim=(0, 1), ylim=(-len(layers) - 0.2, 0.2))
    for row, layer in enumerate(layers):
        rooms = [room.strip() for room in layer.split("|")]
        for column, room in enumerate(rooms):
            width = 0.8 / len(rooms)
            _box(panel, 0.1 + column * width, -row - 0.9, width, room, _modules(graph, room))
        if row:
            panel.annotate(
                "", (0.05, -row - 0.6), (0.05, -row + 0.3), arrowprops={"arrowstyle": "->"}
            )
    figure.savefig(path, format="svg", metadata={"Date": None})


def _box(panel, x: float, y: float, width: float, room: str, modules: int) -> None:
    box = FancyBboxPatch(
        (x + 0.01, y), width - 0.02, 0.7, boxstyle="round,pad=0,rounding_size=0.01"
    )
    box.set(facecolor="#eef3fb", edgecolor="#1f5fbf")
    panel.add_patch(box)
    words = room.removeprefix("workflow.") + (f" ({modules})" if modules > 1 else "")
    panel.text(x + width / 2, y + 0.35, words, ha="center", va="center", fontsize=11)


def _modules(graph: grimp.ImportGraph, room: str) -> int:
    return len(graph.find_descendants(room)) + 1
