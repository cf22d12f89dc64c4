"""The budget of the EM loop: how long it runs, and in which pieces."""

import math
from dataclasses import dataclass, fields

from diffem.em.guard import Guard
from diffem.em.plateau import Plateau
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


@dataclass(frozen=True)
class EMSettings:
    """How long the EM loop runs, and in which pieces.

    Raises:
        UserError: If a number is too small or no whole number, or not exactly one of
            steps_per_round and epochs_per_round is given.
    """

    rounds: int
    """The number K of rounds."""
    steps_per_round: int | None
    """Optimiser steps of an M-step, or None."""
    epochs_per_round: int | None
    """Passes of an M-step over the reconstructions, or None."""
    steps_per_epoch: int
    """Optimiser steps of a Lightning epoch, the spacing of checkpoints."""
    batch_size: int
    """The global batch size, over all devices."""
    chunk_size: int
    """The number of measurements that are sampled together in the E-step."""
    first_steps: int | None = None
    """Optimiser steps of the first M-step; None: as many as of the others."""
    restart: bool = True
    """Whether each M-step is a training of its own, from the averaged weights, with a fresh
    optimiser and learning-rate schedule; otherwise all are one, and so is the schedule."""
    guard: Guard | None = None
    """What keeps an E-step from replacing reconstructions by worse ones; None: nothing does."""
    refresh: float = 1.0
    """The fraction of the chunks that an E-step after round 0 draws anew, in (0, 1], rounded up;
    the others stay as they are. It is the mixing weight γ of SFBD-OMNI (arXiv 2512.17051)."""
    stop: Plateau | None = None
    """What ends the loop before its last round, when no round improves; None: nothing does."""
    warm_start: float | None = None
    """The time t in (0, 1) that an E-step after round 0 brings the last reconstructions back to,
    to draw from there in the fraction t of the sampler's steps; None: from noise alone."""
    relax: int | None = None
    """Of how many draws E-steps between the first and the last make x̂, >= 2, while samples of
    held-out measurements spread too much (`diffem.em.relaxation`); None: of one."""
    seconds: float | None = None
    """The time of E- and M-steps to spend, to the nearest round; None for no limit."""
    nfe: float | None = None
    """The network function evaluations to spend, as `seconds`; None for no limit."""
    keep_rounds: int | None = None
    """How many of the newest rounds stay on disk, >= 2; None for all. The checkpoint before the
    newest one may need the round before the newest."""

    def __post_init__(self) -> None:
        if (self.steps_per_round is None) == (self.epochs_per_round is None):
            raise UserError(
                "give one of em.steps_per_round and em.epochs_per_round and set the other to "
                f"null, got {self.steps_per_round} and {self.epochs_per_round}"
            )
        for number in fields(self):
            if number.name not in ("guard", "restart", "stop"):
                check(f"em.{number.name}", getattr(self, number.name))
        if not isinstance(self.guard, Guard | None):
            raise UserError(
                f"em.guard must be null or {{_target_: diffem.em.Guard, …}}, got {self.guard!r}"
            )
        if not isinstance(self.stop, Plateau | None):
            raise UserError(
                f"em.stop must be null, or chosen as em/stop=plateau, got {self.stop!r}"
            )

    @property
    def rounds_on_disk(self) -> int:
        """The largest number of rounds that stand on the disk at once."""
        kept = self.rounds + 1  # round 0 is one
        return kept if self.keep_rounds is None else min(kept, self.keep_rounds + 1)

    def refreshed(self, chunks: int) -> int:
        """Returns how many of a number of chunks an E-step draws anew."""
        return math.ceil(self.refresh * chunks)

    def steps(self, size: int, k: int = 1) -> int:
        """Returns the optimiser steps of the M-step over a number of reconstructions of D_k."""
        if k <= 0 and self.first_steps is not None:
            return self.first_steps
        if self.steps_per_round is not None:
            return self.steps_per_round
        assert self.epochs_per_round is not None
        return self.epochs_per_round * -(-size // self.batch_size)

    def total_steps(self, size: int) -> int:
        """Returns the optimiser steps of all rounds."""
        return self.steps(size, 0) + (self.rounds - 1) * self.steps(size)

    def progress(self, seconds: float, nfe: float) -> float:
        """Returns the fraction of the limits of time and evaluations that is spent, in [0, 1].

        Arguments:
            seconds: The time of E- and M-steps so far.
            nfe: The network function evaluations so far.
        """
        spent = ((self.seconds, seconds), (self.nfe, nfe))
        return min(1.0, max((s / b for b, s in spent if b is not None), default=0.0))

    def exhausted(self, seconds: float, nfe: float, last: tuple[float, float]) -> bool:
        """Returns whether one more round, as long as the last, would miss a limit further.

        Arguments:
            seconds: The time of E- and M-steps so far.
            nfe: The network function evaluations so far.
            last: Those of the last round.
        """
        spent = zip((self.seconds, self.nfe), (seconds, nfe), last, strict=True)
        return any(limit is not None and s + r / 2 > limit for limit, s, r in spent)
