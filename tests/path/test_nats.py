"""Path KL, entropy and error budget of a run, in summary.json and on the page."""

import json

import pytest
import yaml

from workflow.opening import open_run
from workflow.stages.nats import nats_blocks, spread_places
from workflow.stages.pipeline import STAGES, run_stages

SMALL = {
    "name": "spots",
    "seed": 3,
    "system": {"kind": "mixture"},
    "ensemble": {"members": 16, "spinup": 0.0, "length": 200.0, "save_every": 4.0},
    "score": {
        "process": {"kind": "ve", "sigma_min": 0.05, "sigma_max": 10.0},
        "network": {"channels": 32, "residual_blocks": 1},
        "train": {"ranks": 1, "steps": 200, "global_batch": 128, "learning_rate": 2e-3},
        "split": {"test": 0.5},
    },
    "response": {"estimators": ["neural", "gaussian", "exact"], "max_lag": 8.0},
}


def finished(folder, client, content=SMALL):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    run = open_run(str(path), folder)
    run_stages(run, STAGES, command="test", notify=lambda *_: None, client=client)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, client):
    return finished(tmp_path_factory.mktemp("nats"), client)


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run.folder / "report" / "summary.json").read_text())


def test_gain_and_rest_of_the_learned_score_are_those_of_the_gaussian(summary):
    """Path KL from the exact score: Gaussian = gain + left of the learned, 4 standard errors."""
    found = summary["path_kl"]
    assert found["band"] == [0.0, 10.0]
    one, gaussian = found["estimators"]["neural"], found["estimators"]["gaussian"]
    error = one["gain_standard_error"] + one["left_standard_error"]
    assert one["gain"] + one["left"] == pytest.approx(gaussian["left"], abs=4 * error)
    assert found["estimators"]["exact"]["gain"] > one["gain"]
    assert one["left"] > 4 * one["left_standard_error"] > 0


def test_the_budget_stands_beside_the_distance_and_its_floor(summary):
    """GEN-2 for the report: each distance has its interval and floor, each term a number."""
    budget = summary["error_budget"]
    assert set(budget["terms"]) == {"score", "prior", "early_stopping"}
    assert all(value >= 0 for value in budget["terms"].values())
    for one in [
        budget["finite_sample"],
        *(m["sliced_wasserstein"] for m in budget["measured"].values()),
    ]:
        assert one["low"] < one["value"] < one["high"] and one["floor"] > 0
    assert 0 < budget["total_variation"] <= 1


def test_the_likelihood_bound_is_above_that_of_gaussian_data_by_the_gain(summary):
    """A number: half of the gain, of two numbers; 4 standard errors and those of the whitening."""
    found, gain = summary["error_budget"]["likelihood"], summary["path_kl"]["estimators"]["neural"]
    bound, error = found["bound"]
    assert bound - found["gaussian"] == pytest.approx(
        gain["gain"] / 2, abs=4 * (error + gain["gain_standard_error"] / 2) + 0.02
    )


def test_the_page_tells_of_both(run):
    page = (run.folder / "report" / "index.html").read_text()
    assert "nats of path KL are left to the exact score" in page
    assert "Error budget of samples" in page
    assert (run.folder / "report" / "nats.png").is_file()


JUMPS = SMALL | {
    "name": "jumps",
    "system": {"kind": "scalar", "noise": {"jumps": {"rate": 0.5, "scale": 1.5}}},
    "ensemble": {"members": 24, "spinup": 5.0, "length": 40.0, "save_every": 0.5},
    "score": SMALL["score"] | {"process": {"kind": "jump", "sigma_max": 20.0}},
    "response": {"estimators": ["neural", "gaussian", "exact"], "max_lag": 2.0},
}


def test_a_score_that_takes_jumps_off_has_nats_too(tmp_path, client):
    """Of the generalized score, beside the exact one of a variable that jumps."""
    run = finished(tmp_path, client, JUMPS)
    summary = json.loads((run.folder / "report" / "summary.json").read_text())
    found = summary["path_kl"]
    assert (found["of"], found["band"]) == ("generalized score", [0.0, 20.0])
    assert 0 < found["prior_mismatch"] < 0.1
    one, gaussian = found["estimators"]["neural"], found["estimators"]["gaussian"]
    error = one["gain_standard_error"] + one["left_standard_error"]
    assert one["gain"] + one["left"] == pytest.approx(gaussian["left"], abs=4 * error)
    assert one["left"] < gaussian["left"] - 4 * gaussian["left_standard_error"]
    assert found["estimators"]["exact"]["gain"] > one["gain"] > 4 * one["gain_standard_error"]
    page = (run.folder / "report" / "index.html").read_text()
    assert "Taking noise and jumps up to" in page and "jump_reverse at eta 1 makes of it" in page
    assert (run.folder / "report" / "nats.png").is_file() and not summary["error_budget"]


def test_parts_that_were_lost_are_made_again_to_the_same_number(run, summary, client):
    """Only they: the others keep their files."""
    ledger = run.ledger("checks")
    kept = (run.folder / "checks" / "nats-0003.pt").stat().st_mtime_ns
    for block in ("nats-0002", "budget-0000", "checks"):
        ledger.drop(block)
        (run.folder / "checks" / f"{block}.pt").unlink(missing_ok=True)
    run_stages(run, ("respond", "report"), command="test", notify=lambda *_: None, client=client)
    again = json.loads((run.folder / "report" / "summary.json").read_text())
    for key in ("path_kl", "error_budget"):
        assert again[key] == summary[key]
    assert (run.folder / "checks" / "nats-0003.pt").stat().st_mtime_ns == kept


def test_snapshots_are_held_out_and_units_are_enough(run):
    """Eight members are units, or are cut into sixteen or thirty-two of them."""
    for units, unit_length in ((8, 50), (16, 25), (32, 12)):
        places, unit = spread_places(run, run.held_out, 400, units=units)
        assert {member for member, _ in places} == set(run.held_out.members)
        assert unit == unit_length and len(places) // unit == units
        pieces = [places[i : i + unit] for i in range(0, len(places), unit)]
        assert all(len({member for member, _ in piece}) == 1 for piece in pieces)


def test_a_run_without_a_learned_score_has_no_nats(tmp_path):
    path = tmp_path / "gaussian.yaml"
    path.write_text(
        yaml.safe_dump(
            SMALL
            | {
                "score": {"estimator": "gaussian"},
                "response": {"estimators": ["gaussian"], "max_lag": 8.0},
            }
        )
    )
    assert nats_blocks(open_run(str(path), tmp_path)) == {}
