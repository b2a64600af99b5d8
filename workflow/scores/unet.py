"""A periodic U-Net: what the literature uses, for scores without a local formula."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workflow.config import NetworkConfig
from workflow.interfaces import UserError
from workflow.scores.layers import PeriodicConv, ResidualBlock, SpectralLinear

LEVELS = 3
"""Grids, each half as fine as the one before and with twice the channels."""


class UNet(nn.Module):
    """Residual blocks on three grids with skips; sees and answers as `LocalNetwork` does.

    Its strides make it equivariant under shifts by 4 points only: random rolls of the samples
    teach it the rest.

    Raises:
        UserError: a field without space, or a grid that cannot be halved twice.
    """

    def __init__(
        self, fields: int, shape: tuple[int, ...], config: NetworkConfig, *, homogeneous: bool
    ) -> None:
        super().__init__()
        stride = 2 ** (LEVELS - 1)
        if not shape or any(n % stride for n in shape):
            raise UserError(
                f"score.network.kind=unet on {' x '.join(map(str, shape)) or 'no space'}"
                f": needs multiples of {stride} points along every axis; use kind: local"
            )
        self.fields, dim = fields, len(shape)
        widths = [config.channels * 2**level for level in range(LEVELS)]

        def blocks(channels: int) -> nn.ModuleList:
            count = config.residual_blocks
            return nn.ModuleList(ResidualBlock(channels, dim, PeriodicConv) for _ in range(count))

        self.enter = PeriodicConv(2 * fields, widths[0], dim)
        places = None if homogeneous else nn.Parameter(torch.zeros(widths[0], *shape))
        self.register_parameter("places", places)
        self.down = nn.ModuleList(blocks(width) for width in widths)
        self.wider = nn.ModuleList(
            PeriodicConv(a, b, dim) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.narrower = nn.ModuleList(
            PeriodicConv(a + b, a, dim) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.up = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.leave = PeriodicConv(widths[0], 2 * fields, dim)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.linear = SpectralLinear(fields, shape) if homogeneous else None
        self._pool = nn.functional.avg_pool1d if dim == 1 else nn.functional.avg_pool2d

    def forward(
        self, whitened: Tensor, physical: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two answers `(batch, field, *shape)` from two views and a condition `(batch,)`."""
        h = self.enter(torch.cat([whitened, physical], dim=1))
        if self.places is not None:
            h = h + self.places
        skips = []
        for level, blocks in enumerate(self.down):
            if level:
                h = self.wider[level - 1](self._pool(h, 2))
            for block in blocks:
                h = block(h, condition)
            skips.append(h)
        for level in reversed(range(LEVELS - 1)):
            h = nn.functional.interpolate(h, scale_factor=2.0)
            h = self.narrower[level](torch.cat([skips[level], h], dim=1))
            for block in self.up[level]:
                h = block(h, condition)
        out = self.leave(nn.functional.silu(h)).to(whitened.dtype)
        white, local = out.split(self.fields, dim=1)
        return white if self.linear is None else white + self.linear(whitened), local
