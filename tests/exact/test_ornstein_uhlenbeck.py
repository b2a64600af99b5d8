"""The Ornstein-Uhlenbeck SPDE against its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workflow.dynamics.grid import Grid
from workflow.dynamics.integrators import noise_last, runge_kutta_4
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck

torch.set_num_threads(1)

PUBLISHED = OrnsteinUhlenbeck(grid=32, dim=2)
FAST = {"grid": 8, "relaxation": 0.4, "kappa": 0.025, "advection": 0.3}
"""Every mode relaxes within a few time units, so a short run is stationary."""


def stationary_spectrum(system, *, members=128, spinup=60, samples=10, gap=20, seed=1):
    """E |u_hat_k|^2 / N^dim per mode, with its standard error from the spread of members."""
    stream = {"members": range(members), "dtype": torch.float64}
    start = NoiseStream(seed, stream=INITIAL, shape=system.initial_shape, **stream).at(0)
    noise = NoiseStream(seed, stream=FORCING, shape=system.noise_shape, **stream)
    state, power = system.initial(start), []
    for step in range(spinup + samples * gap):
        state = system.step(state, noise.at(step))
        if step >= spinup and step % gap == 0:
            power.append(state["u_hat"].abs() ** 2 / system.grid**system.dim)
    per_member = torch.stack(power).mean(0)
    return per_member.mean(0), per_member.std(0) / members**0.5


def test_pixel_variance_is_the_published_one():
    """The mean of the eigenvalues C_k is the variance of a pixel: 2.9645 at 32 x 32."""
    grid = Grid(32, 2)
    assert grid.ifft(PUBLISHED.variance(grid))[0, 0].item() == pytest.approx(2.9645, abs=5e-5)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("dt", [0.3, 2.5])
def test_exact_scheme_has_the_continuum_variance_for_any_step(dim, dt):
    """The transition density is sampled, so no step is too long."""
    system = OrnsteinUhlenbeck(dim=dim, dt=dt, **FAST)
    power, error = stationary_spectrum(system, seed=2)
    expected = system.variance(Grid(system.grid, dim))
    assert ((power - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("dim", [1, 2])
def test_paper_scheme_has_the_variance_of_its_own_recursion(dim):
    """u -> g u + noise with g the Runge-Kutta factor has variance noise / (1 - |g|^2).

    A long step is used: there the recursion is far from the continuum, and both are told apart.
    """
    system = OrnsteinUhlenbeck(dim=dim, dt=1.0, scheme="paper", **FAST)
    grid = Grid(system.grid, dim)
    z = system.linear(grid) * system.dt
    g = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    expected = grid.points * system.noise_spectrum(grid) * system.dt / (1 - g.abs() ** 2)
    power, error = stationary_spectrum(system, seed=3)
    assert ((power - expected).abs() < 4 * error).all()
    assert ((power - system.variance(grid)).abs() > 4 * error).any()


def test_paper_scheme_tends_to_the_continuum_variance():
    """Noise after the flow is of weak order 1: a tenth of the step has a tenth of the error."""
    errors = []
    for dt in (0.1, 0.01):
        system = OrnsteinUhlenbeck(dim=2, dt=dt, scheme="paper", **FAST)
        grid = Grid(system.grid)
        symbol = system.linear(grid)
        g = runge_kutta_4(lambda u, a=symbol: a * u, torch.ones_like(symbol), dt)
        kick = noise_last(
            lambda u, a=symbol: a * u,
            torch.zeros_like(symbol)[None],
            dt,
            amplitude=(grid.points * system.noise_spectrum(grid)).sqrt(),
            w=torch.ones_like(symbol)[None, None],
        )[0]
        variance = kick.abs() ** 2 / (1 - g.abs() ** 2)
        errors.append((variance / system.variance(grid) - 1).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_first_state_is_already_stationary():
    """The initial draw has covariance C, so there is nothing to spin up."""
    system = OrnsteinUhlenbeck(dim=2, dt=1.0, **FAST)
    members = 4096
    start = NoiseStream(
        4, range(members), stream=INITIAL, shape=system.initial_shape, dtype=torch.float64
    ).at(0)
    power = system.initial(start)["u_hat"].abs() ** 2 / system.grid**2
    error = power.std(0) / members**0.5
    assert ((power.mean(0) - system.variance(Grid(8))).abs() < 4 * error).all()


@pytest.mark.parametrize(
    ("pixels", "peak", "time"), [(2, 0.492, 18.25), (4, 0.285, 38.0), (6, 0.187, 57.5)]
)
def test_response_peaks_downstream_where_the_paper_shows_it(pixels, peak, time):
    """Figure 1 of arXiv:2402.01029: the kick is carried in +x and spreads on its way."""
    lag = torch.arange(0, 100.25, 0.25, dtype=torch.float64)
    response = PUBLISHED.exact_response(lag)[:, 0, pixels]
    assert response.max().item() == pytest.approx(peak, abs=5e-4)
    assert lag[response.argmax()].item() == pytest.approx(time, abs=0.25)


def test_response_does_not_travel_upstream_or_across():
    """Advection is along +x only: elsewhere the kick spreads, before it leaves, and fades."""
    lag = torch.arange(0, 100.25, 0.25, dtype=torch.float64)
    response = PUBLISHED.exact_response(lag)
    across = response[:, 2:-1, 0]
    torch.testing.assert_close(across, across.flip(1))
    downstream = response[:, 0, [2, 4, 6]].amax(0)
    upstream = response[:, 0, [-2, -4, -6]].amax(0)
    assert (upstream < downstream / 3).all()
    assert (response[:, [2, 4, 6], 0].amax(0) < downstream / 3).all()


def test_response_of_the_kicked_pixel_is_the_published_one():
    """The kick itself at lag 0, then a decay while it is carried away."""
    lag = torch.tensor([0.0, 1.0, 2.0, 5.0, 10.0, 20.0], dtype=torch.float64)
    expected = [1.0, 0.94324, 0.86374, 0.55088, 0.09504, -0.01359]
    np.testing.assert_allclose(PUBLISHED.exact_response(lag)[:, 0, 0], expected, atol=6e-6)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_kicked_run_follows_the_exact_response(dim):
    """The system is linear: the difference of paired runs is the response, without any noise."""
    system = OrnsteinUhlenbeck(grid=16, dim=dim, dt=0.75)
    zero = torch.zeros(1, *system.noise_shape, dtype=torch.float64)
    kick = torch.zeros(1, 1, *system.shape, dtype=torch.float64)
    kick[(0, 0, *[0] * dim)] = 1.0
    state = system.displace(system.initial(zero[:, 0]), kick)
    for _ in range(8):
        state = system.step(state, zero)
    expected = system.exact_response(torch.tensor([6.0], dtype=torch.float64))
    torch.testing.assert_close(system.observe(state)[:, 0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("scheme", ["exact", "paper"])
def test_score_is_that_of_the_gaussian_with_its_covariance(dim, scheme):
    """-grad of x C^-1 x / 2 with the covariance written out as a dense matrix."""
    system = OrnsteinUhlenbeck(grid=8, dim=dim, scheme=scheme)
    grid = Grid(8, dim)
    kernel = grid.ifft(system.variance(grid))
    axes = tuple(range(dim))
    columns = [torch.roll(kernel, place, axes).flatten() for place in np.ndindex(*system.shape)]
    precision = torch.linalg.inv(torch.stack(columns, dim=1))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 1, *system.shape, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    flat = x.flatten(1)
    potential = 0.5 * (flat * (flat @ precision)).sum()
    (gradient,) = torch.autograd.grad(potential, x)
    error = (system.exact_score(x) + gradient).norm() / gradient.norm()
    assert error.item() < 1e-10


def test_the_score_of_a_grid_carries_one_over_the_number_of_pixels():
    """-<u s> = 1 per pixel at 32 x 32, where the factor 1 / N^2 is a thousand (T4)."""
    start = torch.randn(64, 32, 32, generator=torch.Generator().manual_seed(8)).double()
    x = PUBLISHED.observe(PUBLISHED.initial(start))
    assert -(x * PUBLISHED.exact_score(x)).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_published_settings_reach_their_stationary_variance():
    """Step 1/32 and the slowest rates of the paper: 64 members, 400 time units after a spin-up."""
    system = OrnsteinUhlenbeck(grid=32, dt=1 / 32, scheme="paper")
    power, error = stationary_spectrum(system, members=64, spinup=3200, samples=40, gap=320, seed=6)
    grid = Grid(32)
    z = system.linear(grid) * system.dt
    g = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    expected = grid.points * system.noise_spectrum(grid) * system.dt / (1 - g.abs() ** 2)
    assert ((power - expected).abs() < 5 * error).all()
    assert grid.ifft(power)[0, 0].item() == pytest.approx(2.9645, abs=0.05)
