"""The action of a generalized score against Fourier sums, in one variable of which all is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from scipy.special import roots_laguerre

from workflow.config import ScoreConfig
from workflow.diffusion.action import Nats, control_cost, divergence, noise_nodes
from workflow.diffusion.clock import Clocks
from workflow.diffusion.jump_action import (
    denoising_lagrangian,
    lagrangian,
    path_kl,
    path_kl_gain,
    prior_log_density,
    prior_mismatch,
    schedule,
    worth,
)
from workflow.diffusion.jump_process import Jump
from workflow.diffusion.lattice import NoisedDensity
from workflow.diffusion.likelihood import log_density
from workflow.diffusion.samplers import Problem
from workflow.diffusion.sampling import sample
from workflow.dynamics import build_system
from workflow.interfaces import UserError
from workflow.scores.closed_form import DenseGaussian
from workflow.scores.neural import WhitenedScore
from workflow.scores.references import is_known, one_variable, white_scores

torch.set_num_threads(1)

P = ((0.35, 0.45, 0.2), (-1.2, 0.6, 1.8), (0.25, 0.4, 0.15))
Q = ((0.5, 0.3, 0.2), (-1.0, 0.4, 1.6), (0.3, 0.5, 0.25))
NORMAL = ((1.0,), (0.0,), (1.0,))
"""Weights, means and spreads of mixtures of normal densities."""

LOW, HIGH = 0.05, 20.0
RARE, OFTEN, NEVER = (
    Jump(1, 0.5, 0.5, LOW, HIGH),
    Jump(3, 0.3, 0.2, LOW, HIGH),
    Jump(0, 1.0, 1.0, LOW, HIGH),
)
ALONE = Jump(1, 1.0, 0.0, LOW, HIGH)
each_process = pytest.mark.parametrize("process", [RARE, OFTEN, NEVER], ids=["1", "3", "0"])


@cache
def lattice(process, data):
    def characteristic(k):
        parts = zip(*data, strict=True)
        return sum(w * torch.exp(1j * m * k - 0.5 * (s * k) ** 2) for w, m, s in parts)

    return NoisedDensity(process.law, characteristic, half_width=30.0, points=2**14)


def at(process, level):
    """Time of the process, and a^(1/2)."""
    s = float(process.time(torch.tensor(float(level), dtype=torch.float64)))
    return s, math.exp(-s / 2)


def flow_of(process, data):
    """H of a mixture by Fourier sums."""

    def score(y, level):
        s, shrink = at(process, level)
        return 2 * shrink / process.variance * lattice(process, data).generalized(y * shrink, s)

    return score


def density(process, data, level):
    """Places y `(point, 1)` and their probabilities at a level."""
    s, shrink = at(process, level)
    known = lattice(process, data)
    p = known.tables(s)[0].clamp(min=0)
    return known.x[:, None] / shrink, p / p.sum()


def mean_over(process, level, of):
    """E of a function of y under P, by quadrature."""
    y, p = density(process, P, level)
    return float((p * of(y)).sum())


def wrong(process, amplitude):
    """H of P with an error that is not a constant, and that fades where noise is large."""
    exact = flow_of(process, P)
    return lambda y, t: exact(y, t) + amplitude * (1 + 0.5 * torch.sin(2 * y)) / (1 + t**2)


def smooth(y, level):
    """A flow score with a derivative, far from right."""
    return -y / (1 + level**2) + 0.4 * torch.sin(1.5 * y) / (1 + level**2)


def kl(process, level):
    """KL(P || Q) after the noise of a level."""
    p, q = (density(process, data, level)[1] for data in (P, Q))
    known = (p > 1e-14) & (q > 1e-14)
    return float((p[known] * (p[known] / q[known]).log()).sum())


def draw(data, count, seed=5):
    rng = np.random.default_rng(seed)
    which = rng.choice(len(data[0]), count, p=data[0])
    x = np.asarray(data[1])[which] + np.asarray(data[2])[which] * rng.standard_normal(count)
    return torch.from_numpy(x)[:, None]


def noise(process, nodes, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(nodes, count, 1, generator=generator, dtype=torch.float64)
    shape = (nodes, count, process.uniforms)
    return z, torch.rand(shape, generator=generator, dtype=torch.float64)


def after_noise(data):
    """log density and score of a mixture after normal noise, for the clock."""
    weights, means, spreads = (torch.tensor(v, dtype=torch.float64) for v in data)

    def places(y):
        def after(variance):
            total = spreads**2 + variance
            logs = weights.log() - 0.5 * ((y - means) ** 2 / total + (2 * math.pi * total).log())
            pulls = (logs.softmax(1) * (means - y) / total).sum(1, keepdim=True)
            return logs.logsumexp(1), pulls

        return after

    return places


@pytest.mark.parametrize("level", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("process", [RARE, OFTEN, NEVER, ALONE], ids=["1", "3", "0", "alone"])
def test_averages_over_the_clock_are_fourier_sums(process, level):
    """H of a mixture and of a Gaussian, and its density, from normal noise alone."""
    s, shrink = at(process, level)
    clocks = Clocks.of(process, level, numbers=1)
    for data in (P, NORMAL):
        known = lattice(process, data)
        # On the lattice itself: nothing is interpolated.
        inside = (known.x.abs() < 4 * shrink * (1 + level)).nonzero()[::25, 0]
        y = known.x[inside, None] / shrink
        exact = 2 * shrink / process.variance * known.tables(s)[2][inside, None]
        p = known.tables(s)[0][inside] * shrink
        likely = p > 1e-6 * p.max()
        found = clocks.flow_score(after_noise(data)(y))
        torch.testing.assert_close(found[likely], exact[likely], rtol=1e-5, atol=1e-7)
        if data is NORMAL:
            torch.testing.assert_close(clocks.gaussian_flow_score(y), found)
            log_p = clocks.gaussian_log_density(y)
            torch.testing.assert_close(log_p[likely], p[likely].log(), rtol=0, atol=1e-5)


def test_the_clock_of_many_numbers_is_resolved():
    """400 numbers: H of Gaussian data is a score when the clock is certain, by twice the nodes."""
    y = 1.3 * torch.randn(4, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    few, many = (Clocks.of(RARE, 0.7, numbers=n) for n in (400, 1600))
    torch.testing.assert_close(few.gaussian_flow_score(y), many.gaussian_flow_score(y))


@each_process
def test_excess_action_is_the_weighted_error_of_the_flow_score(process):
    """A[H] - A[H*] by derivatives at y and one jump further, against |H - H*|^2; to 0.1 %."""
    nodes, weights = (torch.from_numpy(v) for v in roots_laguerre(24))
    exact = flow_of(process, P)
    for level in (0.2, 1.5):
        t = torch.tensor(level, dtype=torch.float64)
        y, p = density(process, P, level)
        jump = process.scale / at(process, level)[1] * nodes
        # |A| / b is Exp(1) in one dimension: both signs of every node.
        more = sum(
            w / 2 * divergence(partial(smooth, level=t), y + sign * j)[1]
            for w, j in zip(weights, jump, strict=True)
            for sign in (1, -1)
        )
        here = lagrangian(smooth, y, y, t, process)
        slope = divergence(partial(smooth, level=t), y)[1]
        jumped = 2 * worth(process) * level * (1 - process.gaussian / process.variance)
        action = float((p * (here + jumped * (more - slope))).sum())
        cost = worth(process) * level * p
        error = float((cost * (smooth(y, t) - exact(y, t))[:, 0] ** 2).sum())
        least = -float((cost * exact(y, t)[:, 0] ** 2).sum())
        assert action - least == pytest.approx(error, rel=1e-3)


@each_process
def test_both_lagrangians_have_the_same_mean(process):
    """With a derivative after one more jump, and without: 4 standard errors of 100,000 draws."""
    count, t = 100_000, torch.tensor(0.8, dtype=torch.float64)
    x, (z, uniform) = draw(P, count), noise(process, 1, count)
    drawn = process.noise(x, t.expand(count), z[0], uniform[0])
    y = x + drawn.shift
    rng = np.random.default_rng(3)
    jump = process.scale / at(process, t)[1] * rng.laplace(size=(count, 1))
    with_derivatives = lagrangian(smooth, y, y + torch.from_numpy(jump), t, process)
    without = denoising_lagrangian(smooth, x, z[0], uniform[0], t, process)
    gap = Nats.of(with_derivatives - without)
    assert abs(gap.value) < 4 * gap.standard_error < 0.1 * float(without.mean().abs())


@cache
def path_by_quadrature(process):
    """Path KL of H of Q where the data are P."""
    nodes, mine, other = noise_nodes(schedule(process), 24), *(flow_of(process, d) for d in (P, Q))

    def cost(t):
        difference = partial(lambda y, t: mine(y, t) - other(y, t), t=t)
        rate = mean_over(process, t, lambda y: control_cost(difference(y), t, schedule(process)))
        return torch.tensor([worth(process) * rate])

    return float(nodes.integrate(cost).sum())


@each_process
def test_the_path_kl_bounds_what_a_wrong_flow_score_makes_of_the_data(process):
    """H of Q from the prior of Q makes Q: KL(P || Q) <= path KL + KL of the priors.

    Without jumps the reverse process is the reversal in time, and the two are equal.
    """
    known = kl(process, LOW) - kl(process, HIGH)
    bound = path_by_quadrature(process)
    if process is NEVER:
        assert bound == pytest.approx(known, rel=2e-3)
    else:
        assert known < bound < worth(process) * known


@each_process
def test_path_kl_of_draws_is_that_of_the_quadrature(process):
    """And its gain, without the exact H, and 0 at that: 4 standard errors of 20,000 paths."""
    count, nodes = 20_000, noise_nodes(schedule(process), 24)
    x, (z, uniform) = draw(P, count), noise(process, 24, count)
    exact, other = flow_of(process, P), flow_of(process, Q)
    drawn = (x, z, uniform, process, nodes)
    found = Nats.of(path_kl(other, exact, *drawn).sum(0))
    expected = path_by_quadrature(process)
    assert abs(found.value - expected) < 4 * found.standard_error < 0.1 * expected
    gain = Nats.of(path_kl_gain(exact, other, *drawn).sum(0))
    assert abs(gain.value - expected) < 4 * gain.standard_error < expected
    assert path_kl(exact, exact, *drawn).abs().max() == 0


def test_what_the_sampler_makes_is_within_the_bound():
    """`jump_reverse` at eta = 1 with an error of H: KL of 20,000 samples in bins, and Pinsker."""
    count, generator = 20_000, torch.Generator().manual_seed(4)
    process, amplitude = RARE, 0.6
    flow = wrong(process, amplitude)

    def answers(y, level):
        return process.pull(level[0]) * flow(y, level[0])

    problem = Problem(
        process,
        answers,
        lambda _: torch.randn(count, 1, dtype=torch.float64, generator=generator),
        100,
        eta=1.0,
        uniforms=lambda _, n: torch.rand(count, n, dtype=torch.float64, generator=generator),
    )
    made = sample("jump_reverse", problem)[0]
    edges = torch.linspace(-3, 4, 71, dtype=torch.float64)
    q = torch.histogram(made[:, 0], edges).hist / count
    y, each = density(process, P, LOW)
    below = torch.from_numpy(np.interp(edges.numpy(), y[:, 0].numpy(), each.cumsum(0).numpy()))
    p = below.diff()
    known = (p > 1e-4) & (q > 0)
    truth = float((p[known] * (p[known] / q[known]).log()).sum())
    variation = float(0.5 * (p - q).abs().sum())
    nodes = noise_nodes(schedule(process), 24)

    def cost(t):
        error = lambda y: amplitude * (1 + 0.5 * torch.sin(2 * y)) / (1 + t**2)  # noqa: E731
        rate = mean_over(process, t, lambda y: control_cost(error(y), t, schedule(process)))
        return torch.tensor([worth(process) * rate])

    bound = float(nodes.integrate(cost).sum()) + float(
        prior_mismatch(draw(P, 4000), process).mean()
    )
    # 0.02 is what 70 bins, as many samples and steps of this length bring at most.
    assert 0.05 * bound < truth < bound + 0.02
    assert 2 * variation**2 < bound + 0.02


def test_the_probability_flow_of_jumps_gives_the_log_density():
    """ACT-7 with jumps alone, where there is no path KL: 6 points, to 0.02 nat."""
    x = torch.tensor([[-1.6], [-1.2], [-0.3], [0.6], [1.8], [2.0]], dtype=torch.float64)
    # With jumps alone a share exp(-rate s) keeps the density of the data, which no prior has.
    wide = replace(ALONE, sigma_max=100.0)
    prior = partial(prior_log_density, wide)
    found = log_density(flow_of(wide, P), x, schedule(wide), steps=60, prior=prior)
    y, p = density(wide, P, LOW)
    exact = np.interp(x[:, 0].numpy(), y[:, 0].numpy(), (p / (y[1] - y[0])).numpy())
    torch.testing.assert_close(found, torch.from_numpy(np.log(exact)), rtol=0, atol=0.02)


@each_process
def test_the_mismatch_of_the_prior_is_bounded(process):
    """Data of mean square 1.8 times that of the prior's; by quadrature at the largest noise."""
    data = ((0.5, 0.5), (-1.2, 1.2), (0.6, 0.6))
    narrow = Jump(process.rate, process.scale, process.gaussian, LOW, 2.0)
    y, p = density(narrow, data, 2.0)
    likely = p > 1e-14
    cell = float(y[1] - y[0])
    log_pi = prior_log_density(narrow, y)
    truth = float((p * ((p / cell).log() - log_pi))[likely].sum())
    bound = Nats.of(prior_mismatch(draw(data, 20_000), narrow))
    assert 0 < truth < bound.value - 4 * bound.standard_error
    assert bound.value < 0.5


def test_jumps_alone_have_no_path_kl():
    """One line that says what to change."""
    with pytest.raises(UserError, match="gaussian=0.*gaussian: 0.5") as caught:
        worth(ALONE)
    assert "\n" not in str(caught.value)


# What a run compares with


@pytest.mark.parametrize(
    "process", [{"kind": "jump", "rate": 2, "scale": 0.4}, {"kind": "ve"}], ids=["jump", "ve"]
)
def test_exact_references_of_one_variable_agree_however_they_are_found(process):
    """A mixture on a line after whitening: by its normal noise, and by its score on a lattice."""
    chosen = {"weights": P[0], "means": [[m] for m in P[1]], "spreads": P[2]}
    system = build_system({"kind": "mixture", **chosen})
    whitening = DenseGaussian.fit(3.0 * draw(P, 1000) / 3.0)
    model = WhitenedScore(whitening, ScoreConfig(process=process))
    exact = white_scores(model, whitening, system)["exact"]

    class OnlyItsScore:
        fields, shape, homogeneous = system.fields, (), True

        def exact_score(self, x):
            return system.exact_score(x)

    bare = OnlyItsScore()
    bare.initial = bare.step = bare.observe = bare.displace = None
    bare.dt, bare.noise_shape, bare.initial_shape = 1.0, (1,), (1,)
    assert is_known(model.process, bare)
    other = white_scores(model, whitening, bare)["exact"]
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for level in (0.02, 0.3, 20.0):
        t = torch.tensor(level, dtype=torch.float64)
        torch.testing.assert_close(other(x, t), exact(x, t), rtol=0.02, atol=0.02 / (1 + level))


def test_a_characteristic_function_is_made_of_a_score():
    """exp(-k^2 / 2) of the normal density, and its half-width holds 1e-13 of it."""
    characteristic, half = one_variable(lambda x: -x)
    k = torch.linspace(0, 12, 500, dtype=torch.float64)
    found = characteristic(k)
    torch.testing.assert_close(found.real, (-0.5 * k**2).exp(), rtol=0, atol=1e-9)
    assert found.imag.abs().max() < 1e-9 and half == 8.0
