"""Directions, their divergence, and changes of drift and noise, against closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.grid import Grid
from workflow.dynamics.navier_stokes import NavierStokes
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.interfaces import Field, HasDrift, UserError
from workflow.responses.directions import Direction, conjugate, user_direction
from workflow.responses.divergence import divergence
from workflow.responses.parameters import (
    NoiseChange,
    drift_change,
    noise_change,
    numeric_parameters,
    parameter_change,
)

torch.set_num_threads(1)


def white(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cubic(x):
    """u_i = x_i^3 + x_{i+1} x_i: divergence sum 3 x_i^2 + x_{i+1}."""
    return x**3 + x.roll(-1, -1) * x


def cubic_divergence(x):
    return (3 * x**2 + x.roll(-1, -1)).flatten(1).sum(1)


# Divergence


def test_the_divergence_of_a_small_state_is_exact():
    """Every component is differentiated: rounding only."""
    x = white(3, 2, 4, 5)
    value, method = divergence(cubic, x)
    assert method == "automatic differentiation"
    torch.testing.assert_close(value, cubic_divergence(x))


def test_the_divergence_agrees_with_finite_differences():
    """No formula in between: central differences, component by component."""
    x, h = white(2, 1, 6), 1e-5
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(6):
        e = torch.zeros(6, dtype=torch.float64)
        e[i] = h
        total += (
            (torch.sin(x + e) * (x + e).sum(-1, True)) - torch.sin(x - e) * ((x - e).sum(-1, True))
        )[:, 0, i] / (2 * h)
    value, _ = divergence(lambda y: torch.sin(y) * y.sum(-1, keepdim=True), x)
    torch.testing.assert_close(value, total, rtol=1e-8, atol=1e-8)


def test_random_probes_are_unbiased_for_a_large_state():
    """Hutchinson on one state of 100 numbers, 2000 times: mean within 4 standard errors."""
    x = white(1, 1, 100).expand(2000, 1, 100)
    value, method = divergence(cubic, x, seed=(1, 2, 3))
    assert method == "Hutchinson, 4 Rademacher probes"
    error = value.std() / len(x) ** 0.5
    assert error > 0 and abs(value.mean() - cubic_divergence(x)[0]) < 4 * error
    assert torch.equal(value, divergence(cubic, x, seed=(1, 2, 3))[0])
    assert not torch.equal(value, divergence(cubic, x, seed=(1, 2, 4))[0])


def test_random_probes_are_exact_for_a_local_direction():
    """A diagonal gradient leaves no noise: z_i^2 = 1."""
    x = white(2, 1, 32, 32)
    value, _ = divergence(lambda y: y**3, x, probes=1)
    torch.testing.assert_close(value, (3 * x**2).flatten(1).sum(1))


def test_a_constant_direction_has_no_divergence():
    """Also where torch sees no graph at all."""
    x = white(2, 1, 4)
    assert torch.equal(divergence(torch.ones_like, x)[0], torch.zeros(2, dtype=torch.float64))


def test_divergence_works_in_inference_mode():
    """Stages evaluate scores in it; what systems keep from there must serve derivatives too."""
    system = AllenCahn(grid=4, alpha=3.21)
    with torch.inference_mode():
        x = white(2, 1, 4, 4)
        system.exact_score(x), system.drift(x)
        inside, _ = divergence(system.drift, x)
    torch.testing.assert_close(inside, divergence(system.drift, white(2, 1, 4, 4))[0])


@pytest.mark.parametrize(
    "hidden", [lambda x: x.detach() ** 2, lambda x: torch.from_numpy(x.numpy() ** 2)]
)
def test_a_direction_outside_torch_is_refused_without_its_divergence(hidden):
    """Its graph would say divergence 0, in silence."""
    with pytest.raises(UserError, match="write it in torch, or give its divergence"):
        divergence(hidden, white(2, 1, 4))


# Directions of a user


def test_the_conjugate_is_minus_divergence_minus_direction_times_score():
    """u = x has div u = n; with s = -x, B = |x|^2 - n."""
    x = white(5, 2, 3)
    expected = x.square().flatten(1).sum(1) - 6
    torch.testing.assert_close(conjugate(lambda y: y, x, -x), expected)
    given = Direction(lambda y: y, lambda y: torch.full((len(y),), 6.0, dtype=y.dtype))
    torch.testing.assert_close(conjugate(given, x, -x), expected)


@pytest.mark.parametrize("size", [4, 100])
def test_a_wrong_divergence_of_a_user_is_refused(size):
    """Compared with differences of u before any work starts."""
    x = white(3, 1, size)
    right = user_direction(cubic, x, formula=cubic_divergence)
    torch.testing.assert_close(conjugate(right, x, 0 * x), -cubic_divergence(x))
    with pytest.raises(UserError, match="differences of u give"):
        user_direction(cubic, x, formula=lambda y: 1.5 * cubic_divergence(y))


def test_a_user_direction_brings_its_divergence_as_an_attribute():
    """For functions that torch cannot differentiate."""

    def u(x):
        return x.detach() ** 3

    u.divergence = lambda x: (3 * x**2).flatten(1).sum(1)
    x = white(3, 1, 4)
    torch.testing.assert_close(conjugate(user_direction(u, x), x, 0 * x), -u.divergence(x))


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (lambda x: x[:, 0], r"\(3, 4\) for x of shape \(3, 1, 4\)"),
        (lambda x: 3.0, "float for x of shape"),
        (lambda x: x / 0, "not finite"),
    ],
)
def test_a_direction_of_the_wrong_shape_is_refused(u, message):
    """One line, before any work starts."""
    with pytest.raises(UserError, match=message):
        user_direction(u, white(3, 1, 4))


# Parameters of the drift


@pytest.mark.parametrize("dim", [1, 2])
def test_the_direction_of_the_relaxation_is_minus_sigma_u(dim):
    """dF/dlambda = -(1 - Lap)^-1 u, exact because F is linear in lambda."""
    system = OrnsteinUhlenbeck(grid=16, dim=dim)
    x, grid = white(2, 1, *system.shape), Grid(16, dim)
    expected = grid.ifft(-grid.fft(x) / (1 + grid.k2))
    torch.testing.assert_close(drift_change(system, "relaxation")(x), expected)


@pytest.mark.parametrize("scheme", ["exact", "paper"])
def test_parameter_derivatives_of_allen_cahn(scheme):
    """F is linear in alpha, kappa and A; float32 data lose nothing to the difference."""
    system = AllenCahn(grid=16, scheme=scheme)
    x, grid = 0.8 * white(2, 1, 16, 16), Grid(16)
    expected = {
        "kappa": grid.ifft(-grid.k2 * grid.fft(x)),
        "advection": grid.ifft(-grid.derivative(-1) * grid.fft(x)),
        "alpha": grid.ifft(system.nonlinear(grid)(grid.fft(x))) / system.alpha,
    }
    for name, value in expected.items():
        torch.testing.assert_close(drift_change(system, name)(x), value, rtol=1e-8, atol=1e-8)
        single = drift_change(system, name)(x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), value, rtol=1e-5, atol=1e-4)


def test_drift_and_noise_of_the_fields_keep_their_density():
    """F = advection + D s / 2 for both systems: `noise_covariance` fits `drift` and score."""
    for system in (OrnsteinUhlenbeck(grid=16), AllenCahn(grid=16, dim=1)):
        x, grid = white(2, 1, *system.shape), Grid(16, system.dim)
        carried = grid.ifft(-system.advection * grid.derivative(-1) * grid.fft(x))
        pushed = 0.5 * system.noise_covariance(x, system.exact_score(x))
        torch.testing.assert_close(system.drift(x), carried + pushed)
        assert isinstance(system, HasDrift)


@pytest.mark.parametrize(
    ("system", "name", "message"),
    [
        (OrnsteinUhlenbeck(), "relaxaton", "did you mean 'relaxation'.*Known: relaxation, kappa"),
        (OrnsteinUhlenbeck(), "grid", "'grid' is no numeric parameter"),
        (OrnsteinUhlenbeck(), "epsilon", "ask for the noise perturbation of epsilon"),
        (OrnsteinUhlenbeck(), "dt", "'dt' is no numeric parameter"),
        (NavierStokes(), "forcing", "NavierStokes has no drift"),
    ],
)
def test_what_is_no_parameter_of_the_drift_is_refused(system, name, message):
    """In one line that says what to ask for instead."""
    with pytest.raises(UserError, match=message) as refused:
        drift_change(system, name)
    assert "\n" not in str(refused.value)


def test_a_parameter_of_the_drift_is_refused_as_noise():
    """And the other way round."""
    with pytest.raises(UserError, match="ask for the drift perturbation of kappa"):
        noise_change(OrnsteinUhlenbeck(), "kappa")
    assert numeric_parameters(AllenCahn()) == ["alpha", "kappa", "advection", "epsilon"]


def test_the_conjugate_of_a_parameter_of_a_linear_field_is_known():
    """B = sum_k (1 - |u_k|^2 / (N^d C_k)) / (1 + k^2) for lambda: the sum over the modes."""
    system = OrnsteinUhlenbeck(grid=8)
    x = system.observe(system.initial(white(3, 8, 8)))
    grid = Grid(8)
    k2 = torch.fft.fftfreq(8, 1 / 8).double().square()
    k2 = k2[:, None] + k2[None, :]
    power = torch.fft.fft2(x[:, 0]).abs().square() / 64
    variance = 64 * system.epsilon**2 / (2 * (system.relaxation + system.kappa * k2 * (1 + k2)))
    expected = ((1 - power / variance) / (1 + k2)).sum((-2, -1))
    change = parameter_change(system, "relaxation")
    assert change.noise is None and grid.points == 64
    torch.testing.assert_close(change.conjugate(x, system.exact_score), expected)


# Parameters of the noise


def test_the_noise_perturbation_of_a_linear_field_is_known():
    """D' = 2 D / epsilon, s = -C^-1 x: B = sum_k D_k / (epsilon C_k) (|u_k|^2 / (N^d C_k) - 1)."""
    system = OrnsteinUhlenbeck(grid=8)
    x = system.observe(system.initial(white(3, 8, 8)))
    k2 = torch.fft.fftfreq(8, 1 / 8).double().square()
    k2 = k2[:, None] + k2[None, :]
    power = torch.fft.fft2(x[:, 0]).abs().square() / 64
    rate = 2 * (system.relaxation + system.kappa * k2 * (1 + k2)) / (1 + k2)
    variance = 64 * system.epsilon**2 / (1 + k2) / rate
    expected = (rate / system.epsilon * (power / variance - 1)).sum((-2, -1))
    change = noise_change(system, "epsilon")
    torch.testing.assert_close(change.conjugate(x, system.exact_score), expected)
    probed = [
        change.conjugate(x[:1].expand(500, -1, -1, -1), system.exact_score, probes=2, seed=i)
        for i in range(2)
    ]
    probed = torch.cat(probed)
    assert abs(probed.mean() - expected[0]) < 4 * probed.std() / len(probed) ** 0.5


@dataclass(frozen=True)
class Multiplicative:
    """Two variables with noise of covariance D(x), symmetric and dependent on both."""

    beta: float = 0.7
    gamma: float = 0.3
    fields: ClassVar = (Field("x", "x"), Field("y", "y"))
    shape: ClassVar = ()

    def drift(self, x):
        return -self.gamma * x

    def covariance(self, x):
        a, b = x[:, 0], x[:, 1]
        rows = [1 + self.beta * a**2, self.beta**2 * a * b, 2 + self.beta * b**2 * a]
        return torch.stack([rows[0], rows[1], rows[1], rows[2]], -1).reshape(-1, 2, 2)

    def noise_covariance(self, x, v):
        return (self.covariance(x) @ v[..., None])[..., 0]


def test_the_conjugate_of_state_dependent_noise_is_that_of_fokker_and_planck():
    """B p = (1/2) sum_ij d_i d_j (D'_ij p), by hand for a density that is no equilibrium."""
    system, x = Multiplicative(), white(4, 2)

    def score(x):
        return torch.stack([-(x[:, 0] ** 3), -x[:, 1] - x[:, 0] * 0], 1)

    def expected(point):
        def flux(y):
            p = torch.exp(-(y[0] ** 4) / 4 - y[1] ** 2 / 2)
            b = system.beta
            diagonal = [y[0] ** 2, y[1] ** 2 * y[0]]
            return torch.stack([diagonal[0], 2 * b * y[0] * y[1], diagonal[1]]) * p

        second = torch.autograd.functional.jacobian(
            lambda y: torch.autograd.functional.jacobian(flux, y, create_graph=True), point
        )
        p = torch.exp(-(point[0] ** 4) / 4 - point[1] ** 2 / 2)
        return 0.5 * (second[0, 0, 0] + 2 * second[1, 0, 1] + second[2, 1, 1]) / p

    exact = torch.stack([expected(point) for point in x])
    change = noise_change(system, "beta")
    torch.testing.assert_close(change.conjugate(x, score), exact, rtol=1e-7, atol=1e-7)
    many = change.conjugate(x[:1].expand(4000, -1), score, probes=1, seed=5)
    assert abs(many.mean() - exact[0]) < 4 * many.std() / len(many) ** 0.5


def test_a_score_outside_torch_is_refused_for_the_noise():
    """The gradient of the score is needed, and would be taken as zero."""
    system = OrnsteinUhlenbeck(grid=8)
    with pytest.raises(UserError, match="the score depends on x by other means"):
        NoiseChange(system, "epsilon").conjugate(white(2, 1, 8, 8), lambda x: -x.detach())
