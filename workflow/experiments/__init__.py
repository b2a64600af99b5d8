"""Shipped experiments, run by name."""
