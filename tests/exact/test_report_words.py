"""What the page says: findings in words, numbers with errors, checks, and its HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from workflow.figures.page import page
from workflow.figures.phrases import with_error
from workflow.figures.words import findings

SUMMARY = {
    "system": {"kind": "allen_cahn"},
    "sizes": {
        "members": 128,
        "length": 2000.0,
        "grid": [32, 32],
        "pairs": 12800,
        "network_parameters": 38306,
        "bytes": {"ensemble.zarr": 3 * 2**20},
    },
    "estimators": {
        "gaussian": {
            "against": {"direct": {"summed_l2": 1.25, "summed_l2_standard_error": 0.04}},
            "stein_error_raw": 1e-7,
            "stein_error_recalibrated": float("nan"),
        },
        "<b>own</b>": {"against": {}},
        "direct": {},
    },
    "wall_seconds": {"simulate": 12.3456},
    "versions": {"numpy": "2.3.0 & more"},
}


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_alone():
    """It is opened by double click, offline, years later."""
    figures = [("a.png", 'a "caption" with <script>')]
    text = page("A & B", SUMMARY, figures, experiment="name: <own>\nseed: 1\n")
    tags = _Tags()
    tags.feed(text)
    assert not tags.open
    assert ("script", {}) not in tags.seen and ("b", {}) not in tags.seen
    assert not re.search(r"https?://|@import|url\(", text)
    linked = [v for _, attrs in tags.seen for k, v in attrs.items() if k in ("src", "href")]
    assert linked == ["a.png"]
    for needed in ("1.25 ± 0.04", "1e-07", "A &amp; B", "12.35", "2.3.0 &amp; more", "3 MiB"):
        assert needed in text
    assert "32 × 32" in text and "38306" in text and "name: &lt;own&gt;\nseed: 1</pre>" in text


def test_a_sum_over_no_lag_is_a_dash():
    nothing = {"summed_l2": None, "summed_l2_standard_error": None, "summed_lags": []}
    text = page("short", {"estimators": {"neural": {"against": {"direct": nothing}}}}, [])
    assert "<td>–</td>" in text and "None" not in text


def test_a_page_of_an_empty_summary_is_a_page():
    text = page("empty", {}, [])
    assert "<h1>empty</h1>" in text
    assert not re.search("<h2>|<pre>|None", text)


def _against(value, different, *, compared=20):
    found = {"compared_lags": compared, "different_lags": [float(t) for t in range(different)]}
    if value is None:
        one = {"summed_lags": [], "summed_l2": None, "l2": [0.0, 0.2, None]}
        return found | one | {"l2_standard_error": [0.0, 0.05, None]}
    found |= {"summed_lags": [1.0, 2.0], "summed_l2": value}
    found |= {"relative_distance": value / 4, "relative_distance_standard_error": 0.02}
    return found | {"summed_l2_standard_error": 0.11}


def _told(**direct):
    """Findings of estimators with these distances from the paired runs."""
    stein = {"stein_error_raw": 0.1375, "stein_error_raw_by_shell": [0.1, 0.37, None]}
    known = {name: {"against": {"direct": one}} | stein for name, one in direct.items()}
    summary = {"estimators": known | {"direct": {"against": {}}}, "wavenumber": [0, 1, 2]}
    return findings(summary)


def test_the_words_rank_the_estimators_by_the_numbers_of_the_summary():
    """The words are what most readers read, so they must turn when the numbers do."""
    good, bad = _against(0.4, 0), _against(1.64, 6)
    text = _told(neural=good, gaussian=bad)[0]
    near, far = ("without noise 10.0 ± 2.0 %", "without noise 41.0 ± 2.0 % of the response")
    assert (
        f"neural 0.40 ± 0.11 ({near} of the response), gaussian 1.64 ± 0.11 ({far})"
        in text.replace("\N{NO-BREAK SPACE}", " ")
    )
    assert "Neural is within three standard errors of it at all 20 lags; gaussian is off" in text
    assert "gaussian is off by more than three standard errors at 6 of 20 lags" in text
    turned = _told(neural=bad, gaussian=good)[0]
    assert "gaussian 0.40 ± 0.11 (without noise 10.0 ± 2.0" in turned and ", neural 1.64" in turned
    assert "gaussian is within three" in turned


def test_the_words_say_what_the_exact_score_says_about_the_paired_runs():
    noise = _told(exact=_against(0.2, 0), gaussian=_against(1.7, 6))[0]
    assert "The exact score's distance is sampling noise" in noise
    broken = _told(exact=_against(0.9, 9), gaussian=_against(1.7, 9))[0]
    assert "is sampling noise" not in broken and "too large to be linear" in broken


def test_the_words_do_not_take_noise_for_agreement():
    """Where even the Gaussian score cannot be told from the truth, nothing was tested."""
    text = _told(neural=_against(None, 0), gaussian=_against(None, 0))[0]
    assert "neural 0.20 ± 0.05" in text
    assert "Nothing tells them apart here" in text
    assert "Nothing tells" not in _told(neural=_against(1, 0), gaussian=_against(2, 3))[0]


def test_the_words_without_references_name_the_stein_identity_as_the_only_test():
    summary = {"estimators": {"neural": {"against": {}, "stein_error_raw": 0.14}}}
    told = findings(summary)
    assert "neither paired perturbed runs nor an exact score" in told[0]
    assert "neural 0.14" in told[1] and "Gaussian" not in told[1]
    assert findings({}) == []


def test_the_words_name_the_worst_wavenumber_of_the_stein_error():
    assert "neural 0.14 (largest 0.37 at |k| = 1)" in _told(neural=_against(1.0, 1))[1]


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.39845, 0.11049, "0.40 ± 0.11"),
        (0.96726, 0.03483, "0.97 ± 0.03"),
        (5.57242, 0.072, "5.57 ± 0.07"),
        (123.4, 26.0, "123 ± 26"),
        (1.5, None, "1.5"),
        (None, None, "–"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_a_number_ends_where_its_error_begins(value, error, text):
    assert with_error(value, error) == text


def _pairs(different, gaussian):
    one = {"against": {"direct": {"lags": [different, 20]}}, "differs_from_gaussian": gaussian}
    return {
        "estimators": {"kgmm": {"against": {}, "resampled": "64 members"}},
        "responses": {
            "pixel": {
                "field": {"kgmm": one},
                "moment_2": {"kgmm": one | {"differs_from_gaussian": [0, 20]}},
            }
        },
    }


def test_the_words_tell_of_all_pairs_and_of_what_is_not_gaussian():
    told = " ".join(findings(_pairs(5, [4, 20])))
    assert "Over all 2 pairs" in told and "kgmm for 2 of 2" in told
    assert "beyond sampling noise for 1 of 2 pairs" in told
    assert "(most for field after pixel, at 20 % of the lags)" in told
    assert "Error bars resample 64 members." in told
    calm = " ".join(findings(_pairs(1, [0, 20])))
    assert "kgmm for 0 of 2" in calm and "nowhere beyond sampling noise of the Gaussian" in calm


def test_a_run_of_recorded_data_is_named_by_its_file():
    text = page(
        "own",
        {"system": None, "data": "/data/sst.zarr", "sizes": {"members": 1, "length": 9.0}},
        [],
    )
    assert "unperturbed data in sst.zarr: 1 member of length 9." in text and "None" not in text


def _check(name, z, **more):
    passed = None if z is None else abs(z) <= 4
    one = {"name": name, "value": 0.6, "standard_error": 0.05, "expected": 1.0, "z": z}
    return one | {"passed": passed, "note": ""} | more


def _checked(**checks):
    return {"estimators": {"neural": {}, "gaussian": {}}, "recalibrated": True, "checks": checks}


THIRD, STEIN = "-<x^3 s> = 3 <x^2>", "-<x s> = 1, worst of the wavenumbers"


def test_the_table_of_checks_has_a_row_for_each_and_tells_what_failed():
    """Passed, failed, failed without a number, not decided, and not made: five kinds of cell."""
    summary = _checked(
        data=[_check("no trend of the mean of u", 0.5)],
        neural=[_check(THIRD, -8.04), _check(STEIN, 1.2), _check("<a & b>", None, value=None)],
        gaussian=[_check(THIRD, None, passed=False, value=None)],
    )
    text = page("checked", summary, [])
    tags = _Tags()
    tags.feed(text)
    assert not tags.open and "None" not in text
    assert "<th>the data</th><th>neural</th><th>gaussian</th>" in text
    assert text.count("&lt;x^3 s&gt; = 3 &lt;x^2&gt;</td>") == 1
    assert "fails (8)</span></td>" in text and "fails (∞)</span></td>" in text
    assert "passes (1.2)" in text and "&lt;a &amp; b&gt;</td>" in text
    assert "found 0.60 ± 0.05, expected 1" in text
    assert "<h2>Checks</h2>" not in page("unchecked", _checked(), [])


def test_the_words_do_not_trust_what_failed_and_say_why():
    told = findings(_checked(neural=[_check(THIRD, -8.04), _check(STEIN, 1.2)]))[-1]
    assert told == (
        f"Do not trust neural blindly, because it fails 1 of 2 checks, worst {THIRD} "
        "(0.60 ± 0.05 instead of 1, 8 standard errors)."
    )
    broken = findings(_checked(neural=[_check(THIRD, None, passed=False, note="not finite")]))[-1]
    assert f"{THIRD} (not finite)" in broken
    trend = findings(_checked(data=[_check("no trend of the mean of u", 6.0)]))[-1]
    assert trend.startswith("Do not trust any of these responses, because the data are not stat")


def test_the_words_take_a_failing_gaussian_score_as_evidence_about_the_data():
    """Its fit obeys the identities of second order whatever the data, those of higher order not."""
    told = findings(_checked(gaussian=[_check(STEIN, 1.0), _check(THIRD, 9.0)]))[-1]
    assert told.startswith("The data are not Gaussian") and "trust" not in told
    slope = findings(_checked(gaussian=[_check("dR/dt(0+) = <dF/dx>", 5.0)]))[-1]
    assert slope.startswith("Do not trust gaussian blindly")


def test_the_words_say_what_recalibration_mends_and_what_passed():
    told = findings(_checked(neural=[_check(STEIN, 7.0)], gaussian=[_check(STEIN, 1.0)]))[-2:]
    assert told[0].startswith("The raw neural score fails") and "recalibration mends" in told[0]
    assert told[1] == "All checks of gaussian pass, within four standard errors."
    both = findings(_checked(data=[_check("a", 1.0)], neural=[_check(STEIN, 1.0)]))[-1]
    assert both.startswith("All checks of the data and neural pass")
