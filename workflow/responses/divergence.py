"""Divergence of a function of the state, exact for small states and by random probes for others.

Source: M. F. Hutchinson, Commun. Stat. Simul. Comput. 19, 433 (1990).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from workflow.interfaces import UserError

VectorField = Callable[[Tensor], Tensor]
"""A function of states `(batch, field, *shape)` with values of the same shape, sample by sample."""

Seed = int | Sequence[int]
"""Seed of the probes; name the block too, as (seed, member, block): blocks need their own."""

EXACT_COMPONENTS = 64
"""Most numbers of a state for which a divergence is the full trace, one derivative for each."""

DEFAULT_PROBES = 4
"""Random probes of a divergence beyond that. B varies from sample to sample as much as one probe of
it does, so more samples buy more than more probes."""


def divergence(
    u: VectorField, x: Tensor, *, probes: int | None = None, seed: Seed = 0
) -> tuple[Tensor, str]:
    """div u = sum_i du_i/dx_i of every sample, by automatic differentiation.

    States of up to 64 numbers: the trace itself. Larger ones: Hutchinson's estimate
    mean z . (grad u) z over Rademacher probes z, without bias; its noise in B averages out over
    times like the noise of the state.

    Args:
        u: function in torch operations, each sample by itself.
        x: states `(batch, field, *shape)`.
        probes: number of probes; the default is none (exact) for small states and 4 for others.
        seed: of the probes, which also depend on the place of a sample in the batch.

    Returns:
        div u `(batch,)`, and how it was computed, in words.

    Raises:
        UserError: u depends on x by other means than torch operations.
    """
    with differentiable(x) as leaf:
        y = connected(u, leaf, name="u(x)")
        value = trace(y, leaf, probe_signs(leaf, probes, seed))
    return value.detach(), divergence_method(x, probes=probes)


def divergence_method(x: Tensor, *, probes: int | None = None) -> str:
    """How `divergence` does states like x, in words, for the record."""
    number = _count(x, probes)
    return f"Hutchinson, {number} Rademacher probes" if number else "automatic differentiation"


@contextmanager
def differentiable(x: Tensor) -> Iterator[Tensor]:
    """x as a leaf of a new graph, also inside `no_grad` and `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_()


def connected(function: VectorField, x: Tensor, *, name: str) -> Tensor:
    """function(x), refused where it depends on x but its graph does not."""
    refusal = UserError(
        f"{name} depends on x by other means than torch operations, so its divergence cannot be "
        "computed; write it in torch, or give its divergence"
    )
    try:
        y = function(x)
    except RuntimeError as error:
        if "requires grad" in str(error):  # x.numpy()
            raise refusal from error
        raise
    if not y.requires_grad:
        with torch.no_grad():
            elsewhere = function(x + 0.5 * (1 + x.detach().abs()))
        if not torch.equal(elsewhere, y):
            raise refusal
    return y


def trace(y: Tensor, x: Tensor, signs: list[Tensor] | None, *, keep: bool = False) -> Tensor:
    """sum_i dy_i/dx_i `(batch,)`: component by component, or the mean over probes.

    Args:
        y: function of the leaf x, same shape.
        x: leaf of the graph.
        signs: probes, or None for the whole trace.
        keep: whether the trace is to be differentiated again.
    """
    total = x.new_zeros(len(x))
    if not y.requires_grad:
        return total
    for z in unit_vectors(x) if signs is None else signs:
        (gradient,) = torch.autograd.grad(
            (y * z).sum(), x, retain_graph=True, create_graph=keep, allow_unused=True
        )
        if gradient is None:
            return total
        total = total + sum_components(gradient * z)
    return total if signs is None else total / len(signs)


def _count(x: Tensor, probes: int | None) -> int:
    """Number of probes, 0 for the exact trace."""
    if probes is not None:
        if probes < 1:
            raise UserError(f"probes={probes}: a divergence needs at least 1")
        return probes
    return 0 if x[0].numel() <= EXACT_COMPONENTS else DEFAULT_PROBES


def probe_signs(x: Tensor, probes: int | None, seed: Seed) -> list[Tensor] | None:
    """Rademacher probes for states like x, or None where the trace is taken whole."""
    number = _count(x, probes)
    return rademacher(x, number, seed) if number else None


def rademacher(x: Tensor, number: int, seed: Seed) -> list[Tensor]:
    """Signs of the shape of x; a number of them."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    signs = generator.integers(0, 2, size=(number, *x.shape), dtype=np.int8) * 2 - 1
    return list(torch.from_numpy(signs).to(x.dtype))


def unit_vectors(x: Tensor) -> Iterator[Tensor]:
    """The unit vectors of a state, each for the whole batch."""
    for component in range(x[0].numel()):
        unit = x.new_zeros(x[0].numel())
        unit[component] = 1
        yield unit.reshape(x.shape[1:]).expand(x.shape)


def sum_components(x: Tensor) -> Tensor:
    """Sum over everything but the batch, `(batch,)`."""
    return x.flatten(1).sum(1)
