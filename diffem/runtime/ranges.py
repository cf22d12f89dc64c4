"""The values that each number of the configuration and of the commands may have: one table.

A number is checked by its key alone, `check("em.rounds", 6)`, by the class that it is given to;
numbers of other packages' classes by `check_config`. docs/reference.md is made from this table.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import NamedTuple, TypeGuard, TypeVar

from diffem.runtime.errors import UserError

LARGEST_COUNT = 2**31 - 1
SMALLEST, LARGEST = 1e-18, 1e18  # their squares, and the inverses of these, are finite in float32

T = TypeVar("T")


class Range(NamedTuple):
    """The values that a number may have."""

    low: float
    """The smallest value; -inf for none."""
    high: float
    """The largest value; inf for none."""
    whole: bool = False
    """Whether only whole numbers are allowed."""
    ends: str = "[]"
    """The interval's brackets; a round one excludes that end."""
    also: tuple[object, ...] = ()
    """Values that are allowed besides: null, infinity, a word."""
    each: bool = False
    """Whether the value may be a list, of which each number has this range."""
    pair: bool = False
    """Whether it may be a list [low, high], low <= high, from which numbers are drawn."""
    advice: str = ""
    """What a refusal says after the value."""

    def __str__(self) -> str:
        if not self.whole and (self.low, self.high) == (SMALLEST, LARGEST):
            text = "number > 0"
        elif self.whole and self.high >= LARGEST_COUNT:
            text = f"whole number{'' if self.low == -math.inf else f' ≥ {self.low}'}"
        else:
            text = f"{'whole ' if self.whole else ''}number in {self.interval}"
        words = ["null" if a is None else str(a) for a in self.also]
        words = ["a range [low, high] of them", *words] if self.pair else words
        return ", or ".join([f"each a {text}" if self.each else text, *words])

    @property
    def interval(self) -> str:
        """The interval as text, "[0, 1)"."""
        low, high = (n if self.whole else f"{n:g}" for n in (self.low, self.high))
        return f"{self.ends[0]}{low}, {high}{self.ends[1]}"

    def holds(self, value: float) -> bool:
        """Returns whether a number is in the interval."""
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)


def whole(low: float = 1, high: float = LARGEST_COUNT) -> Range:
    """Returns the range of whole numbers from low to high."""
    return Range(low, high, whole=True)


POSITIVE = Range(SMALLEST, LARGEST)
PARAMETER = POSITIVE._replace(pair=True)
FRACTION = Range(0, 1, ends="[)")
COUNT = whole()
NULL = (None,)
IN_MEMORY = whole(1, 2**20)
"""Images, or measurements, that are in memory at once."""

RANGES: Mapping[str, Range] = {  # by key; "@CHOICE" where that choice of the group differs
    "balance.rate": POSITIVE,
    "blind.iterations": COUNT,
    "blind.samples": COUNT,
    "blind.widen": Range(1, 1e3),
    "corruption.acceleration": Range(1, 1e3),
    "corruption.angle": Range(1e-3, 180, pair=True),
    "corruption.angles": whole(1, 2**12)._replace(advice="; or give a list of degrees"),
    "corruption.angles@degrees": Range(-360, 360, each=True),
    "corruption.centre": FRACTION,
    "corruption.coils": whole(1, 2**10)._replace(advice="; or give the path of a .npy file"),
    "corruption.factor": COUNT,
    "corruption.fraction": Range(1e-6, 1, pair=True),
    "corruption.gamma": Range(1e-2, 1e2, pair=True),
    "corruption.high": Range(-1e3, 1e3),
    "corruption.kernel": Range(0, 1e30, each=True),
    "corruption.kernel_size": COUNT,
    "corruption.length": Range(1e-2, 1e3, pair=True),
    "corruption.levels": whole(2, 2**16),
    "corruption.low": Range(-1e3, 1e3),
    "corruption.masks": whole(1, 2**10)._replace(advice="; or give the path of a .npy file"),
    "corruption.noise.background": Range(1e-6, 1e9),
    "corruption.noise.photons": Range(1e-6, 1e9, pair=True),
    "corruption.noise.speckle": Range(1e-3, 10, pair=True),
    "corruption.noise.std": Range(
        *(1e-30, 1e30),
        pair=True,
        advice="; without noise, give about 1e-3 of the measurements' range",
    ),
    "corruption.noise.std, on the scale of [-1, 1],": Range(1e-12, 1e12, pair=True),
    "corruption.quality": Range(1, 100, pair=True),
    "corruption.ratio": Range(1e-3, 1e3, pair=True),
    "corruption.rho": FRACTION,
    "corruption.rows": COUNT,
    "corruption.sigma": Range(1e-3, 1e3, pair=True),
    "dataset.crop": COUNT._replace(also=NULL),
    "dataset.dims": whole(1, 3)._replace(also=NULL),
    "dataset.frequencies": whole(1, 2**10),
    "dataset.groups": whole(0)._replace(each=True),
    "dataset.heldout": COUNT._replace(also=NULL),
    "dataset.heldout@manifold": COUNT,
    "dataset.heldout@measurements": FRACTION._replace(ends="()"),
    "dataset.limit": whole(4)._replace(also=NULL),
    "dataset.limits": COUNT._replace(each=True, also=NULL),
    "dataset.only": whole(0)._replace(each=True, also=NULL),
    "dataset.patch": whole(2)._replace(each=True, also=NULL),
    "dataset.range": Range(-1e30, 1e30, each=True, also=NULL),
    "dataset.shape": COUNT._replace(each=True),
    "dataset.smoothness": Range(0, 100),
    "dataset.thin": Range(0, 1, ends="(]", also=NULL),
    "dataset.train": COUNT._replace(also=NULL),
    "dataset.train@digits": whole(1, 1796),  # one of the 1,797 is held out
    "dataset.train@manifold": COUNT,
    "em.batch_size": IN_MEMORY,
    "em.chunk_size": IN_MEMORY,
    "em.epochs_per_round": COUNT._replace(also=NULL),
    "em.first_steps": COUNT._replace(also=NULL),
    "em.guard.hidden": Range(1e-3, 0.999),
    "em.guard.measurements": whole(16, 2**14),
    "em.keep_rounds": whole(2)._replace(also=NULL),
    "em.nfe": POSITIVE._replace(also=NULL),
    "em.refresh": Range(0, 1, ends="(]"),
    "em.relax": whole(2)._replace(also=NULL),
    "em.rounds": COUNT,
    "em.seconds": POSITIVE._replace(also=NULL),
    "em.steps_per_epoch": COUNT,
    "em.steps_per_round": COUNT._replace(also=NULL),
    "em.stop.patience": COUNT,
    "em.warm_start": Range(0, 1, ends="()", also=NULL),
    "init.components": COUNT._replace(also=NULL),
    "init.count": COUNT,
    "init.iterations": COUNT,
    "init.rank": COUNT,
    "init.samples": whole(2),
    "init.shrinkage": POSITIVE,
    "init.variance": POSITIVE._replace(also=NULL),
    "logger.*.flush_logs_every_n_steps": COUNT,
    "m_step.augment.hue": FRACTION,
    "m_step.augment.rotate": Range(0, 180),
    "m_step.augment.saturation": FRACTION,
    "m_step.augment.zoom": FRACTION,
    "m_step.clean.count": COUNT._replace(also=NULL),
    "m_step.clean.share": Range(0, 1, ends="()"),
    "m_step.ema_decay": FRACTION,
    "m_step.optimizer.alpha": Range(0, 1),
    "m_step.optimizer.beta2_decay": Range(-1e3, 0),
    "m_step.optimizer.betas": FRACTION._replace(each=True),
    "m_step.optimizer.d": Range(1, LARGEST),
    "m_step.optimizer.dampening": Range(0, 1),
    "m_step.optimizer.eps": Range(0, 1e3, each=True, also=NULL),
    "m_step.optimizer.etas": Range(1e-3, 1e3, each=True),
    "m_step.optimizer.initial_accumulator_value": Range(0, LARGEST),
    "m_step.optimizer.lambd": Range(0, 1e3),
    "m_step.optimizer.lr": Range(SMALLEST, 1e3),
    "m_step.optimizer.lr_decay": Range(0, 1e3),
    "m_step.optimizer.momentum": FRACTION,
    "m_step.optimizer.momentum_decay": Range(0, 1e3),
    "m_step.optimizer.ns_coefficients": Range(-1e3, 1e3, each=True),
    "m_step.optimizer.ns_steps": whole(1, 99),
    "m_step.optimizer.rho": Range(0, 1),
    "m_step.optimizer.step_sizes": POSITIVE._replace(each=True),
    "m_step.optimizer.t0": Range(0, LARGEST),
    "m_step.optimizer.weight_decay": Range(0, 1e3),
    "m_step.rollbacks": whole(0),
    "m_step.schedule.decay": Range(1e-3, 1),
    "m_step.schedule.final": Range(0, 1),
    "m_step.schedule.warmup": FRACTION,
    "m_step.times.components": Range(1e-2, 1e6, each=True),
    "memory.fraction": Range(0, 1, ends="()"),
    "memory.size": IN_MEMORY,
    "method.objective.delta": Range(1e-6, 1, ends="[)"),
    "method.objective.imputed": Range(0, 1, also=NULL),
    "method.objective.p_uncond": FRACTION,
    "method.posterior.coupling": POSITIVE._replace(each=True),
    "method.posterior.covariance.rank": COUNT,
    "method.posterior.covariance.variance": POSITIVE._replace(also=(math.inf,)),
    "method.posterior.iterations": COUNT,
    "method.posterior.lmbda": POSITIVE,
    "method.posterior.sweeps": whole(2),  # for two couplings
    "method.posterior.zeta": POSITIVE,
    "metric.features.*.shape": COUNT._replace(each=True),
    "metric.heldout": whole(2),
    "metric.prior": whole(2),
    "metric.samples": whole(2),
    "metric.subset": whole(2),
    "network.attention": whole(0)._replace(each=True),
    "network.blocks": whole(1, 2**14)._replace(each=True),
    "network.channels": whole(1, 2**14)._replace(each=True),
    "network.depth": whole(1, 2**16),
    "network.dropout": FRACTION,
    "network.embedding": whole(1, 2**16),
    "network.heads": COUNT,
    "network.width": whole(1, 2**16),
    "prior.steps": COUNT,
    "sampler.bounds": Range(
        *(-1e3, 1e3),
        each=True,
        also=(*NULL, "auto", -math.inf, math.inf),
        advice="; give auto, null or [low, high]",
    ),
    "sampler.corrections": whole(1, 2**10),
    "sampler.delta": Range(
        *(1e-6, 1),
        ends="[)",
        advice="; a smaller one leaves sampler.corrections without effect: choose sampler=ddim",
    ),
    "sampler.eta": Range(0, 1, advice=": 0 draws no noise, 1 is sampler=ddpm"),
    "sampler.order": whole(1, 8),
    "sampler.sigma": Range(1e-9, 1e9),
    "sampler.steps": whole(1, 2**20),
    "sampler.steps@sde": whole(2, 2**20),
    "sampler.temperature": Range(1e-3, 1e3),
    "schedule.alpha_min": Range(1e-9, 1, ends="[)"),
    "schedule.gamma": Range(1e-9, 1, ends="[)"),
    "schedule.sigma_max": Range(1e-9, 1e9),
    "schedule.sigma_min": Range(1e-9, 1e9),
    "seed": whole(-math.inf, math.inf),
    "student.lr": Range(SMALLEST, 1e3),
    "student.score_lr": Range(SMALLEST, 1e3),
    "student.sigma": Range(1e-9, 1e9),
    "student.steps": COUNT,
    "trainer.devices": COUNT._replace(also=("auto",)),  # and as many as the machine has
    "trainer.gradient_clip_val": POSITIVE._replace(also=NULL),
    "trainer.log_every_n_steps": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.strategy.bucket_cap_mb": Range(1e-3, 1e6),
    # Of the commands, and of `diffem.load`'s methods.
    "--count": COUNT,
    "--epochs": COUNT,
    "--eta": Range(1e-6, 1e3),
    "--jobs": COUNT,
    "--lr": Range(SMALLEST, 1e3),
    "--measurements": whole(16, 2**14),
    "--n": COUNT,
    "--n@calibrate": whole(2, 2**10),
    "--overlap": whole(0)._replace(also=NULL),
    "--recalibrate": Range(1e-2, 1e2, also=NULL),
    "--repeats": COUNT,
    "--steps": COUNT._replace(also=NULL),
    "n": COUNT,
    "overlap": whole(0),
    # Of what a program computes, passes on, or finds in a file of weights.
    "a number among deepinv's arguments": Range(-4096, 4096),
    "cond_channels": whole(0),
    "its description's cond_channels": whole(0),
    "its description's removed": FRACTION._replace(also=NULL),
    "its description's round": whole(0),
    "its description's size": whole(0),
}


def check(key: str, value: T, own: Range | None = None) -> T:
    """Returns a number, or a list of numbers, that is in the range of its key.

    Arguments:
        key: The key in the table, with "@CHOICE" where a choice has a range of its own.
        value: The value.
        own: A range in place of the table's: a user's own class has its numbers' ranges itself.

    Raises:
        UserError: If it is not.
    """
    name, allowed = key.partition("@")[0], own or RANGES[key]
    if allowed.each and _is_list(value):
        for number in value:
            _check(f"{name}: each", number, allowed)
    elif allowed.pair:
        bounds = tuple(value) if _is_list(value) else (value, value)
        numbers = [number for number in bounds if _is_number(number)]
        if not len(numbers) == len(bounds) == 2 or not 0 < numbers[0] <= numbers[1] < math.inf:
            raise UserError(
                f"{name} must be a positive number or a range [low, high] with 0 < low <= high, "
                f"got {value!r}{allowed.advice if value == 0 else ''}"
            )
        for number in numbers:
            _check(name, number, allowed._replace(advice=""))
    else:
        _check(name, value, allowed)
    return value


def _check(name: str, value: object, allowed: Range) -> None:
    """Raises a UserError if one number is not allowed."""
    if isinstance(value, str | float | None) and value in allowed.also:
        return
    number = value if _is_number(value, whole=allowed.whole) else math.nan  # which no interval has
    if allowed.holds(number):
        return
    if allowed.whole and allowed.low == -math.inf:
        wanted = "a whole number"
    elif allowed.whole:
        end = f"most {allowed.high}" if number > allowed.high else f"least {allowed.low}"
        wanted = f"a whole number of at {end}"
    elif allowed.low <= 0 or allowed.ends != "[]":
        wanted = f"a number in {allowed.interval}"
    else:
        wanted = f"in {allowed.interval}" if 0 < number < math.inf else "a positive number"
    raise UserError(f"{name} must be {wanted}, got {value!r}{allowed.advice}")


def _is_number(value: object, *, whole: bool = False) -> TypeGuard[float]:
    return isinstance(value, Integral if whole else int | float) and not isinstance(value, bool)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
