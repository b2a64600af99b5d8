"""Faults of training, tried on this machine and its Slurm; figures for `reliability.py`.

Every fault ends with the checkpoint and the log of an undisturbed training, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

EXPERIMENT = {
    "name": "faulty",
    "seed": 3,
    "system": {"kind": "ornstein_uhlenbeck", "grid": 8},
    "ensemble": {
        "members": 8,
        "group": 8,
        "spinup": 0.0,
        "length": 32.0,
        "save_every": 1.0,
        "chunk": "64KiB",
    },
    "score": {
        # A small sigma would multiply the rounding of scores by 1 / sigma.
        "process": {"sigma_min": 0.1, "sigma_max": 0.1},
        "network": {"channels": 8},
        "train": {"save_every": 25, "ranks": 2, "global_batch": 16},
    },
    "response": {"max_lag": 4.0, "estimators": ["neural", "gaussian"]},
    "cluster": {"simulate": {"workers": 1}, "train": {"max_restarts": 100}},
}
PATIENCE = 1200
ALLOCATION = ["salloc", "--quiet", "--ntasks=2", "--nodes=2", "--mem=2G", "--time=10"]
"""Before a command: its ranks are started by srun on two nodes."""


@dataclass(frozen=True)
class Bench:
    """A folder with a simulated run, and the same run trained without a fault."""

    folder: Path
    steps: int

    @classmethod
    def prepared(cls, folder: Path, *, steps: int = 300) -> Bench:
        """Simulate, and train undisturbed for so many steps."""
        bench = cls(folder, steps)
        experiment = copy.deepcopy(EXPERIMENT)
        experiment["score"]["train"]["steps"] = steps
        (folder / "faulty.yaml").write_text(yaml.safe_dump(experiment))
        bench.gfdt("simulate", "source")
        bench.gfdt("train", bench.copy("reference").parent.name)
        return bench

    def copy(self, name: str) -> Path:
        """A fresh copy of the simulated run; its folder."""
        shutil.copytree(self.folder / "source", self.folder / name)
        return self.folder / name / "faulty"

    def command(self, verb: str, runs: str, *settings: str) -> list[str]:
        """Command line of one stage."""
        line = [sys.executable, "-m", "workflow.cli", verb, "faulty.yaml", "--runs", runs]
        return [*line, *(word for setting in settings for word in ("--set", setting))]

    def gfdt(self, verb: str, runs: str, *settings: str, before: tuple[str, ...] = ()) -> str:
        """Run a stage to its end; what it said. Raises CalledProcessError where it fails."""
        line = [*before, *self.command(verb, runs, *settings)]
        done = subprocess.run(
            line, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, line, done.stdout, done.stderr)
        return done.stderr

    def start(
        self, verb: str, runs: str, *settings: str, before: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[str]:
        """Start a stage."""
        return subprocess.Popen(
            [*before, *self.command(verb, runs, *settings)],
            cwd=self.folder,
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def same(self, run: Path) -> bool:
        """Whether a run has the log and the last checkpoint of the undisturbed one, bit for bit."""
        reference = self.folder / "reference" / "faulty"
        return _log(run) == _log(reference) and _equal(self.last(run), self.last(reference))

    def last(self, run: Path) -> dict[str, Any]:
        """The last checkpoint of a run."""
        return torch.load(run / "score" / f"step-{self.steps:08d}.pt", weights_only=True)


def _log(run: Path) -> list[dict[str, Any]]:
    """Lines of the training log, without what the clock says."""
    lines = map(json.loads, (run / "score" / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "samples_per_s"} for line in lines]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def steps(run: Path) -> list[int]:
    """Steps told in the training log so far, over all starts."""
    try:
        text = (run / "logs" / "train.log").read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [int(step) for step in re.findall(r'^\{"step": (\d+)', text, re.MULTILINE)]


def saved(run: Path) -> int:
    """Step of the last checkpoint; 0 without one."""
    return max((int(p.stem[5:]) for p in (run / "score").glob("step-*.pt")), default=0)


def ranks(run: Path) -> list[psutil.Process]:
    """Processes of the ranks that train a run, on whatever node of this machine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words[:1] == [sys.executable] and "hpc.rank" in words and str(run) in words:
                found.append(process)
    return found


def wait_for(what, patience: float = PATIENCE):
    """The first value of `what()` that is true."""
    deadline = time.monotonic() + patience
    while not (value := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:g} s for {what}")
        time.sleep(0.02)
    return value


SITE = """
import os, sys, threading, time
fault = os.environ.get("GFDT_FAULT")
if fault and "workflow.stages.train_rank" in sys.orig_argv:
    def wait():
        while True:
            time.sleep(0.02)
            try:
                os.rename(fault, fault + ".taken")  # by one rank only
            except OSError:
                continue
            how = open(fault + ".taken").read()
            if how == "_exit(0)":
                os._exit(0)
            import ctypes
            main = ctypes.c_ulong(threading.main_thread().ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(ArithmeticError))
    threading.Thread(target=wait, daemon=True).start()
"""
"""A `sitecustomize` through which one rank raises an exception, or leaves, when a file appears."""


def hurt(bench: Bench, run: Path, how: str, dice: random.Random) -> tuple[float, float]:
    """Hurt one rank of a running training; seconds until all ranks were gone, and until new steps.

    The second is not a number where nothing is started again.
    """
    before = saved(run)  # losses without progress end a training
    wait_for(lambda: saved(run) > before and len(ranks(run)) == 2)
    time.sleep(dice.uniform(0.0, 0.5))
    victims = ranks(run)
    began = time.monotonic()
    if how in ("exception", "_exit(0)"):
        atomic = bench.folder / "fault.new"
        atomic.write_text(how)
        atomic.rename(bench.folder / "fault")
    else:
        dice.choice(victims).send_signal(getattr(signal, how))
    psutil.wait_procs(victims, timeout=PATIENCE)
    ended = time.monotonic() - began
    if how == "SIGTERM":
        return ended, float("nan")
    seen = len(steps(run))
    wait_for(lambda: len(steps(run)) > seen)
    return ended, time.monotonic() - began


def lost_ranks(
    bench: Bench,
    name: str,
    faults: list[str],
    *settings: str,
    before: tuple[str, ...] = (),
    seed: int = 1,
) -> dict[str, list[float]]:
    """F10: hurt ranks at random steps; seconds to the end and to new steps. Asserts same bits."""
    run, dice = bench.copy(name), random.Random(seed)
    site = bench.folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, "GFDT_FAULT": str(bench.folder / "fault")}
    ends: list[float] = []
    restarts: list[float] = []
    left = list(faults)
    while True:
        driver = bench.start("train", name, *settings, before=before, **variables)
        try:
            while left:
                how = left.pop(0)
                ended, again = hurt(bench, run, how, dice)
                ends.append(ended)
                if how == "SIGTERM":
                    break
                restarts.append(again)
            said = driver.communicate(timeout=PATIENCE)[1]
        finally:
            driver.kill()
        if driver.returncode == 0:
            break
        assert driver.returncode == 75 and "it is saved" in said, (driver.returncode, said)
    assert bench.same(run), f"{name}: other bits"
    return {"ends": ends, "restarts": restarts}


def other_ranks(bench: Bench, name: str = "F13") -> float:
    """F13: 2, then 4, then 1 ranks; the largest difference of a parameter from 2 all along."""
    run = bench.copy(name)
    for count in (2, 4):
        seen = len(steps(run))
        driver = bench.start("train", name, f"score.train.ranks={count}")
        wait_for(lambda before=seen: len(steps(run)) > before + 4)
        driver.send_signal(signal.SIGUSR1)
        said = driver.communicate(timeout=PATIENCE)[1]
        assert driver.returncode == 75 and "it is saved" in said, (driver.returncode, said)
    bench.gfdt("train", name, "score.train.ranks=1")
    one = bench.last(run)["model"]
    other = bench.last(bench.folder / "reference" / "faulty")["model"]
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def clean_exits(bench: Bench, tries: int) -> int:
    """F17: trainings of two ranks from begin to end; how many ended with a sign of an abort."""
    bad = 0
    for number in range(tries):
        run = bench.copy(f"F17-{number}")
        try:
            bench.gfdt("train", run.parent.name, "score.train.steps=3")
            text = (run / "logs" / "train.log").read_text()
            bad += bool(re.search(r"(?i)abort|terminate called|signal|traceback", text))
        except subprocess.CalledProcessError:
            bad += 1
        shutil.rmtree(run.parent)
    return bad


@dataclass(frozen=True)
class Preempted:
    """F12: what was seen of a training job whose nodes were given to another."""

    saved: float
    resumed: float
    requeues: int
    same: bool


def preempted(bench: Bench, name: str = "F12") -> Preempted:
    """F12: a job of a better partition takes the nodes from the training job, which goes on later.

    Seconds from the submission of the other job to the checkpoint, and from then to new steps.
    """
    run = bench.copy(name)
    settings = ["cluster.train.kind=slurm", "cluster.train.queue=low"]
    driver = bench.start("train", name, *settings)
    try:
        wait_for(lambda: len(steps(run)) > 3)
        ask = ["sbatch", "--parsable", "--partition=high", "--nodes=3", "--exclusive", "--time=1"]
        ask += ["--output=/dev/null", "--wrap=sleep 2"]
        other = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        log = run / "logs" / "train.log"
        told = wait_for(lambda: re.search(r"asked to stop: saved at step (\d+)", log.read_text()))
        saved = (run / "score" / f"step-{int(told[1]):08d}.pt").stat().st_mtime
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", _train_job(run)],
            capture_output=True,
            text=True,
        ).stdout
        signalled = re.search(r"PreemptTime=(\S+)", shown)
        began = time.time()
        seen = len(steps(run))
        wait_for(lambda: len(steps(run)) > seen)
        resumed = time.time() - began
        said = driver.communicate(timeout=PATIENCE)[1]
        assert driver.returncode == 0, said
    finally:
        driver.kill()
    when = time.mktime(time.strptime(signalled[1], "%Y-%m-%dT%H:%M:%S")) if signalled else began
    count = (run / "logs" / f"train-{_train_job(run)}.log").read_text().count(": requeued, ")
    assert other
    return Preempted(saved - when, resumed, count, bench.same(run))


def _train_job(run: Path) -> str:
    lines = (run / "jobs.jsonl").read_text().split("\n")
    found = [json.loads(line)["id"] for line in lines if '"train"' in line]
    assert len(found) == 1, "one job, whatever happens to it"
    return found[0]
