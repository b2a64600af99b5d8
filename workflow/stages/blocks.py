"""Running the independent blocks of a stage on Dask, skipping those that have a receipt."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import distributed

from hpc.chains import Task, run_chains
from hpc.ledger import Receipt
from workflow.runs import Notify, Run


def run_blocks(
    run: Run,
    client: Callable[[], distributed.Client],
    *,
    stage: str,
    function: Callable[..., Receipt],
    blocks: Mapping[str, tuple],
    notify: Notify,
) -> None:
    """Make every block without a receipt, `function(*arguments)`, in any order.

    Args:
        run: the run.
        client: gives where to run; called only if there is work.
        stage: name of the ledger.
        function: makes a block and returns its receipt.
        blocks: arguments by name of block.
        notify: told of progress.
    """
    ledger = run.ledger(stage)
    done = ledger.done()
    todo = [[Task(name, arguments)] for name, arguments in blocks.items() if name not in done]
    finished = len(blocks) - len(todo)
    notify(stage, finished, len(blocks))

    def on_receipt(receipt: Receipt) -> None:
        nonlocal finished
        ledger.record(receipt)
        finished += 1
        notify(stage, finished, len(blocks))

    if todo:
        run_chains(client(), function, todo, on_receipt=on_receipt)


def facts_since(started: float) -> dict[str, Any]:
    """Where a block was made and how long it took, from `time.perf_counter()` at its start."""
    seconds = round(time.perf_counter() - started, 3)
    return {"seconds": seconds, "host": socket.gethostname(), "pid": os.getpid()}
