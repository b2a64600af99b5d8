"""A whole run on a Slurm of three nodes, with kills, against the same run on this machine."""

import random
import subprocess
import sys
import threading
import time

import distributed
import psutil
import pytest
import yaml

from hpc import slurm
from hpc.jobs import read
from hpc.ledger import Ledger
from workflow.opening import open_run
from workflow.stages.pipeline import run_stages

SMALL = {
    "name": "small",
    "seed": 3,
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {
        "members": 8,
        "group": 2,
        "spinup": 4.0,
        "length": 32.0,
        "save_every": 1.0,
        "chunk": "2KiB",  # eight segments of four groups
    },
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian", "direct"], "max_lag": 4.0, "checks": False},
    "direct": {"pairs": 16},
}
STORES = ("ensemble", "perturbed", "scores", "correlations", "response")
STAGES = ("simulate", "train", "evaluate", "respond")
ON_SLURM = [
    f"cluster.{section}.{key}"
    for section in ("simulate", "analyse")
    for key in ("kind=slurm", "max_jobs=3", "memory=1GiB", "walltime=10m")
]


def chunks(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for store in STORES
        for path in (folder / f"{store}.zarr").rglob("*")
        if path.is_file()
    }


def quiet(*_):
    pass


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


@pytest.fixture(scope="session")
def undisturbed(small):
    """Made through a client of the caller's own."""
    run = open_run(str(small / "small.yaml"), small / "own")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        run_stages(run, STAGES, command="test", notify=quiet, client=client)
        assert client.status == "running"
    return chunks(run.folder)


def start(small):
    settings = [f"--set={one}" for one in ON_SLURM]
    source = str(small / "small.yaml")
    return [sys.executable, "-m", "workflow.cli", "run", source, "--runs", "slurm", *settings]


def alive(folder):
    ids = {entry.id for entry in read(folder)}
    return [job.id for job in slurm.jobs(ids) if job.state == "RUNNING"]


def computing(folder):
    """Processes that compute blocks of this run, on any node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "dask_worker" in line and str(folder) in line:
            found += process.children()
    return found


def disturb(folder, killed, stop):
    """Now a worker, now its whole job."""
    draw = random.Random(5)
    while not stop.wait(draw.uniform(1.0, 4.0)) and len(killed) < 4:
        if len(killed) % 2 and (victims := computing(folder)):
            draw.choice(victims).kill()
            killed.append("worker")
        elif jobs := alive(folder):
            slurm.cancel([draw.choice(jobs)], signal="KILL")
            killed.append("job")


def test_a_run_on_three_nodes_with_kills_is_bitwise_that_of_this_machine(
    slurm_cluster, small, undisturbed
):
    folder = small / "slurm" / "small"
    driver = subprocess.Popen(start(small), cwd=small, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(Ledger(folder / "ledger" / "simulate", folder).done()) < 4:
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    since = time.monotonic()
    while alive(folder):  # they leave by themselves
        assert time.monotonic() - since < 60
        time.sleep(0.2)
    killed, stop = [], threading.Event()
    killer = threading.Thread(target=disturb, args=(folder, killed, stop))
    killer.start()
    try:
        done = subprocess.run(start(small), cwd=small, capture_output=True, text=True, timeout=400)
    finally:
        stop.set()
        killer.join()
    assert done.returncode == 0, done.stderr
    assert len(killed) >= 2
    assert chunks(folder) == undisturbed
    assert alive(folder) == []
