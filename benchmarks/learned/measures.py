"""How far scores and responses are from the truth, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learned.ensembles import GROUPS, Case
from workflow.responses.correlation import lag_sums
from workflow.responses.recalibration import recalibrate, stein_error, stein_spectrum
from workflow.responses.resampling import Units, ratio, unit_weights
from workflow.responses.statistics import distance
from workflow.scores.closed_form import Gaussian, SpectralGaussian

Score = Callable[[Tensor], Tensor]
SNAPSHOTS = 4096
"""Scored together."""
SAMPLES = 200
"""Resamples of an error bar."""
DIFFERENCE = 0.02
"""Step of a numerical divergence, in standard deviations of the score's own scale."""
EDGES = (0, 1, 3, 6, 11, 17, 23)
"""Bands of |k|: 0, 1-2, 3-5, 6-10, 11-16, beyond."""


def evaluated(score: Score, x: Tensor, device: torch.device) -> Tensor:
    """Scores of snapshots `(snapshot, field, *shape)`, like them."""
    with torch.no_grad():
        return torch.cat([score(part.to(device)).to(x.device) for part in x.split(SNAPSHOTS)])


def group_responses(x: Tensor, s: Tensor, case: Case) -> np.ndarray:
    """Raw response of each group of members at the lags of the case, `(group, lag, y, x)`.

    Args:
        x: fields `(member, time, field, y, x)`.
        s: their scores.
        case: the system.
    """
    x, s = x - x.mean(), s - s.mean()
    longest = case.lags[-1]
    pairs = x.shape[1] - np.array(case.lags)
    responses = []
    for a, b in zip(x.chunk(GROUPS), s.chunk(GROUPS), strict=True):
        sums = lag_sums(a, b, max_lag=longest)[:, list(case.lags), 0, 0]
        responses.append(-sums.mean(0) / pairs[:, None, None])
    return np.stack(responses)


def resampled(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `(group, lag, y, x)` and resamples `(sample, lag, y, x)`; equal seeds share draws."""
    units = Units(members=len(groups), blocks=1, moving=1)
    pairs = np.ones((1, groups.shape[1]))
    weights = unit_weights(units, samples=SAMPLES, seed=seed)
    sums = groups[:, None]
    return ratio(sums, pairs), ratio(sums, pairs, weights)


class Answer:
    """A response with resamples, raw and recalibrated."""

    def __init__(self, groups: np.ndarray, *, seed: int, recalibrated: bool) -> None:
        self.raw, raw_samples = resampled(groups, seed)
        self.response, self.samples = self.raw, raw_samples
        if recalibrated:
            self.response = recalibrate(self.raw, space=2).response
            self.samples = recalibrate(raw_samples, space=2).response

    def from_reference(self, other: Answer) -> dict[str, list[float]]:
        """L2 and Linf distances by lag, with standard errors and free of noise."""
        found = distance(
            self.response,
            other.response,
            estimate_samples=self.samples,
            reference_samples=other.samples,
        )
        names = ("l2", "l2_standard_error", "linf", "linf_standard_error")
        names += ("noise", "l2_corrected", "l2_corrected_standard_error")
        return {name: np.round(getattr(found, name), 5).tolist() for name in names}

    def curves(self, pixels: tuple[int, ...] = (0, 2, 4, 6)) -> dict[str, Any]:
        """Response of pixels downstream of the kick, `{pixel: values by lag}`, and errors."""
        error = self.samples.std(axis=0, ddof=1)
        return {
            str(p): {
                "value": np.round(self.response[:, 0, p], 5).tolist(),
                "standard_error": np.round(error[:, 0, p], 5).tolist(),
            }
            for p in pixels
        }

    def stein(self) -> dict[str, Any]:
        """Raw Stein error over all wavenumbers, and mean Stein ratio of each band."""
        ratios = stein_spectrum(self.raw[None], space=2)[0].real
        return {
            "raw": round(float(stein_error(self.raw, space=2)), 4),
            "recalibrated": round(float(stein_error(self.response, space=2)), 4),
            "raw_ratio_by_band": by_band(ratios),
        }


def by_band(values: np.ndarray, weights: np.ndarray | None = None) -> list[float]:
    """Mean over each band of |k| of values per wavenumber `(y, x)`, full spectrum."""
    k = np.fft.fftfreq(len(values), 1 / len(values))
    length = np.hypot(k[:, None], k[None, :])
    bands = [(length >= a - 0.5) & (length < b - 0.5) for a, b in pairwise(EDGES)]
    bands = [band for band in bands if band.any()]
    if weights is None:
        return [round(float(values[band].mean()), 5) for band in bands]
    return [round(float(values[band].sum() / weights[band].sum()), 5) for band in bands]


def score_errors(found: Tensor, exact: Tensor, whitening: Gaussian) -> dict[str, Any]:
    """Relative squared error of scores `(snapshot, 1, y, x)`, whitened: every mode counts alike."""
    power = []
    for values in (found - exact, exact):
        white = whitening.score_to_white(values.double())
        power.append(torch.fft.fft2(white).abs().square().mean((0, 1)).cpu().numpy())
    return {
        "score_error": round(float(power[0].sum() / power[1].sum()), 5),
        "score_error_by_band": by_band(power[0], power[1]),
    }


def held_out_loss(score: Score, x: Tensor, whitening: SpectralGaussian) -> dict[str, float]:
    """Score-matching loss mean |s|^2 + 2 div s of whitened scores on data it has not seen.

    -1 is the Gaussian score's; lower is better, by the mean squared error of the score. It needs
    no exact answer. The divergence is a difference along one random direction of each snapshot,
    in coordinates where all modes of the score have the same variance.
    """
    normals = torch.randn(x.shape, generator=torch.Generator().manual_seed(11)).to(x)
    step = whitening.colour(whitening.equalise(DIFFERENCE * normals))

    def equalised(values: Tensor) -> Tensor:
        found = evaluated(score, values, x.device)
        return whitening.equalise(whitening.score_to_white(found))

    plus, minus = equalised(x + step), equalised(x - step)
    losses = 0.5 * (plus.square() + minus.square()) + normals * (plus - minus) / DIFFERENCE
    means = losses.flatten(1).mean(1)
    error = float(means.std()) / len(means) ** 0.5
    return {"held_out_loss": round(float(means.mean()), 5), "its_standard_error": round(error, 5)}
