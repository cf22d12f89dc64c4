"""The parts of a run that sampling needs, built from its configuration."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from diffem.config.build import build
from diffem.corruption import Channel, make_channel
from diffem.denoiser import Denoiser
from diffem.posterior import DenoiserPosterior, Prior
from diffem.posterior.ambient import AmbientPrior
from diffem.posterior.posterior import check_sampler

Node = Mapping[Any, Any]
"""A node of the configuration, of OmegaConf or in plain types."""


def build_channel(node: Node, shape: Sequence[int]) -> Channel:
    """Returns the channel of a node of conf/corruption.

    Arguments:
        node: The keys of a forward operator, with `noise` and `learn` beside them; or those of a
            channel that is not made of an operator and a noise model.
        shape: The shape of an image.

    Raises:
        UserError: If a value is refused.
    """
    settings = {k: v for k, v in node.items() if k not in ("noise", "learn")}
    part = build(settings, "corruption", shape=shape)
    if isinstance(part, Channel):
        return part
    return make_channel(part, build(node["noise"], "corruption.noise"), learn=list(node["learn"]))


def build_denoiser(cfg: Node, *, cond_channels: int) -> Denoiser:
    """Returns a denoiser with fresh weights, drawn from the global generators.

    Arguments:
        cfg: The configuration: its `network`, `schedule` and `dataset.shape`.
        cond_channels: The number of channels of what the network sees besides x_t.
    """
    shape = cfg["dataset"]["shape"]
    network = build(cfg["network"], "network", shape=list(shape), cond_channels=cond_channels)
    return Denoiser(network, build(cfg["schedule"], "schedule"))


def build_posterior(cfg: Node) -> partial[DenoiserPosterior]:
    """Returns what makes the posterior of `method.posterior` from a denoiser and a channel.

    Arguments:
        cfg: The configuration: its `method.posterior` and `sampler`.

    Raises:
        UserError: If the posterior would not use the sampler.
    """
    make: partial[DenoiserPosterior] = build(cfg["method"]["posterior"], "method.posterior")
    posterior = make.func
    assert isinstance(posterior, type) and issubclass(posterior, DenoiserPosterior)
    if not posterior.samplers:
        return make
    sampler = build(cfg["sampler"], "sampler")
    check_sampler(posterior, sampler)
    return partial(make, sampler=sampler)


def build_prior(cfg: Node, denoiser: Denoiser, *, removed: float | None = None) -> Prior:
    """Returns the prior that a denoiser defines.

    Arguments:
        cfg: The configuration: its `sampler` and `dataset.shape`.
        denoiser: A denoiser that takes no condition.
        removed: Of Ambient Diffusion's denoiser: the probability that a pixel is masked.
    """
    shape, sampler = list(cfg["dataset"]["shape"]), build(cfg["sampler"], "sampler")
    if removed is None:
        return Prior(denoiser, shape, sampler=sampler)
    return AmbientPrior(denoiser, shape, sampler=sampler, removed=removed)
