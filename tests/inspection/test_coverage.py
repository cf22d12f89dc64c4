"""What no measurement measures is found: pixels, frequencies, directions."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from diffem.corruption import (
    Blur,
    Channel,
    Denoising,
    Downsample,
    Fourier,
    GaussianNoise,
    LinearOperator,
    Mask,
    Measurement,
    Projection,
    make_channel,
)
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet, simulate_measurements
from diffem.inspection.coverage import Coverage, take_coverage
from diffem.inspection.report import coverage_findings


def coverage(operator: LinearOperator, *, n: int = 64, phi: Tensor | None = None) -> Coverage:
    """Returns the coverage of measurements of zeros."""
    channel = make_channel(operator, GaussianNoise(0.1))
    drawn = channel.draw(torch.zeros(n, *operator.shape), Generator().manual_seed(0))
    if phi is not None:
        drawn = drawn._replace(operator=phi)
        channel = channel.with_operator(Recorded(operator, phi))
    found = take_coverage(MeasurementSet(drawn, channel))
    assert found is not None
    return found


def test_a_pixel_that_is_always_masked_is_named() -> None:
    mask = (torch.rand(200, 1, 8, 9, generator=Generator().manual_seed(0)) < 0.5).float()
    mask[:, :, 3, 5] = 0
    found = coverage(Mask((3, 8, 9), rho=0.5), n=200, phi=mask)
    assert found.never.tolist() == [[3, 5]] and not len(found.hardly)
    # Under a mask, signs cancel: the diagonal is exact.
    np.testing.assert_allclose(found.pixels, mask.mean(dim=(0, 1)), atol=1e-6)
    (warning,) = coverage_findings(found).warnings
    assert warning.startswith("pixel (3, 5) is never measured")


def test_pixels_that_are_hardly_measured_are_counted() -> None:
    mask = torch.ones(200, 1, 8, 8)
    mask[3:, :, 2] = 0
    found = coverage(Mask((1, 8, 8), rho=0.5), n=200, phi=mask)
    assert not len(found.never) and found.hardly[:, 0].tolist() == [2] * 8
    assert coverage_findings(found).warnings[0].startswith("8 pixels are hardly ever measured")


@pytest.mark.parametrize("side", [32, 80])  # every unit vector, and signs
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_the_frequencies_that_a_blur_removes(side: int, sigma: float) -> None:
    size = 2 * int(4 * sigma) + 1
    found = coverage(Blur((1, side, side), sigma=sigma, kernel_size=size)).frequencies
    assert found is not None and found.cutoff is not None
    # |k̂(f)|² = exp(-(2π σ f)²), 1 % at this radius; a step of the grid is 1 / (2 side) or more.
    expected = np.sqrt(np.log(100)) / (2 * np.pi * sigma)
    assert abs(found.cutoff - expected) < 1.5 * np.sqrt(2) / side
    low = found.radius < 0.5 * expected
    exact = np.exp(-((2 * np.pi * sigma * found.radius) ** 2))
    np.testing.assert_allclose(found.relative[low], exact[low], atol=0.1)


def test_a_blur_in_one_direction_has_no_cutoff() -> None:
    class Rows(Denoising):
        """The mean of each row's neighbours, on a circle."""

        def apply(self, x: Tensor, operator: Tensor) -> Tensor:
            return torch.stack([x.roll(k, dims=-1) for k in range(-3, 4)]).mean(dim=0)

        def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
            return self.apply(y, operator)

    found = coverage(Rows((1, 28, 28))).frequencies
    assert found is not None and found.cutoff is None
    # The kernel's zeros are at multiples of 1/7: 6 of 28 columns, and near them less than 1 %.
    assert found.removed.mean() >= 6 / 28


def test_downsampling_keeps_what_it_averages() -> None:
    found = coverage(Downsample((1, 16, 16), factor=2))
    assert found.one_operator and found.frequencies is not None
    np.testing.assert_allclose(found.pixels, 1 / 16, atol=1e-6)  # diag(AᵀA) = (1/4)² each
    finest = found.frequencies.radius >= 0.45 * np.sqrt(2)
    assert found.frequencies.removed[finest].any()


def test_all_is_measured_under_noise_alone_or_random_masks() -> None:
    for operator in (Denoising((1, 8, 8)), Mask((1, 8, 8), rho=0.75), Projection((5,), rows=2)):
        found = coverage_findings(coverage(operator, n=400))
        assert not found.warnings and "every direction" in found.lines[0]


def test_directions_of_vectors_that_no_row_measures() -> None:
    a = torch.randn(100, 2, 4, generator=Generator().manual_seed(0))
    hidden = torch.tensor([1.0, -1.0, 0.0, 0.0]) / 2**0.5
    a = a - (a @ hidden)[..., None] * hidden
    found = coverage(Projection((4,), rows=2), n=100, phi=a)
    assert found.directions is not None and len(found.directions) == 1
    assert abs(float(found.directions[0] @ hidden.numpy())) > 1 - 1e-5
    assert "1 of 4 directions" in coverage_findings(found).warnings[0]


def test_of_a_channel_that_is_not_linear_nothing_is_said() -> None:
    class Clip(Channel):
        def draw(self, x: Tensor, generator: Generator) -> Measurement:
            return Measurement.of(x.clamp(-1, 1))

        def embed(self, measurement: Measurement) -> Tensor:
            return measurement.y

    channel = Clip((1, 4, 4))
    drawn = channel.draw(torch.zeros(8, 1, 4, 4), Generator())
    assert take_coverage(MeasurementSet(drawn, channel)) is None
    assert "not linear" in coverage_findings(None).lines[0]


@pytest.mark.parametrize(("operator", "said"), [(Mask, True), (Fourier, False)])
def test_how_often_a_pixel_is_measured_is_said_where_pixels_are(
    operator: type[Mask | Fourier], said: bool
) -> None:
    """Of lines of k-space it was said of pixels, which none of them measures alone."""
    given = {"rho": 0.5} if operator is Mask else {"acceleration": 2.0}
    channel = make_channel(operator((1, 8, 8), **given), GaussianNoise(0.1))  # type: ignore[arg-type]
    train = simulate_measurements(torch.zeros(64, 1, 8, 8), channel, seed=0, split="train")
    lines = coverage_findings(take_coverage(train)).lines
    assert any("a pixel is measured in" in line for line in lines) is said
