"""Job scripts: whatever is put in stays the word or the option that it was meant to be."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpc import slurm
from hpc.errors import LaunchError
from hpc.scripts import JobSpec, render, slurm_time

TEMPLATES = Path(__file__).parents[2] / "slurm"
SHIPPED = [TEMPLATES / "driver.sbatch", TEMPLATES / "train.sbatch"]
HOSTILE = "a b$(touch x)`touch x`;&|<>*?!#~\\\"'\n#SBATCH --wrap=x\n@{command}%j\x00\u2028é"
words = st.text(st.sampled_from(HOSTILE + "-=abc/") | st.characters(), max_size=12)
EASY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def spec(**changed):
    usual = {"name": "gfdt-a-0-driver", "log": Path("/tmp/logs/driver-%j.log")}
    usual |= {"command": ["true"], "directory": Path("/tmp")}
    return JobSpec(**usual | changed)


def options_of(script):
    """Words of each #SBATCH line, which end at the first command."""
    lines = []
    for line in script.split("\n")[1:]:
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            lines.append(shlex.split(line.removeprefix("#SBATCH")))
    return lines


@EASY
@given(st.lists(words, max_size=3), words)
@example([HOSTILE.replace("\n", "").replace("\x00", "")], "$(touch x)")
@example(["@{command}", "${HOME}"], "'")
@pytest.mark.parametrize("template", SHIPPED, ids=lambda path: path.stem)
def test_the_command_gets_the_words_it_was_given(tmp_path_factory, template, arguments, value):
    """By running the script itself, in bash."""
    folder = tmp_path_factory.mktemp("job")
    command = ["printf", "%s\\0", "first", *arguments, "last"]
    wanted = spec(command=command, environment={"GFDT_X": value}, directory=folder)
    try:
        script = render(template, wanted)
    except LaunchError as error:
        assert "\n" not in str(error)
        assert any(ord(letter) < 32 or letter == "\x7f" for letter in "".join([*arguments, value]))
        return
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split("\0") == ["first", *arguments, "last", ""]
    assert os.listdir(folder) == []
    shown = script.replace("printf", "printenv", 1).replace(shlex.join(command[1:]), "GFDT_X")
    printed = subprocess.run(["bash"], input=shown.encode(), capture_output=True, timeout=60)
    assert printed.stdout.decode() == f"{value}\n"


@EASY
@given(words, words, words, words, words)
@example("run name", "batch", "me", "--qos=a b", "echo 'half")
@pytest.mark.parametrize("template", SHIPPED, ids=lambda path: path.stem)
def test_nothing_adds_an_option_or_a_line(template, name, queue, account, extra, line):
    usual = len(options_of(render(template, spec())))
    wanted = spec(
        name=name,
        log=Path("/tmp") / name.replace("/", "_") / "x-%j.log",
        queue=queue,
        account=account,
        extra=[extra],
        prologue=[line],
    )
    try:
        script = render(template, wanted)
    except LaunchError as error:
        assert "\n" not in str(error)
        return
    found = options_of(script)
    assert len(found) == usual + 3
    assert [f"--partition={queue}"] in found and [f"--account={account}"] in found
    assert [f"--job-name={name}"] in found
    assert f"#SBATCH {extra}" in script.split("\n")
    assert line in script.split("\n")


@pytest.mark.parametrize("letter", ["\n", "\x00", "\r", '"', "\\"])
def test_what_slurm_cannot_read_is_refused_in_one_line(letter):
    with pytest.raises(LaunchError, match="cannot stand in a job script") as told:
        render(SHIPPED[0], spec(queue=f"a{letter}b"))
    assert "\n" not in str(told.value)


def test_a_template_must_keep_what_finds_the_job(tmp_path):
    template = tmp_path / "driver.sbatch"
    template.write_text("#!/bin/bash\n@{command}\n")
    with pytest.raises(LaunchError, match="lacks @{name}"):
        render(template, spec())
    template.write_text("#!/bin/bash\n#SBATCH -J @{name}\n@{command} @{comand}\n")
    with pytest.raises(LaunchError, match="unknown word @{comand}; known: name"):
        render(template, spec())
    with pytest.raises(LaunchError, match="no job template"):
        render(tmp_path / "none.sbatch", spec())


def test_a_template_may_use_bash_as_it_likes(tmp_path):
    template = tmp_path / "driver.sbatch"
    text = '#!/bin/bash\n#SBATCH -J @{name}\na=(1 2)\necho "$@" "${a[@]}" "$USER@x" @{command}\n'
    template.write_text(text)
    done = subprocess.run(["bash"], input=render(template, spec()), capture_output=True, text=True)
    assert done.stdout.endswith("@x true\n") and done.stdout.strip().startswith("1 2")


def test_half_a_quotation_in_a_prologue_is_refused():
    with pytest.raises(LaunchError, match="bash cannot read"):
        render(SHIPPED[0], spec(prologue=["echo 'half"]))


def test_walltimes_are_rounded_up():
    assert slurm_time(59.2) == "0-00:01:00"
    assert slurm_time(2 * 86400 + 3 * 3600 + 4 * 60 + 5) == "2-03:04:05"


@pytest.mark.parametrize("name", ["plain", "a b$(touch x)", "50%j é;'"])
def test_a_real_job_works_in_such_a_folder_or_is_refused(slurm_cluster, tmp_path, name):
    folder = tmp_path / name
    (folder / "logs").mkdir(parents=True)
    wanted = spec(
        name="gfdt-test",
        log=folder / "logs" / "driver-%j.log",
        command=["printf", "<%s>", name],
        directory=folder,
        walltime=120,
    )
    script = tmp_path / "job.sbatch"
    if "'" in name:
        with pytest.raises(LaunchError, match="cannot stand in a job script"):
            render(SHIPPED[0], wanted)
        return
    script.write_text(render(SHIPPED[0], wanted))
    job = slurm.submit(script)
    log, deadline = folder / "logs" / f"driver-{job}.log", time.monotonic() + 60
    said = ""
    while said != f"<{name}>":
        assert time.monotonic() < deadline, (said, os.listdir(folder / "logs"))
        time.sleep(0.2)
        with contextlib.suppress(FileNotFoundError):
            said = log.read_text()
    assert sorted(os.listdir(folder)) == ["logs"]
