"""Jump diffusion against characteristic functions, Fourier sums and Bessel functions."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import special, stats

from workflow.config import ScoreConfig
from workflow.diffusion.amplitudes import AMPLITUDES
from workflow.diffusion.distances import MEASURES, compare
from workflow.diffusion.jump import JumpLaw, pure_jump_target
from workflow.diffusion.jump_process import Jump
from workflow.diffusion.lattice import NoisedDensity
from workflow.diffusion.samplers import Problem
from workflow.diffusion.sampling import sample
from workflow.interfaces import UserError
from workflow.scores.closed_form import DenseGaussian
from workflow.scores.training import Trainer

torch.set_num_threads(1)

NU = 2.5
WELLS = ((0.6, -1.0, 0.3), (0.4, 1.5, 0.5))
"""Weight, place and scale of two Student densities: bimodal, with tails x^-3.5."""
PURE = JumpLaw(rate=1, scale=1.0, gaussian=0.0)


@cache
def _student_table():
    """Wavenumbers and the characteristic function of the Student density of unit scale."""
    k = np.linspace(0, 40, 400_001)
    z = np.maximum(math.sqrt(NU) * k, 1e-9)
    value = special.kv(NU / 2, z) * z ** (NU / 2) / (special.gamma(NU / 2) * 2 ** (NU / 2 - 1))
    return k, np.where(k == 0, 1.0, value)


def student(k):
    """Characteristic function of the Student density, interpolated: Bessel functions are slow."""
    return torch.from_numpy(np.interp(k.abs().numpy(), *_student_table()))


def bimodal(k):
    parts = (w * torch.exp(1j * m * k) * student(d * k) for w, m, d in WELLS)
    return sum(parts)


def draw_bimodal(count, seed=1):
    rng = np.random.default_rng(seed)
    well = rng.random(count) < WELLS[0][0]
    drawn = [m + d * rng.standard_t(NU, count) for _, m, d in WELLS]
    return torch.from_numpy(np.where(well, *drawn))


def uniforms(law, count, generator):
    return torch.rand(2 * int(law.rate), count, dtype=torch.float64, generator=generator)


def noised(law, s, count, seed=2):
    """Data, noise, and clock at one time, drawn as for a network."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.full((count,), s, dtype=torch.float64)
    w = law.clock(time, uniforms(law, count, generator))
    z = torch.randn(count, dtype=torch.float64, generator=generator)
    u = law.noise_variance(time, w).sqrt() * z
    return draw_bimodal(count, seed) * math.exp(-s / 2) + u, u, w, time


def sampled(process, density, count, *, sampler="jump_flow", nfe=199, eta=0.0):
    """Samples by the exact generalized score, at the smallest level, scaled back to x_s."""
    generator = torch.Generator().manual_seed(5)

    def answers(y, level):
        s = float(process.time(level[0].double()))
        a = math.exp(-s)
        return density.generalized(y * math.sqrt(a), s) / math.sqrt(a)

    problem = Problem(
        process,
        answers,
        lambda _: torch.randn(count, 1, dtype=torch.float64, generator=generator),
        nfe,
        eta=eta,
        uniforms=lambda _, n: torch.rand(count, n, dtype=torch.float64, generator=generator),
    )
    found, calls = sample(sampler, problem)
    assert calls == nfe
    return found[:, 0]


def ks(x, density, s):
    """Largest distance of the cumulative of a sample from the exact one."""
    ordered = x.sort().values
    exact = density.cumulative(ordered, s)
    steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return float(torch.maximum((exact - steps[:-1]).abs(), (exact - steps[1:]).abs()).max())


@pytest.mark.parametrize("rate, scale, gaussian, s", [(1, 1.0, 0.0, 0.3), (3, 0.4, 0.5, 0.7)])
def test_noise_in_one_shot_has_the_characteristic_function(rate, scale, gaussian, s):
    """JMP-1, whole rates: of a loop over jumps nothing is left but coin tosses and waits."""
    law, count = JumpLaw(rate, scale, gaussian), 200_000
    generator = torch.Generator().manual_seed(1)
    time = torch.full((count,), s, dtype=torch.float64)
    w = law.clock(time, uniforms(law, count, generator))
    _check_characteristic(law, s, w, generator)


@pytest.mark.parametrize("rate, scale, gaussian, s", [(1, 1.0, 0.0, 0.3), (2.5, 0.4, 0.5, 0.7)])
def test_noise_of_any_rate_has_the_characteristic_function(rate, scale, gaussian, s):
    """JMP-1, any rate: a negative binomial number of jumps."""
    law, generator = JumpLaw(rate, scale, gaussian), torch.Generator().manual_seed(1)
    drawn = torch.rand(200_000, 2, dtype=torch.float64, generator=generator)
    _check_characteristic(law, s, law.any_clock(s, drawn), generator)


def _check_characteristic(law, s, w, generator):
    time, a = torch.full_like(w, s), math.exp(-s)
    z = torch.randn(len(w), dtype=torch.float64, generator=generator)
    u = law.noise_variance(time, w).sqrt() * z
    for k in (0.5, 1.5, 4.0):
        b2k2 = law.scale**2 * k**2
        jumps = ((1 + b2k2 * a) / (1 + b2k2)) ** law.rate
        exact = math.exp(-law.gaussian * k**2 * (1 - a) / 2) * jumps
        assert abs((k * u).cos().mean() - exact) < 4 / math.sqrt(len(u))
        lattice = NoisedDensity(law, bimodal).noise(torch.tensor([k], dtype=torch.float64), s)
        assert float(lattice) == pytest.approx(exact, rel=1e-10)


def test_brute_force_jumps_have_the_law_of_the_one_shot():
    """Jump times, sizes and decays one by one."""
    law, s, count = JumpLaw(2, 0.7, 0.3), 0.8, 100_000
    rng = np.random.default_rng(3)
    number = rng.poisson(law.rate * s, count)
    u = rng.normal(0, math.sqrt(law.gaussian * (1 - math.exp(-s))), count)
    for jump in range(number.max()):
        since = rng.uniform(0, s, count)
        size = law.scale * rng.laplace(size=count)
        u += np.where(number > jump, size * np.exp(-since / 2), 0)
    one_shot = noised(law, s, count)[1].numpy()
    assert stats.ks_2samp(u, one_shot).statistic < 1.95 * math.sqrt(2 / count)


LAWS = [JumpLaw(1, 1.0, 0.5), JumpLaw(2, 0.7, 0.5), JumpLaw(3, 0.5, 0.2), JumpLaw(4, 0.5, 1.0)]


def binned(x, target, exact, edges):
    """Mean difference of target and exact value in bins, in standard errors."""
    found = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (x >= low) & (x < high)
        gap = (target - exact)[inside]
        found.append(float(gap.mean() / gap.std() * math.sqrt(len(gap))))
    return found


EDGES = [-6.0, -3.0, -2.0, -1.4, -0.9, -0.4, 0.1, 0.6, 1.1, 1.6, 2.5, 6.0]


@pytest.mark.parametrize("s", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"rate {law.rate}")
def test_targets_given_the_clock_average_to_both_scores(law, s):
    """JMP-2 (b): 11 bins, the generalized and the ordinary score from the same noisy states."""
    x, u, w, time = noised(law, s, 400_000)
    density = NoisedDensity(law, bimodal)
    shrink = -u / law.noise_variance(time, w)
    for target, exact in (
        (law.flux(time, w) * shrink, density.generalized(x, s)),
        (shrink, density.score(x, s)),
    ):
        assert max(map(abs, binned(x, target, exact, EDGES))) < 4


@pytest.mark.parametrize("s", [0.05, 0.5, 2.0])
def test_the_closed_target_of_pure_jumps_averages_to_the_generalized_score(s):
    """JMP-2 (a)."""
    x, u, _, time = noised(PURE, s, 400_000)
    target = pure_jump_target(PURE, u[:, None], time)[:, 0]
    exact = NoisedDensity(PURE, bimodal).generalized(x, s)
    assert max(map(abs, binned(x, target, exact, EDGES))) < 4


@pytest.mark.parametrize(
    "process", [Jump(1, 1.0, 0.0, 0.01, 150.0), Jump(2, 0.5, 0.3, 0.01, 100.0)]
)
def test_probability_flow_brings_the_noise_to_the_data(process):
    """JMP-5: 50,000 draws, 100 steps of Heun; the 95 % level of the distance is .0061."""
    density = NoisedDensity(process.law, bimodal)
    assert ks(sampled(process, density, 50_000), density, 1e-4) <= 0.009


@pytest.mark.parametrize("eta", [0.25, 1.0])
def test_every_member_of_the_family_has_the_same_marginal(eta):
    """Gaussian noise and jumps eta times as strong, the pull 1 + eta times."""
    process = Jump(1, 0.7, 0.5, 0.03, 100.0)
    density = NoisedDensity(process.law, bimodal)
    count = 20_000
    end = sampled(process, density, count, sampler="jump_reverse", nfe=300, eta=eta)
    assert ks(end, density, 1e-3) <= 1.95 / math.sqrt(count)


def carried(density, levels, times):
    """Quantiles of the first time carried by the flow dx/ds = -x / 2 - G to the last, by Heun."""
    below = density.cumulative(density.x, times[0]).numpy()
    x = torch.from_numpy(np.interp(levels, below, density.x.numpy()))
    for s, t in zip(times[:-1], times[1:], strict=True):
        slope = x / 2 + density.generalized(x, s)
        ahead = x + (s - t) * slope
        x = x + (s - t) / 2 * (slope + ahead / 2 + density.generalized(ahead, t))
    return x


def test_probability_flow_conserves_the_cumulative():
    """JMP-5: a quantile stays that quantile, over 800 steps."""
    density = NoisedDensity(PURE, bimodal)
    levels = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)
    times = (torch.linspace(8.0**0.5, 0.1, 801, dtype=torch.float64) ** 2).tolist()
    end = carried(density, levels, times)
    assert (density.cumulative(end, times[-1]) - levels).abs().max() <= 1e-3


def test_without_jumps_the_generalized_score_is_half_the_score():
    """JMP-6."""
    law = JumpLaw(0, 1.0, 0.8)
    _, score, generalized = NoisedDensity(law, bimodal).tables(0.4)
    inside = NoisedDensity(law, bimodal).x.abs() < 20
    torch.testing.assert_close(generalized[inside], 0.4 * score[inside], rtol=1e-6, atol=1e-9)
    w = torch.zeros(3, dtype=torch.float64)
    assert (law.flux(torch.ones(3, dtype=torch.float64), w) == 0.4).all()


def test_many_small_jumps_are_gaussian_noise():
    """JMP-6: rate 1000 with unit variance, .5 % from the Gaussian process."""
    jumps = JumpLaw(1000, math.sqrt(1 / 2000), 0.0)
    ours, gaussian = (
        NoisedDensity(law, bimodal).tables(0.5) for law in (jumps, JumpLaw(0, 1.0, 1.0))
    )
    inside = NoisedDensity(jumps, bimodal).x.abs() < 4
    gap = (ours[2] - gaussian[2])[inside].abs().max() / gaussian[2][inside].abs().max()
    assert gap < 0.005


@pytest.mark.parametrize("scale", [0.05, 0.2])
def test_the_generalized_score_is_not_the_score(scale):
    """As s -> 0 it is lambda b^2 grad(q * p) / p: near the score only if jumps are small."""
    _, score, generalized = NoisedDensity(JumpLaw(1, scale, 0.0), bimodal).tables(1e-3)
    density = NoisedDensity(PURE, bimodal)
    weight = density.tables(1e-3)[0]
    inside = density.x.abs() < 8
    s, g, p = score[inside], generalized[inside], weight[inside]
    fit = (p * s * g).sum() / (p * g * g).sum()
    residual = float(((p * (s - fit * g) ** 2).sum() / (p * s**2).sum()).sqrt())
    assert residual < 0.3 if scale == 0.05 else residual > 0.25


@pytest.mark.parametrize("name", ["laplace", "normal", "cauchy"])
def test_sums_of_jumps_have_the_characteristic_function_of_their_number(name):
    """Any amplitude law: q^(k)^n for n jumps."""
    law, rng = AMPLITUDES[name], np.random.default_rng(7)
    uniform = torch.from_numpy(rng.random(100_000))
    normal = torch.from_numpy(rng.standard_normal(100_000))
    for n in (1, 3):
        total = law.total(torch.full_like(uniform, n), uniform, normal)
        for k in (0.3, 1.0):
            exact = law.characteristic(torch.tensor(k, dtype=torch.float64)) ** n
            assert abs((k * total).cos().mean() - exact) < 4 / math.sqrt(len(total))
    assert (law.total(torch.zeros(3), torch.full((3,), 0.4), torch.ones(3)) == 0).all()


def test_other_amplitudes_than_laplace_flow_to_the_data_too():
    """The exact G of any law with a known characteristic function drives the same flow."""
    density = NoisedDensity(JumpLaw(1, 0.7, 0.3), bimodal, amplitude="normal")
    levels = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    times = (torch.linspace(6.0**0.5, 0.02**0.5, 201, dtype=torch.float64) ** 2).tolist()
    end = carried(density, levels, times)
    assert (density.cumulative(end, times[-1]) - levels).abs().max() <= 1e-3


# The process


PROCESSES = [
    Jump(1, 0.5, 0.5, 0.02, 20.0),
    Jump(3, 0.3, 0.2, 0.02, 20.0),
    Jump(1, 1.0, 0.0, 0.02, 20),
]
every_process = pytest.mark.parametrize(
    "process", PROCESSES, ids=lambda p: f"rate {p.rate} g {p.gaussian}"
)


@every_process
@pytest.mark.parametrize("level", [0.1, 2.0])
def test_what_a_network_is_asked_for_averages_to_the_scores(process, level):
    """JMP-2 through the process: both signs, both heads, in units of y = x_s / a^(1/2)."""
    count, generator = 200_000, torch.Generator().manual_seed(8)
    sigma = torch.full((count,), level)
    z = torch.randn(count, 1, generator=generator)
    uniform = torch.rand(count, process.uniforms, dtype=torch.float64, generator=generator)
    noise = process.noise(draw_bimodal(count)[:, None].float(), sigma, z, uniform)
    s = float(process.time(torch.tensor(level, dtype=torch.float64)))
    a, density = math.exp(-s), NoisedDensity(process.law, bimodal)
    for sign in (1, -1):
        y = (noise.mean + sign * noise.shift).double()
        targets = (-sign * noise.odd / noise.scale[:, None]).double()
        x = y[:, 0] * math.sqrt(a)
        flow = density.generalized(x, s) / math.sqrt(a)
        exact = {"score": density.score(x, s) * math.sqrt(a), "generalized_score": flow}
        for place, head in enumerate(process.heads):
            assert max(map(abs, binned(x, targets[:, place], exact[head], EDGES))) < 4


@every_process
def test_the_level_is_the_standard_deviation_of_the_noise(process):
    count, generator = 200_000, torch.Generator().manual_seed(9)
    for level in (0.5, 3.0):
        uniform = torch.rand(count, process.uniforms, dtype=torch.float64, generator=generator)
        z = torch.randn(count, 1, generator=generator)
        sigma = torch.full((count,), level)
        square = process.noise(torch.zeros(count, 1), sigma, z, uniform).shift.double().square()
        assert abs(square.mean() - level**2) < 4 * square.std() / math.sqrt(count)


@every_process
def test_an_untrained_network_has_the_gaussian_answers(process):
    """Zero output: -y / (1 + sigma^2), and T / (2 a) times it."""
    y, level = torch.randn(4, 1, dtype=torch.float64), torch.full((4,), 1.5, dtype=torch.float64)
    found = process.interpret(torch.zeros(4, len(process.heads), dtype=torch.float64), y, level)
    gaussian = -y[:, 0] / (1 + 1.5**2)
    grown = 1 + 1.5**2 / process.variance
    torch.testing.assert_close(found[:, -1], process.variance * grown / 2 * gaussian)
    if process.gaussian:
        torch.testing.assert_close(found[:, 0], gaussian)


def test_jumps_alone_have_no_score_for_a_response():
    """JMP-7: one line that says what to change."""
    process = PROCESSES[2]
    with pytest.raises(UserError, match="gaussian=0.*gaussian: 0.5") as caught:
        process.score(lambda y, _: y, torch.zeros(2, 1), torch.ones(2))
    assert "\n" not in str(caught.value)


def test_a_rate_that_is_no_whole_number_is_refused_where_targets_need_one():
    with pytest.raises(UserError, match="rate=2.5.*use 2") as caught:
        replace(PURE, rate=2.5).clock_ratio(torch.ones(1), torch.ones(1))
    assert "\n" not in str(caught.value)


# Learned


def stable(count, seed):
    """Baule's data: the plane, isotropic alpha-stable 1.7, as a mixture of Gaussian scales."""
    alpha, rng = 1.7, np.random.default_rng(seed)
    scale = 2 * math.cos(math.pi * alpha / 4) ** (2 / alpha)
    a = stats.levy_stable.rvs(alpha / 2, 1.0, scale=scale, size=count, random_state=rng)
    z = rng.standard_normal((count, 2))
    return torch.from_numpy(math.sqrt(0.05) * np.sqrt(a)[:, None] * z)


def learned_tail_error(process, seed):
    """Mean squared log error of the tails of 20,000 samples of a network after 1000 steps."""
    data = stable(32_000, 1)
    train = {"ranks": 1, "steps": 1000, "global_batch": 256, "learning_rate": 2e-3}
    network = {"channels": 64, "residual_blocks": 2}
    config = ScoreConfig(process={"kind": "jump", **process}, network=network, train=train)
    trainer = Trainer(data, DenseGaussian.fit(data), config=config, seed=seed)
    for _ in range(1000):
        trainer.advance()
    model, generator = trainer.averaged(), torch.Generator().manual_seed(100 + seed)
    problem = Problem(
        model.process,
        model.answers,
        lambda _: torch.randn(20_000, 2, generator=generator),
        99,
        uniforms=lambda _, n: torch.rand(20_000, n, dtype=torch.float64, generator=generator),
    )
    drawn = model.whitening.unwhiten(sample("jump_flow", problem)[0].double()).abs()
    found = compare(drawn, stable(40_000, 3).abs(), {"tail_error": MEASURES["tail_error"]})
    return found["tail_error"].value


@pytest.mark.slow
def test_jumps_learn_stable_tails_better_than_gaussian_noise():
    """JMP-8: median of 3 seeds, the same network, batches, steps, variance and sampler."""
    wide = {"sigma_min": 0.02, "sigma_max": 100.0}
    jumps = {**wide, "rate": 1, "scale": math.sqrt(0.5), "gaussian": 0.0}
    gaussian = {**wide, "rate": 0, "gaussian": 1.0}
    ours, theirs = (
        np.median([learned_tail_error(process, seed) for seed in (1, 2, 3)])
        for process in (jumps, gaussian)
    )
    assert ours <= 0.7 * theirs
