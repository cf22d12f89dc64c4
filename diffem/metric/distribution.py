"""Distance of two sets of images in the space of their features."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from diffem.metric.features import Extractor, PixelFeatures, extract
from diffem.metric.frechet import frechet_distance
from diffem.metric.score import Score

FRECHET_PIXELS = Score("frechet_pixels", "FD (pixels)", better="lower", images=2)


def frechet(features: Extractor, x: Tensor, reference: Tensor) -> float:
    """Returns ‖μ - μ'‖² + Tr(C + C' - 2 (C C')^½) of the features' means and covariances.

    It compares two moments only. Few images alone make it large: compare it with the value of as
    many true images.

    Arguments:
        features: The feature space.
        x: Images, (N, *shape), N >= 2.
        reference: Clean images, (N', *shape), N' >= 2.
    """
    return frechet_distance(extract(features, x), extract(features, reference))


def frechet_pixels(x: Tensor, reference: Tensor) -> float:
    """Returns the Fréchet distance of pixels, which needs no trained network and is not the FID.

    Arguments:
        x: Images, (N, *shape), N >= 2.
        reference: Clean images, (N', *shape), N' >= 2.
    """
    return frechet(PixelFeatures(tuple(x.shape[1:])), x, reference)


def distribution_scores(
    extractors: Iterable[Extractor],
    sets: Mapping[str, Tensor],
    reference: Tensor,
    *,
    device: torch.device | None = None,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Returns the scores of each set of images against the reference: {set: {score: value}}.

    The scores are those of `Extractor.compare`. The reference's features are computed once.

    Arguments:
        extractors: The feature spaces.
        sets: Sets of images by name, each (N, *shape), N >= 2.
        reference: Clean images, (N', *shape), N' >= 2.
        device: Where to compute features; None for the CPU.
        advance: Called after the features of each set and of each reference.
    """
    scores: dict[str, dict[str, float]] = {name: {} for name in sets}
    for extractor in extractors:
        true = extract(extractor, reference, device=device)
        advance()
        for name, x in sets.items():
            scores[name] |= extractor.compare(extract(extractor, x, device=device), true)
            advance()
    return scores
