"""A run that becomes longer adds to its responses; nothing that is done is done again."""

import re

import numpy as np
import pytest
import xarray as xr
import yaml

from workflow.opening import open_run
from workflow.stages.pipeline import STAGES, run_stages

EXPERIMENT = {
    "name": "growing",
    "seed": 2,
    "system": {"kind": "ornstein_uhlenbeck", "grid": 8, "relaxation": 0.3, "advection": 0.1},
    "ensemble": {
        "members": 8,
        "group": 4,
        "spinup": 0.0,
        "length": 160.0,
        "save_every": 1.0,
        "chunk": "32KiB",  # 32 times
    },
    # Scores see the run until here, so a longer one has the same scores.
    "score": {"estimator": "gaussian", "split": {"until": 160.0}},
    "response": {
        "estimators": ["gaussian", "exact"],
        "observables": ["field", "mean"],
        "perturbations": ["pixel", {"kind": "parameter", "parameter": "relaxation"}],
        "max_lag": 4.0,
        "error": {"block": 32.0},
    },
    "report": {"format": ["json"]},
}


def made(folder, runs, *settings):
    path = folder / "growing.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    run = open_run(str(path), folder / runs, settings)
    run_stages(run, STAGES, command="test", notify=lambda *_: None)
    return run


@pytest.fixture(scope="module")
def grown_and_whole(tmp_path_factory):
    """The same run in two sittings and in one, and the receipts of the first sitting."""
    folder = tmp_path_factory.mktemp("growing")
    longer = "ensemble.length=256.0"
    grown = made(folder, "grown")
    stages = ("simulate", "evaluate", "constants", "respond")
    before = {
        path: path.stat().st_mtime_ns
        for stage in stages
        for path in (grown.folder / "ledger" / stage).iterdir()
    }
    grown = made(folder, "grown", longer)
    return grown, made(folder, "whole", longer), before


def test_only_what_is_new_is_computed(grown_and_whole):
    """Of 5 blocks of sums, the last one sees more lags now; all others are as they were."""
    before = grown_and_whole[2]
    gone = {path.name for path in before if not path.exists()}
    assert {re.search(r"-g\d{4}-(\d{5})-", name)[1] for name in gone} == {"00004"}
    assert len(gone) == 4 and all(name.startswith("sums-") for name in gone)
    changed = {
        p.name for p, stamp in before.items() if p.exists() and p.stat().st_mtime_ns != stamp
    }
    assert changed == {"response.json"}


def test_responses_are_those_of_the_run_made_at_once(grown_and_whole):
    grown, whole, _ = grown_and_whole
    one, other = (xr.open_zarr(run.response).load() for run in (grown, whole))
    assert one.identical(other)
    assert np.isfinite(one.response.values).all()
    sums = [xr.open_zarr(run.correlations) for run in (grown, whole)]
    assert sums[0].sizes["block"] == 8
    assert sums[0].load().identical(sums[1].load())


def test_another_pattern_in_the_same_file_is_another_response(tmp_path):
    """Else the response to the old pattern would be given as that to the new one."""
    pattern = tmp_path / "pattern.npy"
    path = tmp_path / "growing.yaml"
    probes = {"perturbations": [{"kind": "pattern", "file": "pattern.npy"}]}
    path.write_text(
        yaml.safe_dump({**EXPERIMENT, "response": {**EXPERIMENT["response"], **probes}})
    )
    keys = []
    for number in (1.0, 2.0):
        np.save(pattern, np.full((8, 8), number))
        run = open_run(str(path), tmp_path / "runs")
        keys.append([run.key(stage) for stage in ("respond", "response", "direct", "evaluate")])
    same = [one == other for one, other in zip(*keys, strict=True)]
    assert same == [False, False, False, True]
