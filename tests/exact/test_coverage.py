"""95 % intervals cover 95 %: replicas of linear systems through recalibration of a wrong score."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
SPEC = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
BENCHMARK = importlib.util.module_from_spec(SPEC)
sys.modules["coverage_benchmark"] = BENCHMARK
SPEC.loader.exec_module(BENCHMARK)

FIELDS = [name for name in BENCHMARK.CASES if name.startswith("field")]
# The longest scalar run shows nothing that the two shorter ones do not.
LINEAR = [name for name in BENCHMARK.CASES if not name.startswith("field") and "500" not in name]


@pytest.mark.parametrize("name", LINEAR)
def test_intervals_cover_the_propagator_of_linear_systems(name):
    """Recalibration of a wrong variance, and by a 3 x 3 matrix; R(t) = expm(-A t) (T19)."""
    check(name, replicas=200)


def test_intervals_cover_the_propagator_of_a_field():
    """Recalibration per wavenumber of a score that sees small scales badly."""
    check("field 8 x 8, 32 members", replicas=50)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_intervals_cover_the_propagator_of_fields_at_full_size(name):
    check(name, replicas=200)


def check(name, *, replicas):
    case, settings = BENCHMARK.CASES[name]
    found = BENCHMARK.cover(case, replicas=replicas, seed=11, samples=200, **settings)
    # All numbers together scatter less than one of them does: 0.015 for 200 replicas.
    assert 0.90 <= found.pointwise.mean() <= 0.98
    # What one number of true coverage 0.93 goes below once in 10,000 seeds.
    assert found.pointwise.min() >= binom.ppf(1e-4, replicas, 0.93) / replicas
    # 4 standard errors of a share, from 0.95.
    assert abs(found.joint - 0.95) < 4 * np.sqrt(0.95 * 0.05 / replicas)
    # The scatter of the values is known to 1 / sqrt(2 replicas) of itself; 4 of them.
    assert (np.abs(found.error_ratio - 1) < 4 / np.sqrt(2 * replicas)).all()
    assert found.refused <= 0.05 * replicas


def test_intervals_that_ignore_correlation_in_time_do_not_cover():
    """The test above can fail: blocks of a tenth of tau drawn one by one cover far too little."""
    settings = {"members": 1, "length": 960, "block": 1, "lags": 8}
    found = BENCHMARK.cover(
        BENCHMARK.scalar_case, replicas=30, seed=11, samples=100, moving=1, **settings
    )
    assert found.pointwise.mean() < 0.8
