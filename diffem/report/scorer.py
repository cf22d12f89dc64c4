"""What is computed of a run's posteriors and reconstructions: samples, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffem.data.measurements import MeasurementSet
from diffem.metric import (
    Evaluation,
    Metric,
    diversity_metrics,
    posterior_std,
    psnr,
    rms_change,
    sinkhorn_divergence,
)
from diffem.metric.bootstrap import standard_error
from diffem.metric.diversity import CHANGE, IMAGES, POSTERIOR_STD
from diffem.metric.energy import MEASUREMENT_ENERGY_DISTANCE
from diffem.metric.sinkhorn import SINKHORN
from diffem.posterior import Posterior, sample_chunks
from diffem.posterior.posterior import chunk_count
from diffem.report.groups import group_scores
from diffem.report.round_figures import round_figures
from diffem.report.scoring import compute, left_out, mean_of
from diffem.report.sets import measurement_distance_scores
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import Key
from diffem.storage.reconstructions import ReconstructionStore

SCORED = 4096  # reconstructions of a round, the first ones, that metrics are computed of


@dataclass(frozen=True)
class Scorer:
    """Draws samples of posteriors and computes a run's scores of them."""

    evaluation: Evaluation
    """What is evaluated."""
    store: ReconstructionStore
    """The reconstructions of the rounds."""
    seed: int
    """The run's seed."""
    device: torch.device
    """Where to sample and to compute metrics."""

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that are computed in each round."""
        return [metric for metric in self.evaluation.metrics.values() if not metric.heavy]

    def draw(
        self,
        posterior: Posterior,
        measurements: MeasurementSet,
        count: int,
        *,
        key: Sequence[Key],
    ) -> Tensor:
        """Draws samples of each posterior, (count, n, *shape), without affecting other draws.

        Arguments:
            posterior: The posterior.
            measurements: The n measurements.
            count: The number of samples of each.
            key: What tells these draws from others: begins with the number of a round, or with
                "heldout".
        """
        chunks = sample_chunks(
            posterior, measurements, count,
            chunk_size=self.store.chunk_size,
            key=(self.seed, "evaluation", *key),
            device=self.device,
        )  # fmt: skip
        total = chunk_count(len(measurements), self.store.chunk_size)
        of_round = "held-out" if key[-1] == "heldout" else "evaluation"
        name = "held-out  evaluation" if key[0] == "heldout" else f"round {key[0]}  {of_round}"
        samples = []
        with progress_bar(name, total, "chunks") as advance:
            for chunk in chunks:
                samples.append(chunk)
                advance()
        return torch.cat(samples, dim=1)

    def score_round(
        self, k: int, measurements: MeasurementSet, reference: Tensor | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the mean scores of a round's first 4,096 reconstructions.

        Arguments:
            k: The round.
            measurements: The measurements that were reconstructed.
            reference: The clean images of held-out measurements, with which vectors are compared
                as a set; None if they are not known.

        Returns:
            The scores; and the number that was `scored`, and what `left_out` returns.
        """
        data, values = self.store.open(k), dict[str, list[Tensor]]()
        scored = min(len(data), SCORED)
        for start in range(0, scored, self.store.chunk_size):
            rows = slice(start, min(scored, start + self.store.chunk_size))
            x = data.__getitems__(range(rows.start, rows.stop)).x
            for metric in self.metrics:
                value = compute(metric, x, measurements, rows, self.device)
                values.setdefault(metric.score.name, []).append(value)
        all_of = {name: torch.cat(value) for name, value in values.items()}
        means: dict[str, Any] = {name: mean_of(value) for name, value in all_of.items()}
        first = data.__getitems__(range(min(len(data), IMAGES))).x
        means |= {
            f"{name}_error": error
            for name, value in all_of.items()
            if (error := standard_error(value)) is not None
        }
        means |= diversity_metrics(first)
        if k and self.store.is_intact(k - 1):
            before = self.store.open(k - 1).__getitems__(range(len(first))).x
            means[CHANGE.name] = rms_change(first, before)
        if first.ndim == 2 and reference is not None:
            means[SINKHORN.name] = sinkhorn_divergence(first, reference)
        return means, {"scored": scored, **left_out(all_of)}

    def score_means(
        self, samples: Tensor, measurements: MeasurementSet
    ) -> dict[str, float | None]:
        """Returns the scores of the mean of samples, (S, n, *shape), of the first n posteriors."""
        mean, rows = samples.mean(dim=0), slice(samples.shape[1])
        return {
            metric.score.of_the_mean().name: mean_of(
                compute(metric, mean, measurements, rows, self.device)
            )
            for metric in self.metrics
            if metric.of_mean
        }

    def score_heldout(self, samples: Tensor, heldout: MeasurementSet) -> dict[str, Any]:
        """Returns the scores of samples, (S, n, *shape), of the first n held-out posteriors."""
        first, rows = samples[0], slice(samples.shape[1])
        truth = None if heldout.truth is None else heldout.truth[rows]
        lpips = [] if self.evaluation.lpips is None else [self.evaluation.lpips]
        values = {
            metric.score.name: compute(metric, first, heldout, rows, self.device)
            for metric in (*self.evaluation.metrics.values(), *lpips)
        }
        final: dict[str, Any] = {name: mean_of(value) for name, value in values.items()}
        final |= {f"{name}_error": standard_error(value) for name, value in values.items()}
        final |= left_out(values)
        final |= self.score_means(samples, heldout)
        if heldout.groups is not None and truth is not None:
            final |= group_scores(psnr(samples.mean(dim=0), truth), heldout.groups[rows])
        if first.ndim == 2 and truth is not None:
            final[SINKHORN.name] = sinkhorn_divergence(first, truth)
        final |= diversity_metrics(first)
        if truth is not None:
            final |= {f"{name}_truth": value for name, value in diversity_metrics(truth).items()}
        final[POSTERIOR_STD.name] = posterior_std(samples)
        final |= round_figures(first, heldout, self.seed, "figures", "heldout").scores
        # The distance below is a mean over all samples: the error of one's is not its own.
        final.pop(f"{MEASUREMENT_ENERGY_DISTANCE.name}_error", None)
        return final | measurement_distance_scores(
            samples, truth, heldout.channel, heldout.select(rows), seed=self.seed
        )
