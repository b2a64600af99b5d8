"""The error budget of samples beside the distance that is measured."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from workflow.diffusion.action import Exploding, Preserving, noised
from workflow.diffusion.budget import early_stopping, moved, total_variation_bound
from workflow.diffusion.likelihood import reverse
from workflow.dynamics import build_system

SCHEDULE = Exploding(0.01, 30.0)
SYSTEM = build_system(
    {
        "kind": "mixture",
        "weights": [0.35, 0.45, 0.2],
        "means": [[-1.2], [0.6], [1.8]],
        "spreads": [0.25, 0.4, 0.15],
    }
)


def seeded(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(y, t):
    return SYSTEM.noised_score(y, (t**2).reshape(1, 1))


def gaussian(y, t):
    return -y / (1 + t**2)


def made(score, start, *, eta=1.0, steps=60):
    generator = torch.Generator().manual_seed(7)
    return reverse(score, start, SCHEDULE, steps=steps, eta=eta, generator=generator)


def first_order(score, truth, start, *, eta=1.0, steps=60):
    generator = torch.Generator().manual_seed(8)
    return moved(score, start, SCHEDULE, steps=steps, eta=eta, generator=generator, exact=truth)


def test_the_shift_by_the_error_of_a_linear_score_is_known_to_all_orders():
    """A constant error moves all samples alike, and first order is all there is."""
    start, error = 30 * seeded(50, 1), 0.3

    def wrong(y, t):
        return gaussian(y, t) + error

    found = first_order(wrong, gaussian, start, eta=0.0, steps=1000)
    shift = made(wrong, start, eta=0.0, steps=1000) - made(gaussian, start, eta=0.0, steps=1000)
    # The two integrators have different orders.
    assert float(shift.mean()) == pytest.approx(found.score, rel=0.01)


def test_a_shift_of_the_prior_fades_with_the_noise():
    """The flow of a Gaussian shrinks by (1 + sigma_min^2)^(1/2) / (1 + sigma_max^2)^(1/2)."""
    found = first_order(gaussian, None, 30 * seeded(50, 1), eta=0.0, steps=1000)
    assert found.start == pytest.approx(math.sqrt((1 + 0.01**2) / (1 + 30**2)), rel=0.01)
    assert found.score is None


@pytest.mark.parametrize("amplitude", [0.02, 0.05, 0.1])
def test_the_first_order_bound_is_above_the_distance_and_not_far(amplitude):
    """W1 of 10000 samples from those of the exact score; 10 % for higher orders, factor 3."""
    start = noised(
        SCHEDULE,
        SYSTEM.observe(SYSTEM.initial(seeded(10000, 2, seed=3))),
        seeded(10000, 1, seed=4),
        torch.tensor(SCHEDULE.t_max, dtype=torch.float64),
    )

    def wrong(y, t):
        return exact(y, t) + amplitude / (1 + t**2) ** 0.5

    distance = wasserstein_distance(
        made(wrong, start)[:, 0].numpy(), made(exact, start)[:, 0].numpy()
    )
    budget = first_order(wrong, exact, start[:2000]).score
    assert distance < 1.1 * budget < 3 * distance


@pytest.mark.parametrize("schedule", [Exploding(0.2, 1.0), Preserving(t_min=0.1)])
def test_early_stopping_bounds_the_distance_of_data_from_data_noised_a_little(schedule):
    """And for exploding noise it is t_min."""
    x, t = 1.5 * seeded(20000, 1), torch.tensor(schedule.t_min, dtype=torch.float64)
    y = noised(schedule, x, seeded(20000, 1, seed=2), t)
    bound = early_stopping(x, schedule).value
    assert float((y - x).abs().mean()) < bound
    assert wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()) < bound
    if isinstance(schedule, Exploding):
        assert bound == pytest.approx(0.2)


def test_pinsker_s_bound_is_a_total_variation():
    assert total_variation_bound(0.02) == pytest.approx(0.1)
    assert total_variation_bound(50.0) == 1.0
    assert total_variation_bound(-1e-9) == 0.0
