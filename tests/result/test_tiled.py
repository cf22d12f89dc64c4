"""Large images have the posterior's own law, whatever the tiles and in the data's units."""

from functools import partial

import numpy as np
import pytest
import torch
from azula.noise import VESchedule
from exact import Zero

from diffem import Scale, UserError
from diffem.corruption import (
    Blur,
    Channel,
    Composition,
    DeepInverse,
    Denoising,
    DistortedChannel,
    Fourier,
    GaussianNoise,
    Impulse,
    LinearOperator,
    Mask,
    Mosaic,
    MultiCoil,
    PhaseRetrieval,
    Radon,
    Weighting,
    make_channel,
)
from diffem.denoiser import Conditioning, Denoiser
from diffem.posterior import Conditional, SDESampler
from diffem.result import PosteriorSampler
from diffem.result.sampling import Sampling

TILE, LARGE = (1, 16, 16), (1, 43, 58)
SCALE, STD = Scale(100, 300), 30.0  # 0.3 on the scale of [-1, 1]
IMAGES, N = 3, 4


def sampler(operator: LinearOperator, *, steps: int = 40) -> PosteriorSampler:
    """Returns the sampler of a run whose denoiser is exact for x ~ N(0, 1)."""
    channel: Channel = make_channel(operator, GaussianNoise(STD * SCALE.factor))
    posterior = Conditional(
        Denoiser(Zero(), VESchedule(0.005, 10.0)),
        channel,
        sampler=partial(SDESampler, steps=steps),
        condition=Conditioning(),
    )
    sampling = Sampling(torch.device("cpu"), "32-true", chunk_size=7, seed=0)
    return PosteriorSampler(posterior, channel, SCALE, sampling)


def drawn(kind: str) -> tuple[PosteriorSampler, dict[str, np.ndarray], np.ndarray]:
    """Returns a sampler, measurements in the data's units, and σ_y of each pixel, inf for none."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((IMAGES, *LARGE[1:]))
    level = np.full(x.shape, 0.3)
    if kind == "weighting":
        level = rng.uniform(0.2, 0.9, x.shape)
    y = SCALE.centre + (x + level * rng.standard_normal(x.shape)) / SCALE.factor
    if kind == "weighting":
        return (
            sampler(Weighting(TILE, ratio=(0.5, 3.0))),
            {"y": y, "noise": level / SCALE.factor},
            level,
        )
    if kind == "denoising":
        return sampler(Denoising(TILE)), {"y": y}, level
    measured = rng.random(x.shape) < 0.6
    given = {"y": np.where(measured, y, np.nan)}
    if kind == "mask":
        given = {"y": y, "operator": measured}
    return sampler(Mask(TILE, rho=0.4)), given, np.where(measured, level, np.inf)


@pytest.mark.parametrize("kind", ["denoising", "mask", "NaN", "weighting"])
def test_samples_of_large_images_have_the_law_of_the_posterior(kind: str) -> None:
    posterior, given, level = drawn(kind)
    x = posterior.sample(**given, n=N)  # type: ignore[arg-type]
    assert x.shape == (N, IMAGES, *LARGE[1:])
    precision = 1 + level**-2
    y = (np.nan_to_num(given["y"], nan=SCALE.centre) - SCALE.centre) * SCALE.factor
    mean = np.where(np.isfinite(level), y * level**-2.0, 0) / precision
    z = ((x.numpy() - SCALE.centre) * SCALE.factor - mean) * np.sqrt(precision)
    # 4.5 standard errors, and what 40 steps of a second-order method leave.
    assert abs(z.mean()) < 4.5 / np.sqrt(z.size) + 0.01
    assert abs(z.var() - 1) < 4.5 * np.sqrt(2 / z.size) + 0.02
    # Neighbouring pixels, samples and images are independent of one another, as the posterior's.
    for a, b in ((z[..., 1:], z[..., :-1]), (z[..., 1:, :], z[..., :-1, :]), (z[1:], z[:-1]),
                 (z[:, 1:], z[:, :-1])):  # fmt: skip
        assert abs((a * b).mean()) < 4.5 / np.sqrt(a.size) + 0.01


def test_a_sample_depends_on_seed_image_and_number_and_not_on_the_tiles() -> None:
    posterior, given, _ = drawn("denoising")
    posterior = sampler(Denoising(TILE), steps=6)
    x = posterior.sample(**given, n=2)  # type: ignore[arg-type]
    for overlap in (0, 5, 11):
        other = posterior.sample(**given, n=2, overlap=overlap)  # type: ignore[arg-type]
        # In units of which 100 are 1: float32's rounding of values up to 10 at the first steps.
        torch.testing.assert_close(other, x, rtol=0, atol=2e-3)
    first = posterior.sample(given["y"][:1], n=1)
    torch.testing.assert_close(first[0, 0], x[0, 0], rtol=0, atol=2e-3)
    seeded = posterior.sample(given["y"][:1], n=1, seed=1)
    assert (seeded - first).abs().mean() > 1


COUPLING = {  # a pixel of y depends on pixels of x that are far apart
    "Fourier": Fourier((1, 16, 16), acceleration=2.0),
    "Fourier of complex images": Fourier((2, 16, 16), acceleration=2.0),
    "multi-coil": MultiCoil((2, 16, 16), coils=3, acceleration=2.0),
    "radon": Radon(TILE, angles=20),  # whose measurements are larger than the images
    "deepinv's MRI": DeepInverse((2, 16, 16), physics="MRI"),
    "deepinv's Tomography": DeepInverse(TILE, physics="Tomography", arguments={"angles": 20}),
    "blur, mask": Composition([Blur(TILE, sigma=1.0, kernel_size=3), Mask(TILE, rho=0.5)]),
    "mosaic": Mosaic((3, 16, 16)),  # whose pattern would begin anew in each tile
}


@pytest.mark.parametrize("name", COUPLING)
def test_what_couples_pixels_is_not_tiled(name: str) -> None:
    operator = COUPLING[name]
    for distorted in (False, True):
        posterior = sampler(operator, steps=4)
        if distorted:
            linear = make_channel(operator, GaussianNoise(STD))
            posterior.channel = DistortedChannel(linear, [Impulse(fraction=0.1)])
        shape = posterior.measured_shape
        large = np.zeros((2, *shape[:-2], shape[-2] + 4, shape[-1] + 4))
        with pytest.raises(UserError, match=r"needs a corruption of each pixel by itself"):
            posterior.sample(large)


def test_phase_retrieval_is_not_tiled() -> None:
    posterior = sampler(Denoising(TILE), steps=4)
    posterior.channel = PhaseRetrieval(TILE, masks=2, noise=GaussianNoise(STD))
    with pytest.raises(UserError, match=r"needs a corruption of each pixel by itself"):
        posterior.sample(np.zeros((2, 2, 20, 20)))


@pytest.mark.parametrize("name", ["radon", "deepinv's Tomography"])
def test_a_measurement_may_be_larger_than_its_image(name: str) -> None:
    operator = COUPLING[name]
    posterior = sampler(operator, steps=4)
    assert all(a > b for a, b in zip(posterior.measured_shape[1:], TILE[1:], strict=True))
    phi = operator.draw(2, torch.Generator().manual_seed(0))
    given = {"operator": phi.numpy()} if phi.numel() else {}
    x = posterior.sample(np.zeros((2, *posterior.measured_shape)), **given)  # type: ignore[arg-type]
    assert x.shape == (1, 2, *TILE)


def test_channels_stay_where_they_were() -> None:
    posterior, given, _ = drawn("denoising")
    posterior = sampler(Denoising(TILE), steps=4)
    grey = posterior.sample(given["y"])
    with_axis = posterior.sample(given["y"][:, None])
    assert torch.equal(with_axis.squeeze(2), grey)
    with pytest.raises(UserError, match=r"have shape \[2, 16, 16\]"):
        posterior.sample(np.repeat(given["y"][:, None], 2, axis=1))
