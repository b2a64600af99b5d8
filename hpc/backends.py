"""Where blocks are computed: names of Dask backends and how to open them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import distributed

from hpc.rank import ONE_THREAD

LOGGERS = ("distributed", "bokeh", "tornado")


@contextlib.contextmanager
def open_client(
    kind: str | distributed.Client = "local",
    *,
    workers: int,
    memory: str = "auto",
    threads: int = 1,
    log_dir: Path | None,
) -> Iterator[distributed.Client]:
    """A Dask client on a backend of `BACKENDS`, closed with everything it started.

    Args:
        kind: name of the backend, or a client of the caller's, which is used and left open.
        workers: number of worker processes.
        memory: memory of one worker, such as "4GiB"; "auto" shares the machine evenly.
        threads: threads of one worker.
        log_dir: folder for `dask.log`; without it Dask's own messages are dropped.

    Raises:
        ValueError: no backend of that name, or no workers.
    """
    if isinstance(kind, distributed.Client):
        yield kind
        return
    if kind not in BACKENDS:
        raise ValueError(f"no cluster kind '{kind}'; choose one of {', '.join(sorted(BACKENDS))}")
    if workers < 1:
        raise ValueError(f"workers={workers}: at least 1 worker is needed")
    with BACKENDS[kind](workers, memory=memory, threads=threads, log_dir=log_dir) as client:
        yield client


@contextlib.contextmanager
def local_client(
    workers: int, *, memory: str, threads: int, log_dir: Path | None
) -> Iterator[distributed.Client]:
    """Worker processes of this machine, restarted when they die; arguments as `open_client`."""
    with (
        quiet_dask(log_dir, environment=ONE_THREAD | {"OMP_NUM_THREADS": str(threads)}),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=memory,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


Backend = Callable[..., contextlib.AbstractContextManager[distributed.Client]]

BACKENDS: dict[str, Backend] = {"local": local_client}
"""Backends by name; each takes `(workers, *, memory, threads, log_dir)` as `open_client`."""


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
            "class": "logging.FileHandler",
            "filename": str((log_dir / "dask.log").resolve()),
            "formatter": "line",
        }
    settings = {
        "distributed.nanny.pre-spawn-environ": dict(environment),
        # A block that dies with its worker is innocent until it has killed 100.
        "distributed.scheduler.allowed-failures": 100,
        # A worker that holds the interpreter lock for minutes is busy, not lost.
        "distributed.scheduler.worker-ttl": "30 minutes",
        "distributed.comm.timeouts.connect": "60s",
        "distributed.admin.tick.limit": "1 minute",
        # Read by every worker process as it starts.
        "distributed.logging": _logging(handler),
    }
    with dask.config.set(settings), _loggers(handler), warnings.catch_warnings():
        # Two runs on one machine are no mistake; Dask takes another port by itself.
        warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)
        yield


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
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    own: logging.Handler = logging.NullHandler()
    if "filename" in handler:
        own = logging.FileHandler(handler["filename"])
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
