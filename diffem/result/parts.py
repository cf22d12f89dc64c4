"""The parts of a run that sampling needs, built from its configuration."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from diffem.config.build import TARGET, build, locate
from diffem.config.types import LISTS
from diffem.corruption import (
    Channel,
    Composition,
    Denoising,
    DistortedChannel,
    Distortion,
    LinearOperator,
    make_channel,
)
from diffem.corruption.distorted import check_learns_nothing
from diffem.denoiser import Denoiser
from diffem.posterior import (
    DenoiserPosterior,
    Prior,
    Reflected,
    ReflectedSampler,
    SamplerFactory,
)
from diffem.posterior.ambient import AmbientPrior
from diffem.posterior.bounded import AUTO, Bounds, bounded, bounds_of
from diffem.posterior.posterior import check_sampler
from diffem.runtime.errors import UserError

Node = Mapping[Any, Any]
"""A node of the configuration, of OmegaConf or in plain types."""


def build_channel(node: Node, shape: Sequence[int]) -> Channel:
    """Returns the channel of a node of conf/corruption.

    Arguments:
        node: The keys of a forward operator or a distortion, with `noise` and `learn` beside
            them; `parts`, a list of such; or the keys of a channel that is made of neither.
        shape: The shape of an image.

    Raises:
        UserError: If a value is refused.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    assert isinstance(plain, Mapping)
    operators: list[LinearOperator] = []
    distortions: list[Distortion] = []
    for key, each in _parts(plain).items():
        target = locate(each[TARGET], f"{key}.{TARGET}")
        if isinstance(target, type) and issubclass(target, Distortion):
            distortions.append(build(each, key))
            continue
        given = {"shape": operators[-1].measured_shape if operators else shape}
        if isinstance(target, type) and issubclass(target, Channel) and "noise" in plain:
            given["noise"] = build(plain["noise"], "corruption.noise")
        part = build(each, key, **given)
        if isinstance(part, Channel):
            if "parts" in plain:
                raise UserError(
                    f"{key}={part} is a channel, and no operator or distortion that one is made "
                    "of; choose it as corruption._target_"
                )
            check_learns_nothing(list(plain.get("learn", ())), part)
            return part
        if distortions:
            raise UserError(
                f"{key}={part} stands after {distortions[-1]}, which is not linear; put all "
                "linear operators first: noise comes after them, and then the distortions"
            )
        operators.append(part)
    operators = operators or [Denoising(shape)]
    operator = operators[0] if len(operators) == 1 else Composition(operators)
    noise = build(plain["noise"], "corruption.noise")
    if distortions:  # before a wrong name is told which ones a linear channel has
        check_learns_nothing(list(plain["learn"]), distortions[0])
        return DistortedChannel(make_channel(operator, noise), distortions)
    return make_channel(operator, noise, learn=list(plain["learn"]))


def _parts(corruption: Node) -> dict[str, Node]:
    """Returns the nodes of the operators and distortions of a corruption, by their full keys.

    Raises:
        UserError: If `parts` is no list of them.
    """
    if "parts" not in corruption:
        return {"corruption": {k: v for k, v in corruption.items() if k not in ("noise", "learn")}}
    given = corruption["parts"]
    named = isinstance(given, list) and all(
        isinstance(part, Mapping) and isinstance(part.get(TARGET), str) for part in given
    )
    if not (named and given):
        raise UserError(f"corruption.parts must be {LISTS['corruption.parts']}, got {given!r}")
    return {f"corruption.parts.{i}": part for i, part in enumerate(given)}


def build_denoiser(cfg: Node, *, cond_channels: int) -> Denoiser:
    """Returns a denoiser with fresh weights, drawn from the global generators.

    Arguments:
        cfg: The configuration: its `network`, `schedule` and `dataset.shape`.
        cond_channels: The number of channels of what the network sees besides x_t.
    """
    shape = cfg["dataset"]["shape"]
    network = build(cfg["network"], "network", shape=list(shape), cond_channels=cond_channels)
    return Denoiser(network, build(cfg["schedule"], "schedule"))


def build_sampler(cfg: Node) -> SamplerFactory:
    """Returns what makes the sampler from a denoiser.

    Arguments:
        cfg: The configuration: its `sampler`, and `corruption.noise` if it has one.

    Raises:
        UserError: If `sampler.bounds` are none.
    """
    settings = {key: value for key, value in cfg["sampler"].items() if key != "bounds"}
    sampler = build(settings, "sampler")
    bounds = sampler_bounds(cfg)
    return partial(bounded(sampler.func, bounds), **sampler.keywords) if bounds else sampler


def sampler_bounds(cfg: Node) -> Bounds | None:
    """Returns what `sampler.bounds` keeps samples in; None for no bounds.

    `auto` is [lowest, ∞) of a noise that says nothing of what is lower: photon counts know no
    light below none, and what EM draws there it would learn from, round after round.

    Arguments:
        cfg: The configuration: its `sampler`, and `corruption.noise` if it has one.

    Raises:
        UserError: If `sampler.bounds` are none.
    """
    given = cfg["sampler"].get("bounds")
    if given == AUTO:
        noise = (cfg.get("corruption") or {}).get("noise")
        lowest = (
            None if noise is None else getattr(build(noise, "corruption.noise"), "lowest", None)
        )
        return None if lowest is None else Bounds(lowest, math.inf)
    if given is None:
        return None
    return Bounds.of(OmegaConf.to_container(given) if OmegaConf.is_config(given) else given)


def build_posterior(cfg: Node) -> partial[DenoiserPosterior]:
    """Returns what makes the posterior of `method.posterior` from a denoiser and a channel.

    Arguments:
        cfg: The configuration: its `method.posterior` and `sampler`.

    Raises:
        UserError: If the posterior would not use the sampler, or a setting of it.
    """
    make: partial[DenoiserPosterior] = build(cfg["method"]["posterior"], "method.posterior")
    posterior = make.func
    assert isinstance(posterior, type) and issubclass(posterior, DenoiserPosterior)
    sampler = build_sampler(cfg)
    if sampler.func is ReflectedSampler and not issubclass(posterior, Reflected):
        raise UserError(
            "sampler=reflected needs method=reflected, whose denoiser learns from folded images, "
            f"got method.posterior={posterior.__name__}; choose another sampler"
        )
    if not posterior.samplers:
        if cfg["sampler"].get("bounds") != AUTO and bounds_of(sampler.func) is not None:
            raise UserError(
                f"sampler.bounds has no effect on method.posterior={posterior.__name__}, which "
                "draws without a sampler; set it to null"
            )
        return make
    check_sampler(posterior, sampler)
    return partial(make, sampler=sampler)


def build_prior(cfg: Node, denoiser: Denoiser, *, removed: float | None = None) -> Prior:
    """Returns the prior that a denoiser defines.

    Arguments:
        cfg: The configuration: its `sampler` and `dataset.shape`.
        denoiser: A denoiser that takes no condition.
        removed: Of Ambient Diffusion's denoiser: the probability that a pixel is masked.
    """
    shape, sampler = list(cfg["dataset"]["shape"]), build_sampler(cfg)
    if removed is None:
        return Prior(denoiser, shape, sampler=sampler)
    return AmbientPrior(denoiser, shape, sampler=sampler, removed=removed)
