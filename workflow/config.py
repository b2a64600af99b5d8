"""The experiment file: pydantic models, strict, with every default in one place."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from workflow.interfaces import UserError
from workflow.machines import ClusterConfig, FaultsConfig
from workflow.processes import KINDS, EdmConfig, ProcessConfig, SampleConfig
from workflow.schema import Bytes, Strict


class EnsembleConfig(Strict):
    """How many members, how long, how saved; times in model time units."""

    members: int = Field(128, ge=1)
    group: int = Field(16, ge=1, description="members stepped together by one task")
    engine: Literal["auto", "torch", "lanes"] = Field(
        "auto", description="what steps them; a run keeps the one that it began with"
    )
    spinup: float = Field(1000.0, ge=0)
    length: float = Field(2000.0, gt=0)
    save_every: float = Field(1.0, gt=0)
    dtype: Literal["float32", "float64"] = "float32"
    chunk: Bytes | None = Field(
        None,
        ge=1024,
        description="bytes of a file, which is a segment of simulation; by default 16MiB, less "
        "where a pilot says that this would last over 2 minutes",
    )
    checksum: Literal["crc32c"] = "crc32c"


class NetworkConfig(Strict):
    """Size of the score network."""

    kind: Literal["local"] = "local"
    channels: int = Field(32, ge=1)
    residual_blocks: int = Field(2, ge=0)
    views: tuple[Literal["velocity"], ...] = Field(
        (), description="what it sees beside the fields: velocity, of the flow of their vorticity"
    )


class TrainConfig(Strict):
    """Data-parallel training."""

    ranks: int = Field(2, ge=1)
    steps: int = Field(4000, ge=1)
    pilot: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of as many steps beforehand, to find the units of noise",
    )
    global_batch: int = Field(32, ge=2, multiple_of=2)
    learning_rate: float = Field(4e-3, gt=0)
    ema: float = Field(0.995, ge=0, lt=1)
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    patience: int | None = Field(
        None, ge=1, description="stop after so many checkpoints without a lower held-out loss"
    )
    save_every: int = Field(500, ge=1)
    micro_batch: int | None = Field(
        None, ge=2, multiple_of=2, description="of global_batch, at a time on one rank"
    )
    memory: Bytes = Field(
        4 * 2**30, ge=0, description="of a rank for snapshots; beyond it they are streamed"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the network alone")
    compile: bool = Field(
        False,
        description="the network, by a C++ compiler: half a minute for steps 1.2 times as fast",
    )

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.global_batch % (2 * self.ranks):
            raise ValueError(
                f"global_batch={self.global_batch} does not split into antithetic pairs over "
                f"ranks={self.ranks}; use a multiple of {2 * self.ranks}"
            )
        return self


class SplitConfig(Strict):
    """What is held out of training: whole members, or the end of a single run."""

    by: Literal["auto", "member", "time"] = "auto"
    test: float = Field(0.1, gt=0, lt=1)
    until: float | None = Field(None, gt=0, description="model time of which training sees the run")


class KgmmConfig(Strict):
    """Score by clustering, for systems of few variables; noise in units of the spread."""

    sigma: float = Field(0.05, gt=0, description="noise, standard deviations of each variable")
    probability: float = Field(1e-3, gt=0, lt=1, description="least share of points in a cluster")
    hidden: tuple[int, ...] = Field((50, 25), description="widths of the network's layers")
    steps: int = Field(5000, ge=1, description="steps of Adam")
    batch: int = Field(32, ge=1, description="clusters in a step")


RivalName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class ScoreConfig(Strict):
    """How the score is estimated."""

    estimator: Literal["neural", "kgmm", "gaussian", "exact"] = "neural"
    whiten: Literal[True] = True
    given: tuple[str, ...] = Field(
        (), description="saved fields that nothing kicks; scores are conditioned on them"
    )
    process: ProcessConfig = EdmConfig()
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    rivals: dict[RivalName, ProcessConfig] = Field(
        {}, description="scores learned beside it by other processes, by name of the estimator"
    )
    kgmm: KgmmConfig = KgmmConfig()
    extrapolate: bool = Field(
        False,
        description="take out smoothing of order sigma_min^2; less exact than a smaller sigma_min",
    )
    split: SplitConfig = SplitConfig()


class ErrorConfig(Strict):
    """How error bars are made."""

    method: Literal["bootstrap"] = "bootstrap"
    by: Literal["auto", "member", "time"] = "auto"
    block: float | None = Field(None, gt=0, description="model time of a block; default: measured")
    samples: int = Field(500, ge=50, le=100000)
    level: float = Field(0.95, gt=0.5, lt=1)
    bands: Literal["pointwise", "simultaneous"] = "pointwise"


ESTIMATORS = ("neural", "kgmm", "gaussian", "exact", "direct")
"""Of responses; the rivals of the learned score are others."""

ProbeSpec = str | dict[str, Any]
"""A name such as "moment_2", or a mapping with `kind` and parameters."""


class ResponseConfig(Strict):
    """Which responses, up to which lag in model time units."""

    estimators: tuple[str, ...] = ("neural", "gaussian", "exact", "direct")
    observables: tuple[ProbeSpec, ...] = ("field",)
    perturbations: tuple[ProbeSpec, ...] = ("pixel",)
    max_lag: float = Field(100.0, gt=0)
    recalibrate: bool = True
    control_variates: bool = Field(
        False, description="for 'exact' on homogeneous fields: instead of its recalibration"
    )
    checks: bool = Field(True, description="test scores and data by identities they must obey")
    error: ErrorConfig = ErrorConfig()


class DirectConfig(Strict):
    """Paired perturbed runs: +-amplitude along each perturbation, common noise."""

    pairs: int = Field(12800, ge=2)
    amplitude: float = Field(0.0625, gt=0, description="factor on u(x), units of the field")
    max_lag: float | None = Field(None, gt=0, description="model time; default response.max_lag")


class SavedField(Strict):
    """A field of a user's data, as found."""

    name: str
    long_name: str
    units: str = "1"


class FoundConfig(Strict):
    """What a user's data are, written down when the run begins; not for writing by hand."""

    fields: tuple[SavedField, ...]
    shape: tuple[int, ...]
    start: float = 0.0
    time_units: str = "1"
    calendar: str = Field("", description="of dates, where it is not the usual one")
    fingerprint: str = Field("", description="of the first times: other data are another run")


class DataConfig(Strict):
    """The user's own data instead of a simulated ensemble."""

    store: str = Field(description="Zarr or NetCDF, relative to the experiment file")
    variables: tuple[str, ...] = Field((), description="default: all that have a time")
    dims: dict[Literal["member", "time", "y", "x"], str] = {}
    homogeneous: bool = Field(False, description="statistics do not depend on the place")
    found: FoundConfig | None = None


class ReportConfig(Strict):
    """What the report holds."""

    format: tuple[Literal["html", "json"], ...] = ("html", "json")


class Experiment(Strict):
    """One experiment file, resolved."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(1, ge=0, lt=2**63)
    system: dict[str, Any] | None = None
    data: DataConfig | None = None
    ensemble: EnsembleConfig = EnsembleConfig()
    score: ScoreConfig = ScoreConfig()
    response: ResponseConfig = ResponseConfig()
    direct: DirectConfig = DirectConfig()
    sample: SampleConfig | None = None
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = ClusterConfig()
    faults: FaultsConfig = FaultsConfig()

    @model_validator(mode="after")
    def _estimators(self) -> Experiment:
        rivals = self.score.rivals
        known = (*ESTIMATORS, *rivals)
        for name in self.response.estimators:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"response.estimators has '{name}', which is unknown; {hint}")
        taken = [name for name in rivals if name in ESTIMATORS]
        if taken:
            raise ValueError(f"score.rivals.{taken[0]} is the name of another estimator; rename it")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Experiment:
        if (self.system is None) == (self.data is None):
            given = "both" if self.system else "neither"
            raise ValueError(f"{given} of 'system' and 'data' given; needs exactly one of them")
        return self


EXPERIMENTS = Path(__file__).parent / "experiments"

_FREE = ("cluster", "faults", "report", "response", "direct", "sample")
"""Sections that an existing run may change: stages make again what depends on them."""
_FREE_KEYS = tuple(f"score.train.{key}" for key in ("steps", "ranks", "micro_batch", "compile"))
_RIVALS = "score.rivals."  # each is trained again where it changes
_GROWING = ("ensemble.length", "ensemble.members")


def read_experiment(source: str) -> dict[str, Any]:
    """Content of an experiment file, or of a shipped name, as written.

    Raises:
        UserError: no such experiment, or not YAML.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = EXPERIMENTS / f"{source}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in EXPERIMENTS.glob("*.yaml"))
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"no experiment '{source}'; {hint}give a YAML file or one of {', '.join(known)}"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no experiment; needed keys such as name and system")
    return content


def parse_experiment(content: Mapping[str, Any]) -> Experiment:
    """A checked experiment from plain data.

    Raises:
        UserError: a key or value that is not allowed.
    """
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, Experiment)) from None


def apply_setting(content: dict[str, Any], setting: str) -> None:
    """Put one `a.b=c` into plain data.

    Raises:
        UserError: not of that form.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set {setting}: needed KEY=VALUE, such as ensemble.members=64")
    *parents, last = key.split(".")
    node = content
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {setting}: '{parent}' is a value and has no keys")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {setting}: the value is not YAML") from None


def explain(error: ValidationError, model: Any, *, prefix: str = "") -> str:
    """First mistake that pydantic found, in one line with the key, the value and the need."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    told = _without_tags(location)
    key = ".".join([prefix, *told] if prefix else told) or "experiment"
    if first["type"] == "union_tag_invalid":
        kinds = [name.strip("'") for name in first["ctx"]["expected_tags"].split(", ")]
        near = difflib.get_close_matches(first["ctx"]["tag"], kinds, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(kinds)}"
        return f"{key}.kind={first['ctx']['tag']} is unknown; {hint}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    if first["type"] == "missing":
        return f"key '{key}' is missing; add it to the experiment"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if isinstance(first["input"], (str, int, float, bool, type(None))):
        return f"{key}={first['input']}: {message}"
    return f"{key}: {message}"


def _without_tags(location: Sequence[str]) -> list[str]:
    """A place in the experiment without the kind of process, which is no key."""
    return [part for place, part in enumerate(location) if not _is_tag(location, place)]


def _is_tag(location: Sequence[str], place: int) -> bool:
    """Whether a part of a place is the kind of a process: of the score, or of a rival by name."""
    return "process" in location[max(0, place - 1) : place] or (
        place > 1 and location[place - 2] == "rivals"
    )


def _known_keys(model: Any, location: Sequence[str]) -> list[str]:
    for place, part in enumerate(location):
        if _is_tag(location, place):
            model = KINDS[part]
        elif location[max(0, place - 1) : place] != ["rivals"]:  # else the name of a rival
            annotation = model.model_fields[part].annotation
            inner = [annotation, *get_args(annotation)]
            models = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
            if not models and part not in ("process", "rivals"):
                return []
            model = models[0] if models else model
    return list(model.model_fields)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `a.b.c`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def refused_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields of an existing run that `new` changes and may not, as "key: old -> new"."""
    before, after = flatten(old), flatten(new)
    refused = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was == now or key.split(".")[0] in _FREE or key in _FREE_KEYS:
            continue
        if key.startswith(_RIVALS):
            continue
        if key in _GROWING and isinstance(was, (int, float)) and now is not None and now > was:
            continue
        refused.append(f"{key}: {was} -> {now}")
    return refused


def digest(content: Any) -> str:
    """Short hash of plain data, the same for the same content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
