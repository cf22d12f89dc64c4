"""The budget of the EM loop: how long it runs, and in which pieces."""

from dataclasses import dataclass

from diffem.runtime.errors import UserError, check_count, check_positive


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
        for name in ("rounds", "steps_per_epoch"):
            check_count(f"em.{name}", getattr(self, name))
        for name in ("batch_size", "chunk_size"):  # they are in memory at once
            check_count(f"em.{name}", getattr(self, name), maximum=2**20)
        for name in ("steps_per_round", "epochs_per_round", "keep_rounds"):
            if (value := getattr(self, name)) is not None:
                check_count(f"em.{name}", value, minimum=2 if name == "keep_rounds" else 1)
        for name in ("seconds", "nfe"):
            if (value := getattr(self, name)) is not None:
                check_positive(f"em.{name}", value)

    @property
    def rounds_on_disk(self) -> int:
        """The largest number of rounds that stand on the disk at once."""
        kept = self.rounds + 1  # round 0 is one
        return kept if self.keep_rounds is None else min(kept, self.keep_rounds + 1)

    def steps(self, size: int) -> int:
        """Returns the optimiser steps of an M-step over a number of reconstructions."""
        if self.steps_per_round is not None:
            return self.steps_per_round
        assert self.epochs_per_round is not None
        return self.epochs_per_round * -(-size // self.batch_size)

    def exhausted(self, seconds: float, nfe: float, rounds: int) -> bool:
        """Returns whether one more round, as long as the mean, would miss a limit further.

        Arguments:
            seconds: The time of E- and M-steps so far.
            nfe: The network function evaluations so far.
            rounds: The number of rounds so far, >= 1.
        """
        spent = ((self.seconds, seconds), (self.nfe, nfe))
        return any(b is not None and s * (1 + 0.5 / rounds) > b for b, s in spent)
