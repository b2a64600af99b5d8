"""Responses of stochastic systems to small forcings, learned from unperturbed data.

Importing it gives every xarray object the accessor `gfdt`: `ds.gfdt.response(max_lag=...)`.
"""

from workflow.accessor import register

__version__ = "0.1.0"

register()
