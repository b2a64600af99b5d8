"""Faults of Slurm jobs and drivers, on the Slurm that SLURM_CONF leads to.

Every fault is `fault(work, seed) -> {tried, survived, figure, unit}`: it runs one small ensemble in
the folder `work` while things are killed, and compares its store with that of an undisturbed run on
this machine, bit by bit.
"""

import os
import random
import shutil
import subprocess
import sys
import time

import psutil
import yaml

from hpc import slurm
from hpc.control import read_state
from hpc.jobs import read
from workflow.runs import load_run

EXPERIMENT = {
    "name": "faults",
    "seed": 3,
    "system": {"kind": "allen_cahn", "grid": 8},
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian"], "max_lag": 4.0},
}
MANY = {"members": 64, "group": 8, "spinup": 4.0, "length": 80.0, "chunk": "8KiB"}
"""20 segments of each of 8 groups, each segment of a fraction of a second."""
PATIENCE = 1200


def settings(**cluster):
    cluster = {"kind": "slurm", "max_jobs": 3, "memory": "1GiB", "walltime": "30m"} | cluster
    return [f"--set=cluster.simulate.{key}={value}" for key, value in cluster.items()]


def start(work, runs, *options, **environment):
    """The driver of an ensemble, as a user starts it."""
    source = work / "faults.yaml"
    if not source.exists():
        source.write_text(yaml.safe_dump(EXPERIMENT | {"ensemble": MANY}))
    command = [sys.executable, "-m", "workflow.cli", "simulate", str(source), "--runs", str(runs)]
    return subprocess.Popen(
        [*command, *options],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=(work / "driver.log").open("ab"),
    )


def finish(driver):
    """Whether it ended well."""
    return driver.wait(timeout=PATIENCE) == 0


def files(folder):
    """Bytes of every file of the ensemble."""
    store = folder / "ensemble.zarr"
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def reference(work):
    """The same run, here and undisturbed; made once."""
    if not (work / "here" / "faults" / "done").exists():
        if not finish(start(work, work / "here")):
            raise RuntimeError((work / "driver.log").read_text()[-1000:])
        (work / "here" / "faults" / "done").touch()
    return files(work / "here" / "faults")


def fresh(work, name):
    runs = work / name
    shutil.rmtree(runs, ignore_errors=True)
    return runs, runs / "faults"


def blocks(folder):
    return len(load_run(folder, folder.parent).ledger("simulate").done())


def wait_for(condition, seconds=300.0, pause=0.2):
    """Seconds until something is so."""
    since = time.monotonic()
    while not condition():
        if time.monotonic() - since > seconds:
            raise TimeoutError(subprocess.getoutput("squeue --states=all"))
        time.sleep(pause)
    return time.monotonic() - since


def workers(folder):
    """Processes of the workers of a run: those that compute."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "dask_worker" in line and str(folder.resolve()) in line:
            found += [p for p in process.children() if "spawn_main" in " ".join(p.cmdline())]
    return found


def alive(folder):
    """Jobs of a run that have not ended."""
    ids = {entry.id for entry in read(folder)}
    return [j for j in slurm.jobs(ids) if j.state in ("PENDING", "RUNNING")]


def state(folder):
    return read_state(folder)


def kill_workers(work, seed, *, kills=20, pause=3.0):
    """F1: a worker is killed every few seconds, by SIGKILL or with its job."""
    draw, expected = random.Random(seed), reference(work)
    killed, survived, runs_made = 0, 0, 0
    while killed < kills:
        runs, folder = fresh(work, "F1")
        driver, before = start(work, runs, *settings()), killed
        while driver.poll() is None:
            time.sleep(draw.uniform(0.5, 1.5) * pause)
            killed += kill_one(folder, draw)
        runs_made += 1
        if finish(driver) and files(folder) == expected:
            survived += killed - before
    unit = "runs were needed for so many"
    return {"tried": killed, "survived": survived, "figure": runs_made, "unit": unit}


def kill_one(folder, draw):
    """Kill a worker or its job; how many were there to be killed."""
    if not folder.is_dir():
        return 0
    victims = workers(folder)
    if not victims:
        return 0
    jobs = [job.id for job in alive(folder) if job.state == "RUNNING"]
    if jobs and draw.random() < 0.5:
        slurm.cancel([draw.choice(jobs)], signal="KILL")
    else:
        draw.choice(victims).kill()
    return 1


def kill_drivers(work, seed, *, kills=20):
    """F2: the driver is killed at random moments; its workers must leave by themselves."""
    draw, expected = random.Random(seed), reference(work)
    runs, folder = fresh(work, "F2")
    killed, slowest = 0, 0.0
    while killed < kills:
        driver = start(work, runs, *settings())
        time.sleep(draw.uniform(2.0, 25.0))
        if driver.poll() is not None:  # all is done: begin again
            if files(folder) != expected:
                break
            shutil.rmtree(runs)
            continue
        driver.kill()
        driver.wait()
        killed += 1
        if folder.is_dir():
            left = wait_for(lambda: not [j for j in alive(folder) if j.state == "RUNNING"])
            slowest = max(slowest, left)
    good = finish(start(work, runs, *settings())) and files(folder) == expected
    return {
        "tried": killed,
        "survived": killed * good,
        "figure": round(slowest, 1),
        "unit": "s until the last orphaned worker had left",
    }


def short_walltime(work, seed):
    """F3: jobs of one minute in a run of several."""
    expected = reference(work)
    runs, folder = fresh(work, "F3")
    good = finish(start(work, runs, *settings(walltime="60s", max_jobs=1)))
    logs = "".join(p.read_text(errors="replace") for p in folder.glob("logs/*"))
    good = good and files(folder) == expected and "KilledWorker" not in logs
    jobs = len(read(folder))
    return {"tried": jobs, "survived": jobs * good, "figure": jobs, "unit": "jobs of 1 minute"}


FAILING = """#!{python}
import os, random, sys
path = {count!r}
count = int(open(path).read()) if os.path.exists(path) else 0
open(path, "w").write(str(count + 1))
if count < {first} or random.Random({seed} + count).random() < 0.3:
    open({failed!r}, "a").write("x")
    sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
os.execv({sbatch!r}, ["sbatch", *sys.argv[1:]])
"""


def failing_sbatch(work, seed, *, first=10):
    """F4: the first calls of sbatch fail, and then every third."""
    expected = reference(work)
    runs, folder = fresh(work, "F4")
    tools = work / "F4-bin"
    shutil.rmtree(tools, ignore_errors=True)
    tools.mkdir()
    count, failed, wrapper = tools / "count", tools / "failed", tools / "sbatch"
    wrapper.write_text(
        FAILING.format(
            python=sys.executable,
            count=str(count),
            failed=str(failed),
            first=first,
            seed=seed,
            sbatch=shutil.which("sbatch"),
        )
    )
    wrapper.chmod(0o755)
    driver = start(work, runs, *settings(), PATH=f"{tools}:{os.environ['PATH']}")
    wait_for(lambda: count.exists() and int(count.read_text() or 0) >= first)
    full = wait_for(lambda: (s := state(folder)) is not None and s.running == 3)
    good = finish(driver) and files(folder) == expected
    good = good and "AssertionError" not in (folder / "logs" / "dask.log").read_text()
    tried = len(failed.read_text())
    return {
        "tried": tried,
        "survived": tried * good,
        "figure": round(full, 1),
        "unit": "s from recovery to all workers",
    }


def lost_jobs(work, seed, *, times=5):
    """F5: jobs are cancelled from outside, one after the other."""
    draw, expected = random.Random(seed), reference(work)
    runs, folder = fresh(work, "F5")
    driver, seconds = start(work, runs, *settings()), []
    while len(seconds) < times:
        wait_for(lambda: (s := state(folder)) is not None and s.running == 3)
        if driver.poll() is not None:
            break
        known = {job.id for job in alive(folder)}
        lost = draw.choice(sorted(known))
        since = time.monotonic()
        slurm.cancel([lost])
        wait_for(lambda: {j.id for j in alive(folder)} - known or driver.poll() is not None)  # noqa: B023
        wait_for(lambda: (s := state(folder)) is None or s.running == 3)
        seconds.append(time.monotonic() - since)
    good = finish(driver) and files(folder) == expected
    return {
        "tried": len(seconds),
        "survived": len(seconds) * good,
        "figure": round(max(seconds), 1),
        "unit": "s until a new worker was at work, the slowest",
    }


def scaling(work, seed):
    """F6: from 1 job to 3 and back by `gfdt scale`, while it runs."""
    expected = reference(work)
    runs, folder = fresh(work, "F6")
    driver = start(work, runs, *settings(max_jobs=1))
    wait_for(lambda: (s := state(folder)) is not None and s.running == 1)
    seconds = []
    for jobs in (3, 1):
        command = [sys.executable, "-m", "workflow.cli", "scale", str(folder), "--max-jobs"]
        subprocess.run([*command, str(jobs)], check=True, stdout=subprocess.DEVNULL)
        seconds.append(wait_for(lambda: (s := state(folder)) is None or s.running == jobs))  # noqa: B023
        if state(folder) is None:
            raise RuntimeError("the run ended before its jobs could be counted; make it longer")
    good = finish(driver) and files(folder) == expected
    return {
        "tried": 2,
        "survived": 2 * good,
        "figure": round(seconds[1], 1),
        "unit": f"s to let two go after their block ({seconds[0]:.1f} s to start two)",
    }


FAULTS = {
    "F1 workers and their jobs killed": kill_workers,
    "F2 driver killed": kill_drivers,
    "F3 walltime shorter than the run": short_walltime,
    "F4 sbatch fails": failing_sbatch,
    "F5 a job cancelled": lost_jobs,
    "F6 fewer and more jobs": scaling,
}
