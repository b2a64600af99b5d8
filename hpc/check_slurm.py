"""What `gfdt doctor` says of Slurm: is it there, does a job reach this host, do its ranks meet."""

from __future__ import annotations

import json
import secrets
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from hpc import slurm
from hpc.batch import follow
from hpc.checks import Check
from hpc.errors import MachineError
from hpc.files import PARTIAL
from hpc.jobqueue import place
from hpc.launchers import srun_plugins

PATIENCE = 10.0
"""Seconds over which a Slurm that does not answer is asked again."""

QUEUE = 120.0
"""Seconds that the test job may wait for its nodes."""

RESULT = "result.json"


def check_slurm(*, needed: bool) -> Check:
    """Whether Slurm answers, with its version, partitions and MPI plugins.

    Args:
        needed: whether it is a failure if there is none.
    """
    if not slurm.available():
        return Check("slurm", not needed, "none on this machine; use cluster kinds local")
    try:
        version = slurm.ask(["sinfo", "--version"], patience=PATIENCE).split()[-1]
        partitions = slurm.ask(["sinfo", "--noheader", "--format=%R"], patience=PATIENCE).split()
    except MachineError as error:
        line = f"installed, but does not answer: {error}; is SLURM_CONF set as on this cluster?"
        return Check("slurm", not needed, line)
    plugins = ", ".join(sorted(srun_plugins())) or "none"
    names = ", ".join(dict.fromkeys(partitions))
    return Check("slurm", True, f"{version}; partitions {names}; MPI plugins {plugins}")


def check_jobs(folder: Path, *, queue: float = QUEUE) -> list[Check]:
    """What a job of two tasks finds: this host over TCP, these files, and its MPI ranks.

    Args:
        folder: where runs are kept; must exist.
        queue: seconds that the job may wait for its nodes.
    """
    name = "slurm job"
    try:
        with tempfile.TemporaryDirectory(PARTIAL, ".doctor-", folder.resolve()) as new:
            found = _ask_job(Path(new), queue)
    except (MachineError, OSError) as error:
        return [Check(name, False, " ".join(str(error).split()))]
    where = f"of two tasks ran on {found['host']} and answered within {found['seconds']:.0f} s"
    checks = [Check(name, True, where)]
    reached, tried = found["reached"], ", ".join(found["tried"])
    checks.append(
        Check("connect back", True, f"{found['host']} reaches this host by {reached}")
        if reached
        else Check(
            "connect back",
            False,
            f"{found['host']} reaches this host by none of {tried}; name the network of the "
            "nodes in cluster.simulate.interface, or drive from a job: gfdt submit --driver job",
        )
    )
    checks.append(Check("slurm mpi", found["mpi_works"], found["mpi"]))
    return checks


def _ask_job(folder: Path, queue: float) -> dict[str, Any]:
    token = secrets.token_hex(16)
    addresses = own_addresses()
    with _listening(token) as (port, reached):
        command = [sys.executable, "-m", "hpc.check_job", str(folder), str(port), token]
        script = folder / "doctor.sbatch"
        script.write_text(f"#!/bin/bash\nexec {shlex.join([*command, *addresses])}\n")
        log, site = folder / "job.log", place()
        options = [f"--output={log}", "--job-name=gfdt-doctor", "--ntasks=2", "--time=2"]
        options += [f"--partition={site.queue}"] if site.queue else []
        options += [f"--account={site.account}"] if site.account else []
        began = time.monotonic()
        job = slurm.submit(script, [*options, *site.extra], patience=PATIENCE)
        try:
            _wait(job, folder / RESULT, log, queue)
        finally:
            slurm.cancel([job])
        found: dict[str, Any] = json.loads((folder / RESULT).read_text())
    found["seconds"] = time.monotonic() - began
    # What the job believes to have reached may be another host of that address.
    network = {address: name for name, address in _networks()}
    ways = [address for address in addresses if address in reached]
    found["reached"] = f"{ways[0]} ({network[ways[0]]})" if ways else ""
    found["tried"] = addresses
    return found


def _wait(job: str, result: Path, log: Path, queue: float) -> None:
    deadline, said = time.monotonic() + queue, [""]

    def finished() -> bool:
        return result.is_file() or (time.monotonic() > deadline and not log.exists())

    ended = follow(job, finished=finished, tell=lambda line: said.__setitem__(0, line))
    if result.is_file():
        return
    if time.monotonic() > deadline and ended.code == 0:
        raise MachineError(
            f"not started within {queue:g} s ({said[0]}); ask again when the queue is shorter"
        )
    text = log.read_text(errors="replace").strip() if log.is_file() else ""
    last = (text.splitlines() or ["nothing; are these files seen on the nodes?"])[-1]
    raise MachineError(f"job {job} ended {ended.state}, exit code {ended.code}, and said: {last}")


def own_addresses() -> list[str]:
    """IPv4 addresses of this host, networks that are up before the loopback."""
    return [address for _, address in _networks()]


def _networks() -> list[tuple[str, str]]:
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family == socket.AF_INET
    ]
    return sorted(found, key=lambda pair: pair[1].startswith("127."))


@contextmanager
def _listening(token: str) -> Iterator[tuple[int, set[str]]]:
    """A port of all networks, and the addresses by which somebody with the token came."""
    reached: set[str] = set()
    with socket.create_server(("", 0), backlog=8) as server:
        server.settimeout(0.2)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                with peer:
                    peer.settimeout(2.0)
                    try:
                        if secrets.compare_digest(peer.recv(64), token.encode()):
                            reached.add(peer.getsockname()[0])
                            peer.sendall(b"ok")
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, name="doctor", daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], reached
        finally:
            over.set()
            thread.join()
