"""Training: steps that fail, memory that is short, data that are streamed, eyes that watch."""

import math
import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from workflow.config import ScoreConfig
from workflow.interfaces import UserError
from workflow.scores import training
from workflow.scores.batches import Batches, Held, Sample, draw
from workflow.scores.closed_form import DenseGaussian, SpectralGaussian
from workflow.scores.neural import WhitenedScore
from workflow.scores.training import Trainer, make_batch
from workflow.scores.validation import BANDS, Best, Validation, validation_sums
from workflow.stages.streaming import Streamed

NETWORK = {"channels": 4, "residual_blocks": 1}
PROCESS = {"sigma_min": 0.1, "sigma_max": 0.1}
SCORE = {"network": NETWORK, "process": PROCESS}


@pytest.fixture(scope="module")
def x():
    """White noise with a cubic distortion on 8 x 8, `(sample, 1, 8, 8)`."""
    white = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return white + 0.5 * white**3


def trainer(x, whitening=None, **settings):
    # A small sigma would multiply the rounding of scores by 1 / sigma.
    config = dict(SCORE)
    config |= {"train": {"steps": 40, "global_batch": 16, "learning_rate": 2e-3} | settings}
    return Trainer(
        x,
        whitening or SpectralGaussian.fit(x),
        config=ScoreConfig.model_validate(config),
        seed=3,
    )


def losses(one, steps=20):
    return [one.advance().loss for _ in range(steps)]


def test_micro_batches_do_not_change_the_training(x):
    """Accumulated gradients of parts, weighted by their sizes, are the gradient of the whole."""
    assert losses(trainer(x, micro_batch=6)) == pytest.approx(losses(trainer(x)), rel=1e-5)


def test_too_little_memory_halves_the_micro_batch(x, monkeypatch):
    """And the step is done all the same; with no room for one pair it ends in a line."""
    whole = losses(trainer(x))
    real, room = training.batch_loss, 3

    def short_of_memory(model, batch):
        if len(batch.x) > room:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, batch)

    monkeypatch.setattr(training, "batch_loss", short_of_memory)
    short = trainer(x)
    assert short.micro_batch == 16
    assert losses(short) == pytest.approx(whole, rel=1e-5)
    assert short.micro_batch == 4
    room = 0
    with pytest.raises(UserError, match="out of memory with one pair of snapshots"):
        trainer(x).advance()


def test_steps_that_are_not_finite_change_nothing_and_are_counted(x):
    """One bad snapshot in 40: its steps are skipped, the others are not."""
    bad = x[:40].clone()
    bad[7, 0, 3, 3] = math.nan
    one = trainer(bad, SpectralGaussian.fit(x), global_batch=8)
    skipped = 0
    for _ in range(40):
        before = {name: value.clone() for name, value in one.model.state_dict().items()}
        step = one.advance()
        skipped += step.skipped
        same = all(torch.equal(before[k], v) for k, v in one.model.state_dict().items())
        assert same == step.skipped
    assert 0 < skipped < 20 and one.skipped == skipped and one.step == 40
    assert all(torch.isfinite(value).all() for value in one.average.values())


def test_training_that_is_never_finite_ends_in_a_line(x):
    one = trainer(x * math.nan, SpectralGaussian.fit(x))
    with pytest.raises(UserError, match="in 10 steps running up to step 10; lower score.train.lea"):
        losses(one)


def test_the_counts_of_skipped_steps_survive_a_restart(x):
    """Nine skipped steps, a restart, and the tenth ends it."""
    first, second = (trainer(x * math.nan, SpectralGaussian.fit(x)) for _ in range(2))
    losses(first, 9)
    second.restore(first.state())
    with pytest.raises(UserError, match="up to step 10"):
        second.advance()


def test_gradients_are_clipped_to_a_global_norm(x):
    """Adam forgets the size of a gradient, so the gradient itself is looked at."""
    one = trainer(x, clip=1e-3)
    step = one.advance()
    norm = torch.stack([p.grad.norm() for p in one.model.parameters()]).norm()
    assert step.norm > 1e-2 and float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_bf16_trains_like_fp32_with_parameters_in_fp32(x):
    """bf16 has 8 bits: single losses agree to a few per cent of their distance from zero."""
    half, full = trainer(x, precision="bf16"), trainer(x)
    assert losses(half) == pytest.approx(losses(full), rel=0.05)
    assert losses(half, 3) != losses(full, 3)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert half.averaged().compute is None


def test_a_batch_drawn_ahead_is_the_batch_of_its_step(x):
    """Also after a jump, as in a restart."""

    def batches():
        return Batches(Held(x), seed=3, pairs=8, share=range(2, 8), device=torch.device("cpu"))

    running, jumping = batches(), batches()
    for step in range(5):
        sample = running.at(step)
    jumped = jumping.at(4)
    assert torch.equal(sample.x, jumped.x) and torch.equal(sample.z, jumped.z)


SIZES = [5, 9, 7, 9, 2, 8, 9, 6, 9, 1, 4, 9, 9, 9, 9, 3, 9, 9, 8, 9]
"""Blocks of a store, more of them than lanes."""


def streamed(reads=None):
    """Snapshots of one number: 100 block + place in the block."""

    def read(block):
        if reads is not None:
            reads.append(block)
        return 100.0 * block + torch.arange(SIZES[block])[:, None]

    return Streamed(SIZES, read, shape=(1,), seed=3)


def taken(source, steps, *, pairs=32, share=None):
    share = share or range(pairs)
    return [
        source.take(t, share, pairs, draw(3, t, pairs=pairs, share=share, shape=(1,)).place)
        for t in steps
    ]


def test_streamed_batches_do_not_depend_on_ranks_or_restarts():
    """The shares of three ranks are the batch of one, also when it begins in the middle."""
    whole = taken(streamed(), range(30))
    edges = [rank * 32 // 3 for rank in range(4)]
    shares = [taken(streamed(), range(30), share=range(*pair)) for pair in pairwise(edges)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch, torch.cat([share[step] for share in shares]))
    assert torch.equal(taken(streamed(), [17])[0], whole[17])


def test_streaming_uses_every_block_as_often_as_it_holds_snapshots():
    """20 blocks over 16 lanes: after 5 epochs every block has been drawn from 5 times its size."""
    # Lanes leave their blocks after different numbers of steps: count what each lane drew.
    counts, lanes = np.zeros(len(SIZES)), streamed()
    for batch in taken(lanes, range(400)):
        blocks = (batch // 100).long().flatten()
        counts += np.bincount(blocks, minlength=len(SIZES))
    ratio = counts / np.ceil(np.array(SIZES) / 2) / 2
    assert ratio.min() > 0.7 * ratio.mean() and ratio.max() < 1.3 * ratio.mean()


def test_a_rank_reads_only_the_blocks_of_its_lanes():
    """A quarter of the pairs needs a quarter of the reads."""
    all_reads, some_reads = [], []
    taken(streamed(all_reads), range(40))
    taken(streamed(some_reads), range(40), share=range(8))
    assert len(some_reads) == pytest.approx(len(all_reads) / 4, rel=0.2)


def samples(x, share=slice(None)):
    drawn = draw(3, 0, pairs=len(x), share=range(len(x)), shape=tuple(x.shape[1:]))
    numbers = (torch.from_numpy(v[share]) for v in (drawn.level, drawn.z))
    return Sample(x[share], *numbers)


def test_the_stein_ratios_of_the_gaussian_score_are_known(x):
    """An untrained network is the score of the smoothed Gaussian: 1 / (1 + sigma^2) in each band.

    Its loss is < x~^2 > / (1 + sigma^2)^2 + < z^2 > (sigma^2 - 2 (1 + sigma^2)) / (1 + sigma^2)^2.
    """
    model = WhitenedScore(SpectralGaussian.fit(x), ScoreConfig.model_validate(SCORE))
    batch = make_batch(model, samples(x))
    found = Validation.of(validation_sums(model, batch))
    assert found.stein == pytest.approx([1 / 1.01] * BANDS, rel=1e-4)
    noise = float(batch.z.square().mean()) * (0.01 / 1.01**2 - 2 / 1.01)
    assert found.loss == pytest.approx(1 / 1.01**2 + noise, rel=1e-5)


def test_without_symmetry_there_is_one_stein_ratio(x):
    """-< x~ . s~ > over all places."""
    gaussian = DenseGaussian.fit(x[:, :, :2, :2])
    model = WhitenedScore(gaussian, ScoreConfig.model_validate(SCORE))
    batch = make_batch(model, samples(x[:, :, :2, :2]))
    found = Validation.of(validation_sums(model, batch))
    assert found.stein == pytest.approx([float(batch.x.square().mean()) / 1.01], rel=1e-5)


def test_validation_is_a_sum_over_shares(x):
    """Sums of three ranks with unequal shares add up to those of one."""
    one = trainer(x)
    losses(one, 5)
    model = one.averaged()
    shares = [slice(0, 130), slice(130, 131), slice(131, 200)]
    parts = [validation_sums(model, make_batch(model, samples(x, share))) for share in shares]
    whole = validation_sums(model, make_batch(model, samples(x)))
    assert torch.allclose(sum(parts), whole, rtol=1e-5)


def test_the_best_parameters_are_those_of_the_lowest_loss():
    """A copy, with the count of validations since."""
    best, parameters = Best(), {"w": torch.zeros(1)}
    for step, loss in enumerate([math.nan, 3.0, 1.0, 2.0, math.nan]):
        parameters["w"].fill_(step)
        best.offer(step, loss, parameters)
    assert (best.step, best.loss, best.waited, float(best.parameters["w"])) == (2, 1.0, 2, 2.0)
    assert Best.from_state(best.state()) == best


def test_a_compiled_network_learns_the_same_and_goes_on(x):
    """To rounding; a checkpoint says nothing of it, and what is evaluated is not compiled."""
    plain, fast = trainer(x), trainer(x, compile=True)
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)
    resumed = trainer(x)
    resumed.restore(fast.state())
    assert fast.advance().loss == pytest.approx(resumed.advance().loss, rel=1e-4)
    assert fast.averaged().network._compiled_call_impl is None


WITHOUT = """
import torch
from workflow.config import ScoreConfig
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.training import Trainer
x = torch.randn(64, 1, 8, 8)
config = {"network": {"channels": 4}, "train": {"global_batch": 16, "compile": True}}
Trainer(x, SpectralGaussian.fit(x), config=ScoreConfig.model_validate(config), seed=3).advance()
"""


def test_without_a_compiler_one_line_says_what_to_do(tmp_path):
    nothing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT]
    environment = os.environ | nothing
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search("UserError: the network cannot be compiled: .*, or name it in CXX, or", last)
