"""Objectives of the M-step: what they draw, withhold and look at."""

from collections.abc import Callable

import pytest
import torch
from azula.noise import VESchedule
from torch import Tensor

from diffem.corruption import (
    Blur,
    Denoising,
    GaussianNoise,
    LinearChannel,
    Mask,
    Measurement,
    Projection,
    Spectrum,
    make_channel,
)
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Condition, Conditioning, Denoiser
from diffem.em.objective import Ambient, Objective, Recorrupted, Unconditional
from diffem.network import UNet
from diffem.posterior.mixture import Mixture, MixturePosterior
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

SHAPE, N = (1, 8, 8), 64
MASK = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.05))
X = torch.randn(N, *SHAPE, generator=generator(0))
Y = MASK.draw(X, generator(1))
SET = MeasurementSet(Y, MASK, X)


class Seen(Denoiser):
    """A denoiser that keeps what its loss was given."""

    def loss(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, **_: object
    ) -> Tensor:
        self.x, self.condition = x, condition
        return torch.zeros(())


def batch(rows: list[int], round: int = 0) -> Batch:
    index = torch.tensor(rows)
    return Batch(X[index], round, index)


def seen_by(objective: Objective, batch: Batch, step: int) -> Condition | None:
    denoiser = Seen(torch.nn.Identity(), VESchedule(0.02, 20.0))
    t, key = torch.full((len(batch.x),), 0.5), (0, "m_step", step, 0)
    objective.loss(denoiser, batch, t, measurements=SET, key=key)
    return denoiser.condition


def recorrupted(*, p_uncond: float = 0.0, fresh: bool = True) -> Recorrupted:
    return Recorrupted(condition=Conditioning(), p_uncond=p_uncond, fresh=fresh)


def embedding(condition: Condition | None) -> Tensor:
    assert condition is not None
    return condition.embedding


def test_fresh_observations_differ_at_every_step() -> None:
    objective = recorrupted()
    one, same, other = (embedding(seen_by(objective, batch([3, 5]), s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one[:, 1], other[:, 1])  # the mask


def test_once_a_round_they_are_a_row_s_own() -> None:
    objective = recorrupted(fresh=False)
    one = embedding(seen_by(objective, batch([3, 5]), 1))
    other = embedding(seen_by(objective, batch([5, 9, 3]), 2))
    assert torch.equal(one[0], other[2]) and torch.equal(one[1], other[0])
    later = embedding(seen_by(objective, batch([3, 5], round=1), 1))
    assert not torch.equal(one[:, 1], later[:, 1])


def test_observations_are_withheld_as_often_as_asked() -> None:
    objective = recorrupted(p_uncond=0.25)
    with seeded(2):
        kept = torch.cat(
            [
                embedding(seen_by(objective, batch(list(range(N))), s))[:, -1, 0, 0]
                for s in range(40)
            ]
        )
    fraction = float((kept == 0).float().mean())  # the noise level, 0 where nothing is told
    assert abs(fraction - 0.25) < 4.5 * (0.25 * 0.75 / len(kept)) ** 0.5
    assert objective.learns_prior and not recorrupted().learns_prior


def test_unconditional_is_told_nothing() -> None:
    assert seen_by(Unconditional(), batch([1, 2]), 0) is None


def test_ambient_learns_from_observations_alone() -> None:
    """Neither the reconstructions nor the truth behind removed pixels change its loss."""
    objective = Ambient(delta=0.1)
    denoiser = Denoiser(UNet(SHAPE, 1, channels=[16], blocks=[1]), VESchedule(0.02, 20.0))
    behind = Y._replace(y=Y.y + (1 - Y.operator) * 7)
    losses = []
    for part, rows in (
        (SET, batch([3, 5])),
        (SET, batch([3, 5])._replace(x=torch.zeros(2, *SHAPE))),
        (MeasurementSet(behind, MASK, X), batch([3, 5])),
    ):
        with seeded(3):
            t = torch.full((2,), 0.5)
            loss = objective.loss(denoiser, rows, t, measurements=part, key=(0,))
            losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2] > 0


def test_ambient_trains_on_what_the_further_mask_hid() -> None:
    """A denoiser that gives what it sees is right but where it is hidden: a share δ of y²."""
    n, delta, t = 4000, 0.3, 0.2
    y = torch.ones(n, *SHAPE)
    measurement = Measurement(y, torch.ones(n, *SHAPE), torch.full((n, 1), 0.05))
    clear = make_channel(Mask(SHAPE, rho=0.0), GaussianNoise(0.05))

    class Copy(Denoiser):
        def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None):  # type: ignore[override]
            self.seen = (x_t != 0).float()
            assert condition is not None
            assert torch.equal(self.seen, condition.embedding)
            return type("Posterior", (), {"mean": self.seen})

    denoiser = Copy(torch.nn.Identity(), VESchedule(0.02, 20.0))
    rows = Batch(y, 0, torch.arange(n))
    with seeded(4):
        loss = Ambient(delta=delta).loss(
            denoiser,
            rows,
            torch.full((n,), t),
            measurements=MeasurementSet(measurement, clear, y),
            key=(0,),
        )
    level = 1 / float(VESchedule(0.02, 20.0)(torch.tensor(t))[1]) ** 2 + 1
    # Monte Carlo: n · 64 pixels, each hidden with probability δ.
    assert abs(float(loss) / level - delta) < 4.5 * (delta * (1 - delta) / (n * 64)) ** 0.5


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: recorrupted(p_uncond=1.0), r"method\.objective\.p_uncond must be a number in"),
        (lambda: Ambient(delta=0.0), r"method\.objective\.delta must be a number in"),
        (
            lambda: Ambient(delta=0.1).cond_channels(
                make_channel(Denoising(SHAPE), GaussianNoise(0.1))
            ),
            "method=ambient needs corruption=mask on images",
        ),
    ],
)
def test_mistakes(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


class Weighed(Denoiser):
    """A denoiser that keeps the weights of its loss."""

    def loss(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition | None = None,
        *,
        weight: Tensor | float = 1.0,
        basis: Spectrum | None = None,
        **_: object,
    ) -> Tensor:
        self.weight, self.basis = weight, basis
        return torch.zeros(())


def weight_of(imputed: float | None, channel: LinearChannel, measured: Measurement) -> Tensor:
    objective = Recorrupted(condition=Conditioning(), p_uncond=0.0, fresh=True, imputed=imputed)
    denoiser = Weighed(torch.nn.Identity(), VESchedule(0.02, 20.0))
    rows = batch(list(range(8)))
    objective.loss(
        denoiser, rows, torch.full((8,), 0.5),
        measurements=MeasurementSet(measured, channel, X), key=(0, "m_step", 0, 0),
    )  # fmt: skip
    weight = torch.as_tensor(denoiser.weight)
    return weight.expand(8, *channel.shape) if weight.ndim else weight


@pytest.mark.parametrize("imputed", [None, 0.0, 0.25])
def test_what_y_measured_counts_for_more(imputed: float | None) -> None:
    weight, mask = weight_of(imputed, MASK, Y), Y.operator[:8].expand(8, *SHAPE)
    assert float(weight.mean()) == pytest.approx(1, rel=1e-5)
    share = 1 / (1 + 0.05**2)
    least = (imputed or 0.0) / (share + (imputed or 0.0) * (1 - share))
    ratio = weight[mask == 0].max() / weight[mask == 1].min()
    torch.testing.assert_close(ratio, torch.tensor(least), rtol=1e-4, atol=1e-6)


def test_directions_weigh_only_if_they_are_said_to() -> None:
    channel = make_channel(Projection((5,), rows=2), GaussianNoise(0.05))
    for imputed in (None, 0.0):
        objective = Recorrupted(
            condition=Conditioning(), p_uncond=0.0, fresh=True, imputed=imputed
        )
        assert objective.cond_channels(channel) > 0  # is not refused
        assert objective.weighs_rows(channel) is (imputed is not None)


def test_a_blur_s_coefficients_are_all_learned() -> None:
    blur = make_channel(Blur(SHAPE, sigma=1.0, kernel_size=3), GaussianNoise(0.05))
    assert weight_of(None, blur, blur.draw(X, generator(2))).tolist() == 1.0
    objective = Recorrupted(condition=Conditioning(), p_uncond=0.0, fresh=True, imputed=0.0)
    with pytest.raises(UserError, match="drawn anew for each image"):
        objective.cond_channels(blur)


def test_recorded_masks_weigh_only_if_they_are_said_to() -> None:
    recorded = MASK.with_operator(Recorded(MASK.forward_operator, Y.operator))
    assert weight_of(None, recorded, Y).tolist() == 1.0
    assert float(weight_of(0.0, recorded, Y).min()) == 0.0


def test_coefficients_that_were_measured_have_the_law_of_x() -> None:
    """Why the weight does not move the fixed point: x̂ ~ p(x | y) under the true prior."""
    gen, dim, n = generator(3), 4, 40_000
    loading = torch.randn(1, dim, 3, generator=gen)
    prior = Mixture(torch.ones(1), loading, torch.tensor([0.1]))
    w = loading[0, :, :-1]
    cov = w @ w.mT + 0.1 * torch.eye(dim)
    x = loading[0, :, -1] + torch.randn(n, dim, generator=gen) @ torch.linalg.cholesky(cov).mT
    channel = make_channel(Mask((dim,), rho=0.5), GaussianNoise(0.3))
    y = channel.draw(x, gen)
    with seeded(4):
        drawn = MixturePosterior(prior, channel).draw(y) - loading[0, :, -1]
    for d in range(dim):
        seen = drawn[y.operator[:, d] == 1]
        second = seen.mT @ seen / len(seen)
        # 4.5 standard errors of a covariance of Gaussians.
        error = ((cov.diagonal()[:, None] * cov.diagonal() + cov**2) / len(seen)).sqrt()
        assert ((second - cov).abs() < 4.5 * error).all()
