"""Responses of stochastic systems to small forcings, learned from unperturbed data.

Importing it gives every xarray object the accessor `gfdt`: `ds.gfdt.response(max_lag=...)`.
`open_catalog` opens what runs have published, with nothing but PyYAML and xarray.
"""

from hpc.catalog import open_catalog
from workflow.accessor import register

__all__ = ["open_catalog", "register"]

__version__ = "0.1.0"

register()
