"""The mixture system: its law, its score with and without noise, its memory."""

import math

import pytest
import torch

from workflow.dynamics import build_system
from workflow.interfaces import HasNoisedScore, UserError
from workflow.scores.extrapolation import Extrapolated


def seeded(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SYSTEM = build_system({"kind": "mixture"})


def test_draws_have_the_moments_of_the_mixture():
    """Mean and second moments of 40000 draws, 4 standard errors."""
    x = SYSTEM.observe(SYSTEM.initial(seeded(40000, 3)))
    w, m, s = (
        torch.tensor(v, dtype=torch.float64) for v in (SYSTEM.weights, SYSTEM.means, SYSTEM.spreads)
    )
    mean = w @ m
    second = torch.einsum("k,ki,kj->ij", w, m, m) + (w @ s**2) * torch.eye(2)
    assert ((x.mean(0) - mean).abs() < 4 * x.std(0) / 200).all()
    products = x[:, :, None] * x[:, None, :]
    assert ((products.mean(0) - second).abs() < 4 * products.std(0) / 200).all()


def test_a_state_is_kept_with_the_probability_of_its_memory():
    """Over two steps of half the memory, exp(-1), 4 standard errors of 20000."""
    system = build_system({"kind": "mixture", "dt": 0.5, "memory": 1.0})
    state = first = system.initial(seeded(20000, 3))
    for step in range(2):
        state = system.step(state, seeded(20000, 4, seed=step + 2))
    kept = (state["x"] == first["x"]).all(1).double().mean()
    assert abs(float(kept) - math.exp(-1)) < 4 * math.sqrt(0.25 / 20000)


def test_the_score_is_the_gradient_of_the_log_density_at_any_noise():
    """Also of coloured noise, by automatic differentiation."""
    assert isinstance(SYSTEM, HasNoisedScore)
    x = seeded(20, 2).requires_grad_()
    for covariance in (torch.zeros(2, 2), torch.tensor([[0.5, 0.2], [0.2, 0.3]])):
        log_p = SYSTEM.log_density(x, covariance)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
        assert torch.allclose(SYSTEM.noised_score(x, covariance), gradient)
    assert torch.equal(SYSTEM.exact_score(x), SYSTEM.noised_score(x, torch.zeros(2, 2)))


def test_the_density_is_normalised():
    axis = torch.linspace(-3, 3, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = SYSTEM.log_density(grid, torch.zeros(2, 2)).exp().sum() * 0.01**2
    assert float(total) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": [1.0]}, "one of each"),
        ({"weights": [0.0, 0.0, 0.0, 0.0]}, "not all 0"),
        ({"spreads": [1.0, 1.0, 0.0, 1.0]}, "spreads > 0"),
    ],
)
def test_impossible_mixtures_are_refused(change, told):
    with pytest.raises(UserError, match=told):
        build_system({"kind": "mixture", **change})


ON_A_LINE = build_system(
    {
        "kind": "mixture",
        "weights": [0.35, 0.45, 0.2],
        "means": [[-1.2], [0.6], [1.8]],
        "spreads": [0.25, 0.4, 0.15],
    }
)


def test_smoothing_biases_a_score_and_extrapolation_takes_most_of_that_out():
    """Relative L2 bias at sigma = .05 by quadrature, and after one step of Richardson."""
    x = torch.linspace(-4, 4, 40001, dtype=torch.float64)[:, None]
    none = torch.zeros(1, 1, dtype=torch.float64)
    density = ON_A_LINE.log_density(x, none).exp()[:, None]
    exact = ON_A_LINE.exact_score(x)

    def at(x, sigma):
        return ON_A_LINE.noised_score(x, torch.full((1, 1), sigma**2, dtype=torch.float64))

    def bias(score):
        return float(((density * (score - exact) ** 2).sum() / (density * exact**2).sum()).sqrt())

    assert bias(at(x, 0.05)) == pytest.approx(0.0761, rel=0.01)
    assert bias(Extrapolated(at, 0.05)(x)) == pytest.approx(0.0132, rel=0.01)


def test_exact_scores_obey_the_stein_identity():
    """-E[x s] = 1 for draws in the plane and on a line, 4 standard errors."""
    for system in (SYSTEM, ON_A_LINE):
        x = system.observe(system.initial(seeded(40000, *system.initial_shape)))
        products = -x[:, :, None] * system.exact_score(x)[:, None, :]
        error = products.mean(0) - torch.eye(x.shape[1], dtype=x.dtype)
        assert (error.abs() < 4 * products.std(0) / 200).all()
