"""The section `score.process` of the experiment file: one model for each kind of noise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from workflow.schema import Strict

Density = Literal["log_uniform", "log_normal"]
"""How noise levels are drawn in training: evenly in log sigma, or as EDM does (-1.2 +- 1.2)."""

Weighting = Literal["output", "likelihood", "edm"]
"""Factor on the squared error of the score: (1 + sigma^2)^2, sigma^2, sigma^2 (1 + sigma^2)."""


class _Range(Strict):
    """Noise levels from a smallest to a largest."""

    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        low, high = getattr(self, "sigma_min", 0.0), getattr(self, "sigma_max", 0.0)
        if high < low:
            raise ValueError(f"sigma_max={high} must be >= sigma_min={low}")
        return self


class EdmConfig(_Range):
    """Small noise for responses, in units of the scale of variation of the score."""

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(0.02, gt=0)
    sigma_max: float = Field(0.02, gt=0)


class VeConfig(_Range):
    """Growing noise for samples and responses, in standard deviations of every mode."""

    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(0.01, gt=0)
    sigma_max: float = Field(20.0, gt=0)
    density: Density = "log_uniform"
    weighting: Weighting = "output"


class VpConfig(Strict):
    """The same noise on data that fade: x exp(-b/2) + (1 - exp(-b))^(1/2) z, b = int beta dt.

    beta rises linearly over the time from 0 to 1; times are drawn evenly.
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(16.0, gt=0)
    t_min: float = Field(1e-3, gt=0, lt=1)
    weighting: Weighting = "output"


class JumpConfig(_Range):
    """Gaussian noise and jumps: noised data with heavy tails, for samples and responses.

    Everything in standard deviations of the data. With g + 2 rate b^2 = 1 the variance of Gaussian
    data is kept; the part g of the noise is what gives a score, and 0 has none.
    """

    kind: Literal["jump"] = "jump"
    rate: int = Field(1, ge=0, le=64, description="jumps while data fade by exp(-1/2)")
    scale: float = Field(0.5, gt=0, description="b: a jump has variance 2 b^2")
    gaussian: float = Field(0.5, ge=0, description="g, variance of the Gaussian noise")
    sigma_min: float = Field(0.02, gt=0, description="of the noise relative to the faded data")
    sigma_max: float = Field(20.0, gt=0)

    @model_validator(mode="after")
    def _learnable(self) -> JumpConfig:
        if self.gaussian == 0 and self.rate != 1:
            raise ValueError(
                f"gaussian=0 with rate={self.rate}: jumps alone can be learned from at rate 1; set "
                "rate: 1, or gaussian above 0"
            )
        return self


class PhaseBridgeConfig(_Range):
    """A position that a velocity drives to the data, both seen by the network."""

    kind: Literal["phase_bridge"] = "phase_bridge"
    sigma_min: float = Field(0.01, gt=0, description="of what position and velocity say together")
    sigma_max: float = Field(20.0, gt=0)
    weighting: Literal["output", "likelihood", "edm", "force"] = "output"
    p: float = Field(3.0, gt=0, description="noise of the acceleration")
    k: float = Field(0.2, gt=-1, lt=1, description="correlation -k of the first state")
    var_x: float = Field(1.0, gt=0)
    var_v: float = Field(1.0, gt=0)


def _kind(value: Any) -> str:
    """Tag of a section; `edm` where it does not say."""
    found = value.get("kind", "edm") if isinstance(value, dict) else getattr(value, "kind", "edm")
    return str(found)


ProcessConfig = Annotated[
    Annotated[EdmConfig, Tag("edm")]
    | Annotated[VeConfig, Tag("ve")]
    | Annotated[VpConfig, Tag("vp")]
    | Annotated[JumpConfig, Tag("jump")]
    | Annotated[PhaseBridgeConfig, Tag("phase_bridge")],
    Discriminator(_kind),
]
"""Any forward process, told apart by `kind`."""

KINDS: dict[str, type[Strict]] = {
    "edm": EdmConfig,
    "ve": VeConfig,
    "vp": VpConfig,
    "jump": JumpConfig,
    "phase_bridge": PhaseBridgeConfig,
}
"""Models of the section by kind."""


Grid = Literal["karras", "geometric", "preserving"]


class CompareConfig(Strict):
    """Samplers against held-out data: each with each number of calls."""

    samplers: tuple[str, ...] = Field(min_length=1)
    nfe: tuple[int, ...] = Field((5, 10, 20), min_length=1)


class SampleConfig(Strict):
    """Samples of the learned density, made after training."""

    members: int = Field(256, ge=1, description="samples")
    nfe: int = Field(10, ge=1, description="calls of the network for a sample, at most")
    sampler: str | None = Field(None, description="default: the usual one of the process")
    eta: float = Field(0.0, ge=0, description="noise of the way back; 1: the reverse diffusion")
    stop: float | None = Field(None, gt=0, lt=1, description="time at which a bridge is left")
    grid: Grid | None = Field(None, description="of noise levels; default karras")
    compare: CompareConfig | None = None
