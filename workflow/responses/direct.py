"""The truth to compare with: the response of pairs of runs that are really kicked.

Each member is cloned into two, one displaced by a u(x) and one by -a u(x), and both are stepped
with the same noise. Half their difference is the response of that member,

    R(lag) = [ A(x_+(lag)) - A(x_-(lag)) ] / (2 a),

free of the noise they share and of the even orders in the amplitude a.

Source: arXiv:2402.01029 (perturbed ensemble); common random numbers and antithetic kicks are the
usual variance reductions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workflow.interfaces import State, Stepper, System, UserError

Observe = Callable[[Tensor], Sequence[Tensor]]
"""From fields `(member, field, *shape)` to arrays `(member, ...)`."""


class BlownUp(UserError):
    """Some members of a batch became non-finite.

    Attributes:
        members: their places in the batch.
    """

    def __init__(self, message: str, members: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.members = list(members)


def paired_response(
    system: System,
    state: State,
    *,
    begin: Callable[[State], Stepper],
    displacement: Tensor,
    amplitude: float,
    observe: Observe,
    max_lag: int,
    steps_per_lag: int = 1,
) -> list[Tensor]:
    """Response of observables to a displacement of the saved fields, per member.

        R(lag) = [ A(x_+(lag)) - A(x_-(lag)) ] / (2 a),    x_+-(0) = x +- a u

    Only the saved fields are displaced. Hidden variables of the state (phases of a forcing) are
    the same in both runs, as the noise is.

    Args:
        system: what is stepped; both signs are stepped together as one batch of 2 members.
        state: stationary states, each `(member, ...)`; not changed.
        begin: puts a state of 2 members on its way, the second half with the noise of the first;
            steps are counted from the kick.
        displacement: u `(member, field, *shape)`.
        amplitude: size a of the kick, units of the field over those of u.
        observe: the observables.
        max_lag: longest lag, in saved samples.
        steps_per_lag: steps of the system per saved sample.

    Returns:
        For each array of `observe`, R `(member, max_lag + 1, ...)`.

    Raises:
        BlownUp: members that became non-finite, by index.
        UserError: an amplitude that is no kick.
        ValueError: a displacement or a lag that the system does not have.
    """
    members = _members(state)
    _check_kick(system, members, amplitude, displacement, max_lag, steps_per_lag)
    with torch.no_grad():
        kick = amplitude * displacement
        up, down = system.displace(state, kick), system.displace(state, -kick)
        # One batch: half the calls, and concatenation clones what the two states share.
        pair = begin({name: torch.cat([up[name], down[name]]) for name in up})
        lags: list[list[Tensor]] = []
        for lag in range(max_lag + 1):
            if lag:
                pair.advance((lag - 1) * steps_per_lag, steps_per_lag)
            x = pair.observe()
            _check_finite(x, members, lag * steps_per_lag, amplitude)
            plus, minus = observe(x[:members]), observe(x[members:])
            lags.append([(a - b) / (2 * amplitude) for a, b in zip(plus, minus, strict=True)])
    return [torch.stack(values, dim=1) for values in zip(*lags, strict=True)]


def moved_to(pattern: Tensor, kicked: Tensor) -> Tensor:
    """A pattern `(field, *shape)` with its index 0 moved to a place of each member.

    Args:
        pattern: direction.
        kicked: flat index of the place of each member, `(member,)`, y-major.

    Returns:
        `(member, field, *shape)`.
    """
    shape = pattern.shape[1:]
    index = _roll_index(kicked, tuple(shape))
    flat = pattern.reshape(len(pattern), -1)
    copies = flat.expand(len(kicked), *flat.shape)
    moved = torch.zeros_like(copies)
    moved.scatter_(2, index[:, None].expand_as(copies), copies)
    return moved.reshape(len(kicked), *pattern.shape)


def seen_from(x: Tensor, kicked: Tensor) -> Tensor:
    """Fields `(member, channel, *shape)` with a place of each member moved to index 0."""
    index = _roll_index(kicked, tuple(x.shape[2:]))
    flat = x.flatten(2) if x.ndim > 2 else x[:, :, None]
    return flat.gather(2, index[:, None].expand_as(flat)).reshape(x.shape)


def mean_everywhere(x: Tensor) -> Tensor:
    """Fields `(member, channel, *shape)` with their space mean at every place."""
    return x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2)).expand_as(x)


def _members(state: State) -> int:
    """Members of a state."""
    return next(iter(state.values())).shape[0]


def _roll_index(kicked: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat index of the pixel displaced by r from the kicked one, `(member, points)`."""
    index = torch.zeros(len(kicked), 1, dtype=torch.int64, device=kicked.device)
    stride = math.prod(shape)
    for n in shape:
        stride //= n
        along = (kicked[:, None] // stride + torch.arange(n, device=kicked.device)) % n
        index = (index[:, :, None] + stride * along[:, None, :]).flatten(1)
    return index


def _check_finite(x: Tensor, members: int, step: int, amplitude: float) -> None:
    """Refuse responses of runs that blew up."""
    if torch.isfinite(x).all():
        return
    bad = (~torch.isfinite(x.flatten(1))).any(dim=1).nonzero().flatten() % members
    named = sorted(set(bad.tolist()))
    raise BlownUp(
        f"members {named} are not finite {step} steps after a kick of {amplitude:g}; "
        "lower direct.amplitude or system.dt",
        named,
    )


def _check_kick(
    system: System,
    members: int,
    amplitude: float,
    displacement: Tensor,
    max_lag: int,
    steps_per_lag: int,
) -> None:
    """Refuse what cannot be kicked, before anything is stepped."""
    if not (math.isfinite(amplitude) and amplitude > 0.0):
        raise UserError(f"direct.amplitude={amplitude}: a kick needs a positive size")
    if max_lag < 0 or steps_per_lag < 1:
        raise ValueError(
            f"max_lag={max_lag}, steps_per_lag={steps_per_lag}: needs at least 0 and at least 1"
        )
    needed = (members, len(system.fields), *system.shape)
    if tuple(displacement.shape) != needed or not bool(torch.isfinite(displacement).all()):
        raise ValueError(
            f"displacement of shape {tuple(displacement.shape)}; needs finite numbers {needed}"
        )
