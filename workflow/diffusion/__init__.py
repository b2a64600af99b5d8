"""Forward processes by name: how data are noised, and what of it a network learns.

A new process is one file with a class that satisfies `interfaces.ForwardProcess`, a model of its
parameters in `workflow.processes`, one line in `PROCESSES`, and exact tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workflow.diffusion.gaussian import EDM, VE, VP
from workflow.diffusion.jump_process import Jump
from workflow.diffusion.phase_bridge import PhaseBridge
from workflow.interfaces import ForwardProcess
from workflow.processes import ProcessConfig

PROCESSES: dict[str, Callable[..., ForwardProcess]] = {
    "edm": EDM,
    "ve": VE,
    "vp": VP,
    "jump": Jump,
    "phase_bridge": PhaseBridge,
}


def build_process(config: ProcessConfig) -> ForwardProcess:
    """The process of a section `score.process`."""
    parameters: dict[str, Any] = config.model_dump()
    return PROCESSES[parameters.pop("kind")](**parameters)
