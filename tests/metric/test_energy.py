"""The energy distance: known answers, and 0 for equal laws."""

import math

import pytest
import torch
from scipy.stats import kstest

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data import Digits
from diffem.metric import PixelEnergy, energy_distance, energy_test
from diffem.report.sets import measurement_distance_scores


def test_known_answer() -> None:
    """Two normal laws at a distance: E|a - b| of normal differences in closed form."""
    g, n, shift = torch.Generator().manual_seed(0), 4000, 1.5
    a, b = torch.randn(n, 1, generator=g), shift + torch.randn(n, 1, generator=g)
    # |N(m, 2)| has mean (2/√π) exp(-m²/4) + m erf(m/2).
    cross = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * cross - 4 / math.sqrt(math.pi)
    # Distances have a standard deviation of about 1; Monte Carlo of n, three means, 4 deviations.
    assert abs(energy_distance(a, b) - expected) < 4 * 3 / math.sqrt(n)


def test_equal_laws_have_none_without_bias() -> None:
    g, n, repeats = torch.Generator().manual_seed(0), 10, 400
    values = torch.tensor(
        [
            energy_distance(torch.randn(n, 3, generator=g), torch.randn(n, 3, generator=g))
            for _ in range(repeats)
        ]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(repeats)


def test_measurement_distance_tells_true_images_from_shrunk_and_noisy_ones() -> None:
    x = Digits([1, 8, 8], train=1437).load().heldout
    g = torch.Generator().manual_seed(0)
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.05))
    measurement = channel.draw(x, g)

    def score(images: torch.Tensor) -> float:
        samples = images.expand(4, *images.shape)
        scores = measurement_distance_scores(samples, x, channel, measurement, seed=0)
        return scores["measurement_energy_distance"]

    # Measured over 8 draws each: 0.0002 ± 0.0018, 0.041 ± 0.003, 0.058 ± 0.005.
    noisy = x + 0.5 * torch.randn(x.shape, generator=g)
    assert abs(score(x)) < 0.01 < min(score(0.7 * x + 0.3 * x.mean(0)), score(noisy))


def test_the_test_s_distance_is_the_distance() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 3, generator=g), 1 + torch.randn(50, 3, generator=g)
    test = energy_test(a, b, g)
    assert test.distance == pytest.approx(energy_distance(a, b))
    assert float(test.parts.mean()) == pytest.approx(test.distance)
    assert test.p == 1 / 1000  # the smallest


def test_the_error_is_the_deviation_over_repeats() -> None:
    """Of 200 repeats the deviation is known to 5 %, and the bootstrap's varies from set to set."""
    g = torch.Generator().manual_seed(0)
    tests = [
        energy_test(torch.randn(60, 2, generator=g), 1 + torch.randn(60, 2, generator=g), g)
        for _ in range(200)
    ]
    deviation = float(torch.tensor([test.distance for test in tests]).std())
    error = sum(test.error for test in tests) / len(tests)
    assert error == pytest.approx(deviation, rel=0.25)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_p_is_uniform_for_equal_laws_whose_pairs_depend_on_each_other(shared: float) -> None:
    """As y and a fresh draw from its reconstruction do."""
    g = torch.Generator().manual_seed(1)
    values = []
    for _ in range(200):
        common = torch.randn(30, 4, generator=g)
        a, b = (shared * common + torch.randn(30, 4, generator=g) for _ in range(2))
        values.append(energy_test(a, b, g).p)
    assert kstest(values, "uniform").pvalue > 0.01


def test_the_energy_of_pixels_is_without_bias_and_known_of_normals() -> None:
    """Of N(0, 1) and N(m, 1): 2 E|z √2 + m| - 4 / √π, in one dimension."""
    shift, distances = 0.5, []
    for i in range(40):
        gen = torch.Generator().manual_seed(i)
        a, b, c = (torch.randn(n, 1, generator=gen) for n in (60, 200, 200))
        distances.append([PixelEnergy().compare(a, x)["energy_distance"] for x in (b, c + shift)])
    found = torch.tensor(distances)
    mean, error = found.mean(dim=0), found.std(dim=0) / 40**0.5
    half = shift / math.sqrt(2)
    across = math.sqrt(2) * (
        math.sqrt(2 / math.pi) * math.exp(-(half**2) / 2) + half * math.erf(half / math.sqrt(2))
    )
    expected = torch.tensor([0.0, 2 * across - 4 / math.sqrt(math.pi)])
    assert ((mean - expected).abs() < 4 * error).all()
