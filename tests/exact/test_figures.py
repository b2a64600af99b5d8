"""Every picture is drawn from small data, whatever estimators and dimensions there are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from workflow.figures import MANNER, by_shell, ensemble, responses, scores
from workflow.figures.maps import response_maps
from workflow.stages.overview import compare
from workflow.stages.summary import as_json

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


def some_scores(space=2, names=("gaussian", "neural", "exact"), test_members=(3, 4)):
    x = _field(space)
    noise = np.random.default_rng(2).standard_normal((2, *x.shape))
    exact = -x - 0.3 * x**3
    known = {"exact": exact, "neural": exact + 0.1 * noise[0], "gaussian": -2 * x + 0.1 * noise[1]}
    dims = ("estimator", "member", "time", *_axes(space))
    return xr.Dataset(
        {"score_u": (dims, np.stack([known[n] for n in names]))},
        coords={"estimator": list(names), "member": np.arange(5)},
        attrs={"test_members": list(test_members)} if test_members else {},
    ).chunk(time=10)


def a_response(space=2, names=ALL, half=False):
    """A pulse that drifts downstream, widens and decays."""
    random = np.random.default_rng(3)
    lag = 0.5 * np.arange(41)
    step = np.arange(N) - N // 2
    t = lag.reshape(-1, *(1,) * space)
    grid = np.meshgrid(*[step] * space, indexing="ij")
    width = 0.25 + 0.8 * t
    distance = (grid[-1] - 0.8 * t) ** 2 + sum(g**2 for g in grid[:-1])
    truth = np.exp(-distance / (2 * width) - 0.05 * t) / (1 + 0.3 * t) ** (space / 2)
    scale = {"gaussian": 0.7, "neural": 0.97, "exact": 1.0, "direct": 1.0}
    value = np.stack(
        [truth * scale[n] + 0.004 * random.standard_normal(truth.shape) for n in names]
    )
    value[list(names).index("direct") if "direct" in names else slice(0), lag > 15] = np.nan
    d, k = [f"d{n}" for n in _axes(space)], [f"k{n}" for n in _axes(space)]
    dims = ("estimator", "perturbation", "observable", "lag", *d)
    value = value[:, None, None]
    error = np.full_like(value, 0.004)
    waves = [step] * (space - 1) + [np.arange(N // 2 + 1) if half else step]
    radius = np.sqrt(sum(w**2 for w in np.meshgrid(*waves, indexing="ij")))
    stein = np.stack([1 - {"gaussian": 0, "neural": 0.02}.get(n, 0.001) * radius for n in names])
    stein = stein + 0.002 * random.standard_normal(stein.shape)
    stein[[n == "direct" for n in names]] = np.nan
    unresolved = np.broadcast_to(radius > 10, stein.shape)
    dataset = xr.Dataset(
        {
            "response": (dims, value),
            "response_raw": (dims, value),
            "standard_error": (dims, error),
            "ci_low": (dims, value - 2 * error),
            "ci_high": (dims, value + 2 * error),
            "stein": (("estimator", *k), stein),
            "unresolved": (("estimator", *k), unresolved),
        },
        coords={"estimator": list(names), "perturbation": ["pixel:u"], "observable": ["field:u"]}
        | {"lag": lag}
        | {n: step for n in d}
        | dict(zip(k, waves, strict=True)),
    )
    return dataset.assign(_distances(dataset, names, d))


def _distances(dataset, names, displacement):
    one = dataset.response.isel(perturbation=0, observable=0)
    found = {"l2": [], "linf": []}
    for name in names:
        for reference in ("direct", "exact"):
            known = reference in names and reference != name
            gap = one.sel(estimator=name) - (one.sel(estimator=reference) if known else np.nan)
            found["l2"].append(np.sqrt((gap**2).sum(displacement, skipna=False)))
            found["linf"].append(abs(gap).max(displacement, skipna=False))
    out = {}
    for norm, values in found.items():
        array = np.stack(values).reshape(len(names), 2, -1)
        out[norm] = (("estimator", "reference", "lag"), array)
        out[f"{norm}_standard_error"] = (("estimator", "reference", "lag"), 0.05 * array + 0.003)
    return xr.Dataset(out, coords={"reference": ["direct", "exact"]})


def a_log(lines=300):
    random = np.random.default_rng(4)
    loss = -1 - 0.3 * (1 - np.exp(-np.arange(lines) / 40)) + 0.05 * random.standard_normal(lines)
    loss[0] = 40
    log = [{"step": 10 * i, "loss": float(v)} for i, v in enumerate(loss)]
    for row in log[::30]:
        row["test_loss"] = row["loss"] + 0.02 if row["step"] else -1.0
        row |= {"stein": [0.5, 0.7, 0.9, 1.0], "skipped": 0}
    return log


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Few pixels: the suite needs to know that there is a picture, not to show it."""
    monkeypatch.setitem(MANNER, "savefig.dpi", 40)


def draw_all(folder, space, names):
    learned = tuple(n for n in names if n != "direct")
    response = a_response(space, names)
    data = an_ensemble(space)
    drawn = [
        ensemble.snapshots(data, folder),
        ensemble.density_and_spectrum(data, folder),
        scores.against_exact(some_scores(space, learned), folder),
        scores.stein(response, folder),
        responses.curves(response, folder),
        response_maps(response, folder),
    ]
    drawn.append(responses.errors(response, folder))
    drawn.append(scores.training(a_log(), folder, baseline=-1.0))
    return drawn


def check(folder, drawn):
    written = {name for name, _ in drawn}
    assert written == {p.name for p in folder.glob("*.png")}
    for name, caption in drawn:
        pixels = imread(folder / name)
        assert pixels.shape[0] > 120 and pixels.shape[1] > 200, name
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20, name
        assert caption.endswith(".") and "nan" not in caption, caption


@pytest.mark.parametrize("space", [1, 2])
def test_every_picture_is_drawn_without_warnings(tmp_path, space, recwarn):
    drawn = draw_all(tmp_path, space, ALL)
    assert len({name for name, _ in drawn}) == 8
    check(tmp_path, drawn)
    assert not [str(w.message) for w in recwarn]


def test_without_references_what_needs_one_is_left_out(tmp_path):
    """A user's own data has neither an exact score nor paired runs."""
    learned = ("gaussian", "neural")
    response = a_response(2, learned, half=True)
    assert responses.errors(response, tmp_path) is None
    scatter = scores.against_exact(some_scores(names=learned), tmp_path)
    assert "No exact score is known" in scatter[1]
    drawn = [scatter, scores.stein(response, tmp_path), responses.curves(response, tmp_path)]
    drawn.append(ensemble.snapshots(an_ensemble(members=2), tmp_path))
    check(tmp_path, drawn)


def test_direct_alone_has_curves_and_maps_only(tmp_path):
    response = a_response(1, ("direct",))
    assert scores.stein(response, tmp_path) is None
    assert responses.errors(response, tmp_path) is None
    check(tmp_path, [responses.curves(response, tmp_path), response_maps(response, tmp_path)])


@pytest.mark.parametrize("names", [("gaussian", "direct"), ("neural",)])
def test_any_estimators_can_be_missing(tmp_path, names, recwarn):
    response = a_response(1, names)
    drawn = [responses.curves(response, tmp_path), response_maps(response, tmp_path)]
    drawn += [responses.errors(response, tmp_path), scores.stein(response, tmp_path)]
    check(tmp_path, [one for one in drawn if one is not None])
    assert not [str(w.message) for w in recwarn]


def test_a_response_without_space_is_one_curve_and_no_map(tmp_path):
    """A mean has a response of its own; its labels choose it."""
    one = a_response(1).isel(dx=N // 2)
    other = one.assign_coords(perturbation=["uniform"], observable=["mean"])
    both = xr.concat([one, other], "observable", data_vars="minimal", join="outer")
    both = both.isel(perturbation=[1])
    chosen = {"perturbation": "uniform", "observable": "mean"}
    name, caption = responses.curves(both, tmp_path, **chosen)
    assert caption.startswith("Response of mean to a unit kick of uniform, with 95 % confidence")
    assert "The direct response is known until lag 15." in caption
    assert response_maps(both, tmp_path, **chosen) is None
    check(tmp_path, [(name, caption)])


def test_the_labels_choose_what_is_drawn(tmp_path):
    one = a_response(2, ("exact",))
    other = one.assign_coords(observable=["other"])
    other["response"] = 2 * other.response
    both = xr.concat([other, one], "observable", data_vars="minimal")
    responses.curves(both, tmp_path / "a", observable="field:u")
    responses.curves(one, tmp_path / "b")
    a, b = (imread(tmp_path / n / "response_curves.png") for n in "ab")
    assert np.array_equal(a, b)
    with pytest.raises(KeyError):
        responses.curves(both, tmp_path, observable="none")


def test_a_small_grid_has_fewer_responders(tmp_path):
    small = a_response(1, ("direct",)).sel(dx=slice(-4, 3))
    check(tmp_path, [responses.curves(small, tmp_path)])


def test_a_single_score_or_an_empty_log_is_no_picture(tmp_path):
    assert scores.against_exact(some_scores(names=("neural",)), tmp_path) is None
    assert scores.training([], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_caption_holds_the_error_of_the_held_out_members(tmp_path):
    data = some_scores()
    _, caption = scores.against_exact(data, tmp_path)
    held = data.score_u.sel(member=[3, 4]).values
    neural, exact = held[1], held[2]
    r2 = 1 - np.sum((neural - exact) ** 2) / np.sum((exact - exact.mean()) ** 2)
    relative = np.sqrt(np.sum((neural - exact) ** 2) / np.sum(exact**2))
    assert f"neural: R² = {r2:.4f}, relative error {relative:.3f}." in caption
    assert "2 held-out members" in caption


@pytest.mark.parametrize("space", [1, 2])
def test_shells_hold_all_of_the_variance(space):
    """Parseval: the spectrum sums to the variance, whatever the shells."""
    x = np.random.default_rng(5).standard_normal((N,) * space)
    power = np.abs(np.fft.fftn(x - x.mean())) ** 2 / x.size**2
    waves = np.meshgrid(*[np.fft.fftfreq(N, 1 / N)] * space, indexing="ij")
    radius = np.sqrt(sum(w**2 for w in waves)).ravel()
    _, total, count = by_shell(power.ravel(), radius, np.ones(x.size))
    assert np.isclose(total.sum(), x.var(), rtol=1e-12)
    assert count.sum() == x.size


def _noisy(names, *, off):
    """A response with squared distances of `off` standard errors at every lag."""
    data = a_response(1, names).assign_coords(perturbation=["pixel"], observable=["field"])
    known = data.l2.notnull()
    more = {"l2_squared": xr.where(known, off, np.nan)}
    more |= {"l2_squared_standard_error": xr.where(known, 1.0, np.nan)}
    more |= {"l2_corrected": data.l2, "l2_corrected_standard_error": data.l2_standard_error}
    return data.assign(more)


def test_a_sum_over_no_significant_lag_is_null():
    """An empty sum is 0 and would be the best number of the table."""
    found = compare(_noisy(ALL, off=2.9), "neural", "direct")
    assert found["summed_lags"] == found["different_lags"] == []
    assert found["compared_lags"] == 30
    keys = [key for key in found if key.startswith(("summed_l", "relative")) and "lags" not in key]
    assert len(keys) == 9 and all(found[key] is None for key in keys)
    assert compare(_noisy(ALL[1:], off=9.0), "neural", "direct")["summed_l2"] is None


def test_a_sum_holds_the_lags_known_to_both():
    """Direct ends early: its distance from the exact score is summed until there."""
    data = _noisy(ALL, off=3.1)
    found = compare(data, "direct", "exact")
    assert found["summed_lags"] == [float(t) for t in data.lag[1:31]]
    l2 = data.l2.sel(estimator="direct", reference="exact")[1:31]
    assert np.isclose(found["summed_l2"], float(l2.sum()))
    assert len(compare(data, "neural", "exact")["summed_lags"]) == 40


def test_the_distance_as_a_share_has_the_noise_of_both_taken_out():
    data = _noisy(ALL, off=3.1)
    found = compare(data, "neural", "exact")
    one = data.isel(perturbation=0, observable=0).sel(estimator="exact")
    size = float((one.response**2 - 0.004**2).sum("dx").clip(min=0)[1:].sum())
    far = (
        data.sel(estimator="neural", reference="exact").squeeze(drop=True).isel(lag=slice(1, None))
    )
    square, error = float(far.l2_squared.sum()), float(far.l2_squared_standard_error.sum())
    assert square > 3 * error
    assert found["relative_distance"] == pytest.approx((square / size) ** 0.5)
    slope = 0.5 / (square * size) ** 0.5  # of the share by the square
    assert found["relative_distance_standard_error"] == pytest.approx(slope * error)
    above = ((square + 1.6449 * error) / size) ** 0.5
    assert found["relative_distance_below"] == pytest.approx(above, rel=1e-4)


def test_noise_alone_is_no_distance_but_has_a_bound():
    """Squares without noise are as often below 0 as above."""
    data = _noisy(ALL, off=3.1)
    quiet = {"estimator": "neural", "reference": "exact"}
    data["l2_squared"] = data.l2_squared.copy()
    data.l2_squared.loc[quiet] = -0.1 * data.l2_squared_standard_error.loc[quiet]
    found = compare(data, "neural", "exact")
    assert found["relative_distance"] is found["relative_distance_standard_error"] is None
    error = float(data.l2_squared_standard_error.sel(quiet)[..., 1:].sum())
    one = data.isel(perturbation=0, observable=0).sel(estimator="exact")
    size = float((one.response**2 - 0.004**2).sum("dx").clip(min=0)[1:].sum())
    bound = (1.6449 * error / size) ** 0.5
    assert found["relative_distance_below"] == pytest.approx(bound, rel=1e-4)


def test_the_summary_is_json_with_a_line_for_every_list():
    content = {"a": {"b": [1.0, None, [2]], "c": {}}, "d": 'x "y"'}
    text = as_json(content)
    assert json.loads(text) == content
    assert '    "b": [1.0, null, [2]],\n' in text and len(text.splitlines()) == 7
    with pytest.raises(ValueError):
        as_json({"a": float("nan")})
