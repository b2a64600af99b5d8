"""One thread, and passive waiting, before torch is imported: the suite shares its cores.

And a private Slurm for the tests that need one.
"""

import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

DEV = Path(__file__).parents[1] / "slurm" / "dev"
NODES = 3
SLOWEST = (
    *("test_run.py", "test_bad_input.py", "test_train_slurm.py", "test_submit.py"),
    *("test_docs.py", "test_slurm_pool.py", "test_slurm_run.py", "test_samples.py"),
)
"""Files of a minute or more, the longest first."""


def pytest_collection_modifyitems(items):
    """The slowest files first: one that starts last leaves the other workers idle at the end."""
    rank = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def free_ports(count):
    """First of so many neighbouring ports that nobody listens on, below the ephemeral ones."""
    for first in random.SystemRandom().sample(range(17200, 32000, 8), 100):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports for a private Slurm")


@pytest.fixture(scope="session")
def slurm_cluster():
    """Folder of a private Slurm of three nodes, which `SLURM_CONF` leads to.

    That of `GFDT_SLURM` if this is set, and then left running; else one of this session. Where
    none can be started, its tests are skipped with the reason, or fail if `GFDT_NEED_SLURM` is set.
    """
    lent = os.environ.get("GFDT_SLURM")
    # A short path: sockets are in it.
    home = Path(lent or tempfile.mkdtemp(prefix="gfdt-slurm-", dir="/tmp"))
    own = {"GFDT_SLURM": str(home)} | ({} if lent else {"GFDT_SLURM_PORT": str(free_ports(4))})
    up = subprocess.run(
        [DEV / "up", str(NODES)], env=os.environ | own, capture_output=True, text=True, timeout=600
    )
    if up.returncode:
        reason = (up.stderr.strip().splitlines() or ["slurm/dev/up failed"])[-1]
        if not lent:
            shutil.rmtree(home, ignore_errors=True)
        (pytest.fail if os.environ.get("GFDT_NEED_SLURM") else pytest.skip)(reason)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(home / "slurm.conf")
    yield home
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before
    if not lent:
        subprocess.run([DEV / "down"], env=os.environ | own, check=True, timeout=120)


@pytest.fixture
def in_process(monkeypatch, capfd):
    """The entry point in this process, with what it says and its exit code."""
    from hpc.stopping import STOPPING
    from workflow.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gfdt", *map(str, arguments)])
        before = [(number, signal.getsignal(number)) for number in STOPPING]
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def small_yaml():
    """An experiment that takes a second, to be refused, planned, begun or damaged."""
    import yaml

    return yaml.safe_dump(
        {
            "name": "small",
            "system": {"kind": "allen_cahn", "grid": 8},
            "ensemble": {
                "members": 4,
                "group": 4,
                "spinup": 0.5,
                "length": 8.0,
                "save_every": 0.5,
            },
            "score": {"estimator": "gaussian"},
            "response": {"estimators": ["gaussian"], "max_lag": 2.0},
        }
    )


@pytest.fixture(scope="session")
def client():
    """A Dask client in this process: a worker process costs seconds before its first block."""
    import dask
    import distributed

    given = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
    # Neither lazy arrays nor the stderr of other tests are its business.
    apart = {"set_as_default": False, "silence_logs": logging.CRITICAL}
    # It idles for most of the session: at 1 % of a core, not 5 %.
    idle = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}
    with dask.config.set(idle):
        client = distributed.Client(**given, **apart, dashboard_address=":0")
    with client:
        yield client


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, client):
    """A finished run with a group of spectra, for those who only read it: a few seconds."""
    import yaml

    from workflow.opening import open_run
    from workflow.stages.pipeline import STAGES, run_stages

    home = tmp_path_factory.mktemp("small")
    experiment = {
        "name": "small",
        "system": {"kind": "ornstein_uhlenbeck", "grid": 8, "relaxation": 0.3, "advection": 0.1},
        "ensemble": {"members": 8, "group": 8, "spinup": 0.0, "length": 80.0, "chunk": "64KiB"},
        "score": {"estimator": "gaussian"},
        "response": {
            "estimators": ["gaussian", "exact"],
            "observables": ["field", "spectrum"],
            "max_lag": 4.0,
            "checks": False,
        },
    }
    (home / "small.yaml").write_text(yaml.safe_dump(experiment))
    run = open_run(str(home / "small.yaml"), home / "runs")
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
    return run
