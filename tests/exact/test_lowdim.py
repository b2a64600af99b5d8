"""Systems of a few variables against closed forms, quadrature and conservation laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from workflow.dynamics.barotropic import Barotropic
from workflow.dynamics.linear import Linear
from workflow.dynamics.scalar import Scalar
from workflow.dynamics.triad import Triad
from workflow.interfaces import HasDrift, HasExactResponse, HasExactScore
from workflow.responses.correlation import lag_sums, pair_counts
from workflow.scores.closed_form import DenseGaussian

torch.set_num_threads(1)

DOUBLE_WELL = Scalar(dt=0.02, forcing=0.0, linear=1.0, quadratic=0.0, cubic=1.0, sigma=math.sqrt(2))
SYSTEMS = [Linear(), Scalar(), Triad(), Barotropic()]
every_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: type(s).__name__)


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


# All of them


@every_system
def test_a_short_step_is_the_drift_and_the_noise_covariance(system):
    """F and D are what `step` integrates: the responses to parameters are built on both."""
    dt, d = 1e-6, len(system.fields)
    short = system.model_copy(update={"dt": dt})
    x = torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    quiet = torch.zeros(5, *system.noise_shape, dtype=torch.float64)
    base = short.step({"x": x}, quiet)["x"]
    torch.testing.assert_close((base - x) / dt, system.drift(x), rtol=1e-4, atol=1e-4)
    v = torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    covariance = torch.zeros(5, d, d, dtype=torch.float64)
    for place in np.ndindex(*system.noise_shape):
        loud = quiet.clone()
        loud[(slice(None), *place)] = 1.0
        moved = short.step({"x": x}, loud)["x"] - base
        covariance += moved[:, :, None] * moved[:, None, :] / dt
    expected = system.noise_covariance(x, v)
    actual = (covariance @ v[:, :, None])[..., 0]
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


def test_each_tells_what_is_known_of_it():
    """The stages ask for these protocols, and offer what a system has."""
    assert all(isinstance(system, HasDrift) for system in SYSTEMS)
    scores = [type(system) for system in SYSTEMS if isinstance(system, HasExactScore)]
    responses = [type(system) for system in SYSTEMS if isinstance(system, HasExactResponse)]
    assert scores == [Linear, Scalar] and responses == [Linear, Triad]


# Linear


def test_linear_covariance_solves_the_lyapunov_equation():
    """A C + C A^T = Sigma Sigma^T to rounding, and A is not normal."""
    system = Linear()
    a, noise = np.array(system.matrix), np.array(system.noise)
    c = system.covariance().numpy()
    np.testing.assert_allclose(a @ c + c @ a.T, noise @ noise.T, atol=1e-13)
    assert np.abs(a @ a.T - a.T @ a).max() > 0.1


@pytest.mark.parametrize("dt", [0.1, 3.0])
def test_linear_transition_is_exact_for_any_step(dt):
    """A draw of the stationary state stays one, and forgets itself by exp(-A dt)."""
    system = Linear(dt=dt)
    x = run(system, members=200_000, spinup=0, saves=2, every=1, seed=3)
    c = system.covariance()
    first, second = x[:, 0], x[:, 1]
    mean, error = mean_and_error(second[:, :, None] * second[:, None, :])
    assert within(mean, c, error, sigmas=4.5)
    mean, error = mean_and_error(second[:, :, None] * first[:, None, :])
    lagged = torch.from_numpy(expm(-np.array(system.matrix) * dt)) @ c
    assert within(mean, lagged, error, sigmas=4.5)


def test_linear_response_from_decorrelated_pairs_is_the_propagator():
    """R(t) = -<x(t) s(0)^T> = exp(-A t); the Gaussian estimator is the same for a Gaussian state.

    1e5 pairs: the standard error of an entry is about sqrt(C_ii / C_jj) / 316.
    """
    system = Linear(dt=0.5)
    x = run(system, members=100_000, spinup=0, saves=7, every=1, seed=4)
    first = x[:, 0]
    exact, gaussian = system.exact_score(first), DenseGaussian.fit(first)(first)
    truth = system.exact_response(0.5 * torch.arange(7, dtype=torch.float64))
    for score in (exact, gaussian):
        centred, s = x - x.mean(0), score - score.mean(0)
        response = -torch.einsum("mti,mj->tij", centred, s) / len(x)
        assert (response - truth).abs().max() <= 0.03
    difference = (exact - gaussian).std(0) / exact.std(0)
    assert difference.max() < 4 * (3 / 100_000) ** 0.5


def test_a_linear_system_without_a_stationary_state_is_refused():
    """Its covariance would be negative, or its score infinite."""
    with pytest.raises(ValueError, match="eigenvalue of real part -0.1"):
        Linear(matrix=((-0.1, 0.0), (0.0, 1.0)), noise=((1.0, 0.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match="does not reach every direction"):
        Linear(matrix=((1.0, 0.0), (0.0, 1.0)), noise=((1.0,), (0.0,)))
    with pytest.raises(ValueError, match="3 rows; needs 1"):
        Linear(matrix=((1.0,),))


# Scalar


def density(system, *, points=40001, reach=12.0):
    """Grid and normalised exp(integral of the exact score), by quadrature."""
    x = torch.linspace(-reach, reach, points, dtype=torch.float64)
    log_p = torch.cumulative_trapezoid(system.exact_score(x[:, None])[:, 0], x)
    p = torch.cat([log_p.new_zeros(1), log_p])
    p = (p - p.max()).exp()
    return x, p / torch.trapezoid(p, x)


def average(system, observable):
    x, p = density(system)
    return torch.trapezoid(observable(x) * p, x).item()


SCALAR_SENSITIVITIES = {
    "forcing": (1.5827, 2.8835, -0.0366),
    "linear": (1.4417, 4.1642, -0.0664),
    "quadratic": (2.6192, 5.6117, -0.1352),
    "cubic": (-3.0098, -11.3855, 0.2854),
    "sigma": (-0.6932, 0.1334, -0.0584),
}
WELL_SENSITIVITIES = {
    "forcing": (1.0418, 0.0, 0.00988),
    "linear": (0.0, 0.47823, 0.00804),
    "quadratic": (0.6806, 0.0, 0.01484),
    "cubic": (0.0, -0.76001, -0.02135),
}


@pytest.mark.parametrize(
    ("system", "level", "below", "table"),
    [(Scalar(), 2.5, True, SCALAR_SENSITIVITIES), (DOUBLE_WELL, 2.0, False, WELL_SENSITIVITIES)],
    ids=["skewed", "double-well"],
)
def test_stationary_averages_change_with_the_parameters_as_published(system, level, below, table):
    """d<x>, d<x^2> and d P(tail) per parameter, from the density that the score integrates to.

    The quadrature of a step function is exact to a cell, 6e-4 x the density there.
    """
    observables = [
        lambda x: x,
        lambda x: x**2,
        lambda x: ((x <= level) if below else (x > level)).double(),
    ]
    for name, expected in table.items():
        value, h = getattr(system, name), 1e-3
        ends = [system.model_copy(update={name: value + sign * h}) for sign in (1, -1)]
        actual = [(average(ends[0], a) - average(ends[1], a)) / (2 * h) for a in observables]
        assert actual == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_scalar_moments_are_the_published_ones():
    """M, S, skewness and kurtosis of the skewed model; <x^2> and P(x > 2) of the double well."""
    mean = average(Scalar(), lambda x: x)
    deviation = average(Scalar(), lambda x: (x - mean) ** 2) ** 0.5
    third, fourth = (
        average(Scalar(), lambda x, n=n: ((x - mean) / deviation) ** n) for n in (3, 4)
    )
    assert (mean, deviation) == pytest.approx((1.28068, 0.62902), abs=2e-5)
    assert (third, fourth) == pytest.approx((-1.17563, 7.29274), abs=5e-4)
    assert average(DOUBLE_WELL, lambda x: x**2) == pytest.approx(1.041797, abs=1e-6)
    assert average(DOUBLE_WELL, lambda x: (x > 2).double()) == pytest.approx(0.0046680, abs=1e-5)


def test_scalar_runs_have_the_exact_moments_with_the_default_step():
    """The scheme is of weak order 2, so a step of 0.05 is hidden in the noise of this run."""
    z = run(Scalar(), members=4000, spinup=600, saves=40, every=100, seed=5)[..., 0]
    for power in (1, 2, 3):
        mean, error = mean_and_error((z**power).mean(1))
        assert within(mean, average(Scalar(), lambda x, n=power: x**n), error)


LAGS = [0.0, 0.5, 1.0, 2.0, 5.0, 10.0]
EXACT = {
    1: [1, 0.6725, 0.4681, 0.2442, 0.0530, 0.0114],
    2: [0, -0.2458, -0.3084, -0.2819, -0.1356, -0.0509],
    3: [3, 2.3301, 1.9328, 1.4278, 0.7272, 0.3144],
}
GAUSSIAN = {
    1: [1, 0.7401, 0.5623, 0.3465, 0.1197, 0.0406],
    2: [-1.1756, -1.1291, -1.0389, -0.8476, -0.4676, -0.2014],
}


def correlated(a, b, *, max_lag):
    """Centred -<a(t) b(0)> per member, `(member, lag)`."""
    centred = [v - v.mean(dtype=torch.float64).to(v.dtype) for v in (a, b)]
    sums = lag_sums(*(v[:, :, None] for v in centred), max_lag=max_lag)[:, :, 0, 0]
    return -sums / pair_counts(0, a.shape[1], length=a.shape[1], max_lag=max_lag)


def moment_responses(z, score, *, powers, every=0.5):
    """R_n at `LAGS` of standardised z `(member, time)`, with its standard error."""
    max_lag = round(LAGS[-1] / every)
    places = [round(lag / every) for lag in LAGS]
    answers = {}
    for n in powers:
        a = z**n
        per_member = correlated(a, score, max_lag=max_lag)[:, places]
        error = per_member.std(0, ddof=1) / len(per_member) ** 0.5
        answers[n] = per_member.mean(0), error
    return answers


@pytest.mark.parametrize(
    "saves", [500, pytest.param(5000, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_scalar_moment_responses_are_the_fokker_planck_ones(saves):
    """R_n(t) = -<z^n(t) s_z(0)>, n = 1, 2, 3, against an eigen-decomposition of Fokker-Planck.

    The long run has 1e7 correlated samples 0.5 apart and must meet the published accuracy. That
    of the Gaussian n = 2 at lag 0, the skewness of the sample, is only twice its standard error.
    """
    x = run(Scalar(), members=2000, spinup=600, saves=saves, every=10, seed=6)[..., 0]
    mean, deviation = x.mean(), x.std()
    z = (x - mean) / deviation
    score = deviation * Scalar().exact_score(x[..., None])[..., 0]
    for n, (response, error) in moment_responses(z, score, powers=(1, 2, 3)).items():
        # The table has four decimals; the sample mean and deviation enter z.
        assert within(response, np.array(EXACT[n]), error + 5e-4)
        assert saves < 5000 or np.abs(response - EXACT[n]).max() <= {1: 0.02, 2: 0.05, 3: 0.15}[n]
        identity = n * (z ** (n - 1)).mean().item()
        assert within(response[0], identity, error[0])
    for n, (response, error) in moment_responses(z, -z, powers=(1, 2)).items():
        assert within(response, np.array(GAUSSIAN[n]), error + 5e-4)
        assert saves < 5000 or np.abs(response - GAUSSIAN[n]).max() <= {1: 0.02, 2: 0.05}[n]


def test_double_well_sensitivities_follow_from_the_unperturbed_run():
    """d<A>/d theta is the integral over the lag of <A(t) B(0)>, B = -du/dx - u s, u = dF/d theta.

    d P(x > 2) / dF = 0.00988 and d<x> / db = 0.6806 are quadratures of the exact density. Every
    step is saved: the response of a probability falls as the root of the lag at first, and a
    trapezoid of spacing 0.2 was measured to give 0.0115. By symmetry both tails are used.
    """
    x = run(DOUBLE_WELL, members=2000, spinup=400, saves=3000, every=1, seed=12)[..., 0]
    s = DOUBLE_WELL.exact_score(x[..., None])[..., 0]
    cases = [
        (0.5 * ((x > 2).double() - (x < -2).double()), -s, 0.00988),
        (x, -2 * x - x**2 * s, 0.6806),
    ]
    for a, b, expected in cases:
        per_lag = correlated(a, b, max_lag=300)
        per_member = -np.trapezoid(per_lag, dx=DOUBLE_WELL.dt, axis=1)
        error = per_member.std(ddof=1) / len(per_member) ** 0.5
        assert within(per_member.mean(), expected, error)
        assert error <= 0.05 * expected


# Triad


def test_triad_moments_balance():
    """M C + C M^T + <D> = 0 with <D> from the run: linear drift closes on the noise it received.

    <x> = 0 as well: no noise has a mean.
    """
    system = Triad()
    x = run(system, members=2000, spinup=600, saves=50, every=40, seed=7)
    mean, error = mean_and_error(x.mean(1))
    assert within(mean, 0.0, error)
    flat = x.flatten(0, 1)
    d = torch.diag_embed(system.noise_covariance(flat, torch.ones_like(flat))).reshape(*x.shape, 3)
    m = system.drift(torch.eye(3, dtype=torch.float64)).T
    growth = torch.einsum("ij,mtj,mtk->mtik", m, x, x)
    budget = (growth + growth.transpose(-1, -2) + d).mean(1)
    mean, error = mean_and_error(budget)
    assert within(mean, 0.0, error)
    # The same with the noise of the code of the paper, sqrt(2) times larger, would not balance.
    wrong, _ = mean_and_error((growth + growth.transpose(-1, -2) + 2 * d).mean(1))
    assert not within(wrong, 0.0, error, sigmas=20)


def test_triad_is_skewed():
    """State-dependent noise leaves its mark on u1: bursts of tau come with high u1."""
    x = run(Triad(), members=2000, spinup=600, saves=10, every=100, seed=8)
    u1 = x[..., 0]
    mean, error = mean_and_error((u1**3).mean(1))
    assert mean > 20 * error


def outcomes():
    """Kicks of u1 (three points) and tau (two) of one step, with their probabilities.

    They have the moments of normals up to the fifth and the third: enough for weak order 2.
    """
    three = [(-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6)]
    two = [(-1.0, 0.5), (1.0, 0.5)]
    drawn, weights = [], []
    for chosen in itertools.product(three, two, three, two):
        (u_first, tau_first, u_last, tau_last), chances = zip(*chosen, strict=True)
        drawn.append([[u_first, 0.0, tau_first], [u_last, 0.0, tau_last]])
        weights.append(math.prod(chances))
    return torch.tensor(drawn, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def test_triad_noise_splitting_is_of_second_order():
    """<tau^2> after a fixed time from a fixed state, over all outcomes: no sampling noise.

    With an error of C / steps^n the ratio below is 5.4 for n = 2 and 3 for n = 1.
    """
    normals, weights = outcomes()
    mean_squares = []
    for steps in (1, 2, 3):
        system = Triad(dt=0.02 / steps, sigma_u=1.0)
        x, chance = torch.tensor([[-0.3, 0.1, 0.2]], dtype=torch.float64), torch.ones(1).double()
        for _ in range(steps):
            count = len(x)
            x = x.repeat_interleave(len(weights), dim=0)
            x = system.step({"x": x}, normals.repeat(count, 1, 1))["x"]
            chance = chance.repeat_interleave(len(weights)) * weights.repeat(count)
        mean_squares.append((chance * x[:, 2] ** 2).sum().item())
    one, two, three = mean_squares
    assert (one - two) / (two - three) == pytest.approx(5.4, rel=0.01)


def test_triad_mean_response_is_the_propagator():
    """The drift is linear, so the mean of a kicked pair obeys exp(M t) whatever the noise does.

    For kicks of u1 the noise of tau differs between the two runs: its mean is still zero.
    """
    system, members = Triad(), 4000
    start = run(system, members=members, spinup=400, saves=1, every=1, seed=9)[:, 0]
    lag = torch.tensor([2.0], dtype=torch.float64)
    truth = system.exact_response(lag)[0]
    for kicked in range(3):
        kick = torch.zeros(1, 3, dtype=torch.float64)
        kick[0, kicked] = 0.5
        ends = []
        for sign in (1, -1):
            generator = torch.Generator().manual_seed(10)
            state = {"x": start + sign * kick}
            for _ in range(40):
                noise = torch.randn(members, 2, 3, dtype=torch.float64, generator=generator)
                state = system.step(state, noise)
            ends.append(state["x"])
        mean, error = mean_and_error(ends[0] - ends[1])
        assert within(mean, truth[:, kicked], error + 1e-12)
