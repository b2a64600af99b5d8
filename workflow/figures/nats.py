"""Where the nats are: path KL against the noise level, and entropy beyond Gaussian by mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from workflow.figures import colour, in_order, line, picture, share_legend
from workflow.figures.phrases import with_error

LOWEST = 1e-4
"""Smallest nats per e-fold of noise that are drawn, and of a mode as a share of the largest."""

ERRORS = 2.0
"""Standard errors on either side of a band."""

NOISE = {"score": "all noise", "generalized score": "all noise and jumps"}
"""What is taken off, by what a path KL is of."""

Numbers = Mapping[str, Any]


def nats(summary: Numbers, folder: Path) -> tuple[str, str] | None:
    """The path KL of every score.

    Args:
        summary: content of `summary.json`, of which `path_kl` is drawn.
        folder: where the picture goes.

    Returns:
        File name and caption; None where no path KL is known.
    """
    found = summary.get("path_kl") or {}
    beyond = {n: v for n, v in (found.get("beyond_gaussian") or {}).items() if n != "modes"}
    if not beyond:
        return None
    curve = found["curve"] if found["curve"]["sigma"] else None
    with picture(folder / "nats.png", 13.0 if curve else 6.8, 5.0) as figure:
        panels = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
        key = _against_noise(panels[0], curve) if curve else ""
        _by_mode(panels[-1], beyond, found)
        share_legend(figure, reversed(panels))
    return "nats.png", _caption(found, key)


def _against_noise(panel: Axes, curve: Numbers) -> str:
    """Nats per e-fold of noise: what is left where that is known, else what is gained."""
    names = in_order(set(curve) - {"sigma"})
    key = "left" if any("left" in curve[n] for n in names) else "gain"
    sigma = np.array(curve["sigma"])
    for name in names:
        if key not in curve[name]:
            continue
        value, error = (np.array(curve[name][key + end]) for end in ("", "_standard_error"))
        low, high = value - ERRORS * error, value + ERRORS * error
        if key == "left":
            value, low, high = (v.clip(LOWEST / 2) for v in (value, low, high))
        panel.plot(sigma, value, marker="o", ms=4, label=name, **line(name))
        panel.fill_between(sigma, low, high, color=colour(name), alpha=0.2, lw=0)
    panel.set_xscale("log")
    if key == "left":
        panel.set_yscale("log")
        panel.set_ylim(bottom=LOWEST)
    else:
        panel.axhline(0, color="grey", lw=0.8, zorder=0)
    words = {"left": "path KL", "gain": "nats gained on the Gaussian score"}[key]
    panel.set(xlabel="noise level σ", ylabel=f"{words}, per e-fold of σ", title="against noise")
    return key


def _by_mode(panel: Axes, beyond: Numbers, found: Numbers) -> None:
    """Entropy beyond Gaussian of a mode, or of a variable."""
    panel.set_title("beyond Gaussian")
    names, count = in_order(beyond), np.array(found["beyond_gaussian"]["modes"])
    if len(count) > 1:
        for name in names:
            for values in beyond[name]:
                each = np.array(values) / np.maximum(count, 1)
                panel.plot(np.arange(len(each)), each, label=name, **line(name))
        panel.set(xlabel="wavenumber |k|", ylabel="entropy beyond Gaussian, nats per mode")
        panel.set_yscale("log")
        top = max(float(np.max(curve.get_ydata())) for curve in panel.get_lines())
        if top > 0:
            panel.set_ylim(bottom=LOWEST * top)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    else:
        fields = len(found["variables"])
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            at = np.arange(fields) + (place - 0.5 * (len(names) - 1)) * width
            heights = [values[0] for values in beyond[name]]
            panel.bar(at, heights, width, label=name, color=colour(name))
        panel.set_ylabel("entropy beyond Gaussian, nats")
        panel.set_xticks(np.arange(fields), found["variables"])


def _caption(found: Numbers, key: str) -> str:
    told = []
    for name in in_order(found["estimators"]):
        one = found["estimators"][name]
        for what, words in (("left", "left"), ("gain", "gained")):
            if what in one and (what == "left" or key != "left"):
                nats = with_error(one[what], one[f"{what}_standard_error"])
                told.append(f"{name} {nats} nats {words}")
    noise = NOISE[found.get("of", "score")]
    text = (
        f"Path KL of taking off {noise} up to σ = {found['band'][1]:.3g} ({found['noise_in']}), on "
        f"{found['snapshots']} held-out snapshots: {', '.join(told)}."
    )
    if key:
        text += " Bands: two standard errors. The area under a curve is its nats."
    return f"{text} Entropy beyond Gaussian is what a response can gain on the Gaussian one."
