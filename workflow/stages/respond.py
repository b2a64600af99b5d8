"""Respond: responses with error bars from scores and paired runs, and how far they are apart."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import distributed
import numpy as np
import torch
import xarray as xr
from scipy import fft

from hpc.layout import Coordinate, Variable, create_store
from hpc.ledger import Receipt
from hpc.stores import consolidate, read_block, write_block
from workflow.responses.correlation import LagCorrelation, block_bounds
from workflow.responses.recalibration import (
    recalibrate,
    stein_spectrum,
    unresolved_modes,
)
from workflow.responses.resampling import Units, ratio, unit_weights
from workflow.responses.statistics import distance, with_interval
from workflow.runs import Notify, Run, load_run
from workflow.stages.blocks import facts_since, run_blocks
from workflow.stages.data import read_ensemble
from workflow.stages.summary import REFERENCES


@dataclass(frozen=True)
class Responses:
    """One estimator's response: raw and final, with resamples of the final one.

    Attributes:
        raw: `(lag, *shape)`, FFT order.
        value: recalibrated where asked, `(lag, *shape)`.
        samples: bootstrap resamples of `value`, `(sample, lag, *shape)`.
        stein: raw M per wavenumber `(*shape)`, NaN for `direct`.
        unresolved: wavenumbers the score cannot see `(*shape)`.
    """

    raw: np.ndarray
    value: np.ndarray
    samples: np.ndarray
    stein: np.ndarray
    unresolved: np.ndarray


def correlate(run: Run, client: Callable[[], distributed.Client], notify: Notify) -> None:
    """Complete `correlations.zarr`: raw response per member and estimator."""
    run.renew("respond", run.correlations, run.response)
    config, shape = run.experiment.ensemble, run.system.shape
    group, lags = min(config.group, config.members), run.lags + 1
    create_store(
        run.correlations,
        variables=[
            Variable(
                "response",
                ("estimator", "member", "lag", *(f"d{n}" for n in run.space)),
                (len(run.learned), config.members, lags, *shape),
                (1, group, lags, *shape),
                "float64",
                {"long_name": "raw response per member", "units": "1"},
            )
        ],
        coordinates=[
            Coordinate("estimator", np.array(run.learned), {"long_name": "score estimator"}),
            Coordinate("member", np.arange(config.members), {"long_name": "ensemble member"}),
            Coordinate("lag", np.arange(lags) * config.save_every, {"long_name": "lag"}),
        ],
        attrs={
            **run.attributes("raw responses per member"),
            "displacement_order": "as of an FFT: 0, 1, ..., -1",
        },
    )
    x_mean, s_means = means(run)
    blocks = {
        f"lags-g{group:04d}-{name}": (str(run.folder), group, name, x_mean, s_means[name])
        for group in range(len(run.groups))
        for name in run.learned
    }
    run_blocks(run, client, stage="respond", function=correlate_group, blocks=blocks, notify=notify)
    consolidate(run.correlations)


def means(run: Run) -> tuple[float, dict[str, float]]:
    """Means of the field and of each estimator's score, from the receipts of `evaluate`."""
    ledger = run.ledger("evaluate")
    facts = [ledger.load(block).facts for block in sorted(ledger.done())]
    count = sum(f["count"] for f in facts)
    scores = {n: sum(f["s_sum"][n] for f in facts) / count for n in run.learned}
    return sum(f["x_sum"] for f in facts) / count, scores


def correlate_group(folder: str, group: int, name: str, x_mean: float, s_mean: float) -> Receipt:
    """Lagged products of one group and estimator, streamed over blocks of time."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    run = load_run(folder, Path("."))
    members, index = run.groups[group], run.learned.index(name)
    sums = LagCorrelation(
        run.system.shape, max_lag=run.lags, length=run.times, x_mean=x_mean, s_mean=s_mean
    )
    variable = f"score_{run.system.fields[0].name}"
    for start, stop, stop_lagged in block_bounds(run.times, run.chunk_times, max_lag=run.lags):
        x = read_ensemble(run, members, range(start, stop_lagged))[:, :, 0]
        s = read_block(
            run.scores,
            variable,
            start={"estimator": index, "member": members.start, "time": start},
            size={"estimator": 1, "member": len(members), "time": stop - start},
        )[0]
        sums.add(x, s)
    written = write_block(
        run.correlations,
        "response",
        start={"estimator": index, "member": members.start},
        values=np.ascontiguousarray(sums.result()[None]),
    )
    files = {f"correlations.zarr/{key}": crc for key, crc in written.items()}
    return Receipt(f"lags-g{group:04d}-{name}", files, facts_since(started))


def respond(run: Run, notify: Notify) -> None:
    """Write `response.zarr` from the responses per member, unless it is that already."""
    estimators = run.experiment.response.estimators
    ledger, key = run.ledger("respond"), run.key("response")
    if "response" in ledger.done() and ledger.load("response").facts.get("key") == key:
        notify("error bars", len(estimators), len(estimators))
        return
    ledger.drop("response")
    shutil.rmtree(run.response, ignore_errors=True)
    responses: dict[str, Responses] = {}
    for count, name in enumerate(estimators):
        notify("error bars", count, len(estimators))
        responses[name] = _direct(run) if name == "direct" else _learned(run, name)
    distances = _distances(run, responses)
    dataset = _label(run, responses, distances)
    _save(run, dataset)
    notify("error bars", len(estimators), len(estimators))


def _learned(run: Run, name: str) -> Responses:
    space = len(run.system.shape)
    index = run.learned.index(name)
    per_member = read_block(
        run.correlations, "response", start={"estimator": index}, size={"estimator": 1}
    )[0]
    error = run.experiment.response.error
    units = Units(len(per_member), blocks=1, moving=1)
    weights = unit_weights(units, samples=error.samples, seed=run.experiment.seed)
    one = np.ones((1, per_member.shape[1]))
    raw = per_member.mean(axis=0)
    unresolved = unresolved_modes(per_member, space=space)
    value = raw
    draws = [ratio(per_member[:, None], one, w) for w in np.array_split(weights, 20)]
    if run.experiment.response.recalibrate:
        value = recalibrate(raw, space=space, unresolved=unresolved).response
        draws = [recalibrate(d, space=space, unresolved=unresolved).response for d in draws]
    samples = np.concatenate([d.astype(np.float32) for d in draws])
    return Responses(raw, value, samples, stein_spectrum(raw, space=space).real, unresolved)


def _direct(run: Run) -> Responses:
    rounds = np.array([len(r) for r in run.round_blocks], dtype=np.float64)
    blocks = read_block(run.perturbed, "response", start={}, size={})
    per_member = np.einsum("b,b...->...", rounds / rounds.sum(), blocks)
    error = run.experiment.response.error
    # Other draws than the estimators': the noise of the paired runs is its own.
    units = Units(len(per_member), blocks=1, moving=1)
    weights = unit_weights(units, samples=error.samples, seed=run.experiment.seed + 1)
    one = np.ones((1, per_member.shape[1]))
    samples = ratio(per_member[:, None], one, weights).astype(np.float32)
    value = per_member.mean(axis=0)
    missing = run.lags - run.direct_lags
    space = len(run.system.shape)
    pad = [(0, missing), *[(0, 0)] * space]
    value = np.pad(value, pad, constant_values=np.nan)
    samples = np.pad(samples, [(0, 0), *pad], constant_values=np.nan)
    nothing = np.full(run.system.shape, np.nan)
    return Responses(value, value, samples, nothing, np.zeros(run.system.shape, dtype=bool))


def _distances(run: Run, responses: dict[str, Responses]) -> dict[str, np.ndarray]:
    """L2 and Linf of each estimator from each reference, `(estimator, reference, lag)`."""
    names = ("l2", "linf", "l2_corrected", "l2_squared")
    shape = (len(responses), len(REFERENCES), run.lags + 1)
    out = {n + end: np.full(shape, np.nan) for n in names for end in ("", "_standard_error")}
    for i, (name, one) in enumerate(responses.items()):
        for j, reference in enumerate(REFERENCES):
            if reference not in responses or reference == name:
                continue
            other = responses[reference]
            until = 1 + (run.direct_lags if "direct" in (name, reference) else run.lags)
            for lag in range(until):
                at = slice(lag, lag + 1)
                found = distance(
                    one.value[at],
                    other.value[at],
                    estimate_samples=one.samples[:, at].astype(np.float64),
                    reference_samples=other.samples[:, at].astype(np.float64),
                )
                for key, values in out.items():
                    values[i, j, lag] = getattr(found, key)[0]
    return out


def _label(
    run: Run, responses: dict[str, Responses], distances: dict[str, np.ndarray]
) -> xr.Dataset:
    """The dataset of `response.zarr`, displacements in increasing order."""
    e, space = run.experiment, run.space
    displacement = [f"d{n}" for n in space]
    dims = ("estimator", "perturbation", "observable", "lag", *displacement)
    axes = tuple(range(-len(space), 0))
    level, members = e.response.error.level, e.ensemble.members
    columns: dict[str, list[np.ndarray]] = {n: [] for n in VARIABLES}
    for one in responses.values():
        spread = one.samples.std(axis=0, ddof=1, dtype=np.float64)
        estimate = with_interval(one.value, spread, freedom=members - 1, level=level)
        values = (one.value, one.raw, spread, estimate.low, estimate.high)
        for name, value in zip(VARIABLES, values, strict=True):
            columns[name].append(fft.fftshift(value, axes=axes)[None, None])
    waves = [f"k{n}" for n in space]
    per_wave = {
        "stein": np.stack([fft.fftshift(o.stein) for o in responses.values()]),
        "unresolved": np.stack([fft.fftshift(o.unresolved) for o in responses.values()]),
    }
    sizes = run.system.shape
    centred = {n: np.arange(size) - size // 2 for n, size in zip(displacement, sizes, strict=True)}
    dataset = xr.Dataset(
        {name: (dims, np.stack(columns[name])) for name in VARIABLES}
        | {name: (("estimator", *waves), value) for name, value in per_wave.items()}
        | {name: (("estimator", "reference", "lag"), v) for name, v in distances.items()},
        coords={
            "estimator": np.array(list(responses)),
            "perturbation": np.array(["pixel"]),
            "observable": np.array(["field"]),
            "reference": np.array(REFERENCES),
            "lag": np.arange(run.lags + 1) * e.ensemble.save_every,
            **centred,
            **dict(zip(waves, centred.values(), strict=True)),
        },
        attrs=run.attributes("responses with error bars") | {"level": level},
    )
    dataset["lag"].attrs = {"long_name": "time since the kick, model time", "units": "1"}
    for name in displacement:
        dataset[name].attrs = {"long_name": "grid steps from the kicked pixel", "units": "1"}
    for name, text in VARIABLES.items():
        dataset[name].attrs = {"long_name": text, "units": "1"}
    return dataset


VARIABLES = {
    "response": "response of the field to a unit kick of one pixel",
    "response_raw": "response before recalibration of the score",
    "standard_error": "standard error of response, bootstrap over members",
    "ci_low": "lower end of the confidence interval",
    "ci_high": "upper end of the confidence interval",
}


def _save(run: Run, dataset: xr.Dataset) -> None:
    create_store(
        run.response,
        variables=[
            Variable(
                str(name),
                tuple(map(str, v.dims)),
                v.shape,
                v.shape,
                "int8" if v.dtype == bool else str(v.dtype),
                dict(v.attrs),
            )
            for name, v in dataset.data_vars.items()
        ],
        coordinates=[
            Coordinate(str(name), v.values, dict(v.attrs)) for name, v in dataset.coords.items()
        ],
        attrs=dataset.attrs,
    )
    files: dict[str, str] = {}
    for name, v in dataset.data_vars.items():
        values = v.values.astype("int8") if v.dtype == bool else v.values
        written = write_block(
            run.response, str(name), start={}, values=np.ascontiguousarray(values)
        )
        files |= {f"response.zarr/{key}": crc for key, crc in written.items()}
    consolidate(run.response)
    run.ledger("respond").record(Receipt("response", files, {"key": run.key("response")}))
