"""Targets of jump diffusion given the clock, in closed form, and the Bessel ratios they need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from workflow.diffusion.jump import JumpLaw, bessel_ratio, pure_jump_target

torch.set_num_threads(1)
PURE = JumpLaw(rate=1, scale=1.0, gaussian=0.0)


def test_a_target_is_zero_where_nothing_jumped():
    """The noise has an atom at 0, where 1 / |u| has no limit."""
    u = torch.zeros(3, 2, dtype=torch.float64)
    assert (pure_jump_target(PURE, u, torch.ones(3, dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("d", [1, 2, 3, 8, 64])
def test_the_closed_target_is_the_mean_over_clocks(d):
    """(a) = E[(b) | u], by quadrature over the clock, whatever the dimension."""
    s, size = 0.6, 1.7
    a = math.exp(-s)
    w = torch.logspace(-6, 2.2, 20_001, dtype=torch.float64)
    variance = 2 * w * PURE.scale**2
    log_weight = -w - d / 2 * variance.log() - size**2 / (2 * variance) + w.log()
    weight = (log_weight - log_weight.max()).exp()
    time = torch.full_like(w, s)
    mean = float((weight * -PURE.flux(time, w) / variance).sum() / weight.sum()) * size
    u = torch.zeros(1, d, dtype=torch.float64)
    u[0, 0] = size
    closed = float(pure_jump_target(PURE, u, torch.tensor([s], dtype=torch.float64))[0, 0])
    assert closed == pytest.approx(mean, rel=1e-6)
    assert closed == pytest.approx(
        -size / 2 - a / (1 - a) * special.kve(d / 2, size) / special.kve(d / 2 - 1, size), rel=1e-6
    )


@pytest.mark.parametrize("side", [2, 4])
def test_coloured_noise_and_jumps_obey_the_weak_form(side):
    """JMP-3: E[-k . G sin k.x] = psi(k) E cos k.x, noise and jumps of different spectra."""
    generator, count, s = torch.Generator().manual_seed(4), 400_000, 0.7
    waves = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    square = waves[:, None] ** 2 + waves**2
    law = JumpLaw(2, (0.6 / (1 + square)).sqrt(), 0.8 / (1 + square**2))
    time = torch.full((count, 1, 1), s, dtype=torch.float64)
    w = law.clock(time, torch.rand(4, count, 1, 1, dtype=torch.float64, generator=generator))

    def white():
        z = torch.randn(count, side, side, dtype=torch.float64, generator=generator)
        return torch.fft.fft2(z, norm="ortho")

    def back(modes):
        return torch.fft.ifft2(modes, norm="ortho").real

    u = law.noise_variance(time, w).sqrt() * white()
    x = back(math.exp(-s / 2) * (0.5 * white()) + u)
    target = back(-law.flux(time, w) / law.noise_variance(time, w) * u)
    for trial in range(6):
        k = torch.randn(side, side, dtype=torch.float64, generator=generator) * (0.4 + 0.2 * trial)
        k_hat = torch.fft.fft2(k, norm="ortho").abs().square()
        jumps = 1 - 1 / (1 + (law.scale**2 * k_hat).sum())
        psi = (law.gaussian * k_hat).sum() / 2 + law.rate * jumps
        phase = (k * x).sum((1, 2))
        gap = -(k * target).sum((1, 2)) * phase.sin() - psi * phase.cos()
        assert abs(gap.mean() / gap.std() * math.sqrt(count)) < 4


@pytest.mark.parametrize("d", [1, 2, 3, 8, 64])
def test_bessel_ratios_are_those_of_scipy(d):
    """JMP-4."""
    z = torch.logspace(math.log10(0.3), math.log10(20), 60, dtype=torch.float64)
    exact = special.kve(d / 2, z.numpy()) / special.kve(d / 2 - 1, z.numpy())
    np.testing.assert_allclose(bessel_ratio(d, z).numpy(), exact, rtol=1e-5)
    np.testing.assert_allclose(bessel_ratio(d, z.float()).numpy(), exact, rtol=1e-5)


def test_bessel_ratios_of_a_whole_image_are_finite():
    """JMP-4, in float32: neither Bessel function is a number there."""
    z = torch.logspace(-2, 5, 50, dtype=torch.float32)
    ratio, n = bessel_ratio(12288, z), 12288 / 2 - 0.5
    np.testing.assert_allclose(ratio, (n + (n**2 + z.double() ** 2).sqrt()) / z, rtol=2e-4)
