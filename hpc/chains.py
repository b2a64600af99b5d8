"""Driving chains of tasks: each in order, all in parallel, on workers that may die."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import distributed
from distributed.comm import CommClosedError

from hpc.errors import MachineError
from hpc.ledger import Receipt

POLL = 1.0
"""Seconds between looks at the number of workers, which may grow and shrink."""

LOST = (
    CommClosedError,
    TimeoutError,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
)
"""What Dask raises here when its scheduler or all holders of a result are gone."""


@dataclass(frozen=True)
class Task:
    """One segment of a chain.

    Attributes:
        block: name of the block it makes.
        arguments: what the function is called with; must be picklable and small.
    """

    block: str
    arguments: tuple


@dataclass
class _Chains:
    """The chains under way: whose turn it is, and what is running."""

    chains: Sequence[Sequence[Task]]
    turns: deque[tuple[int, int]]
    flying: dict[distributed.Future, tuple[int, int]] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)

    def task(self, turn: tuple[int, int]) -> Task:
        chain, position = turn
        return self.chains[chain][position]

    def advance(self, turn: tuple[int, int]) -> None:
        chain, position = turn
        if position + 1 < len(self.chains[chain]):
            # To the back of the queue, so that all chains progress together.
            self.turns.append((chain, position + 1))


def run_chains(
    client: distributed.Client,
    function: Callable[..., Receipt],
    chains: Sequence[Sequence[Task]],
    *,
    on_receipt: Callable[[Receipt], None],
    attempts: int = 3,
    backlog: int = 2,
    patience: float = 300.0,
) -> None:
    """Run every task of every chain, a chain's tasks in order, different chains in parallel.

    A task starts only after `on_receipt` has returned for its predecessor. The task of a worker
    that dies runs again elsewhere, so `function` must give the same files however often it runs.

    Args:
        client: the Dask client.
        function: makes a block on disk and returns its receipt, `function(*task.arguments)`.
        chains: the tasks.
        on_receipt: called here, in this thread, once for each finished task.
        attempts: how often one block may fail before the run stops.
        backlog: tasks handed out beyond one for each worker, so that none waits for the driver.
        patience: seconds without any worker after which the run stops.

    Raises:
        MachineError: a block failed `attempts` times (names the block and its last error), or
            Dask lost its scheduler or all workers for good.
        Exception: what `function` raised, at once, when a repetition would raise it again: a
            ValueError, a MachineError or anything with an `exit_code`.
    """
    state = _Chains(chains, deque((i, 0) for i, chain in enumerate(chains) if chain))
    finished: queue.SimpleQueue[distributed.Future] = queue.SimpleQueue()
    crew = _Crew(client, patience)
    try:
        while state.turns or state.flying:
            workers = crew.count()
            while state.turns and len(state.flying) < workers + backlog:
                turn = state.turns.popleft()
                task = state.task(turn)
                future = client.submit(function, *task.arguments, pure=False)
                state.flying[future] = turn
                future.add_done_callback(finished.put)
            try:
                future = finished.get(timeout=POLL)
            except queue.Empty:
                continue
            _collect(future, state, on_receipt=on_receipt, attempts=attempts, patience=patience)
            del future  # the result leaves the cluster with its last reference
    except LOST as error:
        raise MachineError(
            f"lost the Dask scheduler or its workers ({type(error).__name__}); "
            "run the same command again"
        ) from error
    finally:
        if state.flying and client.status == "running":
            with contextlib.suppress(*LOST):
                client.cancel(list(state.flying), force=True)


class _Crew:
    """The number of workers, looked up now and then."""

    def __init__(self, client: distributed.Client, patience: float) -> None:
        self._client, self._patience = client, patience
        self._workers, self._looked, self._seen = 0, -math.inf, time.monotonic()

    def count(self) -> int:
        """Workers that are there.

        Raises:
            MachineError: the scheduler is gone, or no worker came for too long.
        """
        now = time.monotonic()
        if now - self._looked < POLL:
            return self._workers
        if self._client.status != "running":
            raise MachineError("the Dask scheduler is gone; run the same command again")
        self._workers, self._looked = len(self._client.nthreads()), now
        if self._workers:
            self._seen = now
        elif now - self._seen > self._patience:
            raise MachineError(
                f"no Dask worker for {self._patience:g} s; run the same command again"
            )
        return self._workers


def _collect(
    future: distributed.Future,
    state: _Chains,
    *,
    on_receipt: Callable[[Receipt], None],
    attempts: int,
    patience: float,
) -> None:
    turn = state.flying.pop(future)
    task = state.task(turn)
    error = _error(future)
    if error is None:
        # If its worker died with the result, the block is made again; not for ever.
        on_receipt(future.result(timeout=patience))
        state.advance(turn)
        return
    if isinstance(error, ValueError) or hasattr(error, "exit_code"):
        raise error
    state.attempts[task.block] += 1
    if state.attempts[task.block] >= attempts:
        line = (str(error).strip().splitlines() or [""])[-1]
        raise MachineError(
            f"block {task.block} failed {attempts} times, last with {type(error).__name__}: {line}"
        ) from error
    state.turns.append(turn)


def _error(future: distributed.Future) -> Any:
    """What went wrong with a finished future, None if nothing."""
    if future.status == "finished":
        return None
    if future.status == "error":
        return future.exception()
    return RuntimeError(f"task was {future.status} by the scheduler")
