"""On a GPU: the same numbers as on the CPU, to rounding. Skipped where torch sees none."""

import io

import pytest
import torch

from workflow.config import ScoreConfig
from workflow.dynamics import SYSTEMS, build_system
from workflow.scores.batches import Batches, Held
from workflow.scores.closed_form import DenseGaussian, SpectralGaussian
from workflow.scores.devices import compute_device
from workflow.scores.neural import NeuralScore, WhitenedScore, with_parameters
from workflow.scores.training import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def x():
    """A bistable field on 16 x 16, `(sample, 1, 16, 16)`."""
    white = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    return white.sign() + 0.3 * white


def trainer(x, device, **settings):
    settings = {"steps": 200, "global_batch": 64, "learning_rate": 0.01} | settings
    config = {"network": {"channels": 16, "residual_blocks": 1}, "train": settings}
    return Trainer(
        x,
        SpectralGaussian.fit(x),
        config=ScoreConfig.model_validate(config),
        seed=3,
        device=device,
    )


def losses(one, steps=20):
    return [one.advance().loss for _ in range(steps)]


def close(a, b, tolerance):
    """Root mean square of the difference, relative to that of `a`."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).square().mean().sqrt()) <= tolerance * float(a.square().mean().sqrt())


def test_batches_have_the_same_bits_on_every_device(x):
    """Drawn on the CPU, whatever the device."""

    def batch(device):
        numbers = {"seed": 3, "pairs": 32, "share": range(4, 32), "device": torch.device(device)}
        return Batches(Held(x.to(device)), **numbers).at(5)

    host, device = batch("cpu"), batch("cuda")
    for name in ("x", "level", "z"):
        assert torch.equal(getattr(host, name), getattr(device, name).cpu())


def test_training_on_a_gpu_is_that_on_the_cpu(x):
    """fp32 without TF32: 20 losses to 1e-5, each from the CPU's state; and back again.

    Left to themselves the two part: Adam's first steps divide by the gradient's own size.
    """
    host, device = trainer(x, "cpu"), trainer(x, compute_device())
    for _ in range(20):
        device.restore(through_a_file(host))
        assert device.advance().loss == pytest.approx(host.advance().loss, rel=1e-5)
    back = trainer(x, "cpu")
    back.restore(through_a_file(device))
    assert back.advance().loss == pytest.approx(device.advance().loss, rel=1e-5)


def through_a_file(one):
    """State of a trainer as a checkpoint brings it, on the CPU."""
    written = io.BytesIO()
    torch.save(one.state(), written)
    written.seek(0)
    return torch.load(written, map_location="cpu", weights_only=True)


def test_bf16_on_a_gpu_trains_like_fp32(x):
    """8 bits in the network alone: losses to 5 %."""
    half, full = trainer(x, compute_device(), precision="bf16"), trainer(x, compute_device())
    assert losses(half) == pytest.approx(losses(full), rel=0.05)


def test_scores_on_a_gpu_are_those_on_the_cpu(x):
    """Learned (to 1e-4), spectral and dense Gaussian (to 1e-5), answers on the data's device."""
    host = trainer(x, "cpu")
    losses(host, 10)
    learned = NeuralScore(host.averaged())
    moved = NeuralScore(with_parameters(host.model, host.average).to(compute_device()))
    with torch.inference_mode():
        assert moved(x).device == x.device and close(learned(x), moved(x), 1e-4)
        for gaussian in (SpectralGaussian.fit(x), DenseGaussian.fit(x[:, :, :4, :4])):
            data = x if isinstance(gaussian, SpectralGaussian) else x[:, :, :4, :4]
            assert close(gaussian(data), gaussian(data.cuda()), 1e-5)


@pytest.mark.parametrize("kind", ["spectral", "dense"])
def test_gaussians_are_fitted_on_a_gpu(x, kind):
    """float64 sums: the same to 1e-6, also of two fields."""
    fit = SpectralGaussian.fit if kind == "spectral" else DenseGaussian.fit
    data = torch.cat([x, x.roll(1, 0)], dim=1)[..., :4, :4]
    assert close(fit(data)(data), fit(data.cuda())(data.cuda()), 1e-6)


@pytest.mark.parametrize("kind", [k for k in SYSTEMS if k not in ("linear",)])
def test_systems_are_stepped_on_a_gpu(kind):
    """20 steps from the same normals, float64, to 1e-9."""
    grid = {"grid": 16} if kind in ("ornstein_uhlenbeck", "allen_cahn", "navier_stokes") else {}
    system = build_system({"kind": kind, **grid})

    def after(device):
        draws = torch.Generator().manual_seed(5)

        def normals(shape):
            return torch.randn(3, *shape, generator=draws, dtype=torch.float64).to(device)

        state = system.initial(normals(system.initial_shape))
        for _ in range(20):
            state = system.step(state, normals(system.noise_shape))
        return system.observe(state)

    assert close(after("cpu"), after("cuda"), 1e-9)


def test_a_gpu_without_memory_gets_smaller_micro_batches():
    """The real thing: an eighth of what a batch needs is allowed."""
    x = torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(7))
    config = ScoreConfig.model_validate(
        {"network": {"channels": 64}, "train": {"ranks": 1, "global_batch": 1024, "steps": 10}}
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        whitening = SpectralGaussian.fit(x)
        one = Trainer(x, whitening, config=config, seed=1, device="cuda")
        assert not one.advance().skipped and one.micro_batch < 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


RANK = """
import torch
from hpc.comm import MpiComm
from hpc.gradients import FlatGradients

comm = MpiComm()
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(7, 7) for _ in range(4)]).cuda()
gradients = FlatGradients(comm, bucket=64)
gradients.attach(list(model.parameters()))
x = torch.randn(comm.size, 5, 7).cuda()
single = []
for part in x:
    model.zero_grad(set_to_none=False)
    model(part).square().mean().backward()
    single.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
total = torch.stack(single).double().sum(0) / comm.size
for _ in range(3):
    model.zero_grad(set_to_none=False)
    loss = model(x[comm.rank]).square().mean()
    with gradients.overlapped(loss.detach()):
        loss.backward()
    gradients.mean(loss.detach())
    assert torch.equal(torch.cat([p.grad.flatten() for p in model.parameters()]), total.float())
comm.barrier()
"""


def test_ranks_reduce_gradients_on_a_gpu(tmp_path, two_ranks):
    """Two ranks share the device; bits of the ordered mean, staged or by CUDA-aware MPI."""
    launch, layout = two_ranks
    (tmp_path / "cuda_rank.py").write_text(RANK)
    variables = {"PYTHONPATH": str(tmp_path)}
    launch("cuda_rank", [], layout=layout, log=tmp_path / "log", environment=variables)


def test_a_network_and_its_buffers_move_together(x):
    """The scale of the fields lives in a buffer; a forgotten one would be on the CPU."""
    model = WhitenedScore(SpectralGaussian.fit(x), ScoreConfig()).to("cuda")
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cuda"}
