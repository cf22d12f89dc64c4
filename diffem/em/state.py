"""Where the EM loop is, and what it has spent: all that a checkpoint keeps of the loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class EMState:
    """The state of an EM loop. The loop owns it and alone calls its methods; others read it."""

    round: int = -1
    """The newest committed round k, whose D_k is trained on; -1 before the init."""
    epoch: int = 0
    """Lightning epochs of the current M-step that are over."""
    e_step_pending: bool = True
    """True between the end of an M-step and the commit of its E-step."""
    seconds: float = 0.0
    """Wall time of the E- and M-steps of finished rounds, over all processes that ran the loop."""
    m_step_seconds: float = 0.0
    """Wall time of the current M-step."""
    nfe: int = 0
    """Network function evaluations of E- and M-steps, over all ranks."""
    loss: float = 0.0
    """The sum of the losses of the current M-step."""
    steps: int = 0
    """The number of optimiser steps of the current M-step."""
    optimizer_steps: int = 0
    """The number of optimiser steps of finished rounds."""
    last: tuple[float, int] = (0.0, 0)
    """The seconds and the NFE of the last finished round."""
    nfe_before: int = 0
    """The NFE of all finished rounds."""
    score: float | None = None
    """The guard's score of the init while D_k is the init's; None later, or without a guard."""
    improved: tuple[int, tuple[float, ...]] = (-1, ())
    """The last round whose figure improved, by which EM stops, and that figure of each held-out
    measurement; round -1 before any."""
    progress: float = 0.0
    """The fraction of the limits of time and NFE that finished rounds have spent, in [0, 1]."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes the values of a saved state, in place: all who read the state have this object."""
        for field in fields(self):
            setattr(self, field.name, saved[field.name])

    def end_epoch(self, seconds: float, losses: list[float]) -> None:
        """Counts a Lightning epoch of the M-step, its wall time and the losses of its steps."""
        self.epoch += 1
        self.m_step_seconds += seconds
        self.loss += sum(losses)
        self.steps += len(losses)

    def spend(self, nfe: int) -> None:
        """Counts network function evaluations."""
        self.nfe += nfe

    def improve(self, values: Sequence[float]) -> None:
        """Keeps the figure of each held-out measurement of a round that improved it."""
        self.improved = (self.round, tuple(values))

    def end_m_step(self) -> None:
        """Ends an M-step: its E-step is pending."""
        self.epoch, self.e_step_pending = 0, True

    def end_e_step(self) -> None:
        """Ends an E-step: its round is committed, and trained on next."""
        self.round, self.e_step_pending = self.round + 1, False

    def end_round(self, e_step_seconds: float) -> dict[str, float | None]:
        """Closes a round's account and returns what the round cost, as the summary has it."""
        self.optimizer_steps += self.steps
        costs = {
            "e_step_seconds": e_step_seconds,
            "m_step_seconds": self.m_step_seconds,
            "loss": self.loss / self.steps if self.steps else None,
            "nfe": self.nfe,
            "optimizer_steps": self.optimizer_steps,
        }
        seconds = e_step_seconds + self.m_step_seconds
        self.last = (seconds, self.nfe - self.nfe_before)
        self.nfe_before = self.nfe
        self.seconds += seconds
        self.m_step_seconds, self.loss, self.steps = 0.0, 0.0, 0
        return costs
