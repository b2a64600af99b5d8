"""Runs whose scores are conditioned on fields that nothing kicks, against known responses."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

import workflow  # noqa: F401  registers the accessor
from workflow.dynamics.linear import Linear
from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.stages.data import load_model
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.samples import ask

DECAY, MEMORY, PULL = 0.6, 0.9, 0.5
"""x(t + 1) = DECAY x + PULL y + noise,   y(t + 1) = MEMORY y + noise."""

LINEAR = {
    "system": {"kind": "linear", "dt": 0.2},
    "ensemble": {"members": 32, "group": 16, "spinup": 0.0, "length": 200.0, "save_every": 0.2},
    "score": {"estimator": "gaussian", "given": ["x1"]},
    "response": {"estimators": ["gaussian", "exact", "direct"], "max_lag": 2.0},
    "direct": {"pairs": 64, "amplitude": 0.1},
}
FLOW = {
    "system": {"kind": "navier_stokes", "grid": 16, "save_forcing": True},
    "ensemble": {"members": 16, "group": 8, "spinup": 1.0, "length": 2.0, "save_every": 0.0625},
    "score": {
        "network": {"channels": 4, "residual_blocks": 1},
        "train": {"steps": 4, "ranks": 1, "global_batch": 8, "save_every": 2},
    },
    "response": {"estimators": ["neural", "gaussian", "direct"], "max_lag": 0.5},
    "direct": {"pairs": 16, "amplitude": 0.015625},
}


def opened(folder, name, content):
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **content}))
    return open_run(str(folder / f"{name}.yaml"), folder / "runs")


def finished(folder, name, content, client):
    run = opened(folder, name, content)
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
    return run


def response(run):
    return xr.open_zarr(run.response).load()


def off(found, truth):
    """Largest distance from the truth in standard errors, lag 0 left out."""
    one = found.isel(lag=slice(1, None))
    return float(np.abs((one.response.values - truth[1:]) / one.standard_error.values).max())


@pytest.fixture(scope="module")
def linear(tmp_path_factory, client):
    return finished(tmp_path_factory.mktemp("given"), "linear", LINEAR, client)


@pytest.fixture(scope="module")
def flow(tmp_path_factory, client):
    return finished(tmp_path_factory.mktemp("flow"), "flow", FLOW, client)


@pytest.fixture(scope="module")
def driven(tmp_path_factory, client):
    """Data of x and what drives it: with the driver given, and of x alone."""
    folder, rng = tmp_path_factory.mktemp("driven"), np.random.default_rng(1)
    x, y = np.zeros((64, 1)), np.zeros((64, 1))
    steps = []
    for noise in rng.standard_normal((1500, 2, 64, 1)):
        x, y = DECAY * x + PULL * y + noise[0], MEMORY * y + noise[1]
        steps.append((x[:, 0], y[:, 0]))
    kept = np.moveaxis(np.array(steps[100:]), (0, 2), (1, 0))
    dims = ("member", "time")
    data = xr.Dataset({"x": (dims, kept[:, :, 0]), "a_driver": (dims, kept[:, :, 1])})
    data.to_zarr(folder / "data.zarr")
    content = {
        "data": {"store": "data.zarr"},
        "response": {"estimators": ["gaussian"], "max_lag": 4.0, "checks": True},
    }
    score = {"estimator": "gaussian"}
    given = {**content, "score": {**score, "given": ["a_driver"]}}
    alone = {"data": {"store": "data.zarr", "variables": ["x"]}, "score": score}
    return (
        finished(folder, "with_driver", given, client),
        finished(folder, "alone", {**content, **alone}, client),
    )


def test_kicks_of_what_is_driven_are_answered(driven):
    """DECAY^lag; the score of x alone takes the driver's memory for that of x."""
    truth = DECAY ** np.arange(5.0)
    found, alone = (response(run).isel(estimator=0, perturbation=0, observable=0) for run in driven)
    assert off(found, truth) < 4
    assert off(alone, truth) > 20


@pytest.mark.parametrize("lazy", [False, True])
def test_data_in_memory_give_what_the_run_gives(driven, lazy):
    """The same sums and resamples, of a score that is fitted to the held-out members too."""
    data = xr.open_zarr(driven[0].folder.parents[1] / "data.zarr")
    data = data.chunk(time=500) if lazy else data.load()
    found = data.gfdt.response(max_lag=4.0, given=["a_driver"])
    assert bool(found.response.chunks) == lazy
    expected = response(driven[0])
    error = expected.standard_error.max()
    assert float(np.abs(found.response.values - expected.response.values).max()) < 0.5 * error


def test_a_function_gets_what_is_given_after_the_fields(driven):
    """The exact score of x given y: x has mean m(y) and variance v, from the stationary moments."""
    data = xr.open_zarr(driven[0].folder.parents[1] / "data.zarr").load()
    own = 1 / (1 - MEMORY**2)
    cross = PULL * MEMORY * own / (1 - DECAY * MEMORY)
    whole = (1 + 2 * DECAY * PULL * cross + PULL**2 * own) / (1 - DECAY**2)
    gain, left = cross / own, whole - cross**2 / own

    def conditional(x):
        return -(x[:, :1] - gain * x[:, 1:]) / left

    scores = {"formula": conditional, "gaussian": "gaussian"}
    found = data.gfdt.response(max_lag=4.0, given=["a_driver"], score=scores)
    one = found.isel(perturbation=0, observable=0)
    for name in scores:
        assert off(one.sel(estimator=name), DECAY ** np.arange(5.0)) < 4
    assert float(found.stein_error.sel(estimator="formula")) < 0.05
    with pytest.raises(
        UserError, match=r"must be a torch tensor of shape \(2, 1\), without the giv"
    ):
        data.gfdt.response(max_lag=4.0, given=["a_driver"], score=lambda x: -x)


def test_scores_as_data_need_none_of_what_is_given(driven):
    data = xr.open_zarr(driven[0].folder.parents[1] / "data.zarr").load()
    scores = xr.open_zarr(driven[0].scores).isel(estimator=0, drop=True).load()
    scores = (
        scores.assign_coords(time=data.time) if "time" in data.coords else scores.drop_vars("time")
    )
    found = data.gfdt.response(max_lag=4.0, given=["a_driver"], score=scores)
    expected = response(driven[0])
    error = expected.standard_error.max()
    assert float(np.abs(found.response.values - expected.response.values).max()) < 0.2 * error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"given": ["wind"]}, "given has 'wind', which is not saved; choose from a_driver, x"),
        ({"given": ["a_driver"], "score": "kgmm"}, "clusters know no score given a_driver"),
        ({"given": ["x", "a_driver"]}, "all fields are given and none is left to kick"),
    ],
)
def test_data_in_memory_refuse_what_cannot_be_given(driven, settings, message):
    data = xr.open_zarr(driven[0].folder.parents[1] / "data.zarr")
    with pytest.raises(UserError, match=message):
        data.gfdt.response(max_lag=4.0, **settings)


def test_only_what_is_not_given_is_kicked_and_watched(driven):
    found = response(driven[0])
    assert list(found.perturbation.values) == ["pixel"]
    assert list(found.observable.values) == ["field"]
    stored = xr.open_zarr(driven[0].ensemble)
    assert set(stored.data_vars) == {"x", "a_driver"}
    original = xr.open_zarr(driven[0].folder.parents[1] / "data.zarr")
    for name in stored.data_vars:
        np.testing.assert_array_equal(stored[name], original[name])
    assert set(xr.open_zarr(driven[0].scores).data_vars) == {"score_x"}


@pytest.mark.parametrize("estimator", ["gaussian", "exact", "direct"])
def test_the_first_of_three_variables_may_be_given(linear, estimator):
    """exp(-A t) of the other two; their kicks move the first, which has its part in the answer."""
    found = response(linear).sel(estimator=estimator)
    lags = torch.tensor(found.lag.values)
    truth = Linear(dt=0.2).exact_response(lags)[:, 1:, 1:].numpy().transpose(2, 1, 0)
    one = found.isel(lag=slice(1, None))
    distance = np.abs(one.response.values - truth[..., 1:])
    if estimator == "direct":  # differences of a linear system have no noise
        assert distance.max() < 1e-4
    else:
        assert (distance / one.standard_error.values).max() < 4.5


def test_the_checks_test_the_given_identity(linear):
    found = json.loads(linear.checks.read_text())
    assert "no trend of the mean of x1" in [check["name"] for check in found["data"]]
    for name in ("gaussian", "exact"):
        (one,) = (c for c in found[name] if c["name"] == "<y s> = 0 of what is given")
        assert one["passed"] is True


def test_turbulence_with_its_forcing_given_goes_all_the_way(flow):
    found = response(flow)
    assert list(found.estimator.values) == ["neural", "gaussian", "direct"]
    assert np.isfinite(found.response.values).all()
    stored = xr.open_zarr(flow.ensemble)
    assert set(stored.data_vars) == {"vorticity", "forcing"}
    assert (flow.folder / "report" / "index.html").is_file()


def test_what_is_given_is_streamed_too(flow, client):
    """Training on blocks read as they are needed, from the same ensemble."""
    folder = flow.folder.parents[1] / "streamed"
    folder.mkdir()
    train = {**FLOW["score"]["train"], "memory": 0}
    content = {**FLOW, "score": {**FLOW["score"], "train": train}}
    run = opened(folder, "flow", content)
    run_stages(run, ("simulate", "train"), command="test", notify=lambda *_: None, client=client)
    one, other = (load_model(each) for each in (flow, run))
    assert run.is_trained and one.network.enter.conv.in_channels == 3
    # Other draws of other data, but for how many numbers there are.
    sizes = [[tuple(p.shape) for p in model.parameters()] for model in (one, other)]
    assert sizes[0] == sizes[1]
    assert one.network.linear.weight.shape == (2, 1, 2, 16, 9)


def test_the_forcing_is_told_to_the_gaussian_score(flow):
    """Its mode k = 0, damped at rate 1, depends on the forcing of the mean and on nothing else."""
    data = xr.open_zarr(flow.ensemble).load()
    scores = xr.open_zarr(flow.scores).score_vorticity.sel(estimator="gaussian").load()
    s, f = (one.mean(("x", "y")).values.ravel() for one in (scores, data.forcing))
    x = data.vorticity.mean(("x", "y")).values.ravel()
    design = np.stack([x, f, np.ones_like(x)], axis=1)
    left = s - design @ np.linalg.lstsq(design, s, rcond=None)[0]
    assert left.std() < 1e-3 * s.std()
    alone = s - x * (s @ x) / (x @ x)
    assert alone.std() > 0.1 * s.std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": {"given": ["x4"]}}, "score.given has 'x4', which is not saved; choose from x1"),
        ({"score": {"given": ["x1", "x2", "x3"]}}, "all fields are given and none is left"),
        ({"score": {"given": ["x1"], "estimator": "kgmm"}}, "clusters know no score given x1"),
        ({"sample": {"members": 64}}, "fields given x1, of which there are no samples"),
    ],
    ids=["unknown", "all", "kgmm", "sample"],
)
def test_what_cannot_be_given_is_refused_before_work(tmp_path, change, message):
    content = {**LINEAR, "score": {"estimator": "neural", "given": ["x1"]}}
    content["response"] = {"max_lag": 2.0}
    content = {**content, **change}
    with pytest.raises(UserError, match=message):
        opened(tmp_path, "refused", content)
    assert not (tmp_path / "runs").exists()


def test_samples_of_a_score_given_others_are_refused(tmp_path):
    """Also where the experiment has no section for them, by `gfdt sample`."""
    score = {"given": ["x1"], "process": {"kind": "ve"}}
    response = {**LINEAR["response"], "estimators": ["neural"]}
    run = opened(tmp_path, "wide", {**LINEAR, "score": score, "response": response})
    with pytest.raises(UserError, match="a sample: the learned score is that of fields given x1"):
        ask(run, None, 10)


def test_directions_that_depend_on_the_state_are_refused(tmp_path, monkeypatch):
    (tmp_path / "directions.py").write_text("def along(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    response = {**LINEAR["response"], "perturbations": ["directions:along"]}
    with pytest.raises(UserError, match="depends on the state; scores given x1 answer kicks"):
        opened(tmp_path, "refused", {**LINEAR, "response": response})
