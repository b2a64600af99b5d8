"""What a run found, in a few sentences made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from workflow.figures import in_order
from workflow.figures.checked import Numbers, tested
from workflow.figures.phrases import count, listed, number, off_by, percent, with_error

REFERENCES = {
    "direct": "the direct response (paired perturbed runs)",
    "exact": "the exact score's response",
}
"""What responses are compared with, most independent first, and how a sentence calls it."""


def findings(summary: Numbers) -> list[str]:
    """Which response to believe, within what error, and how far the scores can be trusted.

    Args:
        summary: content of `summary.json`; sentences whose numbers it lacks are left out.

    Returns:
        Sentences, the most important first; empty for an empty summary.
    """
    estimators = summary.get("estimators") or {}
    if not estimators:
        return []
    compared = [_agreement(estimators, reference) for reference in REFERENCES]
    told = [text for text in compared if text]
    if not told:
        told = [
            "There are neither paired perturbed runs nor an exact score to compare with: only "
            "the Stein identity below tests these responses."
        ]
    told += [summary.get("few_pairs") or "", _left_out(summary)]
    told += [_all_pairs(summary), _beyond_gaussian(summary)]
    told += [_stein(summary, estimators), _scores(summary), _nats(summary), _tails(summary)]
    told.append(_resampled(estimators))
    told += tested(summary)
    return [text for text in told if text]


def _left_out(summary: Numbers) -> str:
    """That some members are part of no number, and why that may matter."""
    members = sorted({one["member"] for one in summary.get("quarantined") or []})
    if not members:
        return ""
    some = ", ".join(map(str, members))
    return (
        f"Left out of all numbers because they became non-finite: member {some}. What makes a run "
        "blow up may also make its response special; a shorter system.dt keeps all members."
    )


def _agreement(estimators: Numbers, reference: str) -> str:
    """How far each estimator is from a reference, nearest first."""
    against = {
        name: estimators[name]["against"][reference]
        for name in in_order(estimators)
        # The distance of two references is told once, from the more independent one.
        if name != "direct" and reference in (estimators[name].get("against") or {})
    }
    if not against:
        return ""
    lags = max((one.get("summed_lags") or [] for one in against.values()), key=len)
    sums = {name: one for name, one in against.items() if one.get("summed_l2") is not None}
    text = f"Against {REFERENCES[reference]}"
    if sums:
        ranked = sorted(sums, key=lambda name: float(sums[name]["summed_l2"]))
        text += (
            f", L2 distance summed over the {count(len(lags), 'lag')} at which the Gaussian "
            f"score is significantly off: {', '.join(f'{n} {_distance(sums[n])}' for n in ranked)}"
        )
    else:
        worst = {name: _largest(one) for name, one in against.items()}
        text += f", largest L2 distance at a lag: {', '.join(f'{n} {w}' for n, w in worst.items())}"
    text += f". {_verdicts(against)}"
    if len(against) > 1 and not any(one.get("different_lags") for one in against.values()):
        text += " Nothing tells them apart here; more members or pairs may."
    return f"{text} {_floor(against.get('exact'))}".strip() if reference == "direct" else text


def _distance(one: Numbers) -> str:
    value = with_error(one["summed_l2"], one.get("summed_l2_standard_error"))
    off = off_by(one)
    return f"{value} (without noise {off} of the response)" if off else value


def _largest(one: Numbers) -> str:
    """The largest distance at a lag, with its standard error."""
    pairs = zip(one.get("l2") or [], one.get("l2_standard_error") or [], strict=False)
    return with_error(*max((p for p in pairs if p[0] is not None), default=(None, None)))


def _verdicts(against: Numbers) -> str:
    """Who differs from the reference by more than noise, and at how many lags."""
    told: dict[str, list[str]] = {}
    for name, one in against.items():
        compared, different = one.get("compared_lags") or 0, len(one.get("different_lags") or [])
        lags = f"all {compared} lags" if compared != 1 else "the one lag"
        if not compared:
            verdict = "not known at any lag of it"
        elif not different:
            verdict = f"within three standard errors of it at {lags}"
        elif different == compared:
            verdict = f"off by more than three standard errors at {lags}"
        else:
            verdict = f"off by more than three standard errors at {different} of {compared} lags"
        told.setdefault(verdict, []).append(name)
    parts = [f"{listed(n)} {'is' if len(n) == 1 else 'are'} {v}" for v, n in told.items()]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _floor(exact: Numbers | None) -> str:
    """What the exact score's distance from the paired runs says about their noise."""
    if exact is None or not exact.get("compared_lags"):
        return ""
    if not exact.get("different_lags"):
        return "The exact score's distance is sampling noise: nothing below it can be judged."
    return (
        "The exact score differs too, by more than sampling noise: the kick may be too large to be "
        "linear, or the ensemble too short."
    )


def _pairs(summary: Numbers) -> list[tuple[str, Numbers]]:
    """Name and numbers by estimator of every perturbation and observable."""
    return [
        (f"{observable} after {kick}", numbers)
        for kick, observables in (summary.get("responses") or {}).items()
        if isinstance(observables, Mapping)
        for observable, numbers in observables.items()
    ]


def _all_pairs(summary: Numbers) -> str:
    """How often each estimator is off, over all perturbations and observables."""
    pairs = _pairs(summary)
    off: dict[str, dict[str, list[bool]]] = {}
    for _, numbers in pairs:
        for name, one in numbers.items():
            for reference, found in (one.get("against") or {}).items():
                different, compared = found["lags"]
                if compared and name != "direct":
                    told = off.setdefault(reference, {}).setdefault(name, [])
                    # A tenth of the lags: a few of many are beyond three errors by chance.
                    told.append(different > 0.1 * compared)
    if len(pairs) < 2 or not off:
        return ""
    reference = next(r for r in REFERENCES if r in off)
    ranked = sorted(off[reference].items(), key=lambda item: sum(item[1]) / len(item[1]))
    parts = [f"{name} for {sum(found)} of {len(found)}" for name, found in ranked]
    return (
        f"Over all {len(pairs)} pairs of a perturbation and an observable, off from "
        f"{REFERENCES[reference]} by more than three standard errors at more than a tenth of the "
        f"lags: {', '.join(parts)}."
    )


def _beyond_gaussian(summary: Numbers) -> str:
    """Whether the scores see more than a Gaussian one does."""
    found: dict[str, list[tuple[float, str]]] = {}
    for pair, numbers in _pairs(summary):
        for name, one in numbers.items():
            different, known = one.get("differs_from_gaussian") or (0, 0)
            if known:
                found.setdefault(name, []).append((different / known, pair))
    parts = []
    for name, shares in found.items():
        beyond = [share for share, _ in shares if share > 0]
        if not beyond:
            text = f"The {name} response is nowhere beyond sampling noise of the Gaussian one"
        elif len(shares) == 1:
            text = f"The {name} response differs from the Gaussian one beyond sampling noise"
            text += f", at {percent(beyond[0])} of the lags"
        else:
            share, pair = max(shares, key=lambda one: one[0])
            text = f"The {name} response differs from the Gaussian one beyond sampling noise for "
            text += f"{len(beyond)} of {len(shares)} pairs of a perturbation and an observable "
            text += f"(most for {pair}, at {percent(share)} of the lags)"
        parts.append(f"{text}.")
    return " ".join(parts)


def _resampled(estimators: Numbers) -> str:
    """What the error bars are made from."""
    units: dict[str, list[str]] = {}
    for name in in_order(estimators):
        if estimators[name].get("resampled"):
            units.setdefault(estimators[name]["resampled"], []).append(name)
    if len(units) == 1:
        return f"Error bars resample {next(iter(units))}."
    parts = [f"{what} ({', '.join(names)})" for what, names in units.items()]
    return f"Error bars resample {'; '.join(parts)}." if parts else ""


def _stein(summary: Numbers, estimators: Numbers) -> str:
    """How far each raw score is from the identity that the true one obeys."""
    parts, lost = [], []
    for name in in_order(estimators):
        one = estimators[name]
        raw = one.get("stein_error_raw")
        if raw is None or raw != raw:
            continue
        error = one.get("stein_error_raw_standard_error")
        value = number(raw, 2) if error is None else with_error(raw, error)
        parts.append(f"{name} {value}{_worst(summary, one)}")
        if one.get("unresolved_modes"):
            lost.append(f"{name} {one['unresolved_modes']}")
    if not parts:
        return ""
    text = f"Stein error before recalibration, 0 for the true score: {'; '.join(parts)}."
    if "gaussian" in estimators:
        text += " A Gaussian score obeys it whatever the data, so its small error is no proof."
    if summary.get("recalibrated"):
        text += " Recalibration restores the identity, that is lag 0; it cannot repair later lags."
    grid = (summary.get("sizes") or {}).get("grid")
    modes = f", of {math.prod(grid)}" if grid else ""
    return f"{text} Modes lost in noise{modes}: {', '.join(lost)}." if lost else text


def _worst(summary: Numbers, one: Numbers) -> str:
    """The shell of wavenumbers with the largest raw error."""
    errors: Sequence[float | None] = one.get("stein_error_raw_by_shell") or []
    known = [(error, at) for at, error in enumerate(errors) if error is not None]
    waves = summary.get("wavenumber") or range(len(errors))
    if not known:
        return ""
    error, at = max(known)
    return f" (largest {number(error, 2)} at |k| = {waves[at]})"


def _scores(summary: Numbers) -> str:
    """Relative squared error of the scores themselves."""
    scores = {n: v for n, v in (summary.get("score_error") or {}).items() if n != "exact"}
    if not scores:
        return ""
    errors = summary.get("score_error_standard_error") or {}
    ranked = sorted(scores, key=scores.__getitem__)
    parts = [f"{name} {with_error(scores[name], errors.get(name))}" for name in ranked]
    return (
        "Squared error of the score on held-out members, as a share of the exact one's square in "
        f"whitened modes: {', '.join(parts)}."
    )


def _nats(summary: Numbers) -> str:
    """What the learned score is worth in nats, and what it still lacks."""
    found = summary.get("path_kl") or {}
    neural = (found.get("estimators") or {}).get("neural")
    if not neural:
        return ""
    gain = with_error(neural["gain"], neural["gain_standard_error"])
    jumps = found.get("of") == "generalized score"
    text = (
        f"Taking noise {'and jumps ' if jumps else ''}up to σ = {number(found['band'][1])} "
        f"({found['noise_in']}) off held-out data, the learned "
        f"{'generalized ' if jumps else ''}score is {gain} nats a snapshot better than "
        f"{'that of Gaussian data' if jumps else 'the Gaussian one'}"
    )
    exact = found["estimators"].get("exact")
    if exact:
        text += f" (the exact one {with_error(exact['gain'], exact['gain_standard_error'])})"
    if "left" in neural:
        left = with_error(neural["left"], neural["left_standard_error"])
        text += f"; {left} nats of path KL are left to the exact score"
    if "left" in neural and "prior_mismatch" in found:
        most = number(neural["left"] + found["prior_mismatch"])
        way = "jump_reverse at eta 1" if jumps else "reverse diffusion"
        text += f", and no more than {most} between the data and what {way} makes of it"
    return f"{text}."


def _tails(summary: Numbers) -> str:
    """How well samples hold the tails of the data, the best first."""
    found = {n: one["tail_error"] for n, one in (summary.get("tails") or {}).items()}
    if not found:
        return ""
    ranked = sorted(found, key=lambda name: float(found[name]["value"]))
    ends = ("value", "low", "high")
    numbers = [[number(found[name][end], 2) for end in ends] for name in ranked]
    parts = [
        f"{n} {v} ({low} to {high})" for n, (v, low, high) in zip(ranked, numbers, strict=True)
    ]
    floor = number(found[ranked[0]]["floor"], 2)
    told_apart = [n for n in ranked if found[n]["low"] > found[n]["floor_high"]]
    text = f"{listed(told_apart)} seen to differ" if told_apart else "none is told from the data"
    return (
        "Samples of the learned densities: mean squared log error of the quantiles beyond 95 % "
        f"{', '.join(parts)}; two sets of data have {floor}, {text}."
    )
