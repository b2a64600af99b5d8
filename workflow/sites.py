"""Site files: a cluster described once, for everybody's experiments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from workflow.config import Experiment, explain
from workflow.interfaces import UserError
from workflow.machines import ClusterConfig, DriverConfig, JobConfig, PoolConfig
from workflow.machines import TrainingMachineConfig as TrainConfig

SLURM = Path(__file__).parent / "slurm"
"""Job templates, and site files in `sites/`, as shipped."""


class Site(JobConfig):
    """What all jobs of a site ask for, and the sections of `cluster` that differ."""

    simulate: PoolConfig = PoolConfig()
    train: TrainConfig = TrainConfig()
    analyse: PoolConfig = PoolConfig()
    driver: DriverConfig = DriverConfig()


def load_site(name: str, folder: Path = SLURM) -> dict[str, dict[str, Any]]:
    """What a site says to each section of `cluster`.

    Args:
        name: of a file in the folder's `sites/`, or path of a YAML file.
        folder: with job templates and site files.

    Raises:
        UserError: no such site, or a key or value that is not allowed.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / "sites" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (folder / "sites").glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"no site '{name}'; {hint}give a YAML file or one of {', '.join(known)}")
    try:
        content = yaml.safe_load(path.read_text())
        site = Site.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Site)}") from None
    said = site.model_dump(mode="json", exclude_unset=True)
    common = {key: said[key] for key in JobConfig.model_fields if key in said}
    return {name: common | said.get(name, {}) for name in ClusterConfig.model_fields}


def fill(content: dict[str, Any], site: Mapping[str, Mapping[str, Any]]) -> None:
    """Put in what a site says wherever an experiment's `cluster` says nothing."""
    cluster = content.get("cluster") or {}
    if not isinstance(cluster, dict):
        return  # the experiment's own mistake, told when it is parsed
    content["cluster"] = cluster
    for name, said in site.items():
        section = cluster.get(name) or {}
        if isinstance(section, dict):
            stated = {key: value for key, value in section.items() if value not in (None, [], ())}
            cluster[name] = {**said, **stated}


def overruled(experiment: Experiment, site: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a site says and an experiment says otherwise, a line each."""
    cluster = experiment.cluster.model_dump(mode="json")
    return [
        f"cluster.{section}.{key}={cluster[section][key]} of the experiment goes before "
        f"{said[key]} of the site"
        for section, said in site.items()
        for key in said
        if cluster[section][key] != said[key]
    ]


def forget_defaults(content: dict[str, Any]) -> None:
    """Leave of a resolved experiment's `cluster` only what somebody may have said."""
    defaults = ClusterConfig().model_dump(mode="json")
    for name, section in (content.get("cluster") or {}).items():
        if isinstance(section, dict) and name in defaults:
            for key in [k for k, v in section.items() if defaults[name].get(k) == v]:
                del section[key]
