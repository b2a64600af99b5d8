"""The Allen-Cahn equation against its stationary density exp(-V), sampled without any time.

Two roads lead to every number: time steps, which know the drift, and hybrid Monte Carlo, which
knows the potential and its gradient. From an ordered start (every pixel near +1 or near -1) the
Monte Carlo is stationary after some hundred sweeps; from a disordered one domains have to grow
first, which takes thousands. The steps start from Monte Carlo states: had they another stationary
density, they would leave them.
"""

from __future__ import annotations

import pytest
import torch

from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.grid import Grid
from workflow.dynamics.integrators import strang
from workflow.dynamics.noise import FORCING, NoiseStream

torch.set_num_threads(1)


def observed(system, x):
    """<u^2>, <u^4> and -<u s>, `(3, member)`."""
    means = [x.square(), x**4, -x * system.exact_score(x)]
    return torch.stack([m.flatten(1).mean(1) for m in means])


def hamiltonian(system, *, members, spinup, sweeps, seed, leaps=16, h=0.2):
    """Last state and mean of `observed` over the sweeps, drawn from exp(-V)."""
    generator = torch.Generator().manual_seed(seed)
    grid = Grid(system.grid, system.dim)
    # Four times lighter than the curvature of a well at large scales: longer jumps between wells.
    stiffness = 0.25 * system.alpha + system.kappa * grid.k2 * (1 + grid.k2)
    width = (grid.points * system.epsilon**2 / (2 * stiffness)).sqrt()

    def normal():
        shape = (members, 1, *system.shape)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def push(x):
        return grid.ifft(width * grid.fft(system.exact_score(x)))

    def energy(x, momentum):
        return system.potential(x) + 0.5 * momentum.square().flatten(1).sum(1)

    signs = 1.0 - 2.0 * (torch.arange(members) % 2).double()
    x, seen = 0.3 * normal() + signs.reshape(-1, *[1] * (1 + system.dim)), []
    for sweep in range(spinup + sweeps):
        momentum = normal()
        y, p = x, momentum + 0.5 * h * push(x)
        for leap in range(leaps):
            y = y + h * grid.ifft(width * grid.fft(p))
            p = p + (h if leap < leaps - 1 else 0.5 * h) * push(y)
        chance = torch.rand(members, dtype=torch.float64, generator=generator)
        accepted = chance.log() < energy(x, momentum) - energy(y, p)
        x = torch.where(accepted.reshape(-1, *[1] * (x.ndim - 1)), y, x)
        if sweep >= spinup:
            seen.append(observed(system, x))
    return x, torch.stack(seen).mean(0)


def stepped(system, x, *, length, every, seed):
    """Mean of `observed` over Strang steps from `x`, and the histogram of the pixels."""
    grid = Grid(system.grid, system.dim, x.dtype)
    nonlinear, symbol = system.nonlinear(grid), system.linear(grid)
    amplitude = (grid.points * system.noise_spectrum(grid)).sqrt()
    shape = (2, *system.shape)
    noise = NoiseStream(seed, range(len(x)), stream=FORCING, shape=shape, dtype=x.dtype)
    u_hat, seen, histogram = grid.fft(x[:, 0]), [], torch.zeros(30, dtype=x.dtype)
    for step in range(round(length / system.dt)):
        u_hat = strang(
            lambda u: symbol * u + nonlinear(u),
            u_hat,
            system.dt,
            amplitude=amplitude,
            w=grid.fft(noise.at(step)),
        )
        if step % every == 0:
            now = grid.ifft(u_hat)[:, None]
            seen.append(observed(system, now).double())
            histogram += torch.histc(now, bins=30, min=-1.5, max=1.5)
    return torch.stack(seen).mean(0), histogram


def agree(ran, drawn, *, at_most):
    """Members are independent: 4 standard errors of the difference, itself small enough."""
    error = 4 * ((ran.var(1) + drawn.var(1)) / ran.shape[1]).sqrt()
    ours, truth = ran.mean(1), drawn.mean(1)
    assert ((ours - truth).abs() < error).all(), (ours, truth, error)
    assert (error < at_most * truth).all(), error


@torch.inference_mode()
def test_weakly_reacting_allen_cahn_has_the_moments_of_its_density():
    """A weak reaction lets the wells mix in the time of a test; still far from Gaussian."""
    system = AllenCahn(grid=16, alpha=2.0, dt=1 / 32)
    x, drawn = hamiltonian(system, members=32, spinup=60, sweeps=200, seed=22)
    ran, _ = stepped(system, x, length=60, every=32, seed=21)
    agree(ran, drawn, at_most=0.05)
    second, fourth, _ = drawn.mean(1)
    assert fourth / second**2 < 2.3


@torch.inference_mode()
def test_allen_cahn_of_the_paper_stays_in_its_density():
    """32 x 32 with the published parameters (T5), in short: two peaks, and no drift from them."""
    system = AllenCahn(grid=32)
    x, drawn = hamiltonian(system, members=16, spinup=100, sweeps=100, seed=24)
    ran, histogram = stepped(system, x.float(), length=5, every=16, seed=25)
    agree(ran, drawn, at_most=0.08)
    second, fourth, stein = ran.mean(1)
    assert second.item() == pytest.approx(0.80, abs=0.05)
    assert (fourth / second**2).item() == pytest.approx(1.40, abs=0.06)
    assert stein.item() == pytest.approx(1, abs=0.08)
    assert histogram[14:16].mean() < 0.5 * histogram.max()


PUBLISHED_MOMENTS = {
    "padded, advected": (AllenCahn(grid=32), (0.80, 0.03), (1.40, 0.03)),
    "collocated, at rest": (
        AllenCahn(grid=32, scheme="paper", advection=0.0, dt=1 / 128),
        (0.745, 0.01),
        (1.41, 0.03),
    ),
}


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(
    ("system", "second", "kurtosis"), PUBLISHED_MOMENTS.values(), ids=PUBLISHED_MOMENTS
)
def test_allen_cahn_of_the_paper_has_the_moments_of_its_density(system, second, kurtosis):
    """<u^2>, <u^4> / <u^2>^2, -<u s> = 1 per pixel and two peaks, both roads (T5).

    Steps of 1/128 inflate the fastest mode of a well, r = 2 alpha, by 2 % of its variance, which
    is 1 % of <u^2> in one mode of 1024.
    """
    x, drawn = hamiltonian(system, members=24, spinup=300, sweeps=600, seed=26)
    ran, histogram = stepped(system, x.float(), length=30, every=16, seed=27)
    agree(ran, drawn, at_most=0.04)
    for found in (ran, drawn):
        u2, u4, stein = found.mean(1)
        assert u2.item() == pytest.approx(second[0], abs=second[1])
        assert (u4 / u2**2).item() == pytest.approx(kurtosis[0], abs=kurtosis[1])
        assert stein.item() == pytest.approx(1, abs=0.02)
    assert histogram[14:16].mean() < 0.5 * histogram.max()
