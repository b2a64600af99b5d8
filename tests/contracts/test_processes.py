"""What every forward process must keep, whatever its noise."""

import math

import pytest
import torch

from workflow.config import ScoreConfig
from workflow.diffusion import PROCESSES, build_process
from workflow.diffusion.sampling import SAMPLERS, USUAL
from workflow.processes import KINDS
from workflow.scores.batches import draw
from workflow.scores.closed_form import DenseGaussian, SpectralGaussian
from workflow.scores.neural import NeuralScore, WhitenedScore
from workflow.scores.training import Batch, Trainer, batch_loss

COUNT = 20_000
LEVELS = (0.2, 0.9)
"""Where between the smallest and the largest level, in logarithms."""


def config_of(kind):
    config = {"process": {"kind": kind}, "network": {"channels": 4, "residual_blocks": 1}}
    config["train"] = {"ranks": 1, "steps": 40, "global_batch": 16, "learning_rate": 2e-3}
    return ScoreConfig.model_validate(config)


@pytest.fixture(params=PROCESSES)
def kind(request):
    return request.param


@pytest.fixture
def process(kind):
    return build_process(config_of(kind).process)


def drawn(process, shape=(1,), pairs=COUNT):
    numbers = draw(
        5,
        0,
        pairs=pairs,
        share=range(pairs),
        shape=shape,
        normals=process.normals,
        uniforms=process.uniforms,
    )
    z, uniform = torch.from_numpy(numbers.z).double(), torch.from_numpy(numbers.uniform)
    return z, uniform, torch.from_numpy(numbers.level)


def test_the_tables_know_the_same_kinds():
    assert set(PROCESSES) == set(KINDS) == set(USUAL)
    assert {kind for one in SAMPLERS.values() for kind in one.kinds} <= set(PROCESSES)
    assert all(kind in SAMPLERS[name].kinds for kind, name in USUAL.items())


def test_the_ordinary_score_comes_first(process):
    assert "score" not in process.heads[1:]


def test_levels_are_between_the_smallest_and_the_largest(process):
    _, _, uniform = drawn(process)
    level = process.noise_levels(uniform)
    assert level.shape == (COUNT,) and 0 < process.sigma_min <= process.sigma_max
    assert float(level.min()) >= process.sigma_min * (1 - 1e-4)
    assert float(level.max()) <= process.sigma_max * (1 + 1e-4)


def test_shapes_are_those_of_states_and_heads(process):
    """Two fields on 4 x 3, one level for each pair."""
    shape = (2, 4, 3)
    z, uniform, first = drawn(process, shape, pairs=6)
    level, x = process.noise_levels(first), torch.randn(6, *shape, dtype=torch.float64)
    noise = process.noise(x, level.double(), z, uniform)
    state, heads = (6, 2 * process.states, 4, 3), (6, 2 * len(process.heads), 4, 3)
    assert noise.mean.shape == noise.shift.shape == state
    assert noise.odd.shape == heads and noise.scale.shape == (6,)
    assert noise.even is None or noise.even.shape == heads
    seen, condition = process.inputs(noise.mean + noise.shift, level.double())
    assert seen.shape == state and condition.shape == (6,) and bool(condition.isfinite().all())
    output = torch.zeros(heads, dtype=torch.float64)
    assert process.interpret(output, noise.mean + noise.shift, level.double()).shape == heads


@pytest.mark.parametrize("where", LEVELS)
def test_the_answer_for_gaussian_data_leaves_nothing_to_regress(kind, where):
    """Zero output is the Gaussian answer: target less answer is uncorrelated with the state.

    Of Gaussian noise; other noise has another answer for Gaussian data.
    """
    process = build_process(config_of(kind).process)
    if process.uniforms:
        pytest.skip(f"{kind}: its noise is not Gaussian")
    z, uniform, _ = drawn(process)
    level = process.sigma_min * (process.sigma_max / process.sigma_min) ** where
    level = torch.full((COUNT,), level, dtype=torch.float64)
    x = torch.randn(COUNT, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    noise = process.noise(x, level, z, uniform)
    state = noise.mean + noise.shift
    answer = process.interpret(torch.zeros_like(noise.odd), state, level)
    left = -noise.odd / noise.scale[:, None] - answer
    seen, _ = process.inputs(state, level)
    for part in seen.T:
        products = left[:, 0] * part
        assert abs(float(products.mean())) < 4 * float(products.std()) / math.sqrt(COUNT)


def test_training_lowers_the_loss_of_fields(kind):
    """40 steps on skewed white noise; the loss is of draws of its own at a middle level."""
    generator = torch.Generator().manual_seed(7)
    white = torch.randn(200, 1, 8, 8, generator=generator)
    x = white + 0.5 * white**2
    trainer = Trainer(x, SpectralGaussian.fit(x), config=config_of(kind), seed=3)
    process = trainer.model.process
    z, uniform, _ = drawn(process, (1, 8, 8), pairs=len(x))
    level = torch.full((len(x),), math.sqrt(process.sigma_min * process.sigma_max))
    batch = Batch(trainer.model.whitening.whiten(x), z.float(), level, uniform)

    def loss():
        with torch.no_grad():
            return float(batch_loss(trainer.model, batch))

    before = loss()
    for _ in range(40):
        trainer.advance()
    assert loss() < before


def test_a_restart_goes_on_bit_by_bit(kind):
    """Whatever is drawn is a function of seed and step."""
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(8)) ** 3

    def trainer():
        return Trainer(x, DenseGaussian.fit(x), config=config_of(kind), seed=3)

    one, two = trainer(), trainer()
    losses = [one.advance().loss for _ in range(6)]
    for _ in range(3):
        two.advance()
    three = trainer()
    three.restore(two.state())
    assert [three.advance().loss for _ in range(3)] == losses[3:]


def test_the_score_on_data_does_not_depend_on_the_batch(kind):
    """Or scores would change with the size of a block."""
    process = build_process(config_of(kind).process)
    if "score" not in process.heads:
        pytest.skip(f"{kind} has no ordinary score by default")
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) ** 3
    torch.manual_seed(1)
    model = WhitenedScore(DenseGaussian.fit(x), config_of(kind)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    score = NeuralScore(model)
    with torch.no_grad():
        parts = torch.cat([score(part) for part in x.split(7)])
        assert torch.allclose(score(x), parts, rtol=1e-9)
