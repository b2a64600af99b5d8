"""Noise, time steps and equations against identities that hold to rounding or to a few sigma."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.grid import Grid, padded
from workflow.dynamics.integrators import noise_last, runge_kutta_4, strang
from workflow.dynamics.navier_stokes import FORCED_K2, NavierStokes
from workflow.dynamics.noise import (
    DIRECT,
    FORCING,
    INITIAL,
    WORD,
    NoiseStream,
    normals,
    philox,
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


# Noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_do_not_depend_on_the_group(dtype):
    """Workers may be given any members in any order: each gets the numbers of its name."""
    whole = stream(range(6), dtype=dtype)
    parts = [stream(group, dtype=dtype) for group in ([4], [2, 0], [5, 1, 3])]
    for step in (0, 1, 682, 5000):
        expected = whole.at(step)
        assert expected.shape == (6, 3) and expected.dtype == dtype
        assert torch.equal(parts[0].at(step), expected[[4]])
        assert torch.equal(parts[1].at(step), expected[[2, 0]])
        assert torch.equal(parts[2].at(step), expected[[5, 1, 3]])


def test_normals_do_not_depend_on_the_order_or_the_start_of_stepping():
    """A restart begins anywhere."""
    steps = list(range(1400))
    forward = stream(range(2))
    expected = [forward.at(step).clone() for step in steps]
    anyhow = stream(range(2))
    for step in np.random.default_rng(0).permutation(steps):
        assert torch.equal(anyhow.at(int(step)), expected[step])
    for step in (1, 681, 682, 1399):
        assert torch.equal(stream(range(2)).at(step), expected[step])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([WORD - 1] * 4, [WORD - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_words_are_those_of_philox(counter, key, words):
    """Known answers of Random123 1.14, file kat_vectors, philox4x32 of 10 rounds."""
    found = philox([np.array(c) for c in counter], key[0] + WORD * key[1])
    assert " ".join(f"{int(word):08x}" for word in found) == words


def test_normals_keep_their_values():
    """The numbers are part of every finished run: a change would break its restart in silence."""
    found = normals(7, [3], steps=range(2, 3), stream=1, count=4, dtype=torch.float64)[0, 0]
    words = [int(w) for w in philox([0, 2, 1, 3], 7)]
    for pair in (0, 2):
        radius = math.sqrt(-2 * math.log(((words[pair] >> 1) + 0.5) / 2**31))
        angle = 2 * math.pi * words[pair + 1] / 2**32
        expected = [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(found[pair : pair + 2], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stream_has_the_normals_of_their_definition(dtype):
    """Whichever kernel drew them; groups of members that fill no vector are no exception."""
    seed, members, count = 5 + (3 << 40), [0, 9, 2, 10**9, 7], 91
    drawn = stream(members, seed=seed, shape=(7, 13), use=DIRECT + 4, dtype=dtype)
    for step in (0, 21, 22, 2**31 + 5):
        name = {"steps": range(step, step + 1), "stream": DIRECT + 4, "count": count}
        expected = normals(seed, members, dtype=dtype, **name)[0].reshape(5, 7, 13)
        rounding = {"rtol": 0, "atol": 2e-6 if dtype == torch.float32 else 1e-14}
        np.testing.assert_allclose(drawn.at(step).numpy(), expected, **rounding)


def test_both_precisions_run_the_same_path():
    """So the error of float32 can be measured; near zero a radius has the digits of 1 - u."""
    single, double = (
        stream(range(50), shape=(400,), dtype=dtype).at(3)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=0, atol=4e-4)
    assert (single - double).abs().median() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_standard(dtype):
    """Four moments within 4 standard errors, and the distribution by Kolmogorov and Smirnov."""
    z = stream(range(64), seed=1, shape=(8192,), dtype=dtype).at(1).double().numpy().ravel()
    root = math.sqrt(z.size)
    assert abs(z.mean()) < 4 * 1 / root
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2) / root
    assert abs((z**3).mean()) < 4 * math.sqrt(15) / root
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96) / root
    assert kstest(z, "norm").pvalue > 1e-4


def test_normals_have_their_tails():
    """Counts beyond 3, 4 and 5 of 2e7 draws against the normal law, within 4 standard errors."""
    z = stream(range(640), seed=4, shape=(32768,), dtype=torch.float32).at(0).numpy().ravel()
    for beyond in (3.0, 4.0, 5.0):
        for tail in ((z > beyond).sum(), (z < -beyond).sum()):
            expected = z.size * norm.sf(beyond)
            assert abs(tail - expected) < 4 * math.sqrt(expected)


def test_normals_of_different_names_are_uncorrelated():
    """Seed, member, stream and step each open numbers of their own; so do places in a step."""
    names = [
        (seed, member, use, step)
        for seed in (1, 2, 1 + WORD)
        for member in (0, 1, 2)
        for use in (FORCING, INITIAL, DIRECT, DIRECT + 1)
        for step in (0, 1)
    ]
    drawn = np.stack(
        [
            normals(s, [m], steps=range(t, t + 1), stream=u, count=16384)[0, 0]
            for s, m, u, t in names
        ]
    ).astype(float)
    # 2556 pairs: 5 standard errors keep a false alarm below two in a thousand.
    correlation = np.corrcoef(drawn) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / math.sqrt(drawn.shape[1])
    one = drawn.ravel()
    for shift in (1, 2, 3, 4, 8, 16):
        for power in (1, 2):
            a = one**power - (one**power).mean()
            found = (a[shift:] * a[:-shift]).mean() / a.var()
            assert abs(found) < 4 / math.sqrt(one.size)


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
