"""What a system tells of its equation is what it steps: drift and noise covariance."""

from __future__ import annotations

import math

import pytest
import torch

from workflow.dynamics import SYSTEMS, build_system
from workflow.interfaces import HasDrift
from workflow.responses.parameters import with_parameter

torch.set_num_threads(1)

DT = 1e-5


def systems():
    """Every system that tells its drift, small, with a very short step."""
    for kind, constructor in SYSTEMS.items():
        if not hasattr(constructor, "drift"):
            continue
        known = constructor.model_fields
        variants = [{"grid": 8}, {"grid": 8, "dim": 1}, {"grid": 8, "scheme": "paper"}]
        for options in variants if "grid" in known else [{}]:
            if set(options) <= set(known):
                yield with_parameter(build_system({"kind": kind, **options}), "dt", DT)


each_system = pytest.mark.parametrize(
    "system", list(systems()), ids=lambda s: "-".join([type(s).__name__, *map(str, s.shape)])
)


def white(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@each_system
def test_a_short_step_without_noise_follows_the_drift(system):
    """(x(dt) - x) / dt = F(x) + O(dt), for a state that is at rest nowhere."""
    assert isinstance(system, HasDrift)
    state = system.initial(white(3, *system.initial_shape))
    x = system.observe(state)
    quiet = torch.zeros(3, *system.noise_shape, dtype=torch.float64)
    change = (system.observe(system.step(state, quiet)) - x) / DT
    assert ((change - system.drift(x)).norm() / change.norm()).item() < 2e-3


@each_system
def test_a_short_step_has_the_covariance_of_the_noise(system):
    """Var(v . dx) = v . D v dt for random v: within 4 standard errors of 4000 members."""
    members = 4000
    start = system.initial(white(1, *system.initial_shape))
    state = {name: value.expand(members, *value.shape[1:]) for name, value in start.items()}
    after = system.observe(system.step(state, white(members, *system.noise_shape, seed=2)))
    x = system.observe(start)
    quiet = torch.zeros(1, *system.noise_shape, dtype=torch.float64)
    change = (after - system.observe(system.step(start, quiet))).flatten(1)
    for seed in (3, 4):
        v = white(*x.shape, seed=seed)
        expected = (v * system.noise_covariance(x, v)).sum().item() * DT
        found = (change @ v.flatten()).square().mean().item()
        assert found == pytest.approx(expected, rel=4 * math.sqrt(2 / members))
