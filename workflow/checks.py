"""What of an experiment cannot give an answer, told before any work is done."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

from workflow.diffusion import build_process
from workflow.diffusion.distances import FEWEST
from workflow.diffusion.sampling import check_sampler
from workflow.dynamics.engines import check_engine
from workflow.dynamics.jumping import Jumping
from workflow.dynamics.noise import check_steps
from workflow.interfaces import HasExactScore, Saved, UserError
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import build_perturbations, refuse_driven
from workflow.rivals import rivals_of

if TYPE_CHECKING:
    from workflow.runs import Run

KGMM_NUMBERS = 8
"""Most numbers of a snapshot for which clusters can cover the state space."""

FEWEST_SNAPSHOTS = 64
"""Snapshots without which a network learns its data by heart."""


def check(run: Run) -> None:
    """Refuse what cannot give an answer.

    Raises:
        UserError: the first such thing, in one line.
    """
    _check_times(run)
    _check_steps(run)
    _check_variance(run)
    _check_members(run)
    _check_estimators(run)
    _check_given(run)
    _check_views(run)
    _check_pilot(run)
    _check_extrapolation(run)
    _check_training(run)
    _check_samples(run)
    for name, rival in rivals_of(run).items():
        try:
            _check_extrapolation(rival)
            _check_samples(rival)
        except UserError as error:
            raise UserError(f"score.rivals.{name}: {error}") from None
    _check_probes(run)


def _check_probes(run: Run) -> None:
    """Build them once: what they name may not exist."""
    response = run.experiment.response
    system = run.system if run.experiment.system is not None else None
    build_observables(response.observables, run.saved, None)
    kicked = build_perturbations(response.perturbations, run.saved, system=system, where=run.folder)
    refuse_driven(kicked, run.saved, key="response.perturbations")


def _check_times(run: Run) -> None:
    e = run.experiment
    if e.system is not None:
        _multiple("ensemble.save_every", e.ensemble.save_every, "system.dt", run.system.dt)
        _multiple("ensemble.spinup", e.ensemble.spinup, "system.dt", run.system.dt)
    every = e.ensemble.save_every
    _multiple("ensemble.length", e.ensemble.length, "ensemble.save_every", every)
    _multiple("response.max_lag", e.response.max_lag, "ensemble.save_every", every)
    if run.lags >= run.times:
        raise UserError(
            f"response.max_lag={e.response.max_lag:g} needs more than the {run.times} saved "
            "samples; lower response.max_lag or lengthen ensemble.length"
        )


def _check_steps(run: Run) -> None:
    if run.experiment.system is None:
        return
    check_engine(run.experiment.ensemble.engine, run.system)
    check_steps(run.spinup_steps + run.times * run.steps_per_save)


def _check_variance(run: Run) -> None:
    system = None if run.experiment.system is None else run.system
    if isinstance(system, Jumping) and system.heavy:
        raise UserError(
            f"system.noise.jumps.amplitude={system.jumps.amplitude}: such jumps have no variance, "
            "which whitening, scores and responses need; use laplace or normal"
        )


def _check_members(run: Run) -> None:
    e, members = run.experiment, run.experiment.ensemble.members
    if members > 1:
        return
    if e.system is not None and "direct" in e.response.estimators:
        raise UserError("ensemble.members=1: an error bar needs at least 2 members for 'direct'")
    if run.errors_by == "member" or run.split_by == "member":
        key = "response.error.by" if run.errors_by == "member" else "score.split.by"
        raise UserError(f"ensemble.members=1: an error bar needs at least 2; set {key}: time")
    if len(run.sum_blocks) < 8:
        raise UserError(
            f"ensemble.members=1: an error bar needs at least 2 members, or 8 blocks of "
            f"{run.sum_times} saved times; there are {run.times}: lengthen the run, lower "
            "response.max_lag, or set response.error.block"
        )


def _check_estimators(run: Run) -> None:
    e, saved = run.experiment, run.saved
    wanted = {*e.response.estimators, e.score.estimator}
    exact = "exact" in e.response.estimators or e.score.estimator == "exact"
    if e.system is None:
        for name in ("exact", "direct"):
            if name in wanted:
                raise UserError(
                    f"response.estimators has '{name}', which recorded data cannot have; remove it"
                )
    elif exact and not isinstance(run.system, HasExactScore):
        raise UserError(
            f"system.kind={e.system['kind']} has no exact score; remove 'exact' from "
            "response.estimators"
        )
    for name in ("neural", "kgmm"):
        other = {"neural", "kgmm"} - {name}
        if name in e.response.estimators and e.score.estimator not in (name, *other):
            raise UserError(
                f"response.estimators has '{name}' but score.estimator={e.score.estimator}; "
                f"set score.estimator: {name} or remove it"
            )
    if "kgmm" in wanted and saved.numbers > KGMM_NUMBERS:
        raise UserError(
            f"score.estimator=kgmm: a snapshot has {saved.numbers} numbers, clusters can cover "
            f"up to {KGMM_NUMBERS}; use neural"
        )


def _check_given(run: Run) -> None:
    e, saved = run.experiment, run.saved
    if not saved.given:
        return
    if e.sample is not None:
        refuse_given(saved, "sample")
    if "kgmm" in {*e.response.estimators, e.score.estimator}:
        raise UserError(
            f"score.estimator=kgmm: clusters know no score given {saved.given_names}; use neural "
            "or gaussian"
        )


def refuse_given(saved: Saved, what: str) -> None:
    """Refuse to draw samples with a score that is conditioned on other fields.

    Raises:
        UserError: there are given fields.
    """
    if saved.given:
        raise UserError(
            f"{what}: the learned score is that of fields given {saved.given_names}, of which "
            "there are no samples; leave samples out, or take the score of all fields without "
            "'given'"
        )


def _check_pilot(run: Run) -> None:
    score = run.experiment.score
    if score.train.pilot and "neural" in run.trained and not run.pilot_steps:
        raise UserError(
            f"score.train.pilot={score.train.pilot:g}: a pilot finds the units of narrow noise on "
            "homogeneous fields, which is another case; set it to 0"
        )


def _check_views(run: Run) -> None:
    views, saved = run.experiment.score.network.views, run.saved
    if views and not (saved.homogeneous and len(saved.shape) == 2 and min(saved.shape) > 2):
        places = " x ".join(map(str, saved.shape)) or "no space"
        uneven = "" if saved.homogeneous else ", no two alike"
        raise UserError(
            f"score.network.views={views[0]}: of a periodic plane, but the data have "
            f"{places}{uneven}; remove it"
        )


def _check_training(run: Run) -> None:
    members, times = len(run.training.members), len(run.training.times)
    if "neural" in run.trained and members * times < FEWEST_SNAPSHOTS:
        raise UserError(
            f"{members * times} snapshots to learn from ({members} members x {times} times); a "
            f"learned score needs at least {FEWEST_SNAPSHOTS}: lengthen ensemble.length, or leave "
            "'neural' out of response.estimators and set score.estimator: gaussian"
        )


def _check_samples(run: Run) -> None:
    process, config = run.experiment.score.process, run.experiment.sample
    if "neural" in run.learned and "score" not in build_process(process).heads:
        raise UserError(
            f"score.process.kind={process.kind} has no score that a response could use; give it "
            "a Gaussian part, or remove 'neural' from response.estimators"
        )
    if config is None:
        return
    if "neural" not in run.trained:
        raise UserError(
            f"sample: needs a learned score, but score.estimator={run.experiment.score.estimator}; "
            "set score.estimator: neural, or remove the section"
        )
    how = config.model_dump(include={"eta", "stop", "grid"})
    check_sampler(process, config.sampler, nfe=config.nfe, **how)
    if config.compare is not None:
        held = run.held_out
        pieces = math.ceil(2 * FEWEST / len(held.members))
        if min(len(held.times), 2 * config.members // len(held.members)) < pieces:
            raise UserError(
                f"sample.compare: {len(held.members)} members x {len(held.times)} times are held "
                f"out for {config.members} samples; a distance needs {2 * FEWEST} or more of "
                "both: raise score.split.test, ensemble.length or sample.members"
            )
        for name, nfe in product(config.compare.samplers, config.compare.nfe):
            check_sampler(process, name, nfe=nfe)


def _check_extrapolation(run: Run) -> None:
    score = run.experiment.score
    if not score.extrapolate:
        return
    if "neural" not in run.trained:
        raise UserError(
            f"score.extrapolate=true is of the learned score, but score.estimator="
            f"{score.estimator}; set score.estimator: neural, or score.extrapolate: false"
        )
    process = build_process(score.process)
    low, high = process.sigma_min, process.sigma_max
    if high < math.sqrt(2) * low:
        raise UserError(
            f"score.extrapolate=true needs score.process.sigma_max of at least 2^(1/2) sigma_min "
            f"= {math.sqrt(2) * low:.3g}, not {high:g}; set score.process.sigma_max: {1.5 * low:g}"
        )


def _multiple(name: str, value: float, unit_name: str, unit: float) -> None:
    count = value / unit
    if abs(count - round(count)) > 1e-6 * max(1.0, count):
        near = max(1, round(count)) * unit
        raise UserError(f"{name}={value:g} is no multiple of {unit_name}={unit:g}; use {near:g}")
