"""Faults of disks, writers, locks and members for `reliability.py`.

Most are the suite's own tests at their full sizes, so that what is claimed here is asserted there.
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import scaling

from hpc.errors import RunLocked
from hpc.lease import PREFIX
from hpc.lock import run_lock

TESTS = Path(__file__).parents[1] / "tests"


def tested(where, claim, tried=None):
    """A fault that a test tries so often, or a file of tests each in another way."""

    def fault(work, seed):
        report = work / "tests.xml"
        command = [sys.executable, "-m", "pytest", f"{TESTS / where}", "-m", "", "--timeout=3600"]
        command += [f"--junitxml={report}", f"--basetemp={work / 'pytest'}"]
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
        suite = ElementTree.parse(report).getroot().find("testsuite")
        count, *bad = (int(suite.get(word)) for word in ("tests", "failures", "errors", "skipped"))
        if done.returncode or not count:
            print(done.stdout[-3000:], file=sys.stderr)
        times = tried or count
        good = times * (not any(bad)) if tried else count - sum(bad)
        return {"tried": times, "survived": good, "figure": sum(bad), "unit": claim}

    return fault


def two_drivers(work, seed, times=10):
    """F9: a run whose driver lives, here and on another host; one that died elsewhere."""
    spec = importlib.util.spec_from_file_location("test_lock", TESTS / "machine" / "test_lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    refused, taken = [], []
    for number in range(2 * times):
        folder, host = work / f"F9-{number}", "node7" if number % 2 else ""
        folder.mkdir()
        holder = lock.start(folder, host=host)
        assert lock.said(holder) == "held"
        named = f"in use by pid {holder.pid} on host "
        since = time.monotonic()
        try:
            with run_lock(folder):
                pass
        except RunLocked as error:
            if named in str(error):
                refused.append(time.monotonic() - since)
        holder.kill()
        holder.wait()
        holder.stdout.close()
        if host:  # only its lease tells of it, and that ages
            (path,) = folder.glob(f"{PREFIX}*")
            os.utime(path, (time.time() - 61, time.time() - 61))
        since = time.monotonic()
        with run_lock(folder):
            taken.append(time.monotonic() - since)
    return {
        "tried": 2 * times,
        "survived": len(refused) if len(taken) == 2 * times else 0,
        "figure": round(max(refused), 2),
        "unit": f"s until the second is refused at most; of a dead one taken in {max(taken):.2f} s",
    }


def many_blocks(work, seed, workers=100, chains=100, length=100):
    """F18: what a block costs its driver, and how long it takes to count them."""
    folder = work / "F18"
    folder.mkdir()
    found = scaling.driver_cost(folder, workers=workers, chains=chains, length=length)
    count = scaling.ledger_cost(folder, chains * length)["count_s"]
    return {
        "tried": found["blocks"],
        "survived": found["blocks"],
        "figure": round(found["driver_ms"] + found["disk_ms"], 2),
        "unit": f"ms of the driver for a block, {found['disk_ms']:.1f} of them its disk; "
        f"{found['rss_mib']:.0f} MiB; counted in {1e3 * count:.0f} ms",
    }


KILLED = "machine/test_stores.py::test_a_writer_killed_at_any_moment_leaves_no_wrong_block[200]"
FLIPPED = "path/test_damage.py::test_every_damage_is_found_and_named[1000]"
SAVING = "path/test_damage.py::test_a_kill_while_a_checkpoint_is_saved_leaves_the_one_before[100]"
ORDERS = "machine/test_any_order.py::test_any_order_of_mishaps_leaves_what_the_model_says[2000]"

FAULTS = {
    "F7 writers killed": tested(KILLED, "wrong blocks accepted", 200),
    "F8 bits flipped, files cut": tested(FLIPPED, "not found and named", 1000),
    "F9 a second driver": two_drivers,
    "F11 killed while saving": tested(SAVING, "newest sound checkpoint not found", 100),
    "F15 disks full, forbidden, slow": tested("machine/test_disks.py", "of these tests failed"),
    "F16 members that blow up": tested("path/test_quarantine.py", "of these tests failed"),
    "F18 many blocks and workers": many_blocks,
    "F20 mishaps in any order": tested(ORDERS, "orders that end in another store", 2000),
}
