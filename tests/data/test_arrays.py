"""Arrays in the data's units become measurements, and what does not fit is refused."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from diffem.corruption import (
    Blur,
    Channel,
    Composition,
    Denoising,
    DistortedChannel,
    Fourier,
    Gamma,
    GaussianNoise,
    LinearChannel,
    Mask,
    Measurement,
    MotionBlur,
    PhaseRetrieval,
    PoissonNoise,
    Projection,
    Radon,
    Saturation,
    Weighting,
    make_channel,
)
from diffem.data.arrays import measurement_of, operator_of
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError

N = 6
RNG = np.random.default_rng(0)
SHAPE = (1, 4, 3)
X = RNG.uniform(1000, 3000, (N, *SHAPE))
SCALE = Scale(0, 4000)
STD = np.linspace(10, 60, N)


class Saturated(Channel):
    """y = min(x, 1) in units of its own: a channel that only draws and embeds."""

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        return Measurement(x.clamp(max=1), x.new_empty(len(x), 0), x.new_full((len(x), 1), 0.5))

    def embed(self, measurement: Measurement) -> Tensor:
        return measurement.y


class Gain(Saturated):
    """Saturated, with a gain that differs between measurements."""

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        gain = torch.rand(len(x), 1, generator=generator)
        return Measurement(gain[..., None, None] * x, gain, x.new_empty(len(x), 0))


def denoising(std: float | Sequence[float] = 0.1) -> Channel:
    return make_channel(Denoising(SHAPE), GaussianNoise(std))


def weighting(std: float | Sequence[float] = 0.1) -> Channel:
    return make_channel(Weighting(SHAPE, ratio=(1.0, 2.0)), GaussianNoise(std))


def saturation(std: float = 0.1) -> DistortedChannel:
    linear = make_channel(Denoising(SHAPE), GaussianNoise(std))
    return DistortedChannel(linear, [Saturation(low=-1.0, high=0.5)])


def mask() -> Channel:
    return make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.1))


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_scale_of_minus_one_to_one_is_the_identity(shift: float) -> None:
    """Bit for bit, the sign of zero included."""
    values = torch.randn(10_000, generator=Generator().manual_seed(0)) * 10 + shift
    values = torch.cat([values, torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, 1e30])])
    for mapped in (Scale().normalise(values), Scale().denormalise(values)):
        assert torch.equal(mapped.view(torch.int32), values.view(torch.int32))


def test_16_bit_integers_survive_the_scale_in_float32() -> None:
    values = torch.arange(65536, dtype=torch.float32)
    x = Scale(0, 65535).normalise(values)
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(Scale(0, 65535).denormalise(x).round(), values)


@pytest.mark.parametrize("dtype", [">u2", "<u2", "int32", "float32", "float64", "uint8"])
def test_arrays_of_every_width_and_byte_order(dtype: str) -> None:
    y = (X / 20).astype(dtype)[:, 0]  # grey images without a channel axis
    found = measurement_of(y, denoising(), SCALE)
    expected = (torch.from_numpy(y.astype(np.float64))[:, None] - 2000) / 2000
    assert torch.equal(found.y, expected.float()) and found.y.shape == (N, *SHAPE)
    assert (found.noise == torch.tensor(0.1)).all()


def test_tensors_and_arrays_give_the_same() -> None:
    found = measurement_of(torch.from_numpy(X), denoising(), SCALE)
    assert torch.equal(found.y, measurement_of(X, denoising(), SCALE).y)


def test_a_large_offset_costs_no_precision() -> None:
    """Values that float32 cannot tell apart, and their scale can."""
    y = 1e9 + RNG.uniform(-1, 1, (N, *SHAPE))
    found = measurement_of(y, denoising(), Scale(1e9 - 1, 1e9 + 1)).y
    torch.testing.assert_close(found, torch.from_numpy(y - 1e9).float(), atol=2e-7, rtol=0)


def test_nan_and_masks_are_joined() -> None:
    y, given = X.copy(), np.ones((N, 4, 3), bool)
    y[:, :, 1] = np.nan
    given[:, :, 2] = False
    found = measurement_of(y, mask(), SCALE, operator=given)
    expected = torch.ones(N, *SHAPE)
    expected[:, :, 1] = expected[..., 2] = 0
    assert torch.equal(found.operator, expected)
    assert torch.equal(found.y == 0, expected == 0)


def test_the_noise_of_each_is_scaled() -> None:
    found = measurement_of(X, denoising((0.001, 0.1)), SCALE, noise=STD)
    assert torch.equal(found.noise[:, 0], (torch.from_numpy(STD) / 2000).float())


def test_the_scale_is_that_of_x_where_the_operator_does_not_keep_it() -> None:
    """y = A x in the data's units is y' = A x' on the scale, whatever A does to a constant."""
    channel = make_channel(Projection((5,), rows=2), GaussianNoise(0.1))
    phi = channel.forward_operator.draw(N, Generator().manual_seed(0)).double()
    x = torch.from_numpy(RNG.uniform(1000, 3000, (N, 5)))
    y = channel.apply(x, phi)
    found = measurement_of(y, channel, SCALE, operator=phi)
    expected = channel.apply(SCALE.normalise(x), phi).float()
    torch.testing.assert_close(found.y, expected, atol=1e-6, rtol=0)  # float32 of values near 1


def test_a_channel_that_is_not_linear_keeps_its_units() -> None:
    found = measurement_of(X, Saturated(SHAPE), SCALE)
    assert torch.equal(found.y, torch.from_numpy(X).float())
    assert found.operator.shape == (N, 0) and found.noise.tolist() == [[0.5]] * N
    gains = RNG.uniform(0, 1, N)
    found = measurement_of(X[:, 0], Gain(SHAPE), SCALE, operator=gains)
    assert torch.equal(found.operator[:, 0], torch.from_numpy(gains).float())
    found = measurement_of(X, Saturated(SHAPE), SCALE, noise=STD)
    assert torch.equal(found.noise[:, 0], torch.from_numpy(STD).float())


HOLES = np.where(X > 2000, np.nan, X)
BLUR = make_channel(Blur(SHAPE, sigma=1.0, kernel_size=3), GaussianNoise(0.1))
RANGED = make_channel(Blur(SHAPE, sigma=(0.5, 2.0), kernel_size=3), GaussianNoise(0.1))

KSPACE, PROJECTED = np.zeros((N, 2, 4, 3)), np.zeros((N, 1, 2, 5))
FOURIER = make_channel(Fourier(SHAPE, acceleration=2.0), GaussianNoise(0.1))
RADON = make_channel(Radon(SHAPE, angles=2), GaussianNoise(0.1))
BEHIND = make_channel(
    Composition([Mask(SHAPE, rho=0.5), Radon(SHAPE, angles=2)]), GaussianNoise(0.1)
)
FIXED = make_channel(Radon(SHAPE, angles=[0.0, 90.0]), GaussianNoise(0.1))


AMPLITUDES = np.ones((N, 2, 4, 3))


def phases(std: float | Sequence[float]) -> PhaseRetrieval:
    return PhaseRetrieval(SHAPE, masks=2, noise=GaussianNoise(std))


def gamma(value: float | Sequence[float]) -> DistortedChannel:
    return DistortedChannel(
        make_channel(Denoising(SHAPE), GaussianNoise(0.1)), [Gamma(gamma=value)]
    )


@pytest.mark.parametrize(
    ("y", "channel", "given", "sentence"),
    [
        (X.astype(complex), denoising(), {}, "must be real numbers, (N, …), got complex128"),
        (X[:0], denoising(), {}, "holds no measurement"),
        (X[:, :, :3], denoising(), {}, "the measurements have shape [1, 3, 3]"),
        (X[0, 0], denoising(), {}, "have shape [3], and Denoising with GaussianNoise of images"),
        (np.where(X > 2000, np.inf, X), denoising(), {}, "y holds infinity; mark it by NaN"),
        (X * 1e40, denoising(), {}, "too large for dataset.range=[0,4000]"),
        (HOLES, denoising(), {}, "train with corruption=mask"),
        (HOLES, BLUR, {}, "for measured; fill it in, or leave these measurements out"),
        (KSPACE * np.nan, FOURIER, {"operator": np.ones((N, 3))}, "give 0 in `operator`"),
        (PROJECTED * np.nan, RADON, {"operator": np.ones((N, 2))}, "give NaN in `operator` too"),
        (PROJECTED, BEHIND, {"operator": [[np.nan] + [1.0] * 13] * N},
         "holds NaN where Radon has none of its parameters"),
        (KSPACE, FOURIER, {"operator": np.full((N, 3), np.nan)}, "operator holds NaN; correct it"),
        (HOLES, Saturated(SHAPE), {}, "Saturated does not say what was not measured"),
        (X, mask(), {"operator": np.ones((N, 2, 2))}, "has shape [2, 2], and [1, 4, 3]"),
        (X, mask(), {"operator": np.full((N, 4, 3), np.nan)}, "operator holds NaN; correct it"),
        (X, RANGED, {}, "has no `operator`, and Blur with GaussianNoise draws its own"),
        (X, RANGED, {"operator": np.ones((N, 2))}, "operator must have the shape [6, 1]"),
        (X, BLUR, {"operator": np.ones(N)}, "corruption.sigma is one number for all"),
        (X, denoising(), {"noise": STD}, "corruption.noise.std is one number for all"),
        (X, denoising((0.1, 1)), {}, "corruption.noise.std is a range"),
        (X, denoising((0.1, 1)), {"noise": -STD}, "std must be 6 positive numbers"),
        (X, denoising((0.1, 1)), {"noise": STD[:3]}, "got the shape [3]"),
        (X, make_channel(Denoising(SHAPE), PoissonNoise(9.0)), {"noise": STD},
         "std has no effect on PoissonNoise"),
        (X, RANGED, {"operator": np.full(N, 9.0)}, "holds 9, outside corruption.sigma=[0.5,2]"),
        (X, RANGED, {"operator": -np.ones(N)}, "holds -1, outside corruption.sigma"),
        (X, denoising((0.1, 1)), {"noise": STD * 1e3}, "outside corruption.noise.std=[200,2000]"),
        (X, saturation(), {"noise": STD}, "corruption.noise.std is one number for all"),
        (X, gamma(2.0), {"operator": np.full(N, 1.5)}, "has one number for all"),
        (X, gamma((1.0, 2.0)), {"operator": np.full(N, 3.0)}, "outside corruption.gamma=[1,2]"),
        (KSPACE, FOURIER, {"operator": np.full((N, 3), 255)}, "must be 0 or 1, 1 where a line"),
        (KSPACE, FOURIER, {"operator": np.ones((N, 4))},
         "[6, 3] of lines or [6, 4, 3] of points, got [6, 4]; correct it"),
        (KSPACE, FOURIER, {"operator": np.arange(2)[:, None, None] * np.ones((N, 1, 4, 3))},
         "the same in all channels"),
        (KSPACE, FOURIER, {"operator": -np.ones((N, 3))}, "and holds -1; correct it"),
        (PROJECTED, RADON, {"operator": np.full((N, 2), 1e9)}, "must be degrees in [-360"),
        (PROJECTED, FIXED, {"operator": np.full((N, 2), 10.0)}, "has other angles than"),
        (AMPLITUDES, phases(0.1), {"noise": STD}, "corruption.noise.std is one number for all"),
        (AMPLITUDES, phases((1, 9)), {"noise": STD}, "outside corruption.noise.std=[1,9]"),
        (AMPLITUDES, phases((1, 9)), {"noise": -STD}, "std must be 6 positive numbers"),
        (AMPLITUDES, phases((1, 9)), {}, "corruption.noise.std is a range"),
        (AMPLITUDES, phases((1, 90)), {"noise": STD[:, None] + np.arange(4)},
         "one number for all of them; give one number for each"),
        (X, Gain(SHAPE), {}, "operator is missing, and Gain has another one for each"),
    ],
)  # fmt: skip
def test_what_is_refused(
    y: np.ndarray, channel: Channel, given: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        measurement_of(y, channel, SCALE, **given, source="y.npz")
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert "y.npz" in str(error.value)


def test_masks_of_k_space_are_of_lines_or_of_points() -> None:
    lines, points = RNG.integers(0, 2, (N, 3)), RNG.integers(0, 2, (N, 4, 3))
    y = RNG.normal(size=KSPACE.shape)
    for given in (lines, lines[:, None], lines[:, None, None]):
        found = measurement_of(y, FOURIER, SCALE, operator=given)
        assert np.array_equal(found.operator.numpy(), lines[:, None, None])
    for given in (points, points[:, None], np.repeat(points[:, None], 2, axis=1)):
        found = measurement_of(y, FOURIER, SCALE, operator=given)
        assert np.array_equal(found.operator.numpy(), points[:, None])
        assert (found.y.numpy()[np.repeat(points[:, None], 2, axis=1) == 0] == 0).all()
    one = measurement_of(y[:1], FOURIER, SCALE, operator=points[0])  # without an axis of rows
    assert np.array_equal(one.operator.numpy(), points[:1, None])
    assert np.array_equal(operator_of(1, FOURIER, operator=lines[0]), lines[:1, None, None])


def test_what_the_operator_leaves_out_may_be_nan_in_y() -> None:
    angles, lines = RNG.uniform(0, 180, (N, 2)), RNG.integers(0, 2, (N, 3))
    angles[::2, 1], lines[:, 1] = np.nan, 0
    for y, channel, phi in ((PROJECTED + 1, RADON, angles), (KSPACE + 1, FOURIER, lines)):
        own = channel.forward_operator
        there = measurement_of(y, channel, SCALE, operator=phi)
        measured = own.measured_mask(there.y, there.operator) != 0
        holes = np.where(measured, y, np.nan)
        assert np.isnan(holes).any()
        found = measurement_of(holes, channel, SCALE, operator=phi)
        for field, other in zip(found, there, strict=True):
            assert torch.equal(field.nan_to_num(nan=-1), other.nan_to_num(nan=-1))
        assert found.y.isfinite().all() and channel.embed(found).isfinite().all()
        x = torch.zeros(N, *SHAPE)
        assert channel.residual_chi2(found, x).isfinite().sum() >= N - 1


def test_nan_angles_before_a_detector_that_saturates() -> None:
    channel = DistortedChannel(RADON, [Saturation(low=-1.0, high=1.0)])
    angles = np.array([[10.0, np.nan]] * N)
    found = measurement_of(PROJECTED, channel, SCALE, operator=angles)
    assert found.operator[:, 1].isnan().all() and channel.embed(found).isfinite().all()


def test_parameters_of_the_operator_alone() -> None:
    y, given = X.copy(), RNG.integers(0, 2, (N, 4, 3))
    y[:, :, 1] = np.nan
    channel = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.1))
    for masks in (given, None):
        for values in (y, None):
            whole = measurement_of(X if values is None else y, channel, SCALE, operator=masks)
            assert torch.equal(operator_of(N, channel, y=values, operator=masks), whole.operator)
    widths = RNG.uniform(0.5, 2, N)
    whole = measurement_of(X, RANGED, SCALE, operator=widths)
    assert torch.equal(operator_of(N, RANGED, operator=widths), whole.operator)


def test_noise_of_every_pixel_becomes_a_weight() -> None:
    """y has the residuals (y - x) / σ(p) of the data's units, whatever σ_y is taken."""
    sigma = RNG.uniform(20, 200, (N, *SHAPE))
    y = X + 10.0
    y[0, 0, 0, 0], sigma[1, 0, 2, 1] = np.nan, np.nan
    channel = weighting()
    assert isinstance(channel, LinearChannel)
    found = measurement_of(y[:, 0], channel, SCALE, noise=sigma[:, 0])
    truth = SCALE.normalise(torch.from_numpy(X)).float()
    measured = channel.measured_mask(found.y, found.operator).bool()
    expected = torch.ones(N, *SHAPE, dtype=torch.bool)
    expected[0, 0, 0, 0] = expected[1, 0, 2, 1] = False
    assert torch.equal(measured, expected)
    residual = (found.y - channel.apply(truth, found.operator)) / 0.1
    torch.testing.assert_close(
        residual[measured], torch.from_numpy(10 / sigma).float()[expected], rtol=1e-3, atol=1e-4
    )
    lifted = SCALE.denormalise(channel.lift(found).double())[measured]
    torch.testing.assert_close(lifted, torch.from_numpy(y)[expected], rtol=1e-5, atol=1e-2)
    alone = operator_of(N, channel, y=y[:, 0], std=sigma[:, 0], scale=SCALE)
    assert torch.equal(alone, found.operator)


@pytest.mark.parametrize(
    ("channel", "std", "sentence"),
    [
        (weighting(), None, "no std of every pixel"),
        (weighting(), STD, "std must be positive numbers of the shape [1, 4, 3]"),
        (weighting(), -np.ones((N, 4, 3)), "a least value of -1"),
        (weighting((0.1, 0.2)), np.ones((N, 4, 3)), "one corruption.noise.std"),
    ],
)
def test_noise_of_every_pixel_that_does_not_fit(
    channel: Channel, std: np.ndarray | None, sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        measurement_of(X, channel, SCALE, noise=std)
    assert sentence in str(error.value)


def test_distorted_measurements_are_on_the_scale_of_the_images() -> None:
    found = measurement_of(X, saturation(), SCALE)
    assert torch.equal(found.y, SCALE.normalise(torch.from_numpy(X)).float())
    assert found.operator.shape == (N, 0) and (found.noise == 0.1).all()
    assert saturation(50.0).scaled(SCALE.factor).linear.noise.parameters["std"].known == 0.025


def test_the_noise_of_each_distorted_measurement_is_in_the_data_s_units() -> None:
    linear = make_channel(Denoising(SHAPE), GaussianNoise((5.0, 100.0)))
    channel = DistortedChannel(linear, [Saturation(low=-1.0, high=0.5)]).scaled(SCALE.factor)
    found = measurement_of(X, channel, SCALE, noise=STD)
    assert torch.allclose(found.noise[:, 0], torch.from_numpy(STD / 2000).float())


def test_recorded_parameters_at_the_ends_of_their_ranges_are_allowed() -> None:
    """As float32 has them, beyond the ends; and a direction of 0 degrees, which is that of 180."""
    for operator, parameters in (
        (Blur(SHAPE, sigma=(0.1, 0.3), kernel_size=3), np.full((N, 1), 0.3, dtype=np.float32)),
        (MotionBlur(SHAPE, length=(1.0, 3.0), angle=(90.0, 180.0)), np.array([[2.0, 0.0]] * N)),
    ):
        channel = make_channel(operator, GaussianNoise(0.1))
        found = measurement_of(X, channel, SCALE, operator=parameters)
        assert torch.equal(found.operator, torch.from_numpy(parameters).float())
    assert float(np.float32(0.3)) > 0.3


def test_amplitudes_keep_their_own_noise_in_units_of_y() -> None:
    given = measurement_of(AMPLITUDES, phases((1, 90)), SCALE, noise=STD)
    assert torch.equal(given.y, torch.ones(N, 2, 4, 3))
    assert given.noise[:, 0].tolist() == STD.tolist()
