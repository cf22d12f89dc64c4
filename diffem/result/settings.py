"""The settings that weights carry, which may come from elsewhere: checked before they are used.

`check_targets` says what they may build; here their form is checked, and that what they build
costs no more than the weights themselves.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffem.config.allow_list import ALLOWED
from diffem.config.interpolation import check_interpolations
from diffem.result.parts import build_denoiser
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
PARTS = ("corruption", "dataset", "em", "method", "network", "sampler", "schedule", "trainer")
BUILT = ("corruption", "method", "network", "sampler", "schedule")
NEEDED = ("corruption", "method.posterior", "network", "sampler", "schedule")
LARGEST = 10**6
"""The largest whole number in the settings of channel, sampler and posterior."""
PIXELS = 2**28
"""The largest number of values of an image, 1 GiB."""
OTHER_NETWORK = "the weights are of another network than its settings"
REPEATED = ("blocks", "depth")
"""Keys of a network that say how often a part is repeated."""


def check_settings(config: Any) -> None:  # noqa: ANN401 - from JSON
    """Checks the form of the settings that weights carry.

    Arguments:
        config: The settings, in plain types.

    Raises:
        UserError: If a part is missing or has another form, or a number is absurdly large.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"the settings must be a mapping, got {type(config).__name__}")
    for part in PARTS:
        if not isinstance(config.get(part), Mapping):
            raise UserError(f"the settings have no {part}")
    check_interpolations(config)
    for place in (p for p in ALLOWED if p.partition(".")[0] in BUILT):
        _check_part(config, place)
    corruption = config["corruption"]
    if str(corruption["_target_"]) in ALLOWED["corruption"]:
        learn = corruption.get("learn")
        if "noise" not in corruption or not isinstance(learn, list | tuple):
            raise UserError("corruption must have a noise and a list of what to learn")
    if "steps" in config["sampler"]:
        check("sampler.steps", config["sampler"]["steps"])
    shape = config["dataset"].get("shape")
    if not isinstance(shape, list | tuple) or not shape:
        raise UserError(f"dataset.shape must be a list of sides, got {shape!r}")
    check("dataset.shape", shape)
    if math.prod(shape) > PIXELS:
        raise UserError(f"dataset.shape={shape} has more than {PIXELS} values")
    if (precision := config["trainer"].get("precision")) not in PRECISIONS:
        raise UserError(f"trainer.precision must be one of {PRECISIONS}, got {precision!r}")
    check("em.chunk_size", config["em"].get("chunk_size"))
    check("seed", config.get("seed"))
    for part in (p for p in BUILT if p != "network"):
        for key, number in whole_numbers(config[part], part):
            if abs(number) > LARGEST:
                raise UserError(f"{key} must be at most {LARGEST}, got {number:.3g}")


def _check_part(config: Mapping[str, Any], place: str) -> None:
    """Refuses a value at a place of the registry that builds nothing.

    Raises:
        UserError: If there is one, or nothing where something is needed.
    """
    node: Any = config
    for name in place.split("."):
        if not isinstance(node, Mapping) or name not in node:
            if place in NEEDED:
                raise UserError(f"the settings have no {place}")
            return
        node = node[name]
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{place} must be a part with a _target_, got {str(node)[:80]!r}")


def check_weights(
    config: Mapping[str, Any], cond_channels: object, state: Mapping[str, Tensor]
) -> None:
    """Checks that weights are those of a network before it is built.

    The network is built on the "meta" device, where weights take no memory. One of a trusted
    package is not checked.

    Arguments:
        config: The settings.
        cond_channels: The number of channels of the condition.
        state: The weights by name.

    Raises:
        UserError: If names or shapes differ.
    """
    if str(config["network"].get("_target_")) not in ALLOWED["network"]:
        return
    size = sum(value.numel() for value in state.values())
    check("cond_channels", cond_channels)
    assert isinstance(cond_channels, int)
    numbers = [*whole_numbers(config["network"], "network"), ("cond_channels", cond_channels)]
    for key, number in numbers:
        limit = len(state) if key.split(".")[1:2] in [[name] for name in REPEATED] else size
        if number > limit:
            raise UserError(f"{key}={number} is more than its weights have")
    with torch.device("meta"):
        denoiser = build_denoiser(config, cond_channels=cond_channels)
    wanted = {name: value.shape for name, value in denoiser.state_dict().items()}
    if wanted != {name: value.shape for name, value in state.items()}:
        raise UserError(OTHER_NETWORK)


def whole_numbers(node: object, key: str) -> Iterator[tuple[str, int]]:
    """Yields the full key and the value of each whole number in a container."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from whole_numbers(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from whole_numbers(value, f"{key}.{i}")
    elif isinstance(node, int) and not isinstance(node, bool):
        yield key, node
