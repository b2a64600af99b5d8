"""What the products of a run depend on, as one hash for every stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.files import file_crc
from workflow.config import digest

if TYPE_CHECKING:
    from workflow.runs import Run

DIRECT_LAYOUT = 2
"""Of `perturbed.zarr`; one of another is made again: 2 has the moments of its pairs."""


VIEWS = 2
"""Of networks with views: 2 settle what these say beside the fields."""


def key_of(run: Run, stage: str) -> str:
    """Hash of everything a stage's product depends on.

    Not of the length or the members where more of them only add to the product.
    """
    e = run.experiment.model_dump(mode="json")
    whole = {name: e["ensemble"].pop(name) for name in ("members", "length")}
    for name in ("ranks", "micro_batch", "compile"):  # they change the last bits at most
        del e["score"]["train"][name]
    rivals = e["score"].pop("rivals")
    for section, name in _later(e):
        if not section.get(name, True):  # as runs were before it could be
            del section[name]
    content: list[Any] = [e["seed"], e["system"], e["data"], e["ensemble"]]
    content += [lost] if (lost := sorted(run.quarantined)) else []
    response = e["response"]
    response["perturbations"] += _pattern_files(response["perturbations"])
    del response["checks"]  # they look at the products, and are one themselves
    if stage == "direct":
        probes = (response["perturbations"], response["observables"])
        asked = (e["direct"], response["max_lag"], probes, DIRECT_LAYOUT)
        return digest([*content, whole, *asked])
    content += [e["score"], whole["members"], run.training_times]
    content += [VIEWS] if run.experiment.score.network.views else []
    if stage in ("evaluate", "respond", "constants", "checks"):
        content.append(response["estimators"])
        content += [rivals] if rivals else []
    if stage in ("respond", "constants", "checks"):
        error = response["error"]
        content += [response["max_lag"], error["by"], error["block"]]
        content += [response["perturbations"], response["observables"]]
    if stage == "checks":
        content.append(whole)
    if stage == "response":
        content += [response, e["direct"], whole]
        content += [DIRECT_LAYOUT] if "direct" in response["estimators"] else []
    return digest(content)


def _later(e: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Sections and keys that runs of earlier versions do not have, and which may be unset."""
    score, system = e["score"], e["system"] or {}
    own = (score["network"], "views"), (score["train"], "pilot")
    return [(system, "save_forcing"), (score, "given"), *own]


def _pattern_files(perturbations: list[Any]) -> list[str]:
    """Checksums of the files that perturbations name: other numbers are another direction."""
    paths = [Path(p["file"]) for p in perturbations if isinstance(p, dict) and "file" in p]
    inside = [f for path in paths for f in (path, *sorted(path.rglob("*"))) if f.is_file()]
    return [file_crc(path) for path in inside]
