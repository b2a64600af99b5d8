"""Responses of labelled data in memory: known answers, every shape of data, and what is refused."""

from __future__ import annotations

from datetime import timedelta

import dask
import numpy as np
import pytest
import torch
import xarray as xr

import workflow  # noqa: F401  registers the accessor
from workflow.analysis import responses_of
from workflow.interfaces import UserError

LAGS = 6
A = np.array([[0.8, 0.3], [-0.2, 0.6]])
"""Propagator of two fields that push each other; the response is its power."""


def autoregressive(step, shape, *, members, times, seed, spread=1.0):
    """x(t + 1) = step(x(t)) + noise of that spread, after 100 steps; `(member, time, *shape)`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((members, *shape))
    out = np.empty((members, times, *shape))
    for t in range(-100, times):
        x = step(x) + spread * rng.standard_normal(x.shape)
        if t >= 0:
            out[:, t] = x
    return out


def scalar(*, members=12, times=2000, a=0.8, seed=1, dt=0.5):
    """Unit variance, response a^lag."""
    x = autoregressive(
        lambda x: a * x, (), members=members, times=times, seed=seed, spread=np.sqrt(1 - a * a)
    )
    return xr.Dataset({"T": (("member", "time"), x)}, coords={"time": np.arange(times) * dt})


@pytest.fixture(scope="module")
def many():
    return scalar()


@pytest.fixture(scope="module")
def lonely():
    """One long run without a dimension of members."""
    return scalar(members=1, times=20000).isel(member=0)


def off(found, truth):
    """Largest distance from the truth in standard errors, over all lags but 0."""
    one = found.isel(lag=slice(1, None))
    error = one.standard_error.values
    return np.abs((one.response.values - truth[1:]) / error).max()


@pytest.mark.parametrize("members", [1, 12])
def test_the_response_of_two_coupled_variables_is_the_power_of_their_propagator(members):
    """Gaussian data: R(lag) = A^lag, from one long run as from many members."""
    x = autoregressive(lambda x: x @ A.T, (2,), members=members, times=24000 // members, seed=2)
    ds = xr.Dataset({n: (("member", "time"), x[..., i]) for i, n in enumerate("uv")})
    found = ds.gfdt.response(max_lag=LAGS)
    assert found.response.dims == ("estimator", "perturbation", "observable", "lag")
    for j, kicked in enumerate("uv"):
        for i, watched in enumerate("uv"):
            one = found.sel(
                estimator="gaussian", perturbation=f"pixel:{kicked}", observable=f"field:{watched}"
            )
            truth = np.array([np.linalg.matrix_power(A, n)[i, j] for n in range(LAGS + 1)])
            assert float(one.response[0]) == pytest.approx(truth[0], abs=1e-6)
            assert off(one, truth) < 4


@pytest.mark.parametrize("space", [("x",), ("y", "x")])
def test_the_response_of_a_drifting_field_is_downstream_of_the_kick(space):
    """x(p, t + 1) = a x(p - 1, t) + noise: the kick moves one place per step along the last axis,
    which only a homogeneous reading with the right sign of displacements gives."""
    shape = (4, 8)[-len(space) :]
    x = autoregressive(
        lambda x: 0.8 * np.roll(x, 1, axis=-1), shape, members=8, times=600, seed=3, spread=0.6
    )
    found = responses_of(
        xr.DataArray(x, dims=("member", "time", *space), name="u"), max_lag=3, homogeneous=True
    )
    one = found.isel(estimator=0, perturbation=0, observable=0)
    assert one.response.dims == ("lag", *(f"d{n}" for n in space))
    truth = xr.zeros_like(one.response)
    for lag in range(4):
        truth.loc[{"lag": lag, "dx": lag} | ({"dy": 0} if "y" in space else {})] = 0.8**lag
    assert off(one, truth.values) < 4.5  # of up to 96 numbers


def test_where_places_differ_each_answers_by_itself():
    """a differs from place to place: everything is kicked by default, and R(lag, x) = a(x)^lag."""
    a = np.array([0.2, 0.5, 0.8])
    x = autoregressive(lambda x: a * x, (3,), members=10, times=1500, seed=4)
    ds = xr.Dataset({"u": (("member", "time", "x"), x)})
    found = responses_of(ds, max_lag=LAGS)
    assert list(found.perturbation.values) == ["uniform"]
    one = found.isel(estimator=0, perturbation=0, observable=0)
    assert one.response.dims == ("lag", "x")
    assert off(one, a ** np.arange(LAGS + 1)[:, None]) < 4
    pixel = responses_of(ds, max_lag=LAGS, perturbations=[{"kind": "pixel", "at": [1]}])
    one = pixel.isel(estimator=0, perturbation=0, observable=0)
    assert off(one.isel(x=1), 0.5 ** np.arange(LAGS + 1)) < 4
    assert off(one.isel(x=[0, 2]), np.zeros((LAGS + 1, 2))) < 4


def test_data_read_in_several_pieces_give_the_same_numbers(many, lonely, monkeypatch):
    """How much is read at once, and how much a score is fitted to, are matters of memory."""
    whole = [d.gfdt.response(max_lag=3.0, score=score) for d in (many, lonely)]
    monkeypatch.setattr("workflow.reduction.BLOCK_NUMBERS", 200)
    monkeypatch.setattr("workflow.reduction.PIECE_NUMBERS", 100)
    for d, one in zip((many, lonely), whole, strict=True):
        again = d.gfdt.response(max_lag=3.0, score=score)
        xr.testing.assert_allclose(again, one, rtol=1e-9, atol=1e-12)


def score(x):
    """Of unit variance."""
    return -x


def test_scores_may_be_given_as_data_or_as_a_function(many):
    """The same score gives the same response, by either name of its variables."""
    as_function = many.gfdt.response(max_lag=3.0, score=score)
    for name in ("T", "score_T"):
        data = (-many).rename({"T": name})
        as_data = many.gfdt.response(max_lag=3.0, score=data)
        np.testing.assert_allclose(as_data.response, as_function.response, rtol=1e-12)
    assert as_function.estimator.item() == "score"
    truth = 0.8 ** np.arange(7)
    assert off(as_function.isel(estimator=0, perturbation=0, observable=0), truth) < 4


def test_several_scores_are_compared_on_the_same_resamples(many):
    """Their distance is far less noisy than either: the noise they share cancels."""
    found = many.gfdt.response(
        max_lag=3.0, score={"fit": "gaussian", "true": score}, recalibrate=False
    )
    one = found.isel(perturbation=0, observable=0).sel(estimator="fit")
    apart = one.sel(reference="true").l2_standard_error[1:]
    assert (apart < 0.5 * one.standard_error[1:]).all()


PROBES = """
import torch

def square(ds):
    return ds["T"] ** 2

def stretch(x):
    return x

def push(x):
    return torch.ones_like(x)
"""


@pytest.fixture
def probes(tmp_path, monkeypatch):
    """A module of the user's in the working folder."""
    (tmp_path / "my_probes.py").write_text(PROBES)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_functions_of_the_users_are_watched_and_kicked(many, probes):
    """x -> (1 + eps) x changes E[x^2] by 2 a^(2 lag); B = x^2 - 1 needs the divergence."""
    found = many.gfdt.response(
        max_lag=3.0, observables=["my_probes:square"], perturbations=["my_probes:stretch"]
    )
    one = found.isel(estimator=0, perturbation=0, observable=0)
    truth = 2 * 0.64 ** np.arange(7)
    assert (np.abs(one.response - truth) < 4 * one.standard_error).all()


def test_a_constant_push_is_a_kick(many, probes):
    """As a function it goes the way of directions that depend on the state: the same raw number,
    and the same repaired one but for how error bars know of the repair."""
    found = many.gfdt.response(max_lag=3.0, perturbations=["pixel", "my_probes:push"])
    pixel, push = (found.isel(estimator=0, observable=0, perturbation=i) for i in (0, 1))
    np.testing.assert_allclose(push.response_raw, pixel.response_raw, atol=1e-10)
    assert (np.abs(push.response - pixel.response) < 0.1 * pixel.standard_error.max()).all()


def test_dates_and_numbers_give_the_same_response(many):
    """Daily data have lags in days; a timedelta is a lag too."""
    numbers = many.assign_coords(time=np.arange(2000.0))
    days = np.datetime64("2001-03-01") + np.arange(2000).astype("timedelta64[D]")
    dates = many.assign_coords(time=days)
    one = numbers.gfdt.response(max_lag=5)
    for lag in (5, timedelta(days=5), np.timedelta64(5, "D"), np.timedelta64(120, "h")):
        two = dates.gfdt.response(max_lag=lag)
        np.testing.assert_array_equal(one.response, two.response)
        assert two.lag.attrs["units"] == "days" and two.lag[-1] == 5


def test_names_of_dimensions_are_the_users(many):
    """Given, or known from other fields; the order of dimensions does not matter."""
    plain = many.gfdt.response(max_lag=3.0)
    renamed = many.rename(time="when", member="which").transpose("when", "which")
    named = renamed.gfdt.response(max_lag=3.0, dims={"time": "when", "member": "which"})
    guessed = many.rename(time="t", member="realization").gfdt.response(max_lag=3.0)
    np.testing.assert_array_equal(named.response, plain.response)
    np.testing.assert_array_equal(guessed.response, plain.response)


def test_a_score_that_sees_nothing_is_told_and_left_alone(many):
    """M is noise: dividing by it would make the response infinite."""
    with pytest.warns(UserWarning, match="score 'noise' is far from a score of 1 of 1 numbers"):
        found = many.gfdt.response(max_lag=3.0, score={"noise": lambda x: torch.cos(50 * x)})
    assert np.isfinite(found.response).all() and np.isfinite(found.standard_error).all()
    np.testing.assert_allclose(found.response + found.bias, found.response_raw, atol=1e-12)


def test_observables_of_other_dimensions_are_nodes_of_a_tree(many):
    """A histogram has an axis of its own, which a number has not."""
    tree = many.gfdt.response(max_lag=3.0, observables=["field", "histogram"])
    assert isinstance(tree, xr.DataTree)
    assert "response" in tree and "response" in tree["histogram"]


LATE = {"time": np.arange(2000) * 0.25}

MISTAKES = {
    "lag beyond the data": (lambda d: d, {"max_lag": 1e4}, "needs 1 to 1999.*2000 times, 0.5"),
    "timedelta for numbers": (lambda d: d, {"max_lag": timedelta(1)}, "numbers; give a number"),
    "no time": (lambda d: d.isel(time=0), {}, "no variable of numbers with dimension 'time'"),
    "text": (lambda d: d.astype(str), {}, "no variable of numbers"),
    "gap inside": (
        lambda d: d.where(d.time != 7.5),
        {},
        "1 value of NaN or infinity.*member 0, time index 15;",
    ),
    "unknown dimension": (lambda d: d, {"dims": {"time": "tme"}}, "'tme'"),
    "scores at other times": (
        lambda d: d,
        {"score": lambda d: (-d).assign_coords(LATE)},
        "scores have time 0.0 to 499.75, the data 0.0 to 999.5",
    ),
    "scores of another length": (
        lambda d: d,
        {"score": lambda d: -d.isel(time=slice(9))},
        "the scores have .*'time': 9.*the data .*'time': 2000",
    ),
    "scores of another variable": (
        lambda d: d,
        {"score": lambda d: -d.rename(T="S")},
        "the scores have \\['S'\\]; need 'T' or 'score_T'",
    ),
    "a score of another shape": (
        lambda d: d,
        {"score": {"mean": lambda x: x.mean(1)}},
        "the score of .*\\(2, 1\\) has shape \\(2,\\); it must be a torch tensor of the same shape",
    ),
    "no such score": (lambda d: d, {"score": "gausian"}, "score='gausian': give 'gaussian'"),
    "no such observable": (lambda d: d, {"observables": ["men"]}, "did you mean 'mean'"),
    "too short for error bars": (
        lambda d: d.isel(member=0, time=slice(0, 60)),
        {"max_lag": 5.0},
        "1 member of 60 times: an error bar needs 8 blocks of 64",
    ),
    "a place that does not vary": (
        lambda d: xr.concat([d, d * 0], "x"),
        {},
        "1 of 2 places never vary, the first at flat index 1",
    ),
    "a variable that does not vary": (lambda d: d * 0, {}, "never var"),
    "a score that fails": (
        lambda d: d,
        {"score": {"mine": lambda x: x @ torch.ones(7, 7)}},
        "the score failed with RuntimeError: .*; mend the function",
    ),
    "a score of numpy": (lambda d: d, {"score": {"mine": lambda x: -x.numpy()}}, "type ndarray"),
    "a score that is no number": (
        lambda d: d,
        {"score": {"mine": lambda x: x / 0}},
        "the score has values that are no numbers",
    ),
    "no number for a lag": (lambda d: d, {"max_lag": float("nan")}, "max_lag=nan: needs a number"),
    "members of one member": (
        lambda d: d.isel(member=[0]),
        {"by": "member"},
        "by='member' with 1 member: needs 2",
    ),
    "no such resampling": (lambda d: d, {"by": "members"}, "by='members'; did you mean 'member'"),
    "no such bands": (lambda d: d, {"bands": "simultanous"}, "did you mean 'simultaneous'"),
    "no such level": (lambda d: d, {"level": 95}, "level=95: needs a probability"),
    "a single resample": (lambda d: d, {"samples": 1}, "samples=1: an error bar needs at least 2"),
    "nothing to watch": (lambda d: d, {"observables": []}, "no observable is given"),
    "too many variables for kgmm": (
        lambda d: d.expand_dims(x=9),
        {"score": "kgmm"},
        "the data have 9 variables a sample; kgmm needs at most 8",
    ),
}


OF_VALUES = {
    "gap inside",
    "a place that does not vary",
    "a variable that does not vary",
    "a score that is no number",
}
"""What only the values of the data show."""


@pytest.mark.parametrize("mistake", sorted(set(MISTAKES) - OF_VALUES))
def test_a_mistake_in_arguments_is_told_before_lazy_data_are_read(many, mistake):
    """When it is made, that is, and not hours later."""
    change, settings, message = MISTAKES[mistake]
    arguments = {"max_lag": 3.0} | settings
    if mistake.startswith("scores"):
        arguments["score"] = settings["score"](many)
    data = change(many).chunk()
    with dask.config.set(scheduler=_refuse), pytest.raises(UserError, match=message):
        data.gfdt.response(**arguments)


def _refuse(*_, **__):
    raise AssertionError("read")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(many, mistake):
    change, settings, message = MISTAKES[mistake]
    data = change(many)
    arguments = {"max_lag": 3.0} | settings
    given = arguments.get("score")
    if callable(given):
        arguments["score"] = given(many)
    with pytest.raises(UserError, match=message) as told:
        data.gfdt.response(**arguments)
    assert "\n" not in str(told.value)
