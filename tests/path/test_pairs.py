"""Runs say how many of their pairs make the direct response, and from which lag on too few do."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
import yaml

from hpc.ledger import Receipt
from workflow.opening import open_run
from workflow.stages.health import verify
from workflow.stages.pipeline import STAGES, run_stages

MEMBERS = 512
EXPERIMENT = {
    "name": "well",
    # x decays at the rate 8 in the middle of the wells and grows at 4 between them.
    "system": {"kind": "scalar", "dt": 0.02, "forcing": 0.0, "linear": 4.0, "quadratic": 0.0}
    | {"cubic": 4.0, "sigma": 1.4142135623730951},
    "ensemble": {"members": MEMBERS, "group": MEMBERS, "spinup": 4.0, "length": 4.0}
    | {"save_every": 0.4},
    "score": {"estimator": "gaussian"},
    "response": {
        "estimators": ["gaussian", "direct"],
        "observables": ["field", {"kind": "exceedance", "above": 1.0}],
        "max_lag": 2.8,
        "checks": False,
    },
    "direct": {"pairs": MEMBERS, "amplitude": 0.01, "max_lag": 2.4},
}


@pytest.fixture(scope="module")
def well(tmp_path_factory, client):
    """A finished run, with one pair a member."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "well.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    run = open_run(str(folder / "well.yaml"), folder / "runs")
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
    return run


def summary(run):
    return json.loads((run.folder / "report" / "summary.json").read_text())


def test_few_pairs_make_the_response_of_a_double_well_at_long_lags(well):
    """Those that part to different wells: effectively a handful of 512."""
    found = xr.open_zarr(well.response).effective_pairs.sel(observable="field").squeeze().load()
    assert found.attrs["pairs"] == MEMBERS and found.attrs["enough"] == 30
    assert found[0] == pytest.approx(MEMBERS, rel=1e-5)
    assert 1 <= found[3:7].min() < 10
    assert np.isnan(found[7])  # beyond direct.max_lag


def test_moments_are_those_of_the_pairs_themselves(well):
    """With one pair a member the store has every pair."""
    response = xr.open_zarr(well.response).squeeze("perturbation")
    pairs = xr.open_zarr(well.perturbed).totals.isel(block=0, perturbation=0).load()
    for watched, name in enumerate(("field", "exceedance(1)")):
        own = response.sel(observable=name).isel(lag=slice(0, pairs.sizes["lag"]))
        size = pairs.isel(watched=watched).astype(float)
        known = (size**2).sum("member") ** 2 / (size**4).sum("member")
        np.testing.assert_allclose(own.effective_pairs, known, rtol=1e-6)
        variance = size.var("member", ddof=1)
        np.testing.assert_allclose(own.pair_variance, variance, rtol=1e-4, atol=1e-9)


def test_the_report_says_from_which_lag_on_not_to_trust_it(well):
    told = summary(well)
    first = told["responses"]["pixel"]["field"]["direct"]["few_pairs_from"]
    known = xr.open_zarr(well.response).effective_pairs.sel(observable="field").squeeze().load()
    assert first == known.lag[known < 30].min()
    assert told["estimators"]["direct"]["few_pairs_from"] == first
    line = told["few_pairs"]
    assert line.startswith("Do not trust the direct response of ") and len(line.splitlines()) == 1
    assert f"of {MEMBERS} at the worst, and 30 are needed" in line
    page = (well.folder / "report" / "index.html").read_text()
    assert line in page and "where they are fewest" in page


def test_a_response_is_compared_only_where_there_are_enough_pairs(well):
    told = summary(well)
    first = told["estimators"]["direct"]["few_pairs_from"]
    against = told["estimators"]["gaussian"]["against"]["direct"]
    assert against["compared_lags"] == sum(0 < lag < first for lag in told["lag"]) > 0
    assert max(against["different_lags"] + against["summed_lags"], default=0) < first


def test_pairs_of_an_earlier_layout_are_reported_as_they_are_and_made_again(well, tmp_path, client):
    """Without moments: the report has no word of them; the next run of the stage has them."""
    shutil.copytree(well.folder.parent, tmp_path / "runs")
    run = open_run(str(well.folder.parent.parent / "well.yaml"), tmp_path / "runs")
    before = xr.open_zarr(run.response).load()
    was = _of_the_layout_before(run)
    run_stages(run, ("report",), command="test", notify=lambda *_: None, client=client)
    assert summary(run)["few_pairs"] is None
    assert "effective_pairs" not in summary(run)["estimators"]["direct"]
    assert not (run.folder / "report" / "direct_pairs.png").exists()
    run_stages(run, ("respond", "report"), command="test", notify=lambda *_: None, client=client)
    assert xr.open_zarr(run.response).load().identical(before)
    assert xr.open_zarr(run.perturbed).totals.load().identical(was)
    assert summary(run)["few_pairs"] == summary(well)["few_pairs"]
    assert verify(run) == []


def _of_the_layout_before(run):
    """Make the run one of the first layout, and return its responses of pairs."""
    for stage, store, lost in (
        ("direct", run.perturbed, ("square", "fourth", "watched_observable")),
        ("respond", run.response, ("effective_pairs", "pair_variance")),
    ):
        ledger = run.ledger(stage)
        for block in sorted(ledger.done()):
            one = ledger.load(block)
            files = {f: crc for f, crc in one.files.items() if f.split("/")[1] not in lost}
            facts = (
                {**one.facts, "key": "of the layout before"} if "key" in one.facts else one.facts
            )
            ledger.record(Receipt(block, files, facts))
        for name in lost:
            shutil.rmtree(store / name)
        document = json.loads((store / "zarr.json").read_text())
        known = document["consolidated_metadata"]["metadata"]
        for name in lost:
            del known[name]
        (store / "zarr.json").write_text(json.dumps(document))
        run.ledger("frames").drop(store.name)
    (run.folder / "ledger" / "direct.key").write_text("of the layout before")
    return xr.open_zarr(run.perturbed).totals.load()
