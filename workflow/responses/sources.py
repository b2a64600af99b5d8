"""Sources of responses: what answers with any weights over its units.

A score answers with sums of lagged products, recalibrated; paired runs with the means of their
members. Arrays are `(perturbation, lag, *trailing)`; trailing axes are those of the observable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workflow.responses.channels import Channels
from workflow.responses.control_variates import control_by_stein
from workflow.responses.observable import Observable
from workflow.responses.pairs import PairMoments
from workflow.responses.resampling import Units, jackknife_weights, ratio
from workflow.responses.stein import (
    Flags,
    LinearRecalibration,
    Numbers,
    Repair,
    answers,
    displacements,
    half_spectrum,
    invert,
    unresolved_numbers,
)

Floats = NDArray[np.floating]

DRAWS = 32
"""Resamples of the Stein matrix that are made together."""


class Source(Protocol):
    """Something that answers for responses and can be resampled.

    Attributes:
        units: what is resampled.
        left_out: weights with one group of units left out at a time.
    """

    units: Units
    left_out: Floats

    def answer(self, one: Observable, lags: slice, weights: Floats | None, *, raw: bool) -> Floats:
        """R `(sample, perturbation, lag, *trailing)`, or without samples where weights are None.

        NaN for perturbations and lags that the source cannot answer for.
        """
        ...


class Learned:
    """Responses from a score: sums of lagged products, recalibrated.

    Attributes:
        units: what is resampled.
        stein: raw Stein matrix M, `(F, F, *half)` or `(numbers, numbers)`.
        unresolved: numbers that the score does not see, `(F, *half)`.
        repair: its inverse.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        pairs: Floats,
        units: Units,
        maps: Mapping[str, Floats],
        totals: Floats,
        recalibrate: bool,
        weights: Floats,
        repair: LinearRecalibration | None = None,
        controlled: bool = False,
    ) -> None:
        """Take the sums of one estimator.

        Args:
            channels: what they are sums of.
            pairs: n `(block, lag)`.
            units: what is resampled.
            maps: sums `(member, block, lag, field, *shape)` by observable of the place, on
                homogeneous fields; it must hold the fields, and may read lazily.
            totals: sums `(member, block, lag, total of A, total of B)`.
            recalibrate: whether to.
            weights: of the resamples, from which the error of M is taken.
            repair: the one that the sums were made with, where only some directions are kicked.
            controlled: take the noise of M out by control variates instead of recalibrating; for
                the exact score of homogeneous fields only.
        """
        self.units, self.left_out, self._weights = units, jackknife_weights(units), weights
        self._channels, self._pairs = channels, pairs
        self._maps, self._totals = maps, totals
        self._raw_maps, controlled = maps, controlled and channels.saved.maps
        self._recalibrate = recalibrate and not controlled
        self._space = len(channels.saved.shape) if channels.saved.maps else 0
        self._shape = channels.saved.shape if channels.saved.maps else ()
        self._patterns = _patterns(channels)
        self._repairs: list[tuple[Floats, Repair]] = []
        self.stein: Numbers | None = None
        self.unresolved: Flags = np.zeros(0, dtype=bool)
        if channels.every_number_kicked:
            self._lag_zero = self._lag_zero_sums()
            self.stein = self._matrix(None)
            draws = self._matrix(weights)
            error = np.sqrt((np.abs(draws - self.stein) ** 2).mean(axis=0))
            self.unresolved = unresolved_numbers(self.stein, error, space=self._space)
            self.repair = invert(self.stein, self.unresolved, space=self._space)
        elif repair is not None:
            self.stein = repair.stein.numpy()
            self.repair = Repair(repair.inverse.numpy(), np.zeros((), dtype=bool))
            # Those that `LinearRecalibration.fit` left alone.
            none = np.zeros(self.stein.shape)
            self.unresolved = unresolved_numbers(self.stein, none, space=0)
        if controlled:
            self._maps = _Controlled(maps, pairs, channels, units)

    def answer(self, one: Observable, lags: slice, weights: Floats | None, *, raw: bool) -> Floats:
        """R `(sample, perturbation, lag, *trailing)`; see `Source`."""
        channels, kept = self._channels, self._recalibrate and not raw
        constant = [i for i, p in enumerate(channels.perturbations) if p.pattern is not None]
        driven = [i for i, p in enumerate(channels.perturbations) if p.pattern is None]
        parts: dict[int, Floats] = {}
        if constant:
            maps = self._raw_maps if raw else self._maps
            found = self._constant(one, maps, lags, weights, kept)
            parts |= dict(zip(constant, np.moveaxis(found, self._axis(weights), 0), strict=True))
        if driven:
            columns = slice(channels.kicks, channels.totals_b)
            found = self._columns(one, lags, weights, columns, kept)
            if one.of_place and channels.saved.maps:
                found = np.broadcast_to(
                    found.reshape(*found.shape, *[1] * self._space), (*found.shape, *self._shape)
                )
            parts |= dict(zip(driven, np.moveaxis(found, self._axis(weights), 0), strict=True))
        ordered = [parts[i] for i in range(len(parts))]
        return np.stack(ordered, axis=0 if weights is None else 1)

    def _axis(self, weights: Floats | None) -> int:
        """Axis of the perturbation in `_constant` and `_columns`."""
        return 1 if weights is None else 2

    def _constant(
        self,
        one: Observable,
        maps: Mapping[str, Floats],
        lags: slice,
        weights: Floats | None,
        kept: bool,
    ) -> Floats:
        """`(sample, lag, perturbation, *trailing)` of the constant directions."""
        channels = self._channels
        if not channels.every_number_kicked:
            return self._columns(one, lags, weights, slice(0, channels.kicks), kept)
        inverse = self._inverse(weights) if kept else None
        if one.of_place and channels.saved.maps:
            sums = half_spectrum(maps[one.name][:, :, lags], space=self._space)
            spectrum = ratio(sums, self._pairs[:, lags], weights)
            return displacements(answers(spectrum, inverse, self._patterns), shape=self._shape)
        kicks = self._totals[:, :, lags, channels.columns(one), : channels.kicks]
        response = ratio(kicks, self._pairs[:, lags], weights)
        patterns = self._patterns
        if channels.saved.maps:
            # Averaged over the kicked place, a direction counts by its sum: wavenumber zero.
            patterns = self._wavenumber_zero(patterns)
            inverse = None if inverse is None else self._wavenumber_zero(inverse)
        # (..., lag, watched, kick) -> (..., lag, perturbation, watched)
        factor = patterns if inverse is None else inverse @ patterns
        answer = np.moveaxis(response @ (factor if factor.ndim == 2 else factor[:, None]), -1, -2)
        return _trailing(answer, one, channels)

    def _wavenumber_zero(self, spectrum: Numbers) -> Floats:
        places = int(np.prod(spectrum.shape[spectrum.ndim - self._space :]))
        return np.asarray(
            spectrum.reshape(*spectrum.shape[: spectrum.ndim - self._space], places)[..., 0].real
        )

    def _columns(
        self, one: Observable, lags: slice, weights: Floats | None, columns: slice, kept: bool
    ) -> Floats:
        """The same of directions that have a column of B of their own, raw or recalibrated."""
        shift = self._channels.totals_b if kept else 0
        chosen = slice(columns.start + shift, columns.stop + shift)
        sums = self._totals[:, :, lags, self._channels.columns(one), chosen]
        answer = np.moveaxis(ratio(sums, self._pairs[:, lags], weights), -1, -2)
        return _trailing(answer, one, self._channels)

    def _inverse(self, weights: Floats | None) -> Numbers:
        if weights is None:
            return self.repair.inverse
        for known, repair in self._repairs:
            if known is weights:
                return repair.inverse
        repair = invert(self._matrix(weights), self.unresolved, space=self._space)
        self._repairs.append((weights, repair))
        return repair.inverse

    def _matrix(self, weights: Floats | None) -> Numbers:
        """M, or M of every resample."""
        found = ratio(self._lag_zero, self._pairs[:, :1], weights)
        return found[0] if weights is None else found[:, 0]

    def stein_draws(self) -> Iterator[Numbers]:
        """M of the resamples, some at a time; none where not every number was kicked."""
        if not self._channels.every_number_kicked:
            return
        for first in range(0, len(self._weights), DRAWS):
            yield self._matrix(self._weights[first : first + DRAWS])

    def _lag_zero_sums(self) -> Numbers:
        """Sums of lag 0 of the fields, `(member, block, 1, F, F, *half)`."""
        channels, start = self._channels, slice(0, 1)
        fields = channels.observables[: len(channels.saved.fields)]
        if channels.saved.maps:
            maps = [self._maps[one.name][:, :, start] for one in fields]
            return half_spectrum(np.stack(maps, axis=3), space=self._space)
        watched = slice(0, channels.saved.numbers)
        return np.asarray(self._totals[:, :, start, watched, : channels.kicks])


class _Controlled(Mapping[str, Floats]):
    """Sums with the noise of the lag-zero identity taken out; the last ones are kept."""

    def __init__(
        self, maps: Mapping[str, Floats], pairs: Floats, channels: Channels, units: Units
    ) -> None:
        self._maps, self._pairs, self._units = maps, pairs, units
        self._space = len(channels.saved.shape)
        fields = channels.observables[: len(channels.saved.fields)]
        self._lag_zero = np.stack([maps[one.name][:, :, 0] for one in fields], axis=2)
        self._kept: tuple[str, Floats] = ("", np.zeros(0))

    def __getitem__(self, name: str) -> Floats:
        if self._kept[0] != name:
            found = control_by_stein(
                self._maps[name][:, :, :, None],
                self._pairs,
                lag_zero=self._lag_zero,
                space=self._space,
                units=self._units,
            )
            self._kept = (name, found.sums[:, :, :, 0])
        return self._kept[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


def _patterns(channels: Channels) -> Numbers:
    """Constant directions, `(F, P, *half)` or `(numbers, P)`."""
    found = [p.pattern.numpy() for p in channels.perturbations if p.pattern is not None]
    fields = len(channels.saved.fields)
    if not found:
        return np.zeros((fields, 0))
    stacked = np.stack(found, axis=1)
    if channels.saved.maps:
        return half_spectrum(stacked, space=len(channels.saved.shape))
    return np.moveaxis(stacked, 1, -1).reshape(-1, len(found))


def _trailing(answer: NDArray[Any], one: Observable, channels: Channels) -> Floats:
    """The last axis, of watched numbers, as the axes of the observable."""
    if one.of_place and not channels.saved.maps:
        return answer.reshape(*answer.shape[:-1], *channels.saved.shape)
    return answer if one.axis else answer[..., 0]


class Paired:
    """Responses from paired perturbed runs: means of the members' own responses.

    Attributes:
        units: the members.
        moments: of the pairs.
    """

    def __init__(
        self,
        channels: Channels,
        *,
        maps: Mapping[str, Floats],
        totals: Floats,
        moments: PairMoments,
    ) -> None:
        """Take the responses per member.

        Args:
            channels: what was watched and kicked.
            maps: `(member, lag, perturbation, *shape)` by observable of the place, on homogeneous
                fields.
            totals: `(member, lag, perturbation, total of A)`.
            moments: of the pairs.
        """
        self.units, self.moments = Units(len(totals), 1, 1), moments
        self.left_out = jackknife_weights(self.units)
        self._channels, self._maps, self._totals = channels, maps, totals

    def answer(self, one: Observable, lags: slice, weights: Floats | None, *, raw: bool) -> Floats:
        """R `(sample, perturbation, lag, *trailing)`; see `Source`."""
        found = self._members(one, lags)
        if not one.continuous:
            # No pair crossed the jump: no evidence of a response, and none of its absence.
            found = np.where((found == 0).all(axis=0), np.nan, found)
        rows = np.full((1, len(found)), 1 / len(found)) if weights is None else weights
        flat = np.asarray(found, dtype=np.float64).reshape(len(found), -1)
        mean = (rows @ flat).reshape(len(rows), *found.shape[1:])
        wanted = lags.stop - lags.start
        missing = wanted - mean.shape[1]
        padding = [(0, 0), (0, missing), *[(0, 0)] * (mean.ndim - 2)]
        whole = np.moveaxis(np.pad(mean, padding, constant_values=np.nan), 2, 1)
        return whole[0] if weights is None else whole

    def effective_pairs(self, one: Observable) -> Floats:
        """n_eff `(perturbation, lag)`, up to the longest lag of the pairs; see `pairs`."""
        return self._of(one, self.moments.effective())

    def pair_variance(self, one: Observable) -> Floats:
        """Variance of the response of one pair, summed over the places, `(perturbation, lag)`."""
        mean = self._members(one, slice(None)).astype(np.float64).mean(axis=0)
        square = (mean.reshape(*mean.shape[:2], -1) ** 2).sum(-1).T
        pairs = self.moments.pairs
        excess = self._of(one, self.moments.square) - square
        return np.asarray(excess.clip(min=0) * pairs / max(1, pairs - 1))

    def _members(self, one: Observable, lags: slice) -> Floats:
        """Responses `(member, lag, perturbation, *trailing)`."""
        channels = self._channels
        if one.of_place and channels.saved.maps:
            return self._maps[one.name][:, lags]
        return _trailing(self._totals[:, lags, :, channels.columns(one)], one, channels)

    def _of(self, one: Observable, moments: Floats) -> Floats:
        names = [other.name for other in self._channels.observables]
        return moments[:, :, names.index(one.name)].T
