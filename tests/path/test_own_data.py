"""A user's own data through the commands: made elsewhere, read, answered, forecast, grown."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import workflow  # noqa: F401  registers the accessor
from hpc.stopping import STOPPING
from workflow.cli import main
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.stages.forecast import forecast

DECAY = 0.8
STEP = 0.5
QUICK = ["--set", "response.error.samples=200"]


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def autoregressive(x, *, times, seed, shift=0):
    """x(t + 1) = a x(t) + noise of unit variance in all; moved along the last axis every step."""
    out = np.empty((len(x), times, *x.shape[1:]))
    driven = np.sqrt(1 - DECAY**2) * noise(seed, times, *x.shape)
    for t in range(times):
        x = DECAY * (np.roll(x, shift, axis=-1) if shift else x) + driven[t]
        out[:, t] = x
    return out


def many():
    x = autoregressive(noise(1, 12), times=1500, seed=2)
    return xr.Dataset({"T": (("run", "t"), x)}, coords={"t": np.arange(1500) * STEP})


def lonely(times=4000):
    x = autoregressive(noise(3, 1, 2), times=6000, seed=4)[0, :times]
    day = np.datetime64("2000-01-01") + np.arange(times) * np.timedelta64(1, "D")
    return xr.Dataset({n: ("time", x[:, i]) for i, n in enumerate("ab")}, coords={"time": day})


def line():
    x = autoregressive(noise(5, 8, 6), times=500, seed=6, shift=1).astype("f4")
    return xr.Dataset({"u": (("member", "time", "lon"), x)})


def plane():
    x = autoregressive(noise(7, 10, 3, 4), times=600, seed=8)
    return xr.Dataset({"h": (("time", "number", "lat", "lon"), np.moveaxis(x, 1, 0))})


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    many().to_zarr(folder / "many.zarr")
    lonely().to_netcdf(folder / "lonely.nc")
    line().to_zarr(folder / "line.zarr")
    plane().to_netcdf(folder / "plane.nc")
    time = np.arange(0, 40, 0.5)
    pulse = xr.DataArray((time < 5) * 1.0, dims="time", coords={"time": time}, name="pulse")
    pulse.to_netcdf(folder / "pulse.nc")
    return folder


@pytest.fixture(scope="module")
def gfdt(work, client):
    """The entry point in this process and, for its tasks, a thread of it."""

    def here(_kind, **_settings):
        return contextlib.nullcontext(client)

    def run(*arguments):
        patch = pytest.MonkeyPatch()
        with patch.context() as m:
            m.setattr("workflow.stages.pools.open_client", here)
            m.setattr(sys, "argv", ["gfdt", *map(str, arguments)])
            m.chdir(work)
            before = [(number, signal.getsignal(number)) for number in STOPPING]
            out, err = io.StringIO(), io.StringIO()
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    main()
                code = 0
            except SystemExit as leaving:
                code = leaving.code or 0
            finally:
                for number, handler in before:
                    signal.signal(number, handler)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="module")
def finished(gfdt, work):
    """Every kind of data, answered."""
    commands = {
        "many": (
            "respond",
            "--data",
            "many.zarr",
            "--variable",
            "T",
            "--dims",
            "time=t,member=run",
        ),
        "lonely": ("run", "--data", "lonely.nc", "--max-lag", "10d"),
        "line": ("run", "--data", "line.zarr", "--homogeneous", "--max-lag", "3"),
        "plane": ("respond", "--data", "plane.nc", "--max-lag", "4"),
    }
    said = {}
    for name, command in commands.items():
        pages = [] if name == "many" else ["--set", "report.format=[json]"]
        done = gfdt(*command, "--estimator", "gaussian", *QUICK, *pages)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout
    return said


def response(work, name):
    return xr.open_zarr(work / "runs" / name / "response.zarr").load()


def off(found, truth):
    one = found.isel(lag=slice(1, None))
    return np.abs((one.response.values - truth[1:]) / one.standard_error.values).max()


def test_the_command_tells_how_the_data_were_read_and_where_the_answer_is(finished, work):
    said = finished["many"].splitlines()
    assert said[0] == "data: T: 12 members ('run'); 1500 times ('t'), 0.5 apart; no space"
    # (1 + a) / (1 - a) / 2 = 4.5 steps of 0.5; five of these.
    lag = float(response(work, "many").lag[-1])
    assert lag == pytest.approx(5 * 4.5 * STEP, rel=0.2)
    assert said[1].startswith(f"max lag: {lag:g}, 5 correlation times of ")
    folder = (work / "runs" / "many").resolve()
    assert said[-3:] == [
        f"response: {folder}/response.zarr",
        f"catalog: {(work / 'catalogs' / 'many.yaml').resolve()}",
        f"report: {folder}/report/index.html",
    ]
    assert (folder / "report" / "index.html").is_file()
    assert any(line.startswith("perturbation: uniform") for line in finished["plane"].splitlines())


@pytest.mark.parametrize("name", ["many", "lonely"])
def test_the_response_of_gaussian_data_is_their_correlation(finished, work, name):
    """a^lag, of many members and of one long run."""
    found = response(work, name).isel(estimator=0)
    for kick, watch in zip(found.perturbation.values, found.observable.values, strict=True):
        one = found.sel(perturbation=kick, observable=watch)
        assert off(one, DECAY ** np.arange(one.sizes["lag"])) < 4


def test_the_response_of_a_drifting_line_is_downstream(finished, work):
    one = response(work, "line").isel(estimator=0, perturbation=0, observable=0)
    truth = xr.zeros_like(one.response)
    for lag in range(4):
        dx = (lag + 3) % 6 - 3
        truth.loc[{"lag": lag, "dx": dx}] = DECAY**lag
    assert off(one, truth.values) < 4.5


def test_where_places_differ_all_are_kicked_and_each_answers(finished, work):
    one = response(work, "plane").isel(estimator=0, perturbation=0, observable=0)
    assert one.response.dims == ("lag", "y", "x")
    truth = np.broadcast_to((DECAY ** np.arange(5.0))[:, None, None], (5, 3, 4))
    assert off(one, truth) < 4.5


def test_lags_of_dates_have_their_unit(finished, work):
    lag = response(work, "lonely").lag
    assert lag[-1] == 10 and lag.attrs["units"] == "days"
    copy = xr.open_zarr(work / "runs" / "lonely" / "ensemble.zarr")
    np.testing.assert_array_equal(copy.time, lonely().time)


@pytest.mark.parametrize("name", ["many", "lonely", "line", "plane"])
def test_the_accessor_gives_what_the_run_gives(finished, work, name):
    """The same sums and resamples, centred by means of other samples: far less than the error."""
    data = {"many": many, "lonely": lonely, "line": line, "plane": plane}[name]()
    run = response(work, name)
    found = data.gfdt.response(max_lag=float(run.lag[-1]), homogeneous=name == "line", samples=200)
    assert found.response.dims == run.response.dims
    np.testing.assert_array_equal(found.lag, run.lag)
    error = run.standard_error.where(run.lag > 0).max()
    assert (np.abs(found.response - run.response) < 0.05 * error).all()
    assert (np.abs(found.standard_error - run.standard_error) < 0.05 * error).all()


def test_the_same_command_continues_and_changes_nothing(finished, gfdt, work):
    """The lag that was chosen stays, and no block is made again."""
    receipts = [p for p in (work / "runs" / "many" / "ledger").rglob("*") if p.is_file()]
    before = {path: path.stat().st_mtime_ns for path in receipts}
    again = gfdt("respond", "--data", "many.zarr", "--variable", "T", "--dims", "time=t,member=run",
                 "--estimator", "gaussian", *QUICK)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "as before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in receipts} == before


def test_an_experiment_file_does_the_same(finished, work):
    """`data:` in YAML, and the options of the command, resolve to one experiment."""
    text = (
        "name: many\ndata: {store: many.zarr, variables: [T], dims: {time: t, member: run}}\n"
        "score: {estimator: gaussian}\n"
        f"response: {{max_lag: {float(response(work, 'many').lag[-1])}, error: {{samples: 200}}}}\n"
    )
    (work / "many.yaml").write_text(text)
    run = open_run(str(work / "many.yaml"), work / "runs")  # refused if anything differed
    assert run.experiment == load_run("many", work / "runs").experiment


def test_a_forecast_is_the_convolution_with_the_forcing(finished, gfdt, work):
    """f = 1 for 5, then 0: exact for the AR process but for the trapezoid's second order."""
    done = gfdt("forecast", "many", "--forcing", "pulse.nc")
    assert done.returncode == 0, done.stderr
    path = work / "runs" / "many" / "forecasts" / "pulse.nc"
    assert done.stdout.splitlines()[-1] == f"forecast: {path.resolve()}"
    assert done.stdout.startswith("gaussian: largest change 1.9")
    found = xr.open_dataset(path).sel(estimator="gaussian")
    time = found.time.values
    f = (time < 5) * 1.0
    R = DECAY ** (time / STEP)
    truth = np.array(
        [np.trapezoid(R[: n + 1][::-1] * f[: n + 1], dx=STEP) for n in range(len(time))]
    )
    near = time < 10
    error = np.maximum(found.standard_error.values, 1e-12)
    assert (np.abs(found.value.values - truth) < 4.5 * error + 1e-6)[near & (time > 1)].all()
    assert (found.ci_low <= found.value).all()


def test_a_forecast_of_a_pattern_is_that_of_a_uniform_kick(finished, work):
    """Kicked everywhere, every place answers with the sum over displacements."""
    run = load_run("line", work / "runs")
    time = np.arange(0.0, 3.0)
    forcing = xr.DataArray(np.ones(3), dims="time", coords={"time": time})
    ones = xr.DataArray(np.ones(6), dims="x")
    answer = forecast(run, forcing, pattern=ones)
    one = answer.isel(estimator=0)
    assert one.value.dims == ("time", "x")
    truth = np.array([0, (1 + DECAY) / 2, (1 + 2 * DECAY + DECAY**2) / 2])
    spread = np.abs(one.value - truth[:, None])[1:]
    assert (spread < 4 * one.standard_error[1:]).all()
    assert float(one.value[1].std()) < 1e-6


def test_a_forecast_does_not_depend_on_how_many_resamples_are_made_at_once(
    finished, work, monkeypatch
):
    """Pieces bound the memory."""
    run = load_run("line", work / "runs")
    forcing = xr.DataArray(np.ones(3), dims="time", coords={"time": np.arange(0.0, 3.0)})
    whole = forecast(run, forcing)
    monkeypatch.setattr("workflow.stages.forecast.PIECE_NUMBERS", 200)
    xr.testing.assert_allclose(forecast(run, forcing), whole)


def test_longer_data_are_accepted_and_only_add(finished, gfdt, work):
    """With the training held at what it saw, old scores and sums stay; their numbers are those
    of a run of the longer data from the start."""
    rest = ("--estimator", "gaussian", "--max-lag", "10", *QUICK, "--set", "ensemble.chunk=4KiB",
            "--set", "score.split.until=2000")  # fmt: skip
    lonely(3000).to_netcdf(work / "grown.nc")
    assert gfdt("run", "--data", "grown.nc", *rest).returncode == 0
    folder = work / "runs" / "grown" / "ledger"
    kept = [p for s in ("simulate", "evaluate", "train") for p in (folder / s).iterdir()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    (work / "grown.nc").unlink()
    lonely(4000).to_netcdf(work / "grown.nc")
    done = gfdt("run", "--data", "grown.nc", *rest)
    assert done.returncode == 0, done.stderr
    again = {path for path in kept if path.stat().st_mtime_ns != before[path]}
    # 3000 is no whole number of chunks of 512 times: one block of each store was partly filled.
    assert len(again) <= 2 and len(kept) >= 12
    assert gfdt("run", "--data", "grown.nc", "--name", "whole", *rest).returncode == 0
    xr.testing.assert_equal(response(work, "grown"), response(work, "whole"))


def test_other_data_under_the_same_name_are_refused(finished, gfdt, work):
    (many() + 1).to_zarr(work / "other" / "many.zarr")
    done = gfdt("run", "--data", "other/many.zarr", "--estimator", "gaussian", *QUICK)
    assert done.returncode == 78
    assert "data.found.fingerprint" in done.stderr and "another name" in done.stderr


def test_json_is_all_that_is_printed(finished, gfdt):
    done = gfdt("run", "--data", "many.zarr", "--estimator", "gaussian", *QUICK, "--json")
    assert json.loads(done.stdout)["name"] == "many"


MISTAKES = {
    "neither": (["respond"], "neither EXPERIMENT nor --data given; needs exactly one"),
    "both": (["run", "quickstart", "--data", "many.zarr"], "both EXPERIMENT and --data"),
    "options of data": (["run", "quickstart", "--max-lag", "3"], "--max-lag goes with --data"),
    "no store": (["run", "--data", "many.zar"], "many.zar does not exist"),
    "no variable": (["run", "--data", "many.zarr", "--variable", "t2"], "has no 't2'"),
    "bad dims": (["run", "--data", "many.zarr", "--dims", "t"], "needed OURS=THEIRS"),
    "bad lag": (["run", "--data", "many.zarr", "--max-lag", "long"], "needs a positive number"),
    "unit of lag": (["run", "--data", "many.zarr", "--max-lag", "3d"], "without a unit; give a"),
    "lag too long": (["run", "--data", "many.zarr", "--max-lag", "9e3"], "max_lag=9000 needs more"),
    "lag between": (["run", "--data", "many.zarr", "--max-lag", "3.3"], "no multiple of.*use 3.5"),
    "no estimator": (["run", "--data", "many.zarr", "--estimator", "gmm"], "estimator=gmm: must"),
    "exact": (["run", "--data", "many.zarr", "--estimator", "exact"], "recorded data cannot have"),
    "name": (["run", "--data", "many.zarr", "--name", "a/b"], "name=a/b"),
    "too many numbers": (
        ["run", "--data", "plane.nc", "--estimator", "kgmm", "--name", "n"],
        "12 numbers, clusters can cover up to 8",
    ),
    "one short run": (
        ["run", "--data", "lonely.nc", "--max-lag", "300", "--name", "n"],
        "an error bar needs at least 2 members, or 8 blocks",
    ),
    "pattern of another shape": (
        ["run", "--data", "plane.nc", "--name", "n", "--set",
         "response.perturbations=[{kind: pattern, file: bad.npy}]"],
        "bad.npy: float64 of shape \\(2,\\); needs finite numbers of shape \\(3, 4\\)",
    ),
    "forecast of nothing": (["forecast", "nothing", "--forcing", "pulse.nc"], "no run 'nothing'"),
    "no forcing": (["forecast", "many", "--forcing", "f.nc"], "f.nc does not exist"),
    "several observables": (["forecast", "lonely", "--forcing", "pulse.nc"], "several of observ"),
    "no such estimator": (
        ["forecast", "many", "--forcing", "pulse.nc", "--estimator", "gausian"],
        "did you mean 'gaussian'",
    ),
    "pattern without space": (
        ["forecast", "many", "--forcing", "pulse.nc", "--pattern", "bad.npy"],
        "bad.npy: float64 of shape \\(2,\\); needs finite numbers of shape \\(\\)",
    ),
    "no NetCDF": (["forecast", "many", "--forcing", "pulse.nc", "--out", "a.zarr"], "end the name"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_code_78(finished, gfdt, work, mistake):
    np.save(work / "bad.npy", np.ones(2))
    command, message = MISTAKES[mistake]
    done = gfdt(*command)
    lines = done.stderr.splitlines()
    assert done.returncode == 78, done.stderr
    assert len(lines) == 1 and lines[0].startswith("gfdt: "), done.stderr
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(lines[0])


def test_what_drives_the_others_is_named_on_the_command_line(gfdt, work):
    x = autoregressive(noise(9, 12, 2), times=400, seed=10)
    data = xr.Dataset({n: (("member", "time"), x[..., i]) for i, n in enumerate(["T", "wind"])})
    data.to_zarr(work / "windy.zarr")
    options = ("--variable", "T", "--given", "wind", "--max-lag", "3", *QUICK)
    done = gfdt("respond", "--data", "windy.zarr", *options)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("data: T, given wind: 12 members ('member'); 400 times ('time')")
    assert said[1].startswith("score: gaussian; --estimator neural learns")
    assert list(response(work, "windy").observable.values) == ["field"]
    wrong = gfdt("respond", "--data", "windy.zarr", "--given", "wnd", "--name", "other")
    assert wrong.returncode == 78
    assert "score.given has 'wnd', which is not saved; choose from T, wind" in wrong.stderr
