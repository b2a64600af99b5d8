"""Train: fit the whitening, then let MPI ranks learn the score; both can be killed at any time."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hpc import slurm
from hpc.choice import choose_launcher, try_mpi
from hpc.errors import LaunchError, MachineError, Paused
from hpc.launch import launch_ranks
from hpc.launchers import Layout, allocated_tasks
from hpc.lock import run_lock
from hpc.notice import Notice
from hpc.restarts import keep_trying
from workflow.responses.correlation import one_thread
from workflow.responses.probes import Statistics
from workflow.rivals import learned_of
from workflow.runs import Notify, Run
from workflow.scores.closed_form import fit_gaussian
from workflow.scores.kgmm import KGMM
from workflow.stages.data import load_snapshots, save_tensors
from workflow.stages.train_slurm import begun, pass_on, train_as_job

LOGGER = logging.getLogger("workflow.train")


def train(run: Run, notify: Notify) -> None:
    """Complete `score/`: the Gaussian fit, and the learned score where asked for.

    With `cluster.train.kind=slurm` in a job of its own, unless this process is in a Slurm job that
    has a task for every rank.

    Raises:
        LaunchError: MPI ranks or the job could not be started as asked.
        Paused: a signal asked for it; run again to continue.
        MachineError: they failed; run again to continue from the last checkpoint.
    """
    if "neural" in run.trained and _elsewhere(run):
        train_as_job(run, notify)
    else:
        train_here(run, notify)


def check_launch(run: Run) -> None:
    """Refuse, before hours of other stages, a training that could not be started here.

    Raises:
        LaunchError: tells why and what to do.
        MachineError: its test was killed or stopped; the same command tries again.
    """
    ranks = run.experiment.score.train.ranks
    learned = learned_of(run).values()
    if all(one.is_current("train") and one.is_trained for one in learned):
        return
    if _elsewhere(run):
        if not slurm.available():
            raise LaunchError(
                "cluster.train.kind=slurm and no sbatch on this machine: run where Slurm is, or "
                "set it to local"
            )
    elif ranks > 1:
        machine, logs = run.experiment.cluster.train, run.folder / "logs"
        launcher = choose_launcher(machine.launcher, Layout(ranks), logs)
        try:
            try_mpi(launcher, folder=logs)
        except MachineError as error:
            message = f"training could not be started: {error}"
            raise type(error)(message, exit_code=error.exit_code) from error


def _elsewhere(run: Run) -> bool:
    """Whether training is a job of its own: not where every rank has a task already."""
    ranks = run.experiment.score.train.ranks
    return run.experiment.cluster.train.kind == "slurm" and allocated_tasks() < ranks


def train_here(run: Run, notify: Notify) -> None:
    """As `train`, with ranks started by this process."""
    run.renew("train", run.folder / "score")
    # A job's training and this one know nothing of each other otherwise.
    with run_lock(run.folder / "jobs" / "train"), Notice() as notice:
        _fit(run)
        if "neural" not in run.trained:
            notify("train", 1, 1)
            return
        _learn(run, notify, notice)


def _learn(run: Run, notify: Notify, notice: Notice) -> None:
    steps = run.experiment.score.train.steps
    before = run.trained_steps
    begun(run, notify)
    if not run.is_trained:
        launch = _launch(run, notify, notice)
        keep_trying(
            launch,
            lambda: run.trained_steps,
            restarts=run.experiment.cluster.train.max_restarts,
            notice=notice,
            tell=LOGGER.warning,
        )
        if not run.is_trained:
            if run.in_pilot:
                raise Paused(
                    "training was asked to stop in its pilot; its steps are saved, the same "
                    "command continues"
                )
            if notice.given and run.trained_steps == before:
                raise LaunchError(
                    "the job ends before its first step of training; "
                    "use a longer cluster.train.walltime or a shorter cluster.train.signal_lead"
                )
            raise Paused(
                f"training was asked to stop at step {run.trained_steps} of {steps}; it is saved, "
                "the same command continues"
            )
    notify("train", steps, steps)


def _launch(run: Run, notify: Notify, notice: Notice) -> Callable[[], None]:
    """What starts the ranks and waits for them."""
    config, machine = run.experiment.score.train, run.experiment.cluster.train
    layout = Layout(config.ranks, machine.ranks_per_node, machine.threads)
    logs = run.folder / "logs"
    launcher = choose_launcher(machine.launcher, layout, logs)

    return lambda: launch_ranks(
        "workflow.stages.train_rank",
        [str(run.folder.resolve())],
        layout=layout,
        log=logs / "train.log",
        launcher=launcher,
        echo=lambda line: pass_on(line, notify, config.steps),
        notice=notice,
    )


@one_thread()
def _fit(run: Run) -> None:
    """What is found without ranks: the Gaussian, statistics of the data, and clusters.

    Sums over several threads would have other last bits than over one.
    """
    missing = run.unfitted
    if not missing:
        return
    # As little memory as training may be given is not enough for statistics.
    memory = max(run.experiment.score.train.memory, FIT_BYTES)
    snapshots = load_snapshots(run, run.training, at_most=memory)
    homogeneous, fields = run.saved.homogeneous, len(run.saved.fields)
    if "whitening" in missing:
        whitening = fit_gaussian(snapshots, homogeneous=homogeneous, given=len(run.saved.given))
        save_tensors(run, "whitening", "score/whitening.pt", whitening.state())
    if "statistics" in missing:
        statistics = Statistics.fit(snapshots[:, :fields], homogeneous=homogeneous)
        save_tensors(run, "statistics", "score/statistics.pt", statistics.state())
    if "kgmm" in missing:
        chosen = snapshots[:: -(-len(snapshots) // KGMM_SNAPSHOTS)]
        settings = run.experiment.score.kgmm.model_dump()
        kgmm = KGMM.fit(chosen, **settings, seed=run.experiment.seed)
        save_tensors(run, "kgmm", "score/kgmm.pt", kgmm.state())


FIT_BYTES = 256 * 2**20
"""Of snapshots that are fitted to in any case."""

KGMM_SNAPSHOTS = 1_000_000
"""Most snapshots that are clustered, evenly chosen."""
