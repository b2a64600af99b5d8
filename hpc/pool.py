"""What chains of tasks ask of, and tell, whoever brings their workers."""

from __future__ import annotations

from typing import Protocol

import distributed


class Pool(Protocol):
    """Who brings workers, and takes them away again."""

    def want(self, tasks: int) -> None:
        """So many tasks could run at once."""

    def done(self) -> None:
        """A block is done."""

    def declined(self, address: str) -> None:
        """The worker there has too little time left for another task."""

    def waiting(self) -> bool:
        """Whether workers are on their way.

        Raises:
            MachineError: there will be none.
        """

    @property
    def note(self) -> str:
        """What is in the way, empty if nothing."""


class PoolClient(distributed.Client):
    """A client of workers that a pool brings.

    Attributes:
        pool: the pool.
    """

    pool: Pool


class Lent:
    """Workers of a client that somebody else looks after."""

    note = ""

    def __init__(self, client: distributed.Client) -> None:
        self._client = client

    def want(self, tasks: int) -> None:
        """Nothing to do: there are as many as there are."""

    def done(self) -> None:
        """Nothing to do."""

    def declined(self, address: str) -> None:
        """Let the worker go."""
        self._client.retire_workers([address], close_workers=True)

    def waiting(self) -> bool:
        """Nobody knows."""
        return False


def pool_of(client: distributed.Client) -> Pool:
    """Who brings the workers of a client."""
    return client.pool if isinstance(client, PoolClient) else Lent(client)
