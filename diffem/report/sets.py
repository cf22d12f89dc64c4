"""Scores of whole sets of images: variety, and distance from true images."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.metric import (
    Extractor,
    distribution_scores,
    energy_distance,
    frechet_pixels,
    sinkhorn_divergence,
    spread,
    variety,
)
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import generator

PAIRED = 2048  # measurements of which all pairs are compared, at most


def variety_scores(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Returns diversity and effective rank of one sample a measurement, and the samples' spread.

    `diversity_truth` and `effective_rank_truth` are those of the same measurements' true images.

    Arguments:
        samples: Samples of each measurement's posterior, (S, B, *shape), S >= 2.
        truth: The clean images, (B, *shape).
    """
    true = {f"{name}_truth": value for name, value in variety(truth).items()}
    return variety(samples[0]) | true | {"spread": spread(samples)}


def recorruption_scores(
    samples: Tensor,
    truth: Tensor,
    channel: Channel,
    measurement: Measurement,
    *,
    seed: int,
) -> dict[str, float]:
    """Returns how far measurements drawn afresh from reconstructions are from the measurements.

    `measurement_energy_distance` is the energy distance of the two laws on the grid of x, without
    bias. Under the true prior x̂ ~ p(x | y) has the law of x, so ỹ ~ q(· | x̂) has that of y, and it
    is 0 in expectation. It needs no ground truth; `measurement_energy_distance_truth` is that of
    the true images.

    Arguments:
        samples: Samples of each measurement's posterior, (S, B, *shape); B = 1 has no score.
        truth: The clean images, (B, *shape).
        channel: The channel as it is assumed to be.
        measurement: The measurements, (B, …).
        seed: The run's seed.
    """
    if len(truth) < 2:
        return {}
    seen = channel.lift(measurement.select(slice(PAIRED)))

    def distance(x: Tensor, s: int) -> float:
        drawn = channel.draw(x[:PAIRED], generator(seed, "recorrupted", s))
        return energy_distance(channel.lift(drawn), seen)

    count = len(samples)
    return {
        "measurement_energy_distance": sum(distance(x, s) for s, x in enumerate(samples)) / count,
        "measurement_energy_distance_truth": sum(distance(truth, s) for s in range(count)) / count,
    }


def prior_scores(x: Tensor, train: Tensor, heldout: Tensor) -> dict[str, float]:
    """Returns the prior's distance from the held-out images, and that of as many true ones.

    Arguments:
        x: Samples of the prior, (N, *shape).
        train: True images, of which the first N are scored for comparison.
        heldout: True images that distances are taken from.
    """
    truth = train[: len(x)]
    score = {
        "samples": len(x),
        "frechet_pixels": frechet_pixels(x, heldout),
        "frechet_pixels_truth": frechet_pixels(truth, heldout),
    }
    if x.ndim == 2:
        score["sinkhorn"] = sinkhorn_divergence(x, heldout)
        score["sinkhorn_truth"] = sinkhorn_divergence(truth, heldout)
    return score


def feature_scores(
    extractors: Sequence[Extractor],
    sets: Mapping[str, Tensor],
    train: Tensor,
    heldout: Tensor,
    *,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Returns the scores of each set in each feature space, and beside them those of true images.

    The reference is the true training images, or the held-out ones where there are more of them.
    The floor of a score, `{score}_truth`, is that of as many images of the other split as the set
    has; where that split has fewer, it is all of them, and the floor of a distance is too high.

    Arguments:
        extractors: The feature spaces.
        sets: Sets of images by name, each (N, *shape), N >= 2.
        train: True images of the training measurements.
        heldout: True images of the held-out measurements.
        device: Where to compute features.
    """
    if not extractors:
        return {name: {} for name in sets}
    other, reference = sorted((heldout, train), key=len)
    floors = {name: f"truth {min(len(x), len(other))}" for name, x in sets.items()}
    true = {floors[name]: other[: len(x)] for name, x in sets.items()}
    total = len(extractors) * (1 + len(sets) + len(true))
    with progress_bar("feature spaces", total, "sets") as advance:
        scores = distribution_scores(
            extractors, {**sets, **true}, reference, device=device, advance=advance
        )
    return {
        name: scores[name] | {f"{key}_truth": v for key, v in scores[floors[name]].items()}
        for name in sets
    }
