"""The reduced barotropic flow: its coefficients, conservation and default step."""

from __future__ import annotations

import pytest
import torch

from workflow.dynamics.barotropic import Barotropic, _coefficients
from workflow.dynamics.integrators import runge_kutta_4

torch.set_num_threads(1)


def run(system, *, members, spinup, saves, every, seed, dtype=torch.float64):
    """Saved states `(member, time, field)`, every `every` steps after `spinup` steps."""
    generator = torch.Generator().manual_seed(seed)

    def white(shape):
        return torch.randn(members, *shape, dtype=dtype, generator=generator)

    state, saved = system.initial(white(system.initial_shape)), []
    for step in range(spinup + saves * every):
        state = system.step(state, white(system.noise_shape))
        if step >= spinup and (step - spinup + 1) % every == 0:
            saved.append(system.observe(state))
    return torch.stack(saved, dim=1)


def within(value, expected, error, *, sigmas=4.0):
    return (abs(value - expected) < sigmas * error).all()


def mean_and_error(per_member):
    return per_member.mean(0), per_member.std(0) / len(per_member) ** 0.5


def test_barotropic_coefficients_are_the_printed_ones():
    """Aspect 1.6, beta 1.25 and topography 0.2 give the eight digits of the paper."""
    printed = {
        "advection": (0.86322463, 0.81394451),
        "beta": (0.89887640, 0.48780488),
        "exchange": (1.38115941, -0.12882575),
        "rise": (0.19206748, 0.07682699),
        "drag": (0.05395154, 0.04684573),
        "pump": (0.0, 1.44050611),
        "forcing": (0.95, -0.76095),
    }
    coefficients = _coefficients(Barotropic(), torch.float64, "cpu")._asdict()
    for name, values in printed.items():
        assert coefficients[name].tolist() == pytest.approx(values, abs=6e-9)


def test_barotropic_drift_is_the_printed_equation():
    """Each equation written out by hand at a random state."""
    system = Barotropic()
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k = _coefficients(system, torch.float64, "cpu")
    (a1, a2), (b1, b2), (d1, d2) = k.advection, k.beta, k.exchange
    (r1, r2), (g1, g2), (_, e), c = k.rise, k.drag, k.pump, system.damping
    x1, x2, x3, x4, x5, x6 = x
    expected = [
        r1 * x3 - c * (x1 - 0.95),
        -(a1 * x1 - b1) * x3 - c * x2 - d1 * x4 * x6,
        (a1 * x1 - b1) * x2 - g1 * x1 - c * x3 + d1 * x4 * x5,
        r2 * x6 - c * (x4 + 0.76095) + e * (x2 * x6 - x3 * x5),
        -(a2 * x1 - b2) * x6 - c * x5 - d2 * x4 * x3,
        (a2 * x1 - b2) * x5 - g2 * x4 - c * x6 + d2 * x4 * x2,
    ]
    torch.testing.assert_close(system.drift(x[None])[0], torch.stack(expected), rtol=1e-12, atol=0)


def test_barotropic_energy_and_enstrophy_are_conserved_by_the_interactions():
    """Without damping the energy stands still; without topography and beta the enstrophy too."""
    x = torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    k2 = Barotropic().wavenumbers()
    free = Barotropic(zonal_1=0.0, zonal_2=0.0)
    interactions = free.drift(x) + free.damping * x
    assert (k2 * x * interactions).sum(1).abs().max() < 1e-12
    bare = Barotropic(zonal_1=0.0, zonal_2=0.0, beta=0.0, topography=0.0)
    quadratic = bare.drift(x) + bare.damping * x
    assert (k2**2 * x * quadratic).sum(1).abs().max() < 1e-11


def test_barotropic_energy_is_fed_by_the_noise_that_is_printed():
    """0 = d<E>/dt = <sum k^2 x F> + sigma^2 / 2 sum k^2 in the mean, at ten times the noise."""
    system = Barotropic(sigma=0.1)
    x = run(system, members=500, spinup=800, saves=200, every=8, seed=11)
    flat, k2 = x.flatten(0, 1), system.wavenumbers()
    work = (k2 * flat * system.drift(flat)).sum(1).reshape(x.shape[:2]).mean(1)
    mean, error = mean_and_error(work)
    supply = 0.5 * system.sigma**2 * k2.sum()
    assert within(mean, -supply, error)
    assert not within(mean, -2 * supply, error, sigmas=10)


def test_barotropic_default_step_follows_the_flow():
    """The noise-free flow over ten time units: a step of 0.25 against one ten times shorter."""
    system = Barotropic()
    x = system.initial(torch.zeros(1, 6, dtype=torch.float64))["x"]
    ends = []
    for steps in (40, 400):
        y = x
        for _ in range(steps):
            y = runge_kutta_4(system.drift, y, 10 / steps)
        ends.append(y)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-3 * system.sigma)
