"""How well samples hold the tails of the data: of the run's own process, and of its rivals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from workflow.diffusion.distances import MEASURES, Distance, compare
from workflow.rivals import rivals_of
from workflow.runs import Run
from workflow.stages.quality import held_out
from workflow.stages.samples import read_samples

MEASURED = ("tail_error", "quantile_0.99", "quantile_0.999")
"""Of |x - mean|: mean squared log error of the quantiles from 95 % on, and log ratios of two."""

NUMBERS = 4
"""Most numbers of a snapshot that are looked at, evenly chosen."""


@dataclass(frozen=True)
class Tails:
    """|x - mean| in standard deviations, of held-out data and of samples.

    Attributes:
        data: `(snapshot, number)`.
        samples: the same by the name of the estimator whose network they are from.
        distances: by estimator and measure.
    """

    data: Tensor
    samples: dict[str, Tensor]
    distances: dict[str, dict[str, Distance]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As plain numbers, by estimator and measure."""
        return {
            name: {measure: one.plain() for measure, one in found.items()}
            for name, found in self.distances.items()
        }


def tails_of(run: Run) -> Tails | None:
    """Tails of samples and data; None where no samples were asked for.

    Raises:
        UserError: too few held-out data to tell.
    """
    if run.experiment.sample is None:
        return None
    runs = {"neural": run, **rivals_of(run)}
    samples = {
        name: _numbers(read_samples(one, one.samples))
        for name, one in runs.items()
        if one.experiment.sample is not None
    }
    held, unit = held_out(run, run.experiment.sample.members)
    x = _numbers(held)
    mean, spread = x.mean(0), x.std(0)
    data = (x - mean).abs() / spread
    scaled = {name: (one - mean).abs() / spread for name, one in samples.items()}
    asked = {name: MEASURES[name] for name in MEASURED}
    distances = {name: compare(one, data, asked, unit=unit) for name, one in scaled.items()}
    return Tails(data, scaled, distances)


def _numbers(x: Tensor) -> Tensor:
    """Some numbers of every snapshot, `(snapshot, number)`, float64."""
    flat = x.flatten(1).double()
    return flat[:, :: max(1, flat.shape[1] // NUMBERS)][:, :NUMBERS]
