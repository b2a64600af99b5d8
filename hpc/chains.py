"""Driving chains of tasks: each in order, all in parallel, on workers that may die."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import distributed

from hpc.errors import MachineError
from hpc.ledger import Receipt

POLL = 1.0
"""Seconds between looks at the number of workers, which may grow and shrink."""


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

    Raises:
        MachineError: a block failed `attempts` times; names the block and its last error.
        Exception: what `function` raised, at once, when a repetition would raise it again: a
            ValueError, a MachineError or anything with an `exit_code`.
    """
    state = _Chains(chains, deque((i, 0) for i, chain in enumerate(chains) if chain))
    finished: queue.SimpleQueue[distributed.Future] = queue.SimpleQueue()
    workers, counted = _workers(client), time.monotonic()
    try:
        while state.turns or state.flying:
            if time.monotonic() - counted > POLL:
                workers, counted = _workers(client), time.monotonic()
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
            _collect(future, state, on_receipt=on_receipt, attempts=attempts)
            del future  # the result leaves the cluster with its last reference
    finally:
        if state.flying and client.status == "running":
            client.cancel(list(state.flying), force=True)


def _workers(client: distributed.Client) -> int:
    if client.status != "running":
        raise MachineError("the Dask scheduler is gone; run the same command again")
    return len(client.nthreads())


def _collect(
    future: distributed.Future,
    state: _Chains,
    *,
    on_receipt: Callable[[Receipt], None],
    attempts: int,
) -> None:
    turn = state.flying.pop(future)
    task = state.task(turn)
    error = _error(future)
    if error is None:
        on_receipt(future.result())
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
