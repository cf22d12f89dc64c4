"""Conditioning: what a denoiser is told of an observation."""

from typing import NamedTuple

from torch import Tensor

from diffem.corruption import Corruption, Observation


class Condition(NamedTuple):
    """What a denoiser of p(x | x_t, y) is told of y."""

    embedding: Tensor
    """What the network sees, (B, C', *S)."""
    estimate: Tensor
    """Entries of x that y measures one by one, (B, *shape); any value where it does not."""
    precision: Tensor
    """Their inverse variance 1 / σ_y², (B, *shape); 0 where y does not measure the entry."""


def condition_on(corruption: Corruption, observation: Observation) -> Condition:
    """Returns the condition that an observation gives."""
    return Condition(
        embedding=corruption.embed(observation),
        estimate=corruption.lift(observation),
        precision=corruption.precision(observation),
    )
