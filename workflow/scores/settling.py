"""Settling a trained score: what identities of the true score tell is solved for, not learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workflow.scores.conditional import split
from workflow.scores.covariance import SPECTRUM_FLOOR
from workflow.scores.neural import WhitenedScore, with_parameters
from workflow.scores.views import TERMS


def settled(model: WhitenedScore, x: Tensor) -> WhitenedScore:
    """A copy whose network adds nothing along x~ to the score it started from.

        s~ <- s~ - <(s~ - s~_0) x~^+> <x~ x~^+>^-1 x~

    s~_0, of the potential or the Gaussian, obeys the Stein identity -<s~_0 x~^+> = 1 at every
    wavenumber of all data, so s~ then does too: there score matching has its minimum in the linear
    map of the network, the rest being fixed. Training comes close; but where a mode has narrow
    wells far apart, a linear term far too small for the loss to see is a large part of the
    response. Unlike a division by the Stein matrix, this leaves alone what is right in the score,
    and only the small difference s~ - s~_0 is averaged, over few snapshots. What is given, y,
    stands beside x~ in the same system, with -<s~ y^+> = 0. So do a, b, c of `Velocity.advection`
    where the network sees the flow, with -<s~ b^+> = <db/dx~>^+. They are most of how turbulence
    moves, x(t) = x - t a + t^2 b / 2 - t^3 c / 6 + ...: to third order in t its responses do not
    feel what the network has learned wrongly. Likewise <s~> = 0: s~_0 obeys it, so the mean of
    the difference is taken out.

    Args:
        model: with a linear map; without one, as without space, nothing changes.
        x: snapshots `(batch, field + given, *shape)`: those of training.
    """
    model = with_parameters(model, dict(model.named_parameters()))
    linear = getattr(model.network, "linear", None)
    if linear is None:
        return model
    level = linear.weight.new_tensor([model.process.sigma_min])
    wrong = squares = mean = torch.zeros((), device=level.device)
    fields, points = len(model.whitening.mean), math.prod(x.shape[2:])
    inputs = linear.weight.shape[2]
    seen = x[:: -(-len(x) // (SETTLING * (inputs // fields)))]
    probes = torch.Generator().manual_seed(_PROBES)
    with torch.no_grad():
        for part in seen.split(TOGETHER):
            own, given = split(model.whitening, part.to(level.device).double())
            field = model.whitening.whiten(own)
            added, white, score, more = _on_data(model, field, given, level)
            both = white if more is None else torch.cat([white, more], dim=1)
            errors = [torch.einsum("bf...,bg...->...fg", added, white.conj())]
            if more is not None:
                errors.append(torch.einsum("bf...,bg...->...fg", score, more.conj()))
                if model.views:
                    errors[-1] += _own_change(model, field, more.shape[1], probes)
            wrong = wrong + torch.cat(errors, dim=-1)
            mean = mean + added.flatten(2)[:, :, 0].real.sum(0) / math.sqrt(points)
            squares = squares + torch.einsum("bf...,bg...->...fg", both, both.conj())
        # x~ is scaled to order 1 before it is seen, and so are a, of order x^2, b, c; y is not.
        carried = len(model.views) * fields
        powers = [1.0] * fields + [0.5] * (inputs - fields - TERMS * carried)
        powers += [1.5 + 0.5 * term for term in range(TERMS) for _ in range(carried)]
        total = (1 + level.double() ** 2) ** squares.new_tensor(powers).real
        inverse = torch.linalg.inv(squares) if len(total) == fields else _inverse(squares)
        change = (-wrong @ inverse * total).movedim((-2, -1), (0, 1))
        constant = -mean / len(seen) * total[:fields].sqrt()
        linear.add(torch.stack([change.real, change.imag]))
        bias = model.network.get_parameter("leave.conv.bias")
        bias[:fields] += constant.to(bias)
    return model


def _on_data(
    model: WhitenedScore, white: Tensor, given: Tensor | None, level: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Modes of s~ - s~_0, x~, s~ and of what the map sees beside x~; x~ and y are in float64."""
    told = list[Tensor]()
    if given is not None and model.standardised is not None:
        told.append(model.standardised(given))
        given = given.to(level.dtype)
    carried = model.carried(model.whitening.colour(white))
    told += [] if carried is None else [carried]
    score = model(white.to(level.dtype), level, given)
    added = score - model.beginning(white.to(level.dtype), given)
    more = _modes(torch.cat(told, dim=1)) if told else None
    return _modes(added.double()), _modes(white), _modes(score.double()), more


def _own_change(
    model: WhitenedScore, white: Tensor, beside: int, probes: torch.Generator
) -> Tensor:
    """Sum over a batch of <dz/dx~>^+ for each z beside x~, `(*half-spectrum, field, beside)`.

    By the change along random x~. Only b and c of the advection have any.
    """
    fields = white.shape[1]

    def carried(white: Tensor) -> Tensor:
        found = model.carried(model.whitening.colour(white))
        assert found is not None
        return found

    total = torch.zeros((), device=white.device)
    for _ in range(PROBES):
        probe = torch.randn(white.shape, generator=probes, dtype=white.dtype).to(white.device)
        along = torch.func.jvp(carried, (white,), (probe,))[1][:, fields:]
        total = total + torch.einsum("bf...,bg...->...fg", _modes(probe), _modes(along).conj())
    return torch.nn.functional.pad(total / PROBES, (beside - total.shape[-1], 0))


def _modes(x: Tensor) -> Tensor:
    """`(batch, field, *shape)` -> `(batch, field, *half-spectrum)`, of the same mean square."""
    return torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")


TOGETHER = 32
"""Snapshots scored at once: more of them do not fit the caches."""

PROBES = 2
"""Random changes of each snapshot that settles."""

_PROBES = 20261126
"""Seed of them."""


def _inverse(squares: Tensor) -> Tensor:
    """Of products of modes `(..., n, n)`, but for what never varies or follows from the others.

    In units of their spread, so that what rounding leaves of a still mode stays small.
    """
    power = squares.diagonal(dim1=-2, dim2=-1).real
    largest = power.flatten(0, -2).max(0).values
    scale = power.clamp(min=SPECTRUM_FLOOR).maximum(SPECTRUM_FLOOR * largest).sqrt()
    both = scale[..., :, None] * scale[..., None, :]
    return torch.linalg.pinv(squares / both, rtol=DEPENDENT, hermitian=True) / both


DEPENDENT = 1e-6
"""Share of the variance of standardised modes below which one follows from the others."""


SETTLING = 8192
"""Most snapshots that settle the linear map for each of its inputs, evenly chosen."""
