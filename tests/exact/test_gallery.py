"""Pictures where places differ, and of variables without space: rows of kicks, series, matrices."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from workflow.figures import MANNER, ensemble, responses, scores
from workflow.figures.gallery import gallery
from workflow.figures.maps import response_maps
from workflow.figures.page import page
from workflow.stages.overview import gaussian_lags, overview

ALL = ("gaussian", "neural", "exact", "direct")
N = 16


def _axes(space):
    return ("y", "x")[2 - space :]


def _field(space, members=5, times=40):
    """A smooth skewed field that drifts downstream."""
    draw = np.random.default_rng(1).standard_normal((members, times) + (N,) * space)
    k = np.meshgrid(*[np.fft.fftfreq(N, 1 / N)] * space, indexing="ij")
    axes = tuple(range(2, 2 + space))
    decay = 1 / (1 + sum(w**2 for w in k))
    noise = np.fft.ifftn(np.fft.fftn(draw, axes=axes) * decay, axes=axes).real
    for t in range(1, times):
        noise[:, t] = 0.9 * np.roll(noise[:, t - 1], 1, axis=-1) + 0.4 * noise[:, t]
    noise /= noise.std()
    return noise + 0.2 * noise**2


def an_ensemble(space=2, members=5):
    dims = ("member", "time", *_axes(space))
    attrs = {"long_name": "vorticity", "units": "s-1"}
    coords = {"member": np.arange(members), "time": 0.5 * np.arange(40)}
    return xr.Dataset({"u": (dims, _field(space, members), attrs)}, coords=coords).chunk(time=10)


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Few pixels: the suite needs to know that there is a picture, not to show it."""
    monkeypatch.setitem(MANNER, "savefig.dpi", 40)


def check(folder, drawn):
    written = {name for name, _ in drawn}
    assert written == {p.name for p in folder.glob("*.png")}
    for name, caption in drawn:
        pixels = imread(folder / name)
        assert pixels.shape[0] > 120 and pixels.shape[1] > 200, name
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20, name
        assert caption.endswith(".") and "nan" not in caption, caption


def a_row_of_kicks(*trailing, kicks=("pixel", "uniform"), names=ALL, even=False):
    """Responses of one observable to some kicks, with trailing dimensions of 6, known error."""
    random = np.random.default_rng(6)
    lag = 0.5 * np.arange(9)
    shape = (len(names), len(kicks), len(lag), *[6] * len(trailing))
    value = np.exp(-lag).reshape(-1, *[1] * len(trailing)) * (1 + 0 * random.random(shape))
    if not even:
        value = value * (1 + random.random(shape[3:]))
    value = value + 0.01 * random.standard_normal((len(names), 1, len(lag), *[1] * len(trailing)))
    dims = ("estimator", "perturbation", "lag", *trailing)
    keys = ("response", "ci_low", "ci_high", "standard_error")
    parts = (value, value - 0.02, value + 0.02, np.full(shape, 0.01))
    coords = {"estimator": list(names), "perturbation": list(kicks), "lag": lag}
    coords |= {d: np.arange(6) for d in trailing}
    return xr.Dataset({k: (dims, v) for k, v in zip(keys, parts, strict=True)}, coords)


def drawn_by(folder, every, **options):
    draws, left_out = gallery(every, folder, **options)
    return [draw() for draw in draws], left_out


def test_numbers_share_a_picture_and_rows_have_their_own(tmp_path, recwarn):
    """A matrix of observables and kicks is read at a glance; axes differ otherwise."""
    every = {name: a_row_of_kicks() for name in ("mean", "moment_2")}
    every |= {"spectrum": a_row_of_kicks("shell"), "histogram": a_row_of_kicks("bin")}
    drawn, left_out = drawn_by(tmp_path, every)
    assert len(drawn) == 3 and left_out == 0
    assert drawn[0][1].startswith("Responses of mean, moment_2 (rows) to unit pixel, uniform")
    check(tmp_path, drawn)
    assert not [str(w.message) for w in recwarn]


@pytest.mark.parametrize("trailing", [("y", "x"), ("x",)])
def test_maps_have_a_row_for_each_kick(tmp_path, trailing):
    drawn, _ = drawn_by(tmp_path, {"field": a_row_of_kicks(*trailing)})
    assert len(drawn) == 1 and "pixel, uniform (rows)" in drawn[0][1]
    check(tmp_path, drawn)


def test_what_is_the_same_at_every_place_is_a_number(tmp_path):
    """A map of one colour says less than its curve."""
    drawn, _ = drawn_by(tmp_path, {"field": a_row_of_kicks("dy", "dx", even=True)})
    assert [caption.endswith("They are the same at every place.") for _, caption in drawn] == [True]


def test_a_gallery_tells_how_many_pictures_it_leaves_out(tmp_path):
    every = {f"field:{i}": a_row_of_kicks("x") for i in range(5)}
    drawn, left_out = gallery(every, tmp_path, limit=2)
    assert (len(drawn), left_out) == (2, 3)
    text = page("a", {}, [], gallery=[("a.png", "A.")], left_out=left_out)
    assert "<h2>All responses</h2>" in text and "3 more pictures are left out" in text
    assert "All responses" not in page("a", {}, [])


@pytest.mark.parametrize("trailing", [("y", "x"), ("x",)])
def test_places_are_named_where_they_are_not_alike(tmp_path, trailing):
    """The kicked place answers first, whichever it is."""
    data = a_row_of_kicks(*trailing)
    data["response"] = data.response.where(data.lag > 0, 0.0)
    kicked = dict.fromkeys(trailing, 4) | {"estimator": slice(None), "perturbation": 0, "lag": 0}
    data.response[{d: kicked[d] for d in data.response.dims}] = 1.0
    one = data.isel(perturbation=0)
    assert responses.strong_places(one, count=2)[0] == dict.fromkeys(trailing, 4.0)
    drawn = [responses.curves(one, tmp_path), response_maps(one, tmp_path)]
    assert "on the grid of the fields" in drawn[1][1]
    check(tmp_path, drawn)


def a_series(names=("a", "b")):
    random = np.random.default_rng(7).standard_normal((3, 400))
    random = random / random.std()
    coords = {"member": np.arange(3), "time": np.arange(400.0)}
    return xr.Dataset({n: (("member", "time"), random + i) for i, n in enumerate(names)}, coords)


def test_variables_without_space_are_series_and_densities(tmp_path):
    data = a_series()
    drawn = [ensemble.series(data, tmp_path), ensemble.densities(data, tmp_path)]
    assert "a: standard deviation 1" in drawn[1][1] and "b: " in drawn[1][1]
    check(tmp_path, drawn)


def test_a_field_that_is_not_homogeneous_has_no_spectrum(tmp_path):
    """Its mean differs from place to place, which is no variance."""
    data = an_ensemble(1)
    data["u"] = data.u + 100 * xr.DataArray(np.arange(N), dims="x")
    drawn = [ensemble.density_and_spectrum(data, tmp_path, homogeneous=False)]
    assert "standard deviation by place" in drawn[0][1] and "standard deviation 0.9" in drawn[0][1]
    check(tmp_path, drawn)


def a_stein(*waves):
    matrix = np.eye(2).reshape(1, 2, 2, *[1] * len(waves)) + 0.01 * np.ones(
        (2, 1, 1, *[8] * len(waves))
    )
    dims = ("estimator", "number", "kicked_number", *waves)
    coords = {"estimator": ["gaussian", "kgmm"]} | {k: np.arange(8) - 4 for k in waves}
    return xr.Dataset({"stein": (dims, matrix)}, coords)


@pytest.mark.parametrize("waves", [(), ("kx",), ("ky", "kx")])
def test_the_stein_identity_of_several_numbers_is_a_matrix(tmp_path, waves):
    drawn = [scores.stein(a_stein(*waves), tmp_path)]
    assert "Largest |M - I|: kgmm 0.01, gaussian 0.01." in drawn[0][1]
    check(tmp_path, drawn)


def test_the_stein_identity_of_one_number_is_no_picture(tmp_path):
    one = xr.Dataset({"stein": ("estimator", [1.0])}, {"estimator": ["gaussian"]})
    assert scores.stein(one, tmp_path) is None


def test_equal_responses_are_not_called_non_gaussian():
    """Noise of 16 places and 40 lags would cross three errors somewhere; the threshold knows."""
    random = np.random.default_rng(8)
    data = a_row_of_kicks("x", names=("kgmm", "gaussian")).isel(perturbation=0)
    data["response"] = 0.01 * xr.DataArray(
        random.standard_normal(data.response.shape), dims=data.response.dims
    )
    assert gaussian_lags(data, "kgmm") == [0, 8]
    off = data.response.copy()
    off.loc[{"estimator": "kgmm", "lag": 1.0, "x": 2}] += 0.1
    assert gaussian_lags(data.assign(response=off), "kgmm") == [1, 8]


def test_the_overview_holds_every_pair_and_the_sensitivity_of_numbers():
    """exp(-lag) integrates to 1 - exp(-4), by trapezoids of 0.5 to 2 % above it."""
    number = a_row_of_kicks(even=True)
    number["response"] = np.exp(-number.lag) * xr.ones_like(number.response)
    for key in ("l2", "linf", "l2_corrected", "l2_squared"):
        for end in ("", "_standard_error"):
            nothing = np.full((len(ALL), 2, 2, 9), np.nan)
            number[key + end] = (("estimator", "reference", "perturbation", "lag"), nothing)
    number = number.assign_coords(reference=["direct", "exact"])
    found = overview({"mean": number})
    assert set(found) == {"pixel", "uniform"}
    one = found["pixel"]["mean"]["neural"]
    trapezoid = float(np.trapezoid(np.exp(-number.lag.values), number.lag.values))
    assert np.isclose(one["sensitivity"], trapezoid, rtol=1e-12) and one["until"] == 4.0
    assert one["against"]["direct"]["lags"] == [0, 0]
    assert "differs_from_gaussian" not in found["pixel"]["mean"]["direct"]


def test_the_overview_tells_how_many_pairs_it_leaves_out(monkeypatch):
    """summary.json is read by people and must stay small."""
    monkeypatch.setattr("workflow.stages.overview.PAIRS", 1)
    data = a_row_of_kicks(names=("gaussian",))
    found = overview({"mean": data, "moment_2": data})
    assert list(found) == ["pixel", "left_out"] and found["left_out"] == 3
