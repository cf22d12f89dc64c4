"""Scores of sets: which images they are held against."""

import pytest
import torch
from torch import Tensor

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.metric import Extractor, distribution_scores
from diffem.report.sets import feature_scores, measurement_distance_scores
from diffem.runtime.rng import generator


class Halves(Extractor):
    """Means of the upper and lower half of an image."""

    name, num_features = "halves", 2

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (2, -1)).mean(dim=(1, 3, 4))


def images(n: int, seed: int) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=generator(seed))


@pytest.mark.parametrize("sizes", [(60, 30), (30, 60), (30, 30)])  # training and held-out images
def test_the_larger_split_is_the_reference(sizes: tuple[int, int]) -> None:
    train, heldout = images(sizes[0], 0), images(sizes[1], 1)
    reference, other = (heldout, train) if sizes[1] > sizes[0] else (train, heldout)
    sets = {"few": images(20, 2), "many": images(50, 3)}
    scores = feature_scores([Halves()], sets, train, heldout, device=torch.device("cpu"))
    for name, true in (("few", other[:20]), ("many", other)):
        expected = distribution_scores([Halves()], {"x": sets[name], "true": true}, reference)
        assert scores[name] == {
            "fd_halves": pytest.approx(expected["x"]["fd_halves"]),
            "fd_halves_truth": pytest.approx(expected["true"]["fd_halves"]),
        }


def test_without_feature_spaces_there_are_no_scores() -> None:
    sets = {"a": images(3, 0)}
    assert feature_scores([], sets, images(3, 1), images(3, 2), device=torch.device("cpu")) == {
        "a": {}
    }


def test_measurement_distance_of_samples_that_are_the_truth() -> None:
    """Samples and true images go through the channel with the same draws."""
    truth, channel = images(30, 4), make_channel(Mask((1, 4, 4), rho=0.5), GaussianNoise(0.1))
    measurement = channel.draw(truth, generator(5))
    samples = truth.expand(3, -1, -1, -1, -1)
    scores = measurement_distance_scores(samples, truth, channel, measurement, seed=0)
    name = "measurement_energy_distance"
    assert scores[name] == scores[f"{name}_truth"]
    other = measurement_distance_scores(0 * samples, truth, channel, measurement, seed=0)
    assert other[f"{name}_truth"] == scores[f"{name}_truth"] < other[name]
    one = measurement.select(slice(1))
    assert measurement_distance_scores(samples[:, :1], truth[:1], channel, one, seed=0) == {}
