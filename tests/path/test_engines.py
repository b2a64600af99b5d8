"""The engine of a run, as its user meets it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from workflow.config import parse_experiment
from workflow.dynamics import engines
from workflow.dynamics.lanes.library import library
from workflow.interfaces import UserError
from workflow.opening import open_experiment
from workflow.stages.frames import lay_down
from workflow.stages.pipeline import run_stages

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler made the kernels")

TWO_ENGINES = {
    "name": "engines",
    "system": {"kind": "navier_stokes", "grid": 16, "scheme": "dealiased"},
    "ensemble": {
        "members": 4,
        "group": 4,
        "spinup": 0.5,
        "length": 1.0,
        "save_every": 0.25,
        "chunk": "8KiB",  # two segments
    },
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian"], "max_lag": 0.5},
}


def reopened(folder, runs, **ensemble):
    """The run as the command would open it."""
    given = {**TWO_ENGINES, "ensemble": {**TWO_ENGINES["ensemble"], **ensemble}}
    return open_experiment(parse_experiment(given), folder / runs, folder)


def test_a_run_keeps_its_engine_and_engines_agree(tmp_path, client):
    """`auto` is decided once and written down; nobody mixes engines by resuming elsewhere."""
    found = {}
    for engine, settings in (("torch", {"engine": "torch"}), ("lanes", {})):
        run = reopened(tmp_path, engine, **settings)
        run_stages(run, ("simulate",), command="test", notify=lambda *_: None, client=client)
        found[engine] = xr.open_zarr(tmp_path / engine / "engines" / "ensemble.zarr")
        assert json.loads(found[engine].experiment)["ensemble"]["engine"] == engine
        assert reopened(tmp_path, engine).experiment.ensemble.engine == engine
    with pytest.raises(UserError, match="ensemble.engine: torch -> lanes"):
        reopened(tmp_path, "torch", engine="lanes")
    one, two = (data.vorticity.values for data in found.values())
    assert one.shape == (4, 4, 16, 16)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * np.abs(one).max())


def test_a_run_of_the_kernels_is_not_continued_without_them(tmp_path, monkeypatch):
    """Whoever resumes it where there was no compiler learns what to install."""
    run = reopened(tmp_path, "runs")
    lay_down(run, command="test")
    monkeypatch.setattr(engines, "library", lambda: None)
    with pytest.raises(UserError, match="install a C\\+\\+ compiler") as caught:
        reopened(tmp_path, "runs")
    assert "\n" not in str(caught.value)
