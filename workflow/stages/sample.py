"""Sample: ensembles drawn from the learned density, and how good each way of drawing them is."""

from __future__ import annotations

from collections.abc import Callable

import distributed

from workflow.runs import Notify, Run
from workflow.stages.quality import judge
from workflow.stages.samples import Asked, Wanted, ask, complete_samples

Client = Callable[[], distributed.Client]


def sample_stage(run: Run, client: Client, notify: Notify) -> None:
    """Complete what the section `sample` asks for: samples, and the comparison of samplers.

    Raises:
        UserError: a sampler that does not go with the process.
    """
    config = run.experiment.sample
    if config is None:
        return
    one, many = asked_of(run)
    wanted = Wanted(run.samples.name, (one,), config.members, several=False)
    complete_samples(run, wanted, client, notify)
    if many:
        wanted = Wanted(run.comparison.name, many, config.members, several=True)
        complete_samples(run, wanted, client, notify)
        judge(run, many, notify)


def asked_of(run: Run) -> tuple[Asked, tuple[Asked, ...]]:
    """The samples that an experiment asks for: those to keep, and those to compare.

    Raises:
        UserError: as `samples.ask`.
    """
    config = run.experiment.sample
    assert config is not None
    how = config.model_dump(include={"eta", "stop", "grid"})
    one = ask(run, config.sampler, config.nfe, **how)
    if config.compare is None:
        return one, ()
    pairs = [(s, n) for s in config.compare.samplers for n in config.compare.nfe]
    return one, tuple(ask(run, sampler, nfe) for sampler, nfe in pairs)
