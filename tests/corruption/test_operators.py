"""Operators against independent computations, and compositions of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from diffem.corruption import (
    Blur,
    Composition,
    Denoising,
    Downsample,
    Fourier,
    GaussianNoise,
    LinearOperator,
    Mask,
    Mosaic,
    MotionBlur,
    PointSpread,
    Projection,
    make_channel,
)
from diffem.corruption.basis import FourierBasis, HartleyBasis
from diffem.runtime.errors import UserError

KERNEL = [[1.0, 2.0, 0.0], [0.0, 4.0, 1.0], [0.0, 1.0, 0.5]]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(0), dtype=torch.float64)


def nothing(n: int) -> torch.Tensor:
    return torch.empty(n, 0)


@pytest.mark.parametrize("basis", [HartleyBasis((2, 3)), FourierBasis((2, 3))])
def test_real_and_complex_waves_are_orthonormal(basis: HartleyBasis | FourierBasis) -> None:
    x, v = images(3, 2, 6, 5), images(3, 2, 6, 5).flip(0)
    torch.testing.assert_close(basis.synthesise(basis.analyse(x)), x)
    torch.testing.assert_close((basis.analyse(x) * basis.analyse(v)).sum(), (x * v).sum())


def test_point_spread_is_a_periodic_convolution() -> None:
    x = images(2, 3, 8, 7)
    expected = torch.zeros_like(x)
    for i, row in enumerate(KERNEL):
        for j, value in enumerate(row):  # k(n) at the offset n moves x by n
            expected += value / 9.5 * x.roll((i - 1, j - 1), (2, 3))
    found = PointSpread((3, 8, 7), kernel=KERNEL).apply(x, nothing(2))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # a float32 kernel


@pytest.mark.parametrize("suffix", ["npy", "png", "tif"])
def test_a_point_spread_function_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 10, 0], [20, 200, 30], [0, 40, 0]], dtype=np.uint8)
    path = tmp_path / f"psf.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    read, given = (PointSpread((1, 8, 8), kernel=k) for k in (str(path), values.tolist()))
    kernel = read.kernel(nothing(1))
    assert torch.equal(kernel, given.kernel(nothing(1)))
    assert float(kernel.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("angle", "row", "column"), [(180.0, 0, 1), (90.0, 1, 0), (45.0, -1, 1), (135.0, 1, 1)]
)
def test_motion_blur_is_the_mean_along_a_line(angle: float, row: int, column: int) -> None:
    """A line of four pixels or diagonals: the trapezoidal rule at its nine points."""
    steps = 4 if not row or not column else 2
    length = steps * (row**2 + column**2) ** 0.5
    blur = MotionBlur((1, 9, 9), length=length, angle=angle)
    kernel = blur.kernel(blur.draw(1, seeded(0)))[0, 0]
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    ends = steps // 2
    on_line = sum(float(kernel[(s * row) % 9, (s * column) % 9]) for s in range(-ends, ends + 1))
    assert on_line > (0.99 if not row or not column else 0.6)  # a diagonal has neighbours
    torch.testing.assert_close(kernel, kernel.flip(0, 1).roll((1, 1), (0, 1)), rtol=0, atol=1e-5)


def test_super_resolution_averages_a_blurred_image() -> None:
    x, sigma = images(2, 3, 8, 6), torch.tensor([[0.7], [1.5]], dtype=torch.float64)
    fine = Blur((3, 8, 6), sigma=(0.5, 2.0), kernel_size=5)
    coarse = Blur((3, 8, 6), sigma=(0.5, 2.0), kernel_size=5, factor=2)
    torch.testing.assert_close(coarse.apply(x, sigma), avg_pool2d(fine.apply(x, sigma), 2))
    assert coarse.measured_shape == (3, 4, 3)


def test_fourier_has_its_origin_in_the_middle_and_keeps_energy() -> None:
    full = Fourier((1, 8, 6), acceleration=1.0, centre=0.0)
    mask = full.draw(2, seeded(0))
    assert (mask == 1).all()
    y = full.apply(torch.ones(2, 1, 8, 6, dtype=torch.float64), mask)
    assert y[0, 0, 4, 3] == pytest.approx(48**0.5)
    assert y.square().sum() == pytest.approx(2 * 48)
    point = torch.zeros(1, 1, 8, 6, dtype=torch.float64)
    point[0, 0, 4, 3] = 1  # at the image's origin, so that no coefficient has a phase
    y = full.apply(point, mask[:1])
    torch.testing.assert_close(y[:, 0], torch.full_like(y[:, 0], 48**-0.5))
    assert y[:, 1].abs().max() < 1e-12


@pytest.mark.parametrize("parts", [1, 2])
def test_masks_of_points_in_k_space_keep_the_laws(parts: int) -> None:
    fourier, x = Fourier((parts, 8, 6), acceleration=2.0), images(3, parts, 8, 6)
    mask = (torch.rand(3, 1, 8, 6, generator=seeded(2)) < 0.5).double()
    y = fourier.apply(x, mask)
    assert (y[mask.expand_as(y) == 0] == 0).all()
    v = images(3, 2, 8, 6)
    both = (y * v).sum(), (x * fourier.adjoint(v, mask)).sum()
    torch.testing.assert_close(*both)
    spectrum = fourier.spectrum(mask)
    assert spectrum is not None
    normal = spectrum.synthesise(spectrum.square * spectrum.analyse(x))
    torch.testing.assert_close(normal, fourier.adjoint(y, mask))


def test_fourier_measures_the_stated_lines() -> None:
    n, width = 4000, 50
    fourier = Fourier((1, 4, width), acceleration=4.0, centre=0.08)
    mask = fourier.draw(n, seeded(1))[:, 0, 0]
    middle = mask[:, width // 2 - 2 : width // 2 + 2]
    assert (middle == 1).all()
    # Of 46 lines each with p = 8.5 / 46: the mean over n draws within 4 standard errors.
    p = (width / 4 - 4) / (width - 4)
    error = 4 * (p * (1 - p) * (width - 4) / n) ** 0.5 / width
    assert abs(mask.mean() - 0.25) < error


def test_mosaic_sees_one_colour_of_each_pixel_and_all_over_its_offsets() -> None:
    mosaic = Mosaic((3, 4, 6))
    y = mosaic.apply(torch.ones(4, 3, 4, 6), torch.arange(4.0)[:, None])
    assert (y.sum(dim=1) == 1).all()
    assert (y.sum(dim=0) == torch.tensor([1.0, 2.0, 1.0])[:, None, None]).all()
    # R G / G B at the offset 0
    assert y[0, 0, 0, 0] == y[0, 1, 0, 1] == y[0, 1, 1, 0] == y[0, 2, 1, 1] == 1


COMPOSED: dict[str, list[LinearOperator]] = {
    "blur, mask": [Blur((3, 8, 6), sigma=(0.5, 2.0), kernel_size=7), Mask((3, 8, 6), rho=0.4)],
    "motion, downsample, mask": [
        MotionBlur((1, 8, 6), length=3.0, angle=(1.0, 90.0)),
        Downsample((1, 8, 6), factor=2),
        Mask((1, 4, 3), rho=0.3),
    ],
    "blur, Fourier": [
        Blur((1, 8, 6), sigma=1.0, kernel_size=5),
        Fourier((1, 8, 6), acceleration=2.0, centre=0.2),
    ],
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composition_is_its_operators_in_order(name: str) -> None:
    parts = COMPOSED[name]
    channel = make_channel(Composition(parts), GaussianNoise(0.1))
    x, gen = images(3, *channel.shape), seeded(2)
    phi = channel.forward_operator.draw(3, gen)
    expected, own = x, seeded(2)
    for part in parts:
        expected = part.apply(expected, part.draw(3, own))
    y = channel.apply(x, phi)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)  # σ is float32 in φ
    v = torch.randn(y.shape, generator=gen, dtype=torch.float64)
    left, right = (y * v).sum(), (x * channel.adjoint(v, phi)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    measurement = channel.draw(x.float(), gen)
    assert channel.embed(measurement).shape[2:] == channel.shape[1:]
    chi2 = channel.residual_chi2(measurement, x.float())
    assert chi2.isfinite().all()
    assert torch.equal(channel.assume(measurement).operator, measurement.operator)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: PointSpread((1, 8, 8), kernel=[[1.0, 1.0]]), "odd length up to [8, 8]"),
        (lambda: PointSpread((1, 8, 8), kernel=[1.0]), "must have 2 axes"),
        (lambda: PointSpread((1, 8, 8), kernel=[[-1.0]]), "corruption.kernel: each must be"),
        (
            lambda: PointSpread((1, 8, 8), kernel="no.npy"),
            "corruption.kernel=no.npy cannot be read",
        ),
        (lambda: PointSpread((8,), kernel=[[1.0]]), "needs images or signals"),
        (
            lambda: MotionBlur((1, 8, 8), length=9.0, angle=1.0),
            "corruption.length must be at most 8",
        ),
        (lambda: MotionBlur((2, 16), length=2.0, angle=1.0), "needs images of shape (C, H, W)"),
        (lambda: Fourier((3, 8, 8), acceleration=2.0), "or complex ones as (2, H, W)"),
        (lambda: Fourier((1, 8, 8), acceleration=4.0, centre=0.5), "below 1 / corruption.acc"),
        (lambda: Mosaic((1, 8, 8)), "colour images of shape (3, H, W)"),
        (lambda: Blur((1, 8, 9), sigma=1.0, kernel_size=3, factor=2), "must divide every side"),
    ],
)
def test_bad_arguments(build: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build()  # type: ignore[operator]
    assert sentence in str(error.value)


def test_operators_of_no_use_together_are_refused_by_their_shapes() -> None:
    with pytest.raises(AssertionError, match="cannot follow"):
        Composition([Projection((8,), rows=2), Denoising((8,))])
