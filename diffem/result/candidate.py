"""Candidates: what may have made a measurement, a run's prior seen through a channel."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffem.config.build import TARGET
from diffem.config.paths import given_path
from diffem.corruption import Channel, LinearChannel, LinearGaussianChannel
from diffem.corruption.recorded import Recorded
from diffem.posterior import Conditional, Reflected
from diffem.posterior.ambient import AmbientPrior
from diffem.result.parts import build_channel
from diffem.result.result import Result
from diffem.runtime.errors import UserError


@dataclass(frozen=True)
class Candidate:
    """What may have made a measurement: the images that a run learned, seen through a channel.

    Raises:
        UserError: If the run cannot tell the evidence of measurements, or its network is of
            another number of channels than the channel gives.
    """

    name: str
    """What tables call it."""
    result: Result
    """What the run learned."""
    channel: Channel
    """The channel, on the scale of [-1, 1]."""

    def __post_init__(self) -> None:
        path, posterior = self.result.path, self.result.posterior.posterior
        prior = self.result.known_prior().prior
        if (
            not isinstance(posterior, Conditional)
            or isinstance(posterior, Reflected)  # its x_t are not Gaussian
            or isinstance(prior, AmbientPrior)
        ):
            raise UserError(
                f"{path} is of a method without a denoiser of x given y, which the evidence "
                "takes; give a run of method=diffem, supervised or paper"
            )
        if not isinstance(self.channel, LinearGaussianChannel):
            raise UserError(
                f"{self.name}: the evidence takes a linear channel with Gaussian noise, got "
                f"{self.channel}; give another run or channel"
            )
        trained = posterior.condition.channels(self.result.channel)
        if (found := posterior.condition.channels(self.channel)) != trained:
            raise UserError(
                f"{self.name}: measurements of this channel enter the network as {found} "
                f"channels, and {path} was trained on {trained}, as some settings are told to it "
                "where they differ from measurement to measurement; give settings of the run's "
                "kind, such as a number for a number, or a run of this channel"
            )

    @classmethod
    def of(cls, result: Result, overrides: Sequence[str] = (), *, name: str = "") -> "Candidate":
        """Returns the candidate of a run, with settings of the channel in place of its own.

        Arguments:
            result: What the run learned.
            overrides: Settings of the corruption, as in "corruption.sigma=1.5".
            name: What tables call it; by default the overrides, or the run's directory.

        Raises:
            UserError: If a setting is no value of the corruption, or is refused.
        """
        name = name or " ".join(overrides) or result.path.name
        if not overrides:
            return cls(name, result, result.channel)
        if result.channel.learn:
            raise UserError(
                f"--channel {overrides[0]}: {result.path} learned its channel; leave it out, or "
                "give a run with corruption.learn=[]"
            )
        plain = _changed(result.config["corruption"], overrides)
        channel = build_channel(plain, result.channel.shape).scaled(result.scale.factor)
        operator = getattr(result.channel, "forward_operator", None)
        if isinstance(operator, Recorded) and isinstance(channel, LinearChannel):
            recorded = Recorded(channel.forward_operator, operator.recorded)
            channel = channel.with_operator(recorded)
        return cls(name, result, channel)


def _changed(corruption: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a node of conf/corruption with other values in the same parts.

    Raises:
        UserError: If an override is no value of the node, cannot be read, or is given twice.
    """
    changed = copy.deepcopy(dict(corruption))
    places = {key: (node, name) for key, node, name in _values(changed, "corruption")}
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if not key.startswith("corruption.") or "=" not in override:
            raise UserError(
                f"--channel {override} must be a setting of the run's corruption, as in "
                "corruption.noise.std=0.1"
            )
        if key not in places:
            raise UserError(
                f"--channel {override}: there is no {key} to change; the run has "
                f"{', '.join(places)}"
            )
        if keys.count(key) > 1:
            raise UserError(f"--channel {override}: {key} is given twice; give it once")
        try:
            path = given_path(override)
            text = f"v: {override.partition('=')[2]}"
            held = OmegaConf.to_container(OmegaConf.create(text)) if path is None else {"v": path}
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"--channel {override} cannot be read ({' '.join(str(error).split())}); give "
                f"{key} a number, a list in brackets, or a text"
            ) from error
        if TARGET in str(held) or "${" in str(held):
            raise UserError(
                f"--channel {override}: {key} must be a value, without {TARGET} and ${{…}}; give "
                "a number, a list in brackets, or a text"
            )
        node, name = places[key]
        node[name] = held["v"]  # type: ignore[index]
    return changed


def _values(node: Any, key: str) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yields the full key of each value of a corruption, what holds it, and its name there.

    What a part is made of (`_target_`) and what is learned are no values.
    """
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        parts = isinstance(value, list) and any(isinstance(part, dict) for part in value)
        if isinstance(value, dict) or parts:
            yield from _values(value, f"{key}.{name}")
        elif name not in (TARGET, "learn"):
            yield f"{key}.{name}", node, name
