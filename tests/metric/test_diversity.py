"""Diversity and the posterior std against known answers."""

import math

import pytest
import torch
from torch import Tensor

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data import Digits
from diffem.metric import (
    diversity,
    diversity_metrics,
    effective_rank,
    find_collapse,
    frechet_pixels,
    posterior_std,
    rms_change,
)
from diffem.posterior.gaussian import fit_gaussian
from diffem.runtime.rng import generator, seeded


def test_diversity_is_the_root_of_the_mean_variance() -> None:
    # Entry 0 is ±3, entry 1 is constant: variances 9 · n / (n - 1) and 0.
    x = torch.tensor([[3.0, 1.0], [-3.0, 1.0]]).repeat(50, 1).view(100, 1, 1, 2)
    assert diversity(x) == pytest.approx(math.sqrt(9 * 100 / 99 / 2))
    assert diversity(x + 5) == pytest.approx(diversity(x))
    assert diversity(-2 * x) == pytest.approx(2 * diversity(x))
    assert diversity(x[:1].expand(10, -1, -1, -1)) == 0


@pytest.mark.parametrize("wide", [False, True])  # more entries than images, or fewer
def test_effective_rank_of_known_eigenvalues(wide: bool) -> None:
    values = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(40, 3, generator=generator(0)).double()).Q
    x = torch.cat([v.sqrt() * s * axes[:, i] for i, v in enumerate(values) for s in (1, -1)])
    x = x.view(6, 40) if wide else x.view(6, 40).repeat(20, 1)
    p = values / values.sum()
    assert effective_rank(x + 1) == pytest.approx(math.exp(-float((p * p.log()).sum())))


def test_effective_rank_of_white_and_of_equal_images() -> None:
    white = torch.cat([torch.eye(12), -torch.eye(12)]).view(24, 3, 2, 2)
    assert effective_rank(white) == pytest.approx(12.0)
    assert effective_rank(torch.ones(5, 1, 2, 2)) == 0
    line = torch.linspace(-1, 1, 7)[:, None] * torch.ones(9)
    assert effective_rank(line) == pytest.approx(1.0)


def test_a_set_that_collapses_loses_both() -> None:
    """A mixture in which ever more images are copies of one: both fall at every step."""
    x = torch.randn(64, 1, 6, 6, generator=generator(1))
    scores = []
    for copies in (0, 16, 32, 48):
        y = x.clone()
        y[:copies] = x[0]
        scores.append((diversity(y), effective_rank(y)))
    assert scores == sorted(scores, reverse=True)
    assert sorted(r for _, r in scores) == [r for _, r in reversed(scores)]


def test_posterior_std_is_within_measurements_alone() -> None:
    """Samples ±a around centres that lie far apart: a · sqrt(S / (S - 1))."""
    centres = 100 * torch.randn(5, 1, 3, 3, generator=generator(2))
    samples = torch.stack([centres + 0.5, centres - 0.5] * 4)
    assert posterior_std(samples) == pytest.approx(0.5 * math.sqrt(8 / 7), rel=1e-4)
    assert posterior_std(centres.expand(3, 5, 1, 3, 3)) == 0


def test_variance_within_and_between_add_up() -> None:
    """The law of total variance, for samples x = c + s z with c ~ N(0, 1): diversity² = 1 + s²."""
    n, s = 2000, 0.5
    c = torch.randn(1, n, 20, generator=generator(3))
    samples = c + s * torch.randn(4, n, 20, generator=generator(4))
    # Monte Carlo: a variance over n images and 20 entries has relative error sqrt(2 / 20 n).
    assert diversity(samples[0]) ** 2 == pytest.approx(1 + s**2, rel=4 * math.sqrt(2 / n / 20))
    assert posterior_std(samples) ** 2 == pytest.approx(s**2, rel=4 * math.sqrt(2 / n / 20 / 3))


def test_the_change_of_independent_posterior_samples_is_known() -> None:
    """√2 times their standard deviation; 16,000 squares: within five standard errors, 0.028 %."""
    x, before = 0.3 * torch.randn(2, 250, 1, 8, 8, generator=generator(0))
    assert rms_change(x, before) == pytest.approx(0.3 * math.sqrt(2), rel=5 / math.sqrt(2 * 16000))
    assert rms_change(x, x) == 0


@pytest.mark.parametrize(("kept", "collapsed"), [(0.95, False), (0.7, True), (1.5, False)])
def test_images_that_shrink_to_their_mean_have_collapsed(kept: float, collapsed: bool) -> None:
    x = torch.randn(200, 1, 4, 4, generator=generator(0))
    found = find_collapse(diversity_metrics(kept * x), diversity_metrics(x))
    assert [score.name for score, _ in found] == (["diversity"] if collapsed else [])
    assert all(left == pytest.approx(kept) for _, left in found)


def test_images_along_few_directions_have_collapsed() -> None:
    x = torch.randn(200, 16, generator=generator(0))
    few = x * torch.tensor([2.0] * 4 + [0.0] * 12)
    ((score, left),) = find_collapse(diversity_metrics(few), diversity_metrics(x))
    assert score.name == "effective_rank" and left == pytest.approx(4 / 16, rel=0.1)


def reconstructions(x: Tensor) -> Tensor:
    """Returns samples of the posterior of a Gaussian that is fitted to masked images."""
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.05))
    measurement = channel.draw(x, generator("measure"))
    with seeded("fit"):
        return fit_gaussian(channel, measurement, rank=64, iterations=4).draw(measurement)


@pytest.mark.parametrize(
    ("from_truth", "kept"),
    [(False, 0.99), (False, 0.95), (False, 0.9), (True, 0.99), (True, 0.97)],
)
def test_a_collapse_is_seen_before_the_distance_from_the_truth_doubles(
    from_truth: bool, kept: float
) -> None:
    """Images that shrink towards their mean in each round, in the end to nothing.

    They start as a round 0; or as true images, of which a smaller loss doubles the distance: one
    of 5 % a round goes from 0.902 of the diversity to 0.857, and doubles it at once.
    """
    split = Digits([1, 8, 8], train=900).load()
    x = split.train if from_truth else reconstructions(split.train)
    distance, first = frechet_pixels(x, split.heldout), diversity_metrics(x)
    for _ in range(20):
        x = x.mean(dim=0) + kept * (x - x.mean(dim=0))
        if find_collapse(diversity_metrics(x), first):
            break
    else:
        raise AssertionError("it was not seen")
    assert frechet_pixels(x, split.heldout) < 2 * distance
