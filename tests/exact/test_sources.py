"""Responses from sums of channels against two coupled fields whose answer is known."""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.linalg import expm, solve_continuous_lyapunov

from workflow.analysis import responses_of
from workflow.config import ScoreConfig
from workflow.interfaces import Field, Saved
from workflow.responses.assemble import ErrorBars, assemble
from workflow.responses.channels import Channels
from workflow.responses.correlation import pair_counts
from workflow.responses.direct import mean_everywhere, moved_to, seen_from
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import Perturbation, build_perturbations
from workflow.responses.probes import Statistics
from workflow.responses.resampling import Units, unit_weights
from workflow.responses.sources import Learned
from workflow.responses.stein import LinearRecalibration, lag_zero_matrix
from workflow.responses.sums import Constants, block_sums
from workflow.scores.closed_form import DenseGaussian, SpectralGaussian
from workflow.stages import train

GRID, LAGS, STEP = 8, 3, 0.4
MEMBERS, TIMES = 32, 1500
FIELDS = (Field("u", "u"), Field("v", "v"))


def decay(size):
    """Non-normal A_k of two fields, `(wavenumber, 2, 2)`: shear, coupling and advection."""
    k = np.arange(size // 2 + 1)
    wave = np.exp(2j * np.pi * k / size)
    advection = 0.5 * (1 - wave)  # upwind, so the answer has no symmetry in space
    one = np.ones(size // 2 + 1)
    rows = [[0.6 * one + advection, 0.9 + 0.4 * wave], [-0.1 * one, 0.9 * one + 0.5 * advection]]
    return np.moveaxis(np.array(rows, dtype=complex), (0, 1), (1, 2))


def fields(size, members, times, *, seed=0):
    """Stationary dx = -A x dt + noise, `(member, time, 2, size)`."""
    noise = np.array([[1.0, 0.3], [0.3, 0.7]])
    rates = decay(size)
    covariance = np.stack([solve_continuous_lyapunov(a, noise.astype(complex)) for a in rates])
    forward = np.stack([expm(-STEP * a) for a in rates])
    rest = covariance - forward @ covariance @ np.conj(np.swapaxes(forward, 1, 2))
    first, later = np.linalg.cholesky(covariance), np.linalg.cholesky(rest)
    normal = np.fft.rfft(np.random.default_rng(seed).standard_normal((times, members, 2, size)))
    modes = np.einsum("kfg,tmgk->tmfk", later, normal)
    modes[0] = np.einsum("kfg,mgk->mfk", first, normal[0])
    for t in range(1, times):
        modes[t] += np.einsum("kfg,mgk->mfk", forward, modes[t - 1])
    return torch.from_numpy(np.fft.irfft(modes, n=size).swapaxes(0, 1).copy())


def exact(size, lag, pattern):
    """Response `(2, size)` to a kick `(2, size)`."""
    forward = np.stack([expm(-STEP * lag * a) for a in decay(size)])
    return np.fft.irfft(np.einsum("kfg,gk->fk", forward, np.fft.rfft(pattern)), n=size)


def learned(
    saved,
    x,
    score,
    *,
    perturbations,
    observables=("field",),
    block=400,
    by="member",
    controlled=False,
):
    """The source of one score, its channels and weights, as the stages make it."""
    flat = x.flatten(0, 1)
    statistics = Statistics.fit(flat, homogeneous=saved.homogeneous)
    channels = Channels.of(
        saved, build_observables(list(observables), saved, statistics), perturbations
    )
    s = score(flat).reshape(x.shape)
    repair = None
    if channels.versions == 2:
        stein = lag_zero_matrix(flat - flat.mean(0), s.flatten(0, 1), maps=saved.maps) / len(flat)
        repair = LinearRecalibration.fit(stein, maps=saved.maps, shape=saved.shape)
    sample = flat[::97]
    constants = Constants.of(channels, sample, score(sample), score, recalibration=repair)
    times = x.shape[1]
    blocks = [range(t, min(t + block, times)) for t in range(0, times, block)]
    found = block_sums(channels, constants, x, s, score, blocks=blocks, max_lag=LAGS)
    pairs = [pair_counts(b.start, b.stop, length=times, max_lag=LAGS) for b in blocks]
    pairs = np.stack(pairs).astype(float)
    whole = by == "member"
    if whole:
        found = {name: sums.sum(axis=1, keepdims=True) for name, sums in found.items()}
        pairs = pairs.sum(axis=0, keepdims=True)
        units = Units(len(x), 1, 1)
    else:
        units = Units(len(x), len(blocks), 1)
    maps = {}
    if saved.maps:
        maps = {o.name: found["maps"][:, :, :, i] for i, o in enumerate(channels.of_place)}
    weights = unit_weights(units, samples=200, seed=1)
    source = Learned(
        channels,
        pairs=pairs,
        units=units,
        maps=maps,
        totals=found["totals"],
        recalibrate=True,
        weights=weights,
        repair=repair,
        controlled=controlled,
    )
    return source, channels, weights


def answers(source, channels, weights):
    """Estimates by observable."""
    bars, drawn = ErrorBars(200), {"a": weights}
    return {
        o.name: assemble({"a": source}, o, lags=LAGS, references=(), bars=bars, weights=drawn)[0][
            "a"
        ]
        for o in channels.observables
    }


@cache
def data(size):
    return fields(size, MEMBERS, TIMES)


def distorted(gaussian, size):
    """A Gaussian score with a wrong matrix at every wavenumber: only recalibration mends it."""
    k = torch.arange(size // 2 + 1, dtype=torch.float64) / size
    wave = torch.exp(2j * torch.pi * k)
    one = torch.ones(len(k), dtype=wave.dtype)
    wrong = torch.stack(
        [torch.stack([0.8 * one, 0.3 * wave]), torch.stack([-0.2 * wave, 1.2 - 0.1 * wave])]
    )

    def score(x):
        modes = torch.fft.rfft(gaussian(x))
        return torch.fft.irfft(torch.einsum("fgk,bgk->bfk", wrong, modes), n=size)

    return score


KICKS = [
    "pixel",
    {"kind": "bump", "width": 1.0, "field": "u"},
    {"kind": "mode", "k": [1], "field": "v"},
    {"kind": "uniform", "field": "v"},
]


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize(("size", "homogeneous"), [(8, True), (8, False), (40, False)])
def test_two_coupled_fields_answer_every_pattern_exactly(size, homogeneous, wrong, tmp_path):
    """Which field, which side M^-1 stands on and which way it moves would all show here."""
    saved = Saved(FIELDS, (size,), homogeneous)
    x = data(size)
    fit = SpectralGaussian if homogeneous else DenseGaussian
    gaussian = fit.fit(x.flatten(0, 1))
    score = distorted(gaussian, size) if wrong else gaussian
    specs = KICKS
    if not homogeneous:
        bump = {"kind": "bump", "width": 1.0, "at": [3], "field": "u"}
        specs = [{"kind": "pixel", "at": [2]}, bump, *KICKS[2:]]
    kicks = build_perturbations(specs, saved, system=None, where=tmp_path)
    # On a homogeneous field a function must do the same everywhere.
    same = len(kicks) - 1 if homogeneous else 0
    constant = kicks[same].pattern

    def conjugate(x, score, seed=0):
        return -(score(x) * constant).flatten(1).sum(1)

    driven = Perturbation("driven", "the same by a function", conjugate=conjugate)
    source, channels, weights = learned(
        saved, x, score, perturbations=[*kicks, driven], observables=["field", "mean"]
    )
    found = answers(source, channels, weights)
    for index, name in enumerate(("u", "v")):
        field, mean = found[f"field:{name}"], found[f"mean:{name}"]
        for p, kick in enumerate(kicks):
            for lag in range(LAGS + 1):
                known = exact(size, lag, kick.pattern.numpy())[index]
                error = np.maximum(field.standard_error[p, lag], 1e-9)
                z = (field.value[p, lag] - known) / error
                assert np.abs(z).max() < 5.0, (name, kick.name, lag, z)
                z = (mean.value[p, lag] - known.mean()) / max(mean.standard_error[p, lag], 1e-9)
                assert abs(z) < 5.0, (name, kick.name, lag, z)
        np.testing.assert_allclose(mean.value[-1], mean.value[same], atol=2e-3)
        if not homogeneous:
            np.testing.assert_allclose(field.value[-1], field.value[same], atol=2e-3)


def test_members_and_blocks_of_time_add_up_to_the_same_response():
    """Units are for error bars only; a short last block counts by its pairs."""
    saved, x = Saved(FIELDS, (GRID,), True), data(GRID)
    kicks = build_perturbations(["pixel"], saved, system=None, where=None)
    gaussian = SpectralGaussian.fit(x.flatten(0, 1))
    both = [learned(saved, x, gaussian, perturbations=kicks, by=by) for by in ("member", "time")]
    for one in both[0][1].observables:
        values = [s.answer(one, slice(0, LAGS + 1), None, raw=False) for s, *_ in both]
        np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("homogeneous", [True, False])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_one_field_do_not_decide_whether_a_score_is_repaired(scale, homogeneous):
    """Entries of M between fields carry units: metres or kilometres must not matter."""
    saved = Saved(FIELDS, (GRID,), homogeneous)
    units = torch.tensor([1.0, scale], dtype=torch.float64)[:, None]
    kicks = build_perturbations([{"kind": "mode", "k": [1]}], saved, system=None, where=None)
    values = []
    for factor in (torch.ones(2, 1, dtype=torch.float64), units):
        x = data(GRID) * factor
        fit = SpectralGaussian if homogeneous else DenseGaussian
        gaussian = fit.fit(data(GRID).flatten(0, 1))
        score = distorted(gaussian, GRID)
        source, channels, _ = learned(
            saved, x, lambda y, f=factor, s=score: s(y / f) / f, perturbations=kicks
        )
        assert not source.repair.refused.any()
        own = factor[:, 0].numpy()
        found = [source.answer(o, slice(0, 4), None, raw=False) for o in channels.observables]
        values.append(
            [[r / own[i] * own[p] for p, r in enumerate(rows)] for i, rows in enumerate(found)]
        )
    np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-9)


def test_lag_zero_of_any_recalibrated_score_is_the_pattern_itself_in_two_dimensions(tmp_path):
    """Whatever the score, M^-1 makes it so: an axis or a transpose gone wrong would show."""
    shape, generator = (6, 5), torch.Generator().manual_seed(3)
    saved = Saved(FIELDS, shape, True)
    x = torch.randn((8, 60, 2, *shape), generator=generator, dtype=torch.float64)
    x = x + 0.5 * x.roll((1, 2), dims=(-2, -1)) + 0.3 * x.flip(2)
    kicks = build_perturbations(
        ["pixel", {"kind": "bump", "width": 1.0, "at": [1, 3]}, {"kind": "mode", "k": [2, -1]}],
        saved,
        system=None,
        where=tmp_path,
    )

    def score(x):
        return -(x + 0.2 * x.roll((0, 1), dims=(-2, -1))) * torch.tensor([[[1.0]], [[2.0]]])

    source, channels, _ = learned(saved, x, score, perturbations=kicks, block=25)
    assert not source.unresolved.any() and not source.repair.refused.any()
    for index, one in enumerate(channels.observables):
        found = source.answer(one, slice(0, 1), None, raw=False)[:, 0]
        wanted = np.stack([kick.pattern[index].numpy() for kick in kicks])
        np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize("homogeneous", [True, False])
def test_what_is_fitted_does_not_depend_on_the_number_of_threads(homogeneous, monkeypatch):
    """The same run on another number of cores has the same bits."""
    x = torch.randn((2000, 2, 32), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(train, "load_snapshots", lambda *_, **__: x)
    found = []
    monkeypatch.setattr(
        train, "save_tensors", lambda run, block, path, content: found[-1].update(content)
    )
    run = SimpleNamespace(
        trained=[],
        training=None,
        experiment=SimpleNamespace(score=ScoreConfig()),
        saved=Saved((Field("a", "a"), Field("b", "b")), (32,), homogeneous),
        unfitted={"whitening", "statistics"},
    )
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append({})
            train._fit(run)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.parametrize("shape", [(8,), (4, 6)])
def test_what_is_moved_to_a_place_is_seen_from_there(shape):
    """Paired runs are kicked anywhere; maps are around the kicked place all the same."""
    pattern = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    kicked = torch.arange(math.prod(shape))
    moved = moved_to(pattern, kicked)
    for place, one in zip(kicked, moved, strict=True):
        steps = tuple(int(i) for i in np.unravel_index(int(place), shape))
        axes = tuple(range(1, 1 + len(shape)))
        assert torch.equal(one, pattern.roll(steps, dims=axes))
    assert torch.equal(seen_from(moved, kicked), pattern.expand_as(moved))
    everywhere = mean_everywhere(moved)
    means = moved.flatten(2).mean(2)
    assert torch.equal(everywhere.flatten(2), means[..., None].expand_as(everywhere.flatten(2)))


@pytest.mark.parametrize("homogeneous", [True, False])
def test_raw_responses_are_raw_whatever_is_done_to_the_others(homogeneous):
    """Control variates are for homogeneous fields; others are recalibrated as ever."""
    saved, x = Saved(FIELDS, (GRID,), homogeneous), data(GRID)
    kicks = build_perturbations([{"kind": "mode", "k": [1]}], saved, system=None, where=None)
    gaussian = SpectralGaussian.fit(x.flatten(0, 1))
    plain, controlled = (
        learned(saved, x, gaussian, perturbations=kicks, controlled=one)[0] for one in (False, True)
    )
    one = build_observables(["field"], saved, None)[0]
    raw = [s.answer(one, slice(0, 4), None, raw=True) for s in (plain, controlled)]
    np.testing.assert_array_equal(*raw)
    repaired = [s.answer(one, slice(0, 4), None, raw=False) for s in (plain, controlled)]
    assert np.array_equal(*repaired) is not homogeneous


@pytest.mark.parametrize("homogeneous", [True, False])
def test_the_stein_error_does_not_depend_on_the_units_of_a_field(homogeneous):
    """The Gaussian score of Gaussian data is right in any units."""
    found = []
    for scale in (1.0, 1e6):
        x = data(GRID)[:, :200].numpy() * np.array([[1.0], [scale]])
        dims = ("member", "time", "x")
        raw = xr.Dataset({n: (dims, x[:, :, i]) for i, n in enumerate("uv")})
        kicks = [{"kind": "mode", "k": [1]}]
        given = {"homogeneous": homogeneous, "perturbations": kicks, "samples": 50}
        found.append(responses_of(raw, max_lag=2, **given).stein_error.values)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert found[0].max() < 0.1
