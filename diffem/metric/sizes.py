"""Sizes of the evaluation."""

from dataclasses import dataclass

from diffem.error import check_count


@dataclass(frozen=True)
class Sizes:
    """How much is evaluated."""

    samples: int
    """The number of samples whose mean is scored as `psnr_mean`."""
    subset: int
    """The number of training observations that `psnr_mean` is taken over in each round."""
    heldout: int
    """The largest number of held-out observations to evaluate at the end."""
    prior: int
    """The number of samples drawn from the prior."""

    def __post_init__(self) -> None:
        for name in ("samples", "subset", "heldout", "prior"):
            check_count(f"metric.{name}", getattr(self, name), minimum=2)
