"""Many blocks and many workers: what the driver holds, and what it leaves on the disk."""

import dask
import distributed
import psutil
import pytest

from hpc.chains import Task, run_chains
from hpc.ledger import LOOSE, Ledger, Receipt

BACKLOG = 2


def block(chain, position):
    name = f"ensemble-g{chain:04d}-{position:05d}"
    return Receipt(name, {f"ensemble.zarr/u/c/{chain}/{position}/0": "0" * 16}, {"pid": 1})


@pytest.mark.parametrize(
    "workers, chains, length",
    [(8, 30, 10), pytest.param(100, 100, 100, marks=pytest.mark.slow)],
)
def test_neither_tasks_nor_files_nor_memory_grow_with_the_run(
    tmp_path, monkeypatch, workers, chains, length
):
    """In flight are as many as there are workers and two; receipts are packed."""
    ledger, most = Ledger(tmp_path / "ledger", tmp_path), 0
    # A hundred workers in one process would watch the process a hundred times over.
    with (
        dask.config.set({"distributed.admin.system-monitor.interval": "60s"}),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(workers, timeout=120)

        def record(receipt):
            nonlocal most
            ledger.record(receipt)
            most = max(most, len(client.futures))

        before = psutil.Process().memory_info().rss
        tasks = [[Task(f"{c}-{p}", (c, p)) for p in range(length)] for c in range(chains)]
        run_chains(client, block, tasks, on_receipt=record, backlog=BACKLOG)
        assert psutil.Process().memory_info().rss - before < 500 * 2**20
    assert len(ledger.done()) == chains * length
    assert most <= workers + BACKLOG + 1  # and the one whose receipt is being recorded
    assert len(list(ledger.folder.iterdir())) <= max(LOOSE, chains * length // 8) + 1
