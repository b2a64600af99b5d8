"""Responses of paired perturbed runs: exact for a linear system, and told where members blow up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from workflow.dynamics.engines import TorchStepper
from workflow.interfaces import Field, State, System, UserError
from workflow.responses.direct import moved_to, paired_response, seen_from


@dataclass(frozen=True)
class TwoFields:
    """Linear system of two fields, the first drives the second, with a hidden forcing."""

    shape: tuple[int, ...]
    fields = (Field("a", "first"), Field("b", "second"))
    dt = 0.1
    homogeneous = True

    @property
    def noise_shape(self):
        return (2, *self.shape)

    initial_shape = noise_shape

    def initial(self, normals):
        return {"u": normals, "forcing": normals.flatten(1)[:, :1]}

    def step(self, state: State, normals: torch.Tensor) -> State:
        a, b = state["u"].unbind(1)
        axis = (-1,) if self.shape else ()
        right = torch.roll(a, 1, dims=axis) if axis else a
        hidden = state["forcing"].reshape(-1, *[1] * len(self.shape))
        moved = torch.stack([0.6 * a + 0.3 * right + hidden, 0.8 * b + 0.5 * a], dim=1)
        return {"u": moved + normals, "forcing": 0.9 * state["forcing"]}

    def observe(self, state: State) -> torch.Tensor:
        return state["u"]

    def displace(self, state: State, displacement: torch.Tensor) -> State:
        return {**state, "u": state["u"] + displacement}


def common(normals):
    """Normals of pairs that share them."""
    return lambda step: torch.cat([normals(step)] * 2)


@pytest.mark.parametrize("shape", [(3, 4), (5,), ()])
def test_paired_runs_of_a_linear_system_are_its_propagator(shape):
    system = TwoFields(shape)
    assert isinstance(system, System)
    generator = torch.Generator().manual_seed(14)

    def normals(step: int) -> torch.Tensor:
        generator.manual_seed(step)
        return torch.randn(6, *system.noise_shape, generator=generator, dtype=torch.float64)

    points = int(np.prod(shape))
    state = system.initial(normals(99))
    before = {name: value.clone() for name, value in state.items()}
    kicked = torch.arange(6) % points
    pixel = torch.zeros(2, *shape, dtype=torch.float64)
    pixel[(0,) * pixel.ndim] = 1.0
    response, mean = paired_response(
        system,
        state,
        begin=lambda pair: TorchStepper(system, pair, common(normals)),
        displacement=moved_to(pixel, kicked),
        amplitude=0.25,
        observe=lambda x: [seen_from(x, kicked), x.flatten(1).mean(1)],
        max_lag=3,
        steps_per_lag=2,
    )
    assert (mean - response.flatten(2).mean(2)).abs().max() < 1e-13
    assert response.shape == (6, 4, 2, *shape)
    unit = torch.zeros(1, 2, *shape, dtype=torch.float64)
    unit[(0, 0, *[0] * len(shape))] = 1.0
    propagated = {"u": unit, "forcing": torch.zeros(1, 1, dtype=torch.float64)}
    for lag in range(4):
        assert (response[:, lag] - propagated["u"]).abs().max() < 1e-13
        for _ in range(2):
            propagated = system.step(propagated, torch.zeros_like(unit))
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_members_that_blow_up_are_named():
    system = TwoFields((4,))
    state = system.initial(torch.zeros(3, 2, 4))
    state["u"][1] = torch.inf
    kick = {"amplitude": 0.1, "displacement": torch.ones(3, 2, 4, dtype=torch.float64)}
    kick |= {"max_lag": 2, "observe": lambda x: [x]}

    def begin(pair):
        return TorchStepper(system, pair, lambda step: torch.zeros(6, 2, 4))

    with pytest.raises(UserError, match=r"members \[1\] are not finite 0 steps after a kick"):
        paired_response(system, state, begin=begin, **kick)
    with pytest.raises(ValueError, match=r"displacement of shape \(2, 2, 4\); needs finite"):
        kick["displacement"] = torch.ones(2, 2, 4, dtype=torch.float64)
        paired_response(system, state, begin=begin, **kick)
