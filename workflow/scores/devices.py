"""Where training and scoring run: a CUDA device when torch sees one, else the CPU."""

from __future__ import annotations

import torch


def compute_device(number: int = 0) -> torch.device:
    """The device of a rank or worker of this node, and float32 that is float32.

    TensorFloat-32 is switched off: its 10 bits of mantissa would be visible where a score is
    compared with an exact one. `precision: bf16` is the fast choice, for the network alone.

    Args:
        number: of the rank or worker; those of one node share its devices evenly.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", number % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or NumPy failed for want of memory, on any device."""
    known = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or "can't allocate memory" in str(error)
