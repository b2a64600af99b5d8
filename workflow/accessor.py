"""`ds.gfdt`: responses at the fingertips of xarray users; registered by `import workflow`.

The heavy imports happen when a method is called.
"""

from __future__ import annotations

from typing import Any

import xarray as xr


class Gfdt:
    """Responses of the data to small perturbations.

    >>> import workflow, xarray
    >>> ds = xarray.open_zarr("my_run.zarr")                    # doctest: +SKIP
    >>> ds.gfdt.response(max_lag=50.0, dims={"time": "t"})      # doctest: +SKIP
    """

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        self._data = data

    def response(self, **settings: Any) -> xr.Dataset | xr.DataTree:
        """Responses with error bars; arguments as `workflow.analysis.responses_of`."""
        from workflow.analysis import responses_of

        return responses_of(self._data, **settings)


def register() -> None:
    """Make `gfdt` known to xarray; once, however often it is called."""
    for kind, decorate in (
        (xr.Dataset, xr.register_dataset_accessor),
        (xr.DataArray, xr.register_dataarray_accessor),
    ):
        if not hasattr(kind, "gfdt"):
            decorate("gfdt")(Gfdt)
