"""Where blocks are computed: names of Dask backends and how to open them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed.core import Status
from tornado.ioloop import IOLoop, PeriodicCallback

from hpc.allocation import allocation_client
from hpc.dashboard import has_pages
from hpc.errors import MachineError
from hpc.job_script import Jobs
from hpc.logs import LogFile
from hpc.rank import ONE_THREAD
from hpc.slurm_pool import slurm_client
from hpc.stopping import unbroken

LOGGERS = ("distributed", "bokeh", "tornado", "asyncio")

CHILDREN = tuple(f"{name}." for name in LOGGERS)

BIRTH = 120.0
"""Seconds within which one of the first workers must be there."""

REVIVAL = 1.0
"""Seconds between looks for workers that are gone for good."""


@contextlib.contextmanager
def open_client(
    kind: str | distributed.Client = "local",
    *,
    workers: int,
    jobs: Jobs | None = None,
    log_dir: Path | None,
) -> Iterator[distributed.Client]:
    """A Dask client on a backend of `BACKENDS`, closed with everything it started.

    Args:
        kind: name of the backend, or a client of the caller's, which is used and left open.
        workers: number of worker processes on this machine; on Slurm there are as many as there
            is work, within the bounds of `jobs`.
        jobs: what one worker gets; by default this machine is shared evenly.
        log_dir: folder for `dask.log`; without it Dask's own messages are dropped. On Slurm it is
            the folder `logs` of a run folder that all nodes see.

    Raises:
        ValueError: no backend of that name, no workers, or no folder where one is needed.
        MachineError: the backend cannot be opened; tells why.
    """
    if isinstance(kind, distributed.Client):
        yield kind
        return
    if kind not in BACKENDS:
        raise ValueError(f"no cluster kind '{kind}'; choose one of {', '.join(sorted(BACKENDS))}")
    if workers < 1:
        raise ValueError(f"workers={workers}: at least 1 worker is needed")
    if log_dir is None and kind != "local":
        raise ValueError(f"cluster kind '{kind}' needs log_dir, a folder that all nodes see")
    with (
        quiet_dask(log_dir, environment=ONE_THREAD),
        BACKENDS[kind](jobs or Jobs(), workers=workers, log_dir=log_dir) as client,
    ):
        yield client


@contextlib.contextmanager
def local_client(jobs: Jobs, *, workers: int, log_dir: Path | None) -> Iterator[distributed.Client]:
    """Worker processes of this machine, replaced when they die; arguments as `open_client`.

    Raises:
        MachineError: no worker could be started.
    """
    with contextlib.ExitStack() as stack:
        try:
            # Started without workers: one that dies at birth would fail the whole cluster.
            with unbroken():  # half a scheduler could not be closed
                cluster = distributed.LocalCluster(
                    n_workers=0,
                    threads_per_worker=jobs.cores or 1,
                    memory_limit=jobs.memory or "auto",
                    processes=True,
                    dashboard_address="127.0.0.1:0" if has_pages() else None,
                    death_timeout=BIRTH,
                )
                stack.callback(_close, cluster)
            client = distributed.Client(cluster)
            stack.callback(_close, client)
            stack.enter_context(_kept_at(cluster, workers))
            _wait_for_workers(client, workers)
        except (OSError, RuntimeError, TimeoutError) as error:
            where = f"; see {log_dir / 'dask.log'}" if log_dir else ""
            raise MachineError(
                f"no Dask worker could be started ({_one_line(error)}){where}; "
                "run the same command again"
            ) from error
        yield client


@contextlib.contextmanager
def _kept_at(cluster: distributed.LocalCluster, workers: int) -> Iterator[None]:
    """Keep that many workers, also when one dies while it starts: Dask gives that one up."""

    def revive() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(workers)

    loop, ticks = cluster.loop or IOLoop.current(), PeriodicCallback(revive, REVIVAL * 1000)
    # Ctrl-C reaches all processes of a terminal; workers inherit the mask and leave it to the
    # driver. The interpreter's tracker must run before, for starting it unblocks SIGINT.
    resource_tracker.ensure_running()
    loop.add_callback(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGINT})
    cluster.scale(workers)
    loop.add_callback(ticks.start)
    try:
        yield
    finally:
        loop.add_callback(ticks.stop)


def _wait_for_workers(client: distributed.Client, workers: int) -> None:
    try:
        client.wait_for_workers(workers, timeout=BIRTH)
    except TimeoutError:
        if not client.nthreads():
            raise


def _close(opened: distributed.Client | distributed.LocalCluster) -> None:
    """Close what has done its work; all results are on disk, so a failure costs nothing."""
    try:
        opened.close()
    except (Exception, asyncio.CancelledError):
        logging.getLogger("distributed").exception("closing failed")
        if isinstance(opened, distributed.LocalCluster):
            opened.shutdown_on_close = False  # not once more as the interpreter ends


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


Backend = Callable[..., contextlib.AbstractContextManager[distributed.Client]]

BACKENDS: dict[str, Backend] = {
    "local": local_client,
    "slurm": slurm_client,
    "allocation": allocation_client,
}
"""Backends by name; each takes `(jobs, *, workers, log_dir)` as `open_client`."""


@contextlib.contextmanager
def quiet_dask(log_dir: Path | None, *, environment: Mapping[str, str]) -> Iterator[None]:
    """Dask settings of a run that survives its workers, and Dask's messages in one file.

    Args:
        log_dir: folder for `dask.log`, made if absent; without it the messages are dropped.
        environment: environment of the worker processes before they import anything.
    """
    handler = {"class": "logging.NullHandler"}
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
        handler = {
            "class": f"{LogFile.__module__}.{LogFile.__qualname__}",
            "filename": str((log_dir / "dask.log").resolve()),
            "formatter": "line",
        }
    settings = {
        "distributed.nanny.pre-spawn-environ": {
            **environment,
            # Workers set up their logging as they import Dask, before they get these settings.
            "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(
                {"distributed": {"logging": _logging(handler)}}
            ),
        },
        # A block that dies with its worker is innocent until it has killed 100.
        "distributed.scheduler.allowed-failures": 100,
        # A worker that holds the interpreter lock for minutes is busy, not lost.
        "distributed.scheduler.worker-ttl": "30 minutes",
        "distributed.comm.timeouts.connect": "60s",
        "distributed.admin.tick.limit": "1 minute",
    }
    patient = dask.config.set(settings)
    with _exported(environment), patient, _loggers(handler), warnings.catch_warnings():
        # Two runs on one machine are no mistake; Dask takes another port by itself.
        warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)
        yield


@contextlib.contextmanager
def _exported(environment: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process, and so of all workers it will ever start.

    Dask's own setting gives way to what the user's shell exports, which is meant for one process.
    """
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _logging(handler: Mapping[str, str]) -> dict[str, Any]:
    logger = {"handlers": ["dask"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(process)d %(levelname)s %(message)s"}},
        "handlers": {"dask": dict(handler)},
        "loggers": dict.fromkeys(LOGGERS, logger),
    }


@contextlib.contextmanager
def _loggers(handler: Mapping[str, str]) -> Iterator[None]:
    """The same for the loggers of this process, put back afterwards."""
    # Dask gives some children, as tornado.application, handlers of their own.
    names = [*LOGGERS, *(n for n in logging.root.manager.loggerDict if n.startswith(CHILDREN))]
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    own: logging.Handler = logging.NullHandler()
    if "filename" in handler:
        own = LogFile(handler["filename"])
        own.setFormatter(logging.Formatter(_logging(handler)["formatters"]["line"]["format"]))
    for logger in loggers:
        logger.handlers, logger.propagate = [own], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        own.close()
