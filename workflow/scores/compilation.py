"""Compiling a network for training, by torch.compile."""

from __future__ import annotations

from workflow.interfaces import UserError
from workflow.scores.neural import WhitenedScore


def compile_network(model: WhitenedScore) -> None:
    """Compile the network of a model when it is first used; copies of the model are not."""
    from torch._inductor import config  # takes a second, and most trainings do without

    # A pool of processes that compile would outlive a rank that is killed.
    config.compile_threads = 1
    model.network.compile()


def refuse_what_cannot_be_compiled(error: RuntimeError) -> None:
    """Say what to do where torch could not compile; anything else passes.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
        return
    line = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    raise UserError(
        f"the network cannot be compiled: {line}; load a C++ compiler, or name it in CXX, or set "
        "score.train.compile=false"
    ) from error
