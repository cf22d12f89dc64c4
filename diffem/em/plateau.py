"""The stopping rule: EM ends once a figure without ground truth no longer improves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffem.em.guard import ENTRIES, MSE
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

FIGURES = (MSE, ENTRIES, "measurement_energy_distance")
"""The figures that a run may stop by: lower is better, and each is a mean over measurements."""
LEAST = 16
"""The fewest held-out measurements to stop by: of fewer a figure is mostly chance."""


@dataclass(frozen=True)
class Plateau:
    """Stops EM when a figure has not improved by more than its noise for some rounds.

    Rounds are compared on the same held-out measurements. Their differences have a mean d and a
    standard error s: a round has improved on another if d < -s. Round 0 is not compared, since no
    network drew it. Nor are networks that learned from it compared with those that learn from
    what a network drew, which are worse at first, and better later.

    Raises:
        UserError: If the figure is none of `FIGURES`, or the number is out of its range.
    """

    figure: str
    """The figure, one of `FIGURES`."""
    patience: int
    """How many rounds without an improvement end the loop, at least 1."""

    def __post_init__(self) -> None:
        check("em.stop.patience", self.patience)
        if self.figure not in FIGURES:
            raise UserError(
                f"em.stop.figure must be one of {', '.join(FIGURES)}, got {self.figure!r}"
            )

    @staticmethod
    def improves(values: Sequence[float], best: Sequence[float]) -> bool:
        """Returns whether values are lower by more than the standard error of the difference.

        Arguments:
            values: The figure of each held-out measurement, at least 2.
            best: That of the round to improve on, of the same measurements.
        """
        difference = torch.tensor(values, dtype=torch.float64) - torch.tensor(
            best, dtype=torch.float64
        )
        return bool(-difference.mean() > difference.std() / len(difference) ** 0.5)
