"""Scores of some fields given others, against Gaussians whose conditional density is known."""

import pytest
import torch

from workflow.config import ScoreConfig
from workflow.dynamics import build_system
from workflow.dynamics.engines import stepper
from workflow.dynamics.linear import Linear
from workflow.interfaces import Field, Saved, UserError
from workflow.scores.closed_form import ExactScore, fit_gaussian, gaussian_from
from workflow.scores.conditional import ConditionalExact, ConditionalGaussian
from workflow.scores.neural import NeuralScore, WhitenedScore
from workflow.scores.settling import settled
from workflow.scores.training import Trainer

SMALL = {"network": {"channels": 8, "residual_blocks": 1}}
GAINS = (1.5, -0.7)
"""Of the given fields in the one that has a score."""


def normals(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def waves(count, n=8):
    """x = smoothed z + gains on the two given fields, which correlate; and the exact score."""
    shape = (count, 1, n, n)
    first, other = normals(1, *shape), normals(2, *shape)
    given = torch.cat([first.roll(1, -1) + 0.5 * other, 3.0 * other], dim=1)
    own = torch.fft.rfft2(normals(3, *shape)) * (1 + torch.fft.rfftfreq(n))
    told = GAINS[0] * given[:, :1].roll(1, -2) + GAINS[1] * given[:, 1:]
    x = torch.fft.irfft2(own, s=(n, n)) + told
    inverse = torch.fft.rfft2(x - told) / (1 + torch.fft.rfftfreq(n)) ** 2
    return torch.cat([x, given], dim=1), -torch.fft.irfft2(inverse, s=(n, n))


@pytest.fixture(scope="module")
def homogeneous():
    return waves(4000)


@pytest.fixture(scope="module")
def plain():
    """Numbers without space: x1, x2 of a linear system given x3, and the exact score."""
    system, count = Linear(), 20_000
    x = system.initial(normals(5, count, 3))["x"]
    c = system.covariance()
    gain = c[:2, 2:] / c[2, 2]
    left = c[:2, :2] - gain @ c[2:, :2]
    return x, -(x[:, :2] - x[:, 2:] @ gain.T) @ torch.linalg.inv(left)


def untrained(gaussian):
    """A network with parameters that nothing has chosen."""
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(SMALL)).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def relative_square(found, exact):
    return float((found - exact).square().sum() / exact.square().sum())


def test_gaussian_given_fields(homogeneous):
    """The error is that of a fit: parameters of a mode over independent samples of it."""
    x, exact = homogeneous
    gaussian = fit_gaussian(x, homogeneous=True, given=2)
    found = ConditionalGaussian(gaussian)(x)
    assert found.shape == exact.shape
    # 2 for the variance and 1 for each gain, as many samples as snapshots; twice that at most.
    assert relative_square(found, exact) < 2 * 4 / 4000
    alone = gaussian(x[:, :1])
    assert relative_square(alone, exact) > 0.3


def test_gaussian_given_numbers(plain):
    x, exact = plain
    gaussian = fit_gaussian(x, homogeneous=False, given=1)
    assert relative_square(ConditionalGaussian(gaussian)(x), exact) < 2 * 4 / 20_000
    assert relative_square(gaussian(x[:, :2]), exact) > 0.01


def test_exact_score_given_numbers(plain):
    x, exact = plain
    found = ConditionalExact(ExactScore(Linear()), (0, 1, 2), 2)(x)
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-10)


def test_fields_of_an_exact_score_may_stand_in_any_order(plain):
    """x3 and x1 given x2."""
    x = plain[0][:10]
    found = ConditionalExact(ExactScore(Linear()), (2, 0, 1), 2)(x[:, [2, 0, 1]])
    assert torch.equal(found, Linear().exact_score(x)[:, [2, 0]])


@pytest.mark.parametrize("case", ["homogeneous", "plain"])
def test_an_untrained_network_has_the_gaussian_conditional_score(case, request):
    x, exact = request.getfixturevalue(case)
    given = x.shape[1] - exact.shape[1]
    gaussian = fit_gaussian(x, homogeneous=case == "homogeneous", given=given)
    config = ScoreConfig.model_validate({"process": {"sigma_min": 1e-3, "sigma_max": 1e-3}})
    found = NeuralScore(WhitenedScore(gaussian, config).double())(x[:2000])
    assert relative_square(found, exact[:2000]) < 5e-3


def test_a_fit_survives_its_tensors(homogeneous):
    x, _ = homogeneous
    gaussian = fit_gaussian(x, homogeneous=True, given=2)
    other = gaussian_from(gaussian.state(), (8, 8))
    assert torch.equal(ConditionalGaussian(other)(x[:5]), ConditionalGaussian(gaussian)(x[:5]))


@pytest.mark.parametrize("still", [False, True])
def test_a_settled_network_obeys_both_identities(homogeneous, still):
    """-< x s^+ > = 1, < y s^+ > = 0 and < s > = 0, whatever its other parameters are.

    Also where waves of a given field never vary.
    """
    x = homogeneous[0][:1000].clone()
    if still:
        x[:, 1:] = torch.fft.irfft2(torch.fft.rfft2(x[:, 1:])[..., :3], s=(8, 8))
    gaussian = fit_gaussian(x, homogeneous=True, given=2)
    model = untrained(gaussian)
    with torch.no_grad():
        s = NeuralScore(settled(model, x))(x)
    mean = torch.cat([gaussian.mean, gaussian.joint.mean[1:]])
    left, modes = torch.fft.rfft2(s), torch.fft.rfft2(x - mean[:, None, None])
    stein = -torch.einsum("bfyx,bgyx->fgyx", left, modes.conj()) / (len(x) * 64)
    expected = torch.zeros_like(stein)
    expected[0, 0] = 1
    assert torch.allclose(stein, expected, atol=1e-6)
    assert float(s.mean().abs()) < 1e-7


def test_given_fields_may_follow_from_each_other():
    """y and 2 y: the linear map is solved for without them standing in each other's way."""
    one, _ = waves(1000)
    x = torch.cat([one[:, :2], 2 * one[:, 1:2]], dim=1)
    gaussian = fit_gaussian(x, homogeneous=True, given=2)
    model = untrained(gaussian)
    with torch.no_grad():
        found = settled(model, x)
        s = NeuralScore(found)(x)
    assert float(found.network.linear.weight.abs().max()) < 100
    modes = torch.fft.rfft2(x[:, 1:] - gaussian.joint.mean[1:, None, None])
    products = torch.einsum("bfyx,bgyx->fgyx", torch.fft.rfft2(s), modes.conj()) / (len(x) * 64)
    assert float(products.abs().max()) < 1e-5


def test_training_learns_what_a_gaussian_cannot(homogeneous):
    """x = y^2 / 2 + noise: the conditional score is that of the noise, and linear in neither."""
    y = homogeneous[0][:, 1:2].float()
    x = 0.5 * y**2 + normals(9, *y.shape).float()
    exact = -(x - 0.5 * y**2)
    both = torch.cat([x, y], dim=1)
    train = {"steps": 600, "global_batch": 32, "learning_rate": 5e-3, "ranks": 1}
    config = ScoreConfig.model_validate({**SMALL, "train": train})
    gaussian = fit_gaussian(both, homogeneous=True, given=1)
    trainer = Trainer(both, gaussian, config=config, seed=3)
    before = relative_square(ConditionalGaussian(gaussian)(both), exact)
    for _ in range(600):
        trainer.advance()
    score = NeuralScore(settled(trainer.averaged(), both))
    with torch.no_grad():
        after = relative_square(score(both[:1000]), exact[:1000])
    assert before > 0.3
    assert after < 0.1 * before


def test_forcing_of_turbulence_is_what_moves_it():
    """The saved forcing is the difference that a step makes with and without it, to O(dt)."""
    system = build_system({"kind": "navier_stokes", "grid": 16, "save_forcing": True, "dt": 1e-6})
    calm = system.model_copy(update={"forcing": 0.0})
    state = system.initial(normals(1, 3, *system.initial_shape))
    nothing = torch.zeros(3, *system.noise_shape, dtype=torch.float64)
    forcing = system.observe(state)[:, 1]
    moved = system.step(state, nothing)["zeta_hat"] - calm.step(state, nothing)["zeta_hat"]
    rate = torch.fft.irfft2(moved, s=(16, 16)) / system.dt
    assert torch.allclose(rate, forcing, atol=1e-3 * float(forcing.std()))


@pytest.mark.parametrize("engine", ["torch", "lanes"])
def test_forcing_is_seen_by_every_engine(engine):
    system = build_system({"kind": "navier_stokes", "grid": 16, "save_forcing": True})
    state = system.initial(normals(1, 3, *system.initial_shape).float())
    way = stepper(engine, system, state, seed=1, members=range(3), stream=1)
    way.advance(0, 2)
    assert torch.allclose(way.observe(), system.observe(way.state()), atol=1e-6)
    assert way.observe().shape == (3, 2, 16, 16)


def test_fields_that_cannot_be_kicked_are_given():
    moving, driven = Field("a", "a"), Field("f", "f", kicked=False)
    saved = Saved((driven, moving), (), False).conditioned(())
    assert (saved.fields, saved.given, saved.all_fields) == ((moving,), (driven,), (moving, driven))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["c"], "score.given has 'c', which is not saved; choose from a, b"),
        (["b", "a"], "score.given=a, b: all fields are given and none is left to kick"),
    ],
)
def test_what_cannot_be_given_is_refused(names, message):
    saved = Saved((Field("a", "a"), Field("b", "b")), (), False)
    with pytest.raises(UserError, match=message):
        saved.conditioned(names)
