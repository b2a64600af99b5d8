"""Ways to learn a score, equal in network calls; each differs from the base in what it names."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from workflow.config import ScoreConfig
from workflow.diffusion.gaussian import denoising_loss
from workflow.scores.closed_form import SpectralGaussian
from workflow.scores.extrapolation import Extrapolated
from workflow.scores.neural import NeuralScore
from workflow.scores.settling import settled
from workflow.scores.training import Batch, Trainer

CALLS = 32_000
"""Network calls of a training on 32 x 32 points."""

BASE: dict[str, Any] = {
    "process": {"sigma_min": 0.02, "sigma_max": 0.02},
    "network": {"channels": 32, "residual_blocks": 2},
    "train": {"global_batch": 32, "learning_rate": 4e-3, "ranks": 1},
}
"""Two views, whitened, from a local potential, antithetic, one noise level, settled at the end."""

RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "potential alone": {"calls": 0},
    "no potential": {"potential": False},
    "not settled": {"settled": False},
    # loss and noise
    "plain denoising loss": {"loss": "plain"},
    "sigma 0.1": {"sigma": (0.1, 0.1)},
    "sigma 0.005": {"sigma": (0.005, 0.005)},
    "sigma 0.02 to 0.2": {"sigma": (0.02, 0.2)},
    "sigma 0.1 to 0.15, extrapolated": {"sigma": (0.1, 0.15), "extrapolate": True},
    # coordinates
    "whitened view only": {"view": "white", "potential": False},
    "not whitened": {"whiten": False, "potential": False},
    # size and optimiser
    "8 channels, 1 block": {"network": {"channels": 8, "residual_blocks": 1}},
    "16 channels": {"network": {"channels": 16}},
    "64 channels": {"network": {"channels": 64}},
    "learning rate 1e-3": {"rate": 1e-3},
    "learning rate 1e-2": {"rate": 1e-2},
    "batch 128": {"batch": 128},
    "four times the calls": {"calls": 4},
}


class StudyTrainer(Trainer):
    """The trainer, with the plain denoising loss where asked for."""

    plain = False

    def _accumulate(self, batch: Batch) -> Tensor:
        if not self.plain:
            return super()._accumulate(batch)
        self._optimizer.zero_grad(set_to_none=False)
        # As many network calls as the pairs have: every snapshot twice, with noise of its own.
        x, sigma = batch.x.repeat(2, 1, 1, 1), batch.sigma.repeat(2)
        z = torch.cat([batch.z, torch.randn_like(batch.z)])
        equalise = self.model.whitening.equalise
        found = self.model(x + equalise(sigma.reshape(-1, 1, 1, 1) * z), sigma)
        loss = denoising_loss(equalise(found), z, sigma)
        loss.backward()
        return loss.detach()


def config_of(recipe: dict[str, Any], calls: int) -> ScoreConfig:
    """The configuration of a recipe."""
    content = {name: dict(section) for name, section in BASE.items()}
    content["network"] |= recipe.get("network", {})
    if "sigma" in recipe:
        content["process"] = dict(zip(("sigma_min", "sigma_max"), recipe["sigma"], strict=True))
    content["train"]["learning_rate"] = recipe.get("rate", BASE["train"]["learning_rate"])
    batch = content["train"]["global_batch"] = recipe.get("batch", BASE["train"]["global_batch"])
    content["train"]["steps"] = max(2, recipe.get("calls", 1) * calls // batch)
    return ScoreConfig.model_validate(content)


def whitening_of(x: Tensor, recipe: dict[str, Any]) -> SpectralGaussian:
    """The fit; without whitening one variance for all modes."""
    fitted = SpectralGaussian.fit(x)
    if recipe.get("whiten", True):
        return fitted.with_potential(x) if recipe.get("potential", True) else fitted
    flat = torch.ones_like(fitted.spectrum) * fitted.pixel_variance
    return SpectralGaussian(fitted.mean, flat, fitted.shape)


def learn(
    x: Tensor, recipe: dict[str, Any], *, calls: int, seed: int, device: torch.device
) -> tuple[NeuralScore | Extrapolated, dict[str, Any]]:
    """Train on snapshots `(snapshot, 1, y, x)`; returns the score and what it took.

    `seconds` are of the steps, `cpu_seconds` of all threads with fitting and settling too.
    """
    config, busy, started = config_of(recipe, calls), time.process_time(), time.perf_counter()
    trainer = StudyTrainer(x, whitening_of(x, recipe), config=config, seed=seed, device=device)
    trainer.plain = recipe.get("loss") == "plain"
    if recipe.get("view") == "white":
        network = trainer.model.network
        network.register_forward_pre_hook(lambda _, a: (a[0], torch.zeros_like(a[1]), a[2]))
        network.register_forward_hook(lambda _m, _a, out: (out[0], torch.zeros_like(out[1])))
    fitting = time.perf_counter() - started
    started = time.perf_counter()
    steps = config.train.steps if recipe.get("calls", 1) else 0
    for _ in range(steps):
        trainer.advance()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    model = trainer.averaged()
    score = NeuralScore(settled(model, x) if recipe.get("settled", True) else model)
    facts = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "fitting_seconds": round(fitting, 1),
        "calls": steps * config.train.global_batch,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }
    return (Extrapolated.of(score) if recipe.get("extrapolate") else score), facts
