"""How far samples are from data: distances with error bars, each beside its own floor.

Every distance is a function of the weights of the samples, prepared once from two sets of equal
size. Its error bar is a bootstrap over those weights. Its floor is the same distance between two
disjoint parts of the data, of the same size: nothing below it can be told from the data.

Source: Ramdas, Garcia Trillos, Cuturi 2017 (Wasserstein and energy distances by their cumulative
distributions); Gretton et al. 2012 (unbiased MMD); Rabin et al. 2011 (sliced Wasserstein).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workflow.interfaces import UserError, space_axes

Weighted = Callable[[Tensor, Tensor], Tensor]
"""Distance `(resample,)` of two weighted sets, from their weights `(resample, sample)`."""

Measure = Callable[[Tensor, Tensor], Weighted]
"""Prepares a distance from two sets `(sample, field, *shape)`."""

DIRECTIONS = 64
"""Directions of a sliced distance."""

TOGETHER = 2048
"""Most samples of a distance by pairs; of more, as many are taken evenly."""

BINS = 64
"""Bins of a density between its outer quantiles; what is beyond has a bin on either side."""

OUTER = 5e-4
"""Probability beyond those quantiles, on either side."""

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the Gaussian kernels of the MMD, in median distances between samples."""

TAIL = 0.95
"""Probability at which a tail begins."""

LEVELS = 1000
"""Quantiles of a tail, evenly spaced in probability."""

FEWEST = 8
"""Independent units of either set below which an error bar would be a guess."""


@dataclass(frozen=True)
class Distance:
    """A distance between samples and data.

    Attributes:
        value: of the samples from one part of the data.
        low: lower end of its bootstrap interval: where the distance of other sets of this size
            would be. A distance of finite sets is not 0 where their laws are the same.
        high: upper end.
        floor: of another part of the data, of the same size, from the first.
        floor_high: upper end of the interval of the floor.
        samples: size of each set.
        level: probability of the intervals.
    """

    value: float
    low: float
    high: float
    floor: float
    floor_high: float
    samples: int
    level: float

    @property
    def seen(self) -> bool:
        """Whether samples and data are told apart: their intervals do not overlap."""
        return self.low > self.floor_high

    def plain(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)


@torch.no_grad()
def compare(
    samples: Tensor,
    data: Tensor,
    measures: Mapping[str, Measure],
    *,
    seed: int = 0,
    unit: int = 1,
    resamples: int = 200,
    level: float = 0.95,
) -> dict[str, Distance]:
    """Distances of samples from data, by the name of the measure.

    The data are cut in two, one part to compare with and one for the floor; of the larger of
    samples and half the data only the first are used.

    Args:
        samples: independent, `(sample, field, *shape)`, or `(sample, number)`.
        data: the same; rows in order, so that the two halves are independent.
        measures: some of `MEASURES`.
        seed: of the bootstrap.
        unit: consecutive rows of the data that depend on each other, drawn together.
        resamples: of the bootstrap.
        level: probability of the intervals.

    Raises:
        UserError: shapes that differ, too few independent rows, or numbers that are not finite.
    """
    if samples.shape[1:] != data.shape[1:]:
        raise UserError(
            f"samples of shape {tuple(samples.shape[1:])} and data of {tuple(data.shape[1:])}; "
            "a distance needs equal shapes"
        )
    count = min(len(samples), len(data) // 2) // unit * unit
    if count < FEWEST * unit:
        raise UserError(
            f"{len(samples)} samples and {len(data)} of data, {unit} of which go together; a "
            f"distance with its floor needs {FEWEST * unit} and {2 * FEWEST * unit}"
        )
    parts = [p.double() for p in (samples[:count], data[:count], data[count : 2 * count])]
    for name, part in zip(("samples", "data", "data"), parts, strict=True):
        if not bool(part.isfinite().all()):
            bad = int((~part.isfinite().flatten(1).all(1)).sum())
            raise UserError(f"{bad} of {count} {name} are not finite; leave them out")
    generator = torch.Generator().manual_seed(seed)
    single, data_weights, other_weights = (
        _weights(count, unit=u, resamples=resamples, generator=generator) for u in (1, unit, unit)
    )
    found = {}
    for name, measure in measures.items():
        value, low, high = _interval(measure(parts[0], parts[1]), single, data_weights, level=level)
        floor, _, floor_high = _interval(
            measure(parts[2], parts[1]), other_weights, data_weights, level=level
        )
        found[name] = Distance(value, low, high, floor, floor_high, count, level)
    return found


def _weights(count: int, *, unit: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Bootstrap weights `(resample, count)`: one unit less than there are, drawn with repeats.

    With K - 1 draws the variance of a mean is unbiased.
    """
    units = count // unit
    drawn = torch.randint(units, (resamples, units - 1), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    counts = torch.zeros(resamples, units, dtype=torch.float64).scatter_add_(1, drawn, ones)
    return counts.repeat_interleave(unit, 1) / ((units - 1) * unit)


def _interval(
    distance: Weighted, x_weights: Tensor, y_weights: Tensor, *, level: float
) -> tuple[float, float, float]:
    """The distance and the ends of its interval.

        value + (d*_b - <d*>),   b over resamples

    Resampling adds the noise of the sets once more, so distances of resamples are larger than the
    value: only how they scatter about their mean is used.
    """
    even = [torch.full_like(w[:1], 1 / w.shape[1]) for w in (x_weights, y_weights)]
    value = float(distance(even[0], even[1]))
    resampled = distance(x_weights, y_weights)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (resampled.quantile(ends) - resampled.mean()).tolist()
    return value, value + low, value + high


def wasserstein(x: Tensor, y: Tensor) -> Weighted:
    """W1 of every number by itself, exact, mean over the numbers; in their unit.

    W1 = int |F_x(v) - F_y(v)| dv
    """
    return _by_cumulative(x.flatten(1), y.flatten(1))


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, directions: int = DIRECTIONS, seed: int = 0
) -> Weighted:
    """W1 along random unit directions, mean over them; in the unit of x.

    Every number counts the same: on raw fields the large scales decide, on whitened ones all do.
    """
    x, y = x.flatten(1), y.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    along = torch.randn(x.shape[1], directions, generator=generator, dtype=x.dtype)
    along = along / along.norm(dim=0)
    return _by_cumulative(x @ along, y @ along)


def _by_cumulative(x: Tensor, y: Tensor) -> Weighted:
    """W1 of columns, `(sample, column)`, from values sorted once."""
    values, order = torch.cat([x, y]).T.sort()
    gaps = values.diff()

    def distance(x_weights: Tensor, y_weights: Tensor) -> Tensor:
        # Rows of weights, contiguous, are what is put in order: ten times faster than columns.
        signed = torch.cat([x_weights, -y_weights], 1).T.contiguous()
        total = signed.new_zeros(signed.shape[1])
        for one, gap in zip(order, gaps, strict=True):
            total += gap @ signed[one[:-1]].cumsum_(0).abs_()
        return total / len(order)

    return distance


def _by_pairs(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> Weighted:
    """Weighted U-statistic E k(x, x') + E k(y, y') - 2 E k(x, y) of a function of the distance."""
    every = -(-len(x) // TOGETHER)
    x, y = x.flatten(1)[::every], y.flatten(1)[::every]
    between = [kernel(torch.cdist(a, b)) for a, b in ((x, x), (y, y), (x, y))]
    # A sample is no pair with itself, nor with its copy in a resample.
    between[0].fill_diagonal_(0)
    between[1].fill_diagonal_(0)

    def distance(x_weights: Tensor, y_weights: Tensor) -> Tensor:
        wx, wy = (w[:, ::every] for w in (x_weights, y_weights))
        wx, wy = wx / wx.sum(1, keepdim=True), wy / wy.sum(1, keepdim=True)
        within = sum(
            ((w @ k) * w).sum(1) / (1 - w.square().sum(1))
            for w, k in zip((wx, wy), between, strict=False)
        )
        return within - 2 * ((wx @ between[2]) * wy).sum(1)

    return distance


def mmd(x: Tensor, y: Tensor) -> Weighted:
    """Squared maximum mean discrepancy, unbiased (so it may be below 0); no unit.

    The kernel is the mean of Gaussians of five widths around the median distance of the data y.
    """
    some = y.flatten(1)[:: -(-len(y) // TOGETHER)]
    median = torch.pdist(some).median()
    widths = torch.tensor(BANDWIDTHS, dtype=y.dtype) * median

    def kernel(distance: Tensor) -> Tensor:
        return sum((-0.5 * (distance / w).square()).exp() for w in widths) / len(widths)

    return _by_pairs(x, y, kernel)


def energy(x: Tensor, y: Tensor) -> Weighted:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased; in the unit of x."""
    return _by_pairs(x, y, torch.neg)


def spectrum(x: Tensor, y: Tensor) -> Weighted:
    """Root mean square over shells of |k|, and fields, of ln of the ratio of the spectra.

    Raises:
        UserError: numbers without space have no spectrum.
    """
    if x.ndim < 3:
        raise UserError(f"samples of shape {tuple(x.shape)} have no space, and so no spectrum")
    powers = [_shells(one) for one in (x, y)]

    def distance(x_weights: Tensor, y_weights: Tensor) -> Tensor:
        one, other = ((w @ p).log() for w, p in zip((x_weights, y_weights), powers, strict=True))
        return (one - other).square().mean(1).sqrt()

    return distance


def _shells(x: Tensor) -> Tensor:
    """Power of every sample in every shell of |k| up to N / 2, `(sample, field * shell)`."""
    shape = x.shape[2:]
    square = torch.zeros((), dtype=x.dtype)
    for n in shape:
        square = square[..., None] + torch.fft.fftfreq(n, 1 / n, dtype=x.dtype).square()
    # In waves per side; the mean of a field is the shell 0.
    shell = square.sqrt().round().long().flatten()
    power = torch.fft.fftn(x, dim=space_axes(x), norm="ortho").abs().square().flatten(2)
    sums = torch.zeros(*power.shape[:2], int(shell.max()) + 1, dtype=x.dtype)
    sums.index_add_(2, shell, power)
    return sums[:, :, : min(shape) // 2 + 1].flatten(1)


def pixel_density(x: Tensor, y: Tensor) -> Weighted:
    """Total variation of the densities of a pixel, in bins, mean over fields; from 0 to 1.

    1/2 sum_b |p_b - q_b|; a number without space is a pixel.
    """
    columns = [one.reshape(len(one), one.shape[1], -1).transpose(1, 2) for one in (x, y)]
    counts = []
    for field in range(x.shape[1]):
        known = columns[1][..., field].flatten().sort().values
        low, high = (known[round(p * (len(known) - 1))] for p in (OUTER, 1 - OUTER))
        edges = torch.linspace(float(low), float(high), BINS + 1, dtype=x.dtype)
        counts.append([_histograms(one[..., field], edges) for one in columns])

    def distance(x_weights: Tensor, y_weights: Tensor) -> Tensor:
        gaps = [(x_weights @ p - y_weights @ q).abs().sum(1) / 2 for p, q in counts]
        return torch.stack(gaps).mean(0)

    return distance


def _histograms(values: Tensor, edges: Tensor) -> Tensor:
    """Share of the pixels of every sample `(sample, pixel)` in every bin, `(sample, bin)`."""
    bins = torch.bucketize(values.contiguous(), edges)
    ones = torch.ones_like(values) / values.shape[1]
    return torch.zeros(len(values), len(edges) + 1, dtype=values.dtype).scatter_add_(1, bins, ones)


def tail_error(x: Tensor, y: Tensor, *, start: float = TAIL) -> Weighted:
    """Mean squared log error of the upper tail (MSLE), mean over the numbers; no unit.

    int_start^1 (ln Q_x(p) - ln Q_y(p))^2 dp

    Raises:
        UserError: a tail that does not begin above 0 has no logarithm.
    """
    levels = start + (1 - start) * (torch.arange(LEVELS, dtype=x.dtype) + 0.5) / LEVELS
    quantiles = _log_quantiles(x, y, levels)

    def distance(x_weights: Tensor, y_weights: Tensor) -> Tensor:
        one, other = quantiles(x_weights, y_weights)
        return (1 - start) * (one - other).square().mean((1, 2))

    return distance


def tail_quantile(x: Tensor, y: Tensor, *, level: float) -> Weighted:
    """ln Q_x(level) - ln Q_y(level), mean over the numbers: above 0 where the tail is too long.

    Raises:
        UserError: a quantile that is not above 0 has no logarithm.
    """
    quantiles = _log_quantiles(x, y, torch.tensor([level], dtype=x.dtype))

    def distance(x_weights: Tensor, y_weights: Tensor) -> Tensor:
        one, other = quantiles(x_weights, y_weights)
        return (one - other).mean((1, 2))

    return distance


def _log_quantiles(
    x: Tensor, y: Tensor, levels: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """ln of the quantiles of two weighted sets, each `(resample, number, level)`."""
    kept = [one.flatten(1).T.sort() for one in (x, y)]
    for values, _ in kept:
        begins = values[:, int(len(x) * float(levels[0]))]
        if bool((begins <= 0).any()):
            number = int((begins <= 0).nonzero()[0])
            raise UserError(
                f"the quantile {float(levels[0]):.4g} of number {number} is "
                f"{float(begins[number]):.3g}; the logarithm of a tail needs it above 0: take "
                "absolute values first"
            )

    def of(weights: Tensor, values: Tensor, order: Tensor) -> Tensor:
        rows = []
        for one, place in zip(values, order, strict=True):
            cumulative = weights[:, place].cumsum(1)
            at = torch.searchsorted(cumulative, levels.expand(len(weights), -1).contiguous())
            # In a resample a tail may begin a little lower, and not above 0.
            rows.append(one.clamp(min=torch.finfo(one.dtype).tiny)[at.clamp(max=len(one) - 1)])
        return torch.stack(rows, 1).log()

    return lambda x_weights, y_weights: (of(x_weights, *kept[0]), of(y_weights, *kept[1]))


MEASURES: dict[str, Measure] = {
    "wasserstein": wasserstein,
    "sliced_wasserstein": sliced_wasserstein,
    "mmd": mmd,
    "energy": energy,
    "spectrum": spectrum,
    "pixel_density": pixel_density,
    "tail_error": tail_error,
    **{f"quantile_{p}": partial(tail_quantile, level=float(p)) for p in ("0.99", "0.999")},
}
"""Distances by name. `spectrum` needs space, tails need positive numbers."""
