"""The learned score: a denoiser on whitened fields, which may be told of others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from workflow.config import ScoreConfig
from workflow.diffusion import build_process
from workflow.interfaces import ForwardProcess
from workflow.scores.closed_form import Gaussian, SpectralGaussian
from workflow.scores.conditional import ConditionalGaussian, Standardised, given_fields, split
from workflow.scores.covariance import SPECTRUM_FLOOR
from workflow.scores.networks import NETWORKS
from workflow.scores.views import Velocity, views_of


class WhitenedScore(nn.Module):
    """Score of whitened data noised to sigma, `(batch, field, *shape)`.

    Where the whitening has a joint Gaussian, it is that of the fields given others, which are
    never noised: `given` `(batch, given, *shape)`, in their own units.

    Attributes:
        compute: type in which the network alone computes; whitening, noise and answer keep theirs.
    """

    compute: torch.dtype | None = None
    _scale: Tensor

    def __init__(self, whitening: Gaussian, config: ScoreConfig) -> None:
        super().__init__()
        self.whitening = whitening
        # Symmetry is a property of the data: their Gaussian has it.
        self.homogeneous = isinstance(whitening, SpectralGaussian) or not whitening.shape
        self.process: ForwardProcess = build_process(config.process)
        narrow = self.process.narrow
        self.potential = getattr(whitening, "potential", None) if narrow else None
        self.views = views_of(whitening, config.network.views)
        self.network = NETWORKS[config.network.kind](
            len(whitening.mean),
            whitening.shape,
            config.network,
            homogeneous=self.homogeneous,
            states=self.process.states,
            heads=len(self.process.heads),
            linear=narrow,
            views=2 * len(self.views),
            given=given_fields(whitening),
            carried=len(self.views) * len(whitening.mean),
        )
        # Per field: fields can have units of any size.
        scale = whitening.pixel_variance.sqrt().float()
        scale = scale.reshape(-1, *[1] * len(whitening.shape))
        self.standardised = Standardised(whitening) if given_fields(whitening) else None
        self.register_buffer("_scale", scale, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, given: Tensor | None = None) -> Tensor:
        """Score at whitened, noised `x` and levels `sigma` `(batch,)` (or one for all).

        Raises:
            UserError: the process has no ordinary score.
        """
        answers = partial(self.answers, given=given)
        return self.process.score(answers, x, sigma.expand(len(x)))

    def answers(self, state: Tensor, sigma: Tensor, given: Tensor | None = None) -> Tensor:
        """What the process asks for, `(batch, head * field, *shape)`.

        Args:
            state: whitened, noised `(batch, state * field, *shape)`.
            sigma: levels `(batch,)`.
            given: of as many snapshots, or of fewer that come again in the same order.
        """
        seen, condition = self.process.inputs(state, sigma)
        scale = self._scale.to(state.dtype)
        physical = self._by_block(self.whitening.colour, seen)
        each = scale.repeat(self.process.states, *[1] * (scale.ndim - 1))
        local_views, carried = physical / each, self.carried(physical)
        if self.views:
            more_views = [self._by_block(view, physical) for view in self.views]
            local_views = torch.cat([local_views, *more_views], dim=1)
        more = None
        if given is not None and self.standardised is not None:
            given = given.repeat(len(state) // len(given), *[1] * (given.ndim - 1)).to(state.dtype)
            more = self.standardised(given)
        # Fourier transforms and dense whitenings have no place in half precision.
        with torch.autocast(state.device.type, self.compute, enabled=self.compute is not None):
            white, local = self.network(seen, local_views, condition, more, carried)
        white, local = white.to(state.dtype), local.to(state.dtype)
        if self.potential is not None:
            # In place of the Gaussian: an untrained network has the score of the potential.
            white, local = white + seen, local + self.potential(physical / scale)
        if given is not None and self.process.narrow:
            # What two Gaussians tell of each other is known and need not be learned.
            white = white + self._beyond(state, given)
        each = scale.repeat(len(self.process.heads), *[1] * (scale.ndim - 1))
        output = white + self._by_block(self.whitening.score_to_white, local / each)
        return self.process.interpret(output, state, sigma)

    def carried(self, physical: Tensor) -> Tensor | None:
        """What the linear map, if there is one, sees of the views: the advection of the fields."""
        if self.network.linear is None or not self.views:
            return None
        (view,) = self.views
        assert isinstance(view, Velocity)
        return view.advection(physical)

    def _beyond(self, x: Tensor, given: Tensor) -> Tensor:
        """What the Gaussian conditional score adds to that of the fields alone, whitened."""
        conditional = ConditionalGaussian(self.whitening)
        return self.whitening.score_to_white(conditional.beyond(self.whitening.unwhiten(x), given))

    def equalise(self, s: Tensor) -> Tensor:
        """J^(-1/2) s where noise is narrow, else s."""
        return self.whitening.equalise(s) if self.process.narrow else s

    def _by_block(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A map of the fields on each block of them in `(batch, blocks * field, *shape)`."""
        fields = len(self.whitening.mean)
        return function(x.reshape(-1, fields, *x.shape[2:])).reshape(len(x), -1, *x.shape[2:])

    def beginning(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Whitened score that training starts from, without noise, at whitened `x`."""
        start = -x
        if self.potential is not None:
            scale = self._scale.to(x.dtype)
            p = self.whitening.colour(x) / scale
            start = self.whitening.score_to_white(self.potential(p) / scale)
        return start if given is None else start + self._beyond(x, given)


@dataclass(frozen=True)
class NeuralScore:
    """The learned grad log p at the smallest noise level, on data.

    It is computed where the model is, whatever the device of the data. What it is conditioned on
    comes after the fields, `(batch, field + given, *shape)`. It is the score of the
    density smoothed by noise of covariance sigma_min^2 J^-1, J the Fisher information that the
    whitening knows: C for a Gaussian, and less where the density is narrower than C.
    """

    model: WhitenedScore

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x, from that of the whitened field."""
        return self.at(x, self.model.process.sigma_min)

    def at(self, x: Tensor, sigma: float) -> Tensor:
        """Score of the density smoothed by noise of covariance sigma^2 J^-1, at clean data."""
        whitening = self.model.whitening
        parameter = next(self.model.parameters())
        fields, given = split(whitening, x.to(parameter.device))
        white = whitening.whiten(fields).to(parameter.dtype)
        level = white.new_tensor([sigma])
        s = self.model(white, level, given)
        return whitening.score_from_white(s.to(x.dtype)).to(x.device)


def settled(model: WhitenedScore, x: Tensor) -> WhitenedScore:
    """A copy whose network adds nothing along x~ to the score it started from.

        s~ <- s~ - <(s~ - s~_0) x~^+> <x~ x~^+>^-1 x~

    s~_0, of the potential or the Gaussian, obeys the Stein identity -<s~_0 x~^+> = 1 at every
    wavenumber of all data, so s~ then does too: there score matching has its minimum in the linear
    map of the network, the rest being fixed. Training comes close; but where a mode has narrow
    wells far apart, a linear term far too small for the loss to see is a large part of the
    response. Unlike a division by the Stein matrix, this leaves alone what is right in the score,
    and only the small difference s~ - s~_0 is averaged, over few snapshots. What is given, y,
    stands beside x~ in the same system, with -<s~ y^+> = 0; so does u . grad x where the network
    sees the flow. This is most of how turbulence moves, x(t) = x - t u . grad x + ...: to first
    order in t no response is wrong any more by what the network has learned wrongly. Likewise
    <s~> = 0: s~_0 obeys it, so the mean of the difference is taken out.

    Args:
        model: with a linear map; without one, as without space, nothing changes.
        x: snapshots `(batch, field + given, *shape)`: those of training.
    """
    model = with_parameters(model, dict(model.named_parameters()))
    linear = getattr(model.network, "linear", None)
    if linear is None:
        return model
    level = linear.weight.new_tensor([model.process.sigma_min])
    wrong = squares = mean = torch.zeros((), device=level.device)
    fields, points = len(model.whitening.mean), math.prod(x.shape[2:])
    inputs = linear.weight.shape[2]
    seen = x[:: -(-len(x) // (SETTLING * (inputs // fields)))]
    with torch.no_grad():
        for part in seen.split(256):
            added, white, score, more = _on_data(model, part.to(level.device).double(), level)
            both = white if more is None else torch.cat([white, more], dim=1)
            errors = [torch.einsum("bf...,bg...->...fg", added, white.conj())]
            if more is not None:
                errors.append(torch.einsum("bf...,bg...->...fg", score, more.conj()))
            wrong = wrong + torch.cat(errors, dim=-1)
            mean = mean + added.flatten(2)[:, :, 0].real.sum(0) / math.sqrt(points)
            squares = squares + torch.einsum("bf...,bg...->...fg", both, both.conj())
        # x~ is scaled to order 1 before it is seen, twice in advection, and what is given is not.
        carried = len(model.views) * fields
        powers = [1.0] * fields + [0.5] * (inputs - fields - carried) + [1.5] * carried
        total = (1 + level.double() ** 2) ** squares.new_tensor(powers).real
        inverse = torch.linalg.inv(squares) if len(total) == fields else _inverse(squares)
        change = (-wrong @ inverse * total).movedim((-2, -1), (0, 1))
        constant = -mean / len(seen) * total[:fields].sqrt()
        linear.weight += torch.stack([change.real, change.imag]).to(linear.weight)
        bias = model.network.get_parameter("leave.conv.bias")
        bias[:fields] += constant.to(bias)
    return model


def _on_data(
    model: WhitenedScore, x: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Modes of s~ - s~_0, x~, s~ and of what the map sees beside x~, of float64 snapshots."""
    axes = tuple(range(2, x.ndim))
    fields, given = split(model.whitening, x)
    white, told = model.whitening.whiten(fields), list[Tensor]()
    if given is not None and model.standardised is not None:
        told.append(model.standardised(given))
        given = given.to(level.dtype)
    carried = model.carried(model.whitening.colour(white))
    told += [] if carried is None else [carried]
    more = torch.fft.rfftn(torch.cat(told, dim=1), dim=axes, norm="ortho") if told else None
    score = model(white.to(level.dtype), level, given)
    added = score - model.beginning(white.to(level.dtype), given)
    modes = (torch.fft.rfftn(v.double(), dim=axes, norm="ortho") for v in (added, white, score))
    return next(modes), next(modes), next(modes), more


def _inverse(squares: Tensor) -> Tensor:
    """Of products of modes `(..., n, n)`, but for what never varies or follows from the others.

    In units of their spread, so that what rounding leaves of a still mode stays small.
    """
    power = squares.diagonal(dim1=-2, dim2=-1).real
    largest = power.flatten(0, -2).max(0).values
    scale = power.clamp(min=SPECTRUM_FLOOR).maximum(SPECTRUM_FLOOR * largest).sqrt()
    both = scale[..., :, None] * scale[..., None, :]
    return torch.linalg.pinv(squares / both, rtol=DEPENDENT, hermitian=True) / both


DEPENDENT = 1e-6
"""Share of the variance of standardised modes below which one follows from the others."""


SETTLING = 8192
"""Most snapshots that settle the linear map for each of its inputs, evenly chosen."""


def with_parameters(
    model: WhitenedScore, parameters: Mapping[str, Tensor], *, linear: Tensor | None = None
) -> WhitenedScore:
    """A copy of the model with other parameters, computing in full precision.

    Args:
        model: what is copied.
        parameters: by name.
        linear: weights of the map that `settled` solves for; those of the model by default.
    """
    # The whitening never changes and may be large.
    other = copy.deepcopy(model, {id(model.whitening): model.whitening})
    other.compute = None
    other.load_state_dict(dict(parameters))
    if linear is not None and other.network.linear is not None:
        other.network.linear.weight.copy_(linear)
    return other.requires_grad_(False)
