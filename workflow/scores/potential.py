"""A homogeneous density with a local potential: where the learned score starts.

    log p = -1/2 sum_k p_k^+ Q_k p_k - sum_places V(p) + const,      s = -Q p - V'(p)

p is the field in standard deviations, V'(p) = -sum_n c_n (p^n - <p^n>), n from 2 to 3, for each
field. With V = 0 it is the Gaussian. Score matching is quadratic in Q and c, so the fit is a linear
system: nothing is trained. With phi_n = p^n, over all wavenumbers k and with weights w_k,

    c = -G^-1 h,   G_nm = sum_k w_k (<phi_n phi_m*> - <phi_n p*> <p p*>^-1 <p phi_m*>)_k
                   h_n  = sum_k w_k (n <p^(n-1)> - <phi_n p*> <p p*>^-1)_k
    Q_k = (1 + sum_n c_n <phi_n p*>)_k <p p*>_k^-1

which obeys the Stein identity -<p s*> = 1 at every wavenumber of the data it was fitted to. The
weights are 1 / J_k, J_k = <|s_k|^2>, found by repetition: every mode of the score then counts the
same. Powers are taken on the grid or on twice the points and truncated below Nyquist, as a
dealiased equation does: whichever has the lower score-matching loss.

Source: A. Hyvarinen, J. Mach. Learn. Res. 6, 695 (2005), score matching of exponential families.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workflow.interfaces import space_axes
from workflow.scores.layers import refined, restricted

DEGREE = 3
"""Highest power in the score: a potential of fourth order, as two wells have."""
SNAPSHOTS = 65536
"""Most snapshots that are fitted, evenly chosen. Many: the Stein ratio of a mode is known to
(C J / snapshots)^(1/2), and C J can be thousands where wells are narrow and far apart."""
REPETITIONS = 3
FLOOR = 1e-10
"""Smallest variance of a mode relative to the largest."""
_CHUNK = 256
"""Snapshots transformed together."""


@dataclass(frozen=True)
class LocalPotential:
    """The score of p, and the spread of its modes.

    Attributes:
        linear: -Q, `(field, field, *half-spectrum)`, complex.
        powers: c_n, `(n - 1, field)`.
        offset: -sum_n c_n <p^n>, `(field,)`.
        information: <s_k s_k^+>, the Fisher information of p, `(field, field, *half-spectrum)`.
        oversample: points per grid point along an axis where powers are taken, 1 or 2.
    """

    linear: Tensor
    powers: Tensor
    offset: Tensor
    information: Tensor
    oversample: Tensor

    @classmethod
    def fit(cls, p: Tensor) -> LocalPotential:
        """The potential of standardised data `(batch, field, *shape)`."""
        p = p[:: -(-len(p) // SNAPSHOTS)]
        (coarse, its_divergence), (fine, divergence) = (cls._fit(p, n) for n in (1, 2))
        weights = _multiplicity(p) / _diagonal(coarse._matrices)
        gain = 0.5 * (_diagonal(coarse._matrices) - _diagonal(fine._matrices))
        gain = weights * (gain + its_divergence - divergence)
        return fine if float(gain.sum()) > 0 else coarse

    @classmethod
    def _fit(cls, p: Tensor, oversample: int) -> tuple[LocalPotential, Tensor]:
        """The potential, and the divergence of its score by wavenumber and field."""
        products, moments = _products(p, oversample)
        slope, fields = _slopes(moments, p, oversample), p.shape[1]
        inverse = torch.linalg.inv(products[..., 0, :, 0, :])
        # Axes of all: wavenumber, then (power, field), twice in products.
        explained = products[..., 0, :] @ inverse[..., None, :, :]
        weights = _multiplicity(p) / _diagonal(inverse)
        terms = torch.zeros(*inverse.shape[:-2], fields, DEGREE, fields, dtype=inverse.dtype)
        terms = terms.to(p.device)
        for _ in range(REPETITIONS):
            powers = _powers(products, explained, slope, weights)
            terms[..., 0, :] = -inverse
            for f in range(fields):
                c = powers[:, f].to(terms.dtype)
                terms[..., f, 1:, f] = c
                terms[..., f, 0, :] -= torch.einsum("n,...ng->...g", c, explained[..., 1:, f, :])
            rows = terms.flatten(-2)
            information = rows @ products.flatten(-4, -3).flatten(-2) @ rows.mH
            weights = _multiplicity(p) / _diagonal(information)
        divergence = _diagonal(terms[..., 0, :]) + (slope * powers).sum(-2)
        found = cls(
            terms[..., 0, :].movedim((-2, -1), (0, 1)),
            powers,
            -(powers * moments[2:]).sum(0),
            information.movedim((-2, -1), (0, 1)),
            torch.tensor(oversample),
        )
        return found, divergence

    def __call__(self, p: Tensor) -> Tensor:
        """Score of p, `(batch, field, *shape)`, from p."""
        axes, flat = space_axes(p), [-1, *[1] * (p.ndim - 2)]
        linear, powers, offset = self._like(p.dtype, p.device)
        twice = bool(self.oversample == 2)
        seen = refined(p) if twice else p
        total = torch.zeros_like(seen)
        for c in powers.flip(0):
            total = (total + c.reshape(flat)) * seen
        local = restricted(total * seen) if twice else total * seen
        local = local + offset.reshape(flat)
        modes = torch.einsum("fg...,bg...->bf...", linear, torch.fft.rfftn(p, dim=axes))
        return local + torch.fft.irfftn(modes, s=p.shape[2:], dim=axes)

    def state(self) -> dict[str, Tensor]:
        """Tensors from which it can be made again."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def _matrices(self) -> Tensor:
        return self.information.movedim((0, 1), (-2, -1))

    @cached_property
    def _converted(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]]:
        return {}

    @torch.inference_mode(False)  # what is kept must serve automatic differentiation too
    def _like(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Linear part, powers and offset in the type and on the device of the data."""
        if (dtype, device) not in self._converted:
            real = (self.powers, self.offset)
            self._converted[dtype, device] = (
                self.linear.to(device=device, dtype=dtype.to_complex()),
                *(value.to(device=device, dtype=dtype) for value in real),
            )
        return self._converted[dtype, device]


def _powers(products: Tensor, explained: Tensor, slope: Tensor, weights: Tensor) -> Tensor:
    """c_n `(n - 1, field)` for weights `(*half, field)`."""
    found = []
    for f in range(weights.shape[-1]):
        own, cross = products[..., 1:, f, 1:, f], products[..., 1:, f, 0, :]
        rest = (own - explained[..., 1:, f, :] @ cross.mH).real
        excess = slope[..., f] - explained[..., 1:, f, f].real
        matrix = torch.einsum("...,...nm->nm", weights[..., f], rest)
        vector = torch.einsum("...,...n->n", weights[..., f], excess)
        # Of little use and hard to tell apart: the smallest change from the Gaussian.
        found.append(-torch.linalg.pinv(matrix, rtol=1e-9, hermitian=True) @ vector)
    return torch.stack(found, 1)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).real


def _products(p: Tensor, oversample: int) -> tuple[Tensor, Tensor]:
    """Mean products of the modes of p, p^2, ..., less their means, and the moments <p^n>.

    Returns:
        Products `(*half, power, field, power, field)`; moments `(0 to DEGREE, field)` of the field
        as it is where powers are taken.
    """
    axes = space_axes(p)
    points, half = math.prod(p.shape[2:]), _half(p)
    numbers = (DEGREE, p.shape[1])
    total = torch.zeros(*half, *numbers, *numbers, dtype=torch.complex128, device=p.device)
    mean = torch.zeros(numbers, dtype=torch.float64, device=p.device)
    moments = torch.zeros((DEGREE + 1, p.shape[1]), dtype=torch.float64, device=p.device)
    for part in p.split(_CHUNK):
        part = part.double()
        seen = refined(part) if oversample == 2 else part
        powers = [seen**n for n in range(DEGREE + 1)]
        moments += torch.stack([power.mean((0, *axes)) for power in powers]) * len(part)
        kept = [restricted(x) for x in powers[2:]] if oversample == 2 else powers[2:]
        features = torch.stack([part, *kept], 1)
        modes = torch.fft.rfftn(features, dim=tuple(range(3, features.ndim)))
        total += torch.einsum("bnf...,bmg...->...nfmg", modes, modes.conj())
        mean += features.sum((0, *range(3, features.ndim)))
    total, mean = total / (len(p) * points), mean / len(p)
    total.flatten(0, len(axes) - 1)[0] -= torch.einsum("nf,mg->nfmg", mean, mean) / points
    # As the Gaussian does: modes that never vary must not be divided by.
    variances = total[..., 0, :, 0, :].diagonal(dim1=-2, dim2=-1)
    floor = FLOOR * variances.real.flatten(0, -2).max(0).values
    variances += (floor - variances.real).clamp(min=0)
    return total, moments / len(p)


def _slopes(moments: Tensor, p: Tensor, oversample: int) -> Tensor:
    """n <p^(n-1)> for the wavenumbers that powers have, `(*half, n - 1, field)`."""
    orders = torch.arange(2, DEGREE + 1, device=p.device, dtype=torch.float64)
    slope = orders[:, None] * moments[1:-1]
    kept = torch.ones(_half(p), device=p.device, dtype=torch.float64)
    for axis, n in enumerate(p.shape[2:]):
        if n % 2 == 0 and oversample == 2:
            kept.narrow(axis, n // 2, 1).zero_()
    return kept[..., None, None] * slope


def _multiplicity(p: Tensor) -> Tensor:
    """How often a wavenumber of the half-spectrum stands in the whole one, `(*half, 1)`."""
    weights = torch.full(_half(p), 2.0, device=p.device, dtype=torch.float64)
    weights[..., 0] = 1.0
    if p.shape[-1] % 2 == 0:
        weights[..., -1] = 1.0
    return weights[..., None]


def _half(p: Tensor) -> tuple[int, ...]:
    return (*p.shape[2:-1], p.shape[-1] // 2 + 1)
