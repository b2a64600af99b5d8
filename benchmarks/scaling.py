"""From a laptop to a cluster: constants measured here, a small model, and where it was checked.

    python benchmarks/scaling.py [--full] > benchmarks/results/scaling.md

Every prediction is made from constants measured at other sizes than the one it is checked at.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import distributed
import numpy as np
import psutil

from hpc.chains import Task, run_chains
from hpc.launchers import find_mpiexec
from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import LOOSE, Ledger, Receipt
from hpc.stores import read_block, write_block

MIB = 2**20


def block(chain, position):
    """A task that takes no time, and the receipt of an ordinary block."""
    name = f"ensemble-g{chain:04d}-{position:05d}"
    files = {f"ensemble.zarr/u/c/{chain}/{position}/0/0": "0" * 16, f"restart/{name}.pt": "0" * 16}
    return Receipt(name, files, {"seconds": 1.234, "host": "node1", "pid": 1234})


def driver_cost(folder, *, workers, chains, length):
    """Per block: seconds of the driver's thread, of its disk, and of the wall; MiB at the end."""
    ledger, disk = Ledger(folder / "ledger", folder), 0.0

    def record(receipt):
        nonlocal disk
        began = time.perf_counter() - time.thread_time()
        ledger.record(receipt)
        disk += time.perf_counter() - time.thread_time() - began

    tasks = [[Task("", (c, p)) for p in range(length)] for c in range(chains)]
    # A hundred workers in one process would watch the process a hundred times over.
    quiet = {
        "distributed.admin.system-monitor.interval": "60s",
        "distributed.scheduler.http.routes": [],
    }
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        began, own = time.perf_counter(), time.thread_time()
        run_chains(client, block, tasks, on_receipt=record)
        own, wall = time.thread_time() - own, time.perf_counter() - began
        memory = psutil.Process().memory_info().rss / MIB
    count = chains * length
    found = {"workers": workers, "blocks": count, "driver_ms": 1e3 * own / count}
    return found | {"disk_ms": 1e3 * disk / count, "wall_ms": 1e3 * wall / count, "rss_mib": memory}


def ledger_cost(folder, count):
    """Seconds to record, to count and to look through so many receipts; files they take."""
    ledger = Ledger(folder / f"ledger-{count}", folder)
    began = time.perf_counter()
    for number in range(count):
        ledger.record(block(0, number))
    recorded = time.perf_counter()
    assert len(Ledger(ledger.folder, folder).done()) == count
    counted = time.perf_counter()
    ledger.problems(deep=False)
    return {
        "receipts": count,
        "record_ms": 1e3 * (recorded - began) / count,
        "count_s": counted - recorded,
        "look_s": time.perf_counter() - counted,
        "files": sum(1 for _ in ledger.folder.iterdir()),
    }


def disk_cost(folder, mib):
    """MB/s of one writer and one reader of blocks of that size, flushed and checksummed."""
    length, blocks = mib * MIB // 4, 6
    path = folder / f"disk-{mib}.zarr"
    u = Variable("u", ("time", "x"), (blocks, length), (1, length), "float32")
    create_store(path, variables=[u], coordinates=[Coordinate("time", np.arange(blocks))], attrs={})
    values = np.random.default_rng(0).normal(size=(1, length)).astype("float32")
    began = time.perf_counter()
    for number in range(blocks):
        write_block(path, "u", start={"time": number}, values=values)
    written = time.perf_counter()
    for number in range(blocks):
        read_block(path, "u", start={"time": number}, size={"time": 1})
    size = blocks * values.nbytes / 1e6
    read = size / (time.perf_counter() - written)
    return {"mib": mib, "write": size / (written - began), "read": read}


RANK = """
import json, sys, time
import numpy as np
from mpi4py import MPI
comm = MPI.COMM_WORLD
found = {}
for size in map(int, sys.argv[1:]):
    x = np.ones(size, "float32")
    times = []
    for _ in range(12):
        comm.Barrier()
        began = time.perf_counter()
        comm.Allreduce(MPI.IN_PLACE, x)
        times.append(time.perf_counter() - began)
    found[size] = float(np.median(times))
if comm.rank == 0:
    print(json.dumps(found))
"""


def allreduce_times(sizes, ranks=2):
    """Median seconds of one flat sum of so many float32, by size."""
    command = [find_mpiexec(), "-n", str(ranks), sys.executable, "-c", RANK, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return {int(size): seconds for size, seconds in json.loads(done.stdout).items()}


def allreduce_model(parameters, ranks, *, latency, byte):
    """Ring: 2 (p - 1) messages of n / p numbers, T = 2 (p - 1) (latency + 4 n / p * byte)."""
    return 2 * (ranks - 1) * (latency + 4 * parameters / ranks * byte)


def fit_allreduce(times, ranks=2):
    """Latency and seconds per byte from the smallest and the largest size."""
    (small, t_small), (large, t_large) = min(times.items()), max(times.items())
    byte = (t_large - t_small) / (2 * (ranks - 1) * 4 * (large - small) / ranks)
    return {
        "latency": max(1e-6, t_small / (2 * (ranks - 1)) - 4 * small / ranks * byte),
        "byte": byte,
    }


def ledger_files(blocks):
    """Most files of one ledger: single receipts up to a bound, and the packed ones."""
    return min(blocks, max(LOOSE, blocks // 8)) + (blocks >= LOOSE)


def inodes(*, groups, segments, spinup, fields, estimators, space):
    """Files and folders of ensemble, scores, restart states and their receipts.

    A chunk of d space axes lies in d folders of its own: c/<group>/<segment>/0/0 in 2-D.
    """
    chunks = groups * segments * fields * (1 + estimators)
    states = groups * (segments + spinup)
    receipts = ledger_files(states) + ledger_files(groups * segments)
    return {"files": chunks + states + receipts, "folders": space * chunks}


def count_inodes(folder, *, groups, segments):
    """What a store of that layout really takes: files and folders per chunk, 2-D."""
    shape, chunk = (groups, segments, 4, 4), (1, 1, 4, 4)
    u = Variable("u", ("member", "time", "y", "x"), shape, chunk, "float32")
    path = folder / f"inodes-{groups}-{segments}.zarr"
    create_store(path, variables=[u], coordinates=[], attrs={})
    write_block(path, "u", start={}, values=np.ones(shape, "float32"))
    inside = list((path / "u" / "c").rglob("*"))
    files = sum(one.is_file() for one in inside)
    return files, len(inside) - files - groups  # the folder of a group is shared


def checked(what, predicted, found, unit):
    return f"| {what} | {predicted:.3g} {unit} | {found:.3g} {unit} | {found / predicted:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="10^4 blocks with 100 workers")
    full = parser.parse_args().full
    with tempfile.TemporaryDirectory() as name:
        report(Path(name), full)


def report(folder, full):
    sizes = [(4, 10, 25), (20, 20, 25)] + ([(100, 100, 100)] if full else [])
    print("# Scaling: constants, and the model where it was checked\n")
    command = "python benchmarks/scaling.py" + (" --full" if full else "")
    load = os.getloadavg()[0]
    print(f"`{command}`, {len(os.sched_getaffinity(0))} cores, load before {load:.1f}.\n")
    print("## Driver: blocks that take no time, workers in its own process\n")
    print(
        "| workers | blocks | driver CPU, ms/block | disk wait, ms/block | wall, ms/block | MiB |"
    )
    print("|---|---|---|---|---|---|")
    drivers = []
    for i, (workers, chains, length) in enumerate(sizes):
        place = folder / f"driver-{i}"
        place.mkdir()
        one = driver_cost(place, workers=workers, chains=chains, length=length)
        drivers.append(one)
        cells = [f"{one[k]:.3g}" for k in ("driver_ms", "disk_ms", "wall_ms", "rss_mib")]
        print(f"| {workers} | {one['blocks']} | {' | '.join(cells)} |", flush=True)
    print("\nThe wall holds the scheduler and all workers, elsewhere on a cluster.")
    print("\n## Ledger, disk, allreduce\n")
    print("| receipts | record, ms | count, s | look, s | files |\n|---|---|---|---|---|")
    ledgers = [ledger_cost(folder, count) for count in (500, 2000, *([10_000] if full else []))]
    for one in ledgers:
        cells = [f"{one[k]:.3g}" for k in ("record_ms", "count_s", "look_s")]
        print(f"| {one['receipts']} | {' | '.join(cells)} | {one['files']} |", flush=True)
    disks = [disk_cost(folder, mib) for mib in (1, 8, 32)]
    print("\n| block, MiB | one writer, MB/s | one reader, MB/s |\n|---|---|---|")
    for one in disks:
        print(f"| {one['mib']} | {one['write']:.0f} | {one['read']:.0f} |")
    times = allreduce_times([1000, 100_000, 1_000_000, 4_000_000])
    print("\n| float32 numbers | sum over 2 ranks, ms |\n|---|---|")
    for size, seconds in times.items():
        print(f"| {size} | {1e3 * seconds:.3g} |")
    print("\n## Predictions, from the smaller sizes\n")
    print("| what | predicted | found | ratio |\n|---|---|---|---|")
    first, last = drivers[0], drivers[-1]
    at = f"{last['blocks']} blocks"
    print(checked(f"driver CPU, {at}", first["driver_ms"], last["driver_ms"], "ms/block"))
    look = ledgers[0]["look_s"] / ledgers[0]["receipts"] * ledgers[-1]["receipts"]
    print(checked(f"look, {ledgers[-1]['receipts']} receipts", look, ledgers[-1]["look_s"], "s"))
    most = ledger_files(ledgers[-1]["receipts"])
    print(
        checked(f"most files, {ledgers[-1]['receipts']} receipts", most, ledgers[-1]["files"], "")
    )
    model = inodes(groups=3, segments=7, spinup=0, fields=1, estimators=0, space=2)
    files, folders = count_inodes(folder, groups=3, segments=7)
    states = 21 + ledger_files(21) * 2
    print(checked("chunk files, 21 chunks", model["files"] - states, files, ""))
    print(checked("folders, 21 chunks", model["folders"], folders, ""))
    small = disks[0]
    seconds = MIB / 1e6 / small["write"], 8 * MIB / 1e6 / disks[1]["write"]
    per_mib = (seconds[1] - seconds[0]) / 7
    whole = seconds[0] + 31 * per_mib
    print(checked("write a block of 32 MiB", whole, 32 * MIB / 1e6 / disks[2]["write"], "s"))
    constants = fit_allreduce({size: times[size] for size in (1000, 4_000_000)})
    for size in (100_000, 1_000_000):
        predicted = 1e3 * allreduce_model(size, 2, **constants)
        print(checked(f"allreduce, {size} numbers", predicted, 1e3 * times[size], "ms"))
    extrapolate(drivers, ledgers, constants)


def extrapolate(drivers, ledgers, constants):
    """The model at sizes that do not run here."""
    worst = max(one["driver_ms"] + one["disk_ms"] for one in drivers)
    print("\n## What the model says of larger ones\n")
    print("Blocks of 120 s, one worker a core: share of the driver's time in use.\n")
    print("| workers | blocks/s | driver busy |\n|---|---|---|")
    for workers in (16, 128, 1024, 8192, 65536):
        rate = workers / 120
        print(f"| {workers} | {rate:.3g} | {100 * rate * worst / 1e3:.2g} % |")
    print("\nInodes of ensemble and two scores, 2-D, one field; chunks of 16 MiB, groups of 16:\n")
    print("| data of one field | chunks | files | folders | share of 1 M |\n|---|---|---|---|---|")
    for data in (2**33, 2**37, 2**40, 2**43):
        segments = 1000
        groups = max(1, data // (16 * MIB) // segments)
        segments = data // (16 * MIB) // groups
        layout = {"groups": groups, "segments": segments, "spinup": 10, "fields": 1}
        found = inodes(**layout, estimators=2, space=2)
        share = 100 * sum(found.values()) / 1e6
        cells = f"{groups * segments} | {found['files']} | {found['folders']} | {share:.3g} %"
        print(f"| {data / 2**30:g} GiB | {cells} |")
    print("\nSum of gradients, ms; within this machine, and over a network of 10 us and 10 GB/s:\n")
    print("| parameters | " + " | ".join(f"{p} ranks" for p in (2, 8, 64, 512)) + " |")
    print("|---|---|---|---|---|")
    network = {"latency": 1e-5, "byte": 1e-10}
    for parameters in (40_000, 1_600_000, 30_000_000):
        cells = []
        for ranks in (2, 8, 64, 512):
            chosen = constants if ranks == 2 else network
            cells.append(f"{1e3 * allreduce_model(parameters, ranks, **chosen):.3g}")
        print(f"| {parameters} | {' | '.join(cells)} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory of this program: {peak:.0f} MiB.")


if __name__ == "__main__":
    main()
