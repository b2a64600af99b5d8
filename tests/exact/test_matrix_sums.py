"""Sums of the response matrix per unit: means of the run, error bars, missing values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from workflow.interfaces import UserError
from workflow.responses.matrix import response_matrix
from workflow.responses.matrix_sums import MatrixSums, add_up, lag_zero, reduce_lags

MAX_LAG = 3


def units_of(x, s, *, group, slab, window):
    """Sums of every (group of members, slab of time), read in windows."""
    members, length = x.shape[:2]
    units = []
    for first in range(0, members, group):
        some = slice(first, first + group)
        for start in range(0, length, slab):
            stop = min(start + slab, length)
            edges = [(t, min(t + window, stop)) for t in range(start, stop, window)]
            windows = [
                (torch.from_numpy(x[some, a : b + MAX_LAG]), torch.from_numpy(s[some, a:b]))
                for a, b in edges
            ]
            units.append(add_up(windows, max_lag=MAX_LAG))
    return units


def reader(units):
    def read(lags):
        some = slice(lags.start, lags.stop)
        for u in units:
            yield MatrixSums(u.products[some], u.watched[some], u.kicked[some], u.pairs[some])

    return read


def answer(units, *, together):
    read = reader(units)
    zero = lag_zero(read)
    lags = range(MAX_LAG + 1)
    return zero, [reduce_lags(read, zero, lags=lags[i : i + together]) for i in lags[::together]]


def linear_run(rng, *, members, length):
    """x(t + 1) = A x(t) + noise, stationary, and its exact score."""
    a = np.array([[0.7, 0.3, 0.0], [-0.2, 0.5, 0.1], [0.0, 0.0, 0.6]])
    c = np.eye(3)
    for _ in range(200):
        c = a @ c @ a.T + np.eye(3)
    x = np.empty((members, length, 3))
    state = rng.standard_normal((members, 3)) @ np.linalg.cholesky(c).T
    for t in range(length):
        x[:, t] = state
        state = state @ a.T + rng.standard_normal((members, 3))
    return x, -x @ np.linalg.inv(c), a


@pytest.mark.parametrize(("slab", "window", "together"), [(40, 40, 4), (17, 5, 1), (17, 2, 3)])
def test_sums_of_units_are_the_matrix_about_the_means_of_the_run(slab, window, together):
    """Also far from zero, with windows shorter than the lags and a last slab of 1 sample."""
    x, s, _ = linear_run(np.random.default_rng(1), members=4, length=86)
    x += 300.0
    dims = ("member", "time", "x")
    expected = response_matrix(*(xr.DataArray(v, dims=dims) for v in (x, s)), max_lag=MAX_LAG)
    zero, found = answer(units_of(x, s, group=3, slab=slab, window=window), together=together)
    for name, variable in (("response", "response"), ("raw", "response_raw")):
        got = np.concatenate([getattr(part, name) for part in found])
        assert np.abs(got - expected[variable].values).max() < 1e-9
    assert zero.stein_error == pytest.approx(expected.stein_error)


def test_standard_errors_are_the_scatter_of_independent_runs():
    """Mean of se^2 over 200 runs of 20 unequal units against their variance, about 0.1 of it."""
    rng, found, errors = np.random.default_rng(2), [], []
    for _ in range(200):
        x, s, a = linear_run(rng, members=8, length=450)
        (answer_of_run,) = answer(units_of(x, s, group=2, slab=100, window=100), together=4)[1]
        found.append(answer_of_run.response)
        errors.append(answer_of_run.standard_error)
    expected = np.stack([np.linalg.matrix_power(a, lag) for lag in range(MAX_LAG + 1)])
    found, errors = np.stack(found), np.stack(errors)
    assert np.abs(found[:, 0] - np.eye(3)).max() < 1e-10 and errors[:, 0].max() < 1e-10
    scatter = found.std(0, ddof=1)[1:]
    bias = found.mean(0)[1:] - expected[1:]
    assert (np.abs(bias) < 4 * scatter / np.sqrt(200) + 2e-3).all()
    ratio = np.sqrt((errors[:, 1:] ** 2).mean(0)) / scatter
    # A standard deviation of 200 draws is known to 5 %.
    assert np.abs(ratio - 1).max() < 0.2 and abs(ratio.mean() - 1) < 0.1


def test_directions_that_the_score_does_not_see_have_finite_errors():
    rng = np.random.default_rng(3)
    x, s, _ = linear_run(rng, members=4, length=200)
    s[..., 2] *= 1e-3
    with pytest.warns(UserWarning, match="1 of 3 directions are not seen"):
        zero, (found,) = answer(units_of(x, s, group=1, slab=100, window=100), together=4)
    assert zero.unresolved == 1 and zero.recalibrated
    assert np.isfinite(found.response).all() and found.standard_error.max() < 1.0


def test_few_units_have_no_error_and_missing_values_are_refused():
    x, s, _ = linear_run(np.random.default_rng(4), members=3, length=50)
    (found,) = answer(units_of(x, s, group=1, slab=50, window=50), together=4)[1]
    assert found.standard_error is None
    x[0, 7, 1] = np.nan
    with pytest.raises(UserError, match="missing or infinite values"):
        lag_zero(reader(units_of(x, s, group=1, slab=50, window=50)))
