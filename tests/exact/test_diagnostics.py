"""Diagnostics pass on exact answers and fail on wrong ones: both are needed of a check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workflow.config import ScoreConfig
from workflow.dynamics.allen_cahn import AllenCahn
from workflow.dynamics.grid import Grid
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from workflow.interfaces import UserError
from workflow.responses.checks import worst
from workflow.responses.diagnostics import (
    identity_checks,
    slope_check,
    unit_means,
)
from workflow.responses.langevin import langevin_checks
from workflow.responses.parameters import parameter_change
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.extrapolation import Extrapolated
from workflow.scores.neural import NeuralScore, WhitenedScore

torch.set_num_threads(1)

UNITS = 16


def generator(seed):
    return torch.Generator().manual_seed(seed)


def white(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def hamiltonian_states(system, *, chains, keep, seed, spinup=60, leaps=8, h=0.2):
    """Independent of the dynamics: states of exp(-V) `(keep, chain, 1, *shape)`."""
    draws, grid = generator(seed), Grid(system.grid, system.dim)
    stiffness = 2 * system.alpha + system.kappa * grid.k2 * (1 + grid.k2)
    width = (grid.points * system.epsilon**2 / (2 * stiffness)).sqrt()

    def normal():
        return torch.randn(chains, 1, *system.shape, dtype=torch.float64, generator=draws)

    def coloured(u):
        return grid.ifft(width * grid.fft(u))

    x, kept = 0.5 * normal(), []
    for sweep in range(spinup + keep):
        momentum = normal()
        y, p = x, momentum + 0.5 * h * coloured(system.exact_score(x))
        for leap in range(leaps):
            y = y + h * coloured(p)
            part = h if leap < leaps - 1 else 0.5 * h
            p = p + part * coloured(system.exact_score(y))
        gain = system.potential(x) - system.potential(y)
        gain += 0.5 * (momentum.square() - p.square()).flatten(1).sum(1)
        accepted = torch.rand(chains, dtype=torch.float64, generator=draws).log() < gain
        x = torch.where(accepted.reshape(-1, 1, 1, 1), y, x)
        if sweep >= spinup:
            kept.append(x)
    return torch.stack(kept)


@pytest.fixture(scope="module")
def linear():
    """The Ornstein-Uhlenbeck field, exact draws `(unit, sample, 1, 8, 8)`."""
    system = OrnsteinUhlenbeck(grid=8)
    x = system.observe(system.initial(white(UNITS * 100, 8, 8)))
    return system, x.reshape(UNITS, 100, 1, 8, 8)


@pytest.fixture(scope="module")
def bistable():
    """A mild Allen-Cahn field; a unit is four chains."""
    system = AllenCahn(grid=8, alpha=0.5)
    x = hamiltonian_states(system, chains=64, keep=30, seed=3)
    return system, x.transpose(0, 1).reshape(UNITS, -1, 1, 8, 8)


def all_checks(system, x, score):
    mean = x.mean((0, 1, 3, 4))
    units = [
        unit_means(
            part,
            score(part),
            mean=mean,
            homogeneous=True,
            drift=system.drift,
            seed=(5, u),
        )
        for u, part in enumerate(x)
    ]
    means = {name: np.stack([unit[name] for unit in units]) for name in units[0]}
    return {check.name: check for check in identity_checks(means)}, means


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


MEAN, FIRST, STEIN, RMS, SECOND, THIRD, PRODUCTION = (
    "<s> = 0",
    "-<x s> = 1",
    "-<x s> = 1, worst of the wavenumbers",
    "-<x s> = 1, root mean square over wavenumbers",
    "-<x^2 s> = 2 <x>",
    "-<x^3 s> = 3 <x^2>",
    "<F . s> = -<div F>",
)


@pytest.mark.parametrize("field", ["linear", "bistable"])
def test_exact_scores_pass_all_identities(field, request):
    """Integration by parts, within 4 standard errors; and the error bars are small enough."""
    system, x = request.getfixturevalue(field)
    checks, _ = all_checks(system, x, system.exact_score)
    assert set(checks) == {MEAN, FIRST, STEIN, RMS, SECOND, THIRD, PRODUCTION}
    assert not failed(checks)
    assert checks[THIRD].standard_error < 0.05 * checks[THIRD].expected
    assert checks[PRODUCTION].standard_error < 0.05 * abs(checks[PRODUCTION].expected)


@pytest.mark.parametrize("field", ["linear", "bistable"])
@pytest.mark.parametrize("factor", [-1.0, 0.8, 1.2])
def test_a_score_of_wrong_sign_or_scale_fails(field, factor, request):
    """All but the zero ones; one wavenumber alone may be too noisy for a fifth."""
    system, x = request.getfixturevalue(field)
    checks, _ = all_checks(system, x, lambda y: factor * system.exact_score(y))
    assert failed(checks) - {STEIN} == {FIRST, RMS, THIRD, PRODUCTION}
    assert abs(checks[RMS].value - abs(1 - factor)) < 4 * checks[RMS].standard_error


def test_the_gaussian_score_of_a_bistable_field_fails_where_it_must(bistable):
    """Fitted to the covariance it passes every linear identity; the cubic one finds it out."""
    system, x = bistable
    gaussian = SpectralGaussian.fit(x.flatten(0, 1))
    checks, _ = all_checks(system, x, gaussian)
    assert checks[STEIN].passed and checks[RMS].passed
    assert not checks[THIRD].passed


def test_a_score_with_an_offset_fails_its_mean(linear):
    """<s> = 0 to within its own error bar."""
    system, x = linear
    checks, _ = all_checks(system, x, lambda y: system.exact_score(y) + 0.3)
    assert not checks[MEAN].passed


def test_a_score_blind_to_one_mode_fails_the_worst_wavenumber(linear):
    """The mean over pixels hardly sees it, the worst wavenumber does."""
    system, x = linear
    grid = Grid(8)
    seen = torch.ones_like(grid.k2)
    seen[2, 1] = 0.6
    checks, _ = all_checks(system, x, lambda y: grid.ifft(seen * grid.fft(system.exact_score(y))))
    assert not checks[STEIN].passed and checks[FIRST].passed


def test_a_conserved_mean_is_left_out_and_told(linear):
    """Of a wavenumber that never varies there is only rounding, which no score can be right on."""
    system, x = linear
    still = (x - x.mean((-2, -1), keepdim=True)).float()
    score = SpectralGaussian.fit(still.flatten(0, 1))
    means = [
        unit_means(part, score(part), mean=score.mean, homogeneous=True, seed=u)
        for u, part in enumerate(still)
    ]
    checks = identity_checks({name: np.stack([m[name] for m in means]) for name in means[0]})
    found = {check.name: check for check in checks}
    assert found[STEIN].passed and found[RMS].passed
    assert found[STEIN].note == "1 without variance left out"
    kept = langevin_checks(score, still[:, :30], fields=["u"], homogeneous=True, seed=4)
    assert [check for check in kept if not check.passed] == []


def test_two_fields_without_symmetry_are_checked_as_a_matrix():
    """Correlated Gaussian pair without space: s = -C^-1 x passes, its diagonal fails."""
    c = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
    x = (white(UNITS * 500, 2) @ torch.linalg.cholesky(c).T).reshape(UNITS, 500, 2)

    def checks(precision):
        units = [
            unit_means(part, -part @ precision, mean=torch.zeros(2), homogeneous=False)
            for part in x
        ]
        means = {name: np.stack([unit[name] for unit in units]) for name in units[0]}
        return {check.name: check for check in identity_checks(means)}

    assert not failed(checks(torch.linalg.inv(c)))
    wrong = checks(torch.diag(1 / c.diagonal()))
    assert not wrong["-<x s> = 1, worst of the components"].passed
    half_blind = checks(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    assert half_blind["-<x s> = 1, worst of the components"].z == math.inf


def test_values_that_are_not_finite_fail():
    """A hole in the data must not pass for want of an error bar."""
    values = np.ones((4, 3))
    values[2, 1] = np.nan
    assert worst("x", values, 1.0).passed is False


def test_rounding_of_symmetric_entries_is_no_deviation(linear):
    """float32 leaves 1e-8 in the imaginary part of real modes: neither worst nor wrong."""
    system, x = linear
    checks, _ = all_checks(system, x.float(), lambda y: system.exact_score(y))
    assert checks[STEIN].passed and abs(checks[STEIN].value) > 1e-3


# Score and dynamics at short lags


def lagged(x, s, lags):
    """Raw R `(unit, lag, 1, 1, 8, 8)` of runs `(unit, time, 1, 8, 8)`."""
    a, b = torch.fft.fft2(x), torch.fft.fft2(s)
    r = [
        -torch.fft.ifft2((a[:, lag:] * b[:, : b.shape[1] - lag].conj()).mean(1)).real / 64
        for lag in range(lags)
    ]
    return torch.stack(r, 1)[:, :, None].numpy()


def slope(r, means, *, step):
    square = means["jacobian_square"]
    return slope_check(r, means["jacobian"], square=square, step=step, space=2)


def run(system, *, times, seed):
    state = system.initial(white(UNITS, *system.initial_shape, seed=seed))
    draws, saved = generator(seed + 1), []
    for _ in range(times):
        normals = torch.randn(UNITS, *system.noise_shape, dtype=torch.float64, generator=draws)
        state = system.step(state, normals)
        saved.append(system.observe(state))
    return torch.stack(saved, 1)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (0.8, False), (-1.0, False)])
def test_the_slope_of_the_response_is_the_mean_jacobian(factor, passes):
    """OU: R_k'(0) = -r_k, within the error of 16 members."""
    system = OrnsteinUhlenbeck(grid=8, dt=1.0)
    x = run(system, times=600, seed=31)
    _, means = all_checks(system, x[:, ::20], system.exact_score)
    jacobian = np.fft.rfft2(means["jacobian"].mean(0)[0, 0])
    np.testing.assert_allclose(jacobian, system.linear(Grid(8)).numpy(), atol=1e-8)
    r = lagged(x, factor * system.exact_score(x.flatten(0, 1)).reshape(x.shape), 4)
    check = slope(r, means, step=1.0)
    assert check.passed is passes and "resolves 40 of 40" in check.note


def test_a_coarse_lag_step_is_told_and_not_judged():
    """Rates from 0.009 against lags of 100: differences of R know nothing of its slope at 0."""
    system = OrnsteinUhlenbeck(grid=8, dt=100.0)
    x = run(system, times=20, seed=31)
    _, means = all_checks(system, x, system.exact_score)
    r = lagged(x, system.exact_score(x.flatten(0, 1)).reshape(x.shape), 4)
    check = slope(r, means, step=100.0)
    assert check.passed is None and "needs a lag step of" in check.note


def test_states_that_answer_faster_than_the_mean_are_not_judged(bistable):
    """In a well the field relaxes fast, though the mean Jacobian of both wells is slow."""
    system, x = bistable
    _, means = all_checks(system, x, system.exact_score)
    still = np.zeros((UNITS, 4, 1, 1, 8, 8))
    mean = means["jacobian"].mean(0, keepdims=True)
    slow = means | {"jacobian_square": (mean**2).sum((1, 3, 4))}
    assert slope(still, slow, step=4.0).passed is not None
    assert slope(still, means, step=4.0).passed is None


# Conjugate variables of changed parameters


@pytest.mark.parametrize("parameter", ["alpha", "kappa", "advection", "epsilon"])
def test_conjugates_of_changed_parameters_have_mean_zero(bistable, parameter):
    """<B> = 0 for any perturbation; here far from Gaussian, with the noise among them."""
    system, x = bistable
    change = parameter_change(system, parameter)
    b = torch.stack([change.conjugate(part, system.exact_score, probes=4) for part in x])
    wrong = torch.stack(
        [change.conjugate(part, lambda y: 1.2 * system.exact_score(y), probes=4) for part in x]
    )
    check = worst("<B> = 0", b.mean(1, keepdim=True).numpy(), 0.0)
    assert check.passed and check.standard_error < 0.1 * b.std().item()
    # A shift does not change the density: its B is zero with any scale of the score.
    if parameter != "advection":
        assert not worst("<B> = 0", wrong.mean(1, keepdim=True).numpy(), 0.0).passed


# Langevin


@pytest.mark.parametrize("field", ["linear", "bistable"])
def test_the_exact_score_keeps_its_data(field, request):
    """Variance, kurtosis, quantiles and spectrum, state by state."""
    system, x = request.getfixturevalue(field)
    checks = langevin_checks(system.exact_score, x[:, ::2], fields=["u"], homogeneous=True, seed=8)
    assert len(checks) == 5 and all(check.passed for check in checks)


@pytest.mark.parametrize("field", ["linear", "bistable"])
@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_score_of_wrong_scale_does_not_keep_its_data(field, factor, request):
    """Fast modes take the variance of the wrong score within the run."""
    system, x = request.getfixturevalue(field)
    checks = langevin_checks(
        lambda y: factor * system.exact_score(y), x[:, ::2], fields=["u"], homogeneous=True, seed=8
    )
    assert not checks[0].passed and not checks[3].passed


def test_the_gaussian_score_does_not_keep_a_bistable_field(bistable):
    """It keeps the variance, and makes the pixels Gaussian."""
    system, x = bistable
    gaussian = SpectralGaussian.fit(x.flatten(0, 1))
    checks = langevin_checks(gaussian, x[:, ::2], fields=["u"], homogeneous=True, seed=8)
    assert checks[0].passed and not checks[1].passed


def test_a_score_of_wrong_sign_runs_away(linear):
    """Told in words, and as a failure."""
    system, x = linear
    (check,) = langevin_checks(
        lambda y: -system.exact_score(y),
        x[:, :4],
        fields=["u"],
        homogeneous=True,
        steps=1500,
    )
    assert check.passed is False and "wrong sign" in check.note


def test_a_correlated_pair_keeps_its_data_without_symmetry():
    """No space: preconditioned with the whole matrix."""
    c = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    x = (white(UNITS * 800, 2) @ torch.linalg.cholesky(c).T).reshape(UNITS, 800, 2)
    precision = torch.linalg.inv(c)
    options = {"fields": ["x", "y"], "homogeneous": False, "seed": 2}
    checks = langevin_checks(lambda y: -y @ precision, x, **options)
    assert len(checks) == 6 and all(check.passed for check in checks)
    checks = langevin_checks(lambda y: -1.3 * y @ precision, x, **options)
    assert not checks[0].passed and not checks[3].passed


def test_a_learned_score_is_extrapolated_from_the_levels_it_was_trained_at(linear):
    """An untrained network is the Gaussian score at every level; one level is not enough."""
    _, x = linear
    x = x[0].float()
    gaussian = SpectralGaussian.fit(x)
    config = ScoreConfig.model_validate({"process": {"sigma_min": 0.1, "sigma_max": 0.2}})
    learned = NeuralScore(WhitenedScore(gaussian, config))
    expected = gaussian(x) * (1 + 3 * 0.01) / (1 + 3 * 0.01 + 2 * 0.01**2)
    torch.testing.assert_close(Extrapolated.of(learned)(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="raise sigma_max to 0.03"):
        Extrapolated.of(NeuralScore(WhitenedScore(gaussian, ScoreConfig())))
