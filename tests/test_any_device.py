"""Law 9: any device. The science runs on "cuda" tensors that no card is needed for.

Under FakeTensorMode tensors have shapes, types and devices but no values. An operation that mixes
devices raises, and so does one that needs a value on the host: `.item()`, `float(tensor)`,
`bool(tensor)`, indexing by a mask. Inside a sampling loop `LoopGuard` refuses what FakeTensorMode
lets through although the host waits for the device there: error checks of torch.linalg and copies
from the host.

What has no fake is replaced: torch.Generator("cuda"), the scopes that seed the device's global
generator, torch.distributions.Beta and backward. What cannot run here, and why:

- `fit_gaussian` of a rank below a third of the numbers of measurements and of entries: azula fits
  it by torch.lobpcg, which reads its residuals. It runs once, before the first round.
- `SplitGibbs.__init__` finds the times of its couplings on the host, once; its draws run.
- `blind.maximise` is scipy's search on the CPU; `reconstruct` brings the samples there.
- Kernels. Whether a card computes the same numbers is not for fakes to say.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from azula.linalg.covariance import DPLRCovariance
from azula.linalg.solve import cg
from azula.noise import VESchedule
from azula.sample import DDPMSampler, HeunSampler
from command import ROOT
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from diffem.corruption import (
    Blur,
    Channel,
    Denoising,
    Downsample,
    GaussianNoise,
    LinearChannel,
    LinearGaussianChannel,
    LinearOperator,
    Mask,
    Measurement,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    Projection,
    Windows,
    make_channel,
)
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import BetaMixture, Conditioning, Denoiser
from diffem.em.augment import Augment
from diffem.em.balance import Dual
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.init import Lifted, Resampled
from diffem.em.memory import Replay
from diffem.em.objective import Ambient, Objective, Recorrupted, Unconditional
from diffem.metric import PSNR, SSIM, Metric, ResidualChi2
from diffem.network import MLP, UNet
from diffem.posterior import (
    DPS,
    MMPS,
    Conditional,
    DenoiserPosterior,
    DiffPIR,
    GaussianPosterior,
    Isotropic,
    PiGDM,
    PrincipalComponents,
    Prior,
    Restoration,
    SamplerFactory,
    SDESampler,
    SplitGibbs,
    gaussian,
    reconstruct,
)
from diffem.posterior.ambient import AmbientPrior
from diffem.posterior.bounded import Bounds, bounded
from diffem.posterior.gaussian import UninformedGaussian, fit_gaussian
from diffem.result import build_sampler
from diffem.result.parts import build_channel
from diffem.storage.reconstructions import Batch

CUDA = torch.device("cuda")
N = 4
IMAGE, GREY, VECTOR = (3, 8, 8), (1, 16, 16), (6,)
SCHEDULE = VESchedule(0.02, 20.0)
STEPS = 2  # the first and the last; as many as the order of multistep
DDPM = partial(DDPMSampler, steps=STEPS)
SAMPLERS: dict[str, SamplerFactory] = {
    path.stem: partial(build_sampler({"sampler": OmegaConf.load(path)}), steps=STEPS)
    for path in sorted((ROOT / "conf" / "sampler").glob("*.yaml"))
}
SAMPLERS["sde with bounds"] = partial(bounded(SDESampler, Bounds(-1.0, 1.0)), steps=STEPS)
OPERATORS: dict[str, LinearOperator] = {
    "mask": Mask(IMAGE, rho=0.5),
    "mask of vectors": Mask(VECTOR, rho=0.5),
    "blur": Blur(IMAGE, sigma=1.0, kernel_size=5),
    "blur of a range": Blur(IMAGE, sigma=(0.5, 1.5), kernel_size=5),
    "blur of signals": Blur((2, 16), sigma=1.0, kernel_size=5),
    "downsample": Downsample(IMAGE, factor=2),
    "denoising": Denoising(IMAGE),
    "projection": Projection(VECTOR, rows=2),
}
NOISES: dict[str, Noise] = {
    "gaussian": GaussianNoise(0.1),
    "gaussian of a range": GaussianNoise((0.05, 0.2)),
    "poisson": PoissonNoise(100.0),
    "poisson_gaussian": PoissonGaussianNoise(100.0, 0.05),
}
CHANNELS: dict[str, LinearChannel] = {
    f"{operator}, {noise}": make_channel(OPERATORS[operator], NOISES[noise])
    for operator in OPERATORS
    for noise in NOISES
    if OPERATORS[operator].preserves_intensity or not NOISES[noise].needs_intensity
}
MASK = make_channel(Mask(IMAGE, rho=0.5), GaussianNoise(0.1))
SYNCHRONISES = {  # samplers of azula's whose own loop waits for the device, and where
    "multistep": "xEABSampler solves for each step's coefficients by torch.linalg.solve",
}


class CudaGenerator(torch.Generator):
    """A generator that says it is the device's. Fake tensors draw no numbers from it."""

    device = CUDA  # type: ignore[assignment]


class LoopGuard(TorchDispatchMode):
    """Refuses what makes the host wait for the device, from a denoiser's first call on."""

    WAITS = (
        torch.ops.aten._linalg_check_errors.default,
        torch.ops.aten._linalg_eigh.default,
        torch.ops.aten._linalg_svd.default,
    )

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.looping = False
        self.hook = denoiser.register_forward_pre_hook(self.begin)

    def begin(self, *_: object) -> None:
        """Notes that the loop has begun."""
        self.looping = True

    def __torch_dispatch__(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation."""
        result = func(*args, **(kwargs or {}))
        if self.looping:
            assert func not in self.WAITS, f"{func} waits for the device inside the loop"
            copied = func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu"
            assert not (copied and result.is_cuda), "a copy from the host inside the loop"
        return result


def no_backward(
    outputs: Tensor, inputs: Tensor, grad_outputs: Tensor | None = None, **_: object
) -> tuple[Tensor]:
    """Stands in for torch.autograd.grad, which has no engine for a device that is not there."""
    if grad_outputs is not None:
        assert grad_outputs.device == outputs.device
        assert grad_outputs.shape == outputs.shape
    return (torch.zeros_like(inputs),)


class NoBeta:
    """Stands in for torch.distributions.Beta, whose sampler has no fake kernel.

    Checking its arguments would wait for the device.
    """

    def __init__(self, a: Tensor, b: Tensor, *, validate_args: bool) -> None:
        assert not validate_args
        self.parameters = a + b

    def sample(self) -> Tensor:
        """Returns times."""
        return torch.rand_like(self.parameters)


@pytest.fixture(autouse=True)
def fake_mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Opens the mode in which "cuda" tensors can be made, with what does not run replaced."""

    def generator(*key: object, device: torch.device) -> torch.Generator:
        return CudaGenerator() if torch.device(device).type == "cuda" else torch.Generator()

    def unseeded(*key: object, device: torch.device | str = "cpu") -> nullcontext[None]:
        return nullcontext()

    monkeypatch.setattr("diffem.em.objective.generator", generator)
    monkeypatch.setattr("diffem.posterior.posterior.seeded", unseeded)
    monkeypatch.setattr(torch.autograd, "grad", no_backward)
    monkeypatch.setattr(torch.distributions, "Beta", NoBeta)
    with FakeTensorMode():
        yield


def on_cuda(module: nn.Module) -> nn.Module:
    """Moves a module's parameters to the device, as fakes."""
    for part in module.modules():
        assert not part._buffers, "the networks have none"
        for name, value in part._parameters.items():
            if value is not None:
                fake = torch.empty_strided(value.shape, value.stride(), device=CUDA)
                part._parameters[name] = nn.Parameter(fake)
    return module


def denoiser_of(shape: tuple[int, ...], cond_channels: int) -> Denoiser:
    """Returns a denoiser on the device: a U-Net with attention, or an MLP of vectors."""
    with unset_fake_temporarily():  # a module's .to() swaps tensors, which fakes are not for
        network = (
            MLP(shape, cond_channels, width=16, depth=2, embedding=8)
            if len(shape) == 1
            else UNet(shape, cond_channels, channels=[16, 16], blocks=[1, 1], attention=[1])
        )
    return Denoiser(on_cuda(network), SCHEDULE).eval()


def conditional_of(channel: Channel, condition: Conditioning) -> Denoiser:
    """Returns a denoiser on the device that is conditioned on a channel's measurements."""
    embedding = condition(channel, measure(channel)).embedding
    return denoiser_of(channel.shape, embedding.shape[1])


def images(channel: Channel) -> Tensor:
    """Returns images on the device, (N, *shape)."""
    return torch.zeros(N, *channel.shape, device=CUDA)


def measure(channel: Channel) -> Measurement:
    """Returns measurements on the device."""
    return channel.draw(images(channel), CudaGenerator())


def assert_on_cuda(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.is_cuda


def batch_of(channel: Channel) -> Batch:
    """Returns a batch of reconstructions on the device; its rows stay on the host."""
    return Batch(images(channel), 0, torch.zeros(N, dtype=torch.int64))


@pytest.mark.parametrize("name", CHANNELS)
def test_channels(name: str) -> None:
    channel = CHANNELS[name]
    x = images(channel)
    measurement = measure(channel)
    y, operator, _ = measurement
    assert_on_cuda(
        *measurement,
        *channel.assume(measurement),
        channel.apply(x, operator),
        channel.adjoint(y, operator),
        channel.measured_mask(y, operator),
        channel.lift(measurement),
        channel.embed(measurement),
        channel.embed(measurement, maps=False),
        channel.estimated_variance(measurement),
        channel.residual_chi2(measurement, x),
    )
    spectrum = channel.spectrum(operator)
    assert spectrum is not None
    assert_on_cuda(spectrum.square, spectrum.analyse(x), spectrum.synthesise(x))
    assert spectrum.analyse(x).shape == x.shape
    if isinstance(channel, LinearGaussianChannel):
        assert_on_cuda(
            channel.variance(measurement),
            channel.square_error(measurement, x),
            channel.log_likelihood(measurement, x),
        )


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
def test_objective_of_diffem(name: str, fuse: bool) -> None:
    channel, condition = CHANNELS[name], Conditioning(fuse=fuse)
    denoiser = conditional_of(channel, condition)
    for p_uncond in (0.0, 0.1):
        objective = Recorrupted(condition=condition, p_uncond=p_uncond, fresh=True)
        assert_on_cuda(loss_of(objective, denoiser, channel, batch_of(channel)))


@pytest.mark.parametrize("metric", [PSNR(), SSIM(), ResidualChi2()], ids=lambda m: m.score.name)
@pytest.mark.parametrize("name", CHANNELS)
def test_metrics_of_reconstructions(name: str, metric: Metric) -> None:
    """Issue 12, 7: SSIM of all reconstructions was computed on the CPU of the first process."""
    channel = CHANNELS[name]
    if metric.obstacle(channel) is None:
        x = images(channel)
        assert_on_cuda(metric.compute(x, x, channel, measure(channel)))


def test_measurements_of_a_round_are_drawn_by_rows_of_the_host() -> None:
    """fresh=False draws each image's own measurement by its row, which never leaves the host."""
    objective = Recorrupted(condition=Conditioning(), p_uncond=0.1, fresh=False, imputed=1.0)
    denoiser = conditional_of(MASK, objective.condition)
    with unset_fake_temporarily():
        rows = torch.arange(N)
    assert_on_cuda(loss_of(objective, denoiser, MASK, Batch(images(MASK), 0, rows)))


def test_a_batch_is_moved_without_its_rows() -> None:
    data = ReconstructionDataModule.__new__(ReconstructionDataModule)
    batch = Batch(torch.zeros(N, *IMAGE), 0, torch.arange(N))
    moved = data.transfer_batch_to_device(batch, CUDA, 0)
    assert moved.x.is_cuda
    assert moved.rows.device.type == "cpu"


@pytest.mark.parametrize("objective", [Unconditional(), Ambient(delta=0.1)])
def test_objectives_of_rivals(objective: Objective) -> None:
    denoiser = denoiser_of(MASK.shape, 1 if isinstance(objective, Ambient) else 0)
    assert_on_cuda(loss_of(objective, denoiser, MASK, batch_of(MASK)))


def test_images_of_a_memory_and_weights_of_groups() -> None:
    """A step with them does not wait for the device either; rows and groups are on the host."""
    objective = Recorrupted(condition=Conditioning(), p_uncond=0.0, fresh=True)
    denoiser = conditional_of(MASK, objective.condition)
    memory, balance = Replay("runs/a", 0.5, 8), Dual(rate=0.1)
    balance.number = torch.zeros(N, dtype=torch.int64)
    balance.share, balance.multipliers = torch.full((2,), 0.5), torch.zeros(2)
    memory.recall(torch.zeros(8, *IMAGE))
    remembered = memory(batch_of(MASK))
    assert remembered.remembered is not None and remembered.remembered.is_cuda
    assert_on_cuda(loss_of(objective, denoiser, MASK, remembered))
    weighed = balance.weighed(batch_of(MASK))
    assert weighed.weight is not None and weighed.weight.is_cuda
    loss = loss_of(objective, denoiser, MASK, weighed)
    balance.learn(loss, weighed, lambda values: values)
    assert balance.multipliers.is_cuda


def loss_of(objective: Objective, denoiser: Denoiser, channel: Channel, batch: Batch) -> Tensor:
    """Returns the loss of a step as the module takes it, times and augmentation too."""
    measurement = channel.draw(torch.zeros(N, *channel.shape), torch.Generator())
    truth = torch.zeros(N, *channel.shape)
    measurements = MeasurementSet(measurement, channel, truth)
    t = BetaMixture([(2, 5), (5, 2)]).sample(N, CUDA)
    if len(channel.shape) == 3:
        batch = batch._replace(x=Augment(flip=True, hue=0.1, saturation=0.1)(batch.x))
    return objective.loss(denoiser, batch, t, measurements=measurements, key=(0, "m_step", 0))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["mask, gaussian", "blur, poisson", "projection, gaussian"])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
def test_diffem_under_every_sampler(sampler: str, name: str, fuse: bool) -> None:
    channel, condition = CHANNELS[name], Conditioning(fuse=fuse)
    denoiser = conditional_of(channel, condition)
    posterior = Conditional(denoiser, channel, sampler=SAMPLERS[sampler], condition=condition)
    assert_loop(posterior, channel, sampler)


ON_THE_HOST = {  # corruptions of libraries that compute there, and where
    "jpeg": "Pillow codes images",
    "deepinv": "its physics draw parameters by generators that fakes do not have",
}
CORRUPTIONS = sorted(
    path.stem
    for path in (ROOT / "conf" / "corruption").glob("*.yaml")
    if path.stem not in ON_THE_HOST
)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_diffem_under_every_corruption(name: str) -> None:
    shape = {"projection": VECTOR, "fourier": GREY, "multicoil": GREY}.get(name, IMAGE)
    with unset_fake_temporarily():
        node: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/corruption/{name}.yaml"))
        del node["defaults"]
        node["noise"] = OmegaConf.load(ROOT / "conf/corruption/noise/gaussian.yaml")
        channel = build_channel(node, shape)
    for part in (channel, getattr(channel, "forward_operator", channel)):
        for key, value in list(vars(part).items()):  # maps and masks, which are on the host
            if isinstance(value, Tensor):
                setattr(part, key, torch.empty(value.shape, dtype=value.dtype))
    condition = Conditioning()
    denoiser = conditional_of(channel, condition)
    objective = Recorrupted(condition=condition, p_uncond=0.0, fresh=True)
    assert_on_cuda(loss_of(objective, denoiser, channel, batch_of(channel)))
    posterior = Conditional(denoiser, channel, sampler=DDPM, condition=condition)
    assert_loop(posterior, channel)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_priors_under_every_sampler(sampler: str) -> None:
    denoiser, masked = denoiser_of(IMAGE, 0), denoiser_of(IMAGE, 1)
    prior = Prior(denoiser, IMAGE, sampler=SAMPLERS[sampler])
    ambient = AmbientPrior(masked, IMAGE, sampler=SAMPLERS[sampler], removed=0.5)
    for drawn in (prior.sample(N), ambient.sample(N)):
        assert_on_cuda(drawn)
        assert drawn.shape == (N, *IMAGE)


def components(posterior: PiGDM) -> PiGDM:
    """Fits the posterior's covariance to reconstructions, which come from the disk."""
    posterior.fit(torch.zeros(16, *posterior.channel.shape))
    return posterior


RIVALS: dict[str, Callable[[Denoiser, SamplerFactory], DenoiserPosterior]] = {
    "mmps": lambda d, s: MMPS(d, MASK, sampler=s, solver="gmres", iterations=2),
    "mmps by cg": lambda d, s: MMPS(d, MASK, sampler=s, solver="cg", iterations=2),
    "pigdm": lambda d, s: PiGDM(d, MASK, sampler=s, covariance=Isotropic()),
    "cov_x": lambda d, s: components(PiGDM(d, MASK, sampler=s, covariance=PrincipalComponents(4))),
    "diffpir": lambda d, s: DiffPIR(d, MASK, sampler=s, lmbda=1.0, iterations=2),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rival", RIVALS)
def test_rivals_under_every_sampler(rival: str, sampler: str) -> None:
    posterior = RIVALS[rival](denoiser_of(IMAGE, 0), SAMPLERS[sampler])
    assert_loop(posterior, MASK, sampler)


def test_rivals_with_steps_of_their_own() -> None:
    denoiser = denoiser_of(IMAGE, 0)
    assert_loop(DPS(denoiser, MASK, sampler=DDPM, zeta=1.0), MASK)
    with unset_fake_temporarily():  # looks up the times of its couplings, once, on the host
        gibbs = SplitGibbs(denoiser, MASK, sampler=DDPM, coupling=(3.0, 0.02), sweeps=2)
    assert_loop(gibbs, MASK)
    assert_loop(Restoration(denoiser_of(IMAGE, 1), MASK), MASK)


def assert_loop(posterior: DenoiserPosterior, channel: Channel, sampler: str = "") -> None:
    """Holds a posterior to samples on the device, and its loop to not waiting for it."""
    measurement = measure(channel)
    with LoopGuard(posterior.denoiser) as guard:
        if sampler in SYNCHRONISES:
            with pytest.raises(AssertionError, match="waits for the device"):
                posterior.draw(measurement)
            guard.hook.remove()
            guard.looping = False
            x = posterior.draw(measurement)
        else:
            x = posterior.draw(measurement)
            assert guard.looping
    assert_on_cuda(x)
    assert x.shape == (N, *channel.shape)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_large_images_by_tiles(sampler: str) -> None:
    """Their measurements are copied from the host, a few tiles at a time."""
    posterior = Conditional(
        conditional_of(MASK, Conditioning()),
        MASK,
        sampler=SAMPLERS[sampler],
        condition=Conditioning(),
    )
    windows = Windows.of((12, 13), IMAGE[1:], 4)
    measurement = MASK.draw(torch.zeros(len(windows), *IMAGE), torch.Generator())
    tiles = MeasurementSet(measurement, MASK)
    x = posterior.draw_tiled(tiles, windows, size=3, device=CUDA)
    assert_on_cuda(x)
    assert x.shape == (3, 12, 13)


def test_the_e_step_brings_its_samples_to_the_host() -> None:
    denoiser = conditional_of(MASK, Conditioning())
    posterior = Conditional(denoiser, MASK, sampler=DDPM, condition=Conditioning())
    measurement = MASK.draw(torch.zeros(3, *IMAGE), torch.Generator())
    x = reconstruct(posterior, measurement, size=N, key=(0, "e-step", 1, 0), device=CUDA)
    assert x.device.type == "cpu"
    assert x.shape == (3, *IMAGE)


@pytest.fixture
def few_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes 2 iterations of the solver for its 128, which are alike: fakes are slow."""
    monkeypatch.setattr(gaussian, "cg", lambda a, b, iterations: cg(a, b, iterations=2))


@pytest.mark.parametrize("name", CHANNELS)
def test_inits(name: str, few_iterations: None) -> None:
    channel = CHANNELS[name]
    measurement = measure(channel)
    dim = torch.Size(channel.shape).numel()
    for rank in {dim, max(1, dim // 2)}:  # the full covariance, and one of low rank
        posterior = fit_gaussian(channel, measurement, rank=rank, iterations=2)
        assert_on_cuda(posterior.draw(measurement), posterior.mean(measurement))
    # A prior that was fitted on the host follows the measurements to the device.
    mean = torch.zeros(dim, dtype=torch.float64)
    cov = DPLRCovariance(torch.ones_like(mean), mean.new_zeros(dim, 1))
    assert_on_cuda(GaussianPosterior(mean, cov, channel).draw(measurement))
    for init in (
        Lifted(channel),
        Resampled(torch.zeros(5, *channel.shape)),
        UninformedGaussian(channel.shape, 1 / 3),
    ):
        assert init.draw(measurement).shape == (N, *channel.shape)
        assert_on_cuda(init.draw(measurement))


def test_a_fit_of_low_rank_reads_residuals(few_iterations: None) -> None:
    """Not so once azula fits without torch.lobpcg: the module's docstring says that it does."""
    measurement = Measurement(*(field.repeat_interleave(8, dim=0) for field in measure(MASK)))
    with pytest.raises(DataDependentOutputException):
        fit_gaussian(MASK, measurement, rank=2, iterations=1)


def test_a_mixed_device_is_caught() -> None:
    measurement = measure(MASK)._replace(operator=torch.ones(N, 1, 8, 8))
    with pytest.raises(RuntimeError, match="on the same device"):
        MASK.residual_chi2(measurement, images(MASK))


class Hesitant(HeunSampler):
    """A sampler that looks at its samples."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: Any) -> Tensor:
        assert x_t.abs().max().item() < 1e6
        return super().step(x_t, t, s, **kwargs)


class Solving(DDPMSampler):
    """A sampler that solves a system whose solver reports errors."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: Any) -> Tensor:
        x_s = super().step(x_t, t, s, **kwargs)
        unit = torch.eye(x_s.shape[-1], device=x_s.device)
        return torch.linalg.solve(unit, x_s)


class Copying(DDPMSampler):
    """A sampler that makes a constant on the host."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: Any) -> Tensor:
        return super().step(x_t, t, s, **kwargs) * torch.ones(8).to(x_t.device)


@pytest.mark.parametrize(
    ("sampler", "error", "match"),
    [
        (Hesitant, DataDependentOutputException, "_local_scalar_dense"),
        (Solving, AssertionError, "waits for the device"),
        (Copying, AssertionError, "a copy from the host"),
    ],
)
def test_a_hidden_synchronisation_is_caught(
    sampler: type, error: type[Exception], match: str
) -> None:
    condition = Conditioning()
    denoiser = conditional_of(MASK, condition)
    factory = partial(sampler, steps=2)
    posterior = Conditional(denoiser, MASK, sampler=factory, condition=condition)
    with pytest.raises(error, match=match):
        assert_loop(posterior, MASK)
