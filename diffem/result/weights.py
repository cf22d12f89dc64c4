"""Exported weights: a safetensors file that carries all that is needed to sample with them.

checkpoints/posterior.safetensors, prior.safetensors: the averaged weights, and in the file's
metadata the version, the settings of network, schedule, sampler, method and channel, the data's
scale and format, and what was learned of the channel.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from diffem import __version__
from diffem.corruption import Channel, LinearChannel
from diffem.corruption.recorded import Recorded
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.storage.atomic import write_file
from diffem.storage.run_dir import check_same_version

METADATA = "diffem"  # the entry of the file's metadata
RECORDED = "recorded_operator"  # the tensor of φ, beside the weights
MOMENTS = "reconstructions"  # that of reconstructions
RECORDED_NUMBERS = 2**24  # numbers of recorded φ that are kept, at most: 64 MiB


@dataclass(frozen=True)
class Description:
    """What is written with weights, as JSON."""

    config: Mapping[str, Any]
    """Settings in plain types: network, schedule, sampler, method.posterior, corruption (as it is
    assumed, in the data's units), dataset.shape, em.chunk_size, trainer.precision, seed."""
    cond_channels: int
    """Channels of what the network sees besides x_t."""
    scale: tuple[float, float] = (-1.0, 1.0)
    """The values, in the data's units, that are -1 and 1."""
    format: Mapping[str, Any] | None = None
    """The format of the measurements' files; None for a benchmark."""
    estimates: Mapping[str, float] = field(default_factory=dict)
    """Learned parameters of the channel, on the scale of [-1, 1]."""
    removed: float | None = None
    """Of Ambient Diffusion's prior: the probability that a pixel is masked."""
    round: int = 0
    """The round whose reconstructions the network was trained on last."""
    size: int = 0
    """The number of reconstructions in a round."""


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds."""

    state: dict[str, Tensor]
    """The denoiser's weights."""
    about: Description
    """What was written with them."""
    recorded: Tensor | None
    """Some of the operator's parameters that the measurements came with, (n, *P), if they did."""
    moments: Tensor | None = None
    """Some reconstructions, (n, *shape), that an exported posterior takes moments of."""


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    about: Description,
    channel: Channel,
    *,
    moments: Tensor | None = None,
) -> None:
    """Writes weights with their description, atomically.

    Arguments:
        path: The .safetensors file.
        state: The denoiser's weights.
        about: What is written with them.
        channel: The channel; of recorded operator parameters the first ones are kept.
        moments: Reconstructions, (n, *shape), that the posterior takes moments of; None if they
            are in the run directory, or it takes none.
    """
    tensors = {name: value.cpu().contiguous() for name, value in state.items()}
    operator = channel.forward_operator if isinstance(channel, LinearChannel) else None
    if isinstance(operator, Recorded):
        size = max(1, operator.recorded[torch.zeros(1, dtype=torch.int64)].numel())
        rows = torch.arange(max(1, min(len(operator.recorded), RECORDED_NUMBERS // size)))
        tensors[RECORDED] = operator.recorded[rows].contiguous()
    if moments is not None:
        tensors[MOMENTS] = moments.cpu().contiguous()
    # One entry: the order of several would differ from process to process.
    description = json.dumps({"version": __version__, **asdict(about)})
    content = safetensors.torch.save(tensors, {METADATA: description})
    write_file(path, lambda file: file.write(content))


def read_weights(path: Path) -> Weights:
    """Returns what `write_weights` wrote; nothing in the file is executed.

    Raises:
        UserError: If there is no such file, it is damaged, or another version wrote it.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, RuntimeError) as error:  # the last of a size beyond memory
        raise UserError(f"{path} cannot be read ({error}); give a finished run") from error
    if METADATA not in metadata:
        raise UserError(
            f"{path} carries no description of the run, as weights of diffem 0.1 do not; use the "
            "version that wrote it, or train it again"
        )
    try:
        held = json.loads(metadata[METADATA])
        check_same_version(str(path), held.pop("version"))
        about = Description(**held)
        check_form(about)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its description is damaged ({error!r})") from error
    return Weights(tensors, about, tensors.pop(RECORDED, None), tensors.pop(MOMENTS, None))


def check_form(about: Description) -> None:
    """Checks the types in a description, besides the settings, which `check_settings` checks.

    Raises:
        UserError: If one is another, or a number is out of its range.
    """
    for name in ("cond_channels", "round", "size"):
        check(f"its description's {name}", getattr(about, name))
    pair = isinstance(about.scale, list | tuple) and len(about.scale) == 2
    if not pair or not all(_is_number(bound) for bound in about.scale):
        raise UserError(f"its description's scale must be two numbers, got {about.scale!r}")
    if not isinstance(about.estimates, Mapping) or not all(
        isinstance(name, str) and _is_number(value) for name, value in about.estimates.items()
    ):
        raise UserError("its description's estimates must be numbers by name")
    check("its description's removed", about.removed)
    form = about.format
    types: dict[str, Any] = {"suffix": str, "dtype": str, "channel_axis": bool}
    types |= {"key": str | None, "axes": str | None, "dims": int | None}
    if form is not None and not (
        isinstance(form, Mapping)
        and form.keys() == types.keys()
        and all(isinstance(form[name], types[name]) for name in types)
    ):
        raise UserError(f"its description's format must have {', '.join(types)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
