"""Scores with a formula: the exact one of a system, and the Gaussian one of any data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from workflow.interfaces import HasExactScore, System, UserError, space_axes
from workflow.scores.covariance import SPECTRUM_FLOOR, diagonal_of, floored, maps_of, shrunk
from workflow.scores.potential import SNAPSHOTS, LocalPotential

LARGEST_DENSE = 8192
"""Most numbers of one snapshot for which a full covariance matrix is made (0.5 GiB)."""


@dataclass(frozen=True)
class ExactScore:
    """grad log p of a system whose stationary density is known."""

    system: System

    def __post_init__(self) -> None:
        if not isinstance(self.system, HasExactScore):
            raise UserError(
                f"{type(self.system).__name__} has no exact score; remove 'exact' from "
                "response.estimators"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x."""
        assert isinstance(self.system, HasExactScore)
        return self.system.exact_score(x)


class _Whitening(ABC):
    """What every Gaussian does with its mean m and the maps of `_weights`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Gaussian score `(batch, field, *shape)`, 1 / units of x."""
        return -self._apply("precision", self._centred(x))

    def whiten(self, x: Tensor) -> Tensor:
        """x~: unit variance in every mode, no correlation of fields."""
        return self._apply("whiten", self._centred(x))

    def colour(self, x: Tensor) -> Tensor:
        """The inverse of `whiten` but for the mean."""
        return self._apply("colour", x)

    def unwhiten(self, x: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        coloured = self.colour(x)
        return coloured - self._centred(torch.zeros_like(coloured))

    def score_to_white(self, s: Tensor) -> Tensor:
        """Score with respect to x~ from that with respect to x: the transpose of `colour`."""
        return self._apply("score_to_white", s)

    def score_from_white(self, s: Tensor) -> Tensor:
        """Score with respect to x from that with respect to x~."""
        return self._apply("score_from_white", s)

    def equalise(self, s: Tensor) -> Tensor:
        """J^(-1/2) s for scores s of x~: all modes of the score then have the same variance.

        J is the Fisher information <s s^+>, 1 for a Gaussian. Where the density has narrow wells
        far apart, J of the largest scales can be a thousand.
        """
        return s

    @abstractmethod
    def _centred(self, x: Tensor) -> Tensor:
        """x - m."""

    @abstractmethod
    def _apply(self, name: str, x: Tensor) -> Tensor:
        """The map of that name in `_weights`."""

    @cached_property
    @abstractmethod
    def _weights(self) -> dict[str, Tensor]:
        """The maps by name, in float64 where the fit lives."""

    @cached_property
    def _converted(self) -> dict[tuple[str, torch.dtype, torch.device], Tensor]:
        return {}

    @torch.inference_mode(False)
    def _weight(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A map in the type and on the device of the data, converted once."""
        key = (name, dtype, device)
        if key not in self._converted:
            self._converted[key] = self._weights[name].to(device=device, dtype=dtype)
        return self._converted[key]


@dataclass(frozen=True)
class SpectralGaussian(_Whitening):
    """A homogeneous Gaussian: independent wavenumbers, and the whitening that goes with it.

        C_k = D^(1/2) U D^(1/2),    x~ = U^(-1/2) D^(-1/2) (x - m),    s = -C^-1 (x - m)

    C_k is a Hermitian matrix over the fields, D its diagonal, U the matrix of correlations; with
    one field U = 1. Whitening through U makes it independent of the units of the fields.

    Attributes:
        mean: mean per field, `(field,)`.
        spectrum: C_k, eigenvalues of the pixel covariances, `(field, field, *half-spectrum)`.
        shape: space shape.
        potential: of the field in units of its spread, for a learned score to start from.
        joint: Gaussian of these fields and of what is given, in this order; None for nothing.
        information: J, the Fisher information of x~, `(field, field, *half-spectrum)`; None for
            that of the potential.
    """

    mean: Tensor
    spectrum: Tensor
    shape: tuple[int, ...]
    potential: LocalPotential | None = None
    joint: SpectralGaussian | None = None
    information: Tensor | None = None

    @classmethod
    def fit(cls, x: Tensor) -> SpectralGaussian:
        """Mean and spectrum of homogeneous data `(batch, field, *shape)`.

        The sums run in float64 over batches in order.

        Raises:
            UserError: a field that never varies.
        """
        shape, axes = tuple(x.shape[2:]), space_axes(x)
        mean = x.mean(dim=(0, *axes), dtype=torch.float64)
        total = torch.zeros((), device=x.device)
        for part in x.split(4096):
            centred = part.double() - mean.reshape(-1, *[1] * len(shape))
            modes = torch.fft.rfftn(centred, dim=axes)
            total = total + torch.einsum("bf...,bg...->fg...", modes, modes.conj())
        spectrum = total / (len(x) * math.prod(shape))
        return cls(mean, floored(spectrum.real if len(mean) == 1 else spectrum), shape)

    def equalise(self, s: Tensor) -> Tensor:
        """See `_Whitening.equalise`."""
        sources = (self.potential, self.information, self.joint)
        return s if all(source is None for source in sources) else self._apply("equalise", s)

    @property
    def pixel_variance(self) -> Tensor:
        """Variance of a pixel of each field, `(field,)`."""
        modes = diagonal_of(self.spectrum.movedim((0, 1), (-2, -1))).movedim(-1, 0)
        lag_zero = torch.fft.irfftn(modes, s=self.shape, dim=tuple(range(1, modes.ndim)))
        return lag_zero.flatten(1)[:, 0]

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `gaussian_from` makes it again."""
        state = {"mean": self.mean, "spectrum": self.spectrum}
        if self.potential is not None:
            state |= {f"potential_{k}": v for k, v in self.potential.state().items()}
        if self.information is not None:
            state["information"] = self.information
        return state | _joint_state(self.joint)

    def with_potential(self, x: Tensor) -> SpectralGaussian:
        """The same, with a local potential fitted to data `(batch, field, *shape)`."""
        p = self._centred(x[:: -(-len(x) // SNAPSHOTS)]) / _per_field(self.pixel_variance.sqrt(), x)
        return replace(self, potential=LocalPotential.fit(p))

    @cached_property
    @torch.inference_mode(False)  # what is kept must serve automatic differentiation too
    def _weights(self) -> dict[str, Tensor]:
        matrices = self.spectrum.movedim((0, 1), (-2, -1))
        scale = diagonal_of(matrices).sqrt()
        unit = matrices / (scale[..., :, None] * scale[..., None, :])
        weights = maps_of(scale, *torch.linalg.eigh(unit))
        weights["equalise"] = self._equaliser(weights)
        return {name: weight.movedim((-2, -1), (0, 1)) for name, weight in weights.items()}

    def _equaliser(self, weights: Mapping[str, Tensor]) -> Tensor:
        """J^(-1/2) of the Fisher information J of x~; the identity where it is not known.

        Where something is given, the potential's J of x alone is raised by what the joint
        Gaussian says of x given it.
        """
        colour, one = weights["colour"], torch.eye(len(self.mean)).to(weights["colour"])
        if self.information is not None:
            information = self.information.movedim((0, 1), (-2, -1))
        elif self.potential is not None:
            units = colour / self.pixel_variance.sqrt()[:, None]
            matrices = self.potential.information.movedim((0, 1), (-2, -1))
            information = units.mH.to(matrices.dtype) @ matrices @ units.to(matrices.dtype)
        else:
            information = one.expand_as(colour)
        if self.information is None and self.joint is not None:
            n, joint = len(one), self.joint._weights["precision"]
            excess = joint[:n, :n].movedim((0, 1), (-2, -1)) - weights["precision"]
            wide = colour.to(excess.dtype)
            information = information + wide.mH @ excess @ wide
        values, vectors = torch.linalg.eigh(information if len(one) > 1 else information.real)
        # J >= 1 for unit variance (Cramer and Rao); a finite sample can say less.
        return (vectors * values.clamp(min=1).pow(-0.5)[..., None, :]) @ vectors.mH

    def _apply(self, name: str, x: Tensor) -> Tensor:
        axes = space_axes(x)
        modes = torch.fft.rfftn(x, dim=axes)
        if len(self.mean) == 1:
            modes = modes * self._weight(name, x.dtype, x.device)[0]
        else:
            weight = self._weight(name, modes.dtype, x.device)
            modes = torch.einsum("fg...,bg...->bf...", weight, modes)
        return torch.fft.irfftn(modes, s=self.shape, dim=axes)

    def _centred(self, x: Tensor) -> Tensor:
        return x - _per_field(self.mean, x)


@dataclass(frozen=True)
class DenseGaussian(_Whitening):
    """A Gaussian without symmetry: full covariance, shrunk towards its diagonal.

        C = D^(1/2) U D^(1/2),    x~ = U^(-1/2) D^(-1/2) (x - m),    s = -C^-1 (x - m)

    The symmetric root of U keeps every number of x~ as near as can be to its own place in x.

    Attributes:
        mean: `(field, *shape)`.
        scale: D^(1/2), standard deviations, `(numbers,)` of a flattened snapshot.
        values: eigenvalues of the correlations U, `(numbers,)`.
        vectors: eigenvectors of U in columns, `(numbers, numbers)`.
        joint: as of `SpectralGaussian`.
    """

    mean: Tensor
    scale: Tensor
    values: Tensor
    vectors: Tensor
    joint: DenseGaussian | None = None

    @classmethod
    def fit(cls, x: Tensor) -> DenseGaussian:
        """Mean and shrunk covariance of data `(batch, field, *shape)`.

        Shrinkage towards the diagonal with the intensity of Schaefer and Strimmer (2005) keeps C
        invertible with fewer samples than numbers in a snapshot.

        Raises:
            UserError: fewer than 3 samples, too large a snapshot, or a number that never varies.
        """
        if len(x) < 3:
            raise UserError(f"{len(x)} snapshots; a covariance needs at least 3, add data")
        numbers = x[0].numel()
        refuse_dense(numbers)
        flat = x.reshape(len(x), -1)
        mean = flat.mean(0, dtype=torch.float64)
        # Two passes: squares of deviations in units of their spread neither cancel nor overflow.
        parts = flat.split(4096)
        variance = sum(((p.double() - mean).square().sum(0) for p in parts), torch.zeros(()))
        still = (variance <= 0).nonzero().flatten().tolist()
        if still:
            raise UserError(
                f"{len(still)} of {numbers} places never vary, the first at flat index {still[0]}; "
                "leave them out of the data"
            )
        scale = (variance / (len(x) - 1)).sqrt()
        products = torch.zeros(numbers, numbers, dtype=torch.float64, device=x.device)
        squares = torch.zeros_like(products)
        for part in parts:
            unit = (part.double() - mean) / scale
            products += unit.T @ unit
            squares += (unit**2).T @ (unit**2)
        shrunken = shrunk(products / (len(x) - 1), squares / len(x), samples=len(x))
        values, vectors = torch.linalg.eigh(shrunken)
        floor = SPECTRUM_FLOOR * float(values.max())
        return cls(mean.reshape(x.shape[1:]), scale, values.clamp(min=floor), vectors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Space shape."""
        return tuple(self.mean.shape[1:])

    @property
    def pixel_variance(self) -> Tensor:
        """Variance of a pixel of each field, mean over the places, `(field,)`."""
        return self.scale.square().reshape(len(self.mean), -1).mean(1)

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `gaussian_from` makes it again."""
        names = ("mean", "scale", "values", "vectors")
        return {name: getattr(self, name) for name in names} | _joint_state(self.joint)

    @cached_property
    @torch.inference_mode(False)
    def _weights(self) -> dict[str, Tensor]:
        return maps_of(self.scale, self.values, self.vectors)

    def _apply(self, name: str, x: Tensor) -> Tensor:
        weight = self._weight(name, x.dtype, x.device)
        return (x.reshape(len(x), -1) @ weight.T).reshape(x.shape)

    def _centred(self, x: Tensor) -> Tensor:
        return x - self.mean.to(x)


Gaussian = SpectralGaussian | DenseGaussian


def fit_gaussian(x: Tensor, *, homogeneous: bool, given: int = 0) -> Gaussian:
    """The Gaussian with the symmetry of the data, and its potential.

    Args:
        x: data `(batch, field + given, *shape)`.
        homogeneous: whether the statistics do not depend on the place.
        given: how many of the fields, the last ones, are conditions and have no score.
    """
    fields = x[:, : x.shape[1] - given]
    if homogeneous and x.ndim > 2:
        joint = SpectralGaussian.fit(x) if given else None
        return replace(SpectralGaussian.fit(fields).with_potential(fields), joint=joint)
    return replace(DenseGaussian.fit(fields), joint=DenseGaussian.fit(x) if given else None)


def refuse_dense(numbers: int) -> None:
    """Refuse a snapshot of too many numbers for a covariance without symmetry."""
    if numbers > LARGEST_DENSE:
        raise UserError(
            f"one snapshot has {numbers} numbers; a covariance without symmetry is possible "
            f"up to {LARGEST_DENSE}: coarsen the data, or set data.homogeneous: true if its "
            "statistics do not depend on the place"
        )


def gaussian_from(state: Mapping[str, Tensor], shape: tuple[int, ...]) -> Gaussian:
    """The Gaussian of a `state()`."""
    own, found, both = dict(state), _taken(state, "potential_"), _taken(state, "joint_")
    joint: Any = gaussian_from(both, shape) if both else None
    if "spectrum" in own:
        potential = LocalPotential(**found) if found else None
        parts = (own["mean"], own["spectrum"], shape, potential, joint, own.get("information"))
        return SpectralGaussian(*parts)
    names = ("mean", "scale", "values", "vectors")
    return DenseGaussian(**{name: own[name] for name in names}, joint=joint)


def _joint_state(joint: Gaussian | None) -> dict[str, Tensor]:
    return {} if joint is None else {f"joint_{k}": v for k, v in joint.state().items()}


def _taken(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What has a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _per_field(values: Tensor, x: Tensor) -> Tensor:
    """Values `(field,)` in the type and along the axes of `(batch, field, *shape)`."""
    return values.to(x).reshape(-1, *[1] * (x.ndim - 2))
