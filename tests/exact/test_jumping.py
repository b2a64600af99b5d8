"""Systems that jump: their stationary laws, and what of them is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workflow.dynamics import build_system, parameters_of
from workflow.dynamics.engines import check_engine, fastest_engine
from workflow.dynamics.jumping import Jumping
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.dynamics.stationary import stationary_density
from workflow.interfaces import HasDrift, HasExactResponse, HasExactScore, UserError

torch.set_num_threads(1)

JUMPS = {"rate": 1.0, "scale": 0.5}
DOUBLE_WELL = {"forcing": 0.0, "linear": 1.0, "quadratic": 0.0, "cubic": 1.0, "sigma": 1.0}


def scalar(jumps=JUMPS, **parameters):
    return build_system({"kind": "scalar", **parameters, "noise": {"jumps": jumps}})


def run(system, members, *, steps, every, skip, dtype=torch.float64):
    """Saved states `(member, time, field, *shape)`."""
    start = NoiseStream(5, range(members), stream=INITIAL, shape=system.initial_shape, dtype=dtype)
    noise = NoiseStream(5, range(members), stream=FORCING, shape=system.noise_shape, dtype=dtype)
    state, saved = system.initial(start.at(0)), []
    for step in range(steps):
        state = system.step(state, noise.at(step))
        if step >= skip and (step - skip) % every == 0:
            saved.append(system.observe(state))
    return torch.stack(saved, 1)


@pytest.mark.parametrize("amplitude", ["laplace", "normal"])
def test_a_linear_drift_has_the_density_of_its_characteristic_function(amplitude):
    """log E exp(ikx) = -D k^2 / (4 r) - int psi(k exp(-r t)) dt, for Laplace jumps in closed form.

    Relative to the largest density everywhere: the lattice keeps ten digits in the tails.
    """
    r, d, rate, b = 1.3, 0.8, 2.0, 0.6

    def hops(k):
        q = 1 / (1 + (b * k) ** 2) if amplitude == "laplace" else np.exp(-((b * k) ** 2))
        return rate * (1 - q)

    x, p = stationary_density(lambda x: -r * x, d, hops, scale=b)
    step = x[1] - x[0]
    k = 2 * np.pi * np.fft.rfftfreq(len(x), step)
    times, weights = np.polynomial.legendre.leggauss(200)
    total = sum(
        w * hops(k * np.exp(-r * 10 * (t + 1))) for t, w in zip(times, weights, strict=True)
    )
    log = -d * k**2 / (4 * r) - 10 * total
    if amplitude == "laplace":
        closed = -d * k**2 / (4 * r) - rate / (2 * r) * np.log1p((b * k) ** 2)
        np.testing.assert_allclose(log, closed, rtol=1e-8, atol=1e-8)
        log = closed
    exact = np.fft.fftshift(np.fft.irfft(np.exp(log))) / step
    # The characteristic function itself is known to rounding only.
    np.testing.assert_allclose(p, exact, rtol=0, atol=1e-8 * exact.max())
    if amplitude == "laplace":
        np.testing.assert_allclose(p, exact, rtol=0, atol=1e-12 * exact.max())


def test_without_jumps_the_lattice_finds_the_boltzmann_density():
    """p = exp(2 / D int F), to ten digits of the density itself, also where it is 1e-10."""
    x, p = stationary_density(lambda x: x - x**3, 0.7, lambda k: 0 * k, scale=0.3)
    exact = np.exp(2 / 0.7 * (x**2 / 2 - x**4 / 4))
    exact /= exact.sum() * (x[1] - x[0])
    seen = exact > 1e-10 * exact.max()
    np.testing.assert_allclose(p[seen], exact[seen], rtol=1e-5)
    np.testing.assert_allclose(p, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parameters", [{}, DOUBLE_WELL], ids=["skewed", "double well"])
def test_a_long_run_has_the_stationary_density_of_the_lattice(parameters):
    """Cumulative probabilities at 15 places, and the identity of the score -E[s x] = 1."""
    system = scalar(dt=0.02, **parameters)
    x = run(system, 2000, steps=2000, every=100, skip=1000)[..., 0]
    base, jumps = system.base, system.jumps
    lattice, p = stationary_density(
        lambda v: base.drift(torch.from_numpy(v)).numpy(),
        base.sigma**2,
        lambda k: jumps.rate * (1 - 1 / (1 + (jumps.scale * k) ** 2)),
        scale=jumps.scale,
    )
    below = np.cumsum(p) * (lattice[1] - lattice[0])
    for level in np.linspace(0.02, 0.98, 15):
        place = np.interp(level, below, lattice + 0.5 * (lattice[1] - lattice[0]))
        share = (x < place).double().mean(1)
        assert abs(share.mean() - level) < 4 * share.std() / math.sqrt(len(x)) + 1e-3
    score = system.exact_score(x.reshape(-1, 1)).reshape(x.shape)
    product = -(score * (x - x.mean())).mean(1)
    assert abs(product.mean() - 1) < 4 * product.std() / math.sqrt(len(x)) + 1e-3


def test_modes_of_a_linear_field_gain_the_variance_of_the_jumps():
    """C_k + rate 2 b^2 |phi_k|^2 / (2 r_k N^dim), and pixels that are not Gaussian."""
    plain = {"kind": "ornstein_uhlenbeck", "grid": 16, "dim": 1, "dt": 1.0, "epsilon": 0.02}
    jumps = {"rate": 0.3, "scale": 1.0}
    system = build_system({**plain, "noise": {"jumps": jumps}})
    x = run(system, 1500, steps=400, every=100, skip=250)[:, :, 0]
    modes = torch.fft.rfft(x).abs().square().mean(1)
    k = torch.arange(9, dtype=torch.float64)
    bump = (1 + k**2).rsqrt()
    height = torch.fft.irfft(bump.to(torch.complex128), n=16)[0]
    rate = system.base.relaxation / (1 + k**2) + system.base.kappa * k**2
    gaussian = 16 * system.base.epsilon**2 / (2 * rate * (1 + k**2)) * 16
    jumping = jumps["rate"] * 2 * jumps["scale"] ** 2 * (bump / height) ** 2 / (2 * rate)
    gap = modes.mean(0) - gaussian - jumping
    # Half the jumps a step early, half late: (r dt)^2 / 12 of the variance.
    assert (gap.abs() < 4 * modes.std(0) / math.sqrt(1500) + jumping * rate**2 / 12).all()
    assert ((x**4).mean() / (x**2).mean() ** 2) > 3.5


def test_jumps_are_bumps_of_their_size_at_one_place():
    """A single jump on a grid: height at its pixel, and the shape (1 - Lap)^(-1/2)."""
    system = build_system({"kind": "allen_cahn", "grid": 16, "noise": {"jumps": JUMPS}})
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[0, 0, 3, 5] = 2.0
    field = system._spread(x)
    assert float(field[0, 0, 3, 5]) == pytest.approx(2.0)
    assert field.abs().max() == field[0, 0, 3, 5]
    k = torch.fft.fftfreq(16, 1 / 16, dtype=torch.float64)
    ratio = torch.fft.fft2(field[0, 0]) / torch.fft.fft2(x[0, 0])
    expected = (1 + k[:, None] ** 2 + k**2).rsqrt()
    torch.testing.assert_close(ratio.real / ratio.real[0, 0], expected, rtol=1e-9, atol=1e-12)


def test_a_jumping_system_tells_what_is_known_of_it():
    """An exact score for one variable only, no exact response of what it does not know."""
    assert isinstance(scalar(), HasExactScore) and isinstance(scalar(), HasDrift)
    field = build_system({"kind": "ornstein_uhlenbeck", "grid": 16, "noise": {"jumps": JUMPS}})
    assert isinstance(field, Jumping) and isinstance(field, HasDrift)
    assert not isinstance(field, HasExactScore | HasExactResponse)
    cauchy = scalar({**JUMPS, "amplitude": "cauchy"})
    assert cauchy.heavy and not isinstance(cauchy, HasExactScore)


def test_the_resolved_experiment_names_the_jumps_and_makes_the_same_system():
    specification = {"kind": "scalar", "noise": {"jumps": JUMPS}}
    resolved = parameters_of(build_system(specification), specification)
    assert resolved["noise"] == {"jumps": {**JUMPS, "amplitude": "laplace"}}
    assert resolved["sigma"] == 0.7071 and build_system(resolved) == build_system(specification)


def test_jumps_are_stepped_by_torch_and_other_engines_say_so():
    field = build_system({"kind": "allen_cahn", "grid": 16, "noise": {"jumps": JUMPS}})
    assert fastest_engine(field) == "torch"
    with pytest.raises(UserError, match="use ensemble.engine=torch"):
        check_engine("lanes", field)


@pytest.mark.parametrize(
    "noise, needed",
    [
        ({"jumps": {"rate": 1.0}}, "system.noise.jumps.scale' is missing"),
        ({"jumps": {"rate": -1.0, "scale": 1.0}}, "system.noise.jumps.rate=-1.0"),
        ({"jumps": {**JUMPS, "amplitud": "normal"}}, "did you mean 'amplitude'"),
        ({"jumps": {**JUMPS, "amplitude": "stable"}}, "amplitude=stable"),
        ({"bumps": JUMPS}, "needed noise: {jumps"),
    ],
)
def test_impossible_jumps_are_refused_in_one_line(noise, needed):
    with pytest.raises(UserError) as caught:
        build_system({"kind": "scalar", "noise": noise})
    assert needed in str(caught.value) and "\n" not in str(caught.value)
