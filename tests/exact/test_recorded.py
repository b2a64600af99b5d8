"""A user's own data: how they are read, and what is refused before any work."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import xarray as xr

from workflow.config import DataConfig
from workflow.interfaces import UserError
from workflow.own_data import OwnData, correlation_time, open_own_data, parse_dims, run_name
from workflow.recorded import arrange, describe, find, read_data, saved_of

TIMES = 12


def dataset(dims, *, names=("u",), dtype="f8", sizes=None, time=None):
    """Different numbers at every place of every variable."""
    sizes = {"run": 3, "member": 3, "t": TIMES, "time": TIMES} | (sizes or {})
    shape = tuple(sizes.get(d, 4) for d in dims)
    numbers = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    coords = {} if time is None else {next(d for d in dims if d in ("t", "time")): time}
    return xr.Dataset({n: (dims, numbers + 1000 * i) for i, n in enumerate(names)}, coords=coords)


def described(ds, **settings):
    return describe(ds, DataConfig(store="store", **settings), "store")


LAYOUTS = {
    "one long run": (("time",), {}, ()),
    "members": (("member", "time"), {}, ()),
    "names of the user's": (("t", "run"), {"time": "t", "member": "run"}, ()),
    "names guessed": (("t", "run"), {}, ()),
    "a line": (("time", "lon"), {}, (4,)),
    "a line called y": (("y", "time"), {}, (4,)),
    "a map": (("time", "lat", "lon"), {}, (4, 4)),
    "a map of members": (("lat", "realization", "lon", "time"), {}, (4, 4)),
    "a level of length 1": (("time", "level", "lat", "lon"), {}, (4, 4)),
    "x and y swapped": (("time", "x", "y"), {"x": "y", "y": "x"}, (4, 4)),
}


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_of_any_layout_are_read_in_our_order(layout, suffix, tmp_path):
    """Members, times, fields, places; Zarr and NetCDF alike, every number in its place."""
    dims, given, shape = LAYOUTS[layout]
    ds = dataset(dims, names=("u", "v"), sizes={"level": 1, "realization": 3})
    path = tmp_path / f"data{suffix}"
    ds.to_zarr(path) if suffix == ".zarr" else ds.to_netcdf(path)
    config, decided = find(DataConfig(store=path.name, dims=given), tmp_path)
    members = next((ds.sizes[d] for d in ("member", "run", "realization") if d in ds.sizes), 1)
    assert (decided["members"], decided["length"]) == (members, TIMES)
    assert config.found.shape == shape
    block = read_data(config, members=range(members), times=range(2, 5))
    assert block.shape == (members, 3, 2, *shape)
    theirs = [config.dims[d] for d in ("member", "time", "y", "x") if d in config.dims]
    plain = ds.u.squeeze().transpose(*theirs).values.reshape(members, TIMES, *shape)
    np.testing.assert_array_equal(block[:, :, 0], plain[:, 2:5])
    np.testing.assert_array_equal(block[:, :, 1], plain[:, 2:5] + 1000)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("f4", "float32"), ("f8", "float64"), ("i2", "float64")]
)
def test_single_precision_stays_single(dtype, kept):
    assert described(dataset(("time",), dtype=dtype))[1]["dtype"] == kept


DAY = np.timedelta64(1, "D")
CLOCKS = {
    "numbers": (np.arange(TIMES) * 0.25 + 3, 0.25, "1", ""),
    "none": (None, 1.0, "1", ""),
    "days": (np.datetime64("2000-02-27") + np.arange(TIMES) * DAY, 1.0, "days since", ""),
    "six hours": (
        np.datetime64("2000-01-01") + np.arange(TIMES) * np.timedelta64(6, "h"),
        6.0,
        "hours since",
        "",
    ),
    "ten minutes": (
        np.datetime64("2000-01-01") + np.arange(TIMES) * np.timedelta64(10, "m"),
        600.0,
        "seconds since",
        "",
    ),
    "no leap days": (
        xr.date_range("2000-02-27", periods=TIMES, calendar="noleap", use_cftime=True),
        1.0,
        "days since 2000-02-27",
        "noleap",
    ),
    "differences": (np.arange(TIMES) * np.timedelta64(12, "h"), 12.0, "hours", ""),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_times_may_be_numbers_or_dates(clock):
    """The unit is the longest of days, hours and seconds of which the step is a whole number."""
    time, step, units, calendar = CLOCKS[clock]
    config, decided = described(dataset(("time",), time=time))
    assert decided["save_every"] == step
    assert config.found.time_units.startswith(units)
    assert config.found.calendar == calendar


def test_dates_written_down_are_those_of_the_data():
    """CF units and calendar of the copy decode to the same dates."""
    time = xr.date_range("2000-02-27", periods=TIMES, calendar="noleap", use_cftime=True)
    found = described(dataset(("time",), time=time))[0].found
    again = cftime.num2date(np.arange(TIMES), found.time_units, found.calendar)
    assert list(again) == list(time)


def test_a_step_in_single_precision_does_not_change_when_the_data_grow():
    """Else a run of longer data would be another experiment."""
    for length in (100, 1000, 9000):
        time = (np.arange(length) * 0.1).astype("f4")
        ds = xr.Dataset({"u": ("time", np.zeros(length))}, coords={"time": time})
        assert described(ds)[1]["save_every"] == 0.1


def test_longer_data_are_the_same_data_and_others_are_not():
    """What tells them apart is the beginning of the first member."""
    ds = dataset(("member", "time"))
    mark = described(ds)[0].found.fingerprint
    assert described(ds.isel(time=slice(9)))[0].found.fingerprint == mark
    assert described(ds.isel(member=[0]))[0].found.fingerprint == mark
    assert described(ds + 1)[0].found.fingerprint != mark


def test_text_and_variables_without_a_time_are_passed_over():
    ds = dataset(("time",)).assign(mask=("lat", np.ones(4)), label=("time", ["a"] * TIMES))
    assert described(ds)[0].variables == ("u",)


def times_of(values):
    return lambda ds: ds.assign_coords(time=values)


MONTHS = np.arange("2000-01", "2001-01", dtype="datetime64[M]").astype("datetime64[ns]")
PLAIN = ("member", "time", "lat", "lon")
MISTAKES = {
    "wrong variable": (PLAIN, {"variables": ["U"]}, None, "has no 'U'; did you mean 'u'?"),
    "wrong dimension": (PLAIN, {"dims": {"x": "long"}}, None, "dims.x=long: .*did you mean 'lon'?"),
    "no time": (("lat",), {}, None, "no variable of numbers with dimension 'time'"),
    "no time of that name": (PLAIN, {"dims": {"time": "date"}}, None, "dimension 'date'"),
    "too many dimensions": (
        ("time", "a", "b", "c"),
        {},
        None,
        "\\('a', 'b', 'c'\\) besides \\['time'\\]; at most two of space",
    ),
    "dimensions differ": (
        ("time", "lat"),
        {},
        lambda ds: ds.assign(v=ds.u.isel(lat=0)),
        "differ in dimensions.*choose with data.variables",
    ),
    "text": (
        ("time",),
        {"variables": ["u"]},
        lambda ds: ds.astype(str),
        "variable 'u' of store is <U.*; needs numbers",
    ),
    "gap at the end": (
        ("time", "lat"),
        {},
        lambda ds: ds.where((ds.time < TIMES - 1) | (ds.lat > 0)),
        "'u' has 1 value of NaN or infinity, the first at member 0, time index 11, place \\(0,\\)",
    ),
    "unsorted": (("time",), {}, times_of([0, 1, 3, 2, *range(4, TIMES)]), "decreasing at index 3"),
    "repeated": (("time",), {}, times_of([0, 1, 1, *range(3, TIMES)]), "repeated at index 2"),
    "uneven": (("time",), {}, times_of(np.arange(TIMES) ** 2), "1 to 21 apart; needs even times"),
    "months": (("time",), {}, times_of(MONTHS), "number the months"),
    "names for times": (("time",), {}, times_of(list("abcdefghijkl")), "needs numbers or dates"),
    "too short": (("time",), {}, lambda ds: ds.isel(time=slice(2)), "has 2 times"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_used_is_refused_in_one_line(mistake):
    dims, settings, change, message = MISTAKES[mistake]
    ds = dataset(dims)
    ds = ds.assign_coords({d: np.arange(ds.sizes[d]) for d in ds.dims})
    with pytest.raises(UserError, match=message) as told:
        described(ds if change is None else change(ds), **settings)
    assert "\n" not in str(told.value)


def test_no_store_and_no_real_store_are_told(tmp_path):
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "empty").mkdir()
    wanted = {"none.zarr": "none.zarr does not exist", "notes.txt": "cannot be", "empty": "cannot"}
    for name, message in wanted.items():
        with pytest.raises(UserError, match=message) as told:
            find(DataConfig(store=name), tmp_path)
        assert "\n" not in str(told.value)


def test_a_gap_inside_is_found_when_the_block_is_read(tmp_path):
    """Only the ends are looked at beforehand: no pass over all data for that alone."""
    ds = dataset(("time", "lat"))
    ds.u[5, 2] = np.inf
    ds.to_netcdf(tmp_path / "gap.nc")
    config, _ = find(DataConfig(store="gap.nc"), tmp_path)
    with pytest.raises(UserError, match="member 0, time index 5, place \\(2,\\)"):
        read_data(config, members=range(1), times=range(4, 8))


@pytest.mark.parametrize("turn", [0.0, 0.6])
def test_the_correlation_time_sees_through_oscillations(turn):
    """A damped rotation forgets as exp(-t / 20), however fast it turns: the integral of its
    correlation is small, that of the square is 10 or, with rotation, 5: times 2."""
    rng = np.random.default_rng(5)
    x, out = 0.0 + 0.0j, []
    for _ in range(40000):
        x = x * np.exp(-1 / 20 + 1j * turn) + rng.standard_normal() + 1j * rng.standard_normal()
        out.append(x.real)
    ds = xr.Dataset({"u": ("time", out)})
    config, _ = described(ds)
    found = correlation_time(arrange(ds, config), saved_of(config))
    assert found == pytest.approx(10.0 if turn else 20.0, rel=0.2)


def slow_run(folder, times):
    """One run that forgets over 20 samples."""
    rng, x = np.random.default_rng(6), [0.0]
    while len(x) < times:
        x.append(np.exp(-1 / 20) * x[-1] + rng.standard_normal())
    xr.Dataset({"u": ("time", x)}, {"time": np.arange(times) / 4}).to_netcdf(folder / "slow.nc")
    return OwnData(folder / "slow.nc", estimator="gaussian")


def test_the_longest_lag_is_five_correlation_times_as_far_as_the_data_allow(tmp_path):
    """20 samples of 1/4; and of a short run what leaves eight blocks of four times the lag."""
    run, told = open_own_data(slow_run(tmp_path, 40000), tmp_path)
    assert run.experiment.response.max_lag == pytest.approx(25, rel=0.2)
    assert "5 correlation times of" in told[-1] and "change with --max-lag" in told[-1]
    run, told = open_own_data(slow_run(tmp_path, 1600), tmp_path)
    assert run.experiment.response.max_lag == 50 / 4
    assert told[-1].startswith("max lag: 12.5, as far as 1600 times allow; 5 correlation times of")


def test_settings_win_over_options_and_what_is_chosen(tmp_path):
    own = slow_run(tmp_path, 4000)
    settings = ["response.max_lag=2.5", "score.estimator=kgmm", "name=other"]
    run, told = open_own_data(own, tmp_path, settings)
    assert (run.experiment.name, run.experiment.response.max_lag) == ("other", 2.5)
    assert run.experiment.score.estimator == "kgmm"
    assert len(told) == 1


def test_names_of_runs_follow_those_of_the_data():
    names = {"a/my run (2).zarr": "my_run_2", "T.nc": "T", "/x/_.nc": "data", "ERA5/": "ERA5"}
    for path, name in names.items():
        assert run_name(path) == name


def test_dimensions_on_a_command_line():
    assert parse_dims("time=t, member=run") == (("time", "t"), ("member", "run"))
    assert parse_dims(None) == ()
    for text in ("t", "times=t", "time="):
        with pytest.raises(UserError, match="needed OURS=THEIRS"):
            parse_dims(text)
