"""The guard of E-steps: networks draw new reconstructions once one predicts better than the init.

A part h of what each held-out y measured is hidden: entries of y that other measurements lack, so
that a network has learned to do without them; where there are none, a part that is split off by
the noise. x̂ is drawn given the rest, and what it would have measured there, ĥ = A x̂ + noise, is
compared with h by the energy score

    E‖ĥ - h‖ - ½ E‖ĥ - ĥ'‖

of Gneiting & Raftery (2007, eq. 22). It needs no truth, and is the lowest in expectation for the
law of h given the rest: neither blurred samples nor ones that spread too little are rewarded.

Rounds are compared by the mean squared error of the mean of both samples,

    ‖½ (A x̂ + A x̂') - h‖² / m,   m the number of entries of h.

Without noise in its predictions it tells smaller differences, where a hidden part is mostly noise;
but it rewards samples that spread too little, which must not take the init's place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffem.corruption import Channel, LinearChannel, LinearOperator, Measurement
from diffem.data.measurements import MeasurementSet
from diffem.posterior import Posterior, sample_chunks
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key, generator

ENTRIES, MSE = "hidden_entries", "hidden_mse"
"""The names of the energy score and of the squared error."""
DRAWS = 2  # of each posterior: the fewest that the energy score takes
FEW = 16  # of fewer measurements the score is mostly chance
OTHERS = 64  # drawn parameters of operators, which show what measurements lack


@dataclass(frozen=True)
class Guard:
    """Compares a network's posterior with the init's, until one is better.

    Later E-steps are not held back: a network that learns from the same reconstructions for long
    learns them by heart, and predicts worse and worse (docs/results.md, When E-steps pay).

    Raises:
        UserError: If a number is out of its range.
    """

    measurements: int
    """The largest number of held-out measurements that are predicted."""
    hidden: float
    """The fraction in (0, 1) that is hidden: the probability of each measured entry, or the share
    of the inverse variance (`Noise.split`)."""

    def __post_init__(self) -> None:
        check("em.guard.measurements", self.measurements)
        check("em.guard.hidden", self.hidden)

    @staticmethod
    def fits(channel: Channel) -> bool:
        """Returns whether a part of what a channel measures can be hidden."""
        if not isinstance(channel, LinearChannel):
            return False
        noise = channel.noise.draw_parameters(1, generator("fits"))
        y = torch.zeros(1, 1)
        splits = channel.noise.split(y, noise, 0.5, generator("fits")) is not None
        return splits or Guard.holds_back(channel)

    @staticmethod
    def holds_back(channel: Channel) -> bool:
        """Returns whether a score can hold E-steps back: whether single entries can be hidden.

        Where every measurement lacks the same, only E-steps bring in what the score cannot see.
        """
        if not isinstance(channel, LinearChannel):
            return False
        return varying_entries(channel.forward_operator) is not None

    def scores(
        self,
        posterior: Posterior,
        measurements: MeasurementSet,
        *,
        seed: int,
        chunk_size: int,
        device: torch.device | str,
    ) -> dict[str, Tensor] | None:
        """Returns how well each measurement's hidden entries are predicted; lower is better.

        Posteriors that are compared predict the same entries from the same noise.

        Arguments:
            posterior: The posterior.
            measurements: Measurements that were not trained on, of a channel that the guard fits.
            seed: The run's seed.
            chunk_size: The largest number of measurements that are sampled together.
            device: Where to sample.

        Returns:
            `hidden_entries`, the energy scores, and `hidden_mse`, the squared errors in units of
            y², each (n,), float64; None if entries are hidden in fewer than 16 measurements.
        """
        channel = measurements.channel
        assert isinstance(channel, LinearChannel)
        key = (seed, "guard")
        given = measurements.select(slice(self.measurements))
        task = hide(channel, given, self.hidden, key=key)
        if len(task) < FEW:
            return None
        chunks = sample_chunks(
            posterior, task, DRAWS, chunk_size=chunk_size, key=key, device=device
        )
        samples = torch.cat(list(chunks), dim=1)
        return {
            ENTRIES: energy_score(channel, task, samples, key=key),
            MSE: squared_error(channel, task, samples),
        }


@dataclass(frozen=True)
class Hidden:
    """Measurements of which a part is hidden."""

    rest: Measurement
    """What is not hidden."""
    target: Measurement
    """What is hidden: measurements by the same operators, each with a noise of its own."""
    entries: Tensor
    """1 where the target is known, (n, *M)."""

    def __len__(self) -> int:
        return len(self.rest.y)

    def select(self, index: slice | Tensor) -> Measurement:
        """Returns what is not hidden of the measurements at an index."""
        return self.rest.select(index)


def varying_entries(operator: LinearOperator) -> Tensor | None:
    """Returns where φ measures an entry in some operators and leaves it out in others, (*P).

    A network has not learned to do without what every measurement has, such as the middle of
    k-space. What fewer than about one operator in 64 leaves out, or measures, may be missed.

    Returns:
        1 at those entries; None if there are none.
    """
    draws = generator("varying entries")
    lacked = had = torch.zeros((), dtype=torch.bool)
    for _ in range(OTHERS):  # one at a time: φ may be as large as a volume
        drawn = operator.draw(1, draws)[0]
        nothing = operator.leave_out(drawn[None], 1.0, generator("varying entries"))
        if nothing is None:
            return None
        lacking = (drawn == nothing[0]) | (drawn.isnan() & nothing[0].isnan())
        lacked, had = lacked | lacking, had | ~lacking
    varying = lacked & had
    return varying if varying.any() else None


def hide(
    channel: LinearChannel, measurement: Measurement, fraction: float, *, key: tuple[Key, ...]
) -> Hidden:
    """Hides a random part of what was measured; measurements of which nothing is are left out.

    Arguments:
        channel: A channel that the guard fits.
        measurement: The measurements, on the CPU.
        fraction: How much is hidden, in (0, 1); see `Guard.hidden`.
        key: What the choice depends on.
    """
    y, operator, noise = measurement
    measured = channel.measured_mask(y, operator).expand_as(y)
    varying = varying_entries(channel.forward_operator)
    if varying is None:
        parts = channel.noise.split(y, noise, fraction, generator(*key))
        assert parts is not None
        rest, target = (Measurement(part * measured, operator, own) for part, own in parts)
        return Hidden(rest, target, measured)
    left = channel.forward_operator.leave_out(operator, fraction, generator(*key))
    assert left is not None
    left = torch.where(varying, left, operator)
    entries = measured - channel.measured_mask(y, left)
    some = entries.flatten(1).any(dim=1)
    target, entries = measurement.select(some), entries[some]
    rest = Measurement(target.y * (1 - entries), left[some], target.noise)
    return Hidden(rest, target, entries)


def energy_score(
    channel: LinearChannel, task: Hidden, samples: Tensor, *, key: tuple[Key, ...]
) -> Tensor:
    """Returns the energy score of what is hidden of each measurement, (n,).

    Arguments:
        channel: The channel.
        task: What is hidden of the measurements, and what is not.
        samples: Two samples x̂ given the rest of each, (2, n, *shape).
        key: The key of the noise.
    """
    noise, predicted = generator(*key, "noise"), []
    y, operator, own = task.target
    for x in samples:
        drawn = channel.noise.draw_paired(channel.apply(x, operator), own, noise)
        predicted.append(((drawn - y) * task.entries).flatten(1).double())
    a, b = predicted
    return (a.norm(dim=1) + b.norm(dim=1) - (a - b).norm(dim=1)) / 2


def squared_error(channel: LinearChannel, task: Hidden, samples: Tensor) -> Tensor:
    """Returns the mean squared error of the mean of samples where entries are hidden, (n,).

    In expectation it is that of A x, and of the noise of h besides, which is the same for all
    samples.

    Arguments:
        channel: The channel.
        task: What is hidden of the measurements, and what is not.
        samples: Samples x̂ given the rest of each, (S, n, *shape).
    """
    y, operator, _ = task.target
    predicted = torch.stack([channel.apply(x, operator).double() for x in samples]).mean(dim=0)
    error = (predicted - y).square() * task.entries
    return error.flatten(1).sum(dim=1) / task.entries.flatten(1).sum(dim=1).clamp(min=1)
