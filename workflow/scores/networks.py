"""Networks on periodic fields and on plain vectors, no normalisation across the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PeriodicConv(nn.Module):
    """3-point (or 3 x 3) convolution with periodic padding; without space, a linear layer."""

    def __init__(self, inputs: int, outputs: int, dim: int) -> None:
        super().__init__()
        if dim == 0:
            self.conv: nn.Module = nn.Linear(inputs, outputs)
        else:
            self.conv = (nn.Conv1d if dim == 1 else nn.Conv2d)(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, inputs, *shape)` -> `(batch, outputs, *shape)`."""
        if x.ndim == 2:
            answer: Tensor = self.conv(x)
            return answer
        # Slices and concatenation: faster than circular padding (a quarter of the training time).
        x = torch.cat([x[..., -1:], x, x[..., :1]], dim=-1)
        if x.ndim == 4:
            x = torch.cat([x[..., -1:, :], x, x[..., :1, :]], dim=-2)
        convolved: Tensor = self.conv(x)
        return convolved


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)) + bias of the noise level))."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.first = PeriodicConv(channels, channels, dim)
        self.second = PeriodicConv(channels, channels, dim)
        self.condition = nn.Linear(1, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(batch, channels, *shape)` and `(batch,)`."""
        bias = self.condition(condition[:, None])
        h = self.first(nn.functional.silu(x)) + bias.reshape(*bias.shape, *[1] * (x.ndim - 2))
        return x + self.second(nn.functional.silu(h))


class LocalNetwork(nn.Module):
    """Small local network that sees each field twice: as it is, and whitened.

    The score of an SPDE with a local nonlinearity is a local function of the field plus a
    spectral operator on it; whitening alone hides the locality. So both views enter and both
    kinds of answers leave: `(whitened answer, physical answer)`, added by the caller as
    `out_1 + C^(1/2) out_2`. The last layer starts at zero: an untrained network answers zero.

    On an inhomogeneous field each place has a learned bias of its own, zero at the start, and the
    network is no longer shift equivariant. Without space it is a residual multilayer perceptron.
    """

    def __init__(
        self,
        fields: int,
        shape: tuple[int, ...],
        *,
        channels: int,
        residual_blocks: int,
        homogeneous: bool = True,
    ) -> None:
        super().__init__()
        self.fields, dim = fields, len(shape)
        self.enter = PeriodicConv(2 * fields, channels, dim)
        places = None if homogeneous else nn.Parameter(torch.zeros(channels, *shape))
        self.register_parameter("places", places)
        self.blocks = nn.ModuleList(ResidualBlock(channels, dim) for _ in range(residual_blocks))
        self.leave = PeriodicConv(channels, 2 * fields, dim)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, whitened: Tensor, physical: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two answers `(batch, field, *shape)` from two views and a condition `(batch,)`."""
        h = self.enter(torch.cat([whitened, physical], dim=1))
        if self.places is not None:
            h = h + self.places
        for block in self.blocks:
            h = block(h, condition)
        out = self.leave(nn.functional.silu(h))
        return out[:, : self.fields], out[:, self.fields :]


NETWORKS = {"local": LocalNetwork}
