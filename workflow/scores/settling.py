"""Settling a trained score: what identities of the true score tell is solved for, not learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workflow.scores.conditional import split
from workflow.scores.neural import WhitenedScore, with_parameters
from workflow.scores.views import TERMS


@dataclass(frozen=True)
class Moments:
    """Sums over snapshots that a linear map is solved from; float64, on the CPU.

    Attributes:
        wrong: what the identities lack, `(*half-spectrum, field, seen)`, complex.
        squares: <z z^+> of what the map sees, `(*half-spectrum, seen, seen)`, complex.
        mean: of s~ - s~_0 over space, `(field,)`.
        count: snapshots, `(1,)`.
    """

    wrong: Tensor
    squares: Tensor
    mean: Tensor
    count: Tensor

    @classmethod
    def none(cls, model: WhitenedScore) -> Moments:
        """Of no snapshots."""
        fields, shape = len(model.whitening.mean), model.whitening.shape
        assert model.network.linear is not None
        half, seen = (*shape[:-1], shape[-1] // 2 + 1), model.network.linear.weight.shape[2]
        wrong = torch.zeros(*half, fields, seen, dtype=torch.complex128)
        squares = torch.zeros(*half, seen, seen, dtype=torch.complex128)
        return cls(wrong, squares, torch.zeros(fields).double(), torch.zeros(1).double())

    def __add__(self, other: Moments) -> Moments:
        """Of the snapshots of both."""
        return Moments(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def flat(self) -> Tensor:
        """All numbers, `(n,)`, to be added up over ranks."""
        complexes, reals = (self.wrong, self.squares), (self.mean, self.count)
        return torch.cat([torch.view_as_real(v).flatten() for v in complexes] + [*reals])

    def refilled(self, flat: Tensor) -> Moments:
        """The same with the numbers of `flat()`."""
        sizes = [2 * self.wrong.numel(), 2 * self.squares.numel(), len(self.mean), 1]
        wrong, squares, mean, count = flat.split(sizes)
        pair = [torch.view_as_complex(v.reshape(-1, 2).contiguous()) for v in (wrong, squares)]
        wrong, squares = (v.view_as(old) for v, old in zip(pair, self._all()[:2], strict=True))
        return Moments(wrong, squares, mean, count)

    def _all(self) -> tuple[Tensor, ...]:
        return self.wrong, self.squares, self.mean, self.count


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
    parts = settling_parts(model, x)
    if not parts:
        return with_parameters(model, dict(model.named_parameters()))
    sums = Moments.none(model)
    for number, part in enumerate(parts):
        sums = sums + moments(model, part, number)
    return settled_by(model, sums)


def settling_parts(model: WhitenedScore, x: Tensor) -> list[Tensor]:
    """The snapshots that settle a model, in parts to be summed one by one; none without a map."""
    if model.network.linear is None:
        return []
    inputs = model.network.linear.weight.shape[2]
    chosen = x[:: -(-len(x) // (SETTLING * (inputs // len(model.whitening.mean))))]
    return list(chosen.split(TOGETHER))


@torch.no_grad()
def moments(model: WhitenedScore, x: Tensor, number: int) -> Moments:
    """Sums over one of the `settling_parts`, whose number chooses its random changes."""
    weight = next(model.parameters())
    level = weight.new_tensor([model.process.sigma_min])
    own, given = split(model.whitening, x.to(weight.device).double())
    white = model.whitening.whiten(own)
    added, modes, score, more = _on_data(model, white, given, level)
    both = modes if more is None else torch.cat([modes, more], dim=1)
    errors = [torch.einsum("bf...,bg...->...fg", added, modes.conj())]
    if more is not None:
        errors.append(torch.einsum("bf...,bg...->...fg", score, more.conj()))
        if model.views:
            probes = torch.Generator().manual_seed(_PROBES + number)
            errors[-1] += _own_change(model, white, more.shape[1], probes)
    mean = added.flatten(2)[:, :, 0].real.sum(0) / math.sqrt(math.prod(model.whitening.shape))
    squares = torch.einsum("bf...,bg...->...fg", both, both.conj())
    wrong, count = torch.cat(errors, dim=-1), mean.new_tensor([len(x)])
    return Moments(*(v.cpu() for v in (wrong, squares, mean, count)))


@torch.no_grad()
def settled_by(model: WhitenedScore, sums: Moments) -> WhitenedScore:
    """A copy of the model with the map and the constant that the `moments` of all parts ask for."""
    model = with_parameters(model, dict(model.named_parameters()))
    linear = model.network.linear
    assert linear is not None
    level, fields = float(model.process.sigma_min), len(model.whitening.mean)
    inputs, carried = linear.weight.shape[2], len(model.views) * fields
    # x~ is scaled to order 1 before it is seen, and so are a, of order x^2, b, c; y is not.
    powers = [1.0] * fields + [0.5] * (inputs - fields - TERMS * carried)
    powers += [1.5 + 0.5 * term for term in range(TERMS) for _ in range(carried)]
    total = (1 + level**2) ** torch.tensor(powers).double()
    change = (-sums.wrong @ _inverse(sums.squares) * total).movedim((-2, -1), (0, 1))
    linear.add(torch.stack([change.real, change.imag]))
    bias = model.network.get_parameter("leave.conv.bias")
    bias[:fields] += (-sums.mean / sums.count * total[:fields].sqrt()).to(bias)
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
"""Snapshots of a part, scored at once: more of them do not fit the caches."""

PROBES = 2
"""Random changes of each snapshot that settles."""

_PROBES = 20261126
"""Seed of them, to which the number of the part is added."""


def _inverse(squares: Tensor) -> Tensor:
    """Of products of modes `(..., n, n)`, but for what never varies or follows from the others.

    In units of their spread, but no less than STILL of the largest: rounding is all that a mode
    below has, as where pixels are repeated or small scales filtered out.
    """
    power = squares.diagonal(dim1=-2, dim2=-1).real
    largest = power.flatten(0, -2).max(0).values
    scale = power.maximum(STILL * largest).clamp(min=torch.finfo(power.dtype).tiny).sqrt()
    both = scale[..., :, None] * scale[..., None, :]
    return torch.linalg.pinv(squares / both, atol=DEPENDENT, rtol=0.0, hermitian=True) / both


STILL = 1e-6
"""Share of the largest variance, as whitened, below which a mode does not set its own unit."""

DEPENDENT = 1e-6
"""Share of the variance of standardised modes below which one follows from the others."""


SETTLING = 8192
"""Most snapshots that settle the linear map for each of its inputs, evenly chosen."""
