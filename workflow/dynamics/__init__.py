"""Systems: what can be simulated, by name.

A new system is one file with a class that satisfies `interfaces.System`, one line in `SYSTEMS`,
and one exact test. A class of your own needs no line: write `kind: my_module:MyClass`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from workflow.config import explain
from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.barotropic import Barotropic
from workflow.dynamics.jumping import Jumping, Jumps, with_jumps
from workflow.dynamics.linear import Linear
from workflow.dynamics.mixture import Mixture
from workflow.dynamics.navier_stokes import NavierStokes
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.dynamics.scalar import Scalar
from workflow.dynamics.triad import Triad
from workflow.interfaces import System, UserError

SYSTEMS: dict[str, type] = {
    "ornstein_uhlenbeck": OrnsteinUhlenbeck,
    "allen_cahn": AllenCahn,
    "navier_stokes": NavierStokes,
    "linear": Linear,
    "scalar": Scalar,
    "triad": Triad,
    "barotropic": Barotropic,
    "mixture": Mixture,
}


def build_system(specification: Mapping[str, Any]) -> System:
    """The system that an experiment names, from `{kind: ..., parameter: value, ...}`.

    Args:
        specification: `kind` is a name in `SYSTEMS` or `module:Class`; the rest are parameters.

    Raises:
        UserError: unknown kind or parameter, an impossible value, or a class that is no system.
    """
    parameters = dict(specification)
    kind = parameters.pop("kind", None)
    jumps = _take_jumps(parameters)
    constructor = _constructor(kind)
    try:
        system = constructor(**parameters)
    except ValidationError as error:
        raise UserError(explain(error, constructor, prefix="system")) from None
    except TypeError as error:
        raise UserError(f"system.kind={kind}: {error}; correct the parameters") from None
    if not isinstance(system, System):
        missing = [name for name in _REQUIRED if not hasattr(system, name)]
        raise UserError(
            f"system.kind={kind} has no {', '.join(missing)}; a system needs {', '.join(_REQUIRED)}"
        )
    if jumps is None:
        return system
    try:
        return cast(System, with_jumps(system, jumps))  # its attributes are properties
    except ValidationError as error:
        raise UserError(explain(error, Jumps, prefix="system.noise.jumps")) from None


def _take_jumps(parameters: dict[str, Any]) -> Mapping[str, Any] | None:
    """Take `noise: {jumps: ...}` out of the parameters; other noise is the system's own."""
    noise = parameters.get("noise")
    if not isinstance(noise, Mapping):
        return None
    if set(noise) != {"jumps"} or not isinstance(noise["jumps"], Mapping):
        raise UserError(
            f"system.noise has {', '.join(noise) or 'nothing'}; needed noise: "
            "{jumps: {rate: ..., scale: ...}}"
        )
    del parameters["noise"]
    return dict(noise["jumps"])


def parameters_of(system: System, specification: Mapping[str, Any]) -> dict[str, Any]:
    """The specification with every default written out, for the resolved experiment."""
    if isinstance(system, Jumping):
        jumps = system.jumps.model_dump(mode="json")
        return {**parameters_of(system.base, specification), "noise": {"jumps": jumps}}
    if isinstance(system, BaseModel):
        return {"kind": specification["kind"], **system.model_dump(mode="json")}
    return dict(specification)


_REQUIRED = (
    "fields",
    "shape",
    "dt",
    "noise_shape",
    "initial_shape",
    "homogeneous",
    "initial",
    "step",
    "observe",
    "displace",
)


def _constructor(kind: Any) -> type:
    if isinstance(kind, str) and kind in SYSTEMS:
        return SYSTEMS[kind]
    module, _, name = str(kind).partition(":")
    if name and module and not module.startswith("."):
        try:
            found: type = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"system.kind={kind}: {error}; put the module beside the experiment file "
                "or on PYTHONPATH"
            ) from None
        return found
    near = difflib.get_close_matches(str(kind), SYSTEMS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise UserError(
        f"system.kind={kind!r} is not a system{hint} Known: {', '.join(SYSTEMS)}, or module:Class"
    )
