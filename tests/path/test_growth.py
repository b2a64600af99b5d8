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

LARGER = "ensemble.members=8", "ensemble.length=12.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory, client):
    """All stages of an experiment, carried out with some settings."""
    folder = tmp_path_factory.mktemp("growing")

    def make(experiment, runs, *settings):
        path = folder / f"{experiment['name']}.yaml"
        path.write_text(yaml.safe_dump(experiment))
        run = open_run(str(path), folder / runs, settings)
        run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
        return run

    return make


@pytest.fixture(scope="module")
def short(small_yaml):
    """The small experiment in chunks of four times, with paired runs."""
    small = yaml.safe_load(small_yaml)
    return small | {
        "ensemble": small["ensemble"] | {"chunk": "4KiB"},
        "response": {"estimators": ["gaussian", "direct"], "max_lag": 2.0},
        "direct": {"pairs": 8},
        "report": {"format": ["json"]},
    }


@pytest.fixture(scope="module")
def grown_and_whole(made):
    """The same run in two sittings and in one, and the receipts of the first sitting."""
    longer = "ensemble.length=256.0"
    grown = made(EXPERIMENT, "grown")
    stages = ("simulate", "evaluate", "constants", "respond")
    before = {
        path: path.stat().st_mtime_ns
        for stage in stages
        for path in (grown.folder / "ledger" / stage).iterdir()
    }
    grown = made(EXPERIMENT, "grown", longer)
    return grown, made(EXPERIMENT, "whole", longer), before


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


@pytest.fixture(scope="module")
def larger(made, short):
    """Bytes of the stores of a run that was as large from the beginning."""
    return stored(made(short, "larger", *LARGER))


def stored(run):
    """Bytes of every file of every store, metadata included."""
    files = [path for path in run.folder.glob("*.zarr/**/*") if path.is_file()]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in files}


def receipts(run):
    return {path: path.stat().st_mtime_ns for path in run.ledger("simulate").folder.iterdir()}


def test_a_grown_run_has_the_bytes_of_one_made_at_that_size(made, short, larger):
    """More members, and a longer run, cost only what is new."""
    before = receipts(made(short, "small"))
    grown = made(short, "small", *LARGER)
    assert before.items() <= receipts(grown).items()
    assert stored(grown) == larger
    assert {name.split("/")[0] for name in larger} == {
        f"{store}.zarr" for store in ("ensemble", "perturbed", "scores", "correlations", "response")
    }
    assert xr.open_zarr(grown.ensemble).u.shape == (8, 24, 8, 8)


def test_a_run_with_a_partly_filled_last_chunk_grows_too(made, short, larger):
    """That block is made again, as no chunk may be partly empty; all others stay."""
    partly = made(short, "partly", "ensemble.members=6", "ensemble.length=7.0")
    names = "spinup-g0000-00001.json", "ensemble-g0000-00000.json"
    before = {path: stamp for path, stamp in receipts(partly).items() if path.name in names}
    assert len(before) == 2
    grown = made(short, "partly", *LARGER)
    assert before.items() <= receipts(grown).items()
    assert stored(grown) == larger


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
