"""One tiny experiment from end to end, again, with other workers, and killed over and over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
import xarray as xr
import yaml

from hpc.catalog import read_catalog
from hpc.comm import SerialComm, Watchdog
from workflow.config import EXPERIMENTS
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.stages import train_rank
from workflow.stages.plan import plan
from workflow.stages.train_rank import save_checkpoint

TINY = {
    "name": "tiny",
    "seed": 3,
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {
        "members": 8,
        "group": 4,
        "spinup": 4.0,
        "length": 32.0,
        "save_every": 1.0,
        "chunk": "8KiB",  # four segments
    },
    "score": {
        "network": {"channels": 8},
        "train": {"steps": 60, "save_every": 20, "ranks": 2, "global_batch": 16},
    },
    "response": {"max_lag": 4.0},
    "direct": {"pairs": 16},
}
STORES = ("ensemble", "perturbed", "scores", "correlations", "response")
DECKS = {
    True: ["rank", "rank", "launcher", "driver"],  # while there are ranks
    False: [*["worker"] * 5, "driver"],
}
"""What is killed, in random order."""
LAUNCHERS = ("mpiexec", "mpiexec.hydra", "mpirun", "prterun", "hydra_pmi_proxy")
ALONE = "cluster.simulate.workers=1", "cluster.analyse.workers=1"
PATIENCE = 400


def gfdt(*arguments, cwd):
    command = [sys.executable, "-m", "workflow.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def chunks(folder, *stores):
    """Bytes of every file, metadata included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for store in stores
        for path in (folder / f"{store}.zarr").rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture(scope="session")
def finished(work):
    """The run folder of the experiment, run once by the command."""
    done = gfdt("run", "tiny.yaml", "--set", ALONE[1], cwd=work)
    assert done.returncode == 0, done.stderr
    return work / "runs" / "tiny"


def test_a_run_leaves_all_its_products(finished):
    """They are what the command is for."""
    names = [f"{store}.zarr/zarr.json" for store in STORES]
    names += ["experiment.yaml", "provenance.json", "catalog.yaml", "score/whitening.pt"]
    names += ["score/log.jsonl", "score/step-00000060.pt", "score/neural.pt", "report/index.html"]
    names += ["report/summary.json", "checks.json"]
    assert [name for name in names if not (finished / name).is_file()] == []


def test_the_stores_open_with_nothing_but_xarray(finished):
    """A run can be read without this package."""
    ensemble = xr.open_zarr(finished / "ensemble.zarr")
    assert ensemble.u.dims == ("member", "time", "y", "x")
    assert ensemble.u.shape == (8, 32, 8, 8)
    assert bool(ensemble.u.notnull().all())
    response = xr.open_zarr(finished / "response.zarr")
    assert response.response.dims == (
        "estimator",
        "perturbation",
        "observable",
        "lag",
        "dy",
        "dx",
    )
    assert list(response.estimator.values) == ["neural", "gaussian", "exact", "direct"]
    assert list(response.lag.values) == [0, 1, 2, 3, 4]
    assert bool((response.ci_low <= response.ci_high).all())


def test_the_catalog_opens_with_intake_and_without(finished):
    """The same file serves the community's tool and a bare reader."""
    path = finished / "catalog.yaml"
    sources = read_catalog(path)
    assert sorted(sources) == ["ensemble", "perturbed", "response", "scores"]
    assert sources["ensemble"].u.shape == (8, 32, 8, 8)
    intake = pytest.importorskip("intake")
    assert sorted(intake.open_catalog(str(path))) == sorted(sources)


def test_status_of_a_finished_run_has_every_block_done(finished, work):
    """It is read from the files, not from what the driver remembers."""
    told = gfdt("status", "tiny", "--json", cwd=work)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    stages = found["stages"]
    assert sorted(stages) == [
        "checks",
        "direct",
        "evaluate",
        "respond",
        "simulate",
        "train",
    ]
    assert {name for name, one in stages.items() if one["done"] != one["blocks"]} == set()
    assert found["report"]


def test_a_second_run_changes_nothing(finished, work):
    """Finished blocks are never made again: same bytes, same files, same receipts."""
    before = chunks(finished, *STORES)
    stamps = {
        path: path.stat().st_mtime_ns
        for kind in ("ledger", *(f"{store}.zarr" for store in STORES))
        for path in (finished / kind).rglob("*")
        if path.is_file()
    }
    again = gfdt("run", "tiny.yaml", "--set", ALONE[1], "-q", cwd=work)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert chunks(finished, *STORES) == before
    assert [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp] == []
    receipts = [p for p in (finished / "ledger").rglob("*") if p.is_file()]
    assert [p for p in receipts if p not in stamps] == []


def test_no_member_is_both_trained_on_and_held_out(finished):
    """A score tested on its own data looks better than it is."""
    run = load_run(finished, Path("."))
    trained, held = set(run.training.members), set(run.held_out.members)
    assert trained and held
    assert trained & held == set()
    assert trained | held == set(range(8))
    assert xr.open_zarr(finished / "scores.zarr").attrs["test_members"] == sorted(held)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
def test_a_shipped_experiment_can_be_planned(name, tmp_path):
    """What is shipped is valid, and planning it writes nothing."""
    found = json.loads(json.dumps(plan(open_run(name, tmp_path))))
    assert found["name"] == name
    assert found["ensemble_bytes"] > 0
    assert found["simulate_core_hours"] >= 0
    assert list(found["training_core_hours"]) == list(found["training_steps"])
    assert all(hours >= 0 for hours in found["training_core_hours"].values())
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_printed_as_json(work):
    """Other programs read it."""
    told = gfdt("plan", "quickstart", "--json", cwd=work)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["name"] == "quickstart"


def test_the_number_of_workers_does_not_change_a_bit(finished, work):
    """Noise is a function of seed, member and step, so who computes it cannot matter."""
    workers = 1 if (os.cpu_count() or 1) > 1 else 2
    setting = f"cluster.simulate.workers={workers}"
    done = gfdt("simulate", "tiny.yaml", "--runs", "other", "--set", setting, "-q", cwd=work)
    assert done.returncode == 0, done.stderr
    assert chunks(work / "other" / "tiny", "ensemble") == chunks(finished, "ensemble")


def train_here(folder, monkeypatch):
    """Train in this process, whose signal handlers stay as they are."""
    monkeypatch.setattr(train_rank, "_listen", lambda _: None)
    with Watchdog(PATIENCE) as watchdog:
        train_rank.train_rank(load_run(folder, folder.parent), SerialComm(), watchdog)


class Killed(Exception):
    """Ends a training in the middle."""


def test_training_stops_early_at_its_best_and_resumes_alike(finished, tmp_path, monkeypatch):
    """Far too large steps: the held-out loss rises, and an interruption changes nothing."""

    def trained(name, *, saves=None):
        folder = tmp_path / name
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("step-*", "neural*"))
        content = yaml.safe_load((folder / "experiment.yaml").read_text())
        settings = {"ranks": 1, "patience": 2, "save_every": 5, "learning_rate": 0.3}
        content["score"]["train"] |= settings
        (folder / "experiment.yaml").write_text(yaml.safe_dump(content))
        if saves is not None:
            left = iter(range(saves))

            def save(*arguments):
                if next(left, None) is None:
                    raise Killed
                save_checkpoint(*arguments)

            monkeypatch.setattr(train_rank, "save_checkpoint", save)
            with pytest.raises(Killed):
                train_here(folder, monkeypatch)
            monkeypatch.undo()
        train_here(folder, monkeypatch)
        return folder / "score"

    whole = trained("whole")
    used = torch.load(whole / "neural.pt")
    lines = [json.loads(text) for text in (whole / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["test_loss"] for line in lines if "test_loss" in line}
    assert max(losses) < 60 and max(losses) == used["step"] + 10
    assert used["loss"] == pytest.approx(min(losses.values()), abs=1e-6)
    for saves in range(len(losses) - 1):  # the start is judged but not saved
        _assert_same(torch.load(trained(f"after-{saves}", saves=saves) / "neural.pt"), used)


def test_a_checkpoint_of_another_experiment_is_refused(finished, tmp_path, monkeypatch):
    """With its receipt it looks undamaged; its numbers would be of another training."""
    shutil.copytree(finished, tmp_path / "other")
    (tmp_path / "other" / "ledger" / "train" / "neural.json").unlink()
    path = tmp_path / "other" / "experiment.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(UserError, match="step-00000060.pt is a checkpoint of another experiment"):
        train_here(tmp_path / "other", monkeypatch)


def test_killing_any_process_at_any_time_does_not_change_a_bit(finished, work):
    """Blocks are absent or complete, and every number is a function of its name."""
    kills = _run_and_kill(work, random.Random(20240201), runs="killed")
    assert kills["driver"] and kills["worker"], kills
    assert (kills["rank"], kills["launcher"]) == (2, 1) and kills.total() >= 6, kills
    killed = work / "killed" / "tiny"
    assert chunks(killed, *STORES) == chunks(finished, *STORES)
    assert (killed / "checks.json").read_bytes() == (finished / "checks.json").read_bytes()
    last = "score/step-00000060.pt"
    _assert_same(torch.load(killed / last), torch.load(finished / last))
    assert _leftovers(killed) == []


def _run_and_kill(work, dice, *, runs):
    """Run until all is done, and kill whatever the dice say; how many of each kind were killed.

    A training that ends before all its kills were drawn is done again.
    """
    command = [sys.executable, "-m", "workflow.cli", "run", "tiny.yaml", "--runs", runs, "-q"]
    command += ["--set", ALONE[0], "--set", ALONE[1], "--catalogs", f"catalogs-{runs}"]
    decks = {training: dice.sample(deck, len(deck)) for training, deck in DECKS.items()}
    kills, code, said = Counter(), None, ""
    deadline = time.monotonic() + 2 * PATIENCE
    while code != 0 or decks[True]:
        assert time.monotonic() < deadline, (kills, said)
        if code == 0:
            for trained in ("score", "ledger/train"):
                shutil.rmtree(work / runs / "tiny" / trained)
        driver = subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True)
        try:
            while any(decks.values()) and not _ended(driver, dice.uniform(0.1, 1.5)):
                kills[_kill_one(driver.pid, decks, dice)] += 1
            said = driver.communicate(timeout=PATIENCE)[1]
        finally:
            driver.kill()
        code = driver.returncode
        # Ended by the kill itself, told to try again, or finished.
        assert code in (0, -9, 75), f"exit code {code}: {said}"
        # A driver that is killed says nothing itself; its interpreter's helpers may.
        assert code == -9 or "Traceback" not in said, said
        assert code == -9 or len(said.splitlines()) == (code == 75), said
    del kills[None]
    return kills


def _ended(driver, seconds):
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_one(pid, decks, dice):
    """Kill a process of the kind on top of the deck; the kind, None if there is none of it now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        driver = psutil.Process(pid)
        family = {"driver": [driver]}
        for process in driver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                family.setdefault(_kind(process.cmdline()), []).append(process)
        deck = decks["rank" in family]
        if deck and deck[-1] in family:
            dice.choice(family[deck[-1]]).kill()
            return deck.pop()
    return None


def _kind(words):
    if any(Path(word).name in LAUNCHERS for word in words[:1]):
        return "launcher"
    if "hpc.rank" in words:
        return "rank"
    return "worker" if "spawn_main" in " ".join(words) else "helper"


def _leftovers(folder):
    return [str(path) for path in folder.rglob("*.partial")]


def _assert_same(one, other, where="checkpoint"):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_same(a, b, f"{where}.{index}")
    else:
        assert one == other, where
