"""Faults of Slurm jobs and drivers, on the Slurm that SLURM_CONF leads to.

Every fault is `fault(work, seed) -> {tried, survived, figure, unit}`: it runs one small ensemble in
the folder `work` while things are killed, and compares its store with that of an undisturbed run on
this machine, bit by bit.
"""

import contextlib
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
from hpc.ledger import Ledger

SYSTEM = '''
"""Allen-Cahn fields whose steps take their time on any machine, and are counted."""

import os
import time

from workflow.dynamics.allen_cahn import AllenCahn

STEPS = open(os.environ["GFDT_STEPS"], "ab", buffering=0)  # appended to by all at once


class Paced(AllenCahn):
    pause: float = 0.02

    def step(self, state, normals):
        time.sleep(self.pause)
        STEPS.write(b".")
        return super().step(state, normals)
'''
"""Workers on few cores would slow each other down, and nothing scale."""
EXPERIMENT = {
    "name": "faults",
    "seed": 3,
    "system": {"kind": "paced:Paced", "grid": 8},
    "ensemble": {
        "members": 64,
        "group": 8,
        "spinup": 0.25,
        "length": 10.0,
        "save_every": 0.0625,
        "chunk": "8KiB",
    },
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian"], "max_lag": 4.0},
}
"""41 segments of each of 8 groups, each of most of a second."""
BLOCKS, SEGMENT = 41 * 8, 32
"""Blocks of a run, and steps of one of them."""
PATIENCE = 1800


def settings(**cluster):
    cluster = {"kind": "slurm", "max_jobs": 3, "memory": "1GiB", "walltime": "30m"} | cluster
    return [f"--set=cluster.simulate.{key}={value}" for key, value in cluster.items()]


def start(work, runs, *options, **environment):
    """The driver of an ensemble, as a user starts it."""
    source = work / "faults.yaml"
    if not source.exists():
        (work / "paced.py").write_text(SYSTEM)
        source.write_text(yaml.safe_dump(EXPERIMENT))
    runs.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "workflow.cli", "simulate", str(source), "--runs", str(runs)]
    return subprocess.Popen(
        [*command, *options],
        env=os.environ | {"GFDT_STEPS": str(runs / "steps")} | environment,
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


def receipts(folder):
    """What is known of every block that is done; it changes when one is made again."""
    ledger = Ledger(folder / "ledger" / "simulate", folder)
    return {block: ledger.load(block) for block in ledger.done()}


def blocks(folder):
    return len(Ledger(folder / "ledger" / "simulate", folder).done())


def made_again(folder):
    """Segments that were stepped in vain, in the parts that were done of them."""
    return (folder.parent / "steps").stat().st_size / SEGMENT - BLOCKS


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
            with contextlib.suppress(psutil.Error):  # on their way out
                found += [p for p in process.children() if "spawn_main" in " ".join(p.cmdline())]
    return found


def alive(folder):
    """Jobs of a run that have not ended."""
    ids = {entry.id for entry in read(folder)}
    return [j for j in slurm.jobs(ids) if j.state in ("PENDING", "RUNNING")]


def running(folder):
    return [job.id for job in alive(folder) if job.state == "RUNNING"]


def state(folder):
    return read_state(folder)


def kill_workers(work, seed, *, kills=20, pause=3.0):
    """F1: a worker is killed every few seconds, by SIGKILL or with its job."""
    draw, expected = random.Random(seed), reference(work)
    killed, survived, again = 0, 0, 0.0
    while killed < kills:
        runs, folder = fresh(work, "F1")
        driver, before = start(work, runs, *settings()), killed
        while driver.poll() is None:
            time.sleep(draw.uniform(0.5, 1.5) * pause)
            if killed < kills:
                killed += kill_one(folder, draw)
        if finish(driver) and files(folder) == expected:
            survived += killed - before
        again += made_again(folder)
    unit = "segments made again for each kill"
    return {"tried": killed, "survived": survived, "figure": round(again / killed, 2), "unit": unit}


def kill_one(folder, draw):
    """Kill a worker or its job; how many were there to be killed."""
    if not folder.is_dir():
        return 0
    victims = workers(folder)
    if not victims:
        return 0
    jobs = running(folder)
    if jobs and draw.random() < 0.5:
        slurm.cancel([draw.choice(jobs)], signal="KILL")
    else:
        draw.choice(victims).kill()
    return 1


def kill_drivers(work, seed, *, kills=20):
    """F2: the driver is killed before or after its first block; its workers must leave alone."""
    draw, expected = random.Random(seed), reference(work)
    runs, folder = fresh(work, "F2")
    kept, left, first, lost, good = {}, [], [], 0, True
    while len(left) < kills and good:
        driver, since, seen = start(work, runs, *settings()), time.monotonic(), len(kept)
        if len(left) % 2:
            time.sleep(draw.uniform(2.0, 20.0))
        else:
            wait_for(lambda d=driver, f=folder, n=seen: blocks(f) > n or d.poll() is not None)
            first.append(time.monotonic() - since)
            time.sleep(draw.uniform(0.0, 10.0))
        if driver.poll() is not None:  # all is done: begin again
            good = intact(folder, expected, kept) and made_again(folder) <= 3 * lost
            (runs, folder), kept, lost = fresh(work, "F2"), {}, 0
            continue
        driver.kill()
        driver.wait()
        lost += 1
        left.append(wait_for(lambda f=folder: not running(f)))
        kept = receipts(folder)
    good = good and finish(start(work, runs, *settings())) and intact(folder, expected, kept)
    good = good and made_again(folder) <= 3 * lost
    return {
        "tried": len(left),
        "survived": len(left) * good,
        "figure": round(max(first), 1),
        "unit": "s from the next start to a new block at most; the workers of the killed one "
        f"had left in {max(left):.1f} s",
    }


def intact(folder, expected, kept):
    """Whether the store is the undisturbed one, and nothing that was done was made again."""
    now = receipts(folder)
    return files(folder) == expected and all(now[block] == one for block, one in kept.items())


def short_walltime(work, seed):
    """F3: jobs of one minute in a run of several."""
    expected = reference(work)
    runs, folder = fresh(work, "F3")
    good = finish(start(work, runs, *settings(walltime="60s", max_jobs=1)))
    logs = "".join(p.read_text(errors="replace") for p in folder.glob("logs/*"))
    good = good and files(folder) == expected and "KilledWorker" not in logs
    jobs = len(read(folder))
    return {
        "tried": jobs,
        "survived": jobs * good,
        "figure": round(100 * made_again(folder) / BLOCKS, 1),
        "unit": "% of the work made again, in jobs of 1 minute",
    }


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
    wait_for(lambda: blocks(folder) > 0)
    alone = 20 / pace(folder, 20)
    scale(folder, 3)
    together = 60 / pace(folder, 60)
    fewer = scale(folder, 1)
    good = finish(driver) and files(folder) == expected
    return {
        "tried": 2,
        "survived": 2 * good,
        "figure": round(together / alone, 2),
        "unit": f"times as fast on 3 jobs as on 1; two were let go in {fewer:.1f} s",
    }


def scale(folder, jobs):
    """Seconds until a run has so many jobs."""
    since = time.monotonic()
    command = [sys.executable, "-m", "workflow.cli", "scale", str(folder), "--max-jobs"]
    subprocess.run([*command, str(jobs)], check=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: state(folder).running == jobs)
    return time.monotonic() - since


def pace(folder, count):
    """Seconds of so many blocks."""
    before = blocks(folder)
    return wait_for(lambda: blocks(folder) >= before + count, pause=0.02)


FAULTS = {
    "F1 workers and their jobs killed": kill_workers,
    "F2 driver killed": kill_drivers,
    "F3 walltime shorter than the run": short_walltime,
    "F4 sbatch fails": failing_sbatch,
    "F5 a job cancelled": lost_jobs,
    "F6 fewer and more jobs": scaling,
}
