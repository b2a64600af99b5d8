"""Networks of the learned score; each sees a field as it is and whitened, and answers likewise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workflow.config import NetworkConfig
from workflow.scores.layers import PeriodicConv, ResidualBlock, SpectralLinear


class LocalNetwork(nn.Module):
    """Small local network that sees each field twice: as it is, and whitened.

    The score of an SPDE with a local nonlinearity is a local function of the field plus a
    spectral operator on it; whitening alone hides the locality. So both views enter and both
    kinds of answers leave: `(whitened answer, physical answer)`, added by the caller as
    `out_1 + C^(1/2) out_2`. On a homogeneous field a linear map per wavenumber, which `settled`
    solves for after training, takes what is linear and not local. The last layer starts at zero:
    an untrained network answers zero.

    On an inhomogeneous field each place has a learned bias of its own, zero at the start, and the
    network is no longer shift equivariant. Without space it is a residual multilayer perceptron.

    Args:
        fields: of the data.
        shape: of space.
        config: size.
        homogeneous: whether the statistics do not depend on the place.
        states: fields it sees for each field of the data.
        heads: fields it answers for each field of the data.
        linear: whether there is a linear map, one for all noise levels.
        views: fields that are seen beside each physical one.
        given: fields it is told of beside those of the data.
        carried: fields that only the linear map sees.
    """

    def __init__(
        self,
        fields: int,
        shape: tuple[int, ...],
        config: NetworkConfig,
        *,
        homogeneous: bool,
        states: int = 1,
        heads: int = 1,
        linear: bool = True,
        views: int = 0,
        given: int = 0,
        carried: int = 0,
    ) -> None:
        super().__init__()
        self.answers, dim, channels = fields * heads, len(shape), config.channels
        self.enter = PeriodicConv((2 + views) * fields * states + given, channels, dim)
        places = None if homogeneous else nn.Parameter(torch.zeros(channels, *shape))
        self.register_parameter("places", places)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, dim) for _ in range(config.residual_blocks)
        )
        self.leave = PeriodicConv(channels, 2 * self.answers, dim)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        solved = linear and homogeneous and bool(shape)
        inputs = fields + given + carried
        self.linear = SpectralLinear(inputs, fields, shape) if solved else None

    def forward(
        self,
        whitened: Tensor,
        physical: Tensor,
        condition: Tensor,
        given: Tensor | None = None,
        carried: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Two answers `(batch, head * field, *shape)` from two views and a condition `(batch,)`.

        The physical view has its further views behind it. `given` `(batch, given, *shape)` is in
        standard deviations.
        """
        more = [] if given is None else [given]
        h = self.enter(_laid_out(torch.cat([whitened, physical, *more], dim=1)))
        if self.places is not None:
            h = h + self.places
        for block in self.blocks:
            h = block(h, condition)
        # Fourier transforms have no half precision.
        out = self.leave(nn.functional.silu(h)).to(whitened.dtype).contiguous()
        white, local = out.split(self.answers, dim=1)
        if self.linear is not None and self.linear.solved:
            if carried is not None:
                more.append(carried)
            # A concatenation of one is a copy.
            seen = torch.cat([whitened, *more], dim=1) if more else whitened
            white = white + self.linear(seen)
        return white, local


def _laid_out(x: Tensor) -> Tensor:
    """Channels last where tensor cores convolve half precision: else each convolution copies."""
    if x.ndim == 4 and x.is_cuda and torch.is_autocast_enabled("cuda"):
        return x.contiguous(memory_format=torch.channels_last)
    return x


NETWORKS = {"local": LocalNetwork}
