"""What the EM loop is measured against: bare passes of its network, and other libraries.

Each contender trains for a number of steps and samples a number of batches, in the loop's own
precision and batch sizes.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from azula.denoise import KarrasDenoiser
from azula.nn.unet import UNet as AzulaUNet
from azula.noise import VESchedule
from azula.sample import DDPMSampler
from torch import Tensor, nn

from bench.loop import Loop
from diffem.network.embedding import NoiseEmbedding
from diffem.network.unet import GROUPS


def installed(package: str) -> bool:
    """Returns whether a package can be imported."""
    return find_spec(package) is not None


class Contender(ABC):
    """Abstract contender of a loop.

    Arguments:
        loop: The loop, whose sizes, optimiser and precision it takes.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.shape: tuple[int, ...] = tuple(loop.cfg.dataset.shape)
        self.batch, self.chunk = loop.settings.batch_size, loop.settings.chunk_size
        self.evaluations: int = loop.cfg.sampler.steps

    def precision(self) -> AbstractContextManager[None]:
        """Opens the loop's scope of mixed precision."""
        return self.loop.module.trainer.precision_plugin.forward_context()

    def train(self, steps: int) -> None:
        """Takes optimiser steps on random batches.

        It is called between two rounds, in the E-step's scope: gradients off, mixed precision on.
        """
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for _ in range(steps):
                self.step()
                torch.clear_autocast_cache()  # of weights in bfloat16, as at the scope's end

    @abstractmethod
    def step(self) -> None:
        """Takes an optimiser step on a random batch."""

    @abstractmethod
    def sample(self, chunks: int) -> None:
        """Samples chunks, or takes as many forward passes."""


class Passes(Contender):
    """Bare passes of a network: forward, backward and optimiser step; forward alone.

    No corruption, no noise levels, no gradient clipping, no average of weights, no loader, nothing
    written: what is left of the loop is the network and its optimiser.

    Arguments:
        loop: The loop.
        network: The network of (x, log σ, embedding of y); the loop's own for None.
    """

    def __init__(self, loop: Loop, network: nn.Module | None = None) -> None:
        super().__init__(loop)
        self.network = copy.deepcopy(network or loop.module.denoiser.backbone)
        self.optimizer = loop.module.m_step.optimizer(self.network.parameters())
        self.cond_channels = loop.module.objective.cond_channels(loop.train.channel)

    def inputs(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns random inputs of the network."""
        x = torch.randn(size, *self.shape)
        return x, torch.randn(size), torch.randn(size, self.cond_channels, *self.shape[1:])

    def step(self) -> None:
        """Takes an optimiser step on a random batch."""
        self.network.train()
        with self.precision():
            loss = self.network(*self.inputs(self.batch)).float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sample(self, chunks: int) -> None:
        """Takes as many forward passes as sampling does."""
        self.network.eval()
        with torch.no_grad(), self.precision():
            for _ in range(chunks * self.evaluations):
                self.network(*self.inputs(self.chunk))


class Convolutions(Contender):
    """The two-dimensional convolutions of a network alone: what is left if all else took no time.

    Each is computed from what the network gives it, in the same precision and memory format; in
    training also its gradients, that of its input where the network needs it.

    Arguments:
        passes: Bare passes of the network.
    """

    def __init__(self, passes: Passes) -> None:
        super().__init__(passes.loop)
        self.in_training = self._record(passes, self.batch)
        self.in_sampling = self._record(passes, self.chunk)

    def _record(self, passes: Passes, size: int) -> list[tuple[nn.Conv2d, Tensor, Tensor, Tensor]]:
        """Returns each convolution, its input and weight, and a gradient of its output."""
        found: list[tuple[nn.Conv2d, Tensor, Tensor, Tensor]] = []

        def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d)
            (x,), gradient = inputs, torch.randn_like(output)
            copies = (v.detach().to(output.dtype) for v in (x, layer.weight))
            x, weight = (
                copy.requires_grad_(v.requires_grad)
                for copy, v in zip(copies, (x, layer.weight), strict=True)
            )
            found.append((layer, x, weight, gradient))

        layers = [m for m in passes.network.modules() if isinstance(m, nn.Conv2d)]
        handles = [layer.register_forward_hook(note) for layer in layers]  # type: ignore[reportArgumentType]
        with torch.enable_grad(), passes.precision():
            passes.network(*passes.inputs(size))
        for handle in handles:
            handle.remove()
        return found

    def step(self) -> None:
        """Computes each convolution and its gradients on a batch."""
        for layer, x, weight, gradient in self.in_training:
            y = F.conv2d(x, weight, None, layer.stride, layer.padding)
            torch.autograd.grad(y, [v for v in (x, weight) if v.requires_grad], gradient)

    def sample(self, chunks: int) -> None:
        """Computes each convolution as often as sampling does."""
        with torch.no_grad():
            for _ in range(chunks * self.evaluations):
                for layer, x, weight, _ in self.in_sampling:
                    F.conv2d(x, weight, None, layer.stride, layer.padding)


class AzulaNetwork(nn.Module):
    """azula's U-Net as it comes, of the loop's channels and blocks, modulated by log σ."""

    def __init__(self, loop: Loop, cond_channels: int) -> None:
        super().__init__()
        channels, shape = list(loop.cfg.network.channels), loop.cfg.dataset.shape
        features = max(64, 2 * channels[0])
        self.embedding = NoiseEmbedding(features)
        self.unet = AzulaUNet(
            shape[0],
            shape[0],
            cond_channels=cond_channels,
            hid_channels=channels,
            hid_blocks=list(loop.cfg.network.blocks),
            mod_features=features,
            norm="group",
            groups=GROUPS,
            spatial=len(shape) - 1,
        )

    def forward(self, x: Tensor, c: Tensor, cond: Tensor) -> Tensor:
        """Returns the raw output, (B, C, *S)."""
        return self.unet(x, self.embedding(c).expand(len(x), -1), cond)


class Azula(Contender):
    """azula's own training loop and sampler: KarrasDenoiser, its loss, DDPM.

    The loop is that of azula's tutorials: images, times, loss, clipped gradients, step.
    """

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.cond_channels = loop.module.objective.cond_channels(loop.train.channel)
        network = AzulaNetwork(loop, self.cond_channels)
        self.denoiser = KarrasDenoiser(network, VESchedule(0.005, 20.0))
        self.optimizer = loop.module.m_step.optimizer(self.denoiser.parameters())

    def cond(self, size: int) -> Tensor:
        """Returns a random embedding of y."""
        return torch.randn(size, self.cond_channels, *self.shape[1:])

    def step(self) -> None:
        """Takes an optimiser step on a random batch."""
        self.denoiser.train()
        x, t = torch.randn(self.batch, *self.shape), torch.rand(self.batch)
        with self.precision():
            loss = self.denoiser.loss(x, t, cond=self.cond(self.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sample(self, chunks: int) -> None:
        """Samples chunks by DDPM."""
        self.denoiser.eval()
        sampler = DDPMSampler(self.denoiser, steps=self.evaluations, silent=True)
        with torch.no_grad(), self.precision():
            for _ in range(chunks):
                sampler(sampler.init((self.chunk, *self.shape)), cond=self.cond(self.chunk))


class DiffusersNetwork(nn.Module):
    """diffusers' U-Net of the loop's channels, with as many layers as give a like size."""

    def __init__(self, loop: Loop, cond_channels: int) -> None:
        from diffusers import UNet2DModel  # type: ignore[import-not-found]

        super().__init__()
        channels, (inputs, *_) = list(loop.cfg.network.channels), loop.cfg.dataset.shape
        attends = set(loop.cfg.network.attention)
        names = ["Attn" if level in attends else "" for level in range(len(channels))]
        self.unet = UNet2DModel(
            in_channels=inputs + cond_channels,
            out_channels=inputs,
            down_block_types=tuple(f"{name}DownBlock2D" for name in names),
            up_block_types=tuple(f"{name}UpBlock2D" for name in reversed(names)),
            mid_block_type=None,
            block_out_channels=tuple(channels),
            layers_per_block=max(loop.cfg.network.blocks),
            norm_num_groups=GROUPS,
        )

    def forward(self, x: Tensor, c: Tensor, cond: Tensor) -> Tensor:
        """Returns the raw output, (B, C, *S)."""
        return self.unet(torch.cat([x, cond], dim=1), c, return_dict=False)[0]


class DeepInv(Passes):
    """deepinv's DiffPIR on the loop's network, of as many evaluations."""

    def __init__(self, loop: Loop) -> None:
        import deepinv  # type: ignore[import-not-found]

        super().__init__(loop)
        contender = self

        class Model(deepinv.models.Denoiser):
            """The loop's network as deepinv calls it."""

            def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401
                """Returns the network's output."""
                level = torch.full((len(x),), float(sigma)).log()
                cond = x.new_zeros(len(x), contender.cond_channels, *x.shape[2:])
                return contender.network(x, level, cond).float()

        self.sampler = deepinv.sampling.DiffPIR(
            Model(), deepinv.optim.L2(), sigma=0.05, max_iter=self.evaluations
        )
        self.physics = deepinv.physics.Inpainting(
            self.shape,  # type: ignore[reportArgumentType]
            mask=0.5,
            noise_model=deepinv.physics.GaussianNoise(0.05),
        )

    def sample(self, chunks: int) -> None:
        """Samples chunks of masked measurements by DiffPIR."""
        self.network.eval()
        with torch.no_grad(), self.precision():
            for _ in range(chunks):
                self.sampler(self.physics(torch.rand(self.chunk, *self.shape)), self.physics)


def parameters(networks: Sequence[nn.Module]) -> list[int]:
    """Returns the number of parameters of each network."""
    return [sum(p.numel() for p in network.parameters()) for network in networks]
