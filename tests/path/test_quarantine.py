"""A member that blows up is left out of every number, and said so; the others are as without it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from hpc.errors import CONFIGURATION
from workflow.cli import main
from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.quarantine import FACT, quarantined
from workflow.stages.data import load_snapshots
from workflow.stages.matrix import choose, make_matrix
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.status import status

SYSTEM = '''
"""Allen-Cahn fields of which some are lost: by a wild draw, or by leaving a range."""

import torch
from workflow.dynamics.allen_cahn import AllenCahn


class Fragile(AllenCahn):
    wildest: float = 100.0
    widest: float = 100.0

    def step(self, state, normals):
        lost = normals.flatten(1).abs().amax(1) > self.wildest
        after = super().step(state, normals)
        lost = lost | (self.observe(after).flatten(1).abs().amax(1) > self.widest)
        for part in after.values():
            part[lost] = torch.inf
        return after
'''
EXPERIMENT = {
    "name": "fragile",
    "seed": 66,
    "system": {"kind": "fragile_fields:Fragile", "grid": 8},
    "ensemble": {
        "members": 8,
        "group": 4,
        "spinup": 0.5,
        "length": 8.0,
        "save_every": 0.5,
        "chunk": "4KiB",  # four segments
    },
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian", "exact", "direct"], "max_lag": 1.5},
    "direct": {"pairs": 16},
    "cluster": {"simulate": {"workers": 1}, "analyse": {"workers": 1}},
}
WILD = "system.wildest=5.3"  # drawn by member 0 only, at 5.30 after the spin-up
STORES = ("ensemble", "scores", "correlations", "perturbed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fragile")
    (folder / "fragile_fields.py").write_text(SYSTEM)
    (folder / "fragile.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return folder


@pytest.fixture(scope="module")
def made(folder, client):
    """Some stages of the experiment, carried out with some settings."""

    def make(runs, *settings, stages=STAGES):
        run = open_run(str(folder / "fragile.yaml"), folder / runs, settings)
        run_stages(run, stages, command="test", notify=lambda *_: None, client=client)
        return run

    return make


@pytest.fixture(scope="module")
def whole(made):
    return made("whole", "response.checks=false", stages=STAGES[:-1])


@pytest.fixture(scope="module")
def broken(made):
    return made("broken", WILD)


def values(run, store, variable):
    return xr.open_zarr(run.folder / f"{store}.zarr")[variable].load()


def test_the_member_is_named_with_the_time_of_its_loss(broken):
    assert broken.quarantined == {0: 10}  # saved at 0.5, 1.0, ...: 5.5 is the first after 5.30
    u = values(broken, "ensemble", "u")
    assert np.isfinite(u[0, :10]).all() and np.isnan(u[0, 10:]).all()
    receipts = {one.block: one.facts[FACT] for one in broken.ledger("simulate").having(FACT)}
    assert len(receipts) >= 2
    assert all(named == {"0": 10} for named in receipts.values())


def test_all_other_members_are_bit_for_bit_what_they_were(whole, broken):
    assert values(broken, "ensemble", "u")[1:].equals(values(whole, "ensemble", "u")[1:])
    exact = {"estimator": "exact", "member": slice(1, None)}
    scores = [values(run, "scores", "score_u").sel(exact) for run in (whole, broken)]
    assert scores[0].equals(scores[1])
    pairs = [values(run, "perturbed", "response")[:, 1:] for run in (whole, broken)]
    assert pairs[0].equals(pairs[1])


def test_no_statistic_has_a_row_of_it(whole, broken):
    """The Gaussian fit, the sums of the response, its units and the mean of the pairs."""
    fit = torch.load(broken.folder / "score" / "whitening.pt", weights_only=True)
    seen = values(whole, "ensemble", "u").values[1:7]  # member 7 is held out
    np.testing.assert_allclose(fit["mean"].flatten(), seen.mean(), rtol=1e-5)
    for store, variable in (("correlations", "maps"), ("perturbed", "response")):
        rows = values(broken, store, variable).isnull()
        rows = rows.any([dim for dim in rows.dims if dim != "member"])
        assert rows.values.tolist() == [True] + [False] * 7
    response = xr.open_zarr(broken.folder / "response.zarr").load()
    assert {response.attrs[f"resampled_{n}"] for n in response.estimator.values} == {"7 members"}
    assert bool(response.response.notnull().all()) and bool(response.ci_low.notnull().all())
    assert response.effective_pairs.attrs["pairs"] == 7 * 2
    assert bool(((response.effective_pairs >= 1) & (response.effective_pairs < 14.001)).all())
    pairs = values(whole, "perturbed", "response")[:, 1:, :, 0, 0]  # (block, member, lag, dy, dx)
    direct = response.response.sel(estimator="direct").squeeze(drop=True)
    mean = np.fft.fftshift(pairs.mean(["block", "member"]).values, axes=(1, 2))
    np.testing.assert_allclose(direct.values, mean, rtol=1e-5, atol=1e-6)


def test_status_summary_and_report_say_so(broken):
    assert status(broken)["quarantined"] == [0]
    summary = json.loads((broken.folder / "report" / "summary.json").read_text())
    assert summary["quarantined"] == [{"member": 0, "runs": "ensemble", "time": 5.5}]
    page = (broken.folder / "report" / "index.html").read_text()
    assert "became non-finite: member 0." in page


def test_the_matrix_has_no_row_of_it_either(broken):
    make_matrix(broken, choose(broken, "exact", None), notify=lambda *_: None)
    matrix = xr.open_zarr(broken.folder / "matrix.zarr").load()
    assert bool(matrix.response.notnull().all())


def test_it_does_not_matter_who_is_stepped_together(made, broken):
    """Not even where a group has nobody left."""
    alone = made(
        "alone",
        WILD,
        "ensemble.group=1",
        "ensemble.chunk=1KiB",
        "response.checks=false",
        stages=STAGES[:-1],
    )
    assert alone.quarantined == broken.quarantined
    for store, variable in (("ensemble", "u"), ("perturbed", "response")):
        assert values(alone, store, variable).equals(values(broken, store, variable))
    response = xr.open_zarr(alone.folder / "response.zarr").load()
    assert bool(response.response.notnull().all())


def test_a_member_whose_pairs_blow_up_is_left_out_of_the_direct_response_only(made):
    """A kick that is too large for one member."""
    wide = "seed=3", "system.widest=2.5", "direct.amplitude=1.0"
    run = made("wide", *wide, "response.checks=false", stages=STAGES[:-1])
    assert run.quarantined == {}
    lost = quarantined(run.ledger("direct"))
    assert len(lost) == 1
    response = xr.open_zarr(run.folder / "response.zarr").load()
    assert response.attrs["resampled_direct"] == "7 members"
    assert response.attrs["resampled_exact"] == "8 members"
    assert bool(response.response.notnull().all())
    assert status(run)["quarantined"] == [*lost]


def test_too_many_are_no_accident(folder, monkeypatch, capsys):
    """Two of eight; in one line, and the same when it is run again."""
    monkeypatch.chdir(folder)
    command = [
        "gfdt",
        "run",
        "fragile.yaml",
        "--runs",
        "many",
        "--set",
        "system.wildest=4.85",
        "-q",
    ]
    monkeypatch.setattr(sys, "argv", command)
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr().err
        assert left.value.code == CONFIGURATION
        assert said.startswith("gfdt: member 0, 7 became non-finite by time ")
        assert "2 of 8 were lost and at most 1 may be left out; system.dt=0.0078125 is" in said
        assert len(said.splitlines()) == 1


def test_a_part_without_members_is_told(made):
    """The only held-out member may be the one that is lost."""
    run = made("held", "seed=41", "system.wildest=5.0", stages=("simulate",))
    assert list(run.quarantined) == [7]
    with pytest.raises(UserError, match="all of members 7 to 7 became non-finite; raise"):
        load_snapshots(run, run.held_out)
