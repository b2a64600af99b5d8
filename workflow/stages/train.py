"""Train: fit the whitening, then let MPI ranks learn the score; both can be killed at any time."""

from __future__ import annotations

import json

from hpc.launch import launch_ranks
from workflow.responses.correlation import one_thread
from workflow.responses.probes import Statistics
from workflow.runs import Notify, Run
from workflow.scores.closed_form import fit_gaussian
from workflow.scores.kgmm import KGMM
from workflow.stages.data import load_snapshots, save_tensors


def train(run: Run, notify: Notify) -> None:
    """Complete `score/`: the Gaussian fit, and the learned score where asked for.

    Raises:
        LaunchError: MPI ranks could not be started as asked.
        MachineError: they failed; run again to continue from the last checkpoint.
    """
    run.renew("train", run.folder / "score")
    _fit(run)
    ledger = run.ledger("train")
    steps = run.experiment.score.train.steps
    if "neural" not in run.trained:
        notify("train", 1, 1)
        return
    notify("train", 0, steps)
    if "neural" in ledger.done():
        notify("train", steps, steps)
        return

    def echo(line: str) -> None:
        if line.startswith("{"):
            notify("train", json.loads(line)["step"], steps)

    launch_ranks(
        "workflow.stages.train_rank",
        [str(run.folder.resolve())],
        ranks=run.experiment.score.train.ranks,
        log=run.folder / "logs" / "train.log",
        echo=echo,
    )
    notify("train", steps, steps)


@one_thread()
def _fit(run: Run) -> None:
    """What is found without ranks: the Gaussian, statistics of the data, and clusters.

    Sums over several threads would have other last bits than over one.
    """
    missing = {"whitening", "statistics", *(["kgmm"] if "kgmm" in run.trained else [])}
    missing -= run.ledger("train").done()
    if not missing:
        return
    memory = run.experiment.score.train.memory
    snapshots = load_snapshots(run, run.training, at_most=memory)
    homogeneous = run.saved.homogeneous
    if "whitening" in missing:
        whitening = fit_gaussian(snapshots, homogeneous=homogeneous)
        save_tensors(run, "whitening", "score/whitening.pt", whitening.state())
    if "statistics" in missing:
        statistics = Statistics.fit(snapshots, homogeneous=homogeneous)
        save_tensors(run, "statistics", "score/statistics.pt", statistics.state())
    if "kgmm" in missing:
        chosen = snapshots[:: -(-len(snapshots) // KGMM_SNAPSHOTS)]
        settings = run.experiment.score.kgmm.model_dump()
        kgmm = KGMM.fit(chosen, **settings, seed=run.experiment.seed)
        save_tensors(run, "kgmm", "score/kgmm.pt", kgmm.state())


KGMM_SNAPSHOTS = 1_000_000
"""Most snapshots that are clustered, evenly chosen."""
