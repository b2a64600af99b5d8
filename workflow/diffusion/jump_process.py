"""The jump diffusion as a forward process of whitened data.

It is written for y = x_s / a^(1/2) = x_0 + u / a^(1/2): data plus noise, like the Gaussian ones.
The level of y is the standard deviation of that noise,

    sigma^2 = T (1 - a) / a,    T = g + 2 rate b^2,    so a = T / (T + sigma^2)

but most of it is rare and large: with probability a^rate nothing has jumped. Of y the score is
a^(1/2) times that of x_s and G_y = G / a^(1/2); the flow is dy/ds = -G_y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workflow.diffusion.gaussian import along, log_uniform
from workflow.diffusion.jump import JumpLaw, pure_jump_target
from workflow.interfaces import Answers, Noise, UserError


@dataclass(frozen=True)
class Jump:
    """One clock for a whole snapshot, normals for each of its numbers.

    Attributes:
        rate: jumps per unit of s, a whole number.
        scale: b, in standard deviations of the data.
        gaussian: g; 0 for jumps alone, which have no score.
        sigma_min: smallest level.
        sigma_max: largest level.
    """

    rate: int
    scale: float
    gaussian: float
    sigma_min: float
    sigma_max: float

    states: ClassVar[int] = 1
    normals: ClassVar[int] = 1
    narrow: ClassVar[bool] = False

    @property
    def law(self) -> JumpLaw:
        """Of the noise of x_s."""
        return JumpLaw(self.rate, self.scale, self.gaussian)

    @property
    def heads(self) -> tuple[str, ...]:
        """The score where there is one, and G_y."""
        return ("score", "generalized_score") if self.gaussian else ("generalized_score",)

    @property
    def uniforms(self) -> int:
        """Chances and waits of the possible jumps."""
        return 2 * self.rate

    @property
    def variance(self) -> float:
        """T."""
        return self.gaussian + 2 * self.rate * self.scale**2

    def time(self, level: Tensor) -> Tensor:
        """s of a level."""
        return torch.log1p(level**2 / self.variance)

    def noise_levels(self, uniform: Tensor) -> Tensor:
        """Log-uniform between sigma_min and sigma_max."""
        return log_uniform(self.sigma_min, self.sigma_max, uniform)

    def noise(self, x: Tensor, level: Tensor, z: Tensor, uniform: Tensor | None) -> Noise:
        """x +- (W / a)^(1/2) z, targets -+ (a / W)^(1/2) z and -+ (g / 2 + ...) z / (a W)^(1/2)."""
        s = self.time(level.double())
        w = torch.zeros_like(s)
        if uniform is not None and self.rate:
            # 1 - u is in (0, 1]: a wait is finite.
            w = self.law.clock(s, 1 - uniform.T)
        grown = s.exp()
        spread = (grown * self.law.noise_variance(s, w)).sqrt()
        shift = along(spread, x).to(x.dtype) * z
        weight = self._weights(level, x)
        if not self.gaussian:
            u = shift.flatten(1).double() / grown.sqrt()[:, None]
            target = -pure_jump_target(self.law, u, s) * grown.sqrt()[:, None]
            odd = target.to(x.dtype).reshape(x.shape)
            return Noise(x, shift, odd, torch.ones_like(level), weight=weight)
        flux = along(grown * self.law.flux(s, w), x).to(x.dtype)
        odd = torch.cat([z, flux * z], dim=1)
        return Noise(x, shift, odd, spread.to(level.dtype), weight=weight)

    def inputs(self, state: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-variance input, and log(sigma) / 4 as the condition."""
        return state / along(1 + level**2, state).sqrt(), level.log() / 4

    def interpret(self, output: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """Score (F - y) / (1 + sigma^2), and G_y = T / (2 a) times such a term of its own.

        Zero output is exact for Gaussian data and noise. At large noise F is the mean of the data
        given y, up to what jumps change; it is of order one at all levels.
        """
        terms = (output - state.repeat(1, len(self.heads), *[1] * (state.ndim - 2))) / along(
            1 + level**2, state
        )
        *score, flow = terms.chunk(len(self.heads), dim=1)
        return torch.cat([*score, along(self.pull(level), state) * flow], dim=1)

    def score(self, answers: Answers, x: Tensor, level: Tensor) -> Tensor:
        """The first head."""
        if not self.gaussian:
            raise UserError(NO_SCORE)
        return answers(x, level).chunk(2, dim=1)[0]

    def generalized_score(self, answers: Answers, y: Tensor, level: Tensor) -> Tensor:
        """G_y: the last head."""
        return answers(y, level).chunk(len(self.heads), dim=1)[-1]

    def pull(self, level: Tensor) -> Tensor:
        """T / (2 a), the unit of G_y in which it is the score if there are no jumps."""
        return 0.5 * (self.variance + level**2)

    def _weights(self, level: Tensor, x: Tensor) -> Tensor:
        """Of the heads.

        Of the score 1 + sigma^2: more would drown the rest, as at large noise a jump leaves F much
        less certain than Gaussian noise does. Of G the share 1 - a that makes its rare targets
        of order one.
        """
        share = level**2 / (self.variance + level**2)  # 1 - a
        flow = share * ((1 + level**2) / self.pull(level)) ** 2
        if not self.gaussian:
            return along(flow, x)
        parts = (along(w, x) for w in (1 + level**2, flow))
        return torch.cat([w.expand(-1, x.shape[1], *w.shape[2:]) for w in parts], dim=1)


NO_SCORE = (
    "score.process.gaussian=0: jumps alone teach no ordinary score, which responses need; set "
    "score.process.gaussian: 0.5, or leave 'neural' out of response.estimators"
)
"""Why a response cannot be had from jumps alone."""
