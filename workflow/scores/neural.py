"""The learned score: a denoiser on whitened fields."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workflow.config import ScoreConfig
from workflow.diffusion import build_process
from workflow.interfaces import ForwardProcess
from workflow.scores.closed_form import Gaussian, SpectralGaussian
from workflow.scores.networks import NETWORKS


class WhitenedScore(nn.Module):
    """Score of whitened data noised to sigma, `(batch, field, *shape)`.

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
        self.network = NETWORKS[config.network.kind](
            len(whitening.mean),
            whitening.shape,
            config.network,
            homogeneous=self.homogeneous,
            states=self.process.states,
            heads=len(self.process.heads),
            linear=narrow,
        )
        # Per field: fields can have units of any size.
        scale = whitening.pixel_variance.sqrt().float()
        scale = scale.reshape(-1, *[1] * len(whitening.shape))
        self.register_buffer("_scale", scale, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Score at whitened, noised `x` and levels `sigma` `(batch,)` (or one for all).

        Raises:
            UserError: the process has no ordinary score.
        """
        return self.process.score(self.answers, x, sigma.expand(len(x)))

    def answers(self, state: Tensor, sigma: Tensor) -> Tensor:
        """What the process asks for, `(batch, head * field, *shape)`.

        Args:
            state: whitened, noised `(batch, state * field, *shape)`.
            sigma: levels `(batch,)`.
        """
        seen, condition = self.process.inputs(state, sigma)
        scale = self._scale.to(state.dtype)
        physical = self._by_block(self.whitening.colour, seen)
        each = scale.repeat(self.process.states, *[1] * (scale.ndim - 1))
        # Fourier transforms and dense whitenings have no place in half precision.
        with torch.autocast(state.device.type, self.compute, enabled=self.compute is not None):
            white, local = self.network(seen, physical / each, condition)
        white, local = white.to(state.dtype), local.to(state.dtype)
        if self.potential is not None:
            # In place of the Gaussian: an untrained network has the score of the potential.
            white, local = white + seen, local + self.potential(physical / scale)
        each = scale.repeat(len(self.process.heads), *[1] * (scale.ndim - 1))
        output = white + self._by_block(self.whitening.score_to_white, local / each)
        return self.process.interpret(output, state, sigma)

    def equalise(self, s: Tensor) -> Tensor:
        """J^(-1/2) s where noise and score follow the local potential, else s."""
        return self.whitening.equalise(s) if self.process.narrow else s

    def _by_block(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A map of the fields on each block of them in `(batch, blocks * field, *shape)`."""
        fields = len(self.whitening.mean)
        return function(x.reshape(-1, fields, *x.shape[2:])).reshape(x.shape)

    def beginning(self, x: Tensor) -> Tensor:
        """Whitened score that training starts from, without noise, at whitened `x`."""
        if self.potential is None:
            return -x
        scale = self._scale.to(x.dtype)
        p = self.whitening.colour(x) / scale
        return self.whitening.score_to_white(self.potential(p) / scale)


@dataclass(frozen=True)
class NeuralScore:
    """The learned grad log p at the smallest noise level, on data.

    It is computed where the model is, whatever the device of the data. It is the score of the
    density smoothed by noise of covariance sigma_min^2 J^-1, J the Fisher information of the score
    that training starts from: C for a Gaussian, and less where wells are narrower than C.
    """

    model: WhitenedScore

    def __call__(self, x: Tensor) -> Tensor:
        """Score `(batch, field, *shape)`, 1 / units of x, from that of the whitened field."""
        return self.at(x, self.model.process.sigma_min)

    def at(self, x: Tensor, sigma: float) -> Tensor:
        """Score of the density smoothed by noise of covariance sigma^2 J^-1, at clean data."""
        whitening = self.model.whitening
        parameter = next(self.model.parameters())
        white = whitening.whiten(x.to(parameter.device)).to(parameter.dtype)
        level = white.new_tensor([sigma])
        return whitening.score_from_white(self.model(white, level).to(x.dtype)).to(x.device)


def settled(model: WhitenedScore, x: Tensor) -> WhitenedScore:
    """A copy whose network adds nothing along x~ to the score it started from.

        s~ <- s~ - <(s~ - s~_0) x~^+> <x~ x~^+>^-1 x~

    s~_0, of the potential or the Gaussian, obeys the Stein identity -<s~_0 x~^+> = 1 at every
    wavenumber of all data, so s~ then does too: there score matching has its minimum in the linear
    map of the network, the rest being fixed. Training comes close; but where a mode has narrow
    wells far apart, a linear term far too small for the loss to see is a large part of the
    response. Unlike a division by the Stein matrix, this leaves alone what is right in the score,
    and only the small difference s~ - s~_0 is averaged, over few snapshots.

    Args:
        model: with a linear map; without one, as without space, nothing changes.
        x: snapshots `(batch, field, *shape)`: those of training.
    """
    model = with_parameters(model, dict(model.named_parameters()))
    linear = getattr(model.network, "linear", None)
    if linear is None:
        return model
    axes, level = tuple(range(2, x.ndim)), linear.weight.new_tensor([model.process.sigma_min])
    products = torch.zeros((), device=level.device)
    with torch.no_grad():
        for part in x[:: -(-len(x) // SETTLING)].split(256):
            white = model.whitening.whiten(part.to(level.device).double())
            score = model(white.to(level.dtype), level)
            added = score - model.beginning(white.to(level.dtype))
            modes = [torch.fft.rfftn(v.double(), dim=axes, norm="ortho") for v in (added, white)]
            both = torch.stack(modes)
            products = products + torch.einsum("vbf...,bg...->v...fg", both, modes[1].conj())
        change = -products[0] @ torch.linalg.inv(products[1]) * (1 + level.double() ** 2)
        change = change.movedim((-2, -1), (0, 1))
        linear.weight += torch.stack([change.real, change.imag]).to(linear.weight)
    return model


SETTLING = 8192
"""Most snapshots that settle the linear map, evenly chosen."""


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
