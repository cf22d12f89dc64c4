"""What is evaluated, how much of it, and in which feature spaces."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffem.metric.features import Extractor
from diffem.metric.lpips import LPIPS
from diffem.runtime.errors import UserError, check_count


@dataclass(frozen=True)
class Evaluation:
    """How much is evaluated, and in which feature spaces.

    Raises:
        UserError: If a number is too small, or a feature space has no place for such images.
    """

    samples: int
    """The number of samples whose mean is scored as `psnr_mean`."""
    subset: int
    """The number of training measurements that `psnr_mean` is taken over in each round."""
    heldout: int
    """The largest number of held-out measurements to evaluate at the end."""
    prior: int
    """The number of samples drawn from the prior."""
    shape: Sequence[int] = ()
    """The shape of an image, to check the feature spaces against; none is checked without it."""
    features: Sequence[Extractor] = ()
    """The feature spaces in which sets of images are compared at the end."""
    lpips: LPIPS | None = None
    """LPIPS of the held-out reconstructions; None for none."""

    def __post_init__(self) -> None:
        for name in ("samples", "subset", "heldout", "prior"):
            check_count(f"metric.{name}", getattr(self, name), minimum=2)
        for part in self.features:
            if not isinstance(part, Extractor):
                raise UserError(
                    f"metric.features must be a list of feature spaces, as in metric=inception, "
                    f"got {part!r} in it"
                )
        if not isinstance(self.lpips, LPIPS | None):
            raise UserError(f"metric.lpips must be null or as in metric=lpips, got {self.lpips!r}")
        for part in (*self.features, self.lpips):
            if part is not None and self.shape:
                part.check(self.shape)
