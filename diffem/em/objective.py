"""Objectives of the M-step: what a method's denoiser is trained to predict, and from what.

Every one is the denoiser's loss E w(t) ‖d_θ(x_t, t, …) - x‖² on a batch of rows of D_k; they
differ in what the denoiser is told besides x_t, and Ambient Diffusion in what x is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from torch import Tensor

from diffem.corruption import Corruption, Mask, Measurement
from diffem.denoiser import Conditioning, Denoiser
from diffem.denoiser.condition import unfused
from diffem.posterior.ambient import MaskedDenoiser
from diffem.runtime.errors import UserError, check_fraction
from diffem.runtime.rng import Key, generator
from diffem.storage.reconstructions import Batch


class Objective(ABC):
    """What the M-step minimises.

    Arguments:
        corruption: The channel, as it is believed to be.
        measurement: The measurements y_i, row i of every D_k, (N, …).

    Attributes:
        cond_channels: The number of channels of what the network sees besides x_t.
        learns_prior: Whether the denoiser is one of p(x) too.
    """

    cond_channels = 0
    learns_prior = True

    def __init__(self, corruption: Corruption, measurement: Measurement) -> None:
        self.corruption = corruption
        self.measurement = measurement

    @abstractmethod
    def loss(self, denoiser: Denoiser, batch: Batch, t: Tensor, key: tuple[Key, ...]) -> Tensor:
        """Returns the loss of a batch, ().

        Arguments:
            denoiser: The denoiser in training.
            batch: The reconstructions, on the denoiser's device; x_t is drawn from the global
                generators.
            t: Times in [0, 1], (B,).
            key: What other draws may depend on: seed, phase, step and rank.
        """

    def prior(self, denoiser: Denoiser, n: int) -> AzulaDenoiser:
        """Returns the denoiser that draws n samples of p(x)."""
        return denoiser


ObjectiveFactory = Callable[[Corruption, Measurement], Objective]


class Unconditional(Objective):
    """x ~ D_k and no measurement: the prior, and the M-step of DiffEM's rivals."""

    def loss(self, denoiser: Denoiser, batch: Batch, t: Tensor, key: tuple[Key, ...]) -> Tensor:
        """Returns the denoising loss of the batch."""
        return denoiser.loss(batch.x, t)


class Recorrupted(Objective):
    """x̂ ~ D_k and ỹ ~ q(· | x̂) drawn afresh: DiffEM's M-step.

    Arguments:
        corruption: The channel that draws ỹ.
        measurement: Not used.
        condition: How ỹ is made known to the denoiser.
        p_uncond: The probability in [0, 1) that ỹ is withheld, so that one network learns the
            prior too.
        fresh: Whether ỹ is drawn at every step; otherwise once a round for each x̂.

    Raises:
        UserError: If p_uncond is outside [0, 1).
    """

    def __init__(
        self,
        corruption: Corruption,
        measurement: Measurement,
        *,
        condition: Conditioning,
        p_uncond: float,
        fresh: bool,
    ) -> None:
        super().__init__(corruption, measurement)
        self.condition = condition
        self.p_uncond = check_fraction("method.objective.p_uncond", p_uncond)
        self.fresh = fresh
        self.cond_channels = condition.channels(corruption)
        self.learns_prior = p_uncond > 0

    def loss(self, denoiser: Denoiser, batch: Batch, t: Tensor, key: tuple[Key, ...]) -> Tensor:
        """Returns the loss of the batch under measurements of it."""
        condition = self.condition(self.corruption, self._draw(batch, key))
        if self.p_uncond > 0:
            keep = torch.rand(len(batch.x), device=batch.x.device) >= self.p_uncond
            condition = condition.kept(keep.float())
        return denoiser.loss(batch.x, t, condition)

    def _draw(self, batch: Batch, key: tuple[Key, ...]) -> Measurement:
        x, device = batch.x, batch.x.device
        if self.fresh:
            return self.corruption.draw(x, generator(*key, "channel", device=device))
        draws = [
            self.corruption.draw(
                x[i : i + 1], generator(key[0], "channel", batch.round, row, device=device)
            )
            for i, row in enumerate(batch.rows.tolist())
        ]
        return Measurement(*(torch.cat(field) for field in zip(*draws, strict=True)))


class Ambient(Objective):
    """Ambient Diffusion's: from the pixels of a further mask, those that the first one left.

        E w(t) ‖A (h(Ã x_t, Ã, t) - y)‖²,   Ã = B A,  B ~ Bernoulli(1 - δ),  x_t = y + σ_t z

    The reconstructions are not used; nor is an augmentation.

    Arguments:
        corruption: The channel, a mask.
        measurement: The measurements, which are the training data.
        delta: δ, the probability in (0, 1) that a pixel is masked further.

    Raises:
        UserError: If the channel is no mask of images, or delta is outside (0, 1).
    """

    cond_channels = 1

    def __init__(self, corruption: Corruption, measurement: Measurement, *, delta: float) -> None:
        super().__init__(corruption, measurement)
        if not isinstance(corruption, Mask) or len(corruption.shape) < 2:
            raise UserError(
                "method=ambient needs corruption=mask on images; choose another method"
            )
        if check_fraction("method.objective.delta", delta) == 0:
            raise UserError("method.objective.delta must be a number in (0, 1), got 0")
        self.delta = delta
        self.rho = corruption.rho

    def loss(self, denoiser: Denoiser, batch: Batch, t: Tensor, key: tuple[Key, ...]) -> Tensor:
        """Returns the loss on what the measurements of the batch's rows measure."""
        y, mask, _ = self.measurement.select(batch.rows.cpu()).to(batch.x.device)
        further = mask * (torch.rand_like(mask) >= self.delta)
        return denoiser.loss(y, t, unfused(further), seen=further, weight=mask)

    def prior(self, denoiser: Denoiser, n: int) -> AzulaDenoiser:
        """Returns the denoiser under one further mask for each of n samples (fixed masks)."""
        shape = (n, 1, *self.corruption.shape[1:])
        device = next(denoiser.parameters()).device
        kept = torch.rand(shape, device=device) >= 1 - (1 - self.rho) * (1 - self.delta)
        return MaskedDenoiser(denoiser, kept.float())
