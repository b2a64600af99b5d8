"""What is wrong with a score or with data is told by the run itself."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from workflow.config import parse_experiment
from workflow.figures.words import findings
from workflow.opening import open_run
from workflow.runs import Run
from workflow.scores.closed_form import fit_gaussian
from workflow.scores.neural import NeuralScore, WhitenedScore, with_parameters
from workflow.stages.data import load_estimator, save_tensors
from workflow.stages.frames import lay_down
from workflow.stages.pipeline import STAGES, run_stages
from workflow.stages.states import STATES, units_of

SYSTEM = '''
from workflow.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck


class Wrong(OrnsteinUhlenbeck):
    """Claims a score that is 1.4 times the right one."""

    def exact_score(self, x):
        return 1.4 * super().exact_score(x)
'''
SMALL = {
    "name": "wrong",
    "seed": 5,
    "system": {"kind": "wrong_score:Wrong", "grid": 8, "dt": 0.5, "relaxation": 0.3},
    "ensemble": {"members": 12, "spinup": 0.0, "length": 128.0, "save_every": 0.5},
    "score": {"estimator": "gaussian"},
    "response": {
        "estimators": ["exact"],
        "max_lag": 4.0,
        "perturbations": ["pixel", {"kind": "parameter", "parameter": "relaxation"}],
    },
}


def opened(folder, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return open_run(str(path), folder)


@pytest.fixture
def finish(client):
    """Carries out all stages of a run."""

    def done(run):
        run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
        return run

    return done


def failed(checks):
    return {one["name"] for one in checks if one["passed"] is False}


def test_a_run_with_a_wrong_score_says_so(tmp_path, finish):
    """A score too large by 40 % keeps <s> = 0 and breaks all that have a scale."""
    (tmp_path / "wrong_score.py").write_text(SYSTEM)
    run = finish(opened(tmp_path))
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    assert failed(summary["checks"]["data"]) == set()
    wrong = failed(summary["checks"]["exact"])
    assert wrong >= {
        "-<x s> = 1",
        "-<x^3 s> = 3 <x^2>",
        "<F . s> = -<div F>",
        "<B> = 0 of parameter(relaxation)",
        "dR/dt(0+) = <dF/dx>",
        "Langevin keeps the variance of u",
    }
    assert "<s> = 0" not in wrong
    assert any(text.startswith("The exact score fails ") for text in findings(summary))
    assert 'class="fails"' in (run.folder / "report" / "index.html").read_text()


def recorded(folder, *, trend):
    """A run of recorded members of a correlated series."""
    draws = np.random.default_rng(7).standard_normal((8, 600))
    x = np.zeros_like(draws)
    for t in range(1, 600):
        x[:, t] = 0.5 * x[:, t - 1] + draws[:, t]
    x += trend * np.arange(600) / 600
    data = xr.Dataset({"height": (("member", "time"), x)}, coords={"time": np.arange(600.0)})
    data.to_netcdf(folder / "own.nc", engine="scipy")
    experiment = {key: SMALL[key] for key in ("seed", "score")}
    experiment |= {"name": "own", "data": {"store": "own.nc"}}
    experiment |= {"response": {"estimators": ["gaussian"], "max_lag": 4.0}}
    experiment |= {"report": {"format": ["json"]}}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return open_run(str(path), folder)


def test_a_trend_of_recorded_data_is_told_once_and_on_the_page(tmp_path, capfd, finish):
    """The response to a kick is no response of data that drift by themselves."""
    run = finish(recorded(tmp_path, trend=3.0))
    told = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(told) == 1
    assert "own.nc is not stationary: no trend of the mean of height" in told[0]
    assert "standard deviations over the run" in told[0] and "standard errors" in told[0]
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    assert failed(summary["checks"]["data"]) == {"no trend of the mean of height"}
    assert any("Do not trust any" in text for text in findings(summary))
    finish(run)
    assert capfd.readouterr().err == ""


def test_checks_can_be_left_out_and_made_later(tmp_path, capfd, finish):
    """They are no part of the science: nothing else is made again."""
    run = recorded(tmp_path, trend=0.0)
    off = finish(Run(run.folder, _with_checks(run, False)))
    assert not off.checks.exists()
    before = receipts(off)
    on = finish(Run(run.folder, _with_checks(run, True)))
    assert on.checks.is_file() and "WARNING" not in capfd.readouterr().err
    after = receipts(on)
    assert {p: after[p] for p in before} == before
    assert {p.parent.name for p in after.keys() - before.keys()} == {"checks"}
    names = [one["name"] for one in json.loads(on.checks.read_text())["gaussian"]]
    assert not [name for name in names if "F" in name], "recorded data have no drift"


def receipts(run):
    """When each was written; those of frames hold the experiment itself."""
    found = [p for p in (run.folder / "ledger").rglob("*.json") if p.parent.name != "frames"]
    return {p: p.stat().st_mtime_ns for p in found}


def _with_checks(run, wanted):
    content = run.experiment.model_dump(mode="json")
    content["response"]["checks"] = wanted
    return parse_experiment(content)


@pytest.mark.parametrize("members, length", [(1, 4000.0), (3, 600.0), (40, 100.0), (3000, 50.0)])
def test_units_are_enough_and_states_are_bounded(tmp_path, members, length):
    """Error bars need many units, and the cost may not grow with the run."""
    ensemble = {"members": members, "length": length, "save_every": 0.5}
    content = SMALL | {"ensemble": ensemble, "system": {"kind": "allen_cahn", "grid": 32}}
    content["response"] = {"max_lag": 4.0}
    units = units_of(Run(tmp_path, parse_experiment(content)))
    assert 16 <= len(units) <= 128
    assert len({len(unit.times) for unit in units}) == 1
    assert STATES[0] <= sum(len(unit.times) for unit in units) <= 2048
    assert len({(unit.member, unit.blocks.start) for unit in units}) == len(units)
    assert all(0 <= t < length / 0.5 for unit in units for t in unit.times)


def test_the_extrapolated_score_is_what_a_run_evaluates(tmp_path):
    """2 s at sigma less s at 2^(1/2) sigma, of the averaged network."""
    score = {"extrapolate": True, "process": {"sigma_min": 0.1, "sigma_max": 0.2}}
    score |= {"network": {"channels": 4}, "train": {"steps": 1}}
    run = opened(
        tmp_path,
        score=score,
        system={"kind": "ornstein_uhlenbeck", "grid": 8, "dt": 0.5},
        response={"estimators": ["neural"], "max_lag": 4.0},
    )
    lay_down(run, command="test")
    draws = torch.Generator().manual_seed(8)
    x = torch.randn(200, 1, 8, 8, generator=draws)
    whitening = fit_gaussian(x, homogeneous=True)
    model = WhitenedScore(whitening, run.experiment.score)
    average = {k: v + torch.randn(v.shape, generator=draws) for k, v in model.named_parameters()}
    block = run.trained_block("neural")
    save_tensors(run, "whitening", "score/whitening.pt", whitening.state())
    save_tensors(run, block, f"score/{block}.pt", {"average": average})
    plain = NeuralScore(with_parameters(model, average))
    expected = 2 * plain.at(x, 0.1) - plain.at(x, 2**0.5 * 0.1)
    found = load_estimator(run, "neural")(x)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain(x), rtol=1e-2)
