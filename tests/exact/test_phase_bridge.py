"""The phase-space bridge against its moment equations, and samplers against exact posteriors."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from workflow.config import ScoreConfig
from workflow.diffusion import build_process
from workflow.diffusion.gaussian import VE
from workflow.diffusion.phase_bridge import Bridge, PhaseBridge
from workflow.diffusion.samplers import Problem
from workflow.diffusion.sampling import SAMPLERS, check_sampler, sample
from workflow.interfaces import UserError
from workflow.processes import VeConfig, VpConfig

torch.set_num_threads(1)
DOUBLE = torch.float64
PARAMETERS = [
    (3.0, 0.2, 1.0, 1.0),
    (1.0, 0.0, 0.5, 2.0),
    (4.0, -0.5, 2.0, 0.3),
    (2.0, 0.9, 1.0, 4.0),
]


def at(*times):
    return torch.tensor(times, dtype=DOUBLE)


def integrated(bridge, t):
    """Mean and covariance at t from the moment equations, x1 = 1."""

    def rate(time, y):
        tau = 1 - time
        a = np.array([[0, 1], [-4 / tau**2, -4 / tau]])
        s = y[2:].reshape(2, 2)
        noise = np.diag([0, (bridge.p * tau) ** 2])
        return np.concatenate([a @ y[:2] + [0, 4 / tau**2], (a @ s + s @ a.T + noise).ravel()])

    xx, xv, vv = bridge.prior
    start = [0, 0, xx, xv, xv, vv]
    found = solve_ivp(rate, (0, t), start, method="DOP853", rtol=1e-12, atol=1e-14)
    return found.y[[0, 1, 2, 3, 5], -1]


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_moments_solve_the_moment_equations(parameters):
    """AGM-1: four times, four sets of parameters, to 1e-8."""
    bridge = Bridge(*parameters)
    for t in (0.1, 0.5, 0.8, 0.9):
        m = bridge.moments(at(t))
        found = [float(v) for v in (m.cx, m.cv, m.xx, m.xv, m.vv)]
        assert found == pytest.approx(integrated(bridge, t), abs=1e-8)


def test_moments_of_the_published_parameters():
    """AGM-1: numbers known from elsewhere, to 1e-5."""
    m = Bridge().moments(at(0.1, 0.5, 0.9))
    assert m.xx.tolist() == pytest.approx([0.939730, 0.439404, 0.020390], abs=1e-5)
    assert m.xv.tolist() == pytest.approx([-0.394858, -0.724364, -0.203171], abs=1e-5)
    assert m.vv.tolist() == pytest.approx([1.160284, 1.492964, 2.027466], abs=1e-5)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("t, later", [(0.1, 0.3), (0.2, 0.9), (0.5, 0.99), (0.001, 0.6)])
def test_transitions_compose(parameters, t, later):
    """AGM-2: Sigma' = Phi Sigma Phi^T + Q and the mean likewise, to 1e-12."""
    bridge = Bridge(*parameters)
    first, second = bridge.moments(at(t)[0]), bridge.moments(at(later)[0])
    phi, q = bridge.transition(at(t)[0], at(later)[0])
    phi = torch.stack(phi).reshape(2, 2)
    q = torch.stack([q[0], q[1], q[1], q[2]]).reshape(2, 2)

    def covariance(m):
        return torch.stack([m.xx, m.xv, m.xv, m.vv]).reshape(2, 2)

    found = phi @ covariance(first) @ phi.T + q
    assert float((found - covariance(second)).abs().max()) < 1e-12
    end = at(1.0, 0.0)
    mean = end + phi @ (torch.stack([first.cx, first.cv]) - end)
    assert mean.tolist() == pytest.approx([float(second.cx), float(second.cv)], abs=1e-12)


def test_effective_noise_is_known_and_invertible():
    """AGM-3: rel 1e-3 to four numbers; time(sigma) inverts it over eight decades."""
    found = Bridge().moments(at(0.1, 0.5, 0.9, 0.99)).sigma.tolist()
    assert found == pytest.approx([2.697, 0.3080, 0.005467, 1.732e-5], rel=1e-3)
    sigma = torch.logspace(-5, 3, 33, dtype=DOUBLE)
    for parameters in PARAMETERS:
        bridge = Bridge(*parameters)
        assert torch.allclose(bridge.moments(bridge.time(sigma)).sigma, sigma, rtol=1e-8)


def test_a_float32_network_sees_the_effective_noise_of_float64():
    """AGM-3: u of states in float32 is x1 + sigma eps to 1e-3 of sigma, down to sigma = 0.005."""
    process = PhaseBridge(0.005, 20.0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1000, 1, generator=generator)
    for sigma in (0.005, 0.3, 10.0):
        level = torch.full((1000,), sigma)
        z = torch.randn(1000, 2, generator=generator)
        noise = process.noise(x, level, z, None)
        u = process.combine(noise.mean + noise.shift, level)
        assert float((u - x - sigma * noise.odd).abs().max()) < 1e-3 * sigma
        assert float(noise.odd.std()) == pytest.approx(1, abs=4 / math.sqrt(2000))


def test_the_unit_of_the_force_is_its_spread():
    """AGM-4: noise of the force in units of `spread` has variance 1 +- 2 %."""
    bridge, generator = Bridge(), torch.Generator().manual_seed(2)
    e = torch.randn(2, 20000, generator=generator, dtype=DOUBLE)
    for t in (0.1, 0.5, 0.9):
        m, (a, b, _) = bridge.moments(at(t)[0]), bridge.force(at(t)[0])
        xx, vx, vv = m.root
        noise = (a * xx * e[0] + b * (vx * e[0] + vv * e[1])) / bridge.spread(at(t)[0])
        assert float(noise.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / 20000))


@pytest.mark.parametrize("dtype, error", [(DOUBLE, 1e-8), (torch.float32, 1e-4)])
def test_the_force_tells_the_data(dtype, error):
    """AGM-5: x1 = (F - a x - b v) / e for random states and data, t <= 0.9."""
    bridge, generator = Bridge(), torch.Generator().manual_seed(3)
    for t in (0.1, 0.5, 0.9):
        a, b, e = (float(v) for v in bridge.force(at(t)[0]))
        x, v, x1 = torch.randn(3, 1000, generator=generator, dtype=DOUBLE).to(dtype)
        force = a * x + b * v + e * x1
        assert float(((force - a * x - b * v) / e - x1).abs().max()) < error * max(1, abs(b / e))


def test_the_force_is_the_acceleration_less_half_the_velocity_score():
    """F = a* - g^2/2 d log p(m | x1) / dv, both from their definitions."""
    bridge, t = Bridge(), at(0.6)[0]
    m, tau, g = bridge.moments(t), 0.4, 3.0 * 0.4
    x, v, x1 = 0.3, -0.7, 1.1
    sigma = torch.stack([m.xx, m.xv, m.xv, m.vv]).reshape(2, 2)
    off = torch.stack([x - m.cx * x1, v - m.cv * x1])
    expected = 4 / tau * ((x1 - x) / tau - v) + g**2 / 2 * torch.linalg.solve(sigma, off)[1]
    a, b, e = bridge.force(t)
    assert float(a * x + b * v + e * x1) == pytest.approx(float(expected), rel=1e-12)


# Samplers, with the exact denoiser


WEIGHTS = torch.tensor([0.3, 0.3, 0.25, 0.15], dtype=DOUBLE)
MEANS = torch.tensor([(2, 0), (-1, 1.5), (-1, -1.5), (0.3, 0.2)], dtype=DOUBLE) / 1.5
SPREADS = torch.tensor([0.15, 0.25, 0.1, 0.35], dtype=DOUBLE) / 1.5
COUNT = 10_000
VE_PROCESS, BRIDGE_PROCESS = VE(0.002, 20.0), PhaseBridge(0.002, 20.0)


def mixture_score(x, sigma):
    variance = SPREADS**2 + sigma[:, None] ** 2
    off = x[:, None] - MEANS
    share = (-off.square().sum(-1) / (2 * variance) - variance.log() + WEIGHTS.log()).softmax(1)
    return -((share / variance)[..., None] * off).sum(1)


def of_states(state, sigma):
    return mixture_score(BRIDGE_PROCESS.combine(state, sigma), sigma)


def mixture(seed):
    generator = torch.Generator().manual_seed(seed)
    spot = torch.multinomial(WEIGHTS, COUNT, True, generator=generator)
    noise = torch.randn(COUNT, 2, generator=generator, dtype=DOUBLE)
    return MEANS[spot] + SPREADS[spot, None] * noise


def normals(number):
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randn(COUNT, 2, generator=generator, dtype=DOUBLE)


@pytest.fixture(scope="module")
def target():
    return mixture(1)


def sliced(x, y):
    angle = torch.arange(64, dtype=DOUBLE) * math.pi / 64
    along = torch.stack([angle.cos(), angle.sin()])
    return float(((x @ along).sort(0).values - (y @ along).sort(0).values).abs().mean())


def sampled(name, nfe, process=VE_PROCESS, **how):
    answers = mixture_score if process is VE_PROCESS else of_states
    return sample(name, Problem(process, answers, normals, nfe, **how))


@pytest.mark.parametrize("process", [VE_PROCESS, BRIDGE_PROCESS], ids=["denoiser", "network"])
@pytest.mark.parametrize("nfe, stop, most", [(5, 0.5, 0.07), (10, 0.8, 0.025), (20, 0.8, 0.02)])
def test_the_bridge_samples_a_mixture_in_few_calls(target, nfe, stop, most, process):
    """AGM-6: by a denoiser and by a network of its own; the floor is 0.013."""
    found, calls = sampled("bridge", nfe, process, stop=stop)
    assert calls == nfe
    assert sliced(found, target) <= most


@pytest.mark.parametrize(
    "name, nfe, most",
    [("bridge", 10, 0.03), ("bridge_exponential", 20, 0.02), ("multistep", 20, 0.03)]
    + [("heun", 39, 0.03), ("exponential", 80, 0.03), ("euler", 80, 0.03)],
)
def test_every_sampler_finds_the_mixture(target, name, nfe, most):
    found, calls = sampled(name, nfe)
    assert calls == nfe
    assert sliced(found, target) <= most


@pytest.mark.parametrize(
    "name, how",
    [("bridge_ancestral", {}), ("exponential", {"eta": 1.0}), ("euler", {"eta": 1.0})],
)
def test_noise_on_the_way_back_leaves_the_density(target, name, how):
    """AGM-9: 200 steps with noise, sliced W1 <= 0.025 at a floor of 0.013."""
    assert sliced(sampled(name, 200, **how)[0], target) <= 0.025


def test_the_corrector_does_no_harm(target):
    """Its own noise costs steps: 0.05 with 40 calls, falling with more."""
    few, many = (sliced(sampled("predictor_corrector", nfe)[0], target) for nfe in (20, 80))
    assert many < 0.04 < few


@pytest.mark.parametrize("nfe, stop", [(5, 0.5), (10, 0.65)])
def test_a_white_gaussian_field_keeps_its_variance(nfe, stop):
    """AGM-7: to 2 % in few calls; exact, since a sample is linear in the three normals it takes."""

    def gaussian(u, sigma):
        return -u / (1 + sigma[:, None] ** 2)

    def draw(number):
        return torch.eye(3, dtype=DOUBLE)[:, number : number + 1]

    found, _ = sample("bridge", Problem(VE(0.002, 2e4), gaussian, draw, nfe, stop=stop))
    assert float(found.square().sum()) == pytest.approx(1, abs=0.02)


def test_the_score_of_a_field_is_that_of_its_states():
    """With an exact posterior any state of u has the score of u, to rounding."""
    u = mixture(5)
    sigma = torch.full((COUNT,), 0.3, dtype=DOUBLE)
    found = BRIDGE_PROCESS.score(of_states, u, sigma)
    assert torch.allclose(found, mixture_score(u, sigma), atol=1e-6)


def test_what_the_bridge_network_sees_is_its_state():
    """u and e are unit-variance for Gaussian data, uncorrelated, and give x and v back."""
    process, generator = PhaseBridge(0.01, 20.0), torch.Generator().manual_seed(4)
    x = torch.randn(COUNT, 1, generator=generator, dtype=DOUBLE)
    z = torch.randn(COUNT, 2, generator=generator, dtype=DOUBLE)
    for sigma in (0.02, 0.5, 10.0):
        level = torch.full((COUNT,), sigma, dtype=DOUBLE)
        noise = process.noise(x, level, z, None)
        state = noise.mean + noise.shift
        seen, _ = process.inputs(state, level)
        covariance = torch.cov(seen.T)
        assert torch.allclose(covariance, torch.eye(2, dtype=DOUBLE), atol=5 / math.sqrt(COUNT))
        m = process.moments(level)
        u = seen[:, :1] * math.sqrt(1 + sigma**2)
        for part, c, rest in zip(state.chunk(2, 1), (m.cx, m.cv), m.rest, strict=True):
            assert torch.allclose(part, c[:, None] * u + rest[:, None] * seen[:, 1:], atol=1e-6)


# The table of combinations


@pytest.mark.parametrize("kind", ["ve", "vp", "phase_bridge"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_run_with_the_processes_they_name_and_no_others(kind, name):
    """Every valid pair makes finite samples with its least calls; every other is one line."""
    config = ScoreConfig.model_validate({"process": {"kind": kind}}).process
    one = SAMPLERS[name]
    if kind not in one.kinds:
        with pytest.raises(UserError, match=f"'{name}' does not go with score.process.kind={kind}"):
            check_sampler(config, name, nfe=20)
        return
    assert check_sampler(config, name, nfe=one.least) == name
    process = build_process(config)

    def gaussian(state, sigma):
        u = process.combine(state, sigma) if process.states == 2 else state
        return -u / (1 + sigma[:, None] ** 2)

    def draw(number):
        return torch.randn(50, 3, generator=torch.Generator().manual_seed(number))

    found, calls = sample(name, Problem(process, gaussian, draw, one.least))
    assert found.shape == (50, 3) and bool(found.isfinite().all()) and calls <= one.least
    with pytest.raises(UserError, match=f"nfe={one.least - 1}: sampler '{name}' needs at least"):
        check_sampler(config, name, nfe=one.least - 1)


@pytest.mark.parametrize("name, one", SAMPLERS.items())
def test_only_noisy_samplers_take_noise_and_only_gridded_ones_a_grid(name, one):
    kind = sorted(one.kinds)[0]
    config = ScoreConfig.model_validate({"process": {"kind": kind, "sigma_max": 20.0}}).process
    options = [
        ({"eta": 0.5}, one.noisy, "eta=0.5 does not go"),
        ({"grid": "geometric"}, one.gridded, "grid=geometric does not go"),
        ({"stop": 0.5}, one.stopped, "stop=0.5 does not go"),
    ]
    for option, allowed, message in options:
        if allowed:
            check_sampler(config, name, nfe=20, **option)
        else:
            with pytest.raises(UserError, match=message):
                check_sampler(config, name, nfe=20, **option)


def test_small_noise_is_no_place_to_begin():
    """The usual training for responses knows noise of 0.02 alone."""
    with pytest.raises(UserError, match="trained on noise up to 0.02, which hides nothing"):
        check_sampler(ScoreConfig().process, None, nfe=10)


@pytest.mark.parametrize("grid", ["karras", "geometric", "preserving"])
def test_grids_fall_from_the_largest_level_to_the_smallest(grid):
    problem = Problem(VE(0.01, 20.0), mixture_score, normals, 10, grid=grid)
    levels = problem.levels(8)
    assert levels == sorted(levels, reverse=True)
    assert (levels[0], levels[-2], levels[-1]) == (pytest.approx(20), pytest.approx(0.01), 0)


# Noise levels and weights of training


def test_variance_preserving_levels_are_those_of_uniform_times():
    """sigma^2 = exp(int beta dt) - 1, and `time` inverts it."""
    process = build_process(VpConfig())
    uniform = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    level, time = process.noise_levels(uniform), 0.001 + 0.999 * uniform
    integral = 0.1 * time + 15.9 * time**2 / 2
    assert torch.allclose(level**2 + 1, integral.exp(), rtol=1e-12)
    assert torch.allclose(process.time(level), time, rtol=1e-9)
    assert (process.sigma_min, process.sigma_max) == (
        pytest.approx(float(level[0])),
        pytest.approx(float(level[2])),
    )


def test_log_normal_levels_are_those_of_edm_within_the_range():
    """Median exp(-1.2), one spread up exp(0), clipped to the range."""
    process = build_process(VeConfig(sigma_min=0.1, sigma_max=10.0, density="log_normal"))
    level = process.noise_levels(torch.tensor([0.0, 0.5, 0.8413447, 0.99999], dtype=DOUBLE))
    assert level.tolist() == pytest.approx([0.1, math.exp(-1.2), 1.0, 10.0], rel=1e-6)


@pytest.mark.parametrize("kind", ["ve", "vp", "phase_bridge"])
def test_an_untrained_wide_process_is_the_gaussian_score(kind):
    """Zero output: s = -u / (1 + sigma^2) at every level, the exact answer for Gaussian data."""
    process = build_process(ScoreConfig.model_validate({"process": {"kind": kind}}).process)
    u = torch.randn(20, 1, generator=torch.Generator().manual_seed(6))
    level = torch.full((20,), 0.7)

    def answers(state, sigma):
        return process.interpret(torch.zeros(len(state), 1), state, sigma)

    assert torch.allclose(process.score(answers, u, level), -u / 1.49, atol=1e-5)


@pytest.mark.parametrize("weighting", ["output", "likelihood", "edm", "force"])
def test_weights_of_the_loss_depend_on_the_level_alone(weighting):
    """One number for each pair, positive; for "force" that of the published loss."""
    process = PhaseBridge(0.01, 20.0, weighting=weighting)
    level = torch.tensor([0.05, 1.0, 10.0])
    noise = process.noise(torch.randn(3, 1), level, torch.randn(3, 2), None)
    assert noise.weight.shape == (3, 1) and bool((noise.weight > 0).all())
    if weighting == "force":
        bridge = process.bridge
        t = bridge.time(level)
        # F = z (1 - t) label, and F = a x + b v + e x1 with error e sigma^2 ds.
        unit = bridge.spread(t) / (1 - t)
        change = bridge.force(t)[2] * level.double() ** 2 / unit
        assert noise.weight[:, 0].tolist() == pytest.approx((change**2 / (1 - t)).tolist())
