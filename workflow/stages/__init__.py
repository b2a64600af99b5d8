"""Stages: one product each, in the order simulate, train, evaluate, respond, report."""
