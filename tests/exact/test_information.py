"""The Fisher information that a score measures, and what noise and loss are made of it."""

from dataclasses import replace

import pytest
import torch

from workflow.config import ScoreConfig
from workflow.scores.closed_form import SpectralGaussian, fit_gaussian, gaussian_from
from workflow.scores.conditional import split
from workflow.scores.information import information_of, information_sums
from workflow.scores.neural import WhitenedScore
from workflow.scores.training import Batch, Trainer

NARROW = {"process": {"sigma_min": 1e-3, "sigma_max": 1e-3}, "network": {"channels": 8}}


def normals(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_wells(count, n=8):
    large = normals(1, count, 1, 1, 1).sign()
    return large + 0.3 * normals(2, count, 1, n, n)


def slaved(count, noise=0.1):
    """Eight points on a line; the wave k = 2 is the square of k = 1, but for little noise."""
    modes = torch.fft.rfft(normals(3, count, 1, 8))
    modes[..., 2] = modes[..., 1] ** 2 / 8**0.5 + noise * modes[..., 2]
    return torch.fft.irfft(modes, n=8)


def measured(model, x):
    """J of snapshots, which noise and levels of a batch are no part of."""
    fields, given = split(model.whitening, x)
    white = model.whitening.whiten(fields)
    batch = Batch(white, white, torch.ones(len(x)), given=given)
    return information_of(information_sums(model, batch), model)


def test_gaussian_data_have_unit_information():
    x = normals(1, 4000, 1, 8, 8)
    gaussian = SpectralGaussian.fit(x)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(NARROW)).double()
    found = measured(model, x)
    assert found.shape == (1, 1, 8, 5)
    assert torch.allclose(found, torch.ones_like(found), atol=1e-5)


def test_an_untrained_score_has_the_information_of_its_potential():
    """And the same equaliser, whichever of them says it."""
    x = two_wells(4000)
    gaussian = fit_gaussian(x, homogeneous=True)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(NARROW)).double()
    found = measured(model, x)
    told = replace(gaussian, information=found)
    assert float(found[0, 0, 0, 0]) > 5
    some = normals(5, 3, 1, 8, 8)
    assert torch.allclose(told.equalise(some), gaussian.equalise(some), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("fields", [1, 2])
def test_equalised_scores_have_unit_variance_in_every_mode(fields):
    x = torch.cat([two_wells(2000), two_wells(2000).roll(1, -1) + normals(9, 2000, 1, 8, 8)], 1)
    gaussian = fit_gaussian(x[:, :fields], homogeneous=True)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(NARROW)).double()
    white = gaussian.whiten(x[:, :fields])
    with torch.no_grad():
        s = model(white, torch.full((1,), 1e-3, dtype=torch.float64))
    # Twice the least information, so that no mode is bounded from below by 1.
    told = replace(gaussian, information=2 * measured(model, x[:, :fields]))
    modes = torch.fft.rfft2(told.equalise(s), norm="ortho")
    found = 2 * torch.einsum("bfyx,bgyx->yxfg", modes, modes.conj()) / len(x)
    one = torch.eye(fields, dtype=found.dtype).expand_as(found)
    assert torch.allclose(found, one, atol=1e-6)


def test_it_survives_its_tensors():
    gaussian = fit_gaussian(two_wells(200), homogeneous=True)
    told = replace(gaussian, information=3 * torch.ones(1, 1, 8, 5, dtype=torch.float64))
    again = gaussian_from(told.state(), (8, 8))
    some = normals(5, 3, 1, 8, 8)
    assert torch.equal(again.equalise(some), told.equalise(some))
    assert torch.allclose(again.equalise(some), some / 3**0.5)


def test_a_short_training_finds_waves_that_follow_others():
    """Where they are known to 0.1 of their spread the information is up to 100; the potential
    does not know, a pilot does in part."""
    x = slaved(4000).float()
    gaussian = fit_gaussian(x, homogeneous=True)
    train = {"steps": 300, "global_batch": 32, "learning_rate": 5e-3, "ranks": 1}
    config = ScoreConfig.model_validate({"network": {"channels": 16}, "train": train})
    trainer = Trainer(x, gaussian, config=config, seed=1)
    before = measured(trainer.model, x[:1000])[0, 0]
    for _ in range(300):
        trainer.advance()
    after = measured(trainer.averaged(), x[:1000])[0, 0]
    assert float(before[2]) < 2
    assert float(after[2]) > 3 * float(before[2])


def test_sums_of_parts_are_those_of_the_whole():
    x = torch.cat([two_wells(600), normals(4, 600, 1, 8, 8)], dim=1)
    gaussian = fit_gaussian(x, homogeneous=True)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(NARROW)).double()
    white = gaussian.whiten(x)
    batch = Batch(white, white, torch.ones(600))
    parts = [information_sums(model, batch.part(slice(i, i + 150))) for i in range(0, 600, 150)]
    whole = information_sums(model, batch)
    assert float(whole[0]) == 600
    assert torch.allclose(sum(parts), whole)
    assert information_of(whole, model).shape == (2, 2, 8, 5)


def test_what_is_given_narrows_the_density():
    """x = y + 0.3 noise: J of x given y is C / 0.09, the loss of the Gaussian score -1 in it."""
    y = normals(1, 4000, 1, 8, 8)
    both = torch.cat([y + 0.3 * normals(2, 4000, 1, 8, 8), y], dim=1)
    gaussian = fit_gaussian(both, homogeneous=True, given=1)
    some = normals(5, 3, 1, 8, 8)
    expected = some / (1.09 / 0.09) ** 0.5
    assert torch.allclose(gaussian.equalise(some), expected, rtol=0.1, atol=0.02)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(NARROW)).double()
    found = measured(model, both)
    assert float(found.mean()) == pytest.approx(1.09 / 0.09, rel=0.02)
