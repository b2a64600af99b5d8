"""Opening a run: from an experiment as written to one that can be run, or a line that says why not.

Nothing is written here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow.checks import check
from workflow.config import (
    EXPERIMENTS,
    Experiment,
    apply_setting,
    parse_experiment,
    read_experiment,
    refused_changes,
)
from workflow.dynamics import build_system, parameters_of
from workflow.dynamics.engines import fastest_engine
from workflow.interfaces import HasExactScore, UserError
from workflow.loading import read_own
from workflow.pilot import chunk_for
from workflow.recorded import find, saved_of
from workflow.responses.perturbations import usual_perturbation
from workflow.runs import USUAL_CHUNK, Run
from workflow.sites import fill, forget_defaults


def open_run(
    source: str,
    runs: Path,
    settings: Sequence[str] = (),
    site: Mapping[str, Mapping[str, Any]] | None = None,
) -> Run:
    """The run of an experiment, new or existing, checked; writes nothing.

    Args:
        source: shipped experiment, YAML file, or name of a run.
        runs: where run folders live.
        settings: "a.b=c" each, before all else.
        site: what is said to the sections of `cluster` where the experiment says nothing.

    Raises:
        UserError: anything in the experiment that cannot be run, or changed science.
    """
    where = Path(source).resolve().parent if Path(source).suffix else Path.cwd()
    if str(where) not in sys.path:
        sys.path.insert(0, str(where))
    existing = runs / source / "experiment.yaml"
    shipped = EXPERIMENTS / f"{source}.yaml"
    found = existing if existing.is_file() and not shipped.is_file() else None
    content = read_experiment(str(found or source))
    if found:
        forget_defaults(content)
    for setting in settings:
        apply_setting(content, setting)
    if site is not None:
        fill(content, site)
    return open_experiment(parse_experiment(content), runs, where)


def open_experiment(experiment: Experiment, runs: Path, where: Path) -> Run:
    """The run of a parsed experiment; paths in it are relative to `where`. As `open_run`."""
    resolved = experiment.model_dump(mode="json")
    began = _begun(runs / experiment.name)
    if experiment.system is not None:
        system = build_system(experiment.system)
        resolved["system"] = parameters_of(system, experiment.system)
        if experiment.ensemble.engine == "auto":
            resolved["ensemble"]["engine"] = began.get("engine") or fastest_engine(system)
    if experiment.data is not None:
        data, decided = find(experiment.data, where)
        resolved["data"] = data.model_dump(mode="json")
        resolved["ensemble"] |= decided
        if "perturbations" not in experiment.response.model_fields_set:
            kicked = saved_of(data).conditioned(experiment.score.given)
            resolved["response"]["perturbations"] = [usual_perturbation(kicked)]
    for spec in resolved["response"]["perturbations"]:
        if isinstance(spec, dict) and "file" in spec:
            spec["file"] = str((where / str(spec["file"])).resolve())
    if "estimators" not in experiment.response.model_fields_set:
        resolved["response"]["estimators"] = _possible_estimators(experiment, resolved)
    run = Run(runs / experiment.name, parse_experiment(resolved))
    check(run)
    if run.experiment.ensemble.chunk is None:
        chunk = began.get("chunk") or (chunk_for(run) if experiment.system else USUAL_CHUNK)
        resolved["ensemble"]["chunk"] = chunk
        run = Run(run.folder, parse_experiment(resolved))
    _refuse_changed_science(run)
    return run


def _with_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """The experiment of a run with what it does not say, as keys that came after it began.

    One that cannot be read so, such as of an older version, is compared as it stands.
    """
    try:
        began = parse_experiment(content)
        resolved = began.model_dump(mode="json")
        if began.system is not None:
            resolved["system"] = parameters_of(build_system(began.system), began.system)
    except UserError:
        return content
    return resolved


def _possible_estimators(experiment: Experiment, resolved: Mapping[str, Any]) -> list[str]:
    """All that this experiment can have, where the user did not choose."""
    learned = experiment.score.estimator
    names: list[str] = [learned] if learned in ("neural", "kgmm") else []
    names.append("gaussian")
    if experiment.system is not None:
        exact = isinstance(build_system(resolved["system"]), HasExactScore)
        names += [*(["exact"] if exact else []), "direct"]
    return names


def _begun(folder: Path) -> dict[str, Any]:
    """What the ensemble of a run that has begun keeps to; empty where there is none."""
    path = folder / "experiment.yaml"
    found: dict[str, Any] = {}
    if path.is_file():
        found = read_own(path, yaml.safe_load).get("ensemble", {})
    return found


def _refuse_changed_science(run: Run) -> None:
    path = run.folder / "experiment.yaml"
    if not path.is_file():
        return
    began = _with_defaults(read_own(path, yaml.safe_load))
    refused = refused_changes(began, run.experiment.model_dump(mode="json"))
    if refused:
        raise UserError(
            f"{run.folder} holds another experiment: {'; '.join(refused)}; "
            "give the experiment another name or remove the folder"
        )
