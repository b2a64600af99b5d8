"""Scores of some fields given others, grad log p(x | y): what answers kicks of x alone.

A kick of x leaves y as it is, so B = -div u - u . s needs no derivative along y; and where y is
part of what goes on (a hidden forcing, a season), s must be that of x *given* y: with the score
of x alone, GFDT is wrong by < A(x(t)) u . (s(x | y) - s(x)) >.

A snapshot `(batch, field + given, *shape)` has x first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workflow.interfaces import System
from workflow.scores.closed_form import ExactScore, Gaussian


def given_fields(gaussian: Gaussian) -> int:
    """How many fields of a snapshot are given, those after the ones that have a score."""
    return 0 if gaussian.joint is None else len(gaussian.joint.mean) - len(gaussian.mean)


def split(gaussian: Gaussian, snapshot: Tensor) -> tuple[Tensor, Tensor | None]:
    """x, and what it is conditioned on; None where that is nothing."""
    fields = len(gaussian.mean)
    return snapshot[:, :fields], snapshot[:, fields:] if gaussian.joint is not None else None


def centred_given(gaussian: Gaussian, snapshot: Tensor) -> Tensor | None:
    """What is given less its mean, `(batch, given, *shape)`; None where that is nothing."""
    _, given = split(gaussian, snapshot)
    return None if given is None else given - _mean_of_given(gaussian).to(given)


def _mean_of_given(gaussian: Gaussian) -> Tensor:
    """`(given, *ones)` of homogeneous fields, else `(given, *shape)`."""
    assert gaussian.joint is not None
    mean = gaussian.joint.mean[len(gaussian.mean) :]
    return mean.reshape(-1, *[1] * len(gaussian.shape)) if mean.ndim == 1 else mean


class Standardised(nn.Module):
    """What is given in standard deviations of its fields, from its mean there."""

    mean: Tensor
    scale: Tensor

    def __init__(self, gaussian: Gaussian) -> None:
        super().__init__()
        joint, fields = gaussian.joint, len(gaussian.mean)
        assert joint is not None
        scale = joint.pixel_variance[fields:].sqrt().reshape(-1, *[1] * len(gaussian.shape))
        self.register_buffer("mean", _mean_of_given(gaussian).float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, given: Tensor) -> Tensor:
        """`(batch, given, *shape)` -> same."""
        return (given - self.mean.to(given.dtype)) / self.scale.to(given.dtype)


@dataclass(frozen=True)
class ConditionalGaussian:
    """Score of x given y where both are Gaussian together.

        s = -[C^-1 (z - m)]_x,    z = (x, y)

    Attributes:
        gaussian: of x, with that of both as its `joint`.
    """

    gaussian: Gaussian

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x, from `(batch, field + given, *shape)`."""
        assert self.gaussian.joint is not None
        return self.gaussian.joint(x)[:, : len(self.gaussian.mean)]

    def beyond(self, x: Tensor, given: Tensor) -> Tensor:
        """What it adds to the Gaussian score of x alone, `(batch, field, *shape)`."""
        return self(torch.cat([x, given], dim=1)) - self.gaussian(x)


@dataclass(frozen=True)
class ConditionalExact:
    """Score of x given y, of a system whose density of both is known: the x part of its score.

    Attributes:
        exact: score of all fields of the system.
        rows: where the fields of a snapshot, x first, stand in the system.
        fields: number of fields of x.
    """

    exact: ExactScore
    rows: tuple[int, ...]
    fields: int

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x, from `(batch, field + given, *shape)`."""
        ordered = torch.empty_like(x)
        ordered[:, list(self.rows)] = x
        return self.exact(ordered)[:, list(self.rows[: self.fields])]


def gaussian_score(gaussian: Gaussian) -> Gaussian | ConditionalGaussian:
    """The Gaussian score of snapshots: conditional where something is given."""
    return gaussian if gaussian.joint is None else ConditionalGaussian(gaussian)


def exact_score(system: System, rows: Sequence[int], fields: int) -> ExactScore | ConditionalExact:
    """The exact score of snapshots: conditional where there are more rows than fields.

    Args:
        system: what has it.
        rows: which field of the system stands in each row of a snapshot.
        fields: rows that have a score, the first ones.

    Raises:
        UserError: the system has none.
    """
    exact = ExactScore(system)
    if list(rows) == list(range(fields)):
        return exact
    return ConditionalExact(exact, tuple(rows), fields)
