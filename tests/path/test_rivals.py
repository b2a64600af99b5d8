"""A score learned from jumps and its rivals, on a variable that jumps: the whole path."""

from __future__ import annotations

import json

import pytest
import torch
import xarray as xr
import yaml

from hpc import jobs, slurm
from hpc.ledger import Receipt
from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.rivals import rivals_of
from workflow.stages.data import load_estimator
from workflow.stages.frames import lay_down
from workflow.stages.health import verify
from workflow.stages.jobs import plan_jobs
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.plan import plan
from workflow.stages.planned_job import followed_train_job
from workflow.stages.status import status
from workflow.stages.submit import own_jobs
from workflow.status_view import lines

torch.set_num_threads(1)

EXPERIMENT = {
    "name": "jumps",
    "seed": 3,
    "system": {"kind": "scalar", "noise": {"jumps": {"rate": 0.5, "scale": 1.5}}},
    "ensemble": {
        "members": 64,
        "group": 64,
        "spinup": 10.0,
        "length": 40.0,
        "save_every": 0.5,
        "chunk": "64KiB",
    },
    "score": {
        "process": {"kind": "jump", "sigma_max": 10.0},
        "rivals": {"ve": {"kind": "ve", "sigma_max": 10.0}, "edm": {"kind": "edm"}},
        "network": {"channels": 16, "residual_blocks": 1},
        "train": {"ranks": 1, "steps": 150, "global_batch": 64, "save_every": 50},
        "split": {"test": 0.5},
    },
    "sample": {"members": 256, "nfe": 9},
    "response": {
        "estimators": ["neural", "ve", "edm", "gaussian", "exact"],
        "max_lag": 4.0,
        "checks": False,
    },
}


def opened(folder, *settings):
    path = folder / "jumps.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    return open_run(str(path), folder, settings)


def carried_out(run, client):
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)


@pytest.fixture(scope="module")
def run(tmp_path_factory, client):
    """A finished run."""
    run = opened(tmp_path_factory.mktemp("runs"))
    carried_out(run, client)
    return run


def test_every_rival_is_an_estimator_with_errors_and_tails_of_its_own(run):
    """Responses, score errors, tails where its noise is wide enough to sample; files verify."""
    response = xr.open_zarr(run.response)
    assert response.estimator.values.tolist() == EXPERIMENT["response"]["estimators"]
    assert bool(response.response.isel(perturbation=0, observable=0).notnull().all())
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    assert set(summary["score_error"]) == set(EXPERIMENT["response"]["estimators"])
    assert set(summary["tails"]) == {"neural", "ve"}
    for found in summary["tails"].values():
        assert found["tail_error"]["floor"] > 0 and found["tail_error"]["samples"] == 256
    assert (run.folder / "report" / "tails.png").stat().st_size > 10_000
    assert xr.open_zarr(run.folder / "rivals" / "ve" / "samples.zarr").x.shape == (256,)
    assert not (run.folder / "rivals" / "edm" / "samples.zarr").exists()
    assert verify(run) == []


def test_rivals_learn_from_the_ensemble_of_the_run_and_not_the_same(run):
    """One ensemble, one Gaussian fit, three different scores."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    scores = [load_estimator(run, name)(x) for name in ("neural", "ve", "edm")]
    assert not torch.allclose(scores[0], scores[1]) and not torch.allclose(scores[1], scores[2])
    for rival in rivals_of(run).values():
        assert rival.ensemble == run.ensemble
        assert torch.equal(load_estimator(rival, "gaussian")(x), load_estimator(run, "gaussian")(x))


def test_changed_and_damaged_rivals_are_made_again_and_nothing_else(run, client):
    """The run's own score and an unchanged rival keep every bit; files verify."""
    before = {p: p.read_bytes() for p in run.folder.rglob("neural.pt")}
    assert len(before) == 3
    whole = run.folder / "rivals" / "ve" / "score" / "neural.pt"
    whole.write_bytes(before[whole][:-7] + b"damaged")
    assert [problem.block for problem in verify(run, repair=True)] == ["neural"]
    changed = opened(run.folder.parent, "score.rivals.edm.sigma_min=0.015")
    carried_out(changed, client)
    after = {p: p.read_bytes() for p in run.folder.rglob("neural.pt")}
    assert {p.parent.parent.name for p in before if before[p] != after[p]} == {"edm"}
    assert verify(changed) == []


def test_the_plan_counts_rivals(tmp_path, in_process):
    """Steps of every score, and the samples of those that are sampled; nothing is written."""
    found = plan(opened(tmp_path))
    assert found["training_steps"] == {"neural": 150, "ve": 150, "edm": 150}
    assert found["samples_bytes"] == 2 * 256 * 4
    told = in_process("plan", tmp_path / "jumps.yaml", "--runs", tmp_path)
    assert "training steps                   {'neural': 150, 'edm': 150, 've': 150}" in told.stdout
    assert not (tmp_path / "jumps").exists()


def test_the_status_follows_rivals(run, tmp_path):
    """Before, while one learns, and after: progress, pace, losses, cost."""
    young = opened(tmp_path)
    lay_down(young, command="test")
    found = status(young)
    stages = ["simulate", "train", "train edm", "train ve", "evaluate", "respond"]
    assert list(found["stages"]) == stages
    assert found["stages"]["train edm"] == {"done": 0, "blocks": 150}
    rival = rivals_of(young)["edm"]
    for number in range(found["stages"]["simulate"]["blocks"]):
        young.ledger("simulate").record(Receipt(f"ensemble-g0000-{number:05d}", {}))
    for block in ("neural", "step-00000150"):
        young.ledger("train").record(Receipt(block, {}))
    steps = [{"step": s, "loss": 1 / s, "seconds": s / 5} for s in (10, 20, 60)]
    (rival.folder / "logs").mkdir(parents=True)
    (rival.folder / "logs" / "train.log").write_text("".join(f"{json.dumps(s)}\n" for s in steps))
    rival.ledger("train").record(Receipt("step-00000050", {}))
    found = status(young)
    assert found["stages"]["train edm"]["done"] == 50
    assert found["rate"] == {"stage": "train edm", "per_second": 5.0, "seconds_left": 18}
    assert found["core_hours"]["train edm"] == pytest.approx(12 / 3600, abs=1e-4)
    told = "\n".join(lines(found))
    assert "train edm        50 of 150" in told and "training edm step 60, loss 0.01667" in told
    done = status(run)
    assert done["finished"] and {"train ve", "train edm", "samples ve"} <= set(done["core_hours"])
    assert done["rivals"]["edm"]["step"] == 150
    assert all(one["done"] == one["blocks"] for one in done["stages"].values())


def test_a_run_is_not_finished_before_its_rivals_are(run):
    """Nor is its training left out of a chain of jobs."""
    ledger = rivals_of(run)["ve"].ledger("train")
    receipt = ledger.load("neural")
    assert [job.title for job in plan_jobs(run)] == ["analyse"]
    ledger.drop("neural")
    try:
        steps = rivals_of(run)["ve"].trained_steps
        assert status(run)["stages"]["train ve"] == {"done": steps, "blocks": 150}
        assert [job.title for job in plan_jobs(run)] == ["train", "analyse"]
    finally:
        ledger.record(receipt)


def test_cancelling_takes_the_jobs_of_rivals_too(slurm_cluster, tmp_path, in_process):
    """The training job of a rival is seen by status, refuses a second chain, and is cancelled."""
    run = opened(tmp_path, "cluster.train.kind=slurm", "cluster.train.walltime=10m")
    lay_down(run, command="test")
    rival = rivals_of(run)["ve"]
    lay_down(rival, command="test")
    planned = followed_train_job(rival)
    script = rival.folder / "train.sbatch"
    script.write_text(planned.script)
    planned.spec.log.parent.mkdir(parents=True)
    job = slurm.submit(script, ["--begin=now+1hour"])
    jobs.record(rival.folder, job, planned.role)
    (seen,) = status(run)["jobs"]
    assert (seen["id"], seen["role"], seen["state"]) == (job, "train ve", "PENDING")
    assert f"job {job}" in (text := "\n".join(lines(status(run)))) and "train ve PENDING" in text
    again = in_process("submit", tmp_path / "jumps.yaml", "--runs", tmp_path)
    assert again.returncode == 75 and f"{job} (train ve, PENDING)" in again.stderr
    told = in_process("cancel", run.folder, "--json")
    assert json.loads(told.stdout)["cancelled"] == [
        {"id": job, "role": "train ve", "state": "PENDING"}
    ]
    assert own_jobs(run) == []


@pytest.mark.parametrize(
    "settings, needed",
    [
        (["score.rivals.neural={kind: ve}"], "rivals.neural is the name of another estimator"),
        (["score.rivals.vee={kind: vee}"], "rivals.vee.kind=vee is unknown; did you mean 've'"),
        (["score.rivals.edm.sigma_mn=1"], "unknown key 'score.rivals.edm.sigma_mn'; did you mean"),
        (["score.rivals.edm.sigma_min=-1"], "score.rivals.edm.sigma_min=-1"),
        (["response.estimators=[neural, edn]"], "did you mean 'edm'"),
        (["score.process.gaussian=0"], "Gaussian part"),
        (["score.process={kind: jump, rate: 2, gaussian: 0}"], "jumps alone can be learned"),
        (
            ["score.rivals.ve={kind: jump, gaussian: 0}"],
            "score.rivals.ve: score.process.kind=jump has no score",
        ),
        (["system.noise.jumps.amplitude=cauchy", "response.estimators=[neural]"], "no variance"),
        (["sample.sampler=heun"], "use jump_flow or jump_reverse"),
        (["sample.nfe=2"], "needs at least 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, settings, needed):
    with pytest.raises(UserError) as caught:
        opened(tmp_path, *settings)
    assert needed in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "jumps").exists()


def test_jumps_alone_may_be_sampled_where_no_response_wants_their_score(tmp_path, client):
    """`neural` left out of the responses."""
    run = opened(
        tmp_path,
        "score.process.gaussian=0",
        "response.estimators=[exact]",
        "score.rivals={}",
        "sample.sampler=jump_reverse",
        "sample.eta=1.0",
    )
    run_stages(run, STAGES[:3], command="test", notify=lambda *_: None, client=client)
    drawn = xr.open_zarr(run.samples).x
    assert drawn.size == 256 and bool(drawn.notnull().all()) and float(drawn.std()) > 0
