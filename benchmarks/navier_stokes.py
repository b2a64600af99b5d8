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
MEASURES = {"L2": "l2", "L2 without noise": "l2_corrected", "Linf": "linf"}
"""Distances, by the name that a table has."""


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
        "stein": {name: stein(found.sel(estimator=name)) for name in names if name != "direct"},
        "training": training(folder),
        "wall_seconds": json.loads((folder / "logs" / "wall_times.json").read_text()),
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


def distances(found: xr.Dataset, name: str) -> dict[str, dict[str, list[float]]]:
    """Distances from the paired runs and their standard errors, by measure and lag."""
    one = found.sel(estimator=name, reference="direct").sel(lag=list(LAGS), method="nearest")
    out = {}
    for words, key in MEASURES.items():
        pairs = zip(one[key].values, one[f"{key}_standard_error"].values, strict=True)
        rounded = [[round(float(v), 4) for v in pair] for pair in pairs]
        out[words] = dict(zip((f"{lag:g}" for lag in LAGS), rounded, strict=True))
    return out


def stein(one: xr.Dataset) -> dict[str, Any]:
    """Stein errors, and the mean raw ratio of each shell, 1 for the true score."""
    names = ("stein_error", "stein_error_standard_error", "stein_error_recalibrated")
    errors: dict[str, Any] = {name: round(float(one[name]), 4) for name in names}
    return errors | {"raw_ratio_by_shell": by_shell(np.fft.ifftshift(one.stein.values))}


def shells(one: xr.Dataset) -> dict[str, list[float]]:
    """Mean of |R_k| over shells of wavenumbers, at some lags."""
    maps = one.response.sel(lag=list(SHELL_LAGS), method="nearest")
    modes = np.abs(np.fft.fft2(np.fft.ifftshift(maps.values, axes=(-2, -1))))
    return {f"{lag:g}": by_shell(part) for lag, part in zip(SHELL_LAGS, modes, strict=True)}


def by_shell(values: np.ndarray) -> list[float]:
    """Mean over each shell of |k| of values per wavenumber, 0 first."""
    k = np.fft.fftfreq(values.shape[-1], 1 / values.shape[-1])
    length = np.hypot(k[:, None], k[None, :])
    return [round(float(values[np.abs(length - shell) < 0.5].real.mean()), 3) for shell in SHELLS]


def training(folder: Path) -> dict[str, Any]:
    """Held-out loss and Stein ratios by step."""
    lines = [json.loads(text) for text in (folder / "score" / "log.jsonl").read_text().splitlines()]
    tested = [line for line in lines if line.get("test_loss") is not None]
    return {name: [line[name] for line in tested] for name in ("step", "test_loss", "stein")}


def tables(content: dict[str, Any]) -> list[str]:
    """The same in Markdown."""
    peaks = {
        name: [f"{v:.4f} +- {e:.4f} at {t:g}" for v, e, t in found.values()]
        for name, found in content["peaks"].items()
    }
    text = table(["peak", *PEAKS], peaks)
    for words in MEASURES:
        rows = {
            name: [f"{v:.3f} +- {e:.3f}" for v, e in found[words].values()]
            for name, found in content["distances"].items()
        }
        text += table([f"{words} from direct", *(f"{lag:g}" for lag in LAGS)], rows)
    rows = {
        name: [
            f"{found['stein_error']:.3f} +- {found['stein_error_standard_error']:.3f}",
            f"{found['stein_error_recalibrated']:.3f}",
            *(f"{ratio:.3f}" for ratio in found["raw_ratio_by_shell"]),
        ]
        for name, found in content["stein"].items()
    }
    head = [f"raw ratio of shell {shell}" for shell in SHELLS]
    text += table(["score", "raw Stein error", "recalibrated", *head], rows)
    for lag in SHELL_LAGS:
        rows = {
            name: [f"{value:.3f}" for value in found[f"{lag:g}"]]
            for name, found in content["shells"].items()
        }
        text += table([f"mean of abs(R_k) at lag {lag:g}, shell", *map(str, SHELLS)], rows)
    return text


def table(head: list[str], rows: dict[str, list[str]]) -> list[str]:
    """Lines of a table, and an empty one after it."""
    lines = [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines, ""]


if __name__ == "__main__":
    main()
