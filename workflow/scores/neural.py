"""The learned score: a denoiser on whitened fields, which may be told of others."""

from __future__ import annotations

import copy
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
from workflow.scores.networks import NETWORKS
from workflow.scores.views import TERMS, Velocity, views_of


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
            carried=TERMS * len(self.views) * len(whitening.mean),
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
        local_views, linear = physical / each, self.network.linear
        carried = self.carried(physical) if linear is not None and linear.solved else None
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
        """What the linear map sees of the views: the advection of the fields."""
        if not self.views:
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
        other.network.linear.weight.zero_()
        other.network.linear.add(linear)
    return other.requires_grad_(False)
