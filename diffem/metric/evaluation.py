"""What a run evaluates: the metrics, the numbers of samples, the feature spaces."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from diffem.corruption import Channel
from diffem.metric.distribution import FRECHET_PIXELS
from diffem.metric.diversity import CHANGE, DIVERSITY, EFFECTIVE_RANK, POSTERIOR_STD
from diffem.metric.energy import (
    HIDDEN_ENTRIES,
    HIDDEN_MSE,
    MEASUREMENT_ENERGY_DISTANCE,
    MEASUREMENT_P,
)
from diffem.metric.features import Extractor
from diffem.metric.lpips import LPIPS
from diffem.metric.metric import Metric
from diffem.metric.parts import FORGETTING, OLD_PSNR_MEAN, OTHER_GROUPS, WORST_GROUP
from diffem.metric.residual_law import RESIDUAL_FREQUENCY, RESIDUAL_KS, RESIDUAL_PIXEL
from diffem.metric.score import Score
from diffem.metric.sinkhorn import SINKHORN
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.runtime.ranges import check

OF_SETS = (FRECHET_PIXELS, DIVERSITY, EFFECTIVE_RANK, MEASUREMENT_ENERGY_DISTANCE)
"""The scores of sets of images that are always reported, if there are enough images."""


@dataclass(frozen=True)
class Evaluation:
    """What a run evaluates.

    Raises:
        UserError: If a number is too small, a metric or a feature space is none, or two metrics
            have the same name.
    """

    samples: int
    """The number of samples of each posterior; their mean is scored too. At least 2."""
    subset: int
    """The number of training measurements that the samples are drawn for in each round, and of
    held-out ones that its figures without ground truth are of."""
    heldout: int
    """The largest number of held-out measurements to evaluate at the end."""
    prior: int
    """The number of samples drawn from the prior."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """The metrics of single reconstructions."""
    features: Sequence[Extractor] = ()
    """The feature spaces in which sets of images are compared at the end."""
    lpips: LPIPS | None = None
    """LPIPS of the held-out reconstructions; None for none."""

    def __post_init__(self) -> None:
        for name in ("samples", "subset", "heldout", "prior"):
            check(f"metric.{name}", getattr(self, name))
        for key, metric in self.metrics.items():
            if not isinstance(metric, Metric):
                raise UserError(
                    f"metric.metrics.{key} must be a metric, as in {{_target_: "
                    f"diffem.metric.PSNR}}, got {metric!r}"
                )
        for part in self.features:
            if not isinstance(part, Extractor):
                raise UserError(
                    f"metric.features must be a list of feature spaces, as in metric=inception, "
                    f"got {part!r} in it"
                )
        if not isinstance(self.lpips, LPIPS | None):
            raise UserError(f"metric.lpips must be null or as in metric=lpips, got {self.lpips!r}")
        names = Counter(score.name for score in self.scores)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(
                f"metric.metrics and metric.features have the score {twice[0]!r} twice; leave one "
                "out or rename it"
            )

    @property
    def scores(self) -> list[Score]:
        """All scores that a run may report: first those against the truth, then the others."""
        metrics = [*self.metrics.values(), *([] if self.lpips is None else [self.lpips])]
        against_truth = [s for metric in metrics if metric.needs_truth for s in metric.scores]
        without_truth = [s for metric in metrics if not metric.needs_truth for s in metric.scores]
        of_features = [score for extractor in self.features for score in extractor.scores]
        return [
            *against_truth,
            WORST_GROUP,
            OTHER_GROUPS,
            OLD_PSNR_MEAN,
            FORGETTING,
            *of_features,
            FRECHET_PIXELS,
            SINKHORN,
            *without_truth,
            RESIDUAL_KS,
            RESIDUAL_PIXEL,
            RESIDUAL_FREQUENCY,
            HIDDEN_ENTRIES,
            HIDDEN_MSE,
            MEASUREMENT_ENERGY_DISTANCE,
            MEASUREMENT_P,
            DIVERSITY,
            EFFECTIVE_RANK,
            POSTERIOR_STD,
            CHANGE,
        ]

    def fitting(
        self, channel: Channel, *, truth: bool = True, train: int, heldout: int
    ) -> "Evaluation":
        """Returns the evaluation without the metrics that a channel or the data do not fit.

        Scores of sets that need more images than there are are left out, with a warning.

        Arguments:
            channel: The channel; its `shape` is that of the images.
            truth: Whether the clean images are known.
            train: The number of training measurements.
            heldout: The number of held-out measurements.

        Raises:
            UserError: If a metric that is required does not fit, or a feature space.
        """
        fitting = {}
        count, part = min((train, "training"), (min(heldout, self.heldout), "held-out"))
        there = f"and there is {count} {part} image" + ("s" if count > 1 else "")
        for key, metric in self.metrics.items():
            obstacle = metric.obstacle(channel, truth=truth)
            if metric.score.images > count:
                obstacle = f"needs {metric.score.images} images, {there}"
            if obstacle is None:
                fitting[key] = metric
            elif metric.required:
                raise UserError(
                    f"metric.metrics.{key} {obstacle}; leave it out, or set "
                    f"metric.metrics.{key}.required=false"
                )
        if (
            self.lpips is not None
            and (obstacle := self.lpips.obstacle(channel, truth=truth)) is not None
        ):
            raise UserError(f"metric.lpips {obstacle}; use metric=default")
        for extractor in self.features:
            extractor.check(channel.shape)
            if (needed := max(score.images for score in extractor.scores)) > count:
                raise UserError(
                    f"metric.features: {extractor.name} needs {needed} images, {there}; give "
                    "more, or use metric=default"
                )
        if self.features and not truth:
            raise UserError(
                "metric.features compares with clean images, and these measurements have none; "
                "use metric=default"
            )
        possible = OF_SETS if truth else [s for s in OF_SETS if s is not FRECHET_PIXELS]
        if few := [score for score in possible if score.images > count]:
            labels = ", ".join(score.label for score in few)
            needed = max(score.images for score in few)
            warn(f"{labels}: each needs {needed} images, {there}: what lacks them is left out")
        return replace(self, metrics=fitting)

    @property
    def truth_free(self) -> list[Score]:
        """The scores that need no clean images."""
        metrics = {key: m for key, m in self.metrics.items() if not m.needs_truth}
        others = replace(self, metrics=metrics, features=(), lpips=None).scores
        return [score for score in others if score not in (FRECHET_PIXELS, SINKHORN)]
