"""Blind EM: levels of the channel (blur width, noise level) that are unknown are learned too.

    x̂_i ~ p(x | y_i; φ)   for a subset of the measurements
    φ ← arg max Σ_i log q(y_i | x̂_i; φ)

a few times before each E-step: the M-step over the operator of Fast Diffusion EM (Laroche et al.
2023, arXiv 2309.00287), with whichever posterior the method has. The maximum is where ‖A_φ x̂ - y‖²
is least, and σ_y² is that per measured entry.

Measurements alone do not tell a blur from blurred images: what makes φ identifiable is what is
known of clean images (`method=fast_em`, `init=clean`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.module import DenoiserModule
from diffem.posterior import Posterior, reconstruct
from diffem.runtime.errors import UserError, check_count, check_positive
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import Key
from diffem.storage.store import wait_until

SEARCH = 2.0  # an operator's level moves at most by this factor in an iteration

Levels = dict[str, float]
"""Levels of the channel by name."""


@dataclass(frozen=True)
class Blind:
    """How the channel is learned.

    Raises:
        UserError: If a number is out of its range.
    """

    iterations: int
    """Iterations before each E-step."""
    samples: int
    """Measurements that an iteration uses."""
    widen: float
    """M-step's ỹ are drawn with levels within this factor of the estimate, >= 1, so that the
    denoiser knows where the next iterations may lead."""

    def __post_init__(self) -> None:
        check_count("blind.iterations", self.iterations)
        check_count("blind.samples", self.samples)
        if check_positive("blind.widen", self.widen) < 1:
            raise UserError(f"blind.widen must be at least 1, got {self.widen}")

    def take(self, corruption: Corruption, estimate: Levels | None = None) -> None:
        """Makes an estimate the channel's levels; by default, those that it holds."""
        for name in corruption.learn:
            known = corruption.levels[name].known
            assert known is not None
            corruption.levels[name].learn(estimate[name] if estimate else known, self.widen)

    def take_up(self, data: ReconstructionDataModule) -> None:
        """Makes the levels of the current round the channel's, where an earlier process was."""
        path = data.store.channel(data.round) if data.round > 0 else None
        self.take(data.observed.corruption, path[-1] if path else None)

    def learn(
        self,
        draw: Posterior,
        data: ReconstructionDataModule,
        module: DenoiserModule,
        *,
        first: bool,
    ) -> list[Levels]:
        """Learns the levels before the next round's E-step; returns the path, empty for none.

        Round 0 has the levels that the channel starts from.

        Arguments:
            draw: The posterior.
            data: The measurements and the store, in which the next round is begun.
            module: The module, on its device.
            first: Whether this is the first process, which learns; the others read what it wrote.
        """
        observed, store, k = data.observed, data.store, data.round + 1
        if not observed.corruption.learn or k == 0:
            return []
        if first and store.channel(k) is None:
            key, device = (module.seed, "channel", k), module.device
            y, corruption = observed.measurement, observed.corruption
            store.write_channel(k, self.fit(draw, y, corruption, key=key, device=device))
        wait_until(lambda: store.channel(k) is not None)
        path = store.channel(k) or []
        self.take(observed.corruption, path[-1])
        return path

    def fit(
        self,
        draw: Posterior,
        measurement: Measurement,
        corruption: Corruption,
        *,
        key: Sequence[Key],
        device: torch.device,
    ) -> list[Levels]:
        """Learns the channel's levels and returns the estimate of each iteration.

        Arguments:
            draw: The posterior, which follows the levels that the channel holds.
            measurement: The measurements to fit to, at most `samples` of which are used.
            corruption: The channel, whose levels change.
            key: The key of the draws.
            device: Where to sample.
        """
        measurement = measurement.select(slice(self.samples))
        path = []
        with progress_bar("channel", self.iterations, "iterations") as advance:
            for i in range(self.iterations):
                believed = corruption.believe(measurement)
                size = len(believed.y)
                x = reconstruct(draw, believed, size=size, key=(*key, i), device=device)
                self.take(corruption, maximise(corruption, believed, x))
                path.append({n: level_of(corruption, n) for n in corruption.learn})
                advance("  ".join(f"{n} {v:.4f}" for n, v in path[-1].items()))
        return path


def level_of(corruption: Corruption, name: str) -> float:
    """Returns a level that is known or learned."""
    known = corruption.levels[name].known
    assert known is not None
    return known


def maximise(corruption: Corruption, measurement: Measurement, x: Tensor) -> Levels:
    """Returns the levels to learn at which log q(y | x) is largest, the others held.

    Operator levels are searched for one by one within a factor of 2 of where they are.

    Arguments:
        corruption: The channel; its levels are as before when this returns.
        measurement: The measurements, (B, …).
        x: A reconstruction of each, (B, *shape).
    """
    found: Levels = {}
    before = {name: level_of(corruption, name) for name in corruption.learn}

    def error(name: str, level: float) -> float:
        corruption.levels[name].known = level
        return float(corruption.square_error(corruption.believe(measurement), x).mean())

    for name in (n for n in corruption.learn if n != "noise"):
        centre, reach = math.log(before[name]), math.log(SEARCH)
        best = minimize_scalar(
            lambda log_level, name=name: error(name, math.exp(log_level)),
            bounds=(centre - reach, centre + reach),
            method="bounded",
            options={"xatol": 1e-4},
        )
        found[name] = math.exp(best.x)
        corruption.levels[name].known = found[name]
    if "noise" in corruption.learn:
        found["noise"] = math.sqrt(error("noise", before["noise"]))
    for name, level in before.items():
        corruption.levels[name].known = level
    return found
