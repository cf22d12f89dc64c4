"""Evidence of measurements under what runs learned: which channel, or which run, made them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from diffem.config.build import TARGET
from diffem.corruption import Channel, LinearChannel, LinearGaussianChannel
from diffem.corruption.recorded import Recorded
from diffem.posterior import Conditional
from diffem.posterior.ambient import AmbientPrior
from diffem.posterior.evidence import estimate_evidence
from diffem.posterior.posterior import Measurements
from diffem.result.parts import build_channel
from diffem.result.result import Result
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded


@dataclass(frozen=True)
class Candidate:
    """What may have made a measurement: the images that a run learned, seen through a channel.

    Raises:
        UserError: If the run cannot tell the evidence of measurements.
    """

    name: str
    """What tables call it."""
    result: Result
    """What the run learned."""
    channel: Channel
    """The channel, on the scale of [-1, 1]."""

    def __post_init__(self) -> None:
        path, posterior = self.result.path, self.result.posterior.posterior
        if self.result.prior is None:
            raise UserError(
                f"{path} has no prior, which the evidence takes; train it with a prior"
            )
        if not isinstance(posterior, Conditional) or isinstance(
            self.result.prior.prior, AmbientPrior
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
            held = OmegaConf.to_container(OmegaConf.create(f"v: {override.partition('=')[2]}"))
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


@dataclass(frozen=True)
class Evidences:
    """The evidence of measurements under several candidates."""

    log_evidence: Tensor
    """log p(y) of the measured entries, (K, B), float64."""
    error: Tensor
    """The standard error of each, from the estimates' spread, (K, B); NaN of one estimate."""
    entries: Tensor
    """The number of measured entries, (B,)."""
    surprise: Tensor
    """How much of each entry the first candidate's prior would not have guessed, (B, *shape)."""

    @property
    def per_entry(self) -> Tensor:
        """-log p(y) over the number of measured entries, of the first candidate, (B,).

        Differences of it between measurements tell which are unlike those of the training.
        """
        return -self.log_evidence[0] / self.entries.clamp(min=1)

    @property
    def probability(self) -> Tensor:
        """The probability of each candidate, if all are as probable before y is seen, (K, B)."""
        return torch.softmax(self.log_evidence, dim=0)


def compare_evidence(
    candidates: Sequence[Candidate],
    measurements: Sequence[Measurements],
    *,
    n: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> Evidences:
    """Returns the evidence of measurements under candidates, from the same noise for all.

    Arguments:
        candidates: The candidates, of images of one shape.
        measurements: For each of them the measurements, under its channel.
        n: The number of estimates of each.
        seed: The seed; a chunk's draws depend on it and the chunk's place alone.
        advance: Called after each chunk of each candidate.
    """
    sampling = candidates[0].result.posterior.sampling
    count, size = len(measurements[0]), sampling.chunk_size
    logs, entries, surprises = [], torch.zeros(count), []
    for candidate, rows in zip(candidates, measurements, strict=True):
        channel, parts = candidate.channel, []
        assert isinstance(channel, LinearGaussianChannel)
        posterior, prior = candidate.result.posterior.posterior, candidate.result.prior
        assert isinstance(posterior, Conditional) and prior is not None
        for start in range(0, count, size):
            y = rows.select(slice(start, start + size)).to(sampling.device)
            with (
                torch.no_grad(),
                sampling.context(),
                seeded(seed, "evidence", start, device=sampling.device),
            ):
                found = estimate_evidence(posterior.under(channel), prior.prior.denoiser, y, n=n)
            parts.append(found.log_evidence.cpu())
            if candidate is candidates[0]:
                surprises.append(found.surprise.float().cpu())
                measured = channel.measured_mask(y.y, y.operator).flatten(1).sum(dim=1)
                entries[start : start + size] = measured.cpu()
            advance()
        logs.append(torch.cat(parts, dim=1))
    each = torch.stack(logs)  # (K, n, B)
    error = each.std(dim=1) / n**0.5 if n > 1 else torch.full_like(each[:, 0], torch.nan)
    return Evidences(each.mean(dim=1), error, entries, torch.cat(surprises))
