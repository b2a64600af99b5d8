"""Every picture is drawn from small data, whatever estimators and dimensions there are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from workflow.figures import MANNER, by_shell, ensemble, responses, scores
from workflow.figures.gallery import gallery
from workflow.figures.maps import response_maps
from workflow.figures.page import page
from workflow.figures.words import findings, with_error
from workflow.stages.overview import compare, gaussian_lags, overview
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


SUMMARY = {
    "system": {"kind": "allen_cahn"},
    "sizes": {
        "members": 128,
        "length": 2000.0,
        "grid": [32, 32],
        "pairs": 12800,
        "network_parameters": 38306,
        "bytes": {"ensemble.zarr": 3 * 2**20},
    },
    "estimators": {
        "gaussian": {
            "against": {"direct": {"summed_l2": 1.25, "summed_l2_standard_error": 0.04}},
            "stein_error_raw": 1e-7,
            "stein_error_recalibrated": float("nan"),
        },
        "<b>own</b>": {"against": {}},
        "direct": {},
    },
    "wall_seconds": {"simulate": 12.3456},
    "versions": {"numpy": "2.3.0 & more"},
}


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_alone():
    """It is opened by double click, offline, years later."""
    figures = [("a.png", 'a "caption" with <script>')]
    text = page("A & B", SUMMARY, figures, experiment="name: <own>\nseed: 1\n")
    tags = _Tags()
    tags.feed(text)
    assert not tags.open
    assert ("script", {}) not in tags.seen and ("b", {}) not in tags.seen
    assert not re.search(r"https?://|@import|url\(", text)
    linked = [v for _, attrs in tags.seen for k, v in attrs.items() if k in ("src", "href")]
    assert linked == ["a.png"]
    for needed in ("1.25 ± 0.04", "1e-07", "A &amp; B", "12.35", "2.3.0 &amp; more", "3 MiB"):
        assert needed in text
    assert "32 × 32" in text and "38306" in text and "name: &lt;own&gt;\nseed: 1</pre>" in text


def test_a_sum_over_no_lag_is_a_dash():
    nothing = {"summed_l2": None, "summed_l2_standard_error": None, "summed_lags": []}
    text = page("short", {"estimators": {"neural": {"against": {"direct": nothing}}}}, [])
    assert "<td>–</td>" in text and "None" not in text


def test_a_page_of_an_empty_summary_is_a_page():
    text = page("empty", {}, [])
    assert "<h1>empty</h1>" in text
    assert not re.search("<h2>|<pre>|None", text)


def _against(value, different, *, compared=20):
    found = {"compared_lags": compared, "different_lags": [float(t) for t in range(different)]}
    if value is None:
        one = {"summed_lags": [], "summed_l2": None, "l2": [0.0, 0.2, None]}
        return found | one | {"l2_standard_error": [0.0, 0.05, None]}
    found |= {"summed_lags": [1.0, 2.0], "summed_l2": value, "relative_l2": value / 4}
    return found | {"summed_l2_standard_error": 0.11}


def _told(**direct):
    """Findings of estimators with these distances from the paired runs."""
    stein = {"stein_error_raw": 0.1375, "stein_error_raw_by_shell": [0.1, 0.37, None]}
    known = {name: {"against": {"direct": one}} | stein for name, one in direct.items()}
    summary = {"estimators": known | {"direct": {"against": {}}}, "wavenumber": [0, 1, 2]}
    return findings(summary)


def test_the_words_rank_the_estimators_by_the_numbers_of_the_summary():
    """The words are what most readers read, so they must turn when the numbers do."""
    good, bad = _against(0.4, 0), _against(1.64, 6)
    text = _told(neural=good, gaussian=bad)[0]
    assert "neural 0.40 ± 0.11 (10 % of the response), gaussian 1.64 ± 0.11 (41 %" in text
    assert "Neural is within three standard errors of it at all 20 lags; gaussian is off" in text
    assert "gaussian is off by more than three standard errors at 6 of 20 lags" in text
    turned = _told(neural=bad, gaussian=good)[0]
    assert "gaussian 0.40 ± 0.11 (10 % of the response), neural 1.64" in turned
    assert "gaussian is within three" in turned


def test_the_words_say_what_the_exact_score_says_about_the_paired_runs():
    noise = _told(exact=_against(0.2, 0), gaussian=_against(1.7, 6))[0]
    assert "The exact score's distance is sampling noise" in noise
    broken = _told(exact=_against(0.9, 9), gaussian=_against(1.7, 9))[0]
    assert "is sampling noise" not in broken and "too large to be linear" in broken


def test_the_words_do_not_take_noise_for_agreement():
    """Where even the Gaussian score cannot be told from the truth, nothing was tested."""
    text = _told(neural=_against(None, 0), gaussian=_against(None, 0))[0]
    assert "neural 0.20 ± 0.05" in text
    assert "Nothing tells them apart here" in text
    assert "Nothing tells" not in _told(neural=_against(1, 0), gaussian=_against(2, 3))[0]


def test_the_words_without_references_name_the_stein_identity_as_the_only_test():
    summary = {"estimators": {"neural": {"against": {}, "stein_error_raw": 0.14}}}
    told = findings(summary)
    assert "neither paired perturbed runs nor an exact score" in told[0]
    assert "neural 0.14" in told[1] and "Gaussian" not in told[1]
    assert findings({}) == []


def test_the_words_name_the_worst_wavenumber_of_the_stein_error():
    assert "neural 0.14 (largest 0.37 at |k| = 1)" in _told(neural=_against(1.0, 1))[1]


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.39845, 0.11049, "0.40 ± 0.11"),
        (0.96726, 0.03483, "0.97 ± 0.03"),
        (5.57242, 0.072, "5.57 ± 0.07"),
        (123.4, 26.0, "123 ± 26"),
        (1.5, None, "1.5"),
        (None, None, "–"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_a_number_ends_where_its_error_begins(value, error, text):
    assert with_error(value, error) == text


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
    assert len(keys) == 8 and all(found[key] is None for key in keys)
    assert compare(_noisy(ALL[1:], off=9.0), "neural", "direct")["summed_l2"] is None


def test_a_sum_holds_the_lags_known_to_both():
    """Direct ends early: its distance from the exact score is summed until there."""
    data = _noisy(ALL, off=3.1)
    found = compare(data, "direct", "exact")
    assert found["summed_lags"] == [float(t) for t in data.lag[1:31]]
    l2 = data.l2.sel(estimator="direct", reference="exact")[1:31]
    assert np.isclose(found["summed_l2"], float(l2.sum()))
    assert len(compare(data, "neural", "exact")["summed_lags"]) == 40


def test_the_share_of_the_response_has_its_noise_taken_out():
    data = _noisy(ALL, off=3.1)
    found = compare(data, "neural", "exact")
    one = data.isel(perturbation=0, observable=0).sel(estimator="exact")
    norm = np.sqrt((one.response**2 - 0.004**2).sum("dx").clip(min=0))
    assert np.isclose(found["relative_l2"], found["summed_l2"] / float(norm[1:].sum()))


def test_the_summary_is_json_with_a_line_for_every_list():
    content = {"a": {"b": [1.0, None, [2]], "c": {}}, "d": 'x "y"'}
    text = as_json(content)
    assert json.loads(text) == content
    assert '    "b": [1.0, null, [2]],\n' in text and len(text.splitlines()) == 7
    with pytest.raises(ValueError):
        as_json({"a": float("nan")})


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


def _pairs(different, gaussian):
    one = {"against": {"direct": {"lags": [different, 20]}}, "differs_from_gaussian": gaussian}
    return {
        "estimators": {"kgmm": {"against": {}, "resampled": "64 members"}},
        "responses": {
            "pixel": {
                "field": {"kgmm": one},
                "moment_2": {"kgmm": one | {"differs_from_gaussian": [0, 20]}},
            }
        },
    }


def test_the_words_tell_of_all_pairs_and_of_what_is_not_gaussian():
    told = " ".join(findings(_pairs(5, [4, 20])))
    assert "Over all 2 pairs" in told and "kgmm for 2 of 2" in told
    assert "beyond sampling noise for 1 of 2 pairs" in told
    assert "(most for field after pixel, at 20 % of the lags)" in told
    assert "Error bars resample 64 members." in told
    calm = " ".join(findings(_pairs(1, [0, 20])))
    assert "kgmm for 0 of 2" in calm and "nowhere beyond sampling noise of the Gaussian" in calm


def test_a_run_of_recorded_data_is_named_by_its_file():
    text = page(
        "own",
        {"system": None, "data": "/data/sst.zarr", "sizes": {"members": 1, "length": 9.0}},
        [],
    )
    assert "unperturbed data in sst.zarr: 1 member of length 9." in text and "None" not in text


def _check(name, z, **more):
    passed = None if z is None else abs(z) <= 4
    one = {"name": name, "value": 0.6, "standard_error": 0.05, "expected": 1.0, "z": z}
    return one | {"passed": passed, "note": ""} | more


def _checked(**checks):
    return {"estimators": {"neural": {}, "gaussian": {}}, "recalibrated": True, "checks": checks}


THIRD, STEIN = "-<x^3 s> = 3 <x^2>", "-<x s> = 1, worst of the wavenumbers"


def test_the_table_of_checks_has_a_row_for_each_and_tells_what_failed():
    """Passed, failed, failed without a number, not decided, and not made: five kinds of cell."""
    summary = _checked(
        data=[_check("no trend of the mean of u", 0.5)],
        neural=[_check(THIRD, -8.04), _check(STEIN, 1.2), _check("<a & b>", None, value=None)],
        gaussian=[_check(THIRD, None, passed=False, value=None)],
    )
    text = page("checked", summary, [])
    tags = _Tags()
    tags.feed(text)
    assert not tags.open and "None" not in text
    assert "<th>the data</th><th>neural</th><th>gaussian</th>" in text
    assert text.count("&lt;x^3 s&gt; = 3 &lt;x^2&gt;</td>") == 1
    assert "fails (8)</span></td>" in text and "fails (∞)</span></td>" in text
    assert "passes (1.2)" in text and "&lt;a &amp; b&gt;</td>" in text
    assert "found 0.60 ± 0.05, expected 1" in text
    assert "<h2>Checks</h2>" not in page("unchecked", _checked(), [])


def test_the_words_do_not_trust_what_failed_and_say_why():
    told = findings(_checked(neural=[_check(THIRD, -8.04), _check(STEIN, 1.2)]))[-1]
    assert told == (
        f"Do not trust neural blindly, because it fails 1 of 2 checks, worst {THIRD} "
        "(0.60 ± 0.05 instead of 1, 8 standard errors)."
    )
    broken = findings(_checked(neural=[_check(THIRD, None, passed=False, note="not finite")]))[-1]
    assert f"{THIRD} (not finite)" in broken
    trend = findings(_checked(data=[_check("no trend of the mean of u", 6.0)]))[-1]
    assert trend.startswith("Do not trust any of these responses, because the data are not stat")


def test_the_words_take_a_failing_gaussian_score_as_evidence_about_the_data():
    """Its fit obeys the identities of second order whatever the data, those of higher order not."""
    told = findings(_checked(gaussian=[_check(STEIN, 1.0), _check(THIRD, 9.0)]))[-1]
    assert told.startswith("The data are not Gaussian") and "trust" not in told
    slope = findings(_checked(gaussian=[_check("dR/dt(0+) = <dF/dx>", 5.0)]))[-1]
    assert slope.startswith("Do not trust gaussian blindly")


def test_the_words_say_what_recalibration_mends_and_what_passed():
    told = findings(_checked(neural=[_check(STEIN, 7.0)], gaussian=[_check(STEIN, 1.0)]))[-2:]
    assert told[0].startswith("The raw neural score fails") and "recalibration mends" in told[0]
    assert told[1] == "All checks of gaussian pass, within four standard errors."
    both = findings(_checked(data=[_check("a", 1.0)], neural=[_check(STEIN, 1.0)]))[-1]
    assert both.startswith("All checks of the data and neural pass")
