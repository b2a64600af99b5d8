"""Responses at the published size against the published and the exact numbers."""

import math

import numpy as np
import pytest
import torch

from workflow.dynamics import build_system
from workflow.dynamics.noise import NoiseStream
from workflow.responses.correlation import lag_sums, pair_counts
from workflow.responses.recalibration import recalibrate


def simulate(system, *, members, spinup, times, every):
    """Saved fields `(member, time, 1, y, x)`, spin-up and times in saves of `every` steps."""
    noise = NoiseStream(11, range(members), stream=0, shape=system.noise_shape, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    state = system.initial(torch.randn(members, *system.initial_shape, generator=generator))
    saved = []
    with torch.inference_mode():
        for step in range((spinup + times) * every):
            state = system.step(state, noise.at(step))
            if step >= spinup * every and (step + 1) % every == 0:
                saved.append(system.observe(state))
    return torch.stack(saved, dim=1)


def response(x, score, *, max_lag):
    """Recalibrated response `(lag, y, x)`, mean over members."""
    with torch.inference_mode():
        s = torch.cat([score(part) for part in x.flatten(0, 1).split(256)]).reshape(x.shape)
    sums = lag_sums(x, s, max_lag=max_lag)[:, :, 0, 0]
    pairs = pair_counts(0, x.shape[1], length=x.shape[1], max_lag=max_lag)
    per_member = -sums / pairs[:, None, None]
    return per_member, recalibrate(per_member.mean(0), space=2).response


def test_the_response_of_the_published_ou_field():
    """32 members x 400 t.u. and the exact score: peaks, their times, R11(5), downstream only."""
    system = build_system({"kind": "ornstein_uhlenbeck"})
    x = simulate(system, members=32, spinup=0, times=400, every=1)
    per_member, found = response(x, system.exact_score, max_lag=70)
    error = per_member.std(0, ddof=1) / math.sqrt(32)
    truth = system.exact_response(torch.arange(71.0, dtype=torch.float64)).numpy()
    assert (np.abs(found - truth)[1:, 0, :7] < 6 * error[1:, 0, :7] + 0.01).all()
    for step, peak, when in ((2, 0.492, 18.25), (4, 0.285, 38.0), (6, 0.187, 57.5)):
        curve = found[:, 0, step]
        assert curve.max() == pytest.approx(peak, abs=0.02)
        assert curve.argmax() == pytest.approx(when, abs=2)
    assert found[5, 0, 0] == pytest.approx(0.5509, abs=0.015)
