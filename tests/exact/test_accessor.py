"""`ds.gfdt`: scores, the identity and pictures of labelled data, eager and lazy."""

from __future__ import annotations

import warnings

import dask
import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr

import workflow  # noqa: F401  registers the accessor
from workflow.dynamics import build_system
from workflow.interfaces import UserError

matplotlib.use("Agg")
DECAY = 0.8


def walk(shape, members=16, times=400, seed=2):
    """Linear process of unit variance per number, dims (run, t, ...)."""
    rng = np.random.default_rng(seed)
    x = np.empty((members, times, *shape))
    x[:, 0] = rng.standard_normal((members, *shape))
    for t in range(1, times):
        noise = np.sqrt(1 - DECAY**2) * rng.standard_normal((members, *shape))
        x[:, t] = DECAY * x[:, t - 1] + noise
    return x


@pytest.fixture(scope="module")
def pair():
    """Two variables without space, with units."""
    x = walk((2,))
    data = xr.Dataset(
        {"T": (("run", "t"), x[..., 0]), "h": (("run", "t"), x[..., 1])},
        coords={"t": ("t", 0.5 * np.arange(400), {"units": "day"})},
    )
    data["T"].attrs = {"units": "K", "long_name": "temperature"}
    return data


@pytest.fixture(scope="module")
def plane():
    """A field of unit white noise in space on 4 x 6."""
    return xr.Dataset({"u": (("member", "time", "lat", "lon"), walk((4, 6)))})


def test_the_gaussian_score_of_unit_white_noise_is_minus_x(pair):
    """s = -C^-1 (x - m) with C near 1: off by the sampling error of C, a few per cent."""
    found = pair.gfdt.score(dims={"time": "t", "member": "run"})
    assert set(found) == {"score_T", "score_h"} and found.score_T.dims == ("run", "t")
    assert found.score_T.attrs["units"] == "(K)-1"
    assert found.score_T.attrs["long_name"] == "score of temperature"
    assert found.attrs["Conventions"] == "CF-1.11"
    assert np.corrcoef(found.score_T.values.ravel(), -pair["T"].values.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("homogeneous", [False, True])
def test_scores_of_lazy_data_are_lazy_and_the_same(plane, homogeneous):
    lazy = plane.chunk(member=4, time=100)
    with dask.config.set(scheduler=_refuse):
        with pytest.raises(AssertionError, match="computed"):
            lazy.u.compute()
    count = []
    with dask.config.set(scheduler=lambda dsk, keys, **kw: count.append(1) or dask.get(dsk, keys)):
        found = lazy.gfdt.score(homogeneous=homogeneous)
    assert not count
    assert found.score_u.chunks is not None
    eager = plane.gfdt.score(homogeneous=homogeneous)
    xr.testing.assert_allclose(found.compute(), eager, rtol=1e-10)
    assert found.score_u.attrs == eager.score_u.attrs


def _refuse(*_, **__):
    raise AssertionError("computed")


def test_the_identity_of_a_fitted_gaussian_score_is_one(pair, plane):
    """-<x s^T> = C^-1 C of the same snapshots."""
    found = pair.gfdt.stein(dims={"time": "t", "member": "run"})
    assert found.stein.dims == ("variable", "kicked_variable")
    assert np.abs(found.stein - found.expected).max() < 0.02
    assert (np.abs(found.stein - found.expected) < 4 * found.standard_error).all()
    maps = plane.gfdt.stein(homogeneous=True)
    assert maps.stein.dims == ("variable", "kicked_variable", "ky", "kx")
    assert float(np.abs(maps.stein - 1).max()) < 0.3 and float(maps.stein.mean()) > 0.97
    whole = plane.gfdt.stein()
    assert whole.stein.sizes == {"number": 24, "kicked_number": 24}
    assert float(np.abs(whole.stein - whole.expected).max()) < 0.1


def test_the_identity_of_half_the_score_is_one_half(plane):
    """M is linear in the score: exactly, whatever the sample."""
    score = plane.gfdt.score(homogeneous=True)
    whole = plane.gfdt.stein(score, homogeneous=True)
    half = plane.gfdt.stein(0.5 * score, homogeneous=True)
    xr.testing.assert_allclose(half.stein, 0.5 * whole.stein)
    lazy = plane.chunk(time=100).gfdt.stein(score.chunk(time=100), homogeneous=True)
    assert lazy.stein.chunks is not None
    xr.testing.assert_allclose(lazy.stein.compute(), whole.stein)


def test_a_score_given_as_a_function_may_be_lazy(pair):
    pair = pair.rename(run="member", t="time")
    found = pair.chunk(member=4).gfdt.score(lambda x: -2.0 * x)
    assert found.score_h.chunks is not None
    xr.testing.assert_allclose(found.score_h.compute().drop_attrs(), -2.0 * pair.h)


@pytest.mark.parametrize("chunks", [None, {"member": 4}])
def test_a_score_given_other_variables_is_conditional(chunks):
    """s = -(x - m - b (y - <y>)) / v of x = b y + noise of variance v; shrinking costs .004."""
    y, noise = walk((), seed=3), walk((), seed=4)
    x = 0.8 * y + 0.6 * noise
    data = xr.Dataset({"y": (("member", "time"), y), "x": (("member", "time"), x)})
    told = data if chunks is None else data.chunk(chunks)
    found = told.gfdt.score(given="y")
    assert set(found) == {"score_x"} and (found.score_x.chunks is None) == (chunks is None)
    moments = np.cov([x.ravel(), y.ravel()])
    slope = moments[0, 1] / moments[1, 1]
    rest = x - x.mean() - slope * (y - y.mean())
    np.testing.assert_allclose(found.score_x, -rest / rest.var(), rtol=0.01, atol=0.02)
    tested = told.gfdt.stein(given="y")
    assert tested.stein.sizes == {"variable": 1, "kicked_variable": 1}
    assert abs(float(tested.stein.squeeze()) - 1) < 0.02
    by_hand = told.gfdt.score(lambda z: z[:, :1] - z[:, 1:], given=["y"]).score_x
    np.testing.assert_allclose(by_hand, x - y)
    with pytest.raises(UserError, match="given has 'z', which is not saved; choose from"):
        told.gfdt.score(given="z")


def test_data_of_other_chunks_or_half_in_memory_are_lazy_too(pair):
    pair = pair.rename(run="member", t="time")
    whole = pair.gfdt.score()
    for name, chunks in (("T", {"time": 100}), ("T", {"member": 4})):
        mixed = pair.assign(h=pair.h.chunk(member=8), **{name: pair[name].chunk(chunks)})
        xr.testing.assert_allclose(mixed.gfdt.score().compute(), whole)
    half = pair.assign(T=pair["T"].chunk(member=4)).gfdt.score()
    assert half.score_h.chunks is not None
    xr.testing.assert_allclose(half.compute(), whole)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("gausian", "give 'gaussian', 'kgmm', 'exact' with a system"),
        (lambda x: x.numpy(), "must be a torch tensor"),
        (lambda x: x[:, :1], "it must be a torch tensor of the same shape"),
    ],
)
def test_a_mistaken_score_is_told_before_anything_is_computed(pair, lazy, score, message):
    pair = pair.rename(run="member", t="time")
    with pytest.raises(UserError, match=message):
        (pair.chunk(member=4) if lazy else pair).gfdt.score(score)


def test_scores_of_other_times_are_not_taken_for_those_of_the_data(pair):
    pair = pair.rename(run="member", t="time")
    scores = pair.gfdt.score()
    with pytest.raises(UserError, match="the scores have time"):
        pair.gfdt.stein(scores.assign_coords(time=scores.time + 50))
    with pytest.raises(UserError, match="need 'h' or 'score_h'"):
        pair.gfdt.stein(scores.drop_vars("score_h"))
    with pytest.raises(UserError, match="evaluate the score at the same members"):
        pair.gfdt.stein(scores.isel(time=slice(10)))


def test_an_exact_score_takes_its_fields_by_name():
    """Variables of a store come by name, those of the system as x1, x2, ..., x10."""
    decay = np.diag(np.linspace(1, 10, 10))
    system = build_system(
        {"kind": "linear", "matrix": decay.tolist(), "noise": np.eye(10).tolist()}
    )
    names = [field.name for field in system.fields]
    x = np.random.default_rng(5).standard_normal((2, 50, 10))
    data = xr.Dataset({name: (("member", "time"), x[..., i]) for i, name in enumerate(names)})
    found = data.gfdt.score("exact", system=system)
    exact = system.exact_score(torch.from_numpy(x.reshape(-1, 10))).reshape(x.shape)
    for i, name in enumerate(names):
        np.testing.assert_allclose(found[f"score_{name}"], exact[..., i])
    with pytest.raises(UserError, match="rename the variables to the fields of the system"):
        data.rename(x1="y").gfdt.score("exact", system=system)


@pytest.mark.parametrize("store", ["netcdf", "zarr"])
def test_answers_survive_files(plane, pair, store, tmp_path):
    """Values, coordinates and attributes, of maps and of plain numbers."""
    names = {"time": "t", "member": "run"}
    answers = [
        plane.gfdt.response(max_lag=3, homogeneous=True, samples=50),
        pair.gfdt.response(max_lag=1.5, dims=names, samples=50),
        pair.gfdt.score(dims=names),
        plane.gfdt.stein(homogeneous=True),
    ]
    for number, answer in enumerate(answers):
        path = tmp_path / str(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if store == "zarr":
                answer.to_zarr(path)
                back = xr.open_zarr(path).load()
            else:
                answer.to_netcdf(path)
                back = xr.open_dataset(path).load()
        # NetCDF and Zarr have strings of one kind only.
        xr.testing.assert_equal(back.astype("float64"), answer.astype("float64"))
        assert dict(back.attrs) == dict(answer.attrs)
        for name in answer.variables:
            if answer[name].dtype.kind == "f":
                assert dict(back[name].attrs) == dict(answer[name].attrs), name


def test_answers_have_units_and_names(pair):
    found = pair.gfdt.response(max_lag=1.5, dims={"time": "t", "member": "run"}, samples=50)
    assert found.lag.attrs == {"long_name": "time since the kick", "units": "day"}
    assert found.attrs["Conventions"].startswith("CF-")
    assert all(found[n].attrs.get("long_name") for n in found.data_vars)


def test_one_call_draws_curves_and_maps(plane):
    found = plane.gfdt.response(max_lag=3, homogeneous=True, samples=50)
    panel = found.gfdt.plot.response(dx=1)
    (curve,) = [one for one in panel.get_lines() if one.get_label() == "gaussian"]
    assert np.array_equal(curve.get_ydata(), found.response.sel(dx=1, dy=0).squeeze())
    assert panel.get_title() == "field after pixel (dx = 1, dy = 0)"
    drawn = found.gfdt.plot.map(lag=2.2)
    assert drawn.get_title() == "gaussian, lag 2"
    values = drawn.collections[0].get_array()
    assert np.array_equal(np.asarray(values), found.response.sel(lag=2).squeeze())
    matplotlib.pyplot.close("all")


def test_curves_of_data_where_places_differ_are_of_the_one_that_answers_most():
    x = xr.DataArray(walk((5,)), dims=("member", "time", "x"), name="u")
    found = x.gfdt.response(max_lag=2, perturbations=[{"kind": "mode", "k": [1]}], samples=50)
    panel = found.gfdt.plot.response()
    best = int(abs(found.response.squeeze()).max("lag").argmax("x"))
    assert f"x = {best}" in panel.get_title()
    matplotlib.pyplot.close("all")


def test_what_cannot_be_drawn_or_tested_is_said_in_a_line(plane, pair):
    with pytest.raises(UserError, match="these data hold no responses"):
        plane.gfdt.plot.response()
    found = plane.gfdt.response(max_lag=3, homogeneous=True, samples=50)
    with pytest.raises(UserError, match="observable='feild'; did you mean 'field'"):
        found.gfdt.plot.response(observable="feild")
    with pytest.raises(UserError, match="estimator='gausian'; did you mean 'gaussian'"):
        found.gfdt.plot.map(lag=1, estimator="gausian")
    flat = pair.gfdt.response(max_lag=1.5, dims={"time": "t", "member": "run"}, samples=50)
    with pytest.raises(UserError, match="a map needs two dimensions of space"):
        flat.gfdt.plot.map(lag=1)
    with pytest.raises(UserError, match="give homogeneous=True"):
        xr.DataArray(np.zeros((2, 4, 70, 70)), dims=("member", "time", "y", "x")).gfdt.stein(
            lambda x: x
        )
    gap = pair.rename(run="member", t="time").copy(deep=True)
    gap["T"][3, 7] = np.nan
    with pytest.raises(UserError, match=r"no numbers|NaN or infinity"):
        gap.chunk(member=4).gfdt.score(lambda x: -x).compute()
