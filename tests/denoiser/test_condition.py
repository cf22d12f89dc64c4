"""What a denoiser is conditioned on: with and without maps, fused or not, withheld."""

import pytest
import torch
from azula.noise import VESchedule
from exact import Zero

from diffem.corruption import (
    Blur,
    Denoising,
    GaussianNoise,
    Mask,
    PoissonNoise,
    Projection,
    make_channel,
)
from diffem.denoiser import Conditioning, Denoiser
from diffem.network import MLP, UNet
from diffem.posterior import Restoration
from diffem.posterior.ambient import MaskedDenoiser
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

SCHEDULE = VESchedule(0.02, 20.0)
MASK = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
CHANNELS = {
    "mask": (MASK, 3, 2),
    "blur": (make_channel(Blur((1, 8, 8), sigma=1.0, kernel_size=3), GaussianNoise(0.1)), 3, 2),
    "projection": (make_channel(Projection((5,), rows=2), GaussianNoise(0.1)), 5 + 15 + 1, 6),
    "one row": (make_channel(Projection((5,), rows=1), GaussianNoise(0.1)), 5 + 1 + 5 + 1, 6),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_are_seen_or_not(name: str) -> None:
    channel, with_maps, without = CHANNELS[name]
    assert Conditioning(maps=True).channels(channel) == with_maps
    assert Conditioning(maps=False).channels(channel) == without


def test_maps_of_an_operator_without_any() -> None:
    channel = make_channel(Denoising((1, 8, 8)), GaussianNoise(0.1))
    with pytest.raises(UserError, match=r"maps=false has no effect on Denoising"):
        Conditioning(maps=False).channels(channel)


def test_unfused_y_reaches_the_denoiser_by_its_embedding_alone() -> None:
    measurement = MASK.draw(torch.randn(4, 1, 8, 8, generator=generator(0)), generator(1))
    x_t, t = torch.randn(4, 1, 8, 8, generator=generator(2)), torch.full((4,), 0.5)
    denoiser = Denoiser(Zero(), SCHEDULE)  # ignores its embedding
    plain = denoiser(x_t, t).mean
    unfused = denoiser(x_t, t, Conditioning(fuse=False)(MASK, measurement)).mean
    fused = denoiser(x_t, t, Conditioning(fuse=True)(MASK, measurement)).mean
    torch.testing.assert_close(unfused, plain)
    assert (fused - plain).abs().max() > 0.1


def test_a_withheld_condition_is_no_condition() -> None:
    measurement = MASK.draw(torch.randn(2, 1, 8, 8, generator=generator(3)), generator(4))
    network = UNet((1, 8, 8), 3, channels=[16], blocks=[1])
    denoiser = Denoiser(network, SCHEDULE).eval()
    condition = Conditioning()(MASK, measurement)
    half = condition.masked(torch.tensor([1.0, 0.0]))
    x_t, t = torch.randn(2, 1, 8, 8, generator=generator(5)), torch.full((2,), 0.4)
    with torch.no_grad():
        mixed, full, none = (denoiser(x_t, t, c).mean for c in (half, condition, None))
    torch.testing.assert_close(mixed[0], full[0])
    torch.testing.assert_close(mixed[1], none[1])
    assert (full[1] - none[1]).abs().max() > 1e-2


@pytest.mark.parametrize("network", [MLP([4], 3), MLP([4], 0)], ids=["conditional", "prior"])
def test_networks_take_no_observation_for_zeros(network: MLP) -> None:
    x, c = torch.randn(2, 4), torch.zeros(2)
    zeros = torch.zeros(2, network.cond_channels)
    assert torch.equal(network(x, c), network(x, c, zeros))


def test_evaluations_are_images_forward_and_backward() -> None:
    denoiser = Denoiser(MLP([4], 0), SCHEDULE)
    denoiser.loss(torch.randn(3, 4), torch.full((3,), 0.5))
    assert denoiser.nfe == 3
    denoiser.loss(torch.randn(3, 4), torch.full((3,), 0.5)).backward()
    assert denoiser.nfe == 9
    x_t = torch.randn(2, 4, requires_grad=True)
    with torch.no_grad():
        denoiser(x_t, torch.tensor(0.5))
    assert denoiser.nfe == 11
    x_hat = denoiser(x_t, torch.tensor(0.5)).mean
    for _ in range(3):
        torch.autograd.grad(x_hat.sum(), x_t, retain_graph=True)
    assert denoiser.nfe == 11 + 2 + 3 * 2


def test_ambient_restoration_of_a_standard_normal() -> None:
    """Of x ~ N(0, I): E[x | y] = y / (1 + σ_y²) where y is measured, and 0 elsewhere."""
    measurement = MASK.draw(torch.randn(4, 1, 8, 8, generator=generator(6)), generator(7))
    denoiser = Denoiser(Zero(), SCHEDULE)
    x = Restoration(denoiser, MASK).draw(measurement)
    torch.testing.assert_close(x, measurement.y / (1 + 0.1**2), rtol=1e-4, atol=1e-5)


def test_ambient_restores_each_measurement_at_its_own_noise_level() -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise((0.05, 1.0)))
    x = torch.randn(6, 1, 8, 8, generator=generator(12))
    y, _, std = measurement = channel.draw(x, generator(13))
    restored = Restoration(Denoiser(Zero(), SCHEDULE), channel).draw(measurement)
    expected = y / (1 + std[:, :, None, None] ** 2)
    torch.testing.assert_close(restored, expected, rtol=1e-4, atol=1e-5)


def test_ambient_s_point_estimate_learns_no_channel() -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1), learn=["noise"])
    with pytest.raises(UserError, match=r"corruption\.learn=\['noise'\] needs samples"):
        Restoration(Denoiser(Zero(), SCHEDULE), channel)


def test_a_masked_denoiser_does_not_see_behind_the_mask() -> None:
    mask = (torch.rand(3, 1, 8, 8, generator=generator(8)) < 0.5).float()
    network = UNet((1, 8, 8), 1, channels=[16], blocks=[1]).eval()
    masked = MaskedDenoiser(Denoiser(network, SCHEDULE), mask)
    x_t = torch.randn(3, 1, 8, 8, generator=generator(9))
    other = x_t + (1 - mask) * 10
    with torch.no_grad():
        a, b = masked(x_t, torch.tensor(0.5)).mean, masked(other, torch.tensor(0.5)).mean
    assert torch.equal(a, b)


def test_photon_noise_is_fused_by_the_variance_that_y_suggests() -> None:
    """Entry by entry where AᵀA is diagonal in the pixels; elsewhere by each sample's mean."""
    noise = PoissonNoise((10.0, 100.0), background=2.0)
    x = torch.rand(4, 1, 8, 8, generator=generator(10)) * 2 - 1
    for operator, per_entry in (
        (Mask((1, 8, 8), rho=0.5), True),
        (Blur((1, 8, 8), sigma=1.0, kernel_size=3), False),
    ):
        channel = make_channel(operator, noise)
        measurement = channel.draw(x, generator(11))
        photons = measurement.noise[:, 0, None, None, None]
        counts = (measurement.y + 1) / 2 * photons + 2.0  # what was counted, where anything was
        var = 4 * counts.clamp(min=2.0) / photons**2
        if not per_entry:
            var = var.mean(dim=(1, 2, 3), keepdim=True)
        condition = Conditioning(fuse=True)(channel, measurement)
        expected = condition.spectrum.square / var
        torch.testing.assert_close(condition.precision, expected.expand_as(condition.precision))
        torch.testing.assert_close(
            condition.information * var,
            condition.spectrum.analyse(channel.adjoint(measurement.y, measurement.operator)),
        )
