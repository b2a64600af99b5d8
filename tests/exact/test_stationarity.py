"""Trends of a run, what a deviation means, and extrapolation in the noise level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workflow.interfaces import UserError
from workflow.responses.checks import judge, worst
from workflow.responses.diagnostics import (
    stationarity_checks,
)
from workflow.scores.extrapolation import Extrapolated

torch.set_num_threads(1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def white(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


# Stationarity


def autoregressive(members, blocks, memory, seed):
    rng = np.random.default_rng(seed)
    x = np.empty((members, blocks))
    x[:, 0] = rng.standard_normal(members)
    for t in range(1, blocks):
        kick = rng.standard_normal(members) * math.sqrt(1 - memory**2)
        x[:, t] = memory * x[:, t - 1] + kick
    return x


@pytest.mark.parametrize(("members", "memory"), [(16, 0.5), (1, 0.0), (1, 0.4), (3, 0.4)])
def test_stationary_runs_raise_no_false_alarm(members, memory):
    """300 replicas: a deviation of 2 in some 5 percent of them, of 4 in none."""
    z = []
    for replica in range(300):
        x = autoregressive(members, 24, memory, (members, replica))
        z += [stationarity_checks(x, x**2 + 1, name="u")[0].z]
    rate = float((np.abs(z) > 2).mean())
    assert rate < 0.10 and np.abs(z).max() < 4


@pytest.mark.parametrize("members", [16, 1])
def test_trends_are_found_and_told_with_numbers(members):
    """A mean that rises by 1.5, and a variance that doubles."""
    time = np.linspace(-0.5, 0.5, 40)
    x = 0.2 * autoregressive(members, 40, 0.3, 7)
    mean, variance = stationarity_checks(x + 1.5 * time, (x + 1.5 * time) ** 2 + 1, name="u")
    assert mean.passed is False and "the mean changes by +1." in mean.note
    spread = (1 + 0.05 * autoregressive(members, 40, 0.3, 8)) * (1 + 0.66 * time)
    mean, variance = stationarity_checks(0 * x, spread, name="u")
    assert mean.passed and variance.passed is False
    assert variance.value == pytest.approx(0.66, abs=0.1)


def test_three_blocks_are_no_trend():
    """Undecided, with what is needed."""
    assert stationarity_checks(np.ones((4, 3)), np.ones((4, 3)), name="u")[0].passed is None


# What a deviation means


def test_the_worst_of_many_is_judged_as_such():
    """1000 right numbers from 8 units: the largest ratio is above 4, its deviation is not."""
    rng = np.random.default_rng(1)
    alarms, plain = 0, 0
    for _ in range(50):
        values = rng.standard_normal((8, 1000))
        check = worst("x", values, 0.0)
        alarms += not check.passed
        plain += abs(check.value - check.expected) > 4 * check.standard_error
    assert plain > 25 and alarms == 0


def test_a_deviation_of_many_units_is_the_plain_ratio():
    """Student and Bonferroni leave it alone where they should."""
    assert judge("x", 1.3, 1.0, error=0.1, dof=1e6).z == pytest.approx(3.0, rel=1e-4)
    assert judge("x", 0.7, 1.0, error=0.1, dof=1e6).z == pytest.approx(-3.0, rel=1e-4)
    assert judge("x", 1.0, 1.0, error=0.0, dof=1).passed
    assert not judge("x", 1.1, 1.0, error=0.0, dof=1).passed


def test_one_unit_has_no_error_bar():
    """Told before anything is divided by zero."""
    with pytest.raises(UserError, match="needs at least 2"):
        worst("x", np.ones((1, 3)), 0.0)


# Extrapolation in sigma


def test_extrapolation_cuts_the_bias_of_a_gaussian_to_second_order():
    """M = C / (C + sigma^2) becomes 1 - 2 e^2 / (1 + 3 e + 2 e^2) with e = sigma^2 / C."""
    x, c = white(5, 1), 1.7
    for sigma in (0.2, 0.1):
        score = Extrapolated(lambda y, level: -y / (c + level**2), sigma)
        e = sigma**2 / c
        expected = 1 - 2 * e**2 / (1 + 3 * e + 2 * e**2)
        torch.testing.assert_close(score(x), -x / c * expected)


def test_extrapolation_is_of_second_order_in_the_variance_of_the_noise():
    """Two Gaussians at +-1: halving sigma^2 quarters the error (plain: halves it)."""
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]

    def score_at(y, level):
        width = 0.3 + level**2
        return (torch.tanh(y / width) - y) / width

    errors, plain = [], []
    for sigma in (0.1, 0.1 / math.sqrt(2)):
        errors.append((Extrapolated(score_at, sigma)(x) - score_at(x, 0.0)).norm())
        plain.append((score_at(x, sigma) - score_at(x, 0.0)).norm())
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.5)
    assert plain[0] / plain[1] == pytest.approx(2, abs=0.2)
    assert errors[0] < 0.3 * plain[0]
