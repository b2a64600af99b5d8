"""The full response matrix of a run: what it equals, how it grows, what it refuses."""

from __future__ import annotations

import contextlib
import re
import sys

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from scipy import stats

from hpc.catalog import read_catalog
from workflow.cli import main
from workflow.opening import open_run
from workflow.responses.matrix import response_matrix
from workflow.stages.health import verify
from workflow.stages.matrix import choose, make_matrix, places
from workflow.stages.matrix_sums import Asked, slabs
from workflow.stages.pipeline import run_stages

EXPERIMENT = {
    "name": "kicked",
    "seed": 5,
    "system": {"kind": "ornstein_uhlenbeck", "dim": 1, "grid": 8, "relaxation": 0.3},
    "ensemble": {
        "members": 8,
        "group": 4,
        "spinup": 0.0,
        "length": 608.0,
        "save_every": 1.0,
        "chunk": "4KiB",  # 32 times
    },
    # Scores see the run until here, so a longer one has the same scores.
    "score": {"estimator": "gaussian", "split": {"until": 608.0}},
    "response": {
        "estimators": ["gaussian", "exact"],
        "perturbations": ["pixel"],
        "max_lag": 4.0,
        "checks": False,
    },
    "report": {"format": ["json"]},
    "cluster": {"simulate": {"workers": 1}, "analyse": {"workers": 1}},
}
LONGER = "ensemble.length=768.0"
SILENT = {"notify": lambda *_: None}


@pytest.fixture(scope="module")
def made(folder, client):
    """Some stages of the experiment, carried out with some settings."""
    path = folder / "kicked.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))

    def make(runs, *settings, stages=("simulate", "train", "evaluate")):
        run = open_run(str(path), folder / runs, settings)
        run_stages(run, stages, command="test", client=client, **SILENT)
        return run

    return make


def matrix_made(run, estimator="exact"):
    make_matrix(run, choose(run, estimator, None), **SILENT)
    return xr.open_zarr(run.folder / "matrix.zarr").load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def grown_and_whole(made, client):
    """The same run in two sittings and in one, the first matrix, and its receipts."""
    run = made("grown")
    with pytest.MonkeyPatch.context() as patch:
        here = contextlib.nullcontext(client)
        patch.setattr("workflow.stages.matrix.open_client", lambda *_, **__: here)
        first = matrix_made(run)
        ledger = run.folder / "ledger" / "matrix"
        before = {path: path.stat().st_mtime_ns for path in ledger.iterdir()}
        grown, whole = made("grown", LONGER), made("whole", LONGER)
        return (grown, matrix_made(grown)), (whole, matrix_made(whole)), first, before


def opened(run, estimator):
    x = xr.open_zarr(run.ensemble).u
    scores = xr.open_zarr(run.scores).score_u.sel(estimator=estimator, drop=True)
    return x, scores


def test_the_matrix_is_that_of_the_opened_arrays(grown_and_whole):
    """Sums about zero, moved to the means of the run, are the sums about those means."""
    run, found = grown_and_whole[1]
    expected = response_matrix(*opened(run, "exact"), max_lag=4)
    assert found.response.dims == expected.response.dims == ("lag", "x", "x_kicked")
    for name in ("response", "response_raw"):
        assert np.abs(found[name] - expected[name]).max() < 1e-6  # products in float32
    assert np.allclose(found.lag, expected.lag) and np.allclose(found.x_kicked, expected.x)
    assert found.stein_error == pytest.approx(expected.stein_error, rel=1e-4)
    assert (found.recalibrated, found.unresolved, found.estimator) == (1, 0, "exact")
    assert read_catalog(run.folder / "catalog.yaml").sources["matrix"].path.name == "matrix.zarr"


def test_the_matrix_of_ou_is_its_propagator(grown_and_whole):
    """R(lag)_ij = exact response at i - j; at lag 0 recalibration leaves no error."""
    run, found = grown_and_whole[1]
    exact = run.system.exact_response(torch.tensor(found.lag.values)).numpy()
    index = np.arange(8)
    expected = exact[:, (index[:, None] - index) % 8]
    error = found.standard_error.values
    assert np.abs(found.response[0] - np.eye(8)).max() < 1e-9
    assert error[0].max() < 1e-9
    z = (found.response.values[1:] - expected[1:]) / error[1:]
    # Four standard errors of a normal, for standard errors that come from 8 members.
    assert np.abs(z).max() < stats.t.isf(stats.norm.sf(4), 8 - 1)
    assert 0.8 < np.sqrt(np.mean(z**2)) < 1.25


def test_a_longer_run_only_adds_slabs(grown_and_whole):
    """Of 5 slabs the end of the shorter run cut the last; only its blocks are made again."""
    (run, _), _, _, before = grown_and_whole
    gone = {path.name for path in before if not path.exists()}
    slab = {re.search(r"-g\d{4}-(\d{5})-", name)[1] for name in gone}
    assert slab == {"00004"} and len(gone) == 2
    kept = [p for p, stamp in before.items() if p.exists() and p.stat().st_mtime_ns == stamp]
    assert len(kept) == 8
    assert len(slabs(run, Asked("exact", 4))) == 6


def test_a_grown_matrix_is_bitwise_that_of_the_run_made_at_once(grown_and_whole):
    (grown, one), (whole, other), first, _ = grown_and_whole
    assert one.identical(other)
    assert not np.array_equal(one.response, first.response)
    sums = [xr.open_zarr(run.folder / "matrix_sums.zarr").load() for run in (grown, whole)]
    assert sums[0].identical(sums[1]) and np.isfinite(sums[0].products.values).all()
    assert verify(grown) == []


def gfdt(monkeypatch, capsys, *arguments):
    """Exit code and output of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["gfdt", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0, capsys.readouterr()


def test_the_command_makes_what_is_missing_and_tells_where(grown_and_whole, monkeypatch, capsys):
    """A damaged chunk is found, forgotten and made again; another estimator replaces all."""
    run, whole = grown_and_whole[1]
    path = sorted((run.folder / "matrix_sums.zarr" / "products" / "c").rglob("*"))[-1]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes(9))
    assert {p.path for p in verify(run, repair=True)} == {str(path.relative_to(run.folder))}
    code, told = gfdt(monkeypatch, capsys, "matrix", run.folder, "--estimator", "exact")
    assert code == 0 and "matrix.zarr" in told.out and "0 of 8 directions" in told.out
    assert path.read_bytes() == content
    assert matrix_made(run).identical(whole)
    other = matrix_made(run, "gaussian")
    assert other.estimator == "gaussian"
    expected = response_matrix(*opened(run, "gaussian"), max_lag=4)
    assert np.abs(other.response - expected.response).max() < 1e-6


MISTAKES = {
    "estimator": (["--estimator", "exat"], "'exat' has no scores.*did you mean 'exact'"),
    "lag": (["--max-lag", "2000"], "--max-lag 2000 needs 0 or more and less than 768"),
    "too large": (["--memory", "1GiB"], "8 numbers and 5 lags needs 1.5 GiB, limit 1.0 GiB; lower"),
    "no size": (["--memory", "big"], "--memory 'big' is not a size"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_line(grown_and_whole, mistake, monkeypatch, capsys):
    arguments, line = MISTAKES[mistake]
    run = grown_and_whole[1][0]
    code, told = gfdt(monkeypatch, capsys, "matrix", run.folder, *arguments)
    assert code == 78 and re.search(line, told.err) and told.err.count("\n") == 1


def test_a_run_without_scores_is_told_what_to_run_first(made, monkeypatch, capsys):
    run = made("young", stages=("simulate",))
    code, told = gfdt(monkeypatch, capsys, "matrix", run.folder)
    assert code == 75 and "run first: gfdt evaluate kicked" in told.err
    assert told.err.count("\n") == 1


def test_numbers_of_a_system_without_space_are_called_by_their_names(tmp_path):
    (axis,) = places(open_run("triad", tmp_path))
    assert axis.name == "number" and list(axis.values) == ["u1", "u2", "tau"]
