"""Scores of sets of images: their diversity, and their distance from true images.

A score `{name}_truth` is that of as many true images.
"""

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
)
from diffem.metric.distribution import FRECHET_PIXELS
from diffem.metric.energy import MEASUREMENT_ENERGY_DISTANCE
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import generator

PAIRED = 2048  # the most measurements of which all pairs are compared


def measurement_distance(
    samples: Tensor, channel: Channel, measurement: Measurement, *, seed: int
) -> float:
    """Returns the energy distance of measurements drawn again from reconstructions to the given.

    The two laws are compared on the grid of x, without bias. If x̂ ~ p(x | y) under the true prior,
    x̂ has the law of x, so ỹ ~ q(· | x̂) has the law of y, and the distance is 0 in expectation. It
    needs no ground truth.

    Arguments:
        samples: Samples of the posterior of each measurement, (S, B, *shape), B >= 2.
        channel: The channel, as it is assumed or was learned.
        measurement: The measurements, (B, …).
        seed: The run's seed.
    """
    given = channel.lift(measurement.select(slice(PAIRED)))
    distances = []
    for s, x in enumerate(samples):
        drawn = channel.draw(x[:PAIRED], generator(seed, "recorrupted", s))
        distances.append(energy_distance(channel.lift(drawn), given))
    return sum(distances) / len(distances)


def measurement_distance_scores(
    samples: Tensor,
    truth: Tensor | None,
    channel: Channel,
    measurement: Measurement,
    *,
    seed: int,
) -> dict[str, float]:
    """Returns `measurement_distance` of samples, and of the true images beside it if known.

    Arguments:
        samples: Samples of the posterior of each measurement, (S, B, *shape).
        truth: The clean images, (B, *shape); None if they are not known.
        channel: The channel, as it is assumed or was learned.
        measurement: The measurements, (B, …).
        seed: The run's seed.

    Returns:
        `measurement_energy_distance` and `measurement_energy_distance_truth`; nothing if B = 1.
    """
    if samples.shape[1] < MEASUREMENT_ENERGY_DISTANCE.images:
        return {}
    name = MEASUREMENT_ENERGY_DISTANCE.name
    scores = {name: measurement_distance(samples, channel, measurement, seed=seed)}
    if truth is not None:
        repeated = truth.expand(len(samples), *truth.shape)
        scores[f"{name}_truth"] = measurement_distance(repeated, channel, measurement, seed=seed)
    return scores


def prior_scores(x: Tensor, train: Tensor | None, heldout: Tensor | None) -> dict[str, float]:
    """Returns the prior's distance from held-out images, and that of as many true images.

    Arguments:
        x: Samples of the prior, (N, *shape).
        train: True images; the first N are scored for comparison.
        heldout: True images, to which the distances are taken; without them there is no distance.
    """
    scores: dict[str, float] = {"samples": len(x)}
    if train is None or heldout is None:
        return scores
    truth = train[: len(x)]
    if min(len(truth), len(heldout)) >= FRECHET_PIXELS.images:
        scores["frechet_pixels"] = frechet_pixels(x, heldout)
        scores["frechet_pixels_truth"] = frechet_pixels(truth, heldout)
    if x.ndim == 2:
        scores["sinkhorn"] = sinkhorn_divergence(x, heldout)
        scores["sinkhorn_truth"] = sinkhorn_divergence(truth, heldout)
    return scores


def feature_scores(
    extractors: Sequence[Extractor],
    sets: Mapping[str, Tensor],
    train: Tensor,
    heldout: Tensor,
    *,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Returns the scores of each set in each feature space, and beside them those of true images.

    The reference is the larger of the two splits: the true training images, unless there are more
    held-out ones. `{score}_truth` is that of as many images of the other split as the set has. If
    that split has fewer, all of them are used, and their distance is larger than it would be for
    as many.

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
