"""Samples of a learned density: the same however they are drawn, and judged against data."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
import yaml

from workflow.loading import load_run
from workflow.opening import open_run
from workflow.stages.health import verify
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.samples import MOST_MEMBERS, ask
from workflow.stages.sampling import make_samples

EXPERIMENT = {
    "name": "spots",
    "seed": 3,
    "system": {"kind": "mixture", "memory": 0.2},
    "ensemble": {"members": 24, "group": 24, "spinup": 0.0, "length": 60.0, "save_every": 1.0},
    "score": {
        "process": {"kind": "ve"},
        "network": {"channels": 16, "residual_blocks": 1},
        "train": {"ranks": 1, "steps": 60, "global_batch": 64, "save_every": 30},
        "split": {"test": 0.5},
    },
    "response": {"estimators": ["neural", "exact"], "max_lag": 2.0, "checks": False},
    "sample": {
        "members": 200,
        "nfe": 6,
        "compare": {"samplers": ["bridge", "multistep"], "nfe": [3, 8]},
    },
    "cluster": {"simulate": {"workers": 1}, "analyse": {"workers": 1}},
}
MANY = 2 * MOST_MEMBERS + 100
"""Samples in three blocks."""
SILENT = {"notify": lambda *_: None}
PATIENCE = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    (folder / "spots.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return folder


@pytest.fixture(scope="module")
def run(folder, client):
    """A finished run with its report."""
    run = open_run(str(folder / "spots.yaml"), folder / "runs")
    run_stages(run, STAGES, command="test", client=client, **SILENT)
    return run


def drawn(run):
    with xr.open_zarr(run.samples) as store:
        return store.load()


def test_samples_grow_and_stay_the_same(run):
    """GEN-1: more samples leave the first ones alone, bit by bit; so do lost blocks."""
    how = ask(run, "multistep", 4)
    assert make_samples(run, how, 700, **SILENT) == 700
    few = drawn(run)
    assert few.x1.dims == ("member",) and (few.sampler, few.nfe) == ("multistep", 4)
    assert make_samples(run, how, MANY, **SILENT) == MANY
    many = drawn(run)
    assert np.array_equal(few.x1, many.x1[:700]) and np.array_equal(few.x2, many.x2[:700])
    ledger = run.ledger("samples")
    ledger.drop(sorted(ledger.done())[1])
    assert make_samples(run, how, 5, **SILENT) == MANY  # what is there is kept
    assert drawn(run).identical(many)
    assert verify(run) == []


def test_samples_depend_on_seed_and_member_alone(run, folder):
    """GEN-1: two workers draw what one draws; and no two members are alike."""
    how = ask(run, "bridge_ancestral", 4)
    make_samples(run, how, MANY, **SILENT)
    one = drawn(run)
    two = open_run(str(folder / "spots.yaml"), folder / "runs", ["cluster.analyse.workers=2"])
    make_samples(two, ask(run, "bridge_ancestral", 3), 5, **SILENT)  # another way replaces them
    assert drawn(run).sizes["member"] == 5
    make_samples(two, how, MANY, **SILENT)
    assert drawn(run).identical(one)
    assert len(np.unique(one.x1)) == MANY


def test_every_distance_has_its_floor(run):
    """GEN-2: value, interval and floor of each sampler with each number of calls."""
    found = json.loads((run.folder / "report" / "summary.json").read_text())["samples"]
    settings = [(one["sampler"], one["nfe"]) for one in found["settings"]]
    assert settings == [("bridge", 3), ("bridge", 8), ("multistep", 3), ("multistep", 8)]
    for one in found["settings"]:
        assert set(one["distances"]) == {"sliced_wasserstein", "pixel_density", "energy"}
        for distance in one["distances"].values():
            assert distance["low"] <= distance["value"] <= distance["high"]
            assert distance["floor"] <= distance["floor_high"]
            assert distance["samples"] >= 150
    with xr.open_zarr(run.folder / "comparison.zarr") as store:
        assert store.x1.dims == ("setting", "member")
        assert [str(s) for s in store.setting.values][:2] == ["bridge 3", "bridge 8"]
        # Few steps of training, but no chaos: with more calls samplers agree.
        last, other = (store.x1.sel(setting=s).values for s in ("bridge 8", "multistep 8"))
        assert np.isfinite(last).all() and np.isfinite(other).all()


def test_the_report_shows_samples_beside_data(run):
    page = (run.folder / "report" / "index.html").read_text()
    for name in ("samples.png", "samples_statistics.png", "quality.png", "samplers.png"):
        assert (run.folder / "report" / name).is_file()
    assert "Data and samples of x1 and x2; sampler &#x27;multistep&#x27;, 6 network calls" in page


def test_the_command_draws_and_tells(run, in_process):
    done = in_process(
        "sample", run.folder, "-n", 30, "--nfe", 7, "--sampler", "exponential", "--eta", 1, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["members"], found["sampler"], found["nfe"]) == (30, "exponential", 7)
    assert drawn(run).eta == 1


def test_a_killed_command_goes_on_to_the_same_bits(run, folder, in_process):
    """SIGKILL of `gfdt sample` between its blocks; the same command, and one that nobody killed."""
    blocks = 8
    killed, other = folder / "killed" / "spots", folder / "undisturbed" / "spots"
    for copy in (killed, other):
        shutil.copytree(run.folder, copy)
    how = ("-n", blocks * MOST_MEMBERS, "--nfe", 12, "--sampler", "exponential", "--eta", 1)
    command = [sys.executable, "-m", "workflow.cli", "sample", killed, *how, "-q"]
    ledger = load_run(killed, folder).ledger("samples")
    before = ledger.done()
    started = subprocess.Popen(list(map(str, command)), start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not ledger.done() - before:
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(started.pid, signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
        kept = {name: ledger.load(name) for name in ledger.done() - before}
        assert 0 < len(kept) < blocks
        again = in_process("sample", killed, *how, "-q")
        assert again.returncode == 0, again.stderr
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert len(ledger.done()) == blocks
    assert {name: ledger.load(name) for name in kept} == kept  # none was made twice
    assert in_process("sample", other, *how, "-q").returncode == 0
    assert files(killed / "samples.zarr") == files(other / "samples.zarr")
    assert verify(load_run(killed, folder)) == []


def files(store):
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "options, words",
    [
        (["--nfe", 2, "--sampler", "heun"], "nfe=2: sampler 'heun' needs at least 3 network calls"),
        (["--sampler", "hun"], "sampler 'hun' is unknown; use euler, heun"),
        (["--sampler", "heun", "--eta", 1], "use 0, or sampler euler or exponential for eta > 0"),
        (["--grid", "cosine"], "grid=cosine does not go with sampler 'multistep'; use karras"),
        (["--stop", 0.5], "stop=0.5 does not go with sampler 'multistep'"),
        (["-n", 0], "-n 0: needs 1 sample or more"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(run, in_process, options, words):
    done = in_process("sample", run.folder, *options)
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr


@pytest.mark.parametrize(
    "setting, words",
    [
        ("score.process={kind: edm}", "was trained on noise up to 0.02, which hides nothing"),
        ("score.process={kind: vee}", "score.process.kind=vee is unknown; did you mean 've'?"),
        ("score.process={kind: vp, sigma_max: 3}", "unknown key 'score.process.sigma_max'; known"),
        ("sample.compare.samplers=[heun, bridg]", "sampler 'bridg' is unknown; use"),
        ("sample.compare.nfe=[1]", "nfe=1: sampler 'bridge' needs at least 3 network calls"),
        ("sample.members=4", "12 members x 60 times are held out for 4 samples"),
        ("score.estimator=gaussian", "set score.estimator: neural"),
    ],
)
def test_an_experiment_that_cannot_be_sampled_is_refused_before_work(
    folder, in_process, setting, words
):
    settings = ["--set", setting]
    if setting.startswith("score.estimator"):
        settings += ["--set", "response.estimators=[exact]"]
    done = in_process("run", folder / "spots.yaml", "--runs", folder / "other", *settings)
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr
    assert not (folder / "other").exists()


def test_nothing_learned_is_nothing_to_sample(folder, in_process, client):
    """The line tells what to run first."""
    run = open_run(str(folder / "spots.yaml"), folder / "young")
    run_stages(run, ("simulate",), command="test", client=client, **SILENT)
    done = in_process("sample", run.folder)
    assert done.returncode == 75 and "run first: gfdt train spots" in done.stderr
