"""Site files: what they fill, what goes before them, and mistakes in them."""

from __future__ import annotations

import dask
import pytest
import yaml

from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.sites import SLURM, load_site, overruled
from workflow.stages.frames import lay_down
from workflow.stages.jobs import plan_jobs

SMALL = {
    "name": "small",
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {"members": 4, "group": 4, "spinup": 0.5, "length": 16.0, "save_every": 0.5},
    "response": {"estimators": ["neural", "gaussian"], "max_lag": 2.0},
    "cluster": {"train": {"walltime": "00:10:00", "queue": None}},
}
SITE = {
    "queue": "batch",
    "walltime": "02:00:00",
    "prologue": ["module load mpi"],
    "train": {"kind": "slurm", "queue": "wide", "memory": "4GiB"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs_of(run):
    return {job.title: job for job in plan_jobs(run)}


def test_settings_go_before_the_experiment_and_that_before_the_site(folder):
    site = load_site("site.yaml")
    run = open_run("small.yaml", folder / "runs", ["cluster.driver.queue=fast"], site)
    jobs = jobs_of(run)
    assert jobs["train"].spec.queue == "wide"
    assert jobs["train"].spec.walltime == 600
    assert jobs["train"].spec.memory == 2 * 2**30  # of each of two ranks
    assert jobs["train"].spec.prologue == ("module load mpi",)
    assert jobs["simulate"].spec.queue == "batch"
    assert jobs["simulate"].spec.walltime == 7200
    assert run.experiment.cluster.driver.queue == "fast"
    assert overruled(run.experiment, site) == [
        "cluster.train.walltime=600.0 of the experiment goes before 7200.0 of the site",
        "cluster.driver.queue=fast of the experiment goes before batch of the site",
    ]


def test_a_run_that_is_named_takes_the_site_where_nothing_was_said(folder):
    """Its own file holds every default, which nobody said."""
    lay_down(open_run("small.yaml", folder / "runs"), command="test")
    run = open_run("small", folder / "runs", [], load_site("site.yaml"))
    assert run.experiment.cluster.train.kind == "slurm"
    assert run.experiment.cluster.train.walltime == 600


def test_the_dask_configuration_of_the_user_comes_last(folder):
    said = {"queue": "mine", "account": "me", "job-extra-directives": ["--qos=long"]}
    with dask.config.set({"jobqueue": {"slurm": said}}):
        plain = jobs_of(open_run("small.yaml", folder / "runs"))["simulate"]
        sited = jobs_of(open_run("small.yaml", folder / "runs", [], load_site("site.yaml")))
    assert (plain.spec.queue, plain.spec.account) == ("mine", "me")
    assert "#SBATCH --qos=long\n" in plain.script
    assert (sited["simulate"].spec.queue, sited["simulate"].spec.account) == ("batch", "me")


def test_the_shipped_example_is_a_site(folder):
    run = open_run("small.yaml", folder / "runs", [], load_site("example"))
    assert {pool.kind for pool in (run.experiment.cluster.simulate,)} == {"slurm"}
    assert sorted(jobs_of(run)) == ["analyse", "simulate", "train"]


def test_the_shipped_files_belong_to_the_package():
    """The folder of the package is the one at the top of the repository."""
    names = {path.name for path in SLURM.rglob("*") if path.is_file()}
    assert {"driver.sbatch", "train.sbatch", "example.yaml", "jobqueue.example.yaml"} <= names
    example = yaml.safe_load((SLURM / "jobqueue.example.yaml").read_text())
    assert example["jobqueue"]["slurm"]["processes"] == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("queeu: batch", "unknown key 'queeu'; did you mean 'queue'"),
        ("train: {ranks: 4}", "unknown key 'train.ranks'"),
        ("memory: big", "'big' is not a size"),
        ("queue: 'a b'", "queue=a b"),
        ("a: [", "is not YAML"),
        ("words", "experiment"),
    ],
)
def test_a_mistake_in_a_site_file_is_told_in_one_line(folder, content, told):
    (folder / "site.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        load_site("site.yaml")
    assert told in str(error.value) and "site.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_site_suggests_the_nearest():
    with pytest.raises(UserError, match="no site 'exmple'; did you mean 'example'"):
        load_site("exmple")


def test_a_computing_job_asks_for_what_its_workers_need(folder):
    settings = ["cluster.simulate.workers=3", "cluster.simulate.memory=6GiB"]
    job = jobs_of(open_run("small.yaml", folder / "runs", settings))["simulate"]
    assert (job.spec.cores, job.spec.memory, job.spec.nodes) == (3, 6 * 2**30, 1)
    settings = ["cluster.simulate.kind=allocation", "cluster.simulate.max_jobs=4"]
    job = jobs_of(open_run("small.yaml", folder / "runs", settings))["simulate"]
    assert (job.spec.tasks, job.spec.nodes) == (4, None)
    settings = ["cluster.simulate.kind=slurm", "cluster.simulate.cores=8"]
    job = jobs_of(open_run("small.yaml", folder / "runs", settings))["simulate"]
    assert (job.spec.tasks, job.spec.cores) == (1, 1)
