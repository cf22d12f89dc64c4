"""Objectives of the M-step: what a method's denoiser is trained to predict, and from what.

Every one is the denoiser's loss E w(t) ‖d_θ(x_t, t, …) - x‖² on a batch of rows of D_k; they
differ in what the denoiser is conditioned on besides x_t, and Ambient Diffusion in what x is.
"""

from abc import ABC, abstractmethod

import torch
from azula.noise import Schedule
from torch import Tensor

from diffem.corruption import (
    Channel,
    LinearChannel,
    LinearGaussianChannel,
    LinearOperator,
    Mask,
    Measurement,
    Spectrum,
)
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Condition, Conditioning, Denoiser, Perturbation, add_noise
from diffem.denoiser.condition import embedding_only, told_share
from diffem.denoiser.reflected import reflect
from diffem.posterior.posterior import has_spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key, generator
from diffem.storage.reconstructions import Batch

MASKS = 1024  # recorded masks whose mean gives the fraction of pixels that they remove


class Objective(ABC):
    """What the M-step minimises. It holds settings alone, and no channel: the loop's is given.

    Attributes:
        perturb: Draws x_t of x, and says what the denoiser predicts of it.
        learns_prior: Whether the denoiser is one of p(x) too.
        uses_reconstructions: Whether it learns from the batch's images.
    """

    perturb: Perturbation = staticmethod(add_noise)
    learns_prior = True
    uses_reconstructions = True

    def cond_channels(self, channel: Channel) -> int:
        """Returns the number of channels of what the network sees besides x_t.

        Raises:
            UserError: If the channel is none that the objective works with.
        """
        return 0

    @abstractmethod
    def loss(
        self,
        denoiser: Denoiser,
        batch: Batch,
        t: Tensor,
        *,
        measurements: MeasurementSet,
        key: tuple[Key, ...],
    ) -> Tensor:
        """Returns the loss of a batch, ().

        Arguments:
            denoiser: The denoiser in training.
            batch: The reconstructions, on the denoiser's device, and their rows, on the CPU; x_t
                is drawn from the global generators.
            t: Times in [0, 1], (B,).
            measurements: The measurements y_i, row i of every D_k, and the channel as it is
                assumed to be now.
            key: What other draws may depend on: seed, stage, step and rank.
        """

    def weighs_rows(self, channel: Channel) -> bool:
        """Returns whether the loss looks at which part of x a row's own measurement measures."""
        return False

    def prior(self) -> "Objective":
        """Returns the objective of a prior that is learned from the same images after EM."""
        return Unconditional()

    def prior_removed(self, channel: Channel) -> float | None:
        """Returns the fraction of pixels hidden from the prior it learns; None: it sees all."""
        return None


class Unconditional(Objective):
    """x ~ D_k and no measurement: the prior, and the M-step of DiffEM's rivals."""

    def loss(
        self,
        denoiser: Denoiser,
        batch: Batch,
        t: Tensor,
        *,
        measurements: MeasurementSet,
        key: tuple[Key, ...],
    ) -> Tensor:
        """Returns the denoising loss of the batch."""
        return denoiser.loss(batch.x, t, perturb=self.perturb, weight=batch.factor())


class Recorrupted(Objective):
    """x̂ ~ D_k and ỹ ~ q(· | x̂) drawn afresh: DiffEM's M-step.

    Arguments:
        condition: How the denoiser is conditioned on ỹ.
        p_uncond: The probability in [0, 1) that ỹ is withheld, so that one network learns the
            prior too.
        fresh: Whether ỹ is drawn at every step; otherwise once a round for each x̂.
        imputed: The weight in [0, 1] of the error on what y_i did not measure of x̂_i, against 1
            on what it measured. Below 1 a round's guesses hold the next one back less. x̂_i is
            drawn from p(x | y_i), so that its coefficients that y_i measured have the law of x
            among the rest if what is measured does not depend on x: the weight does not move
            EM's fixed point then. None is the better in experiments: 0 under random masks, and 1
            elsewhere.

    Raises:
        UserError: If p_uncond is outside [0, 1), or imputed outside [0, 1].
    """

    def __init__(
        self,
        *,
        condition: Conditioning,
        p_uncond: float,
        fresh: bool,
        imputed: float | None = None,
    ) -> None:
        self.imputed = check("method.objective.imputed", imputed)
        self.condition = condition
        self.p_uncond = check("method.objective.p_uncond", p_uncond)
        self.fresh = fresh
        self.learns_prior = p_uncond > 0

    def cond_channels(self, channel: Channel) -> int:
        """Returns the number of channels of the measurements' embedding.

        Raises:
            UserError: If the channel is none that the objective works with.
        """
        if self.imputed is not None and self.imputed < 1:
            if not isinstance(channel, LinearChannel) or channel.forward_operator.covers is False:
                raise UserError(
                    f"method.objective.imputed={self.imputed} needs a corruption whose operator "
                    f"is drawn anew for each image, as mask or projection, got {channel}: what it "
                    "never measures would not be learned; set it to null"
                )
            if not has_spectrum(channel):
                raise UserError(
                    f"method.objective.imputed={self.imputed} needs the spectrum of the operator, "
                    f"and {channel} has none; set it to null"
                )
        return self.condition.channels(channel)

    def loss(
        self,
        denoiser: Denoiser,
        batch: Batch,
        t: Tensor,
        *,
        measurements: MeasurementSet,
        key: tuple[Key, ...],
    ) -> Tensor:
        """Returns the loss of the batch under fresh measurements of it."""
        channel = measurements.channel
        condition = self.draw_condition(channel, batch, key)
        if self.p_uncond > 0:
            keep = torch.rand(len(batch.x), device=batch.x.device) >= self.p_uncond
            condition = condition.masked(keep.float())
        if not self.weighs_rows(channel):
            return denoiser.loss(
                batch.x, t, condition, perturb=self.perturb, weight=batch.factor()
            )
        weight, basis = self._weight(batch, measurements)
        weight = batch.factor() * weight
        return denoiser.loss(
            batch.x, t, condition, perturb=self.perturb, weight=weight, basis=basis
        )

    def weighs_rows(self, channel: Channel) -> bool:
        """Returns whether what a row's own measurement measures counts for more than the rest."""
        if self.imputed is not None:
            return self.imputed < 1
        return isinstance(channel, LinearChannel) and channel.forward_operator.keeps_coefficients

    def _weight(self, batch: Batch, measurements: MeasurementSet) -> tuple[Tensor, Spectrum]:
        """Returns the weight of each coefficient's error, of mean 1, and their basis."""
        channel, own = measurements.channel, measurements.select(batch.rows).to(batch.x.device)
        assert isinstance(channel, LinearChannel)
        share, spectrum = told_share(channel, own)
        weight = share + (self.imputed or 0.0) * (1 - share)
        weight = weight / weight.mean()
        if batch.remembered is not None:  # nothing is known of what was measured of them
            alone = batch.remembered.view(-1, *(1,) * (weight.ndim - 1))
            weight = torch.where(alone, 1.0, weight)
        return weight, spectrum

    def draw_condition(self, channel: Channel, batch: Batch, key: tuple[Key, ...]) -> Condition:
        """Returns the condition of fresh measurements ỹ of a batch.

        Arguments:
            channel: The channel.
            batch: The reconstructions, on the denoiser's device.
            key: What the draws depend on: seed, stage, step and rank.
        """
        return self.condition(channel, self._draw(channel, batch, key))

    def _draw(self, channel: Channel, batch: Batch, key: tuple[Key, ...]) -> Measurement:
        x, device = batch.x, batch.x.device
        if self.fresh:
            return channel.draw(x, generator(*key, "channel", device=device))
        draws = [
            channel.draw(
                x[i : i + 1], generator(key[0], "channel", batch.round, row, device=device)
            )
            for i, row in enumerate(batch.rows.tolist())
        ]
        return Measurement(*(torch.cat(field) for field in zip(*draws, strict=True)))


class Reflected(Recorrupted):
    """DiffEM's M-step on folded x_t (Lou & Ermon 2023, arXiv 2304.04740).

    The denoiser predicts m = x_t + σ_t² ∂ log p(x_t | x̂) / ∂x_t (`diffem.denoiser.reflected`),
    with the same weights. Arguments as of `Recorrupted`.
    """

    perturb = staticmethod(reflect)

    def prior(self) -> Objective:
        """Returns the objective of a prior whose x_t are folded too."""
        return ReflectedPrior()


class ReflectedPrior(Unconditional):
    """x ~ D_k, folded x_t and no measurement."""

    perturb = staticmethod(reflect)


class Ambient(Objective):
    """Ambient Diffusion's: from the pixels of a further mask, those that the first one left.

        E w(t) ‖A (h(Ã x_t, Ã, t) - y)‖²,   Ã = B A,  B ~ Bernoulli(1 - δ),  x_t = y + σ_t z

    The reconstructions are not used; nor is an augmentation.

    Arguments:
        delta: δ, the probability in [1e-6, 1) that a pixel is masked further.

    Raises:
        UserError: If delta is outside [1e-6, 1).
    """

    uses_reconstructions = False

    def __init__(self, *, delta: float) -> None:
        self.delta = check("method.objective.delta", delta)

    def cond_channels(self, channel: Channel) -> int:
        """Returns 1: the network sees the mask.

        Raises:
            UserError: If the channel is no mask of images with Gaussian noise.
        """
        _check_mask(channel)
        return 1

    def loss(
        self,
        denoiser: Denoiser,
        batch: Batch,
        t: Tensor,
        *,
        measurements: MeasurementSet,
        key: tuple[Key, ...],
    ) -> Tensor:
        """Returns the loss on what the measurements of the batch's rows measure."""
        y, mask, _ = measurements.select(batch.rows).to(batch.x.device)
        further = mask * (torch.rand_like(mask) >= self.delta)

        def masked(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            x_t, x = self.perturb(schedule, x, t)
            return further * x_t, x

        return denoiser.loss(y, t, embedding_only(further), perturb=masked, weight=mask)

    def prior_removed(self, channel: Channel) -> float:
        """Returns 1 - (1 - ρ)(1 - δ), the fraction that a mask and a further one remove."""
        _check_mask(channel)
        assert isinstance(channel, LinearGaussianChannel)
        return 1 - (1 - removed_fraction(channel.forward_operator)) * (1 - self.delta)


def removed_fraction(operator: LinearOperator) -> float:
    """Returns ρ of a mask, or that of some masks where the measurements came with theirs."""
    if isinstance(operator, Mask):
        return operator.rho
    masks = operator.draw(MASKS, generator("removed fraction"))
    return 1 - float(masks.mean())


def _check_mask(channel: Channel) -> None:
    """Refuses a channel that Ambient Diffusion does not work with."""
    if isinstance(channel, LinearGaussianChannel) and len(channel.shape) > 1:
        operator = channel.forward_operator
        if isinstance(operator.operator if isinstance(operator, Recorded) else operator, Mask):
            return
    raise UserError(
        f"method=ambient needs corruption=mask on images, with corruption/noise=gaussian, got "
        f"{channel}; choose another method"
    )
