"""The noise is estimated from measurements alone, with an error that is to be believed."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits, load_sample_image

from diffem.inspection.curve import noise_curve
from diffem.inspection.estimate import Estimate
from diffem.inspection.noise import NoiseEstimate, NoiseLaw, estimate_noise, noise_law
from diffem.inspection.patches import frames, take_patches


def flat(rng: np.random.Generator) -> np.ndarray:
    return np.full((40, 32, 32), 1000.0)


def ramps(rng: np.random.Generator) -> np.ndarray:
    row, column = np.indices((48, 48))
    angle = rng.uniform(0, 2 * np.pi, (40, 1, 1))
    return 1000 + 20 * (np.cos(angle) * row + np.sin(angle) * column)


def digits(rng: np.random.Generator) -> np.ndarray:
    """Digits of 64 × 64 with sharp edges, 0 to 1600."""
    x = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)[:60] * 100
    return np.kron(x, np.ones((8, 8)))


def photograph(rng: np.random.Generator) -> np.ndarray:
    """Crops of a photograph of buildings and sky, 0 to 2550."""
    x = load_sample_image("china.jpg").mean(axis=2)[:384, :640] * 10.0
    return x.reshape(6, 64, 10, 64).transpose(0, 2, 1, 3).reshape(-1, 64, 64)


def cameraman(rng: np.random.Generator) -> np.ndarray:
    """Crops of scikit-image's photograph of a man on grass, 0 to 2550."""
    x = pytest.importorskip("skimage.data").camera() * 10.0
    return x.reshape(8, 64, 8, 64).transpose(0, 2, 1, 3).reshape(-1, 64, 64)


SCENES = {f.__name__: f for f in (flat, ramps, digits, photograph, cameraman)}


def cells(rng: np.random.Generator, count: int = 64, side: int = 64) -> np.ndarray:
    """Smooth spots on a dark background, as of fluorescence; 1 % of the pixels are above 1."""
    spots = gaussian_filter((rng.random((count, side, side)) < 0.002).astype(float), (0, 5, 5))
    spots = np.clip(spots / spots.max() - 0.1, 0, None)
    return spots / np.quantile(spots, 0.99)


def camera(
    light: np.ndarray, rng: np.random.Generator, *, gain: float, read: float, offset: float
) -> np.ndarray:
    """Returns y of a camera that sees a mean number of photons."""
    return offset + gain * rng.poisson(light) + read * rng.standard_normal(light.shape)


def errors(found: Estimate, truth: float) -> float:
    return abs(found.value - truth) / found.error


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("std", [20.0, 100.0, 400.0])
def test_gaussian_noise_is_found_on_any_scene(scene: str, std: float) -> None:
    rng = np.random.default_rng(0)
    x = SCENES[scene](rng)
    own = estimate_noise(x, axes=2).std  # a photograph has noise of its own
    most = np.hypot(std, 0 if own is None else own.value)
    found = estimate_noise(x + std * rng.standard_normal(x.shape), axes=2)
    assert found.std is not None and not found.at_most
    assert std - 3 * found.std.error < found.std.value < most + 3 * found.std.error
    assert found.std.error < 0.05 * std


def test_the_standard_error_is_the_error() -> None:
    """Over 40 draws, (σ̂ - σ) / SE has the standard deviation 1, to 4.5 of its own errors."""
    scores = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = estimate_noise(1000 + 50 * rng.standard_normal((40, 24, 24)), axes=2)
        assert found.std is not None and found.law is not NoiseLaw.LINEAR
        scores.append((found.std.value - 50) / found.std.error)
    z = np.array(scores)
    assert abs(z.mean()) < 4.5 / np.sqrt(40)
    # An error that counts what structures may add is wider than chance alone.
    assert 0.4 < z.std() < 1 + 4.5 / np.sqrt(2 * 40)


def test_missing_pixels_are_respected() -> None:
    rng = np.random.default_rng(0)
    y = digits(rng) + 100 * rng.standard_normal((60, 64, 64))
    for missing in (0.3, 0.75):
        masked = np.where(rng.random(y.shape) < missing, np.nan, y)
        found = estimate_noise(masked, axes=2)
        assert found.std is not None and errors(found.std, 100) < 3, (missing, found.std)


def test_signals_and_volumes() -> None:
    rng = np.random.default_rng(0)
    t = np.linspace(0, 20, 500)
    signal = 1000 * np.sin(t * rng.uniform(1, 2, (50, 1, 1))) + 5 * rng.standard_normal(
        (50, 1, 500)
    )
    volume = 100 * gaussian_filter(rng.random((4, 1, 16, 32, 32)), (0, 0, 4, 4, 4))
    volume += 5 * rng.standard_normal(volume.shape)
    for y, axes in ((signal, 1), (volume, 3)):
        found = estimate_noise(y, axes=axes)
        assert found.std is not None and errors(found.std, 5) < 3


def test_repeated_exposures_cancel_any_structure() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(1000 * rng.random((1, 64, 64)), 20, axis=0)  # no patch of it is flat
    found = estimate_noise(x + 10 * rng.standard_normal(x.shape), axes=2)
    assert found.repeated and found.std is not None and not found.at_most
    assert errors(found.std, 10) < 3


def test_a_texture_gives_an_upper_bound() -> None:
    """White texture cannot be told from noise; what is larger than the noise is said to be so."""
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.random((40, 64, 64)) - 0.5, (0, 0.7, 0.7)) * 1000
    x *= np.linspace(0.1, 1, 40)[:, None, None]  # no image is flat
    found = estimate_noise(x + rng.standard_normal(x.shape), axes=2)
    assert found.std is not None and found.at_most and found.std.value > 1


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_images_without_a_flat_place_give_an_upper_bound(std: float) -> None:
    """Digits of 8 × 8: strokes are a pixel wide, and no patch is without one."""
    x = load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 8 - 1
    y = x + std * np.random.default_rng(0).standard_normal(x.shape)
    found = estimate_noise(y, axes=2)
    assert found.std is not None and found.at_most and found.law is NoiseLaw.UNKNOWN


@pytest.mark.parametrize("photons", [10.0, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_photon_transfer_over_four_decades_of_light(photons: float, gain: float) -> None:
    """Gain and read-out noise within 10 %, and within 4 of their standard errors."""
    rng = np.random.default_rng(0)
    read = 3.0 * gain
    # Ten photons under a read-out of three take more images for an error of 3 %.
    y = camera(
        photons * cells(rng, 256 if photons < 100 else 64), rng, gain=gain, read=read, offset=100.0
    )
    found = estimate_noise(y, axes=2)
    assert found.law is NoiseLaw.LINEAR and found.camera is not None
    known = found.camera
    assert known.read is not None and known.offset is not None, known.why_not
    assert abs(known.gain.value / gain - 1) < 0.1 and errors(known.gain, gain) < 4
    assert abs(known.read.value / read - 1) < 0.1 and errors(known.read, read) < 4
    assert abs(known.offset.value - 100) < 0.1 * read


@pytest.mark.parametrize("seed", [0, 2])
def test_structures_widen_the_error_of_a_gain(seed: int) -> None:
    """Crops of a photograph, of which few patches are flat."""
    scene = np.asarray(load_sample_image("china.jpg"), float).mean(axis=-1)
    rng = np.random.default_rng(seed)
    top, left = (rng.integers(0, side - 28, 500) for side in scene.shape)
    x = np.stack([scene[i : i + 28, j : j + 28] for i, j in zip(top, left, strict=True)])
    y = 100 + 2.5 * rng.poisson(x / 255 * 40 + 1) + rng.normal(0, 3, x.shape)
    known = estimate_noise(y, axes=2).camera
    assert known is not None and abs(known.gain.value / 2.5 - 1) < 0.1
    assert errors(known.gain, 2.5) < 4


def test_the_prototype_s_case() -> None:
    """A stack of gain 2.00 and read-out noise 10.3, of which a sketch found 1.82 and 9.8."""
    rng = np.random.default_rng(0)
    y = camera(200 * cells(rng, 40), rng, gain=2.0, read=10.3, offset=100.0)
    known = estimate_noise(np.round(y), axes=2).camera
    assert known is not None and known.read is not None
    assert abs(known.gain.value - 2) < 0.1 and abs(known.read.value - 10.3) < 0.3


def test_counts_without_a_read_out() -> None:
    rng = np.random.default_rng(0)
    y = rng.poisson(20 * cells(rng)).astype(float)
    known = estimate_noise(y, axes=2).camera
    assert known is not None and abs(known.gain.value - 1) < 0.05
    assert known.read is not None and known.read.value < 0.3


def test_saturated_pixels_are_left_out() -> None:
    rng = np.random.default_rng(0)
    y = camera(1000 * cells(rng), rng, gain=2.0, read=6.0, offset=100.0)
    top = float(np.quantile(y, 0.98))
    known = estimate_noise(y.clip(max=top), axes=2, clipped=[top]).camera
    assert known is not None and abs(known.gain.value / 2 - 1) < 0.1


def test_offset_and_read_out_are_not_told_without_dark_pixels() -> None:
    """All of the scene is lit: a line has two numbers; gain, offset and read-out are three."""
    rng = np.random.default_rng(0)
    light = 200 + 800 * gaussian_filter(rng.random((64, 64, 64)), (0, 12, 12), mode="wrap")
    light = 200 + 800 * (light - light.min()) / np.ptp(light)
    y = camera(light, rng, gain=2.0, read=6.0, offset=100.0)
    known = estimate_noise(y, axes=2).camera
    assert known is not None and abs(known.gain.value / 2 - 1) < 0.1
    assert known.offset is None and known.read is None and known.why_not
    given = estimate_noise(y, axes=2, offset=100.0).camera
    assert given is not None and given.read is not None
    assert errors(given.read, 6.0) < 4


def test_a_lit_background_is_not_taken_for_dark() -> None:
    """A sky of 20 photons under the stars: its noise is skewed as that of counted photons."""
    rng = np.random.default_rng(0)
    y = camera(20 + 2000 * cells(rng), rng, gain=2.0, read=2.0, offset=100.0)
    known = estimate_noise(y, axes=2).camera
    assert known is not None and abs(known.gain.value / 2 - 1) < 0.1
    assert known.read is None and known.why_not is not None and "sees light" in known.why_not


def test_a_ccd_frame() -> None:
    """One exposure of 150 s of the SAAO's STE3 CCD, gain 1.9 photons a unit by its header.

    The header's read-out noise of 5 photons is a nominal one: the frame's own overscan, columns 4
    to 13, has 5.8.
    """
    fits = pytest.importorskip("astropy.io.fits")
    package = find_spec("ccdproc")
    if package is None or package.origin is None:
        pytest.skip("ccdproc is not installed")
    file = Path(package.origin).parent / "tests" / "data" / "a8280271.fits"
    y = fits.getdata(file).astype(float)
    known = estimate_noise(y[None], axes=2).camera
    assert known is not None and known.read is not None
    assert abs(1 / known.gain.value / 1.9 - 1) < 0.05
    overscan = y[:, 3:13]
    assert abs(known.read.value / overscan.std() - 1) < 0.1
    assert known.offset is not None
    assert abs(known.offset.value - overscan.mean()) < 0.5 * overscan.std()


def law(y: np.ndarray) -> NoiseLaw:
    return estimate_noise(y, axes=2).law


def test_which_law_fits() -> None:
    rng = np.random.default_rng(0)
    x = 1000 * cells(rng) + 10
    assert law(x + 20 * rng.standard_normal(x.shape)) is NoiseLaw.CONSTANT
    assert law(rng.poisson(x).astype(float)) is NoiseLaw.LINEAR
    assert law(x * (1 + 0.1 * rng.standard_normal(x.shape))) is NoiseLaw.QUADRATIC
    assert law(30 * rng.poisson(x + 100) ** 0.3) is NoiseLaw.FALLING
    assert law(flat(rng) + 20 * rng.standard_normal((40, 32, 32))) is NoiseLaw.UNKNOWN


@pytest.mark.parametrize("scene", ["digits", "photograph", "cameraman"])
@pytest.mark.parametrize("std", [20.0, 100.0, 400.0])
def test_structures_are_not_taken_for_photons(scene: str, std: float) -> None:
    """Bright parts have more structure than dark ones, and the noise of each is the same."""
    rng = np.random.default_rng(1)
    x = SCENES[scene](rng)
    assert law(x + std * rng.standard_normal(x.shape)) is NoiseLaw.CONSTANT


def blobs(rng: np.random.Generator) -> np.ndarray:
    """A smooth scene of all brightnesses from 0 to 1."""
    light = gaussian_filter(rng.random((64, 64, 64)), (0, 12, 12), mode="wrap")
    return (light - light.min()) / np.ptp(light)


@pytest.mark.parametrize(("scene", "error"), [(blobs, 0.05), (cells, 0.15)])
@pytest.mark.parametrize("level", [0.05, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("std", [1.0, 10.0])
def test_speckle_s_level(
    scene: Callable[[np.random.Generator], np.ndarray], error: float, level: float, std: float
) -> None:
    """Within four of its standard errors, which are small.

    Spots rise within the pixels of a patch, so that its mean of μ² is more than the square of its
    mean: from the latter alone the level of 0.3 came out as 0.34 ± 0.01.
    """
    rng = np.random.default_rng(0)
    light = 1000 * scene(rng)
    y = 100 + light * (1 + level * rng.standard_normal(light.shape))
    y += std * rng.standard_normal(light.shape)
    found = estimate_noise(y, axes=2)
    assert found.law is NoiseLaw.QUADRATIC and found.speckle is not None
    speckle = found.speckle
    assert errors(speckle.level, level) < 4 and speckle.level.error < error * level
    assert errors(speckle.offset, 100) < 4 and speckle.std < 2 * std


def test_speckle_of_repeated_exposures() -> None:
    """Of which the brightness is the mean of two, with half of the noise's variance."""
    rng = np.random.default_rng(0)
    light = np.repeat(1000 * blobs(rng)[:3], 20, axis=0)
    y = 100 + light * (1 + 0.1 * rng.standard_normal(light.shape))
    found = estimate_noise(y + rng.standard_normal(light.shape), axes=2)
    assert found.repeated and found.speckle is not None
    assert errors(found.speckle.level, 0.1) < 4


def unknown(y: np.ndarray, axes: int = 2, **given: object) -> NoiseEstimate:
    found = estimate_noise(y, axes=axes, **given)  # type: ignore[arg-type]
    assert found.std is None and found.why_not
    return found


def test_what_cannot_be_told_is_said() -> None:
    rng = np.random.default_rng(0)
    assert "vector" in str(unknown(rng.standard_normal((100, 5)), 0).why_not)
    sparse = np.where(rng.random((20, 16, 16)) < 0.97, np.nan, 1.0)
    assert "not enough" in str(unknown(sparse).why_not)
    assert "not enough" in str(unknown(rng.standard_normal((2, 8, 8))).why_not)
    for clean in (np.zeros((40, 32, 32)), ramps(rng), digits(rng)):
        assert "no noise" in str(unknown(clean).why_not)
    half = np.maximum(rng.standard_normal((40, 32, 32)), 0)
    assert "clipped" in str(unknown(half, clipped=[0.0]).why_not)


def test_images_whose_patches_have_no_noise_at_all_have_a_law() -> None:
    """Rounding leaves 1e-20 on one processor, and nothing on another: a division by zero."""
    patches = take_patches(frames(digits(np.random.default_rng(0)), axes=2), (1, 1))
    assert patches is not None
    curve = noise_curve(patches)
    silent = replace(curve, **{name: 0 * getattr(curve, name) for name in ("variance", "error")})
    assert noise_law(silent) in (NoiseLaw.CONSTANT, NoiseLaw.UNKNOWN)


def test_an_estimate_is_shown_with_as_many_digits_as_are_known() -> None:
    assert str(Estimate(12.3456, 0.4321)) == "12.35 ± 0.43"
    assert str(Estimate(1503.2, 23.0)) == "1503 ± 23"
    assert str(Estimate(100.0, 0.0)) == "100 ± 0"
