"""The cost of EM on paper: operations, bytes and seconds of its steps, from a configuration.

With N measurements of D entries, E evaluations a sample, S optimiser steps of B images a round,
a network of P parameters that takes F operations forward and F' forward and backward an image, and
W devices that each do R operations a second:

    E-step:  N E F operations,   N E F / (W R) seconds,   4 N D bytes written
    M-step:  S B F' operations,  S B F' / (W R) seconds,  and 2 (W - 1)/W 4 P bytes all-reduced a
             step by each device: that, over the bandwidth, if nothing overlaps with the backward
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffem.cli.compose import compose_config
from diffem.config.build import build
from diffem.em import EMSettings
from diffem.network import UNet
from diffem.result import build_channel

BF16_PEAK = 989e12
"""Dense bfloat16 operations a second of an H100 (SXM), by its data sheet."""
SHARES = (0.2, 0.4)
"""The shares of that peak that predictions assume: about 200 TFLOP/s, and the double."""
BANDWIDTH = 25e9
"""Bytes a second that a device is assumed to all-reduce across nodes: half of 400 Gbit/s."""
HOUR = 3600.0


@dataclass(frozen=True)
class NetworkCost:
    """What one image costs in a network; a multiplication and an addition are two operations.

    Counted are convolutions, matrix products and attention; element-wise operations are not.
    """

    forward: float
    """Operations of a forward pass."""
    training: float
    """Operations of a forward and a backward pass."""
    parameters: int
    """The number of parameters."""


def count_flops(run: Callable[[], object]) -> int:
    """Returns the floating-point operations of a call, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def network_cost(network: nn.Module, inputs: Sequence[Tensor]) -> NetworkCost:
    """Returns what an image costs in a network, without computing anything.

    It is counted on the meta device: of attention as CPUs compute it, torch counts nothing.

    Arguments:
        network: The network.
        inputs: A batch of its inputs.
    """
    network = copy.deepcopy(network).to("meta")
    given = [each.to("meta") for each in inputs]
    with torch.no_grad():
        forward = count_flops(lambda: network(*given))
    training = count_flops(lambda: network(*given).square().mean().backward())
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkCost(forward / len(given[0]), training / len(given[0]), parameters)


def unet_cost(
    shape: Sequence[int], cond_channels: int, arguments: Mapping[str, Any]
) -> NetworkCost:
    """Returns what an image costs in diffem's U-Net.

    Arguments:
        shape: The shape of an image, (C, *S).
        cond_channels: The channels of the measurement's embedding.
        arguments: The U-Net's own.
    """
    with torch.device("meta"):
        network = UNet(shape, cond_channels, **arguments)
        cond = torch.empty(1, cond_channels, *shape[1:])
        return network_cost(network, (torch.empty(1, *shape), torch.empty(1), cond))


@dataclass(frozen=True)
class Plan:
    """A run of EM, by what its cost depends on."""

    name: str
    """Its name in tables."""
    network: NetworkCost
    """The network of the posterior."""
    prior: NetworkCost
    """The network of the prior."""
    size: int
    """The number N of measurements."""
    entries: int
    """The number D of entries of an image."""
    rounds: int
    """The number of rounds, each of which has an M-step and an E-step."""
    m_steps: int
    """The optimiser steps of all M-steps together."""
    batch_size: int
    """The global batch size B."""
    evaluations: int
    """The evaluations E of the network for a sample."""
    prior_steps: int
    """The optimiser steps of the prior."""

    @property
    def e_step_flops(self) -> float:
        """Operations of one E-step."""
        return self.size * self.evaluations * self.network.forward

    @property
    def m_step_flops(self) -> float:
        """Operations of all M-steps."""
        return self.m_steps * self.batch_size * self.network.training

    @property
    def prior_flops(self) -> float:
        """Operations of the prior's training."""
        return self.prior_steps * self.batch_size * self.prior.training

    @property
    def flops(self) -> float:
        """Operations of the run, but for evaluation and round 0."""
        return self.rounds * self.e_step_flops + self.m_step_flops + self.prior_flops

    @property
    def round_bytes(self) -> int:
        """Bytes of one round of reconstructions on the disk."""
        return 4 * self.size * self.entries

    @property
    def state_bytes(self) -> int:
        """Bytes that weights, gradients, Adam's moments and the average take on each device."""
        return 5 * 4 * self.network.parameters

    def all_reduce_bytes(self, devices: int) -> float:
        """Returns the bytes that each device sends in an optimiser step (a ring)."""
        return 2 * (devices - 1) / devices * 4 * self.network.parameters

    def hours(self, rate: float, devices: int = 1) -> float:
        """Returns the wall time in hours, with nothing overlapped.

        Arguments:
            rate: The operations a second of a device.
            devices: The number of devices.
        """
        steps = self.m_steps + self.prior_steps
        communication = steps * self.all_reduce_bytes(devices) / BANDWIDTH
        return (self.flops / (devices * rate) + communication) / HOUR


def plan(name: str, cfg: DictConfig, size: int) -> Plan:
    """Returns the plan of a configuration of a U-Net with a sampler of `sampler.steps`.

    Arguments:
        name: The plan's name.
        cfg: The configuration, as `diffem train` composes it.
        size: The number N of measurements.
    """
    settings: EMSettings = build(cfg.em, "em")
    shape = list(cfg.dataset.shape)
    channel = build_channel(cfg.corruption, shape)
    cond_channels = build(cfg.method.condition, "method.condition").channels(channel)
    arguments = {key: value for key, value in cfg.network.items() if key != "_target_"}
    return Plan(
        name,
        unet_cost(shape, cond_channels, arguments),
        unet_cost(shape, 0, arguments),
        size=size,
        entries=torch.Size(shape).numel(),
        rounds=settings.rounds,
        m_steps=settings.total_steps(size),
        batch_size=settings.batch_size,
        evaluations=cfg.sampler.steps,
        prior_steps=cfg.prior.steps if cfg.prior else 0,
    )


@cache
def plans() -> tuple[Plan, ...]:
    """Returns the plans of docs/performance.md: the paper's CIFAR-10, the fast one, ImageNet."""
    cifar = [
        plan(name, compose_config([f"experiment={name}", "run_dir=runs/unused"]), 50_000)
        for name in ("paper_cifar10_mask75", "cifar10_mask75_fast")
    ]
    large = {
        "channels": [192, 384, 576, 768],
        "blocks": [3, 3, 3, 3],
        "attention": [2, 3],
        "dropout": 0.1,
    }
    imagenet = Plan(
        "ImageNet 64 × 64",
        unet_cost([3, 64, 64], 4, large),
        unet_cost([3, 64, 64], 0, large),
        size=1_281_167,
        entries=3 * 64 * 64,
        rounds=20,
        m_steps=100_000 + 19 * 15_000,
        batch_size=4096,
        evaluations=14,
        prior_steps=100_000,
    )
    return (*cifar, imagenet)


def plan_table() -> str:
    """Returns the Markdown table of what the plans cost."""
    devices = (1, 1, 64)
    rows = {
        "parameters (M)": [f"{p.network.parameters / 1e6:.0f}" for p in plans()],
        "F, one image forward (GFLOP)": [f"{p.network.forward / 1e9:.1f}" for p in plans()],
        "F′ / F, with backward": [
            f"{p.network.training / p.network.forward:.2f}" for p in plans()
        ],
        "N": [f"{p.size:,}" for p in plans()],
        "evaluations a sample": [f"{p.evaluations}" for p in plans()],
        "rounds": [f"{p.rounds}" for p in plans()],
        "optimiser steps × batch": [f"{p.m_steps:,} × {p.batch_size}" for p in plans()],
        "one E-step (FLOP)": [f"{p.e_step_flops:.2e}" for p in plans()],
        "all E-steps (FLOP)": [f"{p.rounds * p.e_step_flops:.2e}" for p in plans()],
        "all M-steps (FLOP)": [f"{p.m_step_flops:.2e}" for p in plans()],
        "the prior (FLOP)": [f"{p.prior_flops:.2e}" for p in plans()],
        "**in all (FLOP)**": [f"**{p.flops:.2e}**" for p in plans()],
        "a round on disk (GB)": [f"{p.round_bytes / 1e9:.1f}" for p in plans()],
        "weights, gradients, Adam, average (GB a device)": [
            f"{p.state_bytes / 1e9:.1f}" for p in plans()
        ],
        "devices": [f"{n}" for n in devices],
        "all-reduce a step (MB a device)": [
            f"{p.all_reduce_bytes(n) / 1e6:.0f}" for p, n in zip(plans(), devices, strict=True)
        ],
        "all-reduce (hours)": [
            f"{p.hours(1e30, n):.1f}" for p, n in zip(plans(), devices, strict=True)
        ],
    }
    for share in SHARES:
        rate = share * BF16_PEAK
        name = f"**hours at {share:.0%} of the bf16 peak ({rate / 1e12:.0f} TFLOP/s)**"
        rows[name] = [f"**{p.hours(rate, n):.1f}**" for p, n in zip(plans(), devices, strict=True)]
    head = ["", *(f"`{p.name}`" if "_" in p.name else p.name for p in plans())]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one step on this machine, and what was measured."""

    network: str
    """The network's name."""
    N: int
    """The number of measurements."""
    step: str
    """E-step or M-step, with what it does."""
    flops: float
    """The operations."""
    rate: float
    """Operations a second of bare passes of the network on this machine."""
    measured: float
    """The seconds that the step took."""

    @property
    def predicted(self) -> float:
        """The seconds that it should take."""
        return self.flops / self.rate


def prediction_rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Returns predictions in plain types."""
    return [{**asdict(each), "predicted": each.predicted} for each in predictions]
