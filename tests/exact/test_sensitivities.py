"""Static sensitivities to parameters of drift and noise, from unperturbed runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from workflow.interfaces import Field
from workflow.responses.parameters import (
    parameter_change,
)

torch.set_num_threads(1)


@dataclass(frozen=True)
class Scalar:
    """dx = (a1 + a2 x + a3 x^2 + a4 x^3) dt + sigma dW."""

    a1: float = 0.0
    a2: float = 1.0
    a3: float = 0.0
    a4: float = -1.0
    sigma: float = math.sqrt(2)
    fields: ClassVar = (Field("x", "x"),)
    shape: ClassVar = ()

    def drift(self, x):
        return self.a1 + x * (self.a2 + x * (self.a3 + x * self.a4))

    def noise_covariance(self, x, v):
        return self.sigma**2 * v

    def exact_score(self, x):
        return (2 / self.sigma**2) * self.drift(x)


def runs(system, *, members, time, dt, every, seed):
    """Stationary runs `(time, member)`; averaged noise keeps the density to second order in dt.

    Source of the step: Leimkuhler and Matthews 2013.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(members, dtype=torch.float64, generator=generator)
    old, spinup, saved = torch.randn(members, dtype=torch.float64, generator=generator), 8.0, []
    for step in range(round((spinup + time) / dt)):
        new = torch.randn(members, dtype=torch.float64, generator=generator)
        x = x + dt * system.drift(x) + (0.5 * system.sigma * dt**0.5) * (old + new)
        old = new
        if step * dt >= spinup and step % every == 0:
            saved.append(x)
    return torch.stack(saved)


def sensitivity(system, parameter, x, *, observable, step, window):
    """int_0^window < A(t) B(0) > dt by the trapezoid, with its error from the members."""
    change, lags, answers = parameter_change(system, parameter), round(window / step), []
    mean = observable(x).mean()
    for part in x.split(100, dim=1):
        b = change.conjugate(part.reshape(-1, 1), system.exact_score).reshape(part.shape)
        total = torch.cumsum(0.5 * step * (b[1:] + b[:-1]), 0)
        answers.append(
            ((observable(part) - mean)[lags + 1 :] * (total[lags:] - total[:-lags])).mean(0)
        )
    per_member = torch.cat(answers)
    return per_member.mean().item(), (per_member.std() / len(per_member) ** 0.5).item()


def quartic_sensitivities(power):
    """d< x >, d< x^2 >, dP(x > 2) by a drift x^power: covariances under exp(x^2/2 - x^4/4)."""
    x = np.linspace(-6, 6, 240001)
    p = np.exp(x**2 / 2 - x**4 / 4)
    p /= p.sum()
    g = x ** (power + 1) / (power + 1)
    above = np.where(np.isclose(x, 2), 0.5, x > 2)
    return [float((p * a * g).sum() - (p * a).sum() * (p * g).sum()) for a in (x, x**2, above)]


def test_the_static_sensitivities_of_the_quartic_well():
    """Printed values of the follow-up papers, but for the sign of the last column.

    A larger coefficient of x^3 weakens the confinement, so d< x^2 > and dP(x > 2) are positive.
    """
    table = {0: (1.0418, 0, 0.00988), 1: (0, 0.47823, 0.00804)}
    table |= {2: (0.6806, 0, 0.01484), 3: (0, 0.76001, 0.02135)}
    for power, expected in table.items():
        assert quartic_sensitivities(power) == pytest.approx(expected, abs=6e-5)


@pytest.fixture(scope="module")
def quartic():
    """4000 members over 250 time units."""
    return runs(Scalar(), members=4000, time=250.0, dt=0.01, every=4, seed=11)


def above(x):
    """1{x > 2} less its even part, which an odd B does not see: half the variance."""
    return 0.5 * ((x > 2).double() - (x < -2).double())


@pytest.mark.parametrize(
    ("parameter", "observable", "truth", "tolerance"),
    [
        ("a1", above, 0.00988, 6e-4),
        ("a3", lambda x: x, 0.6806, 0.03),
        ("a4", lambda x: x**2, 0.76001, 0.04),
    ],
    ids=["exceedance-a1", "mean-a3", "square-a4"],
)
def test_sensitivities_of_the_quartic_well_come_from_unperturbed_runs(
    quartic, parameter, observable, truth, tolerance
):
    """Changed drift of dx = (x - x^3) dt + 2^(1/2) dW, by the response integrated over lags."""
    value, error = sensitivity(
        Scalar(), parameter, quartic, observable=observable, step=0.04, window=5.5
    )
    assert 4 * error < tolerance and abs(value - truth) < tolerance


def test_sensitivities_of_a_linear_variable_to_noise_and_damping():
    """dx = -alpha x dt + beta dW has < x^2 > = beta^2 / (2 alpha); 3 percent of its derivatives."""
    alpha, beta = 0.8, 1.3
    system = Scalar(a2=-alpha, a4=0.0, sigma=beta)
    x = runs(system, members=4000, time=250.0, dt=0.025, every=4, seed=12)
    for parameter, truth in {"sigma": beta / alpha, "a2": beta**2 / (2 * alpha**2)}.items():
        value, error = sensitivity(
            system, parameter, x, observable=torch.square, step=0.1, window=4.0
        )
        assert 4 * error < 0.03 * truth and abs(value - truth) < 0.03 * truth
