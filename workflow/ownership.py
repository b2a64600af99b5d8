"""Whose run it is: code that a run names is executed for its owner only.

An experiment may name classes and functions of its author's, and a run remembers where they were.
To look at somebody else's run must not execute them.
"""

from __future__ import annotations

import os
from pathlib import Path

from workflow.config import Experiment
from workflow.interfaces import UserError


def refuse_foreign_code(folder: Path, experiment: Experiment) -> None:
    """Refuse a run of another user that names code.

    Raises:
        UserError: it does; names what.
    """
    owner = folder.stat().st_uid
    if owner in (os.getuid(), 0):
        return
    named = named_code(experiment)
    if named:
        raise UserError(
            f"{folder} belongs to user {owner} and names code of its own, {named[0]}; "
            "read that, and copy the folder to run it as yours"
        )


def named_code(experiment: Experiment) -> list[str]:
    """Every `module:name` of an experiment."""
    response = experiment.response
    specs = [experiment.system or {}, *response.observables, *response.perturbations]
    kinds = [str(one.get("kind", "")) if isinstance(one, dict) else one for one in specs]
    return [kind for kind in kinds if ":" in kind]
