"""Full response matrix of an inhomogeneous field: every place watched, every place kicked.

    R(lag)_ij = - < x_i(t + lag) s_j(t) >

Where the statistics depend on the place, nothing can be averaged over places: the matrix has
(number of places)^2 entries per lag and needs that many more samples. Use
`gfdt.impulse_response` where they do not.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from workflow.interfaces import LAG, MEMBER, TIME, UserError
from workflow.responses.correlation import add_pooled_sums, block_bounds, one_thread, pair_counts
from workflow.responses.gfdt import check_arrays, lag_attributes, time_step
from workflow.responses.stein import FLOOR, LARGEST_CORRECTION

_BLOCK_NUMBERS = 1 << 25
"""Numbers read at once from a lazy array: 128 MiB in float32."""
_WORKING_BYTES = 3 << 29
"""Blocks of float32 data and their transforms at any length of the run; 1.05 GiB measured."""
MATRIX_LIMIT = 8 << 30
"""Memory in bytes beyond which a full matrix is refused unless the limit is raised."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RecalibratedMatrix:
    """A response matrix after recalibration, and where there was none.

    Attributes:
        response: `(lag, responder, kicked)`.
        unresolved: number of directions left as they were.
        correction: ||G - I||_F / sqrt(N) of the factor G that was found, used or not.
        refused: True where the correction was too large and the raw matrix kept.
    """

    response: Floats
    unresolved: int
    correction: float
    refused: bool


def response_matrix(
    x: xr.DataArray,
    score: xr.DataArray,
    *,
    max_lag: int,
    recalibrate: bool = True,
    limit: int = MATRIX_LIMIT,
) -> xr.Dataset:
    """Mean response of every place to a kick of every place, from unperturbed data alone.

        R(lag)_ij = - < (x_i(t + lag) - <x_i>) (s_j(t) - <s_j>) >,      s = grad log p

    averaged over members and times. Read in blocks of time and groups of members: memory does
    not grow with the run. A forcing pattern phi is answered by R @ phi.

    Args:
        x: responding field, dims (member, time) and up to two of space; may be lazy.
        score: score at the same members, times and places, 1 / units of x.
        max_lag: longest lag, in saved samples.
        recalibrate: repair the score so that lag 0 is the identity (`recalibrated_matrix`).
        limit: memory in bytes that must not be exceeded (`matrix_bytes`).

    Returns:
        `response` and, where recalibrated, `response_raw`, dims (lag, *space, *space_kicked),
        dimensionless, lag in units of the time coordinate. attrs: `stein_error`, root mean
        square eigenvalue of R(0) - I before recalibration; `unresolved`, directions that
        the score does not see; `recalibrated`, 1 or 0.

    Raises:
        UserError: dims that do not fit, uneven times, lags that no pair of samples spans, missing
            values, or more memory than the limit.

    Source: arXiv:2402.01029, equation 3 and its normalisation at lag 0.
    """
    check_arrays(x, score)
    step, length = time_step(x), x.sizes[TIME]
    shape = tuple(x.shape[2:])
    points = int(np.prod(shape))
    block = min(length, max(4 * max_lag, _BLOCK_NUMBERS // points, 1))
    bounds = list(block_bounds(length, block, max_lag=max_lag))
    _check_memory(points, max_lag + 1, recalibrate=recalibrate, limit=limit)
    raw = _mean_products(x, score, bounds, max_lag=max_lag)
    if not np.isfinite(raw[0]).all():
        raise UserError("x or score has missing or infinite values; fill or leave out those times")
    results = {"response": raw}
    attrs: dict[str, object] = {"recalibrated": 0}
    stein = raw[0] - np.eye(points)
    attrs["stein_error"] = float(np.linalg.norm(stein) / np.sqrt(points))
    if recalibrate:
        repaired = recalibrated_matrix(raw)
        results = {"response": repaired.response, "response_raw": raw}
        attrs |= {"recalibrated": int(not repaired.refused), "unresolved": repaired.unresolved}
    kicked = [f"{name}_kicked" for name in x.dims[2:]]
    dims = (LAG, *x.dims[2:], *kicked)
    places = {name: x.coords[name] for name in x.dims[2:] if name in x.coords}
    dataset = xr.Dataset(
        {name: (dims, r.reshape(-1, *shape, *shape)) for name, r in results.items()},
        coords={LAG: step * np.arange(max_lag + 1)}
        | {name: place.values for name, place in places.items()}
        | {f"{name}_kicked": place.values for name, place in places.items()},
        attrs=attrs,
    )
    dataset[LAG].attrs = lag_attributes(x)
    for name in results:
        dataset[name].attrs = {"long_name": "response to a kick of one place", "units": "1"}
    return dataset


def recalibrated_matrix(raw: Floats) -> RecalibratedMatrix:
    """Response with the score repaired so that lag 0 is the identity where the score sees.

        R(lag) <- R(lag) G,    M = R(0) = U S V^T,    G = V_r S_r^-1 U_r^T + V_u V_u^T

    with r the directions of singular values of at least `recalibration.FLOOR`, where G inverts M,
    and u the unresolved rest, which is left as it was. With all resolved G = M^-1; for a circulant
    M this is the division per wavenumber of `recalibration.recalibrate`.

    Args:
        raw: `(lag, responder, kicked)`, finite, dimensionless.

    Returns:
        The response, finite whatever M; warns where directions are unresolved, and where the
        correction exceeds `recalibration.LARGEST_CORRECTION` and the raw matrix is kept.
    """
    points = raw.shape[-1]
    left, values, right = np.linalg.svd(raw[0])
    seen = values >= FLOOR
    unresolved = int(points - seen.sum())
    factor = (right[seen].T / values[seen]) @ left[:, seen].T + right[~seen].T @ right[~seen]
    correction = float(np.linalg.norm(factor - np.eye(points)) / np.sqrt(points))
    if not correction <= LARGEST_CORRECTION or unresolved == points:
        warnings.warn(
            f"recalibration refused: the score sees {points - unresolved} of {points} directions "
            f"and the correction is {correction:.3g}, limit {LARGEST_CORRECTION:g}; raw response "
            "kept: train the score longer or lengthen the run",
            stacklevel=2,
        )
        return RecalibratedMatrix(raw, unresolved, correction, True)
    if unresolved:
        warnings.warn(
            f"{unresolved} of {points} directions are not seen by the score (singular value of "
            f"R(0) below {FLOOR:g}) and are left as they were",
            stacklevel=2,
        )
    return RecalibratedMatrix(raw @ factor, unresolved, correction, False)


def matrix_bytes(points: int, lags: int, *, recalibrate: bool = True) -> int:
    """Memory in bytes that `response_matrix` needs, whatever the length of the run.

    Args:
        points: places.
        lags: number of lags, max_lag + 1.
        recalibrate: the raw matrix is kept beside the recalibrated one.
    """
    return (2 if recalibrate else 1) * 8 * lags * points**2 + _WORKING_BYTES


def _mean_products(
    x: xr.DataArray,
    score: xr.DataArray,
    bounds: list[tuple[int, int, int]],
    *,
    max_lag: int,
) -> Floats:
    """Raw R `(lag, responder, kicked)`, one block of time and group of members after another."""
    members, length, points = x.shape[0], x.shape[1], int(np.prod(x.shape[2:]))
    over = (MEMBER, TIME)
    x_mean = x.mean(over, dtype=np.float64, skipna=False).values
    s_mean = score.mean(over, dtype=np.float64, skipna=False).values
    longest = max(stop_lagged - start for start, _, stop_lagged in bounds)
    group = max(1, _BLOCK_NUMBERS // (longest * points))
    sums = torch.zeros((max_lag + 1, points, points), dtype=torch.float64)
    for start, stop, stop_lagged in bounds:
        for first in range(0, members, group):
            some = slice(first, first + group)
            a = _centred(x[some, start:stop_lagged], x_mean)
            b = _centred(score[some, start:stop], s_mean)
            dtype = torch.promote_types(a.dtype, b.dtype)
            with one_thread():
                add_pooled_sums(sums, a.to(dtype), b.to(dtype), max_lag=max_lag)
    pairs = members * pair_counts(0, length, length=length, max_lag=max_lag)
    sums /= -torch.from_numpy(pairs)[:, None, None]
    return np.asarray(sums.numpy())


def _centred(block: xr.DataArray, mean: NDArray[np.float64]) -> torch.Tensor:
    """Block less the mean of each place, `(member, time, place)`, float32 stays float32."""
    values = block.values
    dtype = values.dtype if values.dtype in (np.float32, np.float64) else np.float64
    centred = np.subtract(values, mean.astype(dtype), dtype=dtype)
    return torch.from_numpy(centred.reshape(*values.shape[:2], -1))


def _check_memory(points: int, lags: int, *, recalibrate: bool, limit: int) -> None:
    """Refuse a matrix that does not fit, before anything is read."""
    needed = matrix_bytes(points, lags, recalibrate=recalibrate)
    if needed > limit:
        raise UserError(
            f"full response matrix of {points} places and {lags} lags needs "
            f"{needed / 2**30:.1f} GiB, limit {limit / 2**30:.1f} GiB; coarsen the field, "
            "lower max_lag or raise the limit"
        )
