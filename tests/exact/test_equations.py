"""The three SPDEs against what is known of them exactly."""

import math

import pytest
import torch

from workflow.dynamics import SYSTEMS, build_system
from workflow.dynamics.grid import Grid
from workflow.dynamics.integrators import SCHEMES, runge_kutta_4
from workflow.dynamics.navier_stokes import _symbols
from workflow.dynamics.noise import NoiseStream, normals
from workflow.dynamics.spectral import grid_of
from workflow.interfaces import UserError

F64 = torch.float64


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=F64)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("scheme", ["exact", "paper"])
def test_the_exact_score_of_allen_cahn_is_minus_the_gradient_of_its_potential(scheme, dim):
    """s = -grad V, to rounding, for the padded and for the collocated cubic."""
    system = build_system({"kind": "allen_cahn", "grid": 16, "dim": dim, "scheme": scheme})
    x = seeded(3, 1, *system.shape).requires_grad_()
    gradient = torch.autograd.grad(system.potential(x).sum(), x)[0]
    score = system.exact_score(x.detach())
    assert (score + gradient).abs().max() < 1e-10 * score.abs().max()


def test_advection_conserves_the_padded_potential():
    """F_adv . s = 0 for every field, so advection does not change the stationary density."""
    system = build_system({"kind": "allen_cahn", "grid": 16})
    x = seeded(4, 1, 16, 16)
    grid = grid_of(system, x)
    advection = grid.ifft(grid.derivative(-1) * grid.fft(x))
    score = system.exact_score(x)
    work = (advection * score).sum((1, 2, 3)).abs()
    assert (work < 1e-10 * (advection.abs() * score.abs()).sum((1, 2, 3))).all()


def test_the_score_of_ornstein_uhlenbeck_is_that_of_its_covariance():
    """s = -C^-1 x with C written out as a matrix of pixels."""
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    grid = Grid(8, 2, F64)
    impulses = torch.eye(64, dtype=F64).reshape(64, 8, 8)
    covariance = grid.ifft(system.variance(grid) * grid.fft(impulses)).reshape(64, 64)
    x = seeded(2, 1, 8, 8)
    expected = -torch.linalg.solve(covariance, x.reshape(2, 64).T).T.reshape(x.shape)
    assert torch.allclose(system.exact_score(x), expected, rtol=1e-9, atol=1e-12)


def test_ornstein_uhlenbeck_has_the_published_numbers():
    """Pixel variance, and peaks of the response downstream of the kick (arXiv:2402.01029)."""
    system = build_system({"kind": "ornstein_uhlenbeck"})
    variance = Grid(32, 2, F64)
    total = variance.ifft(system.variance(variance).to(torch.complex128))[0, 0]
    assert float(total) == pytest.approx(2.9645, abs=1e-4)
    lag = torch.arange(0, 80, 0.25, dtype=F64)
    response = system.exact_response(lag)
    assert float(response[20, 0, 0]) == pytest.approx(0.55088, abs=1e-4)
    for step, peak, when in ((2, 0.492, 18.25), (4, 0.285, 38.0), (6, 0.187, 57.5)):
        downstream = response[:, 0, step]
        assert float(downstream.max()) == pytest.approx(peak, abs=1e-3)
        assert float(lag[downstream.argmax()]) == pytest.approx(when, abs=0.5)
        assert response[:, 0, -step].abs().max() < 0.3 * peak


@pytest.mark.parametrize("scheme", ["exact", "paper"])
def test_simulated_mode_variances_of_ornstein_uhlenbeck(scheme):
    """Each scheme has its own exact stationary variance: C_k, or N^2 eps^2 S dt / (1 - |g|^2)."""
    dt = 2.0 if scheme == "exact" else 0.25
    system = build_system(
        {"kind": "ornstein_uhlenbeck", "grid": 8, "scheme": scheme, "dt": dt, "relaxation": 1.0}
    )
    grid, members, steps = Grid(8, 2, F64), 64, 400
    if scheme == "exact":
        expected = system.variance(grid)
    else:
        factor = runge_kutta_4(lambda u: system.linear(grid) * u, torch.ones(8, 5) + 0j, dt)
        injected = grid.points * system.noise_spectrum(grid) * dt
        expected = injected / (1 - factor.abs() ** 2)
    noise = NoiseStream(3, range(members), stream=0, shape=system.noise_shape, dtype=F64)
    state = system.initial(seeded(members, 8, 8))
    power = []
    for step in range(steps):
        state = system.step(state, noise.at(step))
        if step >= 100:
            power.append(state["u_hat"].abs().square() / grid.points)
    per_member = torch.stack(power).mean(0)
    error = per_member.std(0) / math.sqrt(members)
    assert ((per_member.mean(0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_schemes_inflate_the_variance_of_a_linear_mode_as_stated(name):
    """Strang: r dt coth(r dt); noise last: 2 r dt / (1 - exp(-2 r dt)) times the exact one."""
    rate, dt = 4.0, 0.0125
    scheme, sets = SCHEMES[name]
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, sets, 1, dtype=F64)
    amplitude = torch.ones(1, dtype=F64)

    def after(u, w):
        return scheme(lambda v: -rate * v, u, dt, amplitude=amplitude, w=w)

    decay = float(after(one, zero))
    injected = 0.0
    for index in range(sets):
        w = zero.clone()
        w[:, index] = 1
        injected += float(after(0 * one, w)) ** 2
    variance = injected / (1 - decay**2) * (2 * rate)
    h = rate * dt
    stated = {"strang": h / math.tanh(h), "noise_last": 2 * h / (1 - math.exp(-2 * h))}[name]
    assert variance == pytest.approx(stated, rel=1e-5)


def test_runge_kutta_has_order_four():
    """Halving dt divides the error of exp(-t) by sixteen."""

    def error(dt):
        u = torch.ones((), dtype=F64)
        for _ in range(round(1 / dt)):
            u = runge_kutta_4(lambda v: -v, u, dt)
        return abs(float(u) - math.exp(-1))

    assert math.log2(error(0.1) / error(0.05)) == pytest.approx(4, abs=0.1)


def test_navier_stokes_advection_conserves_enstrophy_and_forces_349_modes():
    """The skew form does no work on the enstrophy, on the grid and to rounding."""
    system = build_system({"kind": "navier_stokes"})
    zeta = seeded(2, 32, 32)
    work = (zeta * system.skew_advection(zeta)).sum((1, 2))
    size = (zeta.abs() * system.skew_advection(zeta).abs()).sum((1, 2))
    assert (work.abs() < 1e-12 * size).all()
    assert int((_symbols(system, F64).forced > 0).sum()) == 349


def test_navier_stokes_phases_forget_at_rate_one():
    """E cos(phi(t) - phi(0)) = exp(-t), within 4 standard errors."""
    system = build_system({"kind": "navier_stokes", "grid": 16, "dt": 1 / 64})
    noise = NoiseStream(1, range(8), stream=0, shape=system.noise_shape, dtype=F64)
    state = first = system.initial(seeded(8, *system.initial_shape))
    for step in range(64):
        state = system.step(state, noise.at(step))
    cosine = (state["phases"] - first["phases"]).cos().flatten()
    error = float(cosine.std()) / math.sqrt(len(cosine))
    assert abs(float(cosine.mean()) - math.exp(-1)) < 4 * error


def test_allen_cahn_pixels_sit_in_two_wells():
    """Moments of a pixel with the padded scheme: <u^2> near .8, kurtosis near 1.4 at N = 32.

    On 16 x 16 with the same N^2 eps^2 and a short run only the shape is asked for:
    far below the Gaussian kurtosis of 3.
    """
    system = build_system({"kind": "allen_cahn", "grid": 16, "dt": 1 / 64, "epsilon": 0.12649})
    noise = NoiseStream(5, range(16), stream=0, shape=system.noise_shape, dtype=torch.float32)
    state = system.initial(seeded(16, 16, 16).float())
    seen = []
    for step in range(64 * 30):
        state = system.step(state, noise.at(step))
        if step > 640 and step % 32 == 0:
            seen.append(system.observe(state))
    u = torch.stack(seen)
    assert float(u.square().mean()) == pytest.approx(0.79, abs=0.15)
    assert float(u.pow(4).mean() / u.square().mean() ** 2) < 2.4


@pytest.mark.slow
def test_allen_cahn_moments_at_paper_size():
    """Padded scheme at N = 32: <u^2> = .80 +- .03, kurtosis 1.40 +- .03, -<u s> = 1."""
    system = build_system({"kind": "allen_cahn"})
    members = 32
    noise = NoiseStream(5, range(members), stream=0, shape=system.noise_shape, dtype=torch.float32)
    state = system.initial(seeded(members, 32, 32).float())
    seen = []
    with torch.inference_mode():
        for step in range(128 * 120):
            state = system.step(state, noise.at(step))
            if step > 128 * 40 and step % 64 == 0:
                seen.append(system.observe(state))
        u = torch.cat(seen)
        stein = -(u * system.exact_score(u)).mean()
    assert float(u.square().mean()) == pytest.approx(0.80, abs=0.03)
    assert float(u.pow(4).mean() / u.square().mean() ** 2) == pytest.approx(1.40, abs=0.03)
    assert float(stein) == pytest.approx(1, abs=0.02)


def test_noise_is_a_function_of_its_name_alone():
    """Neither the group nor the order of asking nor the first step asked changes a bit."""
    shape = (2, 4)
    alone = NoiseStream(1, [5], stream=0, shape=shape, dtype=torch.float32)
    group = NoiseStream(1, range(8), stream=0, shape=shape, dtype=torch.float32)
    late = [alone.at(70), alone.at(3), alone.at(70)]
    for step in range(71):
        last = group.at(step)
        if step == 3:
            third = group.at(3).clone()
    assert torch.equal(late[0][0], last[5]) and torch.equal(late[1][0], third[5])
    assert torch.equal(late[0], late[2])


def test_noise_is_standard_normal_and_independent_across_names():
    """Moments to 4 standard errors; no correlation across members, streams and seeds."""
    n = 32 * 4096
    first = torch.from_numpy(
        normals(1, 0, block=0, stream=0, shape=(4096,), dtype=F64).ravel().copy()
    )
    assert abs(float(first.mean())) < 4 / math.sqrt(n)
    assert abs(float(first.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float(first.pow(4).mean()) - 3) < 4 * math.sqrt(96 / n)
    for seed, member, block, stream in ((2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)):
        other = normals(seed, member, block=block, stream=stream, shape=(4096,), dtype=F64)
        assert abs(float((first * torch.from_numpy(other.ravel())).mean())) < 4 / math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", sorted(SYSTEMS))
def test_every_system_keeps_the_contract(kind, dtype):
    """Shapes, finite steps, displacement of what is observed, independence of companions."""
    system = build_system({"kind": kind, "grid": 16})
    state = system.initial(seeded(3, *system.initial_shape).to(dtype))
    noise = seeded(3, *system.noise_shape).to(dtype)
    after = system.step(state, noise)
    x = system.observe(after)
    assert x.shape == (3, len(system.fields), *system.shape)
    assert x.dtype == dtype and torch.isfinite(x).all()
    alone = system.step({k: v[1:2] for k, v in state.items()}, noise[1:2])
    scale = float(x.abs().max())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (system.observe(alone)[0] - x[1]).abs().max() < tolerance * scale
    kick = torch.zeros_like(x)
    kick[:, 0, ..., 3] = 0.25
    moved = system.observe(system.displace(after, kick))
    assert (moved - x - kick).abs().max() < tolerance * (1 + scale)


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ({"kind": "allen_can"}, "allen_cahn"),
        ({"kind": "allen_cahn", "grd": 16}, "did you mean 'grid'"),
        ({"kind": "allen_cahn", "grid": 15}, "multiple of 2"),
        ({"kind": "nowhere:Nothing"}, "nowhere"),
        ({"kind": "fractions:Fraction"}, "needs"),
    ],
)
def test_a_system_that_cannot_be_is_refused_in_one_line(specification, words):
    """What was given, what was needed."""
    with pytest.raises(UserError, match=words) as refusal:
        build_system(specification)
    assert "\n" not in str(refusal.value)
