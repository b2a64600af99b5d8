"""The text of worker jobs: the site's settings, ours above them, and nothing that escapes."""

import asyncio
import re
import shlex
import signal
import subprocess

import dask
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpc import slurm
from hpc.deadline import DEADLINE, START, Declined, Needed, in_time, leave
from hpc.errors import LaunchError
from hpc.job_script import Jobs, Lifetime, job_script, lifetime, worker_environment
from workflow.machines import PoolConfig
from workflow.stages.pools import jobs_of

ADDRESS = "tls://192.0.2.1:4444"


def text(jobs, options=()):
    return job_script(
        jobs, ADDRESS, name="worker-1", options=options, environment=worker_environment()
    )


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


def test_unset_is_the_site_s_and_set_is_above_it():
    mine = {"cores": 4, "memory": "1GB", "queue": "long", "walltime": "02:00:00", "account": "me"}
    with dask.config.set({"jobqueue.mine": mine}):
        theirs = directives(text(Jobs(config_name="mine")))
        ours = directives(text(Jobs(config_name="mine", queue="short", memory=2**31, cores=2)))
    assert "-p long" in theirs and "-t 0-02:00:00" in theirs and "-A me" in theirs
    assert "--cpus-per-task=4" in theirs and "--mem=953M" in theirs
    assert "-p short" in ours and "--mem=2G" in ours and "--cpus-per-task=2" in ours
    assert "-A me" in ours


def test_a_site_that_says_nothing_gets_a_small_short_job_on_one_node_never_requeued():
    script = directives(text(Jobs()))
    assert {"--cpus-per-task=1", "--mem=4G", "-t 0-00:30:00", "-N 1", "--no-requeue"} <= set(script)


def test_a_section_that_the_site_lacks_is_refused_with_those_it_has():
    with pytest.raises(LaunchError, match="no section jobqueue.slrm .* slurm"):
        text(Jobs(config_name="slrm"))


def test_ctrl_c_stays_with_the_driver():
    before = signal.getsignal(signal.SIGINT)
    text(Jobs())
    assert signal.getsignal(signal.SIGINT) is before


hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "a\n#SBATCH --uid=0",
            "$(touch x)",
            "`id`",
            "a;id",
            "x\r\nid",
            "--wrap=id",
            "a b",
            "'",
            "\n",
        ]
    ),
    st.text(alphabet=" \n\r\t;$`'\"\\&|<>(){}#-=%ab1", max_size=20),
)


@given(queue=hostile, account=hostile, interface=hostile, extra=hostile, path=st.text(max_size=30))
def test_no_string_of_an_experiment_adds_a_line_or_a_word_to_a_job(
    queue, account, interface, extra, path
):
    given_ = {"queue": queue, "account": account, "interface": interface, "extra": [extra]}
    accepted = {}
    for key, value in given_.items():
        try:
            PoolConfig(**{key: value})
        except ValidationError:
            continue
        accepted[key] = value
    path = "/" + path.replace("\0", "").replace("\n", "").replace("\r", "")
    script = text(jobs_of(PoolConfig(**accepted)), options=("--tls-key", path))
    plain = text(Jobs())
    added = ("queue" in accepted) + ("account" in accepted) + ("extra" in accepted)
    # `splitlines` knows more ends of lines than bash and Slurm do.
    assert len(script.split("\n")) == len(plain.split("\n")) + added
    shell = [line for line in script.split("\n") if line and not line.startswith("#")]
    assert len(shell) == len([ln for ln in plain.split("\n") if ln and not ln.startswith("#")])
    words = shlex.split(shell[-1])
    assert words[words.index("--tls-key") + 1] == path
    if "interface" in accepted:
        assert words[words.index("--interface") + 1] == interface
    extra_words = 2 + 2 * ("interface" in accepted)
    last = [line for line in plain.split("\n") if line][-1]
    assert len(words) == len(shlex.split(last)) + extra_words


@pytest.mark.parametrize("walltime", [60.0, 1800.0, 3 * 86400.0])
def test_every_worker_leaves_before_slurm_kills_it(walltime):
    life = Lifetime(walltime)
    script = text(Jobs(walltime=walltime))
    longest = [int(n) for n in re.findall(r"--lifetime(?:-stagger)? (\d+)s", script)]
    assert life.seconds + life.stagger <= sum(longest) <= walltime - 0.9 * life.margin
    assert life.seconds >= 0.79 * walltime


def test_the_script_tells_the_worker_when_its_time_ends(tmp_path):
    lines = text(Jobs(walltime=600.0)).splitlines()
    setting = [line for line in lines if "GFDT_" in line]
    shell = "\n".join([*setting, f"echo $(( {DEADLINE} - {START} ))"])
    run = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"}
    )
    assert float(run.stdout) == Lifetime(600.0).seconds == lifetime(Jobs(walltime=600.0)).seconds
    env = {"PATH": "/bin:/usr/bin", "SLURM_JOB_END_TIME": "5000000000"}
    shell = "\n".join([*setting, f"echo ${DEADLINE}"])
    run = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=env)
    assert float(run.stdout) == 5e9 - 600 + Lifetime(600.0).seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("01:00:00", 3600),
        ("1-12", 129600),
        ("2-01:30", 178200),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_durations_are_read_as_slurm_reads_them(written, seconds):
    assert slurm.duration(written) == seconds


class Here:
    address = "tls://me"


def test_who_has_too_little_time_declines_except_as_a_first_task(monkeypatch):
    monkeypatch.setattr("distributed.get_worker", Here)
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("hpc.deadline._begun", False)
    now = 100.0
    monkeypatch.setenv(START, "0")
    monkeypatch.setenv(DEADLINE, "1100")
    assert in_time(1e9, max, 1, 2) == 2  # nobody has more time
    assert in_time(1e9, max, 1, 2) == Declined("tls://me")
    assert in_time(999.0, max, 1, 2) == 2
    monkeypatch.setattr("hpc.deadline._begun", False)
    now = 1000.0  # who waited for long is not new
    assert in_time(101.0, max, 1, 2) == Declined("tls://me")
    assert in_time(99.0, max, 1, 2) == 2
    asyncio.run(leave())
    assert in_time(0.0, max, 1, 2) == Declined("tls://me")


def test_without_an_end_nobody_declines(monkeypatch):
    monkeypatch.delenv(DEADLINE, raising=False)
    assert [in_time(1e9, max, 1, 2) for _ in range(2)] == [2, 2]


def test_the_slowest_of_late_decides_what_is_needed():
    needed = Needed()
    assert needed.seconds == 0.0
    for seconds in (8.0, 2.0):
        needed.note({"seconds": seconds})
    needed.note({"seconds": "?"})
    assert needed.seconds == 12.0
    for _ in range(32):
        needed.note({"seconds": 2.0})
    assert needed.seconds == 3.0
