"""The whole path on a system whose response is known in closed form."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from workflow.dynamics import build_system
from workflow.opening import open_run
from workflow.stages.diagnose import identities_block, langevin_block
from workflow.stages.health import verify
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.states import states_block

EXPERIMENT = {
    "name": "ou",
    "seed": 4,
    "system": {"kind": "ornstein_uhlenbeck", "grid": 8, "relaxation": 0.3, "advection": 0.1},
    "ensemble": {
        "members": 24,
        "group": 8,
        "spinup": 0.0,
        "length": 400.0,
        "save_every": 1.0,
        "chunk": "256KiB",
    },
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian", "exact", "direct"], "max_lag": 8.0},
    "direct": {"pairs": 48, "amplitude": 0.1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, client):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "ou.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    run = open_run(str(path), folder)
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
    return run


@pytest.fixture(scope="module")
def response(run):
    """Its response, opened by bare xarray."""
    return xr.open_zarr(run.response).isel(perturbation=0, observable=0).load()


@pytest.fixture(scope="module")
def truth(response):
    """exp(-r_k t), displacements in increasing order."""
    system = build_system(EXPERIMENT["system"])
    lag = torch.from_numpy(response.lag.values.astype(float))
    return np.fft.fftshift(system.exact_response(lag).numpy(), axes=(1, 2))


@pytest.mark.parametrize("estimator", ["gaussian", "exact"])
def test_responses_are_the_propagator_within_their_error_bars(response, truth, estimator):
    """Nearly all of 9 x 64 numbers within 4 standard errors, and none beyond 6."""
    one = response.sel(estimator=estimator)
    off = np.abs(one.response.values - truth)[1:] / one.standard_error.values[1:]
    assert np.mean(off < 4) > 0.98
    assert off.max() < 8


def test_paired_runs_of_a_linear_system_give_its_propagator_exactly(response, truth):
    """Common noise cancels: only float32 rounding over the amplitude is left."""
    direct = response.sel(estimator="direct").response.values
    assert np.abs(direct - truth).max() < 2e-4


def test_all_pairs_of_a_linear_system_count_and_none_differs(response):
    """48 pairs, alike but for float32 rounding over the amplitude."""
    np.testing.assert_allclose(response.effective_pairs, 48, rtol=1e-4)
    assert response.effective_pairs.attrs["pairs"] == 48
    assert float(response.pair_variance.max()) < 64 * 2e-6**2


def test_intervals_cover_the_truth_about_as_often_as_they_say(response, truth):
    """95 % intervals over 8 x 64 correlated numbers."""
    one = response.sel(estimator="gaussian").isel(lag=slice(1, None))
    inside = (one.ci_low.values <= truth[1:]) & (truth[1:] <= one.ci_high.values)
    assert 0.85 < inside.mean() <= 1


def test_a_score_of_a_gaussian_field_satisfies_the_stein_identity(response):
    """M_k = 1 for the fitted and the exact score, within their errors."""
    stein = response.stein.sel(estimator=["gaussian", "exact"])
    assert float(abs(stein - 1).max()) < 0.3
    assert float(abs(stein.mean(("ky", "kx")) - 1).max()) < 0.02


def test_every_check_of_the_exact_score_and_of_its_data_passes(run):
    """Identities, drift, slope, Langevin and stationarity, each within 4 standard errors."""
    found = json.loads(run.checks.read_text())
    assert [one for name in ("data", "exact") for one in found[name] if not one["passed"]] == []
    starts = ["<s>", "-<x s>", "-<x^2 s>", "-<x^3 s>", "<F . s>", "dR/dt(0+)", "Langevin"]
    names = [one["name"] for one in found["exact"]]
    assert [s for s in starts if not any(name.startswith(s) for name in names)] == []
    third = next(one for one in found["exact"] if one["name"].startswith("-<x^3 s>"))
    assert 0 < third["standard_error"] < 0.05 * third["expected"]
    assert [one["name"] for one in found["data"]] == [
        f"no trend of the {what} of u" for what in ("mean", "variance")
    ]


def test_the_checks_are_in_the_summary_and_on_the_page(run):
    """Who reads the report must see them."""
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    assert set(summary["checks"]) == {"data", "gaussian", "exact"}
    page = (run.folder / "report" / "index.html").read_text()
    assert "<h2>Checks</h2>" in page and "All checks of the data and exact pass" in page


def test_a_part_of_the_checks_is_the_same_bytes_wherever_it_is_made(run):
    """Its numbers are functions of the experiment and the name of the block."""
    parts = {path: path.read_bytes() for path in (run.folder / "checks").glob("*.pt")}
    assert len(parts) == 3 + 2 * 3 + 2
    states_block(str(run.folder), 2)
    identities_block(str(run.folder), "gaussian", 1)
    langevin_block(str(run.folder), "exact")
    assert {path: path.read_bytes() for path in parts} == parts


def test_damaged_checks_are_found_and_made_again(run, client):
    """They are a product like any other."""
    before = run.checks.read_bytes()
    run.checks.write_bytes(before.replace(b"true", b"none", 1))
    assert [problem.path for problem in verify(run, repair=True)] == ["checks.json"]
    run_stages(run, ("respond",), command="test", notify=lambda *_: None, client=client)
    assert run.checks.read_bytes() == before and verify(run) == []


def test_the_products_are_those_that_the_design_names(run, response):
    """Stores with their dims, a summary with the same numbers, pictures, a page, a catalog."""
    ensemble = xr.open_zarr(run.ensemble)
    assert ensemble.u.dims == ("member", "time", "y", "x")
    assert ensemble.time.values[0] == 1.0 and len(ensemble.time) == 400
    assert xr.open_zarr(run.scores).score_u.dims == ("estimator", "member", "time", "y", "x")
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    l2 = summary["estimators"]["gaussian"]["against"]["direct"]["l2"]
    assert l2[3] == pytest.approx(
        float(response.sel(estimator="gaussian", reference="direct").l2[3]), abs=1e-5
    )
    assert (run.folder / "report" / "index.html").stat().st_size > 1000
    assert len(list((run.folder / "report").glob("*.png"))) >= 6
    catalog = yaml.safe_load((run.folder / "catalog.yaml").read_text())
    assert set(catalog["sources"]) >= {"ensemble", "scores", "response"}
