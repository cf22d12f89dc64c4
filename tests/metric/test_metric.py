"""Metrics against independent references."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import correlate1d
from torch import Generator, Tensor

from diffem.corruption import (
    Channel,
    Denoising,
    GaussianNoise,
    LinearGaussianChannel,
    Mask,
    Measurement,
    PoissonNoise,
    Projection,
    make_channel,
)
from diffem.metric import (
    PSNR,
    SSIM,
    Evaluation,
    Metric,
    Outside,
    ResidualChi2,
    Score,
    describe_scores,
    frechet_pixels,
    psnr,
    read_scores,
    sinkhorn_divergence,
    ssim,
)
from diffem.report.scoring import mean_of
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator


def test_psnr_has_data_range_2() -> None:
    x = torch.zeros(2, 1, 4, 4)
    truth = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 2.0)])
    torch.testing.assert_close(psnr(x, truth), torch.tensor([20.0, 0.0]))  # 10 log10(4 / mse)


def test_psnr_of_equal_images_is_finite() -> None:
    x = torch.randn(2, 1, 4, 4)
    assert (psnr(x, x) - 106.02).abs().max() < 0.01  # 10 log10(4 / 1e-10)


def test_outside_is_the_fraction_beyond_the_range() -> None:
    x = torch.tensor([[-1.0, 1.0, 0.3, 0.0], [-1.001, 1.5, 0.3, 0.0]])
    channel = make_channel(Denoising((4,)), NOISE)
    found = Outside().compute(x, x, channel, channel.draw(x, generator(0)))
    assert found.tolist() == [0.0, 0.5]


def reference_ssim(x: np.ndarray, y: np.ndarray, sigma: float, radius: int) -> float:
    """Wang et al. (2004), equation 13, for images in [-1, 1]."""
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    window /= window.sum()

    def mean(image: np.ndarray) -> np.ndarray:
        rows = correlate1d(image, window, axis=0, mode="mirror")
        return correlate1d(rows, window, axis=1, mode="mirror")

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value.mean())


@pytest.mark.parametrize(("side", "sigma", "radius"), [(32, 1.5, 5), (8, 1.5, 5), (4, 3 / 3.5, 3)])
def test_ssim(side: int, sigma: float, radius: int) -> None:
    x = torch.rand(1, 1, side, side, generator=generator(0)) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=generator(1))).clamp(-1, 1)
    expected = reference_ssim(x[0, 0].double().numpy(), y[0, 0].double().numpy(), sigma, radius)
    with torch.autocast("cpu", torch.bfloat16):  # as within a run
        value = ssim(x, y)
    assert float(value[0]) == pytest.approx(expected, abs=1e-4)


NOISE = GaussianNoise(0.1)
IMAGES = make_channel(Denoising((1, 8, 8)), NOISE)
VECTORS = make_channel(Projection((5,), rows=2), NOISE)


class Square(Channel):
    """A channel that is not linear: y = x²."""

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        return Measurement.of(x**2)

    def embed(self, measurement: Measurement) -> Tensor:
        return measurement.y


class NoiseLevel(ResidualChi2):
    """A metric of Gaussian noise alone."""

    score = Score("noise_level", "noise")
    requires = LinearGaussianChannel


def default_metrics(*, required: bool = False) -> dict[str, Metric]:
    metrics = [cls(required=required) for cls in (PSNR, SSIM, ResidualChi2)]
    return {metric.score.name: metric for metric in metrics}


@pytest.mark.parametrize(
    ("channel", "left_out", "sentence"),
    [
        (IMAGES, set(), None),
        (VECTORS, {"ssim"}, r"metric\.metrics\.ssim needs images .* got the shape \[5\]; leave"),
        (make_channel(Denoising((2, 9)), NOISE), {"ssim"}, r"ssim needs images of shape"),
        (make_channel(Denoising((1, 1, 9)), NOISE), {"ssim"}, r"at least 2 × 2 pixels, got"),
        (
            Square((1, 8, 8)),
            {"residual_chi2"},
            r"residual_chi2 needs a linear channel, got Square; leave it out, or set metric\.met",
        ),
    ],
)
def test_metrics_that_do_not_fit(
    channel: Channel, left_out: set[str], sentence: str | None
) -> None:
    """They are left out if they are not required, and refused if they are."""
    fitting = Evaluation(2, 2, 2, 2, metrics=default_metrics()).fitting(
        channel, train=9, heldout=9
    )
    assert {"psnr", "ssim", "residual_chi2"} - fitting.metrics.keys() == left_out
    assert not left_out & {score.name for score in fitting.scores}
    required = Evaluation(2, 2, 2, 2, metrics=default_metrics(required=True))
    if sentence is None:
        assert (
            required.fitting(channel, train=9, heldout=9).metrics.keys() == required.metrics.keys()
        )
        return
    with pytest.raises(UserError, match=sentence):
        required.fitting(channel, train=9, heldout=9)


def test_a_metric_of_gaussian_noise() -> None:
    poisson = make_channel(Denoising((1, 8, 8)), PoissonNoise(50.0))
    assert NoiseLevel().obstacle(IMAGES) is None
    assert "linear channel with Gaussian noise, got" in (NoiseLevel().obstacle(poisson) or "")
    assert ResidualChi2().obstacle(poisson) is None


def test_residual_chi2_of_the_truth_is_1() -> None:
    """χ² of n entries in total has variance 2 / n, so its mean is within 4 · √(2 / n) of 1."""
    truth = torch.zeros(200, 1, 8, 8)
    measurement = IMAGES.draw(truth, generator(7))
    value = ResidualChi2().compute(truth, truth, IMAGES, measurement)
    assert value.shape == (200,)
    assert float(value.mean()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / truth.numel()))


def test_residual_chi2_leaves_out_what_measures_nothing() -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.97), GaussianNoise(0.1))
    truth = torch.zeros(400, 1, 8, 8)
    measurement = channel.draw(truth, generator(8))
    value = ResidualChi2().compute(truth, truth, channel, measurement)
    empty = measurement.operator.flatten(1).sum(dim=1) == 0
    assert empty.any() and torch.equal(value.isnan(), empty)
    assert mean_of(value) == pytest.approx(float(value[~empty].mean()), rel=1e-5)


def test_metrics_say_what_they_are() -> None:
    """The order of tables: PSNR, of mean, SSIM, χ²; those against the truth come first."""
    metrics = dict(reversed(default_metrics().items()))
    scores = Evaluation(2, 2, 2, 2, metrics=metrics).scores
    assert [s.heading for s in scores if s.heading] == ["SSIM", "PSNR", "of mean", "χ²", "hidden"]
    assert [s.title for s in scores if s.of_mean] == ["PSNR of mean (dB)"]
    described = describe_scores(scores)
    assert read_scores([{"metrics": described}, {"metrics": described}, {}]) == scores


def test_bad_metrics() -> None:
    with pytest.raises(UserError, match=r"metric\.metrics\.a must be a metric, as in .*, got 3"):
        Evaluation(2, 2, 2, 2, metrics={"a": 3})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"have the score 'psnr' twice"):
        Evaluation(2, 2, 2, 2, metrics={"a": PSNR(), "b": PSNR()})


def test_frechet_distance_of_pixels() -> None:
    x = torch.randn(300, 1, 2, 3, generator=generator(2))
    y = 1.5 * torch.randn(400, 1, 2, 3, generator=generator(3)) + 0.2
    a, b = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    ca, cb = np.cov(a.T), np.cov(b.T)
    cross = np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + cross
    assert frechet_pixels(x, y) == pytest.approx(float(expected), rel=1e-4)


def test_frechet_distance_pools_large_images() -> None:
    x = torch.randn(50, 3, 32, 32, generator=generator(4))
    pooled = torch.nn.functional.avg_pool2d(x, 4)
    y = torch.randn(50, 3, 32, 32, generator=generator(5))
    expected = frechet_pixels(pooled, torch.nn.functional.avg_pool2d(y, 4))
    assert frechet_pixels(x, y) == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(expected)


def test_sinkhorn_divergence_of_a_shift() -> None:
    """Between a set and itself shifted by c it is |c|² exactly: the marginals fix the rest."""
    x = torch.randn(200, 3, generator=generator(6))
    shift = torch.tensor([0.3, -0.4, 1.2])
    assert sinkhorn_divergence(x, x) == pytest.approx(0.0, abs=1e-9)
    # Sinkhorn's iterations stop at marginal errors of 1e-4.
    assert sinkhorn_divergence(x, x + shift) == pytest.approx(
        float(shift.square().sum()), rel=1e-2
    )


def test_bad_sizes() -> None:
    with pytest.raises(UserError, match=r"metric\.samples must be a whole number of at least 2"):
        Evaluation(samples=1, subset=4, heldout=4, prior=4)
