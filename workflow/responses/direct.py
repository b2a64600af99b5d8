"""The truth to compare with: the response of pairs of runs that are really kicked.

Each member is cloned into two, one kicked up and one kicked down in one pixel, and both are
stepped with the same noise. Half their difference is the response of that member,

    R(lag, r) = [ x_+(p + r, lag) - x_-(p + r, lag) ] / (2 a),

free of the noise they share and of the even orders in the amplitude a.

Source: arXiv:2402.01029 (perturbed ensemble); common random numbers and antithetic kicks are the
usual variance reductions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from workflow.interfaces import State, System, UserError


def paired_response(
    system: System,
    state: State,
    *,
    normals: Callable[[int], Tensor],
    amplitude: float,
    kicked: Tensor,
    field: int = 0,
    max_lag: int,
    steps_per_lag: int = 1,
) -> Tensor:
    """Response of every field to a kick of one pixel of one field, per member.

    Only the saved field is displaced. Hidden variables of the state (phases of a forcing) are
    the same in both runs, as the noise is.

    Args:
        system: what is stepped; both signs are stepped together as one batch of 2 members.
        state: stationary states, each `(member, ...)`; not changed.
        normals: standard normals `(member, *noise_shape)` of a step counted from the kick.
        amplitude: size a of the kick, units of the kicked field; small against its spread.
        kicked: flat index of the kicked pixel of each member, `(member,)`, y-major.
        field: index of the kicked field.
        max_lag: longest lag, in saved samples.
        steps_per_lag: steps of the system per saved sample.

    Returns:
        R `(member, max_lag + 1, field, *shape)`, units of the responding over those of the
        kicked field; displacement from the kicked pixel in FFT order. Lag 0 is the identity.

    Raises:
        UserError: members that became non-finite, by index; an amplitude that is no kick.
        ValueError: a pixel, field or lag that the system does not have.
    """
    members = _members(state)
    _check_kick(system, members, amplitude, kicked, field, max_lag, steps_per_lag)
    with torch.no_grad():
        kick = _kick(system.observe(state), kicked, field, amplitude)
        up, down = system.displace(state, kick), system.displace(state, -kick)
        # One batch: half the calls, and concatenation clones what the two states share.
        pair: State = {name: torch.cat([up[name], down[name]]) for name in up}
        gather = _roll_index(kicked, tuple(system.shape)).to(kick.device)
        response = kick.new_empty((members, max_lag + 1, *kick.shape[1:]))
        for lag in range(max_lag + 1):
            for step in range((lag - 1) * steps_per_lag, lag * steps_per_lag) if lag else ():
                noise = normals(step)
                pair = system.step(pair, torch.cat([noise, noise]))
            x = system.observe(pair)
            difference = (x[:members] - x[members:]) / (2.0 * amplitude)
            _check_finite(difference, lag * steps_per_lag, amplitude)
            response[:, lag] = _rolled(difference, gather)
    return response


def _members(state: State) -> int:
    """Members of a state."""
    return next(iter(state.values())).shape[0]


def _kick(x: Tensor, kicked: Tensor, field: int, amplitude: float) -> Tensor:
    """Displacement `(member, field, *shape)` of one pixel per member."""
    kick = torch.zeros_like(x)
    flat = kick.view(*x.shape[:2], -1)
    flat[torch.arange(len(flat), device=x.device), field, kicked.to(x.device)] = amplitude
    return kick


def _roll_index(kicked: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat index of the pixel displaced by r from the kicked one, `(member, points)`."""
    index = torch.zeros(len(kicked), 1, dtype=torch.int64, device=kicked.device)
    stride = math.prod(shape)
    for n in shape:
        stride //= n
        along = (kicked[:, None] // stride + torch.arange(n, device=kicked.device)) % n
        index = (index[:, :, None] + stride * along[:, None, :]).flatten(1)
    return index


def _rolled(x: Tensor, index: Tensor) -> Tensor:
    """Fields `(member, field, *shape)` with the kicked pixel moved to index 0."""
    flat = x.flatten(2) if x.ndim > 2 else x[:, :, None]
    return flat.gather(2, index[:, None].expand_as(flat)).reshape(x.shape)


def _check_finite(difference: Tensor, step: int, amplitude: float) -> None:
    """Refuse responses of runs that blew up."""
    if torch.isfinite(difference).all():
        return
    bad = (~torch.isfinite(difference.flatten(1))).any(dim=1).nonzero().flatten().tolist()
    raise UserError(
        f"members {bad} are not finite {step} steps after a kick of {amplitude:g}; "
        "lower direct.amplitude or system.dt"
    )


def _check_kick(
    system: System,
    members: int,
    amplitude: float,
    kicked: Tensor,
    field: int,
    max_lag: int,
    steps_per_lag: int,
) -> None:
    """Refuse what cannot be kicked, before anything is stepped."""
    points = math.prod(system.shape)
    if not (math.isfinite(amplitude) and amplitude > 0.0):
        raise UserError(f"direct.amplitude={amplitude}: a kick needs a positive size")
    if not 0 <= field < len(system.fields):
        raise ValueError(f"field={field}: the system has fields 0 to {len(system.fields) - 1}")
    if max_lag < 0 or steps_per_lag < 1:
        raise ValueError(
            f"max_lag={max_lag}, steps_per_lag={steps_per_lag}: needs at least 0 and at least 1"
        )
    if kicked.shape != (members,) or kicked.is_floating_point():
        raise ValueError(
            f"kicked is {kicked.dtype} of shape {tuple(kicked.shape)}; "
            f"needs one flat pixel index for each of {members} members"
        )
    if members and not (0 <= int(kicked.min()) and int(kicked.max()) < points):
        raise ValueError(
            f"kicked pixels {int(kicked.min())} to {int(kicked.max())}; "
            f"the grid has pixels 0 to {points - 1}"
        )
