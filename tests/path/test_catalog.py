"""Catalogs and archives: every road to the data of a run, and the last copy of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import xarray as xr
import yaml

from hpc.archive import archive, crc_of, problems
from hpc.catalog import Source, open_catalog, publish, read_catalog, write_catalog
from hpc.errors import CorruptBlock, StoreError
from workflow.stages.health import verify

BARE = """
import sys
for name in ("dask distributed intake torch pydantic typer rich matplotlib scipy mpi4py fsspec "
             "netCDF4 cftime cryptography").split():
    sys.modules[name] = None
import workflow
catalog = workflow.open_catalog(sys.argv[1])
print(float(catalog["response"].response.sum()), sorted(catalog.tree("response").children))
"""


@pytest.fixture
def shelf(small_run, tmp_path):
    """A folder of catalogs with that of the run."""
    publish(small_run.folder, tmp_path / "catalogs")
    return tmp_path / "catalogs"


@pytest.fixture(scope="module")
def expected(small_run):
    """What every road must lead to."""
    return xr.open_zarr(small_run.response).load()


def test_intake_opens_a_published_run(shelf, expected):
    intake = pytest.importorskip("intake", reason="the extra `catalog` is not installed")
    catalog = intake.open_catalog(str(shelf / "small.yaml"))
    assert sorted(catalog) == ["ensemble", "response", "scores"]
    assert catalog.response.to_dask().load().equals(expected)


def test_bare_xarray_opens_what_a_catalog_names(shelf, expected):
    path = read_catalog(shelf / "small.yaml").sources["response"].path
    assert xr.open_zarr(path).load().equals(expected)


def test_a_datatree_has_the_groups_too(shelf, expected):
    tree = open_catalog(shelf / "small.yaml").tree("response")
    assert tree.to_dataset().load().equals(expected)
    assert tree["spectrum"].response.dims == ("estimator", "perturbation", "lag", "shell")


def test_pyyaml_and_xarray_are_enough(shelf, expected):
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(shelf / "small.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    total, children = done.stdout.split(maxsplit=1)
    assert float(total) == pytest.approx(float(expected.response.sum()), rel=1e-12)
    assert children.strip() == "['spectrum']"


def test_intake_esm_finds_stores_by_column(shelf, expected, in_process):
    done = in_process("catalog", "esm", "--catalogs", shelf)
    assert done.returncode == 0 and str(shelf / "gfdt-esm.json") in done.stdout
    collection = json.loads((shelf / "gfdt-esm.json").read_text())
    assert len(collection["aggregation_control"]["groupby_attrs"]) == 2
    intake_esm = pytest.importorskip("intake_esm", reason="the extra `catalog` is not installed")
    found = intake_esm.esm_datastore(str(shelf / "gfdt-esm.json")).search(store="response")
    assert len(found) == 1
    opened = found.to_dataset_dict(progressbar=False)["small.response"]
    assert opened.response.load().equals(expected.response)


def test_a_folder_with_run_and_catalog_may_be_moved(small_run, tmp_path, expected):
    shutil.copytree(small_run.folder, tmp_path / "a" / "runs" / "small")
    publish(tmp_path / "a" / "runs" / "small", tmp_path / "a" / "catalogs")
    (tmp_path / "a").rename(tmp_path / "b")
    opened = open_catalog(tmp_path / "b" / "catalogs")["small"]["response"]
    assert opened.load().equals(expected)


def test_a_catalog_lies_as_it_was_written_whatever_the_links(tmp_path, small_run):
    """`..` after a link leads elsewhere: paths are made of what the links point to."""
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "deeper")
    path = publish(small_run.folder, tmp_path / "link")
    assert read_catalog(path).sources["response"].path == small_run.response.resolve()
    first = path.read_bytes()
    assert publish(small_run.folder, tmp_path / "link").read_bytes() == first


def test_run_publishes_and_the_list_tells_what_is_gone(small_run, tmp_path, in_process):
    shutil.copytree(small_run.folder, tmp_path / "runs" / "small")
    where = ("--runs", tmp_path / "runs")
    assert in_process("report", "small", "-q", *where).returncode == 0
    assert (tmp_path / "catalogs" / "small.yaml").is_file()
    assert in_process("catalog", "ls", *where).stdout.startswith("small  responses of ornstein")
    shown = in_process("catalog", "show", "small", *where).stdout
    assert "(member 8, time 80, y 8, x 8)" in shown and "missing" not in shown
    shutil.rmtree(tmp_path / "runs" / "small" / "scores.zarr")
    assert "[missing: scores]" in in_process("catalog", "ls", *where).stdout
    assert in_process("catalog", "rm", "small", *where).returncode == 0
    assert "has no catalogs" in in_process("catalog", "ls", *where).stdout
    assert (tmp_path / "runs" / "small" / "response.zarr").is_dir()


def test_a_misspelt_name_is_told_its_neighbour(shelf, in_process):
    done = in_process("catalog", "show", "smal", "--catalogs", shelf)
    assert done.returncode == 75 and "did you mean 'small'?" in done.stderr
    with pytest.raises(StoreError, match="no source 'respons'; did you mean 'response'"):
        open_catalog(shelf / "small.yaml")["respons"]


def test_a_name_on_the_shelf_is_not_taken_from_another_run(shelf, tmp_path, small_run):
    other = tmp_path / "other"
    shutil.copytree(small_run.folder, other)
    with pytest.raises(StoreError, match="small.yaml is the catalog of .*give --force"):
        publish(other, shelf)
    publish(other, shelf, force=True)
    assert read_catalog(shelf / "small.yaml").sources["response"].path.parent == other.resolve()


def test_an_archive_is_a_run_that_verifies(small_run, tmp_path, in_process):
    done = in_process("archive", small_run.folder, tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "kept" / "small"
    assert problems(copy) == []
    assert verify(type(small_run)(copy, small_run.experiment)) == []
    chunk = next(path for path in (copy / "ensemble.zarr" / "u").rglob("0") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = in_process("verify", copy)
    assert damaged.returncode == 75 and str(chunk.relative_to(copy)) in damaged.stdout
    before = (copy / "experiment.yaml").stat().st_mtime_ns
    assert in_process("archive", small_run.folder, tmp_path / "kept").returncode == 0
    assert problems(copy) == [] and (copy / "experiment.yaml").stat().st_mtime_ns == before


def test_a_zipped_archive_opens_like_the_run(small_run, tmp_path, expected, shelf):
    copy = tmp_path / "kept" / "small"
    archive(small_run.folder, copy, zipped=True, notify=lambda *_: None)
    assert problems(copy) == [] and not list(copy.rglob("*.zarr"))
    assert open_catalog(copy)["response"].load().equals(expected)
    publish(copy, shelf, force=True)
    intake = pytest.importorskip("intake", reason="the extra `catalog` is not installed")
    opened = intake.open_catalog(str(shelf / "small.yaml")).response.to_dask()
    assert opened.load().equals(expected)


def test_an_archive_that_was_killed_is_finished_by_the_same_command(small_run, tmp_path):
    """Killed at some file; what is there is whole, and nothing unfinished is left in the end."""
    command = [sys.executable, "-m", "workflow.cli", "archive", str(small_run.folder), "kept"]
    killed = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    copy = tmp_path / "kept" / "small"
    while killed.poll() is None and not (copy.is_dir() and any(copy.iterdir())):
        time.sleep(0.01)
    if killed.poll() is None:
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    for path in [p for p in copy.rglob("*") if p.is_file() and ".partial" not in p.name]:
        if path.name != "archive.json":
            assert crc_of(path) == crc_of(small_run.folder / path.relative_to(copy))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert problems(copy) == [] and not list(copy.rglob("*.partial"))


def test_what_is_no_archive_of_the_run_is_left_alone(small_run, tmp_path):
    target = tmp_path / "full"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is not empty and no archive of"):
        archive(small_run.folder, target, zipped=False, notify=lambda *_: None)
    (target / "thesis.tex").unlink()
    (target / "experiment.yaml").write_text("name: another\n")
    with pytest.raises(StoreError, match="holds another experiment"):
        archive(small_run.folder, target, zipped=False, notify=lambda *_: None)
    with pytest.raises(StoreError, match="is in the run itself"):
        archive(small_run.folder, small_run.folder / "copy", zipped=False, notify=lambda *_: None)


def test_a_damaged_run_is_not_archived(small_run, tmp_path, in_process):
    run = tmp_path / "runs" / "small"
    shutil.copytree(small_run.folder, run)
    chunk = next(path for path in (run / "ensemble.zarr" / "u").rglob("0") if path.is_file())
    chunk.write_bytes(b"short")
    done = in_process("archive", "small", tmp_path / "kept", "--runs", tmp_path / "runs")
    assert done.returncode == CorruptBlock.exit_code and "first: gfdt repair small" in done.stderr
    assert not (tmp_path / "kept").exists()


def test_a_catalog_that_is_written_twice_has_the_same_bytes(tmp_path):
    path = tmp_path / "catalog.yaml"
    content = {
        "metadata": {"name": "run", "description": "a run"},
        "sources": {"ensemble": Source(tmp_path / "ensemble.zarr", "states")},
    }
    write_catalog(path, **content)
    before = path.read_bytes()
    write_catalog(path, **content)
    assert path.read_bytes() == before
    url = yaml.safe_load(before)["sources"]["ensemble"]["args"]["urlpath"]
    assert url == "{{ CATALOG_DIR }}/ensemble.zarr"
