"""Pages that promise to run as they stand do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- run -->\n```(python|bash)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
FENCE = re.compile(r"```(?:python|bash)\n")
PATIENCE = 800


def run_page(path, folder):
    """Write the files of a page, run its marked blocks, in one folder and one Python namespace.

    Returns:
        The namespace, and the text that bash blocks printed.
    """
    shim = folder / "bin" / "gfdt"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m workflow.cli "$@"\n')
    shim.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    for name, text in FILE.findall(path.read_text()):
        (folder / name).write_text(text)
    namespace, said = {}, []
    for language, text in BLOCK.findall(path.read_text()):
        if language == "python":
            exec(compile(text, f"{path.name}: {text.splitlines()[0]}", "exec"), namespace)
            continue
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return namespace, said


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return run_page(ROOT / "docs" / "own_data.md", folder)
    finally:
        os.chdir(before)


def test_no_block_of_code_is_left_out():
    text = (ROOT / "docs" / "own_data.md").read_text()
    assert len(BLOCK.findall(text)) == len(FENCE.findall(text)) >= 7


def test_the_page_prints_what_it_says(own_data):
    """Numbers in the text, to the digits that are printed there."""
    _, (respond, forecast) = own_data
    lines = respond.splitlines()
    assert lines[0] == "data: T, h: 12 members ('run'); 2400 times ('month'), 1 apart; no space"
    assert lines[1] == "score: kgmm"
    assert lines[-1].endswith("runs/enso/report/index.html")
    largest = dict(re.findall(r"^(\w+): largest change (\S+) ", forecast, re.MULTILINE))
    assert float(largest["gaussian"]) == pytest.approx(0.438, abs=0.001)
    # The network is trained in float32: the last digits are those of the machine.
    assert float(largest["kgmm"]) == pytest.approx(0.425, abs=0.01)


def test_the_learned_response_of_the_page_is_the_truth_and_the_gaussian_is_not(own_data):
    """Over 24 lags, correlated: mean square in standard errors, 1 where the answer is right."""
    page, _ = own_data
    found = page["answer"].sel(perturbation="pixel:T", observable="field:T", lag=slice(1, 24))
    spread = (page["up"] - page["down"]).std(axis=-1)[1:25, 0] / 0.6
    own = spread / np.sqrt(page["T"].size / 5)  # five of each state
    off = {}
    for name in ("gaussian", "kgmm"):
        one = found.sel(estimator=name)
        error = np.hypot(one.standard_error.values, own)
        off[name] = float(np.mean(((one.response.values - page["truth"][1:25]) / error) ** 2))
    assert off["kgmm"] < 3 < off["gaussian"]


def test_the_command_and_the_accessor_of_the_page_agree(own_data):
    """Scores are learned from other parts of the data: within an error bar or two."""
    page, _ = own_data
    pick = {"perturbation": "pixel:T", "observable": "field:T", "estimator": "gaussian"}
    run, here = page["saved"].sel(pick), page["answer"].sel(pick)
    error = run.standard_error.values.max()
    assert np.abs(run.response.values - here.response.values).max() < 0.2 * error


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extending")
    before, paths = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield run_page(ROOT / "docs" / "extending.md", folder)
    finally:
        os.chdir(before)
        sys.path[:] = paths
        sys.modules.pop("my_parts", None)


def test_the_parts_of_the_page_about_extending_answer(extended):
    """A system, an observable, a perturbation, a score, a process and a client of one's own."""
    page, (said,) = extended
    assert "my_parts:SwiftHohenberg" in said and "roughness" in said
    found = page["run"].response
    names = {str(n) for n in page["xr"].open_zarr(found).perturbation.values}
    assert names == {"pixel", "stretch"}
    errors = page["answer"].stein_error.to_series()
    assert errors["gaussian"] < 0.1 < errors["mine"]


def test_stretching_raises_the_roughness_by_twice_its_share(extended):
    """A quadratic observable of x + eps x at lag 0: 2 <A>, by the theorem within its error bar."""
    page, _ = extended
    run = page["run"]
    tree = page["workflow"].open_catalog(run.folder).tree("response")
    one = tree["roughness"].sel(perturbation="stretch", estimator="gaussian", lag=0.0)
    x = page["xr"].open_zarr(run.ensemble).u.values
    wanted = 2 * float(((x - np.roll(x, 1, axis=-1)) ** 2).mean())
    assert abs(float(one.response_raw) - wanted) < 5 * float(one.standard_error) + 0.2 * wanted
