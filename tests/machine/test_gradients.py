"""Gradients of several ranks: the same training whatever the number of ranks, bit for bit again."""

import json

import pytest
import torch

from hpc.comm import SerialComm
from hpc.gradients import FlatGradients
from hpc.launch import launch_ranks
from hpc.launchers import Layout
from hpc.reduction import ordered_mean

RANK = """
import json, sys
import torch
from mpi4py import MPI
from hpc.comm import MpiComm
from hpc.gradients import FlatGradients
from workflow.config import ScoreConfig
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.training import Trainer

comm = MpiComm()

def buckets():
    # Rank r's gradient of layer l is a function of both; the smallest buckets hold one layer.
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(7, 7) for _ in range(4)])
    gradients = FlatGradients(comm, bucket=64)
    gradients.attach(list(model.parameters()))
    x = torch.randn(comm.size, 5, 7)
    found = []
    for together in (False, True, True):
        model.zero_grad(set_to_none=False)
        loss = model(x[comm.rank]).square().mean()
        if together:
            with gradients.overlapped(loss.detach()):
                loss.backward()
        else:
            loss.backward()
        mean = gradients.mean(loss.detach())
        found.append([mean[None], *[p.grad.flatten().clone() for p in model.parameters()]])
    assert len(gradients._buckets) == 8
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))
    single = []
    for part in x:
        model.zero_grad(set_to_none=True)
        loss = model(part).square().mean()
        loss.backward()
        grads = [p.grad.flatten() for p in model.parameters()]
        single.append(torch.cat([loss.detach()[None], *grads]))
    total = torch.stack(single).double().sum(0) / comm.size
    assert torch.equal(torch.cat(found[0]), total.float())

def wish():
    model = torch.nn.Linear(2, 2)
    gradients = FlatGradients(comm)
    gradients.attach(list(model.parameters()))
    heard = []
    for step in range(3):
        gradients.asked = step >= 1 and comm.rank == 1
        with gradients.overlapped(torch.zeros(())):
            model(torch.ones(1, 2)).sum().backward()
        gradients.mean(torch.zeros(()))
        heard.append(gradients.stopping)
    assert heard == [False, True, True], heard

def train():
    # Ranks below 4, 2 and 1 train by themselves; every rank says what it found.
    world, file = MPI.COMM_WORLD, sys.argv[1]
    few = {size: world.Split(world.rank < size) for size in (1, 2, 4)}
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    x = x.sign() + 0.3 * x  # two wells: far from Gaussian
    config = {"network": {"channels": 4, "residual_blocks": 1}}
    # A small sigma would multiply the rounding of scores by 1 / sigma.
    config |= {"process": {"sigma_min": 0.1, "sigma_max": 0.1}}
    config |= {"train": {"steps": 24, "global_batch": 16}}

    def losses(size, first, last, rate=0.01):
        found = []
        config["train"]["learning_rate"] = rate
        if world.rank < size:
            trainer = Trainer(
                x,
                SpectralGaussian.fit(x),
                config=ScoreConfig.model_validate(config),
                seed=3,
                gradients=FlatGradients(MpiComm(few[size])),
            )
            if first:
                trainer.restore(torch.load(file))
            found = [trainer.advance().loss for _ in range(first, last)]
            if world.rank == 0:
                torch.save(trainer.state(), file)
        world.Barrier()
        return found

    curves = {"1": losses(1, 0, 24), "2": losses(2, 0, 24), "4": losses(4, 0, 24)}
    curves["untrained"] = losses(1, 0, 24, rate=1e-9)
    curves["again"] = losses(2, 0, 24)
    curves["restarted"] = losses(2, 0, 8) + losses(4, 8, 16) + losses(1, 16, 24)
    if world.rank == 0:
        print("curves", json.dumps(curves), flush=True)

for name in sys.argv[2:]:
    {"buckets": buckets, "wish": wish, "train": train}[name]()
comm.barrier()
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    (folder / "gradient_program.py").write_text(RANK)

    def start(ranks, *what):
        lines = []
        launch_ranks(
            "gradient_program",
            [str(folder / "state.pt"), *what],
            layout=Layout(ranks),
            log=folder / "log",
            environment={"PYTHONPATH": str(folder)},
            echo=lines.append,
            timeout=300,
        )
        said = [json.loads(line[6:]) for line in lines if line.startswith("curves")]
        return said[0] if said else None

    return start


def test_the_mean_is_a_float64_sum_in_rank_order():
    """1 + 2^-30 - 1 = 2^-30 in float64, 0 in float32."""
    parts = torch.tensor([[1.0, 2.0], [2**-30, 4.0], [-1.0, 6.0], [0.0, 0.0]])
    assert torch.equal(ordered_mean(parts), torch.tensor([2**-32, 3.0]))


def test_overlapped_buckets_are_the_ordered_mean_of_all_gradients(start):
    """Bit for bit, with and without overlap, with arrays that do not divide by three ranks.

    A wish of one of them to stop reaches all in the same step.
    """
    start(3, "buckets", "wish")


def test_loss_curves_do_not_depend_on_the_number_of_ranks(start):
    """1, 2 and 4 ranks to 1e-5 of the loss; restarts from 2 to 4 to 1 ranks to 1e-6."""
    curves = start(4, "train")
    one = curves["1"]
    assert len(one) == 24 and abs(one[-1] / curves["untrained"][-1] - 1) > 1e-3
    assert curves["2"] == pytest.approx(one, rel=1e-5)
    assert curves["4"] == pytest.approx(one, rel=1e-5)
    assert curves["again"] == curves["2"]
    assert curves["restarted"] == pytest.approx(one, rel=1e-6)


def test_one_rank_leaves_gradients_and_loss_where_they_are():
    """On whatever device: a loss of a GPU next to numbers of the CPU would stop the training."""
    gradients = FlatGradients(SerialComm())
    weight = torch.nn.Parameter(torch.ones(3, device="meta"))
    gradients.attach([weight])
    loss = weight.sum()
    with gradients.overlapped(loss.detach()):
        loss.backward()
    gradients.asked = True
    assert gradients.mean(loss.detach()).device.type == "meta"
    assert weight.grad.device.type == "meta" and gradients.stopping
