"""Lag correlations: ours against the usual ways, on the same data, interleaved in one run.

    OMP_NUM_THREADS=1 python benchmarks/responses.py          # about 5 minutes on an idle core
    OMP_NUM_THREADS=1 python benchmarks/responses.py --full   # also 64 members streamed from Zarr

Every way runs once per round, so that a busy machine slows all of them; tables hold medians of
CPU seconds of one thread over the rounds, wall seconds beside them. A way that costs the same for
every lag is timed on a few lags and scaled, and its answer there is compared with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workflow.responses.correlation import lag_sums, one_thread, pair_counts
from workflow.responses.gfdt import impulse_response
from workflow.responses.matrix import matrix_bytes, response_matrix

RESULTS = Path(__file__).parent / "results"
SIDE = 32
PAIRS = 16


@dataclass(frozen=True)
class Way:
    """One way to do a task: its answer at `lags`, which are all or a few of those wanted."""

    name: str
    answer: Callable[[], np.ndarray]
    lags: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Median seconds for all lags of one way, and how often ours fits into it."""

    task: str
    way: str
    cpu_s: float
    best_cpu_s: float
    wall_s: float
    times_ours: float
    lags_timed: int


@dataclass(frozen=True)
class Data:
    """Field and score `(member, time, y, x)` float32; the score is good, not exact."""

    x: np.ndarray
    s: np.ndarray
    max_lag: int

    @classmethod
    def random(cls, members: int, times: int, max_lag: int) -> Data:
        rng = np.random.default_rng(1)
        size = (members, times, SIDE, SIDE)
        x = rng.standard_normal(size, dtype=np.float32)
        noise = rng.standard_normal(size, dtype=np.float32)
        return cls(x, -x + np.float32(0.5) * noise, max_lag)

    @property
    def lags(self) -> tuple[int, ...]:
        return tuple(range(self.max_lag + 1))

    def some(self, count: int) -> tuple[int, ...]:
        """A few lags, spread."""
        return tuple(np.unique(np.linspace(0, self.max_lag, count).astype(int)).tolist())

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x.reshape(*self.x.shape[:2], -1), self.s.reshape(*self.s.shape[:2], -1)

    def pairs(self) -> np.ndarray:
        length = self.x.shape[1]
        return pair_counts(0, length, length=length, max_lag=self.max_lag)

    def labelled(self) -> tuple[xr.DataArray, xr.DataArray]:
        dims = ("member", "time", "y", "x")
        return xr.DataArray(self.x, dims=dims), xr.DataArray(self.s, dims=dims)


def full_matrix(data: Data) -> list[Way]:
    """All responders, all kicked pixels."""
    x, s = data.flat()
    length, points = x.shape[1], x.shape[2]

    def per_lag(lags: tuple[int, ...], product: Callable) -> np.ndarray:
        pairs = [(x[:, lag:].reshape(-1, points), s[:, : length - lag]) for lag in lags]
        return np.stack([-product(a, b.reshape(-1, points)) for a, b in pairs])

    def cov(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.cov(a, b, rowvar=False, bias=True)[:points, points:]

    def gemm_torch(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(a).T @ torch.from_numpy(b)).numpy() / len(a)

    def ours() -> np.ndarray:
        found = response_matrix(*data.labelled(), max_lag=data.max_lag, recalibrate=False)
        return found.response.values.reshape(-1, points, points)

    one, two = data.some(1), data.some(2)
    return [
        Way("np.cov per lag (float64)", lambda: per_lag(one, cov), one),
        Way("GEMM per lag, numpy", lambda: per_lag(two, lambda a, b: a.T @ b / len(a)), two),
        Way("GEMM per lag, torch", lambda: per_lag(two, gemm_torch), two),
        Way("ours", ours, data.lags),
    ]


def one_pixel(data: Data) -> list[Way]:
    """All responders, one kicked pixel."""
    x, s = data.flat()
    length, points = x.shape[1:]
    labelled_x, labelled_s = data.labelled()
    labelled_s = labelled_s[:, :, 0, 0]

    def xarray_cov(lags: tuple[int, ...]) -> np.ndarray:
        out = []
        for lag in lags:
            a, b = labelled_x[:, lag:], labelled_s[:, : length - lag]
            out.append(-xr.cov(a, b, dim=("member", "time"), ddof=0).values.ravel())
        return np.stack(out)

    def gemm() -> np.ndarray:
        kicks = np.zeros((*x.shape[:2], data.max_lag + 1), dtype=np.float32)
        for lag in data.lags:
            kicks[:, lag:, lag] = s[:, : length - lag, 0]
        product = x.reshape(-1, points).T @ kicks.reshape(-1, data.max_lag + 1)
        return -product.T / (x.shape[0] * data.pairs()[:, None])

    def ours() -> np.ndarray:
        sums = lag_sums(x, s[:, :, :1], max_lag=data.max_lag)[..., 0].sum(axis=0)
        return -sums / (x.shape[0] * data.pairs()[:, None])

    one = data.some(1)
    return [
        Way("xarray.cov per lag", lambda: xarray_cov(one), one),
        Way("one GEMM with the lagged score", gemm, data.lags),
        Way("ours", ours, data.lags),
    ]


def invariant(data: Data) -> list[Way]:
    """Response over the displacement, averaged over the kicked pixel."""
    length, points = data.x.shape[1], SIDE * SIDE
    pairs = data.x.shape[0] * data.pairs()

    def multiply(lags: tuple[int, ...]) -> np.ndarray:
        a = torch.fft.rfftn(torch.from_numpy(data.x), dim=(2, 3))
        b = torch.fft.rfftn(torch.from_numpy(data.s), dim=(2, 3)).conj_physical_()
        sums = [(a[:, lag:] * b[:, : length - lag]).sum((0, 1)) for lag in lags]
        norm = torch.from_numpy(-pairs[list(lags)] * points)[:, None, None]
        return torch.fft.irfftn(torch.stack(sums) / norm, s=(SIDE, SIDE), dim=(1, 2)).numpy()

    def long_fft() -> np.ndarray:
        total: torch.Tensor | float = 0.0
        for x, s in zip(data.x, data.s, strict=True):
            a = torch.fft.rfftn(torch.from_numpy(x), dim=(1, 2))
            b = torch.fft.rfftn(torch.from_numpy(s), dim=(1, 2))
            padded = 1 << (length + data.max_lag - 1).bit_length()
            a, b = (torch.fft.fft(v, n=padded, dim=0) for v in (a, b))
            total = total + torch.fft.ifft(a.mul_(b.conj_physical_()), dim=0)[: data.max_lag + 1]
        norm = torch.from_numpy(-pairs * points)[:, None, None]
        return torch.fft.irfftn(total / norm, s=(SIDE, SIDE), dim=(1, 2)).numpy()

    def ours() -> np.ndarray:
        found = impulse_response(*data.labelled(), max_lag=data.max_lag, centre=False)
        return np.fft.ifftshift(found.mean("member").values, axes=(1, 2))

    def spatial(window: int) -> np.ndarray:
        for whole in (data.x, data.s):
            for part in torch.from_numpy(whole).split(window, dim=1):
                torch.fft.rfftn(part, dim=(2, 3))
        return np.zeros((0,))

    return [
        Way("multiply and sum per lag and wavenumber", lambda: multiply(data.lags), data.lags),
        Way("one long FFT in time", long_fft, data.lags),
        Way("limit: spatial FFTs alone", lambda: spatial(length), ()),
        Way("limit: spatial FFTs alone, windows in cache", lambda: spatial(200 // len(data.x)), ()),
        Way("ours", ours, data.lags),
    ]


def pixel_pairs(data: Data) -> list[Way]:
    """Sixteen (responder, kicked pixel) pairs."""
    x, s = data.flat()
    length = x.shape[1]
    chosen = np.random.default_rng(2).integers(0, x.shape[2], (2, PAIRS))
    labelled = [
        xr.DataArray(v[:, :, c], dims=("member", "time", "pair"))
        for v, c in zip((x, s), chosen, strict=True)
    ]

    def numpy_cov() -> np.ndarray:
        out = np.empty((data.max_lag + 1, PAIRS))
        for lag in data.lags:
            for pair, (i, j) in enumerate(chosen.T):
                a, b = x[:, lag:, i].ravel(), s[:, : length - lag, j].ravel()
                out[lag, pair] = -np.cov(a, b, bias=True)[0, 1]
        return out

    def xarray_cov() -> np.ndarray:
        a, b = labelled
        over = ("member", "time")
        return np.stack(
            [
                -xr.cov(a[:, lag:], b[:, : length - lag], dim=over, ddof=0).values
                for lag in data.lags
            ]
        )

    def ours() -> np.ndarray:
        a, b = (v.transpose("pair", ...).values.reshape(-1, length, 1) for v in labelled)
        sums = lag_sums(a, b, max_lag=data.max_lag).reshape(PAIRS, len(x), -1).sum(axis=1)
        return -(sums / (len(x) * data.pairs())).T

    return [
        Way("np.cov per pair and lag", numpy_cov, data.lags),
        Way("xarray.cov per lag", xarray_cov, data.lags),
        Way("ours", ours, data.lags),
    ]


def measure(task: str, ways: list[Way], *, rounds: int, lags: int, samples: int) -> list[Row]:
    """All ways once per round, and their answers against ours."""
    spent: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    reference = ways[-1].answer()
    for _ in range(rounds):
        for way in ways:
            cpu, wall = time.process_time(), time.perf_counter()
            answer = way.answer()
            scale = lags / len(way.lags) if way.lags else 1.0
            seconds = time.process_time() - cpu, time.perf_counter() - wall
            spent[way.name].append((seconds[0] * scale, seconds[1] * scale))
            if way.lags:
                # Some ways are about the means of the samples: a few standard errors squared.
                error = np.abs(answer - reference[list(way.lags)]).max()
                if not error < 40 / samples:
                    raise ValueError(f"{task}, {way.name}: {error} away from ours")
    rows = []
    ours = statistics.median(cpu for cpu, _ in spent["ours"])
    for way in ways:
        cpus, walls = zip(*spent[way.name], strict=True)
        cpu = statistics.median(cpus)
        row = Row(
            task, way.name, cpu, min(cpus), statistics.median(walls), cpu / ours, len(way.lags)
        )
        rows.append(row)
        print(f"task={task!r} way={way.name!r} cpu_s={cpu:.3g} times_ours={row.times_ours:.3g}")
    return rows


TASKS = {
    "full matrix": full_matrix,
    "one kicked pixel": one_pixel,
    "translation-invariant": invariant,
    "16 pixel pairs": pixel_pairs,
}


def stream(store: str, times: int, max_lag: int) -> dict[str, float]:
    """Matrix and invariant response of the first `times` samples of a store; peak memory."""
    import dask

    with dask.config.set(scheduler="synchronous"), one_thread():
        data = xr.open_zarr(store, consolidated=False).isel(time=slice(0, times))
        facts = {"members": data.sizes["member"], "times": times}
        facts["data_gib"] = 2 * data["field"].nbytes / 2**30
        for name, respond in (("invariant", impulse_response), ("matrix", response_matrix)):
            started, cpu = time.perf_counter(), time.process_time()
            respond(data["field"], data["score"], max_lag=max_lag)
            facts[f"{name}_cpu_s"] = time.process_time() - cpu
            facts[f"{name}_wall_s"] = time.perf_counter() - started
            facts[f"{name}_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return facts


def write_store(store: str, *, members: int, times: int) -> None:
    """Random field and score, 16 MiB chunks, one member at a time."""
    import dask.array

    dims, chunks = ("member", "time", "y", "x"), (1, min(times, 4096), SIDE, SIDE)
    empty = dask.array.zeros((members, times, SIDE, SIDE), dtype="float32", chunks=chunks)
    lazy = xr.Dataset({"field": (dims, empty), "score": (dims, empty)})
    encoding = {name: {"compressors": ()} for name in lazy}
    lazy.to_zarr(store, compute=False, encoding=encoding, mode="w", consolidated=False)
    rng = np.random.default_rng(3)
    for member in range(members):
        x, noise = rng.standard_normal((2, 1, times, SIDE, SIDE), dtype=np.float32)
        part = xr.Dataset({"field": (dims, x), "score": (dims, -x + np.float32(0.5) * noise)})
        part.to_zarr(store, region={"member": slice(member, member + 1)}, consolidated=False)


def streamed(*, members: int, times: int, max_lag: int, folder: str | None) -> list[dict]:
    """Peak memory at a quarter of the length and at the whole, each in its own process."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store = f"{place}/run.zarr"
        write_store(store, members=members, times=times)
        found = []
        for part in (times // 4, times):
            command = [sys.executable, __file__, "--stream", store]
            command += ["--times", str(part), "--max-lag", str(max_lag)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
            print(found[-1])
        return found


def write_results(rows: list[Row], streams: list[dict], facts: dict) -> None:
    """`results/responses.json` and `.md`."""
    RESULTS.mkdir(exist_ok=True)
    everything = {**facts, "rows": [asdict(row) for row in rows], "streamed": streams}
    (RESULTS / "responses.json").write_text(json.dumps(everything, indent=1) + "\n")
    lines = [
        "# Lag correlations",
        "",
        f"{facts['members']} members x {facts['times']} times x {SIDE * SIDE} points, float32, "
        f"lags 0 to {facts['max_lag']}; medians of {facts['rounds']} interleaved rounds, one "
        "thread. CPU seconds, as the machine was shared; ratios are of CPU time. A way timed on "
        "fewer lags is scaled to all.",
        "",
        "| task | way | CPU s | best | wall s | / ours | lags timed |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.task} | {r.way} | {r.cpu_s:.3g} | {r.best_cpu_s:.3g} | {r.wall_s:.3g} "
        f"| {r.times_ours:.3g} | {r.lags_timed or '-'} |"
        for r in rows
    ]
    if streams:
        lines += [
            "",
            f"Streamed from Zarr, {SIDE * SIDE} points; `matrix_bytes` states "
            f"{matrix_bytes(SIDE * SIDE, facts['max_lag'] + 1) / 2**30:.1f} GiB for the matrix.",
            "",
            "| members | times | data GiB | matrix CPU s | wall s | peak GiB | "
            "invariant CPU s | wall s | peak GiB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {s['members']} | {s['times']} | {s['data_gib']:.2f} | {s['matrix_cpu_s']:.0f} "
            f"| {s['matrix_wall_s']:.0f} | {s['matrix_peak_gib']:.2f} "
            f"| {s['invariant_cpu_s']:.1f} | {s['invariant_wall_s']:.0f} "
            f"| {s['invariant_peak_gib']:.2f} |"
            for s in streams
        ]
    (RESULTS / "responses.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--max-lag", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", type=int, nargs="?", const=64, default=0, metavar="MEMBERS")
    parser.add_argument("--folder", help="where --full writes its data, 5 GiB for a while")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("OMP_NUM_THREADS is not 1; run with OMP_NUM_THREADS=1 to time one thread")
    if given.stream:
        print(json.dumps(stream(given.stream, given.times, given.max_lag)))
        return
    torch.set_num_threads(1)
    facts = {"members": given.members, "times": given.times, "max_lag": given.max_lag}
    facts |= {"rounds": given.rounds, "cpu": platform.processor() or platform.machine()}
    facts |= {"numpy": np.__version__, "torch": torch.__version__}
    data = Data.random(given.members, given.times, given.max_lag)
    rows = []
    for task, ways in TASKS.items():
        samples = given.members * given.times
        lags = given.max_lag + 1
        rows += measure(task, ways(data), rounds=given.rounds, lags=lags, samples=samples)
    del data
    write_results(rows, [], facts)
    if given.full:
        sizes = {"members": given.full, "times": given.times, "max_lag": given.max_lag}
        write_results(rows, streamed(**sizes, folder=given.folder), facts)


if __name__ == "__main__":
    main()
