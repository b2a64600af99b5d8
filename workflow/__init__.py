"""Responses of stochastic systems to small forcings, learned from unperturbed data."""

__version__ = "0.1.0"
