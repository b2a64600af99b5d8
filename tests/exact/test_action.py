"""The action, its bounds and its family of dynamics against a mixture with everything known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from workflow.diffusion.action import (
    Exploding,
    Nats,
    Nodes,
    Preserving,
    control_cost,
    denoising_lagrangian,
    divergence,
    lagrangian,
    noise_nodes,
    noised,
    path_kl,
    path_kl_gain,
)
from workflow.diffusion.entropy import entropy_by_mode, entropy_production
from workflow.diffusion.gaussian import antithetic_loss
from workflow.diffusion.likelihood import elbo, log_density, prior_mismatch, reverse
from workflow.dynamics import build_system
from workflow.dynamics.grid import Grid
from workflow.scores.closed_form import SpectralGaussian

WEIGHTS, MEANS, SPREADS = (0.35, 0.45, 0.2), (-1.2, 0.6, 1.8), (0.25, 0.4, 0.15)
SCHEDULE = Preserving(0.1, 16.0)
GRID = torch.linspace(-8, 8, 8001, dtype=torch.float64)
CELL = float(GRID[1] - GRID[0])


def seeded(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """A one-dimensional mixture noised by a schedule."""

    schedule: object = SCHEDULE

    def components(self, t):
        a, v = self.schedule.scale(t), self.schedule.variance(t)
        means, spreads = (torch.tensor(c, dtype=torch.float64) for c in (MEANS, SPREADS))
        return a * means, a**2 * spreads**2 + v

    def log_p(self, y, t):
        means, variances = self.components(t)
        each = -0.5 * (y[..., None] - means) ** 2 / variances
        weights = torch.tensor(WEIGHTS, dtype=torch.float64).log()
        return (each - 0.5 * (2 * math.pi * variances).log() + weights).logsumexp(-1)

    def score(self, y, t):
        means, variances = self.components(t)
        each = -0.5 * (y[..., None] - means) ** 2 / variances
        weights = torch.tensor(WEIGHTS, dtype=torch.float64).log() - 0.5 * variances.log()
        share = (each + weights).softmax(-1)
        return (share * (means - y[..., None]) / variances).sum(-1)

    def sample(self, count, seed=5):
        rng = np.random.default_rng(seed)
        which = rng.choice(3, count, p=WEIGHTS)
        x = np.asarray(MEANS)[which] + np.asarray(SPREADS)[which] * rng.standard_normal(count)
        return torch.from_numpy(x)[:, None]

    def mean_over(self, of, t):
        """E of a function of y `(point, 1)` under p_t, by quadrature."""
        return float((of(GRID[:, None]) * self.log_p(GRID, t).exp()).sum() * CELL)


MIXTURE = Mixture()


def wrong(amplitude):
    """The score with an error that is not a constant."""
    return lambda y, t: MIXTURE.score(y, t) + amplitude * (1 + 0.5 * torch.sin(2 * y))


def at(t):
    return torch.tensor(float(t), dtype=torch.float64)


def action_of(score, nodes):
    """A[S] by quadrature in y and t."""
    return float(
        nodes.integrate(
            lambda t: at(MIXTURE.mean_over(lambda y: lagrangian(score, y, t, SCHEDULE), t))[None]
        ).sum()
    )


def test_excess_action_is_the_likelihood_weighted_score_error():
    """ACT-2: (A[c] - A[0]) / c^2 = 1/2 int g^2 E|d|^2, to 0.1 %, for three amplitudes."""
    nodes = noise_nodes(SCHEDULE, 12)
    expected = float(
        nodes.integrate(
            lambda t: at(
                MIXTURE.mean_over(
                    lambda y: control_cost(1 + 0.5 * torch.sin(2 * y), t, SCHEDULE), t
                )
            )[None]
        ).sum()
    )
    least = action_of(MIXTURE.score, nodes)
    for amplitude in (0.1, 0.5, 1.0):
        excess = action_of(wrong(amplitude), nodes) - least
        assert excess / amplitude**2 == pytest.approx(expected, rel=1e-3)


def entropy_at(time):
    t = at(time)
    return -MIXTURE.mean_over(lambda y: MIXTURE.log_p(y[:, 0], t), t)


def test_the_least_action_is_the_entropy_that_noise_adds():
    """ACT-3: A[grad log p] = H(p_tmin) - H(p_tmax), to 1e-3."""
    low, high = map(entropy_at, (SCHEDULE.t_min, SCHEDULE.t_max))
    assert action_of(MIXTURE.score, noise_nodes(SCHEDULE, 24)) == pytest.approx(
        low - high, abs=1e-3
    )


def test_both_lagrangians_have_the_same_mean():
    """At one time: with divergence and without, 4 standard errors of 20000 paths."""
    x, z, t = MIXTURE.sample(20000), seeded(20000, 1), at(0.2)
    with_divergence = lagrangian(wrong(0.5), noised(SCHEDULE, x, z, t), t, SCHEDULE)
    without = denoising_lagrangian(wrong(0.5), x, z, t, SCHEDULE)
    difference = Nats.of(with_divergence - without)
    assert abs(difference.value) < 4 * difference.standard_error < 0.2


def test_the_denoising_lagrangian_is_antithetic_score_matching_weighted_by_the_rate():
    """Per number; the rest does not depend on the score."""
    x, z, t = MIXTURE.sample(50), seeded(50, 1), at(0.3)
    spread = SCHEDULE.variance(t).sqrt()
    losses, found = [], []
    for score in (MIXTURE.score, wrong(0.7)):
        plus, minus = (score(noised(SCHEDULE, x, n, t), t) for n in (z, -z))
        losses.append(antithetic_loss(plus, minus, z, spread))
        found.append(denoising_lagrangian(score, x, z, t, SCHEDULE).mean())
    rate = SCHEDULE.rate(t)
    assert float(found[1] - found[0]) == pytest.approx(
        float(0.5 * rate * (losses[1] - losses[0])), rel=1e-9
    )


def test_the_elbo_of_the_exact_score_is_the_log_density():
    """ACT-1: 300 points, 1000 draws with both signs: mean of bound and log p to 0.02 nat."""
    x, nodes = MIXTURE.sample(300), noise_nodes(SCHEDULE, 32)
    bound = torch.zeros(300, dtype=torch.float64)
    for draw in range(10):
        z = seeded(32, 300 * 100, 1, seed=draw)
        found = elbo(MIXTURE.score, x.repeat(100, 1), z, SCHEDULE, nodes)
        bound += found.reshape(100, 300).mean(0) / 10
    exact = MIXTURE.log_p(x[:, 0], at(SCHEDULE.t_min))
    assert abs(float((bound - exact).mean())) < 0.02
    # Also point by point, but for its smoothing by the noise at t_min.
    assert float((bound - exact).abs().median()) < 0.03


def test_the_bound_falls_short_by_the_path_kl():
    """Mean ELBO of the exact score less that of a wrong one, with the same noise."""
    x, nodes = MIXTURE.sample(20000), noise_nodes(SCHEDULE, 24)
    z = seeded(24, 20000, 1)
    bounds = [elbo(score, x, z, SCHEDULE, nodes) for score in (MIXTURE.score, wrong(0.5))]
    excess = path_kl(wrong(0.5), MIXTURE.score, x, z, SCHEDULE, nodes).sum(0)
    gain = path_kl_gain(MIXTURE.score, wrong(0.5), x, z, SCHEDULE, nodes).sum(0)
    assert torch.allclose(bounds[0] - bounds[1], gain)
    difference = Nats.of(gain - excess)
    assert abs(difference.value) < 4 * difference.standard_error < 0.05


@pytest.mark.parametrize("amplitude", [0.25, 0.5, 1.0])
def test_bounds_are_in_order(amplitude):
    """KL <= path KL + prior mismatch and TV <= (KL / 2)^(1/2), for the reverse diffusion.

    The score is wrong by a constant; densities are of 40000 samples in bins.
    """
    count = 40000
    start = seeded(count, 1, seed=3)
    made = reverse(
        lambda y, t: MIXTURE.score(y, t) + amplitude,
        start,
        SCHEDULE,
        steps=60,
        eta=1.0,
        generator=torch.Generator().manual_seed(4),
    )
    edges = torch.linspace(-3, 4, 71, dtype=torch.float64)
    q = torch.histogram(made[:, 0], edges).hist / count
    centres = 0.5 * (edges[1:] + edges[:-1])
    p = MIXTURE.log_p(centres, at(SCHEDULE.t_min)).exp() * 0.1
    known = (p > 1e-4) & (q > 0)
    kl = float((p[known] * (p[known] / q[known]).log()).sum())
    tv = float(0.5 * (p - q).abs().sum())
    x, nodes = MIXTURE.sample(4000), noise_nodes(SCHEDULE, 24)
    path = path_kl(
        lambda y, t: MIXTURE.score(y, t) + amplitude,
        MIXTURE.score,
        x,
        seeded(24, 4000, 1),
        SCHEDULE,
        nodes,
    )
    bound = float(path.sum(0).mean() + prior_mismatch(x, SCHEDULE).mean())
    # Bins and samples bring about 1e-3 to KL and 2e-2 to TV.
    assert kl < bound + 0.005
    assert 2 * tv**2 < bound + 0.005
    # And the bound is not void: sigma-weighted constants, int beta / 2 c^2.
    assert bound == pytest.approx(0.5 * amplitude**2 * 8.05, rel=0.02)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 50), (0.3, 50), (1.0, 50), (2.0, 100)])
def test_the_whole_family_of_dynamics_has_the_same_marginal(eta, steps):
    """ACT-4: Kolmogorov-Smirnov distance of 50000 samples <= 0.009."""
    t_max = at(SCHEDULE.t_max)
    start = noised(SCHEDULE, MIXTURE.sample(50000), seeded(50000, 1, seed=8), t_max)
    made = reverse(
        MIXTURE.score,
        start,
        SCHEDULE,
        steps=steps,
        eta=eta,
        generator=torch.Generator().manual_seed(9),
    )

    def distribution(y):
        means, variances = MIXTURE.components(at(SCHEDULE.t_min))
        each = norm.cdf((np.asarray(y)[:, None] - means.numpy()) / variances.sqrt().numpy())
        return each @ np.asarray(WEIGHTS)

    assert kstest(made[:, 0].numpy(), distribution).statistic <= 0.009


def test_entropy_made_is_what_the_data_lose_of_their_distance_from_the_prior():
    """ACT-5: int g^2 / 2 E|S - grad log p_eq|^2 = KL_0 - KL_T, to 1e-3, by quadrature."""

    def kl(t):
        prior = lambda y: -0.5 * (y**2 + math.log(2 * math.pi))  # noqa: E731
        return MIXTURE.mean_over(lambda y: MIXTURE.log_p(y[:, 0], t) - prior(y[:, 0]), t)

    nodes = noise_nodes(SCHEDULE, 24)
    made = nodes.integrate(
        lambda t: at(
            MIXTURE.mean_over(lambda y: control_cost(MIXTURE.score(y, t) + y, t, SCHEDULE), t)
        )[None]
    ).sum()
    expected = kl(at(SCHEDULE.t_min)) - kl(at(SCHEDULE.t_max))
    assert float(made) == pytest.approx(expected, abs=1e-3)
    # And from samples, 4 standard errors.
    x = MIXTURE.sample(20000)
    sampled = Nats.of(
        entropy_production(MIXTURE.score, x, seeded(24, 20000, 1), SCHEDULE, nodes).sum(0)
    )
    assert abs(sampled.value - expected) < 4 * sampled.standard_error < 0.05


def test_nats_do_not_depend_on_the_pace_of_the_noise():
    """Path KL and entropy of preserving and of exploding noise over the same sigmas."""
    ends = torch.tensor([SCHEDULE.t_min, SCHEDULE.t_max], dtype=torch.float64)
    low, high = (SCHEDULE.variance(ends).sqrt() / SCHEDULE.scale(ends)).tolist()
    other = Exploding(low, high)
    exploded = Mixture(other)
    x, z = MIXTURE.sample(500), seeded(16, 500, 1)
    same = [
        entropy_production(m.score, x, z, m.schedule, noise_nodes(m.schedule, 16)).sum(0)
        for m in (MIXTURE, exploded)
    ]
    assert torch.allclose(same[0], same[1], rtol=1e-9)


def test_the_probability_flow_gives_the_log_density():
    """ACT-7: 6 points, to 0.02 nat; and the same with Hutchinson's probes in one dimension."""
    x = torch.tensor([[-1.6], [-1.2], [-0.3], [0.6], [1.8], [2.2]], dtype=torch.float64)
    exact = MIXTURE.log_p(x[:, 0], at(SCHEDULE.t_min))
    found = log_density(MIXTURE.score, x, SCHEDULE, steps=40)
    assert float((found - exact).abs().max()) <= 0.02
    signs = torch.ones(1, 6, 1, dtype=torch.float64)
    assert torch.allclose(log_density(MIXTURE.score, x, SCHEDULE, steps=40, probes=signs), found)


def test_the_divergence_of_a_linear_field_is_its_trace():
    """Exact by directions; by 4000 probes to 4 standard errors."""
    matrix = seeded(6, 6)
    y = seeded(3, 2, 3, seed=2)
    field = lambda v: (v.reshape(len(v), 6) @ matrix.T).reshape(v.shape)  # noqa: E731
    value, exact = divergence(field, y)
    assert torch.allclose(value, field(y))
    assert torch.allclose(exact, matrix.trace().expand(3))
    probes = seeded(4000, 3, 2, 3, seed=3).sign()
    spread = math.sqrt(2 * float(matrix.square().sum()) / 4000)
    assert float((divergence(field, y, probes=probes)[1] - exact).abs().max()) < 4 * spread


def test_a_gaussian_field_has_no_negentropy():
    """ACT-8: 0 +- 1e-3 per site, by total and by mode, whitened by its own sample."""
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    x = system.observe(system.initial(seeded(20000, 8, 8)))
    whitening = SpectralGaussian.fit(x)
    exact = system.variance(Grid(8, 2, torch.float64)) / whitening.spectrum[0]
    schedule = Exploding(0.02, 40.0)

    def score(y, t):
        modes = torch.fft.rfft2(y) / (exact + t**2)
        return -torch.fft.irfft2(modes, s=(8, 8))

    white, nodes = whitening.whiten(x[:200]), noise_nodes(schedule, 16)
    z = seeded(16, 200, 1, 8, 8, seed=4)
    total = entropy_production(score, white, z, schedule, nodes).sum(0).mean()
    assert abs(float(total)) / 64 < 1e-3
    by_mode = entropy_by_mode(score, white, z, schedule, nodes).sum(0)
    assert by_mode.shape == (1, 8, 8)
    assert float(by_mode.sum()) == pytest.approx(float(total), rel=1e-9)


def test_units_that_go_together_make_one_number():
    """Standard error of the means of units; every number four times is one number."""
    values = seeded(100)
    apart = Nats.of(values)
    together = Nats.of(values.repeat_interleave(4), unit=4)
    assert together.value == pytest.approx(apart.value)
    assert together.standard_error == pytest.approx(apart.standard_error)


def test_nodes_integrate_a_polynomial_in_ln_sigma_exactly():
    """int dlnsigma (ln sigma)^3 with four nodes; g^2 / 2v turns dt into it."""
    schedule = Exploding(0.5, 2.0)
    nodes = noise_nodes(schedule, 4)
    found = nodes.integrate(lambda t: (t.log() ** 2 / t)[None]).sum()
    expected = (math.log(2) ** 3 - math.log(0.5) ** 3) / 3
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert isinstance(nodes, Nodes)
