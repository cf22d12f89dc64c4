"""A large image sampled by tiles is what the denoiser makes of it as a whole."""

from functools import partial

import numpy as np
import pytest
import torch
from azula.noise import VESchedule
from azula.sample import DDIMSampler, DDPMSampler, HeunSampler, PCSampler, xEABSampler
from exact import Zero
from torch import Tensor, nn

from diffem.corruption import (
    Denoising,
    GaussianNoise,
    LinearChannel,
    Mask,
    Measurement,
    Windows,
    make_channel,
)
from diffem.denoiser import Conditioning, Denoiser
from diffem.posterior import Conditional, SamplerFactory, SDESampler
from diffem.runtime.rng import generator, seeded

LARGE, SIDE = (1, 43, 58), 16
SCHEDULE = VESchedule(0.02, 10.0)
SAMPLERS = {
    "ddpm": partial(DDPMSampler, steps=8),
    "ddim": partial(DDIMSampler, steps=8, eta=0.5),
    "heun": partial(HeunSampler, steps=4),
    "multistep": partial(xEABSampler, steps=6, order=2),
    "pc": partial(PCSampler, steps=4, corrections=1, delta=0.1),
    "sde": partial(SDESampler, steps=6),
}


class Local(nn.Module):
    """A backbone with fixed random weights that looks `radius` pixels far; 0 for none."""

    def __init__(self, radius: int, cond_channels: int) -> None:
        super().__init__()
        size = (3, 3) if radius else (1, 1)
        widths = [1 + cond_channels, *[8] * max(1, radius)]
        gen = generator("weights", radius)
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(zip(widths, [*widths[1:], 1], strict=True)):
            kernel = size if k < radius else (1, 1)
            layer = nn.Conv2d(a, b, kernel, padding="same")
            layer.weight.data = torch.randn(layer.weight.shape, generator=gen) / (3 * a**0.5)
            layers += [layer, nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        assert cond is not None
        return 3 * self.layers(torch.cat([x, cond], dim=1))


def channel(shape: tuple[int, ...], kind: str = "mask") -> LinearChannel:
    operator = Mask(shape, rho=0.4) if kind == "mask" else Denoising(shape)
    return make_channel(operator, GaussianNoise(0.3))


class Cut:
    """The tiles of one measurement of a mask or of noise alone."""

    def __init__(self, measurement: Measurement, windows: Windows) -> None:
        self.measurement, self.windows = measurement, windows

    def __len__(self) -> int:
        return len(self.windows)

    def select(self, index: slice | Tensor) -> Measurement:
        assert isinstance(index, slice)
        y, operator, noise = self.measurement
        places = [(0, ..., *self.windows.place(i)) for i in range(index.start, index.stop)]
        phi = [operator[place] if operator.ndim > 2 else operator[0] for place in places]
        return Measurement(
            torch.stack([y[place] for place in places]),
            torch.stack(phi),
            noise.expand(len(places), -1),
        )


class Problem:
    """A large measurement, and the posterior of a backbone on it whole or by tiles."""

    def __init__(
        self, radius: int, sampler: SamplerFactory, *, kind: str = "mask", fuse: bool | None = None
    ) -> None:
        whole, small = channel(LARGE, kind), channel((1, SIDE, SIDE), kind)
        gen = generator("y")
        self.measurement = whole.draw(torch.randn(1, *LARGE, generator=gen), gen)
        conditioning = Conditioning(fuse=fuse)
        denoiser = Denoiser(Local(radius, conditioning.channels(whole)), SCHEDULE)
        self.whole, self.small = (
            Conditional(denoiser, part, sampler=sampler, condition=conditioning)
            for part in (whole, small)
        )

    def draw(self) -> Tensor:
        """Returns a sample of the denoiser on the whole image, (1, H, W)."""
        with torch.no_grad(), seeded(7):
            return self.whole.draw(self.measurement)[0]

    def draw_tiled(self, overlap: int, *, size: int = 5) -> Tensor:
        """Returns the sample of the same noise by tiles, (1, H, W)."""
        windows = Windows.of(LARGE[1:], (SIDE, SIDE), overlap)
        with torch.no_grad(), seeded(7):
            return self.small.draw_tiled(
                Cut(self.measurement, windows), windows, size=size, device="cpu"
            )


@pytest.mark.parametrize("kind", ["mask", "denoising"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_denoiser_of_each_pixel_by_itself_gives_the_same_everywhere(
    sampler: str, kind: str
) -> None:
    """Whatever the tiling: the noise of a pixel does not depend on it, nor does the border."""
    problem = Problem(0, SAMPLERS[sampler], kind=kind)
    whole = problem.draw()
    for overlap in (0, 3, 8, 15):
        # Values of about 1 after some ten steps, each rounded to 6e-8.
        torch.testing.assert_close(problem.draw_tiled(overlap), whole, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("fuse", [None, False])
@pytest.mark.parametrize("sampler", ["ddpm", "sde"])
def test_a_denoiser_that_looks_a_quarter_of_the_overlap_far_gives_the_same(
    sampler: str, fuse: bool | None
) -> None:
    """At the image's border as well: the edge of a tile there is the image's own."""
    problem = Problem(2, SAMPLERS[sampler], fuse=fuse)
    whole = problem.draw()
    torch.testing.assert_close(problem.draw_tiled(8), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(problem.draw_tiled(11), whole, rtol=0, atol=1e-5)
    # With less overlap it does not: the denoiser sees the tiles' edges.
    assert (problem.draw_tiled(2) - whole).abs().max() > 1e-2


def test_how_many_tiles_are_denoised_together_does_not_matter() -> None:
    problem = Problem(2, SAMPLERS["sde"])
    few, many = problem.draw_tiled(8, size=1), problem.draw_tiled(8, size=99)
    torch.testing.assert_close(few, many, rtol=0, atol=1e-5)  # a batch's size changes last bits


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_evaluations_are_counted_before_they_are_made(sampler: str) -> None:
    problem, seen = Problem(0, SAMPLERS[sampler]), []
    windows = Windows.of(LARGE[1:], (SIDE, SIDE))
    before = torch.get_rng_state()
    expected = problem.small.evaluations
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad(), seeded(0):
        problem.small.draw_tiled(
            Cut(problem.measurement, windows), windows, size=9, device="cpu",
            on_evaluation=lambda: seen.append(1),
        )  # fmt: skip
    assert len(seen) == expected
    assert problem.small.denoiser.nfe == expected * len(windows)


SEAM, PERIOD = (1, 104, 104), 8  # windows of 16 begin every 8 pixels


def test_tiles_leave_no_seam() -> None:
    """Differences of neighbouring pixels are as large on the edges of tiles as between them.

    The network is a U-Net whose normalisation and padding make each tile's estimate its own. The
    images are of a stationary field, so that where a pixel is changes nothing but by the tiles.
    """
    posterior = trained()
    overlapping, apart = (profile(posterior, overlap) for overlap in (SIDE - PERIOD, 0))
    # 8 phases of the tiles' grid, of 12 independent images each: t with 11 degrees of freedom
    # exceeds 6.5 once in 24,000.
    assert overlapping.abs().max() < 6.5
    # The test sees a seam where there is one.
    assert apart.abs().max() > 9


def field(n: int, shape: tuple[int, ...], *key: str) -> Tensor:
    """Returns smooth stationary noise of variance 1, (n, *shape)."""
    noise = torch.randn(n, *shape[:-2], shape[-2] + 4, shape[-1] + 4, generator=generator(*key))
    return nn.functional.avg_pool2d(noise, 5, stride=1) * 5


def trained() -> Conditional:
    """Returns the posterior of a small U-Net that was trained on clean patches for a moment."""
    from diffem.network import UNet

    small = channel((1, SIDE, SIDE), "denoising")
    conditioning = Conditioning(fuse=False)
    with seeded("weights"):
        network = UNet(small.shape, conditioning.channels(small), channels=[16, 16], blocks=[1, 1])
    denoiser = Denoiser(network, SCHEDULE)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    for step in range(150):
        gen = generator("step", step)
        x = field(32, small.shape, "x", str(step))
        condition = conditioning(small, small.draw(x, gen))
        with seeded("loss", step):
            loss = denoiser.loss(x, torch.rand(32, generator=gen), condition)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampler = partial(SDESampler, steps=6)
    return Conditional(denoiser.eval(), small, sampler=sampler, condition=conditioning)


def profile(posterior: Conditional, overlap: int, n: int = 12) -> Tensor:
    """Returns t-statistics of squared differences of neighbouring columns, by phase, (PERIOD,).

    Each is of an image's mean over a phase of the tiles' grid against the image's own mean.
    """
    whole = channel(SEAM, "denoising")
    windows = Windows.of(SEAM[1:], (SIDE, SIDE), overlap)
    truth = field(n, SEAM, "truth")
    ratios = []
    for i in range(n):
        measurement = whole.draw(truth[i : i + 1], generator("y", i))
        with torch.no_grad(), seeded("draw", i):
            x = posterior.draw_tiled(Cut(measurement, windows), windows, size=64, device="cpu")
        # Columns between 16 and 88: where the grid is regular.
        square = x[0, :, 16:89].diff(dim=1).square().mean(dim=0)
        ratios.append(square.unflatten(0, (-1, PERIOD)).mean(dim=0) / square.mean() - 1)
    each = torch.stack(ratios).double()
    return each.mean(dim=0) / (each.std(dim=0) / np.sqrt(n))


@pytest.mark.parametrize(
    ("shape", "sides"), [((2, 37), (16,)), ((1, 9, 10, 11), (4, 6, 8)), ((3, 20, 8), (8, 8))]
)
def test_signals_volumes_and_colours(shape: tuple[int, ...], sides: tuple[int, ...]) -> None:
    whole, small = channel(shape), channel((shape[0], *sides))
    gen = generator("y")
    measurement = whole.draw(torch.randn(1, *shape, generator=gen), gen)
    denoiser, windows = Denoiser(Zero(), SCHEDULE), Windows.of(shape[1:], sides, 2)
    given = {"sampler": SAMPLERS["ddpm"], "condition": Conditioning()}
    with torch.no_grad(), seeded(7):
        expected = Conditional(denoiser, whole, **given).draw(measurement)[0]  # type: ignore[arg-type]
    with torch.no_grad(), seeded(7):
        found = Conditional(denoiser, small, **given).draw_tiled(  # type: ignore[arg-type]
            Cut(measurement, windows), windows, size=4, device="cpu"
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
