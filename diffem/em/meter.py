"""The meter of what the EM loop costs: seconds, network evaluations, loss."""

import time
from typing import Any

from torch import Tensor


class Meter:
    """What the EM loop has spent, over all the processes that a run was carried on by.

    Attributes:
        seconds: Wall time of the E- and M-steps of finished rounds.
        evaluations: Network evaluations up to the last `count`.
        m_step: Wall time of the current M-step up to the last `tick`.
    """

    def __init__(self) -> None:
        self.seconds = self.m_step = 0.0
        self.evaluations = 0
        self._start = time.perf_counter()
        self._counter = 0  # the network's counter at the last `count`
        self._loss: Tensor | float = 0.0
        self._steps = 0

    def tick(self) -> float:
        """Returns the seconds since the last tick."""
        before, self._start = self._start, time.perf_counter()
        return self._start - before

    def count(self, counter: int, processes: int) -> None:
        """Counts the network evaluations since the last count; processes share them evenly.

        Arguments:
            counter: The counter of this process's networks.
            processes: The number of processes; 0 for evaluations that are not the method's own.
        """
        self.evaluations += (counter - self._counter) * processes
        self._counter = counter

    def add_loss(self, loss: Tensor) -> None:
        """Takes in the loss of a step, ()."""
        self._loss = self._loss + loss.detach()
        self._steps += 1

    def finish(self, e_step: float) -> tuple[float, float | None]:
        """Ends a round; returns the seconds of its M-step and its mean loss, None without one."""
        m_step, loss = self.m_step, float(self._loss) / self._steps if self._steps else None
        self.seconds += e_step + m_step
        self.m_step, self._loss, self._steps = 0.0, 0.0, 0
        return m_step, loss

    def state_dict(self) -> dict[str, float]:
        """Returns what has been spent."""
        return {
            "seconds": self.seconds,
            "m_step": self.m_step,
            "evaluations": self.evaluations,
            "loss": float(self._loss),
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self.seconds, self.m_step = state_dict["seconds"], state_dict["m_step"]
        self.evaluations = state_dict["evaluations"]
        self._loss, self._steps = state_dict["loss"], state_dict["steps"]
