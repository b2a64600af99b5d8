"""Files of others are read, never executed; nothing is written outside a run's folder."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import hpc
import workflow
from hpc.catalog import read_catalog
from hpc.errors import CorruptBlock, LayoutError, StoreError
from hpc.files import file_crc
from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Ledger, Receipt
from hpc.lock import run_lock
from hpc.stores import open_store, write_block
from workflow.config import apply_setting, parse_experiment, read_experiment
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.recorded import open_data
from workflow.runs import Run
from workflow.stages.data import load_checked
from workflow.stages.frames import lay_down
from workflow.stages.restart import load_state

SMALL = {
    "name": "small",
    "system": {"kind": "allen_cahn", "grid": 8},
    "ensemble": {"members": 4, "group": 4, "spinup": 0.5, "length": 8.0, "save_every": 0.5},
    "score": {"estimator": "gaussian"},
    "response": {"estimators": ["gaussian"], "max_lag": 2.0},
}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.fixture
def mark(tmp_path):
    """A file that must not be there in the end; and a trap that works."""
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Trap(mark))).close()
    mark.unlink()
    yield mark
    assert not mark.exists()


def test_a_pickle_in_the_place_of_tensors_is_refused(tmp_path, mark):
    """With a valid receipt: whoever can write into a run can write those too."""
    run = Run(tmp_path / "small", parse_experiment(SMALL))
    for folder, stage, block in (
        ("score", "train", "whitening"),
        ("constants", "constants", "constants-gaussian"),
        ("restart", "simulate", "spinup-g0000-00001"),
    ):
        path = run.folder / folder / f"{block}.pt"
        path.parent.mkdir(parents=True)
        torch.save({"mean": Trap(mark)}, path)
        name = str(path.relative_to(run.folder))
        run.ledger(stage).record(Receipt(block, {name: file_crc(path)}))
        with pytest.raises(CorruptBlock, match=f"{path} holds something else than tensors"):
            if stage == "simulate":
                load_state(run.folder, run.ledger(stage), block)
            else:
                load_checked(run, stage, block, name)


def test_nothing_here_reads_what_can_execute():
    """Every call that could, in every file, is told not to."""
    found = []
    for package in (workflow, hpc):
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                call = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                wrong = call in {"eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load"}
                wrong |= call in {"pickle.loads", "os.system", "joblib.load", "dill.load"}
                wrong |= call == "torch.load" and keywords.get("weights_only") != "True"
                wrong |= call == "np.load" and keywords.get("allow_pickle") != "False"
                wrong |= keywords.get("shell") == "True"
                found += [f"{path}:{node.lineno}: {call}"] if wrong else []
    assert found == []


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system"])
def test_yaml_that_makes_objects_is_refused(tmp_path, mark, tag):
    bomb = f"name: small\nsystem: {tag} ['touch {mark}']\nsources: {tag} ['touch {mark}']\n"
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb)
    with pytest.raises(UserError, match="bomb.yaml is not YAML"):
        read_experiment(str(path))
    with pytest.raises(UserError, match="the value is not YAML"):
        apply_setting(read_experiment("quickstart"), f"seed={tag} ['touch {mark}']")
    with pytest.raises(StoreError, match="is no readable catalog"):
        read_catalog(path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "experiment.yaml").write_text(bomb)
    with pytest.raises(UserError, match="is damaged"):
        load_run("small", tmp_path)


def test_a_catalog_runs_nothing(tmp_path, mark):
    """Intake fills in shell commands, environment and drivers; reading without it does not."""
    path = tmp_path / "catalog.yaml"
    shell = "{{ shell('touch MARK') }}".replace("MARK", str(mark))
    urls = [shell, "simplecache::http://127.0.0.1:9/x", f"$(touch {mark})"]
    urls.append("zip::simplecache::http://127.0.0.1:9/x.zip")
    sources = {
        f"s{i}": {"driver": "os.system", "args": {"urlpath": url}} for i, url in enumerate(urls)
    }
    path.write_text(yaml.safe_dump({"sources": sources}))
    catalog = read_catalog(path)
    assert all(isinstance(source.path, Path) for source in catalog.sources.values())
    for name in sources:
        with pytest.raises(StoreError, match="cannot open"):
            catalog[name]


@pytest.mark.parametrize("slot", ["filters", "compressor"])
def test_a_store_with_a_pickling_codec_is_refused(tmp_path, mark, slot):
    """Zarr of version 2 may name one; data of others come in it."""
    root = tmp_path / "own.zarr"
    codec = {"id": "pickle", "protocol": 4}
    for name, dims, dtype in (("T", ["time"], "<f8"), ("time", ["time"], "|O")):
        (root / name).mkdir(parents=True)
        array = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": dtype, "order": "C"}
        array |= {"compressor": None, "filters": None, "fill_value": None}
        array[slot] = [codec] if slot == "filters" else codec
        (root / name / ".zarray").write_text(json.dumps(array))
        (root / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": dims}))
        (root / name / "0").write_bytes(pickle.dumps(Trap(mark)))
    (root / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(UserError, match="cannot be opened"), open_data(root) as data:
        data.load()
    with pytest.raises((StoreError, ValueError)):
        open_store(root).load()


@given(st.text(max_size=30) | st.sampled_from(["..", ".", "../x", "/x", "a/b", "a\n", "-rf", "~"]))
@settings(max_examples=300, deadline=None)
def test_a_name_is_refused_or_one_folder_inside_the_runs(name):
    runs = Path("/some/runs")
    try:
        experiment = parse_experiment({**SMALL, "name": name})
    except UserError:
        return
    folder = Run(runs / experiment.name, experiment).folder
    assert Path(os.path.normpath(folder)).parent == runs
    assert "\n" not in name and not name.startswith(("-", "."))


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", ".."])
def test_a_variable_cannot_leave_its_store(tmp_path, name):
    """Names of fields may come from the data of others."""
    variable = Variable(name, ("x",), (4,), (2,), "float32")
    with pytest.raises(LayoutError, match="no / and no leading dot"):
        create_store(
            tmp_path / "a.zarr",
            variables=[variable],
            coordinates=[Coordinate("x", np.arange(4))],
            attrs={},
        )
    assert list(tmp_path.iterdir()) == []


@given(st.text(min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_a_receipt_stays_in_its_ledger(name):
    ledger = Ledger("/some/ledger", "/some")
    path = Path(os.path.normpath(ledger.path(name)))
    assert path.parent == Path("/some/ledger")
    assert not path.name.startswith(".")


CODE = """
from pathlib import Path
Path({mark!r}).touch()
from workflow.dynamics.allen_cahn import AllenCahn as Own
"""


def test_code_that_a_run_of_another_user_names_is_not_executed(tmp_path, mark, monkeypatch):
    """Nor is its folder put on the path; looking at the numbers of others is safe."""
    module = f"foreign_{os.getpid()}"
    (tmp_path / f"{module}.py").write_text(CODE.format(mark=str(mark)))
    run = Run(
        tmp_path / "runs" / "small",
        parse_experiment({**SMALL, "system": {"kind": f"{module}:Own", "grid": 8}}),
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lay_down(run, command="test")
    if os.getuid() != 0:
        monkeypatch.setattr(os, "getuid", lambda: run.folder.stat().st_uid + 1)
    else:
        os.chown(run.folder, 4711, -1)
    before = list(os.sys.path)
    with pytest.raises(UserError, match=f"belongs to user .* code of its own, {module}:Own; read"):
        load_run("small", tmp_path / "runs")
    assert os.sys.path == before


def test_a_run_of_another_user_without_code_is_read(tmp_path):
    run = open_run(_written(tmp_path), tmp_path / "runs")
    lay_down(run, command="test")
    if os.getuid() == 0:
        os.chown(run.folder, 4711, -1)
    assert load_run("small", tmp_path / "runs").experiment == run.experiment


def _written(folder):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022])
def test_a_run_is_as_private_as_its_user_wants(tmp_path, umask):
    before = os.umask(umask)
    try:
        run = open_run(_written(tmp_path), tmp_path / "runs")
        with run_lock(run.folder):
            lay_down(run, command="test")
            create_store(
                run.ensemble,
                variables=[Variable("u", ("x",), (4,), (2,), "float32")],
                coordinates=[Coordinate("x", np.arange(4))],
                attrs={},
            )
            files = write_block(run.ensemble, "u", start={}, values=np.ones(4, "float32"))
            run.ledger("simulate").record(Receipt("b", files))
    finally:
        os.umask(before)
    everything = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert len(everything) > 12
    assert [p for p in everything if p.stat().st_mode & umask & 0o777] == []
