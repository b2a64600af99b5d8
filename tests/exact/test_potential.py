"""The local potential that a learned score starts from, against exact answers."""

import math

import pytest
import torch

from workflow.config import ScoreConfig
from workflow.dynamics import build_system
from workflow.scores.closed_form import SpectralGaussian, fit_gaussian, gaussian_from
from workflow.scores.layers import refined, restricted
from workflow.scores.neural import NeuralScore, WhitenedScore, with_parameters
from workflow.scores.potential import LocalPotential
from workflow.scores.settling import settled

SMALL = {"network": {"channels": 4, "residual_blocks": 1}}


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def two_wells(samples, *shape):
    """Independent pixels with density exp(-(u^2 - 1)^2), from its cumulative distribution."""
    u = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    mass = (-((u**2 - 1) ** 2)).exp().cumsum(0)
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(samples, 1, *shape, generator=generator, dtype=torch.float64)
    return u[torch.searchsorted(mass / mass[-1], uniform)]


@pytest.fixture(scope="module")
def skewed():
    """Two coupled fields on 8 x 6 that are neither Gaussian nor local, `(sample, 2, 8, 6)`."""
    z = seeded(600, 2, 8, 6)
    x = z + 0.5 * z.roll(1, -1) ** 2 + 0.3 * z.roll(2, -2) * z.flip(1)
    return x * torch.tensor([1.0, 40.0]).reshape(2, 1, 1) + 3.0


@pytest.mark.parametrize("shape", [(8,), (7,), (8, 6), (7, 8), (9, 5)])
def test_a_field_below_nyquist_survives_twice_the_points(shape):
    """refined is trigonometric interpolation, restricted takes it back; Nyquist is dropped."""
    x, axes = seeded(2, 3, *shape), tuple(range(2, 2 + len(shape)))
    modes = torch.fft.fftn(x, dim=axes)
    for axis in axes:
        if x.shape[axis] % 2 == 0:
            modes.narrow(axis, x.shape[axis] // 2, 1).zero_()
    below = torch.fft.ifftn(modes, dim=axes).real
    assert torch.allclose(restricted(refined(x)), below, atol=1e-12)
    every_second = (..., *[slice(None, None, 2)] * len(shape))
    assert torch.allclose(refined(x)[every_second], below, atol=1e-12)


def test_a_product_taken_on_twice_the_points_does_not_alias():
    """cos(3x)^2 on 8 points: 1/2 + cos(6x)/2, of which 8 points can hold the mean alone."""
    x = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    wave = (3 * x).cos().reshape(1, 1, 8)
    assert torch.allclose(restricted(refined(wave) ** 2), torch.full_like(wave, 0.5), atol=1e-12)


def test_the_potential_of_two_wells_is_recovered():
    """Exact score -4 u (u^2 - 1) of every pixel; 256,000 pixels give it to a percent."""
    x = two_wells(4000, 8, 8)
    gaussian = fit_gaussian(x, homogeneous=True)
    scale = gaussian.pixel_variance.sqrt().reshape(-1, 1, 1)
    found = gaussian.potential((x - x.mean()) / scale) / scale
    exact = -4 * x * (x**2 - 1)
    assert (found - exact).square().mean() < 1e-3 * exact.square().mean()
    assert (gaussian(x) - exact).square().mean() > 0.5 * exact.square().mean()
    assert int(gaussian.potential.oversample) == 1


def test_the_potential_of_a_gaussian_field_is_flat():
    """OU field: c_n within 5 standard errors of 0, about (n! / pixels)^(1/2) of the data."""
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    x = system.observe(system.initial(seeded(4000, 8, 8)))
    gaussian = fit_gaussian(x, homogeneous=True)
    # Pixels are correlated over the field: snapshots, not pixels, are independent.
    assert (gaussian.potential.powers.abs() < 5 * math.sqrt(6 / len(x))).all()
    model = WhitenedScore(gaussian, ScoreConfig())
    exact = system.exact_score(x[:500])
    error = (NeuralScore(model)(x[:500]) - exact).square().mean()
    assert error < 0.02 * exact.square().mean()


def test_the_potential_obeys_the_stein_identity_on_its_data(skewed):
    """-< p s^+ > = 1 at every wavenumber and for both fields, to rounding."""
    gaussian = fit_gaussian(skewed, homogeneous=True)
    p = (skewed - skewed.mean((0, 2, 3), keepdim=True)) / gaussian.pixel_variance.sqrt().reshape(
        -1, 1, 1
    )
    modes, scores = (torch.fft.rfftn(v, dim=(2, 3)) for v in (p, gaussian.potential(p)))
    stein = -torch.einsum("bfyx,bgyx->yxfg", scores, modes.conj()) / (len(p) * 48)
    assert torch.allclose(stein, torch.eye(2, dtype=stein.dtype).expand_as(stein), atol=1e-8)


def test_the_information_is_the_variance_of_the_score(skewed):
    """< s_k s_k^+ > of its data, and `equalise` makes it 1 where it is not less."""
    gaussian = fit_gaussian(skewed, homogeneous=True)
    scale = gaussian.pixel_variance.sqrt().reshape(-1, 1, 1)
    s = gaussian.potential((skewed - skewed.mean((0, 2, 3), keepdim=True)) / scale)
    modes = torch.fft.rfftn(s, dim=(2, 3))
    spread = torch.einsum("bfyx,bgyx->fgyx", modes, modes.conj()) / (len(s) * 48)
    assert torch.allclose(spread, gaussian.potential.information, rtol=1e-7, atol=1e-9)
    white = gaussian.equalise(gaussian.score_to_white(s / scale))
    modes = torch.fft.rfftn(white, dim=(2, 3))
    spread = torch.einsum("bfyx,bgyx->yxfg", modes, modes.conj()) / (len(s) * 48)
    assert float(torch.linalg.eigvalsh(spread).max()) < 1 + 1e-7


def test_a_potential_survives_its_state(skewed):
    """The same score, bit for bit, from the tensors that a run keeps."""
    gaussian = fit_gaussian(skewed, homogeneous=True)
    again = gaussian_from(gaussian.state(), (8, 6))
    assert torch.equal(gaussian.potential(skewed[:5]), again.potential(skewed[:5]))
    assert torch.equal(gaussian.equalise(skewed[:5]), again.equalise(skewed[:5]))


def test_the_units_of_a_field_do_not_matter(skewed):
    """Metres or kilometres: the score goes with 1 / units."""
    units = torch.tensor([1.0, 1e3], dtype=torch.float64).reshape(2, 1, 1)
    torch.manual_seed(0)
    one = NeuralScore(WhitenedScore(fit_gaussian(skewed, homogeneous=True), ScoreConfig()))
    other = NeuralScore(
        WhitenedScore(fit_gaussian(skewed * units, homogeneous=True), ScoreConfig())
    )
    assert torch.allclose(one(skewed[:9]), other(skewed[:9] * units) * units, rtol=1e-4, atol=1e-5)


def test_an_untrained_network_is_the_score_of_the_potential():
    """At vanishing noise; so agreement with the potential is never skill of the network."""
    x = two_wells(500, 8, 8)
    gaussian = fit_gaussian(x, homogeneous=True)
    config = ScoreConfig.model_validate({"process": {"sigma_min": 1e-3, "sigma_max": 1e-3}})
    scale = gaussian.pixel_variance.sqrt().reshape(-1, 1, 1)
    expected = gaussian.potential((x - x.mean()) / scale) / scale
    found = NeuralScore(WhitenedScore(gaussian, config))(x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_settled_network_obeys_the_stein_identity(skewed):
    """Whatever else it has learned: -< x~ s~^+ > = 1 at every wavenumber, <s~> = 0, to rounding."""
    gaussian = fit_gaussian(skewed, homogeneous=True)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(SMALL)).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    score = NeuralScore(settled(model, skewed))
    with torch.no_grad():
        white = gaussian.whiten(skewed), gaussian.score_to_white(score(skewed))
    x, s = (torch.fft.rfftn(v, dim=(2, 3)) for v in white)
    stein = -torch.einsum("bfyx,bgyx->yxfg", s, x.conj()) / (len(x) * 48)
    assert torch.allclose(stein, torch.eye(2, dtype=stein.dtype).expand_as(stein), atol=1e-7)
    assert white[1].mean((0, 2, 3)).abs().max() < 1e-7


def test_a_settled_network_survives_its_tensors(skewed):
    """Parameters and the linear map are all there is: the same score, bit for bit."""
    gaussian = fit_gaussian(skewed, homogeneous=True)
    torch.manual_seed(0)
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(SMALL))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    one = settled(model, skewed)
    kept = dict(one.named_parameters()), one.network.linear.weight
    other = WhitenedScore(gaussian, ScoreConfig.model_validate(SMALL))
    other = with_parameters(other, kept[0], linear=kept[1])
    assert torch.equal(NeuralScore(one)(skewed[:5]), NeuralScore(other)(skewed[:5]))
    assert not torch.equal(NeuralScore(one)(skewed[:5]), NeuralScore(model)(skewed[:5]))


def repeated(x):
    """Every pixel four times, as of data on a finer grid than they were made on."""
    return x.float().repeat_interleave(2, 2).repeat_interleave(2, 3)


def along_x(x):
    """The same in every row."""
    return x[:, :, :1].expand(x.shape).contiguous()


@pytest.mark.parametrize("still", [repeated, along_x])
def test_settling_leaves_alone_waves_that_never_vary(still):
    """Rounding is all they have: dividing by its square made scores of 1e9."""
    x = still(seeded(500, 1, 8, 8))
    torch.manual_seed(0)
    model = WhitenedScore(fit_gaussian(x, homogeneous=True), ScoreConfig.model_validate(SMALL))
    for parameter in model.double().parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    before, after = (NeuralScore(m)(x.double()) for m in (model, settled(model, x)))
    assert bool(torch.isfinite(after).all())
    assert float((after - before).std()) < float(before.std())


def test_settling_leaves_alone_what_has_no_linear_map():
    """Without space there is none."""
    x = seeded(100, 2)
    model = WhitenedScore(fit_gaussian(x, homogeneous=True), ScoreConfig.model_validate(SMALL))
    assert torch.equal(NeuralScore(settled(model, x))(x), NeuralScore(model)(x))


def test_a_mode_that_never_varies_does_not_stop_the_fit():
    """A field without its shortest waves: finite, and the Stein identity on the others."""
    x = seeded(200, 1, 8, 8)
    modes = torch.fft.rfft2(x)
    modes[..., 3:] = 0
    x = torch.fft.irfft2(modes, s=(8, 8))
    potential = LocalPotential.fit((x - x.mean()) / x.std())
    assert all(bool(torch.isfinite(v).all()) for v in potential.state().values())
    white = SpectralGaussian.fit(x).with_potential(x).equalise(x)
    assert bool(torch.isfinite(white).all())
