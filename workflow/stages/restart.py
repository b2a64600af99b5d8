"""Restart states: what a segment of simulation leaves for the next one and for paired runs."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from hpc.errors import CorruptBlock
from hpc.files import atomic_write_bytes, file_crc
from hpc.ledger import Ledger
from workflow.interfaces import State
from workflow.runs import Run
from workflow.stages.data import load_tensors


def block_name(group: int, segment: int) -> str:
    """Name of a block; segments below zero are spin-up."""
    kind = "spinup" if segment < 0 else "ensemble"
    return f"{kind}-g{group:04d}-{abs(segment):05d}"


def save_state(run: Run, block: str, state: State) -> dict[str, str]:
    """Write a restart state; returns its path and checksum."""
    buffer = io.BytesIO()
    torch.save({name: value.clone() for name, value in state.items()}, buffer)
    path = run.folder / "restart" / f"{block}.pt"
    atomic_write_bytes(path, buffer.getvalue())
    return {str(path.relative_to(run.folder)): file_crc(path)}


def load_state(folder: Path, ledger: Ledger, block: str) -> State:
    """A restart state, checked against its receipt.

    Raises:
        CorruptBlock: it is damaged.
    """
    path = folder / "restart" / f"{block}.pt"
    if ledger.load(block).files.get(f"restart/{block}.pt") != file_crc(path):
        raise CorruptBlock(f"{path} is damaged")
    state: State = load_tensors(path)
    return state
