"""Phase retrieval: amplitudes against NumPy, and what is said of the images found from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_here
from torch import Tensor

from diffem.cli.inspect import inspect
from diffem.corruption import (
    Denoising,
    GaussianNoise,
    LinearGaussianChannel,
    PhaseRetrieval,
    PoissonNoise,
)
from diffem.corruption.phase_retrieval import phase_masks
from diffem.data import Digits
from diffem.denoiser import Conditioning
from diffem.result.parts import build_channel
from diffem.runtime.errors import UserError

STD = 0.1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def channel(masks: int | str = 3, *, std: float = STD, channels: int = 1) -> PhaseRetrieval:
    return PhaseRetrieval((channels, 8, 8), masks=masks, noise=GaussianNoise(std))


def digits() -> Tensor:
    return Digits([1, 8, 8], train=300).load().train


def test_a_measurement_is_of_amplitudes_behind_each_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    phases = rng.uniform(-np.pi, np.pi, (2, 8, 8))
    np.save(tmp_path / "masks.npy", phases)
    given = channel(str(tmp_path / "masks.npy"), std=1e-6, channels=2)
    x = 2 * rng.random((5, 2, 8, 8)) - 1
    y = given.draw(torch.from_numpy(x).float(), seeded(1)).y.numpy()
    for c in range(2):
        for mask in range(2):
            amplitude = np.abs(np.fft.fft2((x[:, c] + 1) * np.exp(1j * phases[mask]))) / 8
            np.testing.assert_allclose(y[:, 2 * c + mask], amplitude, atol=1e-4)


def test_a_measurement_is_drawn_by_its_generator_alone_and_has_the_stated_noise() -> None:
    given, x = channel(), digits()
    first, again = given.draw(x, seeded(2)), given.draw(x, seeded(2))
    assert torch.equal(first.y, again.y)
    clean = channel(std=1e-9).draw(x, seeded(3)).y
    torch.testing.assert_close((first.y - clean).std(), torch.tensor(STD), rtol=0.02, atol=0)


@pytest.mark.parametrize(("masks", "std"), [(2, 0.05), (3, 0.05), (3, 0.2), (4, 0.2)])
def test_a_retrieved_image_is_as_far_off_as_the_surrogate_says(masks: int, std: float) -> None:
    given, x = channel(masks, std=std), digits()
    found = given.undistorted(given.draw(x, seeded(4)))
    surrogate = given.surrogate
    assert isinstance(surrogate, LinearGaussianChannel)
    assert isinstance(surrogate.forward_operator, Denoising)
    # Slightly below 1: that images are in [-1, 1] says more than the amplitudes do.
    assert 0.8 < surrogate.residual_chi2(found, x).mean() < 1.05
    assert found.noise.median() < 1.05 * std * (2 / masks) ** 0.5
    named = surrogate.noise.parameters["std"].bounds
    assert named == pytest.approx([std * (2 / masks) ** 0.5] * 2)


def test_what_does_not_fit_is_said_to_be_uncertain() -> None:
    """Amplitudes that belong to no image, and the right ones beside them."""
    given, x = channel(4), digits()[:20]
    right = given.draw(x, seeded(5))
    wrong = right._replace(y=right.y.flatten(1).flip(1).view_as(right.y))
    least = STD * (2 / 4) ** 0.5
    assert (given.undistorted(right).noise < 1.2 * least).all()
    assert (given.undistorted(wrong).noise > 3 * least).all()


def test_an_amplitude_below_zero_is_that_of_noise_alone() -> None:
    given, measurement = channel(), channel(std=0.5).draw(digits()[:20], seeded(11))
    assert (measurement.y < 0).any()
    found = given.undistorted(measurement).y
    dark = given.undistorted(measurement._replace(y=measurement.y.clamp(min=0))).y
    torch.testing.assert_close(found, dark)


def test_an_embedding_has_the_image_and_what_is_said_of_it() -> None:
    given, x = channel(channels=2), digits()[:6].reshape(3, 2, 8, 8)
    measurement = given.draw(x, seeded(6))
    embedding = given.embed(measurement)
    nearest = given.nearest_linear(measurement)
    assert nearest is not None and nearest[0].shape == given.shape
    found = nearest[1]
    assert embedding.shape == (3, 3, 8, 8)
    assert torch.equal(embedding[:, :2], found.y) and torch.equal(given.lift(measurement), found.y)
    assert torch.equal(embedding[:, 2, 0, 0], found.noise[:, 0])


def test_an_image_is_retrieved_once_for_the_embedding_and_the_fusion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retrieve, calls = PhaseRetrieval._retrieve, []
    monkeypatch.setattr(
        PhaseRetrieval, "_retrieve", lambda self, m: calls.append(1) or retrieve(self, m)
    )
    given = channel()
    first, second = (given.draw(digits()[:4], seeded(seed)) for seed in (9, 10))
    condition = Conditioning()(given, first)
    assert len(calls) == 1
    other = Conditioning()(given, second)
    again = Conditioning()(channel(), first)
    assert torch.equal(condition.embedding, again.embedding)
    assert not torch.equal(condition.embedding, other.embedding)


def test_an_assumed_noise_takes_the_place_of_the_drawn_one() -> None:
    given = channel(std=0.3)
    measurement = channel(std=0.1).draw(digits()[:4], seeded(7))
    assumed = given.assume(measurement)
    stds = [given.undistorted(each).noise for each in (measurement, assumed)]
    assert (stds[0] < 0.6 * stds[1]).all()
    assert (measurement.noise == 0.1).all() and (assumed.noise == 0.3).all()
    assert torch.equal(assumed.y, measurement.y)


NODE = {
    "_target_": "diffem.corruption.PhaseRetrieval",
    "masks": 2,
    "noise": {"_target_": "diffem.corruption.GaussianNoise", "std": 0.3},
    "learn": [],
}


def test_a_configuration_gives_its_noise() -> None:
    built = build_channel(NODE, (1, 8, 8))
    assert built.draw(torch.zeros(1, 1, 8, 8), seeded(8)).noise.tolist() == [[pytest.approx(0.3)]]
    with pytest.raises(UserError, match=r"corruption\.learn=\['noise'\] needs a linear channel"):
        build_channel({**NODE, "learn": ["noise"]}, (1, 8, 8))
    part = {key: NODE[key] for key in ("_target_", "masks")}
    with pytest.raises(UserError, match=r"parts\.0=PhaseRetrieval is a channel, and no operator"):
        build_channel({"parts": [part], "noise": NODE["noise"]}, (1, 8, 8))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs images of shape \(C, H, W\), got \[8\]"):
        PhaseRetrieval((8,), masks=2, noise=GaussianNoise(STD))
    with pytest.raises(UserError, match=r"needs Gaussian noise, got PoissonNoise"):
        PhaseRetrieval((1, 8, 8), masks=2, noise=PoissonNoise(9.0))
    with pytest.raises(UserError, match=r"corruption\.masks must be"):
        channel(0)
    file = tmp_path / "masks.npy"
    for values in (
        np.zeros((2, 8, 9)),
        np.zeros((8, 8)),
        np.zeros((0, 8, 8)),
        np.full((2, 8, 8), np.nan),
        np.ones((2, 8, 8), dtype=np.complex64),
    ):
        np.save(file, values)
        with pytest.raises(UserError, match=r"must hold finite phases in radians, of shape \(L,"):
            channel(str(file))


WRONG = {
    "intensities": lambda y: y.clamp(min=0) ** 2,
    "a hundred times": lambda y: 100 * y,
    "twice": lambda y: 2 * y,
    "a hundredth": lambda y: y / 100,
}


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("std", [0.05, 0.2])
def test_amplitudes_in_other_units_are_doubted(masks: int, std: float) -> None:
    """Those of the channel are not, of one mask from which few images are found neither."""
    given = channel(masks, std=std)
    right = given.draw(digits()[:64], seeded(9))
    assert given.doubt(right) is None
    for change in WRONG.values():
        said = given.doubt(right._replace(y=change(right.y)))
        assert said is not None and "square roots of intensities" in said
        assert ("fewer than three masks" in said) == (masks == 1)
    faint = channel(masks, std=1e-4)
    dark = faint.draw(digits()[:64] / 100 - 0.99, seeded(9))
    assert "their size is 0.0" in str(faint.doubt(dark))


@pytest.mark.parametrize("scale", [1, 100])
def test_a_run_and_inspect_say_so(
    scale: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = phase_masks(2, (8, 8)).numpy()
    np.save(tmp_path / "masks.npy", masks)
    given = channel(str(tmp_path / "masks.npy"))
    np.save(tmp_path / "y.npy", scale * given.draw(digits()[:40], seeded(10)).y.numpy())
    own = [
        *("corruption=phase_retrieval", f"corruption.masks={tmp_path / 'masks.npy'}"),
        *(f"corruption.noise.std={STD}", "dataset.shape=[1,8,8]", "dataset.range=[-1,1]"),
    ]
    run_here(tmp_path / "run", "dataset=measurements", f"dataset.path={tmp_path / 'y.npy'}", *own)
    found = inspect(tmp_path / "y.npy", [*own, "network.channels=[16]", "network.blocks=[1]"])
    warnings = " ".join(w for part in found.findings.values() for w in part.warnings)
    for said in (capsys.readouterr().err, warnings):
        assert ("are hardly those of corruption=phase_retrieval" in said) == (scale == 100)
    assert "too small" not in warnings and "crops" not in warnings
