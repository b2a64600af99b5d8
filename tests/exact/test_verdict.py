"""The box at the top of a report, and the numbers beside its pictures."""

from __future__ import annotations

import csv
import io
import struct

import numpy as np
import pytest

from workflow.figures import picture
from workflow.figures.page import LARGEST, page
from workflow.figures.verdict import verdict


def against(different, *, compared=20, share=0.04):
    return {
        "compared_lags": compared,
        "different_lags": list(range(different)),
        "relative_distance": share,
        "relative_distance_standard_error": 0.02,
    }


def check(name, passed=True):
    return {"name": name, "passed": passed, "z": 1.0 if passed else 9.0, "value": 1.0}


def summary(*, direct=None, checks=(True,), data=(True,), estimators=("neural", "gaussian")):
    found = {name: {"against": {}} for name in estimators}
    if direct is not None:
        found["neural"]["against"]["direct"] = direct
        found["gaussian"]["against"]["direct"] = against(20, share=0.43)
    return {
        "estimators": found,
        "recalibrated": True,
        "checks": {
            "data": [check("no trend of the mean of u", p) for p in data],
            "neural": [check("-<x^3 s> = 3 <x^2>", p) for p in checks],
            "gaussian": [check("-<x^3 s> = 3 <x^2>", False)],
        },
    }


CASES = {
    "agrees and passes": (summary(direct=against(1)), "neural", "high"),
    "agrees and fails a check": (
        summary(direct=against(1), checks=(True, False)),
        "neural",
        "fair",
    ),
    "off by little": (summary(direct=against(9)), "neural", "fair"),
    "off by much": (summary(direct=against(9, share=0.3)), "neural", "low"),
    "nothing to compare with": (summary(), "neural", "fair"),
    "nothing to compare with, and fails": (summary(checks=(False,)), "neural", "low"),
    "not stationary": (summary(direct=against(0), data=(True, False)), "neural", "none"),
    "gaussian only, of data that are not": (summary(estimators=("gaussian",)), "gaussian", "low"),
}


@pytest.mark.parametrize("case", CASES)
def test_trust_follows_what_a_response_was_tested_with(case):
    content, estimator, level = CASES[case]
    found = verdict(content)
    assert (found.estimator, found.level) == (estimator, level)
    text = page("a", content, [])
    assert f'<div class="box {level}">' in text
    told = "Use none of these responses." if level == "none" else f"Use the {estimator} response."
    assert told in text


def test_what_is_said_has_its_error_bar():
    found = " ".join(verdict(summary(direct=against(1))).reasons)
    assert "within three standard errors at 19 of 20 lags" in found
    assert "4.0 ± 2.0\N{NO-BREAK SPACE}%" in found and "off by 43.0 ± 2.0" in found


def test_what_recalibration_mends_takes_no_trust():
    content = summary(direct=against(0))
    content["checks"]["neural"].append(check("-<x s> = 1, worst of the wavenumbers", False))
    assert verdict(content).level == "high"
    assert verdict(content | {"recalibrated": False}).level == "fair"


def test_two_learned_responses_are_ranked_by_trust():
    content = summary(direct=against(15, share=0.5), estimators=("neural", "kgmm", "gaussian"))
    content["estimators"]["kgmm"]["against"]["direct"] = against(0)
    content["checks"]["kgmm"] = [check("-<x^3 s> = 3 <x^2>")]
    assert verdict(content).estimator == "kgmm"


def test_a_run_without_estimators_has_no_box():
    assert verdict({}) is None and 'class="box' not in page("a", {}, [])


@pytest.fixture
def drawn(tmp_path):
    """A picture of a curve with its band, a map and a colour bar; what its CSV holds."""
    x = np.arange(4.0)
    with picture(tmp_path / "a.png", 6, 3) as figure:
        left, right = figure.subplots(1, 2)
        left.fill_between(x, x - 1, x + 1, color="#1f5fbf", alpha=0.2, lw=0)
        left.plot(x, x, color="#1f5fbf", label="neural")
        left.axhline(0)
        left.set_title("place\none")
        corners = np.arange(4.0)
        values = np.ma.masked_invalid([[1, 2, np.nan], [4, 5, 6]])
        mesh = right.pcolormesh(corners, corners[:3], values)
        figure.colorbar(mesh, ax=right)
    text = (tmp_path / "a.csv").read_text()
    return tmp_path, list(csv.DictReader(io.StringIO(text)))


def test_the_numbers_of_a_picture_are_those_drawn(drawn):
    """Curves with the ends of their band, maps at the middles of their cells; no guides."""
    _, rows = drawn
    curve = [row for row in rows if row["series"] == "neural"]
    assert [(r["panel"], r["x"], r["y"], r["low"], r["high"]) for r in curve] == [
        ("place one", str(i), str(i), str(i - 1), str(i + 1)) for i in range(4)
    ]
    maps = {(r["x"], r["y"]): r["value"] for r in rows if r["series"] == "map"}
    assert maps == {
        ("0.5", "0.5"): "1",
        ("1.5", "0.5"): "2",
        ("0.5", "1.5"): "4",
        ("1.5", "1.5"): "5",
        ("2.5", "1.5"): "6",
    }
    assert len(rows) == 4 + 5


def test_a_page_holds_its_pictures_and_their_numbers(drawn):
    folder, _ = drawn
    text = page("a", {}, [("a.png", "A.")], folder=folder)
    assert 'src="data:image/png;base64,' in text and 'download="a.csv"' in text
    width = struct.unpack(">I", (folder / "a.png").read_bytes()[16:20])[0]
    assert f'width="{width / 1.44:.0f}"' in text
    (folder / "a.csv").write_text("x" * (LARGEST + 1))
    assert 'download="a.csv"' not in page("a", {}, [("a.png", "A.")], folder=folder)
