"""Networks of the learned score; each sees a field as it is and whitened, and answers likewise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workflow.config import NetworkConfig
from workflow.scores.layers import (
    PeriodicConv,
    Pointwise,
    ResidualBlock,
    SpectralLinear,
    refined,
    restricted,
)
from workflow.scores.unet import UNet


class LocalNetwork(nn.Module):
    """Small network that sees each field twice: as it is, and whitened.

    The score of an SPDE with a local nonlinearity is a local function of the field plus a
    spectral operator on it; whitening alone hides the locality. So both views enter and both
    kinds of answers leave: `(whitened answer, physical answer)`, added by the caller as
    `out_1 + C^(1/2) out_2`. On a homogeneous field the nonlinear part computes on twice the points
    and its answer is truncated, as a dealiased equation does: products of short waves otherwise
    come back as long ones. A linear map per wavenumber takes what is linear and not local.

    The last layers start at zero: an untrained network answers zero.

    On an inhomogeneous field each place has a learned bias of its own, zero at the start, and the
    network is no longer shift equivariant. Without space it is a residual multilayer perceptron.
    """

    def __init__(
        self, fields: int, shape: tuple[int, ...], config: NetworkConfig, *, homogeneous: bool
    ) -> None:
        super().__init__()
        self.fields, dim = fields, len(shape)
        spectral = homogeneous and dim > 0
        self.fine = config.oversample == 2 and spectral
        kind, channels = PeriodicConv if config.kernel == 3 else Pointwise, config.channels
        self.enter = kind(2 * fields, channels, dim)
        places = None if homogeneous else nn.Parameter(torch.zeros(channels, *shape))
        self.register_parameter("places", places)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, dim, kind) for _ in range(config.residual_blocks)
        )
        self.leave = kind(channels, 2 * fields, dim)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.linear = SpectralLinear(fields, shape) if spectral else None

    def forward(
        self, whitened: Tensor, physical: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two answers `(batch, field, *shape)` from two views and a condition `(batch,)`."""
        seen = torch.cat([whitened, physical], dim=1)
        h = self.enter(refined(seen) if self.fine else seen)
        if self.places is not None:
            h = h + self.places
        for block in self.blocks:
            h = block(h, condition)
        # Fourier transforms have no half precision.
        out = self.leave(nn.functional.silu(h)).to(whitened.dtype)
        white, local = (restricted(out) if self.fine else out).split(self.fields, dim=1)
        return white if self.linear is None else white + self.linear(whitened), local


NETWORKS = {"local": LocalNetwork, "unet": UNet}
