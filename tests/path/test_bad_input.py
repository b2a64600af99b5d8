"""What users and machines get wrong: one line, one exit code, never a traceback."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hpc.catalog import read_catalog
from hpc.errors import StoreError
from hpc.launchers import find_mpiexec
from hpc.lock import run_lock
from hpc.stopping import STOPPING
from workflow.interfaces import UserError
from workflow.loading import load_run
from workflow.opening import open_run
from workflow.stages.frames import lay_down
from workflow.stages.pipeline import STAGES, run_stages

TRY_AGAIN, CONFIGURATION = 75, 78
PATIENCE = 240

MISTAKES = {
    "unknown key": (["ensemble.memmbers=4"], "ensemble.memmbers.*did you mean 'members'"),
    "unknown key of the system": (["system.gird=8"], "system.gird.*did you mean 'grid'"),
    "wrong type": (["ensemble.members=many"], "ensemble.members=many: must be a valid integer"),
    "list for a number": (["ensemble.members=[4, 5]"], "ensemble.members: must be a valid integer"),
    "no size": (["ensemble.chunk=big"], "'big' is not a size; write it like 16MiB"),
    "odd grid": (["system.grid=7"], "system.grid=7: must be a multiple of 2"),
    "unknown system": (["system.kind=alen_cahn"], "alen_cahn.*did you mean 'allen_cahn'"),
    "absent module": (["system.kind=no_such:Thing"], "no_such.*PYTHONPATH"),
    "one member": (["ensemble.members=1"], "ensemble.members=1: an error bar needs at least 2"),
    "lag beyond the data": (["response.max_lag=8.0"], "max_lag=8 needs more than the 16 saved"),
    "spin-up between steps": (
        ["ensemble.spinup=0.501"],
        "spinup=0.501.*system.dt.*use 0.5",
    ),
    "saved between steps": (["ensemble.save_every=0.501"], "save_every=0.501.*use 0.5"),
    "batch not over ranks": (
        ["score.train.global_batch=18", "score.train.ranks=2"],
        "global_batch=18.*ranks=2; use a multiple of 4",
    ),
    "too few snapshots": (
        ["score.estimator=neural"],
        "48 snapshots to learn from .3 members x 16 times.; a learned score needs at least 64",
    ),
    "no exact score": (
        ["system={kind: navier_stokes, grid: 16}", "response.estimators=[exact]"],
        "navier_stokes has no exact score; remove 'exact'",
    ),
    "extrapolation of what is not learned": (
        ["score.extrapolate=true"],
        "score.extrapolate=true is of the learned score.*set score.estimator: neural",
    ),
    "extrapolation from one noise level": (
        ["score.extrapolate=true", "score.estimator=neural"],
        "sigma_max of at least .* = 0.0283, not 0.02; set score.process.sigma_max: 0.03",
    ),
    "neural without training": (["response.estimators=[neural]"], "score.estimator=gaussian"),
    "no value": (["ensemble.members"], "needed KEY=VALUE"),
    "key of a value": (["name.a=1"], "'name' is a value"),
    "name with a slash": (["name=a/b"], "name=a/b"),
}


def gfdt(*arguments, cwd):
    command = [sys.executable, "-m", "workflow.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def assert_one_line(done, code, *words):
    """The exit code, and one line that says what is needed."""
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gfdt: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture
def folder(tmp_path, small_yaml):
    (tmp_path / "small.yaml").write_text(small_yaml)
    return tmp_path


@pytest.fixture
def command(folder, monkeypatch, in_process):
    """A command in the folder of the experiment, wherever a test went meanwhile."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        return in_process(*arguments)

    return run


@pytest.fixture
def carried_out(folder, client):
    """All stages of the experiment in the folder, as `gfdt run` does them."""

    def run():
        opened = open_run(str(folder / "small.yaml"), folder / "runs")
        run_stages(opened, STAGES, command="test", notify=lambda *_: None, client=client)

    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory, small_yaml, client):
    """Folder with a finished run, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "small.yaml").write_text(small_yaml)
    run = open_run(str(folder / "small.yaml"), folder / "runs")
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_work_starts(mistake, folder, command):
    """A user reads what to change, and no run folder is left behind."""
    settings, words = MISTAKES[mistake]
    told = command("run", "small.yaml", *[a for s in settings for a in ("--set", s)])
    assert_one_line(told, CONFIGURATION)
    assert re.search(words, told.stderr), told.stderr
    assert not (folder / "runs").exists()


def test_the_command_tells_a_mistake_in_one_line(folder):
    """The same from outside, as a shell sees it."""
    done = gfdt("run", "small.yaml", "--set", "ensemble.memmbers=4", cwd=folder)
    assert_one_line(done, CONFIGURATION, "unknown key 'ensemble.memmbers'", "'members'")


def test_an_unknown_experiment_names_the_nearest(tmp_path):
    """Names are mistyped more often than forgotten."""
    with pytest.raises(UserError, match="did you mean 'quickstart'") as told:
        open_run("quikstart", tmp_path)
    assert told.value.exit_code == CONFIGURATION


@pytest.mark.parametrize("content", ["a: [", "just words", ""])
def test_a_file_that_is_no_experiment_is_refused_in_one_line(content, tmp_path):
    """YAML errors span lines of their own."""
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="broken.yaml") as told:
        open_run(str(path), tmp_path)
    assert len(str(told.value).splitlines()) == 1


def test_a_missing_run_is_refused_by_status_verify_and_repair(tmp_path):
    """All of them find runs in the same way."""
    done = gfdt("status", "nowhere", cwd=tmp_path)
    assert_one_line(done, CONFIGURATION, "no run 'nowhere' in runs", "gfdt run nowhere")
    with pytest.raises(UserError, match="no run 'nowhere'"):
        load_run("nowhere", tmp_path)


def test_an_unknown_option_is_a_usage_error(tmp_path):
    """Shells and schedulers know code 2."""
    done = gfdt("run", "quickstart", "--frobnicate", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_changed_science_of_an_existing_run_lists_the_field(folder):
    """Old and new blocks of different experiments must not mix."""
    source, runs = str(folder / "small.yaml"), folder / "runs"
    lay_down(open_run(source, runs), command="test")
    with pytest.raises(UserError, match=r"system.alpha: 16.0 -> 8.0.*another name") as told:
        open_run(source, runs, ["system.alpha=8.0"])
    assert told.value.exit_code == CONFIGURATION
    open_run(source, runs, ["ensemble.length=16.0", "cluster.simulate.workers=1"])


def test_two_drivers_on_one_run_are_refused(folder):
    """They would write the same blocks; the message names the holder."""
    lay_down(open_run(str(folder / "small.yaml"), folder / "runs"), command="test")
    with run_lock(folder / "runs" / "small"):
        done = gfdt("run", "small.yaml", "-q", cwd=folder)
    assert_one_line(done, TRY_AGAIN, "in use by pid", str(os.getpid()))


def test_a_flipped_bit_is_named_forgotten_and_mended_bit_for_bit(
    sound, folder, command, carried_out
):
    """Disks decay silently; only the damaged block is made again."""
    shutil.copytree(sound / "runs", folder / "runs")
    run = folder / "runs" / "small"
    chunk = next(p for p in sorted((run / "ensemble.zarr" / "u" / "c").rglob("*")) if p.is_file())
    good = chunk.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    chunk.write_bytes(bad)

    found = command("verify", "small")
    assert_one_line(found, TRY_AGAIN, "1 damaged", "gfdt repair small")
    assert str(chunk.relative_to(run)) in found.stdout
    assert command("repair", "small").returncode == 0
    carried_out()
    assert chunk.read_bytes() == good
    assert command("verify", "small").returncode == 0


def spoil(path):
    """Change a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    """Lose the second half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


CHUNK = "ensemble.zarr/u/c/0/0/0/0"
RECEIPT = "ledger/simulate/ensemble-g0000-00000.json"
DAMAGES = {
    "missing store": (["ensemble.zarr"], shutil.rmtree, [], CHUNK, "file is missing"),
    "corrupt block": ([CHUNK], spoil, ["report"], "checksum", "gfdt repair"),
    "corrupt block under a stage": (
        [CHUNK],
        spoil,
        ["evaluate", "scores.zarr", "ledger/evaluate"],
        "checksum does not match",
        "gfdt repair",
    ),
    "damaged receipt": ([RECEIPT], spoil, [], "ensemble-g0000-00000", "damaged"),
    "truncated receipt": ([RECEIPT], cut, [], "ensemble-g0000-00000", "damaged"),
    "truncated fit": (
        ["score/whitening.pt"],
        cut,
        ["evaluate", "scores.zarr", "ledger/evaluate"],
        "whitening.pt is damaged",
        "gfdt repair",
    ),
    "truncated restart state": (
        ["restart/spinup-g0000-00001.pt"],
        cut,
        ["simulate", CHUNK, RECEIPT],
        "spinup-g0000-00001.pt is damaged",
        "gfdt repair",
    ),
}


def remove(path):
    (shutil.rmtree if path.is_dir() else os.unlink)(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_in_one_line_and_mended_bit_for_bit(
    damage, sound, folder, command, carried_out
):
    """Nothing is built on damage, and what the line says to do cures it."""
    shutil.copytree(sound / "runs", folder / "runs")
    run = folder / "runs" / "small"
    good = {
        path: path.read_bytes()
        for path in (run / "ensemble.zarr").rglob("*/[0-9]*")
        if path.is_file()
    }
    (target,), how, (*stage,), first, second = DAMAGES[damage]
    for lost in stage[1:]:
        remove(run / lost)
    how(run / target)
    quick = ["-q", "--set", "cluster.simulate.workers=1", "--set", "cluster.analyse.workers=1"]
    told = command(stage[0] if stage else "run", "small.yaml", *quick)
    assert_one_line(told, TRY_AGAIN, first, second, "gfdt repair runs/small")
    assert command("repair", "runs/small", "-q").returncode == 0
    carried_out()
    assert command("verify", "small", "-q").returncode == 0
    assert {path: path.read_bytes() for path in good} == good


@pytest.mark.parametrize("name", ["experiment.yaml", "provenance.json"])
@pytest.mark.parametrize("content", ["a: [", "words", ""])
def test_a_damaged_file_of_the_run_itself_is_told_in_one_line(name, content, folder, command):
    """`status` reads them before anything else."""
    lay_down(open_run(str(folder / "small.yaml"), folder / "runs"), command="test")
    (folder / "runs" / "small" / name).write_text(content)
    told = command("status", "small")
    assert_one_line(told, CONFIGURATION, f"{name} is damaged", "remove it and run")


@pytest.mark.parametrize("content", [None, "a: [", "words", "", "sources: {a: 1}"])
def test_a_damaged_catalog_is_told_in_one_line(content, tmp_path):
    """It is written again by every `gfdt run`."""
    path = tmp_path / "catalog.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StoreError, match="catalog.yaml is no readable catalog") as told:
        read_catalog(path)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", STOPPING, ids=lambda n: n.name)
def test_a_signal_leaves_a_run_that_continues_and_one_line(number, group, folder):
    """Terminals signal the whole group, batch systems one process or all."""
    long = ["--set", "ensemble.length=4096.0", "--set", "ensemble.chunk=1KiB"]
    command = [sys.executable, "-m", "workflow.cli", "run", "small.yaml", "-q", *long]
    command += ["--set", "cluster.simulate.workers=1"]
    started = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    ledger = folder / "runs" / "small" / "ledger" / "simulate"
    try:
        deadline = time.monotonic() + PATIENCE
        while len(list(ledger.glob("[!.]*"))) < 3:
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(started.pid).children(recursive=True)
        (os.killpg if group else os.kill)(started.pid, number)
        said = started.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert said == f"gfdt: stopped by {number.name}; the same command continues\n"
    assert started.returncode == 128 + number
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    with run_lock(folder / "runs" / "small"):
        assert load_run("small", folder / "runs").ledger("simulate").problems() == []


def test_a_wrong_number_of_ranks_is_refused(folder):
    """Ranks that do not see each other would train apart and say nothing."""
    run = open_run(str(folder / "small.yaml"), folder / "runs", ["score.train.ranks=2"])
    lay_down(run, command="test")
    command = [find_mpiexec(), "-n", "1", sys.executable, "-m", "mpi4py"]
    command += ["-m", "workflow.stages.train_rank", str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == CONFIGURATION, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("gfdt: ")]
    assert len(told) == 1
    assert "1 ranks, 2 were asked for" in told[0]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_told_in_one_line(folder, full_disk):
    """Workers meet it first; the command says where, and may be run again."""
    settings = ["--set", "ensemble.length=256.0", "--set", "ensemble.chunk=64KiB"]
    settings += ["--set", "cluster.simulate.workers=1"]
    done = gfdt("run", "small.yaml", "-q", "--runs", full_disk, *settings, cwd=folder)
    assert_one_line(done, TRY_AGAIN, "run the same command again")
    assert "no space left" in done.stderr.lower()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(folder):
    """The runs folder is a file."""
    (folder / "runs").write_text("")
    done = gfdt("run", "small.yaml", "-q", cwd=folder)
    assert_one_line(done, TRY_AGAIN, str(Path("runs")))
