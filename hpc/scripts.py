"""Job scripts from plain-text templates: nothing that is put in can become a command or an option.

A template is a shell script in which only `@{word}` is replaced. What the body gets is quoted for
the shell; what an `#SBATCH` line gets is one word for Slurm, or refused.
"""

from __future__ import annotations

import re
import shlex
import string
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc.errors import LaunchError

MIB = 2**20


class JobTemplate(string.Template):
    """Text in which only `@{word}` is replaced, so that `$` and `@` keep their meaning in bash."""

    delimiter = "@"
    flags = re.VERBOSE
    pattern = r"@(?:(?P<escaped>(?!))|(?P<named>(?!))|\{(?P<braced>[a-z_]+)\}|(?P<invalid>(?!)))"  # type: ignore[assignment]


NEEDED = ("name", "command")
"""Words that a template must keep: to find the job again, and to do its work."""


@dataclass(frozen=True)
class JobSpec:
    """What one job asks for and does.

    Attributes:
        name: name of the job; one word.
        log: file to which it appends what it prints; Slurm puts its number for %j in the name.
        command: program and arguments.
        directory: where it starts.
        environment: variables in addition to those of the submitting shell.
        tasks: processes that `srun` starts.
        nodes: nodes; None leaves it to Slurm.
        tasks_per_node: tasks on a node; None leaves it to Slurm.
        cores: of one task.
        memory: bytes of one task; None leaves it to the site.
        walltime: seconds; None leaves it to the site.
        queue: partition; None leaves it to the site.
        account: account; None leaves it to the site.
        extra: further options of sbatch, such as "--qos=long".
        prologue: shell lines before work, as they stand.
        lead: seconds before the walltime ends at which the job is warned.
        attempts: starts of the command within one job.
        requeues: times that the job goes back into the queue as its walltime ends.
    """

    name: str
    log: Path
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    tasks: int = 1
    nodes: int | None = None
    tasks_per_node: int | None = None
    cores: int = 1
    memory: int | None = None
    walltime: float | None = None
    queue: str | None = None
    account: str | None = None
    extra: Sequence[str] = ()
    prologue: Sequence[str] = ()
    lead: int = 120
    attempts: int = 5
    requeues: int = 0


def render(template: Path, spec: JobSpec) -> str:
    """The job script of a template.

    Raises:
        LaunchError: the template is absent, lacks a word it must keep or holds an unknown one; a
            value cannot stand in a job script; or bash cannot read the script.
    """
    try:
        text = template.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"no job template {template}: {error}; name a folder that has it") from (
            error
        )
    words = _words(spec)
    asked = JobTemplate(text).get_identifiers()
    for word in asked:
        if word not in words:
            raise LaunchError(f"{template}: unknown word @{{{word}}}; known: {', '.join(words)}")
    for word in NEEDED:
        if word not in asked:
            raise LaunchError(f"{template} lacks @{{{word}}}, without which the job is lost")
    script = JobTemplate(text).substitute(words)
    _check_syntax(script, template)
    return script


def _words(spec: JobSpec) -> dict[str, str]:
    return {
        "name": header(spec.name),
        "log": header(_log(spec.log)),
        "options": "\n".join(options(spec)),
        "lead": str(spec.lead),
        "grace": str(max(1, spec.lead // 4)),
        "prologue": "\n".join(_prologue(line) for line in spec.prologue) or ":",
        "environment": "\n".join(
            f"export {_variable(key)}={quoted(value)}" for key, value in spec.environment.items()
        )
        or ":",
        "directory": quoted(str(spec.directory)),
        "command": " ".join(map(quoted, spec.command)),
        "attempts": str(spec.attempts),
        "requeues": str(spec.requeues),
        "tasks": str(spec.tasks),
        "cores": str(spec.cores),
    }


def options(spec: JobSpec) -> list[str]:
    """The `#SBATCH` lines of a job's size and place.

    Raises:
        LaunchError: a value cannot stand in such a line.
    """
    found = [f"--ntasks={spec.tasks}", f"--cpus-per-task={spec.cores}"]
    if spec.nodes is not None:
        found.append(f"--nodes={spec.nodes}")
    if spec.tasks_per_node is not None:
        found.append(f"--ntasks-per-node={spec.tasks_per_node}")
    if spec.memory is not None and spec.tasks == 1:
        found.append(f"--mem={-(-spec.memory // MIB)}M")
    elif spec.memory is not None:
        found.append(f"--mem-per-cpu={-(-spec.memory // (spec.cores * MIB))}M")
    if spec.walltime is not None:
        found.append(f"--time={slurm_time(spec.walltime)}")
    if spec.queue is not None:
        found.append(f"--partition={header(spec.queue)}")
    if spec.account is not None:
        found.append(f"--account={header(spec.account)}")
    for option in spec.extra:
        if not re.fullmatch(r"--?[A-Za-z][^\x00-\x1f\x7f-\x9f\u2028\u2029]*", option):
            raise LaunchError(f"'{_shown(option)}' is no option of sbatch; write it as --qos=long")
        found.append(option)
    return [f"#SBATCH {option}" for option in found]


def header(value: str) -> str:
    """A value as one word of an `#SBATCH` line, which Slurm and no shell reads.

    Raises:
        LaunchError: it holds what Slurm cannot read there: quotes, backslashes, control characters.
    """
    if re.fullmatch(r"[A-Za-z0-9_./+=:,@%~-]+", value):
        return value
    if not value or re.search(r"[\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value):
        raise LaunchError(
            f"'{_shown(value)}' cannot stand in a job script; "
            "use names without quotes, backslashes and line breaks"
        )
    return f'"{value}"'


def quoted(value: str) -> str:
    """A value as one word of a shell command.

    Raises:
        LaunchError: it holds control characters.
    """
    # No line breaks even in quotes: a template may put the word into a comment.
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise LaunchError(f"'{_shown(value)}' cannot stand in a job script; use plain text")
    return shlex.quote(value)


def slurm_time(seconds: float) -> str:
    """Seconds, rounded up, as Slurm's D-HH:MM:SS."""
    minutes, second = divmod(int(-(-seconds // 1)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02d}:{minute:02d}:{second:02d}"


def _log(path: Path) -> str:
    # Slurm replaces %j and others all over the path; %% stands for itself.
    return f"{str(path.parent).replace('%', '%%')}/{path.name}"


def _prologue(line: str) -> str:
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]", line):
        raise LaunchError(f"prologue '{_shown(line)}': needed is one line of shell an entry")
    return line


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise LaunchError(f"'{_shown(name)}' is no name of an environment variable")
    return name


def _shown(value: str) -> str:
    return ascii(value)[1:-1][:80]


def _check_syntax(script: str, template: Path) -> None:
    """Have bash read it: a prologue may hold half a quotation."""
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise LaunchError(f"{template} becomes a script that bash cannot read: {said[0]}")
