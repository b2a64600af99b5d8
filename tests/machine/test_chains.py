"""Chains of tasks on workers that die, and workers of a driver that dies."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import distributed
import psutil
import pytest

from hpc.backends import BACKENDS, open_client
from hpc.chains import Task, run_chains
from hpc.errors import LayoutError, MachineError
from hpc.job_script import Jobs
from hpc.ledger import Receipt


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def client(log_dir):
    with open_client("local", workers=2, jobs=Jobs(memory=2**30), log_dir=log_dir) as client:
        client.wait_for_workers(2, timeout=120)
        yield client


def segment(folder, chain, position, seconds):
    """Refuses to run before its predecessor is recorded by the driver."""
    started = Path(folder) / f"{chain}-{position}.started"
    with started.open("a") as file:
        file.write("x")
    if position > 0 and not (Path(folder) / f"{chain}-{position - 1}.recorded").exists():
        raise ValueError(f"chain {chain} ran segment {position} too early")
    time.sleep(seconds)
    facts = {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}
    return Receipt(f"{chain}-{position}", {}, facts)


def chains_of(folder, *, seconds, n_chain=3, n_segment=4):
    return [
        [Task(f"{c}-{p}", (str(folder), c, p, seconds)) for p in range(n_segment)]
        for c in range(n_chain)
    ]


def recorder(folder, receipts):
    def record(receipt):
        receipts.append(receipt)
        (Path(folder) / f"{receipt.block}.recorded").touch()

    return record


def test_each_chain_runs_in_order_and_all_progress_together(client, tmp_path, monkeypatch):
    """Whose segment is done goes to the back of the queue, however fast or slow workers are."""
    receipts, handed_out = [], []
    submit = client.submit

    def listed(in_time, needed, function, folder, chain, position, seconds, **options):
        handed_out.append((chain, position))
        call = (needed, function, folder, chain, position, seconds)
        return submit(in_time, *call, **options)

    monkeypatch.setattr(client, "submit", listed)
    chains = chains_of(tmp_path, seconds=0.02, n_chain=5)
    run_chains(client, segment, [*chains, []], on_receipt=recorder(tmp_path, receipts))
    assert Counter(r.block for r in receipts) == Counter(t.block for c in chains for t in c)
    assert {r.facts["threads"] for r in receipts} == {"1"}
    assert len({r.facts["pid"] for r in receipts}) == 2
    done = [0] * 5
    for receipt in receipts:
        chain, position = map(int, receipt.block.split("-"))
        assert done[chain] == position
        done[chain] += 1
    finished = [tuple(map(int, receipt.block.split("-"))) for receipt in receipts]
    following = [(chain, position + 1) for chain, position in finished if position < 3]
    assert handed_out == [(chain, 0) for chain in range(5)] + following


def test_killed_workers_cost_only_what_they_were_doing(client, tmp_path, capfd, log_dir):
    receipts = []
    killed = []
    note = recorder(tmp_path, receipts)

    def record(receipt):
        note(receipt)
        if len(receipts) in (2, 6) and receipt.facts["pid"] not in killed:
            killed.append(receipt.facts["pid"])
            os.kill(receipt.facts["pid"], signal.SIGKILL)

    chains = chains_of(tmp_path, seconds=0.2)
    run_chains(client, segment, chains, on_receipt=record)
    assert len(killed) == 2
    assert Counter(r.block for r in receipts) == Counter(t.block for c in chains for t in c)
    starts = sum(len(path.read_text()) for path in tmp_path.glob("*.started"))
    # One computing and at most the rest of one worker's share of those in flight.
    assert starts <= len(receipts) + 2 * len(killed)
    assert (log_dir / "dask.log").stat().st_size > 0
    said = capfd.readouterr()
    assert said.out == said.err == ""


def fail(folder, exception):
    with (Path(folder) / "tries").open("a") as file:
        file.write("x")
    raise exception


def test_an_error_that_would_come_back_stops_the_run_at_once(client, tmp_path):
    for error in (ValueError("dt=2 is too long"), LayoutError("other chunks")):
        (tmp_path / "tries").unlink(missing_ok=True)
        chains = [[Task("b", (str(tmp_path), error))]]
        with pytest.raises(type(error), match=str(error)) as caught:
            run_chains(client, fail, chains, on_receipt=print)
        assert getattr(caught.value, "exit_code", 78) == 78
        assert (tmp_path / "tries").read_text() == "x"


def test_another_error_is_tried_again_and_then_told_with_its_block(client, tmp_path):
    chains = [[Task("member-3", (str(tmp_path), OSError("line one\nstale file handle")))]]
    message = "^block member-3 failed 3 times, last with OSError: stale file handle$"
    with pytest.raises(MachineError, match=message):
        run_chains(client, fail, chains, on_receipt=print)
    assert (tmp_path / "tries").read_text() == "xxx"


def test_a_client_of_the_caller_is_used_and_left_open(client):
    with open_client(client, workers=1, log_dir=None) as same:
        assert same is client
    assert client.status == "running"


def test_an_unknown_backend_is_refused_by_name():
    message = "no cluster kind 'slrm'; choose one of " + ", ".join(sorted(BACKENDS))
    with (
        pytest.raises(ValueError, match=message),
        open_client("slrm", workers=1, log_dir=None),
    ):
        pass


def kill_newborns(count, killed, stop):
    """Kill worker processes of this one as soon as they appear, until `count` are killed."""
    me, seen = psutil.Process(), {p.pid for p in psutil.Process().children(recursive=True)}
    while len(killed) < count and not stop.wait(0.02):
        for child in me.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                # Between fork and exec it still has the command line of this process.
                if child.pid not in seen and "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed.append(child.pid)
                    seen.add(child.pid)


@contextlib.contextmanager
def newborns_killed(count):
    killed, stop = [], threading.Event()
    killer = threading.Thread(target=kill_newborns, args=(count, killed, stop))
    killer.start()
    try:
        yield killed
    finally:
        stop.set()
        killer.join()


def test_workers_that_die_at_birth_are_replaced(monkeypatch, capfd, log_dir):
    """Dask alone fails the whole cluster, or goes on for ever without that worker."""
    # As Dask sets it up outside pytest.
    loud = [logging.StreamHandler(sys.stderr)]
    monkeypatch.setattr(logging.getLogger("tornado.application"), "handlers", loud)
    with newborns_killed(3) as killed, open_client("local", workers=2, log_dir=log_dir) as client:
        assert len(client.nthreads()) == 2
        pids = client.run(os.getpid).values()
    assert len(killed) >= 3
    assert set(pids) & set(killed) == set()
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_a_worker_killed_twice_comes_back(log_dir):
    """Killed at work, and its successor at birth."""
    with open_client("local", workers=1, log_dir=log_dir) as client:
        (first,) = client.run(os.getpid).values()
        with newborns_killed(1) as killed:
            os.kill(first, signal.SIGKILL)
            assert client.submit(os.getpid, pure=False).result(timeout=60) not in (first, *killed)
        assert killed


def test_a_machine_that_starts_no_worker_is_told_in_one_line(monkeypatch, capfd, log_dir):
    monkeypatch.setattr("hpc.backends.BIRTH", 3.0)
    message = (
        r"^no Dask worker could be started \(.*\); see .*dask.log; run the same command again$"
    )
    with (
        newborns_killed(1000),
        pytest.raises(MachineError, match=message),
        open_client("local", workers=1, log_dir=log_dir),
    ):
        pass
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_chains_without_workers_stop_in_bounded_time(tmp_path):
    """No hang is for ever."""
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as lonely,
        pytest.raises(MachineError, match="no Dask worker for 2 s; run the same command again"),
    ):
        run_chains(lonely, segment, chains_of(tmp_path, seconds=0), on_receipt=print, patience=2)


DRIVER = """
import sys, time
from hpc.backends import open_client
from hpc.job_script import Jobs

def main():
    with open_client("local", workers=2, jobs=Jobs(memory=2**30), log_dir=None) as client:
        client.submit(time.sleep, 60)
        print("ready", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    main()
"""


def test_workers_die_with_a_killed_driver(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert driver.stdout is not None and driver.stdout.readline() == b"ready\n"
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) >= 2
    driver.kill()
    driver.wait()
    driver.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
