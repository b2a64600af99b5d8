"""Responses of a finished Navier-Stokes run against its paired runs: peaks, distances, shells.

    gfdt run navier_stokes
    python benchmarks/navier_stokes.py runs/navier_stokes

Writes `results/learned_scores/navier_stokes.json` and prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

RESULTS = Path(__file__).parent / "results" / "learned_scores"
PEAKS = {"R31": 2, "R51": 4, "R71": 6}
"""Pixels downstream of the kick, by the name of the publication."""
LAGS = (0.125, 0.25, 0.375, 0.5, 0.625, 1.0, 1.5, 2.0)
SHELLS = (0, 2, 6, 8, 10, 12, 14, 16, 18)
SHELL_LAGS = (0.25, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    folder = parser.parse_args().run
    found = xr.open_zarr(folder / "response.zarr").isel(perturbation=0, observable=0).load()
    names = [str(name) for name in found.estimator.values]
    content = {
        "peaks": {name: peaks(found.sel(estimator=name)) for name in names},
        "distances": {name: distances(found, name) for name in names if name != "direct"},
        "shells": {name: shells(found.sel(estimator=name)) for name in names},
        "stein_error": {n: round(float(found.stein_error.sel(estimator=n)), 4) for n in names},
        "training": training(folder),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "navier_stokes.json").write_text(f"{json.dumps(content, indent=1)}\n")
    print("\n".join(tables(content)))


def peaks(one: xr.Dataset) -> dict[str, list[float]]:
    """Largest response over all lags of each pixel, its standard error there, and its lag."""
    out = {}
    for name, pixel in PEAKS.items():
        here = one.sel(dy=0, dx=pixel)
        at = int(here.response.argmax("lag"))
        values = (here.response[at], here.standard_error[at], here.lag[at])
        out[name] = [round(float(value), 4) for value in values]
    return out


def distances(found: xr.Dataset, name: str) -> dict[str, list[float]]:
    """L2 distance from the paired runs without the noise of both, and its standard error."""
    one = found.sel(estimator=name, reference="direct").sel(lag=list(LAGS), method="nearest")
    pairs = zip(one.l2_corrected.values, one.l2_corrected_standard_error.values, strict=True)
    return {
        f"{lag:g}": [round(float(v), 4) for v in pair]
        for lag, pair in zip(LAGS, pairs, strict=True)
    }


def shells(one: xr.Dataset) -> dict[str, list[float]]:
    """Mean of |R_k| over shells of wavenumbers, at some lags."""
    maps = one.response.sel(lag=list(SHELL_LAGS), method="nearest")
    modes = np.abs(np.fft.fft2(np.fft.ifftshift(maps.values, axes=(-2, -1))))
    k = np.fft.fftfreq(modes.shape[-1], 1 / modes.shape[-1])
    length = np.hypot(k[:, None], k[None, :])
    out = {}
    for lag, values in zip(SHELL_LAGS, modes, strict=True):
        rings = [values[np.abs(length - shell) < 0.5].mean() for shell in SHELLS]
        out[f"{lag:g}"] = [round(float(value), 3) for value in rings]
    return out


def training(folder: Path) -> dict[str, Any]:
    """Held-out loss and Stein ratios by step."""
    lines = [json.loads(text) for text in (folder / "score" / "log.jsonl").read_text().splitlines()]
    tested = [line for line in lines if line.get("test_loss") is not None]
    return {name: [line[name] for line in tested] for name in ("step", "test_loss", "stein")}


def tables(content: dict[str, Any]) -> list[str]:
    """The same in Markdown."""
    names = list(content["peaks"])
    text = [f"| peak | {' | '.join(PEAKS)} | raw Stein error |", "|---|---|---|---|---|"]
    for name in names:
        cells = [f"{v:.4f} +- {e:.4f} at {t:g}" for v, e, t in content["peaks"][name].values()]
        text.append(f"| {name} | {' | '.join(cells)} | {content['stein_error'][name]:.3f} |")
    text += ["", f"| L2 from direct, without noise | {' | '.join(f'{lag:g}' for lag in LAGS)} |"]
    text.append("|---" * (len(LAGS) + 1) + "|")
    for name, values in content["distances"].items():
        cells = [f"{v:.3f} +- {e:.3f}" for v, e in values.values()]
        text.append(f"| {name} | {' | '.join(cells)} |")
    text += ["", f"| lag | shell | {' | '.join(map(str, SHELLS))} |"]
    text.append("|---" * (len(SHELLS) + 2) + "|")
    for lag in SHELL_LAGS:
        for name in names:
            cells = [f"{v:.3f}" for v in content["shells"][name][f"{lag:g}"]]
            text.append(f"| {lag:g} | {name} | {' | '.join(cells)} |")
    return text


if __name__ == "__main__":
    main()
