"""Directions u(x) in which a state is pushed, and their conjugate variable B = -div u - u . s.

    R(lag) = < A(x(t + lag)) B(x(t)) >

is the response of A to a displacement x -> x + epsilon u(x); a drift F -> F + epsilon f(t) u is
a history of such displacements.

Source: arXiv:2504.13333, equations 7 to 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workflow.interfaces import UserError
from workflow.responses.divergence import (
    EXACT_COMPONENTS,
    Seed,
    VectorField,
    divergence,
    rademacher,
    sum_components,
    unit_vectors,
)


@dataclass(frozen=True)
class Direction:
    """u(x), and its divergence where there is a formula for it.

    Attributes:
        u: displacement per unit of the perturbation, `(batch, field, *shape)` -> same.
        formula: div u, `(batch, field, *shape)` -> `(batch,)`; None to compute it.
    """

    u: VectorField
    formula: VectorField | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """u(x), of the shape of x.

        Raises:
            UserError: another shape than that of the state, or numbers that are not finite.
        """
        u = self.u(x)
        if not isinstance(u, Tensor) or u.shape != x.shape:
            given = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise UserError(
                f"u(x) is {given} for x of shape {tuple(x.shape)}; "
                "return a tensor (batch, field, *shape) like x"
            )
        if not torch.isfinite(u).all():
            raise UserError("u(x) is not finite on the data; correct the direction or its step")
        return u


def conjugate(
    direction: Direction | VectorField,
    x: Tensor,
    s: Tensor,
    *,
    probes: int | None = None,
    seed: Seed = 0,
) -> Tensor:
    """B = -div u - u . s of every sample, `(batch,)`, 1 / units of the perturbation.

    Args:
        direction: u(x), with its divergence where known.
        x: states `(batch, field, *shape)`.
        s: scores at these states, same shape.
        probes: see `divergence`; unused where the direction has a formula.
        seed: see `divergence`.

    Raises:
        UserError: u or its divergence has another shape than it should.
    """
    if not isinstance(direction, Direction):
        direction = Direction(direction)
    if direction.formula is None:
        div = divergence(direction, x, probes=probes, seed=seed)[0]
    else:
        div = direction.formula(x)
        if div.shape != x.shape[:1]:
            raise UserError(
                f"the divergence of u is of shape {tuple(div.shape)} for {len(x)} states; "
                "return one number for each state, (batch,)"
            )
    with torch.no_grad():
        return -div - sum_components(direction(x) * s)


def user_direction(
    function: VectorField, x: Tensor, *, formula: VectorField | None = None, seed: Seed = 0
) -> Direction:
    """A direction written by a user, tried on a few states before any work starts.

    Args:
        function: u(x), torch tensors `(batch, field, *shape)` -> same; the attribute
            `function.divergence`, if any, is taken as its divergence.
        x: a few states of the data.
        formula: div u, `(batch, field, *shape)` -> `(batch,)`, before the attribute.
        seed: of the probes that check the formula.

    Raises:
        UserError: a wrong shape, numbers that are not finite, a function that cannot be
            differentiated and has no divergence, or a divergence that is not that of u.
    """
    formula = formula if formula is not None else getattr(function, "divergence", None)
    direction = Direction(function, formula)
    direction(x)
    if formula is None:
        divergence(direction, x[:1], probes=1, seed=seed)
        return direction
    _check_formula(direction, x, seed=seed)
    return direction


def _check_formula(direction: Direction, x: Tensor, *, seed: Seed) -> None:
    """Refuse a given divergence that differences of u contradict."""
    y = x.double()
    given = -conjugate(direction, y, torch.zeros_like(y))
    exact = y[0].numel() <= EXACT_COMPONENTS
    h = 1e-4 * (float(y.std(correction=0)) or 1.0)
    along = list(unit_vectors(y)) if exact else rademacher(y, 32, seed)
    moved = [
        sum_components((direction(y + h * z) - direction(y - h * z)) * z) / (2 * h) for z in along
    ]
    terms = torch.stack(moved)
    found = terms.sum(0) if exact else terms.mean(0)
    slack = 0 if exact else 5 * terms.std(0) / len(along) ** 0.5
    allowed = slack + 1e-4 * (given.abs() + found.abs()) + 1e-6
    wrong = (given - found).abs() > allowed
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise UserError(
            f"the divergence of u is given as {float(given[first]):.4g} where differences of u "
            f"give {float(found[first]):.4g}; correct it, or leave it out to have it computed"
        )
