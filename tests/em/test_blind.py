"""Blind EM: the maximum, and where its iterations lead when the prior is known."""

from pathlib import Path

import pytest
import torch
from small_run import SmallRun

from diffem.corruption import Blur, GaussianNoise, LinearGaussianChannel, Mask, make_channel
from diffem.data import Digits
from diffem.data.measurements import MeasurementSet
from diffem.em import Blind
from diffem.em.blind import maximise
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
