"""Rivals: scores learned by other processes from the ensemble of a run, beside its own.

Each is a run in `rivals/NAME` of the run's folder, with training, checkpoints, samples and ledgers
of its own and the same network, data and budget; it may be killed and goes on like any other. Its
ensemble is that of the run, and its score is an estimator of the run's responses, named NAME.
"""

from __future__ import annotations

from typing import Any

from workflow.diffusion import build_process
from workflow.diffusion.sampling import LEAST_NOISE
from workflow.processes import SampleConfig
from workflow.runs import RIVALS, Run


def rivals_of(run: Run) -> dict[str, Run]:
    """The runs of the rivals, by name."""
    e, found = run.experiment, {}
    for name, process in e.score.rivals.items():
        changes: dict[str, Any] = {"process": process, "rivals": {}, "estimator": "neural"}
        asked = ("neural",) if name in e.response.estimators else ("gaussian",)
        wide = build_process(process).sigma_max >= LEAST_NOISE
        sample = None
        if e.sample is not None and wide:
            sample = SampleConfig(members=e.sample.members, nfe=e.sample.nfe)
        experiment = e.model_copy(
            update={
                "name": f"{e.name}.{name}",
                "score": e.score.model_copy(update=changes),
                "response": e.response.model_copy(update={"estimators": asked}),
                "sample": sample,
            }
        )
        found[name] = Run(run.folder / RIVALS / name, experiment)
    return found


def learned_of(run: Run) -> dict[str, Run]:
    """Runs whose scores are learned step by step, by estimator: the run itself, then its rivals."""
    return ({"neural": run} if "neural" in run.trained else {}) | rivals_of(run)
