"""Time steps and equations against identities that hold to rounding or to a few sigma."""

from __future__ import annotations

import math

import pytest
import torch

from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.grid import Grid, padded
from workflow.dynamics.integrators import noise_last, runge_kutta_4, strang
from workflow.dynamics.navier_stokes import FORCED_K2, NavierStokes
from workflow.dynamics.noise import (
    FORCING,
    INITIAL,
    NoiseStream,
)
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck

torch.set_num_threads(1)

SCALAR_FIELDS = [
    system(grid=16, dim=dim, scheme=scheme)
    for system in (OrnsteinUhlenbeck, AllenCahn)
    for scheme in ("exact", "paper")
    for dim in (1, 2)
]
each_scalar_field = pytest.mark.parametrize(
    "system", SCALAR_FIELDS, ids=lambda s: f"{type(s).__name__}-{s.scheme}-{s.dim}d"
)


def white(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stream(members, *, seed=7, use=FORCING, shape=(3,), dtype=torch.float64):
    return NoiseStream(seed, members, stream=use, shape=shape, dtype=dtype)


# Time steps


def test_runge_kutta_is_of_fourth_order():
    """du/dt = -u^3 has u(t) = u0 / sqrt(1 + 2 u0^2 t); half the step has 1/16 of the error."""
    errors = []
    for steps in (50, 100, 200):
        u = torch.tensor([1.5, -0.7], dtype=torch.float64)
        exact = u / (1 + 2 * u**2).sqrt()
        for _ in range(steps):
            u = runge_kutta_4(lambda v: -(v**3), u, 1 / steps)
        errors.append((u - exact).abs().max().item())
    orders = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert orders[1] == pytest.approx(4, abs=0.2)


def recursion(scheme, rate, dt, sets):
    """Factor on the state and on each set of normals of one step of du = -rate u dt + dW."""

    def step(u, w):
        one = torch.ones(1, dtype=torch.float64)
        w = torch.tensor([w], dtype=torch.float64)
        return scheme(lambda v: -rate * v, u * one, dt, amplitude=one, w=w).item()

    quiet = [0.0] * sets
    kicks = [step(0.0, [float(i == j) for j in range(sets)]) for i in range(sets)]
    return step(1.0, quiet), kicks


@pytest.mark.parametrize("h", [0.01, 0.1, 0.3])
def test_strang_inflates_a_mode_by_h_coth_h(h):
    """Half the noise on either side of the flow: weak order 2 in h = rate dt."""
    rate = 1.7
    g, kicks = recursion(strang, rate, h / rate, 2)
    variance = sum(kick**2 for kick in kicks) / (1 - g**2)
    # The flow itself is Runge-Kutta, with an error of h^5 / 120.
    assert variance * 2 * rate == pytest.approx(h / math.tanh(h), rel=h**4 / 60)


@pytest.mark.parametrize("h", [0.01, 0.1, 0.3])
def test_noise_last_inflates_a_mode_as_stated(h):
    """Noise after the flow: weak order 1, 2 h / (1 - exp(-2 h)) with h = rate dt."""
    rate = 1.7
    g, kicks = recursion(noise_last, rate, h / rate, 1)
    variance = kicks[0] ** 2 / (1 - g**2)
    assert variance * 2 * rate == pytest.approx(2 * h / (1 - math.exp(-2 * h)), rel=h**4 / 60)


@pytest.mark.parametrize(("scheme", "sets"), [(strang, 2), (noise_last, 1)])
def test_schemes_sample_the_variance_of_their_recursion(scheme, sets):
    """The halves of the noise must be independent, which one recursion step cannot tell."""
    members, h = 40000, 0.3
    one = torch.ones((), dtype=torch.float64)
    u = torch.zeros(members, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        w = torch.randn(members, sets, dtype=torch.float64, generator=generator)
        u = scheme(lambda v: -v, u, h, amplitude=one, w=w)
    inflation = h / math.tanh(h) if sets == 2 else 2 * h / (1 - math.exp(-2 * h))
    assert u.var().item() == pytest.approx(inflation / 2, rel=4 * math.sqrt(2 / members))


# Grids


@pytest.mark.parametrize("dim", [1, 2])
def test_padded_cube_is_free_of_aliasing(dim):
    """Against a grid four times as fine, where no product of three modes can fold back."""
    coarse, fine = Grid(8, dim), Grid(32, dim)
    u_hat = coarse.fft(white(2, *coarse.shape)) * coarse.below_nyquist
    wide = torch.zeros(2, *[32] * (dim - 1), 17, dtype=u_hat.dtype)
    rows = [slice(0, 4), slice(-3, None)]
    if dim == 1:
        wide[..., :4] = u_hat[..., :4]
    else:
        for row in rows:
            wide[:, row, :4] = u_hat[:, row, :4]
    scale = 4**dim
    cube = fine.fft((fine.ifft(wide) * scale) ** 3) / scale
    expected = torch.zeros_like(u_hat)
    if dim == 1:
        expected[..., :4] = cube[..., :4]
    else:
        for row in rows:
            expected[:, row, :4] = cube[:, row, :4]
    torch.testing.assert_close(padded(lambda u: u**3, u_hat, coarse), expected)


# Equations and their stationary densities


@each_scalar_field
def test_exact_score_is_minus_the_gradient_of_the_potential(system):
    """By automatic differentiation of V, for a field with energy in every mode."""
    x = (0.8 * white(3, 1, *system.shape, seed=2)).requires_grad_()
    if isinstance(system, AllenCahn):
        potential = system.potential(x).sum()
    else:
        grid = Grid(system.grid, system.dim)
        weight = torch.full_like(grid.k2, 2.0)
        weight[..., [0, -1]] = 1.0  # the half-spectrum holds these columns once
        power = grid.fft(x[:, 0]).abs() ** 2 / system.grid**system.dim
        potential = 0.5 * (weight * power / system.variance(grid)).sum()
    (gradient,) = torch.autograd.grad(potential, x)
    error = (system.exact_score(x) + gradient).norm() / gradient.norm()
    assert error.item() < 1e-10


@each_scalar_field
def test_drift_is_advection_plus_half_the_noise_times_the_score(system):
    """Fluctuation and dissipation: what is left of the drift is along the score.

    Together with an advection that conserves V this makes exp(-V) stationary; no sampling needed.
    """
    grid = Grid(system.grid, system.dim)
    x = 0.8 * white(2, 1, *system.shape, seed=3)
    u_hat = grid.fft(x[:, 0])
    drift = system.linear(grid) * u_hat
    nonlinear = system.nonlinear(grid)
    if nonlinear is not None:
        drift = drift + nonlinear(u_hat)
    advection = -system.advection * grid.derivative(-1) * u_hat
    mobility = 0.5 * grid.points * system.noise_spectrum(grid)
    expected = advection + mobility * grid.fft(system.exact_score(x)[:, 0])
    assert ((drift - expected).norm() / drift.norm()).item() < 1e-12


def work_of_advection(system, x):
    grid = Grid(system.grid, system.dim)
    flow = grid.ifft(-system.advection * grid.derivative(-1) * grid.fft(x))
    return (flow * system.exact_score(x)).flatten(1).sum(1)


@pytest.mark.parametrize("dim", [1, 2])
def test_advection_conserves_the_potential_of_the_exact_scheme(dim):
    """The quartic averaged on a doubled grid does not feel a shift: F_adv . s = 0 per field."""
    system = AllenCahn(grid=32, dim=dim)
    x = 0.8 * white(4, 1, *system.shape, seed=4)
    assert work_of_advection(system, x).abs().max().item() < 1e-10


def test_advection_changes_the_potential_of_the_paper_scheme():
    """The aliased cube is why there are two schemes; without this the test above is empty."""
    x = 0.8 * white(4, 1, 32, 32, seed=4)
    assert work_of_advection(AllenCahn(scheme="paper"), x).abs().min().item() > 1e-3


@each_scalar_field
def test_a_shift_of_state_and_noise_is_a_shift_of_the_result(system):
    """`homogeneous` promises it, and the response estimators average over space on its word."""
    axes = tuple(range(-system.dim, 0))
    start, noise = white(1, *system.initial_shape, seed=5), white(1, *system.noise_shape, seed=6)

    def shifted(u):
        return torch.roll(u, [3, 5][: system.dim], axes)

    ours = system.step(system.initial(shifted(start)), shifted(noise))
    theirs = shifted(system.observe(system.step(system.initial(start), noise)))
    torch.testing.assert_close(system.observe(ours), theirs, rtol=0, atol=1e-12)


# Navier-Stokes


def advected(system, zeta):
    return torch.fft.irfft2(system.advected(torch.fft.rfft2(zeta)), s=system.shape)


def flow(system, *, vorticity, phases=None, members=1):
    """A state from a vorticity on the grid."""
    count = system.noise_shape[1]
    phases = torch.zeros(members, count, dtype=torch.float64) if phases is None else phases
    return {"zeta_hat": torch.fft.rfft2(vorticity), "phases": phases}


both_schemes = pytest.mark.parametrize("scheme", ["paper", "dealiased"])


@both_schemes
@pytest.mark.parametrize("grid", [16, 32])
def test_advection_conserves_enstrophy(grid, scheme):
    """The skew form is antisymmetric on the grid, aliased or not; dealiased any form is."""
    system = NavierStokes(grid=grid, scheme=scheme)
    zeta = white(4, grid, grid, seed=8)
    if scheme == "dealiased":
        zeta = torch.fft.irfft2(
            system.symbols(torch.float64).kept * torch.fft.rfft2(zeta), s=system.shape
        )
    change = advected(system, zeta)
    work = (zeta * change).sum((1, 2)).abs()
    assert (work < 1e-12 * zeta.flatten(1).norm(dim=1) * change.flatten(1).norm(dim=1)).all()
    assert change.abs().min() > 0


@both_schemes
def test_advection_of_two_waves_is_their_jacobian(scheme):
    """cos x + cos 2y turns itself at J = -(3/2) sin x sin 2y; a single wave is steady."""
    system = NavierStokes(grid=16, scheme=scheme)
    place = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    x, y = place[None, :], place[:, None]
    jacobian = -1.5 * x.sin() * (2 * y).sin()
    ours = advected(system, (x.cos() + (2 * y).cos())[None])[0]
    torch.testing.assert_close(ours, jacobian, rtol=0, atol=1e-12)
    assert advected(system, (3 * x + 2 * y).cos()[None]).abs().max() < 1e-12


def test_dealiased_advection_is_the_skew_form_on_a_finer_grid():
    """Of modes up to N / 3, whose products on 2 N points do not fold back: nothing is lost."""
    coarse, fine = NavierStokes(grid=24, scheme="dealiased"), NavierStokes(grid=48)
    zeta_hat = torch.fft.rfft2(white(2, 24, 24, seed=14)) * coarse.symbols(torch.float64).kept
    wide = torch.zeros(2, 48, 25, dtype=zeta_hat.dtype)
    for rows in (slice(0, 8), slice(-7, None)):
        wide[:, rows, :8] = 4 * zeta_hat[:, rows, :8]
    ours, exact = coarse.advected(zeta_hat), fine.advected(wide) / 4
    for rows in (slice(0, 8), slice(-7, None)):
        torch.testing.assert_close(ours[:, rows, :8], exact[:, rows, :8], rtol=1e-11, atol=1e-9)
    assert (ours[:, :, 8:] == 0).all() and (ours[:, 8:-7] == 0).all()


def test_vorticity_is_carried_in_positive_x_and_damped_as_stated():
    """One wave: exp(-(nu_h k^-4 + nu k^4 + i A k_x) t), carried by A t in +x."""
    system = NavierStokes(grid=32, forcing=0.0, hypofriction=0.5, hyperviscosity=1e-3)
    x = torch.arange(32, dtype=torch.float64) * (2 * math.pi / 32)
    state = flow(system, vorticity=(2 * x[None, :] + x[:, None]).cos()[None])
    quiet = torch.zeros(1, *system.noise_shape, dtype=torch.float64)
    for _ in range(32):
        state = system.step(state, quiet)
    time, k2 = 32 * system.dt, 5.0
    damping = math.exp(-(0.5 / k2**2 + 1e-3 * k2**2) * time)
    expected = damping * (2 * (x[None, :] - math.pi * time) + x[:, None]).cos()[None]
    torch.testing.assert_close(system.observe(state)[:, 0], expected, rtol=0, atol=1e-6)


def test_349_modes_are_forced():
    """Those with k^2 <= 112.5 below Nyquist, the mean among them, each by a phase of its own.

    The forcing is Re ifft2 of the waves a exp(i phi), with a tenth of its mean.
    """
    system = NavierStokes(grid=32, forcing=300.0)
    k = torch.fft.fftfreq(32, 1 / 32).round()
    forced = k[:, None] ** 2 + k[None, :] ** 2 <= FORCED_K2
    assert forced.sum().item() == 349 and system.noise_shape == (2, 349)
    phases = 2 * math.pi * torch.special.ndtr(white(2, 349, seed=9))
    waves = torch.zeros(2, 32, 32, dtype=torch.complex128)
    waves[:, forced] = torch.polar(torch.full_like(phases, 300 / 16), phases)
    curl = torch.fft.ifft2(waves).real
    curl = curl - 0.9 * curl.mean((1, 2), keepdim=True)
    # From rest the first step is forcing times dt, up to dt^2.
    still = NavierStokes(grid=32, dt=1e-7)
    start = flow(still, vorticity=torch.zeros(2, 32, 32, dtype=torch.float64), phases=phases)
    after = still.observe(still.step(start, torch.zeros(2, 2, 349, dtype=torch.float64)))[:, 0]
    torch.testing.assert_close(after / 1e-7, curl, rtol=0, atol=1e-5 * curl.abs().max().item())


def test_phases_forget_at_rate_one():
    """d phi = 2^(1/2) dW, so the mean of exp(i (phi(t) - phi(0))) is exp(-t)."""
    system = NavierStokes(grid=16)
    members, steps = range(48), 64
    shapes = {"members": members, "seed": 31, "dtype": torch.float64}
    noise = stream(use=FORCING, shape=system.noise_shape, **shapes)
    state = system.initial(stream(use=INITIAL, shape=system.initial_shape, **shapes).at(0))
    first = state["phases"]
    assert (first >= 0).all() and (first <= 2 * math.pi).all()
    for step in range(steps):
        state = system.step(state, noise.at(step))
    turned = state["phases"] - first
    expected = math.exp(-steps * system.dt)
    for part, mean in ((turned.cos(), expected), (turned.sin(), 0.0)):
        error = part.std().item() / part.numel() ** 0.5
        assert abs(part.mean().item() - mean) < 3 * error


@both_schemes
def test_navier_stokes_steps_are_of_fourth_order_between_kicks(scheme):
    """With the phases at rest the step is a plain Runge-Kutta step of a smooth flow."""
    x = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    vorticity = ((x[None, :] + 2 * x[:, None]).cos() + (3 * x).sin()[None, :])[None]
    results = []
    for steps in (8, 16, 32):
        system = NavierStokes(grid=16, dt=0.25 / steps, scheme=scheme)
        count = system.noise_shape[1]
        state = flow(system, vorticity=vorticity, phases=white(1, count, seed=12))
        for _ in range(steps):
            state = system.step(state, torch.zeros(1, 2, count, dtype=torch.float64))
        results.append(system.observe(state))
    coarse, fine = (results[0] - results[1]).norm(), (results[1] - results[2]).norm()
    assert math.log2(coarse / fine) == pytest.approx(4, abs=0.25)
