"""An encrypted scheduler in this process, for workers on other nodes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import distributed
from distributed.utils import get_ip

from hpc.credentials import Credentials
from hpc.errors import MachineError
from hpc.pool import PoolClient
from hpc.stopping import unbroken


@contextlib.contextmanager
def open_scheduler(
    credentials: Credentials, interface: str | None, options: Mapping[str, Any]
) -> Iterator[tuple[distributed.LocalCluster, PoolClient]]:
    """A scheduler without workers that other nodes reach, and its client.

    Args:
        credentials: of all who may speak to it.
        interface: network, such as ib0; by default the one that leads outside.
        options: `host`, `interface` and `port` of the site.

    Raises:
        MachineError: it cannot listen there.
    """
    interface = options.get("interface", interface)
    where = {"interface": interface} if interface else {"host": options.get("host") or get_ip()}
    try:
        with unbroken():  # half a scheduler could not be closed
            cluster = distributed.LocalCluster(
                n_workers=0,
                processes=True,
                protocol="tls://",
                security=credentials.security,
                scheduler_port=options.get("port", 0),
                dashboard_address="127.0.0.1:0",
                **where,
            )
    except (OSError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise MachineError(
            f"the Dask scheduler cannot listen at {next(iter(where.values()))}: {line}; "
            "set interface of the cluster section"
        ) from error
    try:
        client = PoolClient(cluster, security=credentials.security)
        try:
            yield cluster, client
        finally:
            with contextlib.suppress(Exception):
                client.close()
    finally:
        try:
            cluster.close()
        except Exception:
            logging.getLogger("distributed").exception("closing failed")
            cluster.shutdown_on_close = False
