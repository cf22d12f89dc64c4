"""Blind EM: the maximum, and where its iterations lead when the prior is known."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_run import SmallRun
from torch import Tensor

from diffem.corruption import (
    Blur,
    Channel,
    Denoising,
    GaussianNoise,
    LinearChannel,
    LinearGaussianChannel,
    Mask,
    Measurement,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    SpeckleNoise,
    make_channel,
)
from diffem.data import Digits
from diffem.data.measurements import MeasurementSet
from diffem.em import Blind
from diffem.em.blind import maximise
from diffem.posterior import Posterior
from diffem.posterior.gaussian import GaussianPosterior, _covariance
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


def blur(sigma: float, std: float, learn: tuple[str, ...] = ()) -> LinearGaussianChannel:
    return make_channel(Blur(SHAPE, sigma=sigma, kernel_size=5), GaussianNoise(std), learn=learn)


def test_the_maximum_is_at_the_truth() -> None:
    x = torch.randn(200, *SHAPE, generator=generator(0))
    measurement = blur(1.0, 0.05).draw(x, generator(1))
    assumed = blur(1.5, 0.2, learn=("sigma", "noise"))
    found = maximise(assumed, assumed.assume(measurement), x)
    # 12,800 entries: σ_y to 4.5 / sqrt(2 n) = 3 %; the width's own error is far smaller.
    assert found["sigma"] == pytest.approx(1.0, rel=0.01)
    assert found["noise"] == pytest.approx(0.05, rel=0.03)
    assert assumed.known("sigma") == 1.5 and assumed.known("noise") == 0.2


def test_the_search_is_bounded() -> None:
    x = torch.randn(20, *SHAPE, generator=generator(2))
    measurement = blur(0.5, 0.05).draw(x, generator(3))
    assumed = blur(3.0, 0.05, learn=("sigma",))
    assert maximise(assumed, assumed.assume(measurement), x)["sigma"] == pytest.approx(
        1.5, rel=0.01
    )


def test_measurements_count_by_their_noise() -> None:
    """Of levels from 0.01 to 1, those without much noise say where the width is."""
    operator = Blur(SHAPE, sigma=1.0, kernel_size=5)
    channel = make_channel(operator, GaussianNoise([0.01, 1.0]), learn=("sigma",))
    errors = []
    for seed in range(8):
        x = torch.randn(64, *SHAPE, generator=generator(seed, "x"))
        found = maximise(channel, channel.draw(x, generator(seed, "y")), x)
        errors.append(found["sigma"] - 1.0)
    # The standard deviation is 0.1 %; with equal weights, the noise of the worst makes it 2 %.
    assert torch.tensor(errors).square().mean().sqrt() < 0.003


def test_what_measures_nothing_does_not_count() -> None:
    channel = make_channel(Mask(SHAPE, rho=0.97), GaussianNoise(0.2), learn=("noise",))
    x = torch.randn(800, *SHAPE, generator=generator(7))
    drawn = make_channel(Mask(SHAPE, rho=0.97), GaussianNoise(0.1)).draw(x, generator(8))
    assert (drawn.operator.flatten(1).sum(dim=1) == 0).any()
    # About 1,536 measured pixels: σ_y to 4.5 / sqrt(2 n) = 8 %.
    assert maximise(channel, channel.assume(drawn), x)["noise"] == pytest.approx(0.1, rel=0.08)


def test_em_finds_the_channel_under_a_known_gaussian_prior() -> None:
    """The digits' own mean and covariance as the prior: start at twice the width and the noise."""
    x = Digits([1, 8, 8], train=1500).load().train
    flat = x.flatten(1).double()
    assumed = blur(2.0, 0.1, learn=("sigma", "noise"))
    posterior = GaussianPosterior(flat.mean(dim=0), _covariance(flat, 64), assumed)
    measurement = blur(1.0, 0.05).draw(x[:256], generator(4))
    blind = Blind(iterations=16, samples=256, widen=1.5)
    measurements = MeasurementSet(measurement, assumed, x[:256])
    path = blind.fit(posterior, measurements, key=(0, "channel", 1), device=CPU)
    assert len(path) == 16
    assert path[-1]["sigma"] == pytest.approx(1.0, rel=0.1)
    assert path[-1]["noise"] == pytest.approx(0.05, rel=0.1)
    learned = blind.start(measurements, path).channel
    assert isinstance(learned, LinearGaussianChannel)
    assert learned.parameters["sigma"].bounds == pytest.approx(
        (path[-1]["sigma"] / 1.5, path[-1]["sigma"] * 1.5)
    )


def camera(noise: Noise, learn: tuple[str, ...] = ()) -> LinearChannel:
    return make_channel(Mask(SHAPE, rho=0.3), noise, learn=learn)


def variance_slopes(noise: Noise, mean: Tensor, parameters: Tensor) -> Tensor:
    """Returns ∂ log V[y | A x] / ∂ log θ, (K, B, *M), by central differences in float64."""
    step = 1e-5
    slopes = []
    for k in range(parameters.shape[1]):
        factor = torch.ones_like(parameters)
        factor[:, k] = 1 + step
        up = noise.variance(mean, parameters * factor)
        down = noise.variance(mean, parameters / factor)
        slopes.append((up.log() - down.log()) / (2 * step))
    return torch.stack(slopes)


@pytest.mark.parametrize(
    ("truth", "start"),
    [
        (PoissonNoise(30.0), PoissonNoise(50.0)),
        (PoissonGaussianNoise(30.0, 0.2), PoissonGaussianNoise(50.0, 0.12)),
        (PoissonGaussianNoise(300.0, 0.02), PoissonGaussianNoise(180.0, 0.035)),
        (PoissonGaussianNoise(100.0, 0.2), PoissonGaussianNoise(100.0, 0.15)),
        (SpeckleNoise(0.3, 0.1), SpeckleNoise(0.5, 0.06)),
    ],
    ids=["counts", "dark", "bright", "read-out", "speckle"],
)
def test_the_maximum_of_noise_that_depends_on_the_intensity(truth: Noise, start: Noise) -> None:
    """Within 4.5 standard errors of the maximum of a quasi-likelihood.

    With D = ∂ log V / ∂ log θ of an entry and κ its excess kurtosis, the derivative of
    -log N(y; A x, V) by log θ has the variance D Dᵀ (2 + κ) / 4 and its slope the mean D Dᵀ / 2,
    so that the estimate's covariance is H⁻¹ J H⁻¹ of their sums (Wedderburn 1974). The fourth
    cumulant of counts is (2/λ)⁴ times their rate, and 0 of the rest.
    """
    x = 2 * torch.rand(400, *SHAPE, generator=generator(0)) - 1
    measurement = camera(truth).draw(x, generator(1))
    learn = tuple("noise" if name == "std" else name for name in truth.parameters)
    assumed = camera(start, learn=learn)
    found = maximise(assumed, assumed.assume(measurement), x)

    mean, parameters = x.double(), measurement.noise.double()
    measured = camera(truth).measured_mask(measurement.y, measurement.operator).bool()
    variance = truth.variance(mean, parameters)[measured]
    kurtosis = torch.zeros_like(variance)
    if isinstance(truth, PoissonNoise):
        photons = truth.photons.bounds[0]
        rate = photons * (mean[measured] + 1) / 2 + truth.background
        kurtosis = (2 / photons) ** 4 * rate / variance**2
    slopes = variance_slopes(truth, mean, parameters)[:, measured]
    h = torch.linalg.inv(slopes @ slopes.T / 2)
    error = (h @ (slopes * (2 + kurtosis) @ slopes.T / 4) @ h).diagonal().sqrt()
    known = [p.bounds[0] for p in truth.parameters.values()]
    for name, value, bound in zip(learn, known, error.tolist(), strict=True):
        assert abs(math.log(found[name] / value)) < 4.5 * bound, (name, found[name], bound)
    assert error.max() < 0.2  # the bound says something


class OnGrid(Posterior):
    """The exact posterior of pixels that are one of a few values each, under Gaussian noise."""

    def __init__(self, values: Tensor, channel: LinearChannel) -> None:
        self.values, self.channel = values, channel

    def under(self, channel: Channel) -> "OnGrid":
        assert isinstance(channel, LinearChannel)
        return OnGrid(self.values, channel)

    def log_joint(self, measurement: Measurement) -> Tensor:
        """Returns log N(y; v, V[y | v]) of each pixel and value v, (V, B, *shape)."""
        y, _, noise = measurement
        each = self.values.reshape(-1, *(1,) * y.ndim).expand(-1, *y.shape)
        variance = torch.stack([self.channel.noise.variance(v, noise) for v in each])
        return -((y - each) ** 2 / variance + variance.log()) / 2

    def draw(self, measurement: Measurement) -> Tensor:
        joint = self.log_joint(measurement)
        drawn = torch.distributions.Categorical(logits=joint.movedim(0, -1)).sample()
        return self.values[drawn]


def test_em_finds_photons_and_read_out_noise_under_a_known_prior() -> None:
    """From twice and half the truth, within the error of the maximum of the likelihood.

    Pixels are one of five values; y has the variance of photons and read-out noise and is
    Gaussian, so that posterior and likelihood are exact. With the information I of y about log θ,
    the mean of the score's square, the maximum has the covariance I⁻¹. Iterations with one draw of
    x̂ scatter around it by at most half of that (in one dimension F / (1 + F) I⁻¹ with the missing
    fraction F; Nielsen 2000), and 30 of them forget the start.
    """
    values = torch.tensor([-0.9, -0.5, 0.0, 0.5, 0.9])
    truth = PoissonGaussianNoise(40.0, 0.2)
    x = values[torch.randint(5, (256, *SHAPE), generator=generator(5))]
    noise = truth.draw_parameters(256, generator(6))
    epsilon = torch.randn(x.shape, generator=generator(7))
    y = x + truth.variance(x, noise).sqrt() * epsilon
    learn = ("photons", "noise")
    operator = Denoising(SHAPE)
    exact = OnGrid(values.double(), make_channel(operator, truth))

    def log_likelihood(photons: float, std: float) -> Tensor:  # of each entry
        own = torch.tensor([[photons, std]], dtype=torch.float64).expand(256, -1)
        drawn = Measurement(y.double(), operator.draw(256, generator(0)), own)
        return exact.log_joint(drawn).logsumexp(dim=0).flatten()

    step = 1e-4
    score = torch.stack(
        [
            log_likelihood(40 * math.exp(step), 0.2) - log_likelihood(40 * math.exp(-step), 0.2),
            log_likelihood(40, 0.2 * math.exp(step)) - log_likelihood(40, 0.2 * math.exp(-step)),
        ]
    ) / (2 * step)
    error = (1.5 * torch.linalg.inv(score @ score.T)).diagonal().sqrt().tolist()

    assumed = make_channel(operator, PoissonGaussianNoise(80.0, 0.1), learn=learn)
    measurement = Measurement(y, operator.draw(256, generator(0)), noise)
    path = Blind(iterations=30, samples=256, widen=1.5).fit(
        OnGrid(values, assumed),
        MeasurementSet(measurement, assumed, x),
        key=(0, "channel", 1),
        device=CPU,
    )
    for name, value, bound in zip(learn, (40.0, 0.2), error, strict=True):
        assert abs(math.log(path[-1][name] / value)) < 4.5 * bound, (name, path[-1], bound)
    assert max(error) < 0.1


class Killed(BaseException):
    """Ends a run where a kill would."""


def test_a_run_learns_photons_and_read_out_noise_and_may_be_killed(tmp_path: Path) -> None:
    """Law 4 with a channel of two learned numbers: after an iteration's file, before its round."""

    def run(path: Path) -> SmallRun:
        assumed = make_channel(
            Mask(SHAPE, rho=0.5), PoissonGaussianNoise(60.0, 0.3), learn=("photons", "noise")
        )
        return SmallRun(path, noise=PoissonGaussianNoise(60.0, 0.1), assumed=assumed)

    whole = run(tmp_path / "whole").fit()
    assert [len(whole.store.channel(k) or []) for k in (0, 1, 2)] == [0, 2, 2]
    assert all(p.keys() == {"photons", "noise"} for p in whole.rounds[2].path)
    assert whole.rounds[2].path[-1]["noise"] < 0.3
    for method in ("write_channel", "commit"):
        killed = run(tmp_path / method)
        original = getattr(killed.store, method)

        def die(*given: object, original: Callable[..., object] = original) -> None:
            original(*given)
            if given[0] == 1:
                raise Killed

        setattr(killed.store, method, die)
        with pytest.raises(Killed):
            killed.fit()
        resumed = run(tmp_path / method).fit()
        assert resumed.module.weights_hash() == whole.module.weights_hash()
        for k in (0, 1, 2):
            assert resumed.store.digest(k) == whole.store.digest(k)
            assert resumed.store.channel(k) == whole.store.channel(k)


def test_a_run_learns_writes_and_tells(tmp_path: Path) -> None:
    """The noise of a mask, which starts at four times the truth."""
    assumed = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.2), learn=("noise",))
    run = SmallRun(tmp_path, assumed=assumed).fit()
    paths = [run.store.channel(k) for k in (0, 1, 2)]
    assert paths[0] is None and paths[1] is not None and paths[2] is not None
    assert len(paths[1]) == 2
    assert run.rounds[0].path == [] and run.rounds[2].path == paths[2]
    assert run.rounds[2].estimate()["estimate"] == paths[2][-1]
    learned = torch.tensor(paths[2][-1]["noise"])
    assert (run.data.measurements.select(slice(None)).noise == learned).all() and learned < 0.2


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"blind\.iterations must be a whole number"):
        Blind(iterations=0, samples=1, widen=1.5)
    with pytest.raises(UserError, match=r"blind\.widen must be in \[1, 1000\], got 0\.5"):
        Blind(iterations=1, samples=1, widen=0.5)


def test_a_learned_channel_replaces_the_one_before(tmp_path: Path) -> None:
    """What was given stays as it was; the objective is given the learned channel."""
    assumed = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.2), learn=("noise",))
    run = SmallRun(tmp_path, assumed=assumed).fit()
    assert assumed.known("noise") == 0.2 and assumed.parameters["noise"].bounds == (0.2, 0.2)
    assert (run.data.given.select(slice(None)).noise == torch.tensor(0.2)).all()
    learned = [r.measurements.channel for r in run.rounds]
    assert all(isinstance(c, LinearGaussianChannel) for c in learned)
    assert len({c.known("noise") for c in learned if isinstance(c, LinearGaussianChannel)}) == 3
