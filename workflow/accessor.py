"""`ds.gfdt`: responses at the fingertips of xarray users; registered by `import workflow`.

The heavy imports happen when a method is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from workflow.plotting import Plot


class Gfdt:
    """Responses of the data to small perturbations, their score, and pictures of them.

    >>> import numpy as np, workflow, xarray
    >>> rng = np.random.default_rng(0)
    >>> x = np.zeros((8, 5000))
    >>> for t in range(4999):
    ...     x[:, t + 1] = 0.8 * x[:, t] + rng.standard_normal(8)
    >>> data = xarray.Dataset({"u": (("member", "time"), x)})
    >>> answer = data.gfdt.response(max_lag=3)
    >>> [round(float(r), 1) for r in answer.response.squeeze()]
    [1.0, 0.8, 0.6, 0.5]
    """

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        self._data = data

    def response(self, **settings: Any) -> xr.Dataset | xr.DataTree:
        """Responses with error bars; arguments as `workflow.analysis.responses_of`.

        Of Dask data the answer is lazy: labels, units and attributes are known, and one task reads
        the data block by block, in bounded memory, when the numbers are computed.
        """
        from workflow.analysis import responses_of

        return responses_of(self._data, **settings)

    def score(self, score: Any = "gaussian", **settings: Any) -> xr.Dataset:
        """Score of every snapshot, lazy for lazy data; see `workflow.scoring.scores_of`."""
        from workflow.scoring import scores_of

        return scores_of(self._data, score=score, **settings)

    def stein(self, score: Any = "gaussian", **settings: Any) -> xr.Dataset:
        """The identity -<x s^T> = 1 of the true score, tested; see `workflow.scoring.stein_of`.

        Of responses, such as response.zarr: what they say of it, `stein_error` among others.
        """
        from workflow.scoring import stein_of

        names = ("stein", "stein_error", "stein_error_recalibrated", "unresolved")
        if isinstance(self._data, xr.Dataset) and "stein_error" in self._data:
            return self._data[[name for name in names if name in self._data]]
        return stein_of(self._data, score=score, **settings)

    @property
    def plot(self) -> Plot:
        """`plot.response()` and `plot.map(lag=...)` of responses."""
        from workflow.plotting import Plot

        return Plot(self._data)


def register() -> None:
    """Make `gfdt` known to xarray; once, however often it is called."""
    for kind, decorate in (
        (xr.Dataset, xr.register_dataset_accessor),
        (xr.DataArray, xr.register_dataarray_accessor),
    ):
        if not hasattr(kind, "gfdt"):
            decorate("gfdt")(Gfdt)
