"""How long a segment of simulation is: by a pilot, and then for good."""

from __future__ import annotations

import pytest
import yaml

from workflow import pilot
from workflow.opening import open_run
from workflow.runs import USUAL_CHUNK
from workflow.stages.frames import lay_down

LONG = {
    "name": "long",
    "system": {"kind": "allen_cahn", "grid": 32},
    "ensemble": {"members": 32, "group": 32, "length": 4096.0, "spinup": 0.0},
}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the experiment on a machine that takes so many seconds for a unit of time."""

    def run(seconds, **changes):
        asked = []

        def measured(run, _patience):
            asked.append(run)
            return seconds / len(run.groups[0]) / run.steps_per_save

        monkeypatch.setattr(pilot, "seconds_per_member_step", measured)
        content = LONG | {"ensemble": LONG["ensemble"] | changes}
        (tmp_path / "long.yaml").write_text(yaml.safe_dump(content))
        return open_run(str(tmp_path / "long.yaml"), tmp_path / "runs"), len(asked)

    return run


@pytest.mark.parametrize(
    ("seconds", "chunk", "times"),
    [
        (0.1, USUAL_CHUNK, 128),  # 12.8 s
        (2.0, USUAL_CHUNK // 4, 32),  # 256 s would be too long
        (1000.0, USUAL_CHUNK // 128, 1),  # never less than one snapshot
    ],
)
def test_a_segment_lasts_at_most_2_minutes(opened, seconds, chunk, times):
    run, pilots = opened(seconds)
    assert (run.experiment.ensemble.chunk, run.chunk_times, pilots) == (chunk, times, 1)


def test_a_run_keeps_the_segments_that_it_began_with(opened):
    slow, _ = opened(2.0)
    lay_down(slow, command="test")
    again, pilots = opened(0.1)
    assert again.chunk == slow.chunk == USUAL_CHUNK // 4
    assert not pilots


def test_what_the_user_asks_for_and_what_is_small_takes_no_pilot(opened):
    for changes in ({"chunk": "1MiB"}, {"length": 128.0, "members": 4}):
        run, pilots = opened(1000.0, **changes)
        assert not pilots
        assert run.chunk == (2**20 if "chunk" in changes else USUAL_CHUNK)
        assert run.experiment.ensemble.chunk == run.chunk


def test_a_pilot_times_steps_that_take_time(opened, monkeypatch):
    run, _ = opened(0.1)
    monkeypatch.undo()
    assert 0 < pilot.seconds_per_member_step(run, 0.0) < 1
