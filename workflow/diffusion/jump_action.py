"""The action of a generalized score: what it costs, in nats, to take jumps off with it.

`jump_samplers.reverse` with eta = 1 takes noise and jumps off by any field S in place of G_y:

    dy = 2 S dr + a^(-1/2) (g^(1/2) dB + jumps at their rate),    r = -s

Two of them, with S and with G_y, differ in their drift alone. Jumps of one law cancel in the ratio
of the two laws of paths, so Girsanov's theorem leaves the Gaussian part of the difference:

    KL(S) = int ds (2 a / g) E|S - G_y|^2 = (T / g) int d(sigma^2) / 2 E|H - H*|^2

H is S in units of T / (2 a), the flow score: without jumps it is the score, T = g, and this is the
excess of the action in `action`. The process with G_y has the marginals of the noised data, so

    KL(p at t_min || samples) <= KL(S) + KL(p at t_max || prior)

and for another eta KL(S) is (1 + eta)^2 / (4 eta) times as much. As a functional of H alone,

    A[H] = (T / g) int d(sigma^2) / 2 E[|H|^2 + 2 g / T div H(y) + 2 (1 - g / T) div H(y + J)],
    A[H] - A[H*] = KL(S)

with J one more jump: implicit score matching, part of it at the place where a jump would lead.

It needs g > 0: without Gaussian noise paths of two drifts have nothing in common. It is of what
the sampler does, which is no reversal in time: with jumps and S off G_y the inequality is strict.
The true reversal jumps at rate q(x - y) p(y) / p(x), of which G says nothing: its path KL from the
sampler does not vanish at the exact G. Nor is there an ELBO, a bound for each datum: made of the
paths of the noise it would be best for g / 2 grad log p and not for G.

Source: Girsanov's theorem for processes with jumps (Applebaum 2009, chapter 5); Premkumar 2023
(arXiv:2310.04490) without jumps; Baule (arXiv:2503.06558) for the reverse process.
"""

from __future__ import annotations

from torch import Tensor

from workflow.diffusion.action import Exploding, Nodes, ScoreAt, control_cost, divergence
from workflow.diffusion.clock import Clocks
from workflow.diffusion.gaussian import along
from workflow.diffusion.jump_process import Jump
from workflow.interfaces import Answers, UserError


def schedule(process: Jump) -> Exploding:
    """Levels as times: H takes the place of the score of this noise."""
    return Exploding(process.sigma_min, process.sigma_max)


def worth(process: Jump) -> float:
    """T / g: nats of an error of H over those of an error of the score without jumps.

    Raises:
        UserError: jumps alone.
    """
    if not process.gaussian:
        raise UserError(
            "score.process.gaussian=0: the paths of jumps alone have no finite KL; set "
            "score.process.gaussian: 0.5"
        )
    return process.variance / process.gaussian


def flow_score(process: Jump, answers: Answers) -> ScoreAt:
    """H(y, level) of what a network answers."""

    def score(y: Tensor, level: Tensor) -> Tensor:
        every = level.to(y).expand(len(y))
        return process.generalized_score(answers, y, every) / along(process.pull(every), y)

    return score


def asked(
    process: Jump, x: Tensor, z: Tensor, uniform: Tensor | None, level: Tensor
) -> tuple[Tensor, Tensor]:
    """Noise added to data, and minus what H is asked for there: both change sign together.

    Args:
        process: the noise.
        x: data `(batch, ...)`.
        z: standard normals like x.
        uniform: in [0, 1), `(batch, process.uniforms)` float64; None for rate 0.
        level: `()`.
    """
    levels = level.to(x).expand(len(x))
    noise = process.noise(x, levels, z, uniform)
    odd = noise.odd.chunk(len(process.heads), dim=1)[-1]
    return noise.shift, odd / along(noise.scale * process.pull(levels), x)


def lagrangian(
    flow: ScoreAt,
    y: Tensor,
    after: Tensor,
    level: Tensor,
    process: Jump,
    *,
    probes: Tensor | None = None,
) -> Tensor:
    """Integrand of A[H] by the level, at noised states, `(batch,)`.

    Args:
        flow: H.
        y: states `(batch, ...)`.
        after: the same after one more jump of (2 b^2 E / a)^(1/2) Z.
        level: `()`.
        process: the noise.
        probes: as in `action.divergence`.
    """
    still = process.gaussian / process.variance
    s, div = divergence(lambda v: flow(v, level), y, probes=probes)
    more = divergence(lambda v: flow(v, level), after, probes=probes)[1]
    pace = worth(process) * level.to(s)
    return pace * (s.square().flatten(1).sum(1) + 2 * (still * div + (1 - still) * more))


def denoising_lagrangian(
    flow: ScoreAt, x: Tensor, z: Tensor, uniform: Tensor, level: Tensor, process: Jump
) -> Tensor:
    """The same in the mean over the noise, without a divergence: both signs, averaged, `(batch,)`.

    Arguments as `asked`, and H.
    """
    shift, odd = asked(process, x, z, uniform, level)
    plus, minus = flow(x + shift, level), flow(x - shift, level)
    squares = 0.5 * (plus.square() + minus.square())
    terms = squares + odd * (plus - minus)
    return worth(process) * level.to(x) * terms.flatten(1).sum(1)


def path_kl(
    flow: ScoreAt,
    exact: ScoreAt,
    x: Tensor,
    z: Tensor,
    uniform: Tensor,
    process: Jump,
    nodes: Nodes,
) -> Tensor:
    """Path KL of H from the exact one, contributions `(node, batch)` in nats.

    Args:
        flow: H.
        exact: H*, as of `clock` or `lattice`.
        x: data `(batch, ...)`.
        z: standard normals `(node, batch, ...)`.
        uniform: in [0, 1), `(node, batch, process.uniforms)` float64.
        process: the noise.
        nodes: of the integral over the level, such as `action.noise_nodes` of `schedule`.
    """
    draws = iter(zip(z, uniform, strict=True))

    def cost(level: Tensor) -> Tensor:
        y = x + asked(process, x, *next(draws), level)[0]
        difference = flow(y, level) - exact(y, level)
        return worth(process) * control_cost(difference, level, schedule(process))

    return nodes.integrate(cost)


def path_kl_gain(
    flow: ScoreAt,
    other: ScoreAt,
    x: Tensor,
    z: Tensor,
    uniform: Tensor,
    process: Jump,
    nodes: Nodes,
) -> Tensor:
    """Path KL of another H' less that of H, without knowing the exact one, `(node, batch)`.

    Arguments as `path_kl`.
    """
    draws = iter(zip(z, uniform, strict=True))

    def gain(level: Tensor) -> Tensor:
        noise = next(draws)
        values = (denoising_lagrangian(h, x, *noise, level, process) for h in (other, flow))
        return next(values) - next(values)

    return nodes.integrate(gain)


def prior_log_density(process: Jump, y: Tensor) -> Tensor:
    """log pi at states of the largest level, `(batch,)` nats: Gaussian data, noise and jumps.

    With it `likelihood.log_density` of H and `schedule` is that of the probability flow.
    """
    clocks = Clocks.of(process, process.sigma_max, numbers=y[0].numel())
    return clocks.gaussian_log_density(y)


def prior_mismatch(x: Tensor, process: Jump) -> Tensor:
    """Bound of KL(p at t_max || pi), mean over x, `(batch,)` nats.

    By convexity, over the data and the clock: given both, the noise is normal.
    """
    clocks = Clocks.of(process, process.sigma_max, numbers=x[0].numel())
    chance = clocks.log_share.exp()
    total = 1 + clocks.variance
    ratio = clocks.variance / total
    spent = float((chance * (ratio - 1 - ratio.log())).sum())
    square = x.double().square().flatten(1).sum(1)
    return 0.5 * (float((chance / total).sum()) * square + x[0].numel() * spent)
