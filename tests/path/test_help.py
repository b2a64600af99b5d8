"""What the command says to those who do not know it yet, or mistype it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr

import workflow
from hpc.dashboard import FILE, address_of, dashboard
from hpc.files import atomic_write_json
from workflow.cli import app
from workflow.status_view import lines

ROOT = Path(__file__).parents[2]


def commands():
    """Every command as the words that call it."""
    found = []

    def walk(command, words):
        for name, one in getattr(command, "commands", {}).items():
            walk(one, (*words, name))
        if not getattr(command, "commands", None):
            found.append(words)

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_help_of_every_command_has_an_example_that_it_takes(words, in_process):
    """An example that names an unknown option would send people astray."""
    told = in_process(*words, "--help")
    assert told.returncode == 0
    flat = " ".join(re.sub(r"[│╭╮╰╯─]", " ", told.stdout).split())
    example = re.search(rf"Example: gfdt {' '.join(words)}\b(.*)", flat)
    assert example, flat
    options = re.findall(r"(--[a-z-]+)", example[1].split("Example:")[0].split(" Options ")[0])
    assert all(option in flat.split(" Options ", 1)[-1] for option in options)


def test_there_is_nothing_but_these_commands():
    """A new one must be told here, so that it gets its example."""
    single = {" ".join(words) for words in commands()}
    assert single >= {
        *("run simulate train evaluate respond report plan submit status scale cancel").split(),
        *("forecast matrix sample verify repair doctor archive init").split(),
        *(f"catalog {word}" for word in ("ls", "show", "add", "rm", "esm")),
    }


def test_the_version_is_told(in_process):
    told = in_process("--version")
    assert (told.returncode, told.stdout) == (0, f"gfdt-workflow {workflow.__version__}\n")
    assert f'version = "{workflow.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("rnu", "quickstart"), "'run'"),
        (("catalog", "sho"), "'show'"),
        (("run", "quickstart", "--dry-rum"), "--dry-run"),
        (("run", "quikstart"), "did you mean 'quickstart'?"),
        (("status", "smal"), "did you mean 'small'?"),
        (("run", "quickstart", "--set", "ensemble.member=3"), "did you mean 'members'?"),
    ],
)
def test_what_is_mistyped_is_told_its_neighbour(typed, meant, in_process, small_run):
    told = in_process(*typed, *(("--runs", small_run.folder.parent) if "status" in typed else ()))
    assert told.returncode in (2, 78) and meant in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("gfdt status sm", ["small"]), ("gfdt run quick", ["quickstart"]), ("gfdt sim", ["simulate"])],
)
def test_names_are_completed(typed, offered, small_run, monkeypatch, capsys):
    """As bash asks: by the environment, instead of the command itself."""
    monkeypatch.chdir(small_run.folder.parents[1])
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    monkeypatch.setenv("_GFDT_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        app(prog_name="gfdt")
    assert capsys.readouterr().out.split() == offered


class _Client:
    dashboard_link = "http://127.0.0.1:40123/status"


def test_the_address_of_the_dashboard_is_told_while_its_driver_lives(tmp_path, monkeypatch):
    monkeypatch.setattr("hpc.dashboard.has_pages", lambda: True)
    here = {"pid": os.getpid(), "host": "login1", "alive": True}
    with dashboard(tmp_path, _Client()):
        found = address_of(tmp_path, here)
        assert found["url"] == _Client.dashboard_link
        assert found["tunnel"] == "ssh -N -L 40123:127.0.0.1:40123 login1"
        assert address_of(tmp_path, here | {"pid": 1}) is None
        assert address_of(tmp_path, here | {"alive": False}) is None
    assert address_of(tmp_path, here) is None
    atomic_write_json(tmp_path / FILE, {"port": "none"})
    assert address_of(tmp_path, here) is None


def test_a_status_shows_the_dashboard(small_run):
    from workflow.stages.status import status

    found = status(small_run)
    pages = {"url": "http://127.0.0.1:1/status", "tunnel": "ssh -N -L 1:127.0.0.1:1 login1"}
    shown = "\n".join(lines(found | {"dashboard": pages}))
    assert "http://127.0.0.1:1/status; from elsewhere first: ssh -N" in shown
    assert "dashboard" not in "\n".join(lines(found))


def test_what_init_writes_can_be_run(tmp_path, monkeypatch, in_process):
    """Each template is an experiment or a site that plan, or submit, takes as it stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    x = np.random.default_rng(0).standard_normal((8, 200))
    xr.Dataset({"T": (("member", "time"), x)}).to_zarr("mine.zarr")
    for name, kind in (("wells", "system"), ("kicks", "experiment"), ("mine", "data")):
        written = in_process("init", name, "--kind", kind)
        assert written.returncode == 0 and f"then: gfdt run {name}.yaml" in written.stdout
        planned = in_process("plan", f"{name}.yaml")
        assert planned.returncode == 0, planned.stderr
    assert in_process("init", "here", "--kind", "site").returncode == 0
    scripts = in_process("submit", "kicks.yaml", "--site", "here.yaml", "--dry-run")
    assert scripts.returncode == 0 and "#SBATCH --partition=batch" in scripts.stdout


def test_init_writes_over_nothing(tmp_path, monkeypatch, in_process):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("work")
    told = in_process("init", "a", "--kind", "system")
    assert told.returncode == 78 and "a.py exists" in told.stderr
    assert not (tmp_path / "a.yaml").exists() and (tmp_path / "a.py").read_text() == "work"
    assert "use letters" in in_process("init", "my-run").stderr
