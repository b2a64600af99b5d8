"""Path KL in nats of learned scores: integrals over noise, gains, and what is left."""

import math

import pytest
import torch

from workflow.config import ScoreConfig
from workflow.diffusion.action import Nats
from workflow.dynamics import build_system
from workflow.figures.nats import nats
from workflow.figures.words import findings
from workflow.scores.closed_form import DenseGaussian, SpectralGaussian
from workflow.scores.nats import Band, contributions
from workflow.scores.neural import WhitenedScore

WIDE = ScoreConfig.model_validate({"process": {"kind": "ve", "sigma_min": 0.02, "sigma_max": 20.0}})


def seeded(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x, sigma):
    return -x / (1 + sigma**2)


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.02), (0.02, 0.03), (0.01, 20.0)])
def test_a_constant_error_costs_half_of_the_largest_variance(low, high):
    """int_0^high d(sigma^2) / 2 = high^2 / 2, whatever the smallest level."""
    band = Band.of(low, high)
    assert sum(band.weights) == pytest.approx(0.5 * high**2, rel=1e-4)
    assert band.levels[0] == low and len(band.per_e_fold) == len(band.levels) - 1


def test_the_nats_of_a_gaussian_by_which_another_is_noised_are_exact():
    """S for variance c instead of 1: int dsigma^2 / 2 (1/(1+s2) - 1/(c+s2))^2 (1+s2)."""
    model = WhitenedScore(DenseGaussian.fit(seeded(1000, 2)), WIDE)
    band, c = Band.of(0.02, 20.0), 1.5
    x, z = seeded(2000, 2, seed=2), seeded(len(band.levels), 2000, 2, seed=3)
    scores = {"gaussian": lambda x, s: -x / (c + s**2), "exact": gaussian}
    found = contributions(scores, model, x, z, band)
    left = Nats.of(found["left"][0].sum(0))
    # KL(N(0, 1) || N(0, c)) per number, as the prior then differs by nothing.
    expected = 2 * 0.5 * (1 / c - 1 + math.log(c))
    assert abs(left.value - expected) < 4 * left.standard_error < 0.1 * expected
    gain = Nats.of(found["gain"][1].sum(0))
    assert abs(gain.value - expected) < 4 * gain.standard_error < 0.5 * expected
    assert found["gain"][0].abs().max() == 0 and found["left"][1].abs().max() == 0


def test_an_untrained_score_gains_nothing_on_the_gaussian():
    """And makes no entropy, at any level and mode of a field."""
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    x = system.observe(system.initial(seeded(500, 8, 8)))
    whitening = SpectralGaussian.fit(x)
    model, band = WhitenedScore(whitening, WIDE), Band.of(0.02, 20.0)
    z = seeded(len(band.levels), 20, 1, 8, 8).float()
    scores = {"gaussian": gaussian, "neural": lambda x, s: model(x, s.float().reshape(1))}
    with torch.no_grad():
        found = contributions(scores, model, whitening.whiten(x[:20]).float(), z, band)
    assert found["beyond"].shape == (2, len(band.levels), 1, 8, 8)
    assert found["beyond"].abs().max() < 1e-6
    assert found["gain"].sum(1).abs().max() < 1e-2
    assert found["left"].isnan().all()


def test_modes_add_up_to_the_whole():
    """Parseval: entropy by mode of a local error on a field is that of its pixels."""
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    x = system.observe(system.initial(seeded(500, 8, 8)))
    model, band = WhitenedScore(SpectralGaussian.fit(x), WIDE), Band.of(0.5, 0.5)
    white, z = seeded(30, 1, 8, 8, seed=4), seeded(1, 30, 1, 8, 8, seed=5)
    scores = {"gaussian": gaussian, "neural": lambda x, s: gaussian(x, s) + 0.1 * x**3}
    found = contributions(scores, model, white, z, band)
    both = torch.cat([white + 0.5 * z[0], white - 0.5 * z[0]])
    expected = 0.5 * 0.5**2 * (0.1 * both**3).square().sum() / 2
    assert float(found["beyond"][1].sum()) == pytest.approx(float(expected), rel=1e-9)


def numbers(sigma, known):
    each = {"gain": 2.0, "gain_standard_error": 0.1}
    left = {"left": 0.25, "left_standard_error": 0.01} if known else {}
    curve = {key: [value] * len(sigma) for key, value in (each | left).items()}
    return {
        "estimators": {"neural": {"stein_error_raw": 0.01, "against": {}}},
        "path_kl": {
            "of": "score",
            "band": [0.0, 20.0],
            "noise_in": "standard deviations",
            "snapshots": 64,
            "variables": ["u"],
            "estimators": {"gaussian": left, "neural": each | left},
            "curve": {"sigma": sigma, "gaussian": left and curve, "neural": curve},
            "beyond_gaussian": {"neural": [[0.1, 0.2, 0.0]], "modes": [1, 4, 3]},
        },
    }


@pytest.mark.parametrize("sigma", [[], [0.1, 1.0, 10.0]])
@pytest.mark.parametrize("known", [True, False])
def test_nats_are_drawn_and_told_with_their_errors(sigma, known, tmp_path):
    """With noise of one level there is no curve; without truth there is no rest."""
    summary = numbers(sigma, known)
    name, caption = nats(summary, tmp_path)
    assert (tmp_path / name).stat().st_size > 5000
    told = " ".join(findings(summary))
    assert "2.00 ± 0.10 nats a snapshot better" in told
    assert ("0.250 ± 0.010 nats of path KL are left" in told) == known
    assert ("neural 0.250 ± 0.010 nats left" in caption) == known
    assert ("area under a curve" in caption) == bool(sigma)


def test_without_nats_nothing_is_drawn_or_told(tmp_path):
    summary = numbers([], known=False)
    del summary["path_kl"]
    assert nats(summary, tmp_path) is None
    assert "nats" not in " ".join(findings(summary))
