"""Runs that began before a key of the experiment was there."""

import pytest
import yaml

from workflow.interfaces import UserError
from workflow.opening import open_run
from workflow.stages.frames import lay_down

LATER = (("system", "save_forcing"), ("score", "given"), ("network", "views"), ("train", "pilot"))


@pytest.fixture
def begun(tmp_path):
    content = {
        "name": "old",
        "system": {"kind": "navier_stokes", "grid": 16},
        "ensemble": {"members": 64, "spinup": 1.0, "length": 8.0, "save_every": 0.5},
        "response": {"max_lag": 1.0},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content))
    run = open_run(str(tmp_path / "old.yaml"), tmp_path / "runs")
    lay_down(run, command="test")
    path = run.folder / "experiment.yaml"
    whole = yaml.safe_load(path.read_text())
    sections = {**whole, **whole["score"]}
    for section, key in LATER:
        del sections[section][key]
    path.write_text(yaml.safe_dump(whole))
    return run


def opened(run, *settings):
    folder = run.folder.parents[1]
    return open_run(str(folder / "old.yaml"), folder / "runs", settings)


def test_a_key_that_came_later_is_no_change_while_it_is_unset(begun):
    again = opened(begun)
    for stage in ("train", "evaluate", "respond", "direct", "checks"):
        assert again.key(stage) == begun.key(stage)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("system.save_forcing=true", r"system.save_forcing: False -> True"),
        ("score.train.pilot=0.1", r"score.train.pilot: 0.0 -> 0.1"),
        ("score.network.views=[velocity]", r"score.network.views: \[\] -> \['velocity'\]"),
    ],
)
def test_once_set_it_is_another_experiment(begun, setting, told):
    with pytest.raises(UserError, match=told):
        opened(begun, setting)
    assert type(begun)(begun.folder, opened_with(begun, setting)).key("train") != begun.key("train")


def opened_with(run, setting):
    """The experiment with a setting, in a folder where nothing has begun."""
    folder = run.folder.parents[1]
    return open_run(str(folder / "old.yaml"), folder / "elsewhere", [setting]).experiment
