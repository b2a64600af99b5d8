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

from hpc.deadline import Declined, Needed, in_time
from hpc.errors import MachineError
from hpc.ledger import Receipt
from hpc.pool import Pool, pool_of

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
    needed: Needed = field(default_factory=Needed)

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
    pool = pool_of(client)
    crew = _Crew(client, pool, patience)
    try:
        while state.turns or state.flying:
            pool.want(len(state.turns) + len(state.flying))
            workers = crew.count()
            while state.turns and len(state.flying) < workers + backlog:
                turn = state.turns.popleft()
                task = state.task(turn)
                call = (state.needed.seconds, function, *task.arguments)
                future = client.submit(in_time, *call, pure=False)
                state.flying[future] = turn
                future.add_done_callback(finished.put)
            try:
                future = finished.get(timeout=POLL)
            except queue.Empty:
                continue
            _collect(
                future, state, pool, on_receipt=on_receipt, attempts=attempts, patience=patience
            )
            del future  # the result leaves the cluster with its last reference
    except LOST as error:
        raise MachineError(
            f"lost the Dask scheduler or its workers ({type(error).__name__}); "
            "run the same command again"
        ) from error
    finally:
        pool.want(0)
        if state.flying and client.status == "running":
            with contextlib.suppress(*LOST):
                client.cancel(list(state.flying), force=True)


class _Crew:
    """How many tasks the workers take at once, looked up now and then."""

    def __init__(self, client: distributed.Client, pool: Pool, patience: float) -> None:
        self._client, self._pool, self._patience = client, pool, patience
        self._workers, self._looked, self._seen = 0, -math.inf, time.monotonic()

    def count(self) -> int:
        """Threads of the workers that are there.

        Raises:
            MachineError: the scheduler is gone, or no worker came for too long; one that waits
                in the queue of a batch system is on its way.
        """
        now = time.monotonic()
        if now - self._looked < POLL:
            return self._workers
        if self._client.status != "running":
            raise MachineError("the Dask scheduler is gone; run the same command again")
        self._workers, self._looked = sum(self._client.nthreads().values()), now
        if self._pool.waiting() or self._workers:
            self._seen = now
        elif now - self._seen > self._patience:
            why = f" ({self._pool.note})" if self._pool.note else ""
            raise MachineError(
                f"no Dask worker for {self._patience:g} s{why}; run the same command again"
            )
        return self._workers


def _collect(
    future: distributed.Future,
    state: _Chains,
    pool: Pool,
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
        result = future.result(timeout=patience)
        if isinstance(result, Declined):
            state.turns.appendleft(turn)
            pool.declined(result.worker)
            return
        on_receipt(result)
        state.needed.note(result.facts)
        pool.done()
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
