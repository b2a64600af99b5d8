"""What a network sees beside the field: the flow of a vorticity, against its definition."""

import pytest
import torch
import yaml

from workflow.config import ScoreConfig
from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.scores.closed_form import SpectralGaussian, fit_gaussian
from workflow.scores.neural import NeuralScore, WhitenedScore
from workflow.scores.settling import settled
from workflow.scores.training import Trainer
from workflow.scores.views import Velocity

CONFIG = {
    "network": {"channels": 8, "residual_blocks": 1, "views": ["velocity"]},
    "train": {"steps": 20, "global_batch": 8, "ranks": 1},
}


def normals(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(count, ny, nx, fields=1):
    """Fields without their Nyquist waves."""
    modes = torch.fft.rfft2(normals(1, count, fields, ny, nx))
    modes[..., ny // 2, :] = 0
    modes[..., nx // 2] = 0
    return torch.fft.irfft2(modes, s=(ny, nx))


def test_a_velocity_has_its_vorticity_and_no_divergence():
    """dv/dx - du/dy = zeta of unit spread, du/dx + dv/dy = 0, by Fourier derivatives."""
    zeta = smooth(500, 8, 12)
    zeta = zeta - zeta.mean((2, 3), keepdim=True)
    gaussian = SpectralGaussian.fit(zeta)
    view = Velocity(gaussian)
    flow = view(zeta)
    assert flow.shape == (500, 2, 8, 12)
    # Of a homogeneous field; the mean of zeta^2 alone would not tell that components differ.
    assert torch.allclose(flow.square().mean((0, 2, 3)), torch.ones(2).double(), atol=1e-4)
    modes = torch.fft.rfft2(flow)
    ky, kx = torch.fft.fftfreq(8)[:, None], torch.fft.rfftfreq(12)
    units = view.symbol[0].abs().amax((-2, -1)).double()
    bare = torch.stack([(ky / (kx**2 + ky**2)), (kx / (kx**2 + ky**2))])
    bare[:, 0, 0] = 0
    bare[0, 4], bare[1, :, 6] = 0, 0
    u, v = (modes[:, i] * float(bare[i].abs().max() / units[i]) for i in range(2))
    assert torch.allclose(1j * kx * u + 1j * ky * v, torch.zeros(()).to(u), atol=1e-4)
    vorticity = torch.fft.irfft2(1j * kx * v - 1j * ky * u, s=(8, 12))
    assert torch.allclose(vorticity, zeta[:, 0], atol=1e-4)


def test_every_field_has_a_flow_of_its_own():
    zeta = smooth(200, 8, 8, fields=2)
    both = Velocity(SpectralGaussian.fit(zeta))(zeta)
    for field in range(2):
        one = zeta[:, field : field + 1]
        alone = Velocity(SpectralGaussian.fit(one))(one)
        assert torch.allclose(both[:, 2 * field : 2 * field + 2], alone, atol=1e-6)


def test_advection_by_hand():
    """Of zeta = a sin(x) + b cos(2 y): u . grad zeta = 3/2 a b cos(x) sin(2 y), in other units."""
    y, x = torch.meshgrid(*[torch.arange(8).double() * (torch.pi / 4)] * 2, indexing="ij")
    sizes = ((1.0, 0.5), (0.3, 2.0))
    zeta = torch.stack([a * x.sin() + b * (2 * y).cos() for a, b in sizes])[:, None]
    view = Velocity(SpectralGaussian.fit(zeta))
    found, again, third = view.advection(zeta).unbind(1)
    expected = torch.stack([1.5 * a * b * x.cos() * (2 * y).sin() for a, b in sizes])
    units = float((found * expected).sum() / expected.square().sum())
    assert units > 0.1
    assert torch.allclose(found, units * expected, atol=1e-5)
    # Moved by its own flow for a time .1, in the same units.
    moved, step = zeta.clone(), 1e-3

    def slope(now):
        return -view.deviation * view.advection(now)[:, :1]

    for _ in range(100):
        k1 = slope(moved)
        k2 = slope(moved + 0.5 * step * k1)
        k3 = slope(moved + 0.5 * step * k2)
        moved = moved + step * (k1 + 2 * k2 + 2 * k3 + slope(moved + step * k3)) / 6
    cubic = 0.1**3 / 6 * third
    left = (moved - zeta)[:, 0] / view.deviation + 0.1 * found - 0.5 * 0.1**2 * again + cubic
    assert float(left.abs().max()) < 0.1 * float(cubic.abs().max())


def test_the_advection_is_the_same_in_any_units():
    """All three terms are in standard deviations of the field."""
    x = smooth(20, 8, 8).double()
    one, other = (Velocity(SpectralGaussian.fit(c * x)).advection(c * x) for c in (1.0, 1e6))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_no_wave_of_the_advection_depends_on_the_same_wave_of_the_field():
    """The mean over places of its Jacobian, Fourier transformed: 0, so < s a^+ > = 0."""
    x = normals(3, 1, 1, 8, 6)
    view = Velocity(SpectralGaussian.fit(normals(4, 50, 1, 8, 6))).double()
    jacobian = torch.func.jacrev(lambda one: view.advection(one)[:, :1])(x)[0, 0, :, :, 0, 0]
    places = [(j, i) for j in range(8) for i in range(6)]
    mean = sum(jacobian[:, :, j, i].roll((-j, -i), (0, 1)) for j, i in places) / 48
    assert float(jacobian.abs().max()) > 0.1
    assert float(torch.fft.fft2(mean).abs().max()) < 1e-6


@pytest.mark.parametrize("sigma", [1e-3, 0.3])
def test_a_settled_network_obeys_the_identities_of_the_flow(sigma):
    """< s (u . grad x)^+ > = 0 beside -< x s^+ > = 1, whatever else it has learned."""
    x = smooth(500, 8, 8)
    x = x + 0.5 * x.roll(1, -1) * x.roll(1, -2)
    gaussian = fit_gaussian(x, homogeneous=True)
    process = {"process": {"sigma_min": sigma, "sigma_max": sigma}}
    model = WhitenedScore(gaussian, ScoreConfig.model_validate({**CONFIG, **process})).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        before, after = (NeuralScore(m)(x) for m in (model, settled(model, x)))
    carried = model.views[0].advection(x - gaussian.mean.reshape(-1, 1, 1))[:, :1]

    def products(s, other):
        left, right = torch.fft.rfft2(s), torch.fft.rfft2(other)
        return (left * right.conj()).mean(0) / 64

    assert float(products(before, carried).abs().max()) > 0.01
    assert float(products(after, carried).abs().max()) < 1e-5
    if sigma < 0.1:  # the score of what training starts from is that of the noised density
        one = -products(after, x - gaussian.mean.reshape(-1, 1, 1))
        assert torch.allclose(one, torch.ones_like(one), atol=1e-4)


def test_settling_leaves_a_score_that_is_right():
    """Of Gaussian data: also <s b^+> = -<db/dx>^+ and that of c, far from 0, are found to hold."""
    x = normals(1, 20000, 1, 8, 8)
    x = x + 0.5 * x.roll(1, -1)
    gaussian = SpectralGaussian.fit(x)
    process = {"process": {"sigma_min": 1e-3, "sigma_max": 1e-3}}
    model = WhitenedScore(gaussian, ScoreConfig.model_validate({**CONFIG, **process})).double()
    with torch.no_grad():
        exact, found = gaussian(x), NeuralScore(settled(model, x))(x)
    terms = torch.fft.rfft2(model.views[0].advection(x)[:, 1:])
    products = torch.fft.rfft2(exact) * terms.conj()
    noise = products.abs().square().mean(0).sqrt() / 20000**0.5
    assert float((products.mean(0).abs() / noise.clamp(min=1e-9))[0].max()) > 20
    assert float((found - exact).square().mean() / exact.square().mean()) < 1e-3


def test_a_network_with_views_starts_from_the_same_score_and_learns():
    x = smooth(300, 8, 8).float()
    gaussian = fit_gaussian(x, homogeneous=True)
    trainer = Trainer(x, gaussian, config=ScoreConfig.model_validate(CONFIG), seed=1)
    plain = ScoreConfig.model_validate({**CONFIG, "network": {"channels": 8}})
    start = NeuralScore(WhitenedScore(gaussian, plain))(x[:5])
    assert torch.equal(NeuralScore(trainer.model)(x[:5]), start)
    for _ in range(20):
        trainer.advance()
    assert torch.isfinite(NeuralScore(trainer.averaged())(x[:5])).all()
    assert trainer.model.network.enter.conv.in_channels == 4


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"kind": "linear"}, "of a periodic plane, but the data have no space; remove"),
        (
            {"kind": "ornstein_uhlenbeck", "grid": 8, "dim": 1},
            "of a periodic plane, but the data have 8; remove",
        ),
    ],
)
def test_views_of_no_plane_are_refused(tmp_path, system, message):
    content = {
        "name": "flat",
        "system": system,
        "score": {"network": {"views": ["velocity"]}},
        "response": {"max_lag": 5.0},
    }
    (tmp_path / "flat.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        open_run(str(tmp_path / "flat.yaml"), tmp_path / "runs")
