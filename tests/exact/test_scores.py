"""Score estimators and their training against exact answers."""

import math

import numpy as np
import pytest
import torch

from workflow.config import ScoreConfig
from workflow.diffusion.gaussian import (
    EDM,
    antithetic_loss,
    denoising_loss,
    split_denoising_loss,
)
from workflow.dynamics import build_system
from workflow.dynamics.grid import Grid
from workflow.scores.batches import Held, draw
from workflow.scores.closed_form import DenseGaussian, SpectralGaussian
from workflow.scores.neural import NeuralScore, WhitenedScore
from workflow.scores.training import Batch, Trainer, batch_loss


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.fixture(scope="module")
def field():
    """Draws of the Ornstein-Uhlenbeck field on 8 x 8, `(sample, 1, 8, 8)`."""
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    return system, system.observe(system.initial(seeded(4000, 8, 8)))


def test_the_gaussian_score_of_gaussian_data_is_the_exact_one(field):
    """Spectrum from 4000 samples: relative error of a mode variance about (2 / n)^(1/2)."""
    system, x = field
    gaussian = SpectralGaussian.fit(x)
    expected = system.variance(Grid(8, 2, torch.float64))
    # Self-conjugate modes are real and have the larger error, (2 / n)^(1/2).
    assert ((gaussian.spectrum[0] / expected - 1).abs() < 5 * math.sqrt(2 / len(x))).all()
    error = (gaussian(x) - system.exact_score(x)).square().mean()
    assert error < 0.01 * system.exact_score(x).square().mean()


def test_the_sample_stein_matrix_of_a_fitted_gaussian_is_the_identity(field):
    """-< x s^T > = I mode by mode, to rounding, on the data it was fitted to."""
    _, x = field
    centred = x - x.mean()
    s = SpectralGaussian.fit(x)(x)
    cross = (torch.fft.fft2(centred) * torch.fft.fft2(s).conj()).mean((0, 1)).real / -64
    assert torch.allclose(cross, torch.ones_like(cross), atol=1e-9)


def test_whitening_has_unit_variance_and_colouring_undoes_it(field):
    """C^(-1/2) and C^(1/2) are inverse to each other."""
    _, x = field
    gaussian = SpectralGaussian.fit(x)
    white = gaussian.whiten(x)
    power = torch.fft.fft2(white).abs().square().mean((0, 1)) / 64
    assert torch.allclose(power, torch.ones_like(power), atol=1e-9)
    assert torch.allclose(gaussian.colour(white) + x.mean(), x, atol=1e-9)


def test_the_dense_gaussian_agrees_with_the_spectral_one_on_homogeneous_data(field):
    """Two ways to the same score, up to the sampling error of 64 x 64 covariances."""
    system, x = field
    dense = DenseGaussian.fit(x)(x)
    exact = system.exact_score(x)
    assert (dense - exact).square().mean() < 0.1 * exact.square().mean()


def test_an_untrained_network_is_the_gaussian_score(field):
    """Zero output: s = -C^-1 x / (1 + sigma^2), so agreement with Gaussian is never skill."""
    _, x = field
    x = x.float()
    gaussian = SpectralGaussian.fit(x)
    model = WhitenedScore(gaussian, ScoreConfig())
    learned = NeuralScore(model)(x[:5])
    sigma = model.process.sigma_min
    assert torch.allclose(learned, gaussian(x[:5]) / (1 + sigma**2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [[], ["velocity"]])
def test_the_network_is_equivariant_under_shifts(field, views):
    """Rolling the field rolls its score: training need not roll what it learns from."""
    _, x = field
    config = ScoreConfig.model_validate({"network": {"views": views}})
    model = WhitenedScore(SpectralGaussian.fit(x), config).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    score = NeuralScore(model)
    rolled = score(x[:2].roll((3, 5), (-2, -1)))
    assert torch.allclose(rolled, score(x[:2]).roll((3, 5), (-2, -1)), atol=1e-10)


def test_the_split_loss_is_the_plain_loss():
    """Mean part + deviation part = denoising score matching, exactly."""
    s, z, sigma = seeded(4, 1, 8, 8), seeded(4, 1, 8, 8).flip(0), torch.full((4,), 0.3)
    mean, deviation = split_denoising_loss(s, z, sigma.double())
    assert float(mean + deviation) == pytest.approx(
        float(denoising_loss(s, z, sigma.double())), abs=1e-6
    )


def test_the_loss_of_a_zero_score_is_one():
    """Checks sign and scale of the noise in the target."""
    z = seeded(2000, 1, 8, 8)
    loss = denoising_loss(torch.zeros_like(z), z, torch.full((2000,), 0.1, dtype=torch.float64))
    assert float(loss) == pytest.approx(1, abs=0.02)


def test_the_loss_of_the_untrained_network_is_that_of_the_gaussian_score(field):
    """On whitened Gaussian data: 1 / (1 + sigma^2) plain, -1 / (1 + sigma^2) antithetic (T17)."""
    x = field[1][:500]
    config = ScoreConfig.model_validate({"network": {"channels": 4, "residual_blocks": 1}})
    model = WhitenedScore(SpectralGaussian.fit(x), config).double().requires_grad_(False)
    z, sigma = seeded(*x.shape).flip(0), torch.full((len(x),), 0.5, dtype=torch.float64)
    white = model.whitening.whiten(x)
    plain = denoising_loss(model(white + 0.5 * z, sigma), z, sigma)
    assert float(plain) == pytest.approx(1 / 1.25, abs=0.02)
    loss = batch_loss(model, Batch(white, z, sigma))
    assert float(loss) == pytest.approx(-1 / 1.25, abs=0.02)


def test_the_antithetic_loss_is_denoising_score_matching_less_a_constant():
    """Term by term: mean |s+- +- z / sigma|^2 - |z|^2 / sigma^2, for any score."""
    plus, minus, z = seeded(3, 1, 4, 4), seeded(3, 1, 4, 4) ** 2, seeded(3, 1, 4, 4).flip(-1)
    sigma = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    wide = sigma.reshape(-1, 1, 1, 1)
    full = 0.5 * ((plus + z / wide) ** 2 + (minus - z / wide) ** 2) - (z / wide) ** 2
    assert float(antithetic_loss(plus, minus, z, sigma)) == pytest.approx(float(full.mean()))


def test_edm_noise_levels_span_their_range():
    """Log-uniform from sigma_min to sigma_max."""
    levels = EDM(0.01, 1.0).noise_levels(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(levels, torch.tensor([0.01, 0.1, 1.0]))


def small_trainer(field):
    _, x = field
    x = x[:200].float()
    config = ScoreConfig.model_validate(
        {"network": {"channels": 4, "residual_blocks": 1}, "train": {"steps": 10}}
    )
    return Trainer(x, SpectralGaussian.fit(x), config=config, seed=3)


def test_a_resumed_training_equals_an_uninterrupted_one_bitwise(field):
    """State after 10 steps = state after 4, saved, restored, and 6 more."""
    whole, first, second = (small_trainer(field) for _ in range(3))
    for _ in range(10):
        whole.advance()
    for _ in range(4):
        first.advance()
    second.restore(first.state())
    for _ in range(6):
        second.advance()
    for key in ("model", "average"):
        for name, value in whole.state()[key].items():
            assert torch.equal(value, second.state()[key][name])


@pytest.mark.parametrize("ranks", [2, 3, 5, 40])
def test_ranks_share_one_batch_whatever_their_number(field, ranks):
    """The shares of all ranks, put together, are the batch of one."""
    source, pairs = Held(field[1][:200].float()), 40
    edges = [rank * pairs // ranks for rank in range(ranks + 1)]

    def share(first, last):
        numbers = {"pairs": pairs, "share": range(first, last), "shape": source.shape}
        drawn = draw(1, 5, **numbers)
        return source.take(5, range(first, last), pairs, drawn.place), drawn

    whole, drawn = share(0, pairs)
    shares = [share(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert torch.equal(whole, torch.cat([x for x, _ in shares]))
    for name in ("place", "level", "z"):
        parts = np.concatenate([getattr(one, name) for _, one in shares])
        assert np.array_equal(getattr(drawn, name), parts)
