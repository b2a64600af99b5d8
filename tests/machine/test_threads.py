"""Workers compute with one thread each, whatever the user's shell says."""

import os

import torch

from hpc.backends import open_client


def threads() -> tuple[int, int]:
    """Threads of torch before and after a product large enough to start more."""
    before = torch.get_num_threads()
    torch.randn(600, 600) @ torch.randn(600, 600)
    return before, torch.get_num_threads()


def test_workers_have_one_thread_each(monkeypatch):
    """Two workers with four threads each would share two cores between eight."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "4")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with open_client("local", workers=2, log_dir=None) as client:
        assert set(client.run(threads).values()) == {(1, 1)}  # in the worker's own thread
        tasks = [client.submit(threads, pure=False) for _ in range(4)]
        assert client.gather(tasks) == [(1, 1)] * 4  # in those of its tasks
        assert set(client.run(os.getenv, "OMP_WAIT_POLICY").values()) == {"passive"}
    assert os.environ["OMP_NUM_THREADS"] == "4" and "OMP_WAIT_POLICY" not in os.environ
