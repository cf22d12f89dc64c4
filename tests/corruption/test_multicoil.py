"""k-space of several coils: the operator, its maps from files, and maps that are estimated."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffem.corruption import Fourier, MultiCoil, estimate_coils
from diffem.corruption.coils import simulated_maps
from diffem.runtime.errors import UserError

H, W = 24, 20


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.abs().square().sum(dim=0).sqrt()


def smooth_images(n: int) -> torch.Tensor:
    """Returns complex images of n different phases, (n, H, W), complex128."""
    rng = np.random.default_rng(0)
    row, column = np.indices((H, W))
    images = []
    for _ in range(n):
        a, b, phase = rng.uniform(5, 15), rng.uniform(5, 15), rng.uniform(0, 2 * np.pi)
        blob = np.exp(-((row - a) ** 2 + (column - b) ** 2) / 60)
        images.append(blob * np.exp(1j * (phase + 0.05 * row)))
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("parts", [1, 2])
def test_each_coil_measures_the_image_times_its_map(parts: int) -> None:
    operator = MultiCoil((parts, H, W), coils=3, acceleration=2.0, centre=0.2)
    single = Fourier((2, H, W), acceleration=2.0, centre=0.2)
    x = torch.randn(2, parts, H, W, generator=seeded(0), dtype=torch.float64)
    mask = operator.draw(2, seeded(1))
    assert torch.equal(mask, single.draw(2, seeded(1)))
    y = operator.apply(x, mask)
    assert y.shape == (2, 6, H, W) == (2, *operator.measured_shape)
    image = torch.complex(x[:, 0], x[:, 1] if parts == 2 else torch.zeros_like(x[:, 0]))
    for c, sensitivity in enumerate(unit(simulated_maps(3, (H, W)))):
        seen = image * sensitivity
        expected = single.apply(torch.stack([seen.real, seen.imag], dim=1), mask)
        torch.testing.assert_close(y[:, [c, c + 3]], expected)  # all real parts come first


def test_all_lines_of_all_coils_are_an_isometry() -> None:
    """Σ_c |S_c|² = 1: Aᵀ A = I where every line is measured."""
    operator = MultiCoil((2, H, W), coils=4, acceleration=1.0)
    x = torch.randn(2, 2, H, W, generator=seeded(2), dtype=torch.float64)
    mask = torch.ones(2, 1, 1, W)
    torch.testing.assert_close(operator.adjoint(operator.apply(x, mask), mask), x)
    assert operator.covers and operator.spectrum(mask) is None


@pytest.mark.parametrize("form", ["complex", "parts"])
def test_maps_come_from_a_file(tmp_path: Path, form: str) -> None:
    maps = 7 * simulated_maps(3, (H, W)).numpy().astype(np.complex64)
    maps[:, :2] = 0  # no signal there
    path = tmp_path / "maps.npy"
    np.save(path, maps if form == "complex" else np.stack([maps.real, maps.imag], axis=1))
    read = MultiCoil((2, H, W), coils=str(path), acceleration=1.0)
    x = torch.randn(1, 2, H, W, generator=seeded(3))
    mask = torch.ones(1, 1, 1, W)
    back = read.adjoint(read.apply(x, mask), mask)
    assert (back[:, :, :2] == 0).all() and not read.covers
    torch.testing.assert_close(back[:, :, 2:], x[:, :, 2:], rtol=0, atol=1e-5)


def kspace_of(images: torch.Tensor, maps: torch.Tensor) -> np.ndarray:
    """Returns full k-space of complex images (n, H, W) by coils (C, H, W): (n, C, H, W)."""
    full, mask = Fourier((2, H, W), acceleration=1.0), torch.ones(len(images), 1, 1, W)
    coils = []
    for sensitivity in maps:
        seen = images * sensitivity
        k = full.apply(torch.stack([seen.real, seen.imag], dim=1), mask)
        coils.append(torch.complex(k[:, 0], k[:, 1]))
    return torch.stack(coils, dim=1).numpy()


def some_lines(n: int) -> np.ndarray:
    """Returns lines, (n, W): nine in the middle, and another one of every second measurement."""
    lines = np.zeros((n, W))
    lines[:, 6:15] = 1
    lines[::2, 2] = 1
    return lines


def test_coils_that_see_all_pixels_alike_are_estimated_exactly() -> None:
    """Whatever the images are: every g_i is then S times a low-resolution x_i."""
    generator = seeded(4)
    images = torch.randn(5, H, W, dtype=torch.complex128, generator=generator)
    maps = unit(torch.randn(3, 1, 1, dtype=torch.complex128, generator=generator))
    y = kspace_of(images, maps) * some_lines(5)[:, None, None]
    found = estimate_coils(y, some_lines(5))
    points = np.repeat(some_lines(5)[:, None], H, axis=1)
    np.testing.assert_array_equal(estimate_coils(y, points), found)
    assert found.shape == (3, H, W) and found.dtype == np.complex64
    turn = (found.conj() * maps.numpy()).sum(axis=0)  # one phase for all pixels: a convention
    np.testing.assert_allclose(turn, turn[0, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.abs(turn), 1, rtol=0, atol=1e-6)


def test_maps_are_estimated_from_the_middle_of_k_space() -> None:
    """From 16 images of other phases and nine lines, with noise of a fiftieth of the images.

    Nine lines blur both S x and x over about 20 / 9 pixels: where an image and S both change over
    those, the ratio is not that of the middle. |⟨Ŝ, S⟩|² >= 0.95 leaves a twentieth of a pixel's
    energy unexplained at worst; that of maps without structure is below 0.7.
    """
    truth, images = unit(simulated_maps(4, (H, W))), smooth_images(16)
    y, rng = kspace_of(images, truth), np.random.default_rng(1)
    noise = rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape)
    found = estimate_coils((y + 0.02 * noise) * some_lines(16)[:, None, None], some_lines(16))
    np.testing.assert_allclose((np.abs(found) ** 2).sum(axis=0), 1, rtol=1e-5)
    power = (images.abs() ** 2).sum(dim=0).numpy()
    signal = power > 0.1 * power.max()

    def likeness(maps: np.ndarray) -> np.ndarray:
        return np.abs((maps.conj() * truth.numpy()).sum(axis=0))[signal] ** 2

    assert likeness(found).min() > 0.95 and likeness(found).mean() > 0.99
    mean = truth.mean(dim=(1, 2), keepdim=True)
    assert likeness((mean / mean.norm()).numpy()).min() < 0.7


@pytest.mark.parametrize(
    ("kspace", "lines", "sentence"),
    [
        (np.zeros((3, 2, 8, 8)), np.ones((3, 8)), "complex numbers of shape (N, C, H, W), got fl"),
        (np.zeros((3, 8, 8), complex), np.ones((3, 8)), "of shape [3, 8, 8]"),
        (
            np.zeros((3, 2, 8, 8), complex),
            np.ones(8),
            "must have the shape [3, 8] or [3, 8, 8], got [8]",
        ),
        (
            np.zeros((3, 2, 8, 8), complex),
            np.eye(8)[:3],
            "at least 3 lines in the middle of k-space",
        ),
    ],
)
def test_what_nothing_can_be_estimated_from(
    kspace: np.ndarray, lines: np.ndarray, sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        estimate_coils(kspace, lines)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [
        (None, "corruption.coils=maps.npy cannot be read"),
        (None, "give the path of a .npy file"),  # no picture, and no list
        (np.ones((3, 8, 7)), "maps of shape (C, 8, 8), complex or with an axis of two parts"),
        (np.ones((3, 8, 7)), "corruption.coils=maps.npy must hold"),
        (np.full((3, 8, 8), np.nan), "must hold finite maps"),
        (np.zeros((3, 8, 8)), "corruption.coils=maps.npy must have a value other than 0"),
    ],
)
def test_maps_that_do_not_fit(
    maps: np.ndarray | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if maps is not None:
        np.save("maps.npy", maps)
    with pytest.raises(UserError) as error:
        MultiCoil((2, 8, 8), coils="maps.npy", acceleration=2.0)
    assert sentence in str(error.value)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_maps_of_any_scale_are_the_same(scale: float, tmp_path: Path) -> None:
    file = tmp_path / "maps.npy"
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    given = 1 + np.arange(128).reshape(2, 8, 8) % 5
    measured = []
    for factor in (1.0, scale):
        np.save(file, given * factor)
        operator = MultiCoil((1, 8, 8), coils=str(file), acceleration=1.0)
        measured.append(operator.apply(x, torch.ones(1, 1, 1, 8)))
    assert measured[1].norm() > 1
    torch.testing.assert_close(*measured)


def test_numbers_of_coils_and_other_images() -> None:
    for build, sentence in (
        (lambda: MultiCoil((2, 8, 8), coils=0, acceleration=2.0), "or give the path of a .npy"),
        (lambda: MultiCoil((3, 8, 8), coils=2, acceleration=2.0), "corruption=multicoil needs r"),
    ):
        with pytest.raises(UserError) as error:
            build()
        assert sentence in str(error.value)
