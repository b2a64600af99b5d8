"""Changed parameters as perturbations: of the drift, of the noise, or of both.

A changed parameter of the drift is the direction u = dF/dtheta. A changed parameter of the noise
acts like a drift that knows the score,

    u = -(div D' + D' s) / 2,    B = -div u - u . s,    D' = dD/dbeta,

so it needs the gradient of the score, and the score as a function.

Source: arXiv:2509.19660, equations 18 and 24 to 26.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from workflow.interfaces import HasDrift, UserError
from workflow.responses.directions import Direction, conjugate
from workflow.responses.divergence import (
    Seed,
    VectorField,
    connected,
    differentiable,
    probe_signs,
    sum_components,
    trace,
    unit_vectors,
)

RELATIVE_STEP = 1e-3
"""Step of the parameter derivative, relative to the parameter (absolute where that is zero).

Taken in float64: truncation of order 1e-6, none where F or D is linear or quadratic in it; rounding
of order 1e-13 times the part of F that the parameter does not move.
"""


def drift_change(system: Any, parameter: str, *, step: float = RELATIVE_STEP) -> Direction:
    """u(x) = dF/dtheta, the direction of a changed parameter of the drift.

        u = (F(x; theta + h) - F(x; theta - h)) / (2 h),    h = step |theta|, or step at zero

    Second order in h, exact for parameters in which F is linear.

    Args:
        system: anything with `drift`, `noise_covariance` and parameters of a pydantic model or a
            dataclass.
        parameter: its name.
        step: relative step.

    Returns:
        u in units of x / (time * units of theta).

    Raises:
        UserError: a system that does not tell its drift, an unknown parameter or one that is no
            real number, or one that the drift does not contain.
    """
    _check_parameter(system, parameter)
    direction = Direction(_Difference(system, parameter, step).drift)
    if not _moves_drift(direction, system):
        others = (
            f"so u = 0; ask for the noise perturbation of {parameter} instead"
            if _moves_noise(system, parameter, step)
            else f"nor of its noise; numeric parameters: {', '.join(numeric_parameters(system))}"
        )
        raise UserError(f"{parameter} is no part of the drift of {_name(system)}, {others}")
    return direction


@dataclass(frozen=True)
class NoiseChange:
    """A changed parameter beta of the noise, D -> D + epsilon D'(x) with D' = dD/dbeta.

        B = (div div D' + 2 (div D') . s + tr(D' grad s) + s . D' s) / 2

    which is -div u - u . s for u = -(div D' + D' s) / 2. Derivatives of D' and s are taken by
    automatic differentiation; for additive noise the first two terms vanish.

    Attributes:
        system: see `drift_change`.
        parameter: name of beta.
        step: relative step of the central difference for D'.
    """

    system: Any
    parameter: str
    step: float = RELATIVE_STEP

    def covariance(self, x: Tensor, v: Tensor) -> Tensor:
        """D'(x) v, `(batch, field, *shape)`."""
        return _Difference(self.system, self.parameter, self.step).noise(x, v)

    def conjugate(
        self, x: Tensor, score: VectorField, *, probes: int | None = None, seed: Seed = 0
    ) -> Tensor:
        """B of every sample, `(batch,)`, 1 / (time * units of beta).

        Args:
            x: states `(batch, field, *shape)`.
            score: grad log p as a function, in torch operations.
            probes: see `divergence`.
            seed: see `divergence`.

        Raises:
            UserError: a score that torch cannot differentiate.
        """
        with differentiable(x) as leaf:
            s = connected(score, leaf, name="the score")
            d_s = self.covariance(leaf, s)
            fixed = s.detach()
            # D'(x) at a fixed score: its divergence is (div D') . s.
            at_fixed = connected(lambda y: self.covariance(y, fixed), leaf, name="the noise")
            signs = probe_signs(leaf, probes, seed)
            derivatives = trace(d_s, leaf, signs) + trace(at_fixed, leaf, signs)
            if at_fixed.requires_grad:
                derivatives = derivatives + self._double_divergence(leaf, probes, seed)
            return 0.5 * (sum_components(s * d_s) + derivatives).detach()

    def _double_divergence(self, x: Tensor, probes: int | None, seed: Seed) -> Tensor:
        """sum_ij d_i d_j D'_ij = sum_j d_j div(D' e_j)."""
        total = x.new_zeros(len(x))
        outer = probe_signs(x, probes, _child(seed, 1))
        # Of their own seed: a probe that served inside and outside would bias the estimate.
        inner = probe_signs(x, probes, _child(seed, 2))
        for place, v in enumerate(unit_vectors(x) if outer is None else outer):
            probe = None if inner is None else [inner[place]]
            w = trace(self.covariance(x, v), x, probe, keep=True)
            if w.requires_grad:
                (gradient,) = torch.autograd.grad(w.sum(), x, allow_unused=True)
                total = total if gradient is None else total + sum_components(gradient * v)
        return total if outer is None else total / len(outer)


def noise_change(system: Any, parameter: str, *, step: float = RELATIVE_STEP) -> NoiseChange:
    """The perturbation of a changed parameter of the noise; see `NoiseChange`.

    Args:
        system: see `drift_change`.
        parameter: its name.
        step: relative step of the central difference, exact for D quadratic in the parameter.

    Raises:
        UserError: as `drift_change`, or a parameter that the noise does not contain.
    """
    _check_parameter(system, parameter)
    if not _moves_noise(system, parameter, step):
        raise UserError(
            f"{parameter} is no part of the noise of {_name(system)}; if it is part of the drift, "
            f"ask for the drift perturbation of {parameter}"
        )
    return NoiseChange(system, parameter, step)


@dataclass(frozen=True)
class ParameterChange:
    """A changed parameter, in the drift, in the noise or in both.

    Attributes:
        drift: dF/dtheta, None where the drift does not contain it.
        noise: the same of the noise; then B needs the gradient of the score.
    """

    drift: Direction | None
    noise: NoiseChange | None

    def conjugate(
        self, x: Tensor, score: VectorField, *, probes: int | None = None, seed: Seed = 0
    ) -> Tensor:
        """B of every sample, `(batch,)`; arguments as `NoiseChange.conjugate`."""
        total = x.new_zeros(len(x))
        if self.drift is not None:
            with torch.no_grad():
                s = score(x)
            total = total + conjugate(self.drift, x, s, probes=probes, seed=seed)
        if self.noise is not None:
            total = total + self.noise.conjugate(x, score, probes=probes, seed=seed)
        return total


def parameter_change(
    system: Any, parameter: str, *, step: float = RELATIVE_STEP
) -> ParameterChange:
    """The perturbation of a changed parameter, wherever the equation has it.

    Args:
        system: see `drift_change`.
        parameter: its name.
        step: relative step of the central differences.

    Raises:
        UserError: as `drift_change`, or a parameter that is in neither drift nor noise.
    """
    _check_parameter(system, parameter)
    noise = NoiseChange(system, parameter, step) if _moves_noise(system, parameter, step) else None
    direction = Direction(_Difference(system, parameter, step).drift)
    if noise is not None and not _moves_drift(direction, system):
        return ParameterChange(None, noise)
    return ParameterChange(drift_change(system, parameter, step=step), noise)


def numeric_parameters(system: Any) -> list[str]:
    """Names of the parameters that are real numbers and may be changed; not the time step."""
    if isinstance(system, BaseModel):
        names = list(type(system).model_fields)
    elif dataclasses.is_dataclass(system):
        names = [field.name for field in dataclasses.fields(system)]
    else:
        names = []
    return [name for name in names if name != "dt" and isinstance(getattr(system, name), float)]


def with_parameter(system: Any, parameter: str, value: float) -> Any:
    """The same system with one other parameter."""
    if isinstance(system, BaseModel):
        return system.model_copy(update={parameter: value})
    return dataclasses.replace(system, **{parameter: value})


@dataclass(frozen=True)
class _Difference:
    """Central differences of drift and noise in a parameter, in float64."""

    system: Any
    parameter: str
    step: float

    def drift(self, x: Tensor) -> Tensor:
        plus, minus, width = self._pair()
        return ((plus.drift(x.double()) - minus.drift(x.double())) / width).to(x.dtype)

    def noise(self, x: Tensor, v: Tensor) -> Tensor:
        plus, minus, width = self._pair()
        y, w = x.double(), v.double()
        change = plus.noise_covariance(y, w) - minus.noise_covariance(y, w)
        return (change / width).to(x.dtype)

    def _pair(self) -> tuple[Any, Any, float]:
        value = getattr(self.system, self.parameter)
        h = self.step * (abs(value) or 1.0)
        above, below = value + h, value - h
        plus = with_parameter(self.system, self.parameter, above)
        return plus, with_parameter(self.system, self.parameter, below), above - below


def _check_parameter(system: Any, parameter: str) -> None:
    known = numeric_parameters(system)
    if not isinstance(system, HasDrift) or not known:
        lacks = "parameters" if isinstance(system, HasDrift) else "drift(x) or noise_covariance"
        raise UserError(
            f"{_name(system)} has no {lacks}, so u(x) of parameter {parameter!r} is unknown; "
            "give u as a function module:function of the state"
        )
    if parameter not in known:
        near = difflib.get_close_matches(parameter, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(
            f"{parameter!r} is no numeric parameter of {_name(system)}{hint} "
            f"Known: {', '.join(known)}"
        )


def _moves_drift(direction: Direction, system: Any) -> bool:
    return bool(direction(_trial_state(system)).any())


def _moves_noise(system: Any, parameter: str, step: float) -> bool:
    x = _trial_state(system)
    return bool(_Difference(system, parameter, step).noise(x, x.flip(0)).any())


def _trial_state(system: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (4, len(system.fields), *system.shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _name(system: Any) -> str:
    return type(system).__name__


def _child(seed: Seed, number: int) -> Seed:
    return (seed, number) if isinstance(seed, int) else (*seed, number)
